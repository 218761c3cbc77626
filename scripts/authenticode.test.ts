// SPDX-License-Identifier: GPL-2.0-only
// authenticode.ts by hand-made images, and beside the signers and verifiers of Debian: sbsigntool, osslsigncode,
// pesign. A key and a certificate are made for the test and thrown away.

import { Buffer } from "node:buffer";
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { alignSections } from "./align-sections.ts";
import { command } from "./authenticode.ts";
import { runCommand } from "./cli/cli.ts";
import type { Io } from "./cli/cli.ts";
import { ImageError } from "./cli/errors.ts";
import { TOP } from "./dev/places.ts";
import { makeSample } from "./dev/sample/text.ts";
import { emitHeader } from "./emit-header.ts";
import { authenticode, authenticodeDigests } from "./judge/authenticode.ts";
import { readPe } from "./judge/read.ts";
import type { Section } from "./judge/read.ts";
import { parseImage } from "./pe/parse.ts";
import { serializeImage } from "./pe/serialize.ts";
import { relocateReloc } from "./relocate-reloc.ts";

const MINI_XEN = path.join(TOP, "samples/mini-xen/mini-xen.efi");
const REAL_XEN = path.join(TOP, "samples/xen/4.17.7+13/xen.efi");

function sample(edits: string): Uint8Array {
  const read = (name: string): string => fs.readFileSync(path.join(TOP, "samples/fuzz", name), "utf8");
  return makeSample(`from micro.pe.txt\n${edits}`, read);
}

function transformed(bytes: Uint8Array): Uint8Array {
  return serializeImage(emitHeader(alignSections(relocateReloc(parseImage(bytes), false))));
}

function digests(bytes: Uint8Array): { specification: string; shim: string; linear: string } {
  const found = authenticodeDigests(bytes, authenticode(bytes));
  const [specification = "", shim = "", linear = ""] = [
    found.get("specification"),
    found.get("shim"),
    found.get("linear"),
  ];
  return { specification, shim, linear };
}

/** By the letter, and slowly: the bytes are put together, then hashed. */
function sha256(...parts: readonly Uint8Array[]): string {
  return createHash("sha256").update(Buffer.concat(parts)).digest("hex");
}

// ---- counting

const counting = suite("counting");
/** In the micro sample: e_lfanew + 4 + 20 + 64, and + 112 + 4 * 8 behind the optional header's start. */
const CHECK_SUM = 0x40 + 24 + 64;
const ENTRY = 0x40 + 24 + 112 + 32;

function linear(bytes: Uint8Array, end = bytes.length): Uint8Array[] {
  return [bytes.subarray(0, CHECK_SUM), bytes.subarray(CHECK_SUM + 4, ENTRY), bytes.subarray(ENTRY + 8, end)];
}

counting("a transformed image has one digest, of every byte but the exempt", () => {
  const bytes = transformed(sample(""));
  const found = authenticode(bytes);
  assert.equal(found.problems, []);
  assert.equal(found.notCovered.length + found.twice.length, 0);
  const expected = sha256(...linear(bytes));
  assert.equal(digests(bytes), { specification: expected, shim: expected, linear: expected });
});

counting("shim and signers pad a file whose length is odd, firmware does not", () => {
  const bytes = sample("append 00");
  const padding = new Uint8Array(8 - (bytes.length % 8));
  assert.equal(digests(bytes), {
    specification: sha256(...linear(bytes)),
    shim: sha256(...linear(bytes), padding),
    linear: sha256(...linear(bytes), padding),
  });
  assert.match(
    authenticode(bytes)
      .problems.map((p) => p.text)
      .join(),
    new RegExp(`shim and signers add ${padding.length} zero bytes, firmware does not`),
  );
});

counting("a gap between sections is not covered, and as many bytes at the end are covered twice", () => {
  const bytes = sample("set section .reloc.ptr 0x550\nset section .debug_info.ptr 0x570");
  const found = authenticode(bytes);
  assert.ok(
    found.notCovered.some((p) => /the gap between section \.data and section \.reloc/.test(p.what)),
    JSON.stringify(found.notCovered),
  );
  assert.ok(
    found.problems.some((p) => / is not covered by the digest/.test(p.text)),
    found.problems.map((p) => p.text).join("\n"),
  );
  const { specification, linear: all } = digests(bytes);
  assert.is.not(specification, all);
});

counting("a changed byte in a gap leaves the digest of firmware as it is: that is why gaps are reported", () => {
  const bytes = sample("set section .reloc.ptr 0x550\nset section .debug_info.ptr 0x570");
  const gap = authenticode(bytes).notCovered[0]?.start ?? assert.unreachable("no gap");
  const tampered = new Uint8Array(bytes);
  tampered[gap as number] = 1;
  assert.is(digests(tampered).specification, digests(bytes).specification);
  assert.is.not(digests(tampered).linear, digests(bytes).linear);
});

counting("overlapping raw data is hashed twice", () => {
  const bytes = new Uint8Array(sample(""));
  const found = parseImage(bytes);
  const [first, second] = found.sections;
  const at = Buffer.from(bytes).indexOf(Buffer.from(".rodata\0"));
  new DataView(bytes.buffer, bytes.byteOffset).setUint32(at + 20, (second?.header.pointerToRawData ?? 0) - 0x10, true);
  const { twice, problems } = authenticode(bytes);
  assert.equal(twice.map((p) => p.what)[0], `section ${first?.name} and section .rodata`);
  assert.match(problems.map((p) => p.text).join("\n"), /is hashed twice/);
});

counting("the order of the section table does not matter", () => {
  const bytes = sample("order .debug_info .reloc .bss .data .data.read_mostly .init .buildid .rodata .text");
  assert.is(digests(bytes).specification, sha256(...linear(bytes)));
});

counting("a certificate table belongs to nobody's digest", () => {
  const bytes = sample("certificate 0x28");
  const expected = sha256(...linear(bytes, bytes.length - 0x28));
  assert.equal(digests(bytes), { specification: expected, shim: expected, linear: expected });
  assert.is(authenticode(bytes).signed, true);
});

counting("a certificate table that is not the last thing is a problem", () => {
  const bytes = sample("certificate 0x28\nappend 0000000000000000");
  assert.match(
    authenticode(bytes)
      .problems.map((p) => p.text)
      .join("\n"),
    /the certificate table is at \[0x\w+,0x\w+\), needed at the end of the file/,
  );
});

counting("more raw data than there is file is a problem", () => {
  const bytes = new Uint8Array(sample(""));
  for (const name of [".rodata\0", ".buildid", ".init\0\0\0"]) {
    const at = Buffer.from(bytes).indexOf(Buffer.from(name));
    new DataView(bytes.buffer, bytes.byteOffset).setUint32(at + 16, 0x200, true);
  }
  assert.match(
    authenticode(bytes)
      .problems.map((p) => p.text)
      .join("\n"),
    /add up to 0x\w+, needed at most 0x\w+: firmware and shim refuse to hash it/,
  );
});

counting("thousands of sections over each other are not all named", () => {
  const bytes = transformed(sample(""));
  const image = readPe(bytes);
  const sections = Array.from({ length: 3000 }, (_, i) => {
    const raw = { pointerToRawData: 0x400 + (i % 1000), sizeOfRawData: 0x800 - 2 * (i % 1000) + (i % 7) };
    return { name: `.s${i}`, header: { ...(image.sections[0] as Section).header, ...raw }, data: bytes.subarray(0, 0) };
  });
  const { twice, problems } = authenticode(bytes, { ...image, sections });
  assert.ok(twice.length > 0 && twice.length <= 200, `${twice.length} places`);
  assert.match(twice.map(({ what }) => what).join("\n"), / and \d+ more$/m);
  assert.ok(Math.max(...problems.map(({ text }) => text.length)) < 300, "a text is too long");
});

counting("every byte outside the exempt ranges changes the digest", () => {
  const bytes = transformed(sample(""));
  const { exempt } = authenticode(bytes);
  const before = digests(bytes).specification;
  const exempted = (at: number): boolean => exempt.some((p) => at >= p.start && at < p.end);
  for (let at = 0x40; at < bytes.length; at += at < 0x400 ? 1 : 61) {
    if (exempted(at)) continue;
    const tampered = new Uint8Array(bytes);
    tampered[at] = (tampered[at] ?? 0) ^ 0x80;
    const after = digestUnlessBroken(tampered);
    if (after === before) throw new Error(`byte ${at} is not covered`);
  }
});

/** Undefined where there is no image any more: nobody loads it then. */
function digestUnlessBroken(bytes: Uint8Array): string | undefined {
  try {
    return digests(bytes).specification;
  } catch (error) {
    if (error instanceof ImageError) return undefined;
    throw error;
  }
}

// ---- the command

const commands = suite("the command");

async function run(...args: string[]): Promise<{ status: number; out: string; err: string }> {
  const printed = { out: "", err: "" };
  const io: Io = {
    stdin: () => sample("append 00"),
    stdout: (text) => void (printed.out += String(text)),
    stderr: (text) => void (printed.err += text),
  };
  return { status: await runCommand(command, args, io), ...printed };
}

commands("says who counts how, and exits 1 when they do not agree", async () => {
  const { status, out, err } = await run("-");
  assert.is(status, 1);
  assert.is(err, "");
  assert.match(out, /^<stdin>: not signed\n/);
  assert.match(
    out,
    /  sha256 +[0-9a-f]{64}  specification \(EDK2\)\n  sha256 +[0-9a-f]{64}  shim \(.*\), linear \(osslsigncode\)\n/,
  );
  assert.match(out, /\n  disagree +the file has 0x\w+ bytes, needed a multiple of 8: /);
});

commands("exits 0 when they agree", async () => {
  const file = path.join(fs.mkdtempSync(path.join(tmpdir(), "authenticode-test-")), "xen.mb.efi");
  fs.writeFileSync(file, transformed(sample("")));
  const { status, out } = await run(file);
  fs.rmSync(path.dirname(file), { recursive: true });
  assert.is(status, 0);
  assert.match(
    out,
    /  sha256 +[0-9a-f]{64}  specification \(EDK2\), shim \(sbsign, pesign\), linear \(osslsigncode\)\n/,
  );
  assert.match(out, /\n  agree +all count the same bytes/);
});

commands("prints the same as JSON", async () => {
  const { status, out } = await run("-", "--json");
  const report = JSON.parse(out) as { agree: boolean; counts: { name: string; sha256: string }[] };
  assert.is(status, 1);
  assert.is(report.agree, false);
  const expected = digests(sample("append 00"));
  assert.equal(Object.fromEntries(report.counts.map((c) => [c.name, c.sha256])), expected);
});

commands("refuses what is no image in one line", async () => {
  const { status, out, err } = await run(path.join(TOP, "Makefile"));
  assert.is(status, 1);
  assert.is(out, "");
  assert.match(err, /^[^\n]*Makefile: Cannot read the image: [^\n]*\n$/);
});

// ---- the real tools

interface Keys {
  readonly directory: string;
  readonly key: string;
  readonly certificate: string;
}

/** Debian's packages by the programs that the tests need. */
const PACKAGES = {
  sbsign: "sbsigntool",
  sbverify: "sbsigntool",
  osslsigncode: "osslsigncode",
  pesign: "pesign",
  openssl: "openssl",
} as const;

function installed(program: keyof typeof PACKAGES): boolean {
  return (process.env.PATH ?? "").split(":").some((directory) => fs.existsSync(path.join(directory, program)));
}

/** The SHA-256 that a signature holds: SpcIndirectDataContent's DigestInfo, which begins like this in DER. */
function signedDigest(bytes: Uint8Array): string {
  const prefix = Buffer.from("3031300d060960864801650304020105000420", "hex");
  const at = Buffer.from(bytes).indexOf(prefix);
  if (at < 0) assert.unreachable("there is no SHA-256 in the signature");
  return Buffer.from(bytes.subarray(at + prefix.length, at + prefix.length + 32)).toString("hex");
}

const tools = suite<Keys>("the real tools");

tools.before((context) => {
  const directory = fs.mkdtempSync(path.join(tmpdir(), "authenticode-test-"));
  const [key, certificate] = [path.join(directory, "key.pem"), path.join(directory, "certificate.pem")];
  Object.assign(context, { directory, key, certificate });
  if (!installed("openssl")) return;
  execFileSync(
    "openssl",
    [
      "req",
      "-x509",
      "-newkey",
      "rsa:2048",
      "-nodes",
      "-keyout",
      key,
      "-out",
      certificate,
      "-subj",
      "/CN=test",
      "-days",
      "30",
    ],
    { stdio: "ignore" },
  );
});
tools.after(({ directory }) => fs.rmSync(directory, { recursive: true, force: true }));

const inputs: readonly (readonly [name: string, read: () => Uint8Array | undefined])[] = [
  ["mini-xen, untouched", () => fs.readFileSync(MINI_XEN)],
  ["mini-xen, transformed", () => transformed(fs.readFileSync(MINI_XEN))],
  ["Debian's 4.17.7+13, untouched", () => (fs.existsSync(REAL_XEN) ? fs.readFileSync(REAL_XEN) : undefined)],
  [
    "Debian's 4.17.7+13, transformed",
    () => (fs.existsSync(REAL_XEN) ? transformed(fs.readFileSync(REAL_XEN)) : undefined),
  ],
];

/** A test that is skipped, visibly, where a package or an input is missing. */
function toolTest(
  programs: readonly (keyof typeof PACKAGES)[],
  name: string,
  test: (keys: Keys, bytes: Uint8Array) => void,
): void {
  const missing = programs.find((program) => !installed(program));
  for (const [input, read] of inputs) {
    const title = `${name}: ${input}`;
    const bytes = missing === undefined ? read() : undefined;
    if (missing === undefined && bytes !== undefined) {
      tools(title, (keys) => test(keys, bytes));
      continue;
    }
    const needed =
      missing === undefined
        ? `${path.relative(TOP, REAL_XEN)}, see make fetch-xen`
        : `${missing}, in Debian's package ${PACKAGES[missing]}`;
    console.log(`skipped: ${title}: no ${needed}`);
    tools.skip(title);
  }
}

function signedBySbsign({ directory, key, certificate }: Keys, bytes: Uint8Array): string {
  const [input, output] = [path.join(directory, "in.efi"), path.join(directory, "signed.efi")];
  fs.writeFileSync(input, bytes);
  execFileSync("sbsign", ["--key", key, "--cert", certificate, "--output", output, input], { stdio: "ignore" });
  return output;
}

toolTest(["openssl", "sbsign", "sbverify"], "sbsign signs our digest, sbverify takes it", (keys, bytes) => {
  const file = signedBySbsign(keys, bytes);
  const signed = fs.readFileSync(file);
  const before = digests(bytes);
  assert.is(signedDigest(signed), before.shim);
  // All counts of a signed file are the padded count of the unsigned one.
  assert.equal(digests(signed), { specification: before.shim, shim: before.shim, linear: before.shim });
  assert.equal(authenticode(signed).problems, []);
  assert.is(spawnSync("sbverify", ["--cert", keys.certificate, file]).status, 0);
  const tamperedAt = bytes.length >> 1;
  signed[tamperedAt] = (signed[tamperedAt] ?? 0) ^ 1;
  fs.writeFileSync(file, signed);
  assert.is(spawnSync("sbverify", ["--cert", keys.certificate, file]).status, 1);
  assert.is.not(digests(signed).specification, before.shim);
});

toolTest(["openssl", "sbsign", "osslsigncode"], "osslsigncode calculates our digest", (keys, bytes) => {
  const file = signedBySbsign(keys, bytes);
  const { stdout } = spawnSync("osslsigncode", ["verify", "-CAfile", keys.certificate, file], { encoding: "utf8" });
  const calculated = /^Calculated message digest *: ([0-9A-F]{64})/m.exec(stdout)?.[1]?.toLowerCase();
  assert.is(calculated, digests(fs.readFileSync(file)).linear);
});

toolTest(["openssl", "osslsigncode"], "osslsigncode signs our digest", ({ directory, key, certificate }, bytes) => {
  const [input, output] = [path.join(directory, "in.efi"), path.join(directory, "by-osslsigncode.efi")];
  fs.writeFileSync(input, bytes);
  fs.rmSync(output, { force: true });
  execFileSync(
    "osslsigncode",
    ["sign", "-certs", certificate, "-key", key, "-h", "sha256", "-in", input, "-out", output],
    { stdio: "ignore" },
  );
  assert.is(signedDigest(fs.readFileSync(output)), digests(bytes).linear);
});

toolTest(["pesign"], "pesign hashes to our digest", ({ directory }, bytes) => {
  const input = path.join(directory, "in.efi");
  fs.writeFileSync(input, bytes);
  // 0.112, Debian 12's, hashes an unsigned file as it is here, though it pads when it signs; either is right.
  const hash = /[0-9a-f]{64}/.exec(execFileSync("pesign", ["-h", "-i", input], { encoding: "utf8" }))?.[0] ?? "";
  const { specification, shim } = digests(bytes);
  assert.ok(hash === specification || hash === shim, `pesign says ${hash}, needed ${specification} or ${shim}`);
});

counting.run();
commands.run();
tools.run();
