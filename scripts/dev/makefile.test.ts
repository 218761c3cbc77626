// SPDX-License-Identifier: GPL-2.0-only
// The Makefile as its users know it: what is made, what is made anew and what is not, and what is left when it fails.

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { MINI_XEN as MINI, TOP } from "./places.ts";
import { mbEfi } from "../mb-efi.ts";

const STEPS = ["1-relocated.efi", "2-aligned.efi", "3-headers.efi", "verified.txt", "loaders.txt", "xen.mb.efi"];

interface Made {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function make(...args: readonly string[]): Made {
  // What the make that runs this test says to the makes below it would add its own flags and variables.
  const { MAKEFLAGS: _flags, MFLAGS: _old, MAKELEVEL: _level, ...env } = process.env;
  return spawnSync("make", ["-C", TOP, "--no-print-directory", `NODE=${process.execPath}`, ...args], {
    encoding: "utf8",
    env,
  });
}

interface Context {
  folder: string;
  input: string;
  out: string;
}

const makefile = suite<Context>("Makefile");

makefile.before((context) => {
  context.folder = fs.mkdtempSync(path.join(os.tmpdir(), "makefile-"));
  context.input = path.join(context.folder, "it's a xen.efi");
  context.out = path.join(context.folder, "out");
  fs.copyFileSync(MINI, context.input);
});

makefile.after(({ folder }) => fs.rmSync(folder, { recursive: true }));

/** When each of the files was written, in the order of the steps. */
function written({ out }: Context): number[] {
  return STEPS.map((name) => fs.statSync(path.join(out, name)).mtimeMs);
}

function expected(input: string, keep: boolean): Buffer {
  return Buffer.from(mbEfi(fs.readFileSync(input), { keep, stripSignature: false }));
}

function result({ out }: Context): Buffer {
  return fs.readFileSync(path.join(out, "xen.mb.efi"));
}

makefile("makes all steps with -j, of a file with any name, and the same bytes as mb-efi", (context) => {
  const { status, stderr, stdout } = make("-j4", `XEN_EFI=${context.input}`, `OUT=${context.out}`);
  assert.is(status, 0, stderr);
  assert.ok(result(context).equals(expected(context.input, false)));
  assert.match(stdout, /\n\S+xen\.mb\.efi: \d+ bytes, from .*it's a xen\.efi with RELOC=move\n$/);
});

makefile("makes nothing anew when nothing has changed, nor when only the date has", (context) => {
  const before = written(context);
  fs.utimesSync(context.input, new Date(), new Date());
  const { status } = make(`XEN_EFI=${context.input}`, `OUT=${context.out}`);
  assert.is(status, 0);
  assert.equal(written(context), before);
});

makefile("makes all anew for another RELOC, and for other contents under the same name and an old date", (context) => {
  const before = written(context);
  assert.is(make(`XEN_EFI=${context.input}`, `OUT=${context.out}`, "RELOC=keep").status, 0);
  assert.ok(written(context).every((time, i) => time !== before[i]));
  assert.ok(result(context).equals(expected(context.input, true)));
  const other = fs.readFileSync(MINI);
  other[0x30] = 1; // in the MS-DOS header, where nobody looks
  fs.writeFileSync(context.input, other);
  fs.utimesSync(context.input, new Date(0), new Date(0));
  assert.is(make(`XEN_EFI=${context.input}`, `OUT=${context.out}`, "RELOC=keep").status, 0);
  assert.is(result(context)[0x30], 1);
});

makefile("leaves the last good result where a step fails, and says so in the step's one line", (context) => {
  const before = result(context);
  fs.writeFileSync(context.input, "no image");
  const { status, stderr } = make(`XEN_EFI=${context.input}`, `OUT=${context.out}`);
  assert.is(status, 2);
  assert.match(stderr, /^\S.*it's a xen\.efi: Cannot read the image: [^\n]*\nmake: \*\*\* \[/);
  assert.ok(result(context).equals(before));
});

makefile("fails and names the loader where one that is meant to take the image would not", (context) => {
  const input = path.join(context.folder, "no-application.efi");
  const out = path.join(context.folder, "refused");
  const bytes = fs.readFileSync(MINI);
  bytes.writeUInt16LE(9, bytes.readUInt32LE(0x3c) + 24 + 68); // Subsystem: Windows CE
  fs.writeFileSync(input, bytes);
  const { status, stderr } = make(`XEN_EFI=${input}`, `OUT=${out}`);
  assert.is(status, 2);
  assert.match(stderr, /^\S*3-headers\.efi: Cannot be booted by edk2: refuses: Subsystem is 9, needed 10 /m);
  assert.not.match(stderr, /Cannot be booted by (grub-mb2|shim)/);
  assert.ok(fs.existsSync(path.join(out, "verified.txt")));
  assert.not.ok(fs.existsSync(path.join(out, "loaders.txt")));
  assert.not.ok(fs.existsSync(path.join(out, "xen.mb.efi")));
});

makefile("stops after any step that is asked for", (context) => {
  const out = path.join(context.folder, "partly");
  assert.is(make(`XEN_EFI=${MINI}`, `OUT=${out}`, `${out}/2-aligned.efi`).status, 0);
  assert.equal(fs.readdirSync(out).sort(), [".input", "1-relocated.efi", "2-aligned.efi"]);
});

makefile("boots the image that is named, and makes one only where none is", ({ out }) => {
  const planned = (...args: readonly string[]): string => make("-n", "boot", "BOOT=efi", `OUT=${out}`, ...args).stdout;
  assert.match(planned(), /relocate-reloc/);
  assert.match(planned(`IMAGE=${out}/xen.mb.efi`), /boot\.ts --image '[^\n]*\/xen\.mb\.efi'/);
  assert.not.match(planned(`IMAGE=${out}/xen.mb.efi`), /relocate-reloc/);
});

makefile("refuses what it cannot do, in a line that says what is needed", () => {
  for (const [args, words] of [
    [["RELOC=maybe"], /RELOC='maybe': Cannot build so: needed 'move'/],
    [["OUT=a b"], /OUT='a b': Cannot build there/],
    [["NODE=/none"], /\/none: Cannot run the scripts: not found, needed node 20 or newer/],
  ] as const) {
    const { status, stderr } = make(...args);
    assert.is(status, 2);
    assert.match(stderr, words);
  }
});

makefile.run();
