// SPDX-License-Identifier: GPL-2.0-only
// What mb-efi does with images that are converted already, or none of Xen's. That it makes the same as the steps one by
// one is tested with the goldens.

import { Buffer } from "node:buffer";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { runCommand } from "./cli/cli.ts";
import { sample } from "./dev/sample/run.ts";
import { command, mbEfi } from "./mb-efi.ts";

async function run(input: Uint8Array, ...options: string[]): Promise<{ status: number; out: Buffer; stderr: string }> {
  let [out, stderr] = [Buffer.alloc(0), ""];
  const status = await runCommand(command, ["-", "-", ...options], {
    stdin: () => input,
    stdout: (bytes) => (out = Buffer.from(bytes as Uint8Array)),
    stderr: (text) => (stderr += text),
  });
  return { status, out, stderr };
}

const mb = suite("mb-efi.ts");

const converted = mbEfi(sample(), {});
const unified = mbEfi(
  sample("set optional.sizeOfImage 0x20f000\nsection .config rva=0x20e000 flags=data,read\nhex 5b5d"),
  {},
);
const signed = new Uint8Array(converted.length + 8);
signed.set(converted);
const directoryAt = Buffer.from(signed.buffer).readUInt32LE(0x3c) + 24 + 112 + 4 * 8;
Buffer.from(signed.buffer).writeUInt32LE(converted.length, directoryAt);
Buffer.from(signed.buffer).writeUInt32LE(8, directoryAt + 4);

for (const [what, image] of Object.entries({ converted, unified, signed }))
  mb(`an image that is ${what} already is refused by name, and copied with --if-needed`, async () => {
    const why = "the image is converted already: it has a Multiboot1 header in its header area";
    for (const options of [[], ["--keep"], ["--strip-signature"]]) {
      const { status, out, stderr } = await run(image, ...options);
      assert.is(stderr, `<stdin>: Cannot convert: ${why}; --if-needed copies it\n`);
      assert.is(status, 1);
      assert.is(out.length, 0);
    }
    const { status, out, stderr } = await run(image, "--if-needed", "--keep");
    assert.is(stderr, `<stdin>: note: ${why}; copied as it is\n`);
    assert.is(status, 0);
    assert.is(Buffer.compare(out, image), 0);
  });

mb("--if-needed changes nothing about an image that is not converted", async () => {
  const { status, out } = await run(sample(), "--if-needed");
  assert.is(status, 0);
  assert.is(Buffer.compare(out, converted), 0);
});

// The sections of Debian's vmlinuz, shim and iPXE; signed ones, for which --strip-signature is no help.
for (const [what, edits, pattern] of [
  [
    "a Linux kernel",
    "patch 0x202 48647253",
    /^<stdin>: Cannot move .reloc: this is a Linux kernel: no section is called/,
  ],
  [
    "shim, or iPXE",
    "",
    /^<stdin>: Cannot move .reloc: this is not a Xen image: no section is called .init, and the first/,
  ],
] as const)
  mb(`${what} is refused as such, signed or not`, async () => {
    const moved = "set section .init.name .else\nsection .first rva=0x4000 flags=data,read\nhex 01";
    for (const certificate of ["", "certificate 0x100\n"]) {
      const { status, stderr } = await run(sample(`${moved}\n${certificate}${edits}`));
      assert.match(stderr, pattern);
      assert.is(stderr.indexOf("\n"), stderr.length - 1);
      assert.is(status, 1);
    }
  });

mb("what xen.gz is, and has in it, is said with what to take instead", async () => {
  for (const [bytes, pattern] of [
    [[0x1f, 0x8b, 8, 0], /"MZ": not a PE image, but gzip: xen.gz has the ELF, the steps take xen.efi\n$/],
    [[0x7f, 0x45, 0x4c, 0x46], /"MZ": not a PE image, but ELF, as in xen.gz: the steps take xen.efi\n$/],
  ] as const)
    assert.match((await run(new Uint8Array(bytes))).stderr, pattern);
});

mb("a run that a later step refuses says nothing but why", async () => {
  const { status, stderr } = await run(sample("set optional.subsystem 3"));
  assert.is(stderr, "<stdin>: Cannot write the Multiboot headers: Subsystem is 3, needed 10 (EFI application)\n");
  assert.is(status, 1);
});

mb.run();
