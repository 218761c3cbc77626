// SPDX-License-Identifier: GPL-2.0-only
// sign.ts with a key that is thrown away, on the known builds; and its own comparison on files that a signer spoilt.

import { Buffer } from "node:buffer";
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { addSections } from "./add-sections.ts";
import { alignSections } from "./align-sections.ts";
import { builds, run, sample } from "./dev/sample/run.ts";
import { emitHeader } from "./emit-header.ts";
import { authenticode, authenticodeDigests } from "./judge/authenticode.ts";
import { parseImage } from "./pe/parse.ts";
import { serializeImage } from "./pe/serialize.ts";
import { onBytes } from "./dev/on-bytes.ts";
import { stripSignature } from "./pe/transform.ts";
import { relocateReloc } from "./relocate-reloc.ts";
import { command, signatureViolations } from "./sign.ts";
import { stripDebug } from "./strip-debug.ts";

const mbEfi = (bytes: Uint8Array): Uint8Array =>
  serializeImage(emitHeader(alignSections(relocateReloc(parseImage(bytes), false))));
const stripped = (bytes: Uint8Array): Uint8Array => serializeImage(stripDebug(parseImage(bytes)));

// ---- the comparison by itself: make-sample's certificate table stands for a signer's

const comparison = suite("signatureViolations()");
const SBAT = Buffer.from("sbat,1,SBAT Version,sbat,1,-\nxen.test,1,Test,xen,1,-\n");
const withSbat = (bytes: Uint8Array): Uint8Array =>
  serializeImage(addSections(parseImage(bytes), [{ name: ".sbat", data: SBAT }]));
const UNSIGNED = withSbat(stripped(sample()));
/** A certificate table of one PKCS#7 entry, as signers append it. */
const SIGNED = ((): Uint8Array => {
  const image = parseImage(UNSIGNED);
  const certificate = Buffer.alloc(0x40, 0x33);
  certificate.writeUInt32LE(0x3d, 0);
  certificate.writeUInt16LE(0x0200, 4);
  certificate.writeUInt16LE(0x0002, 6);
  const directories = image.directories.map((d, i) => (i === 4 ? { virtualAddress: UNSIGNED.length, size: 0x40 } : d));
  const signed = serializeImage({ ...image, directories, fileSize: UNSIGNED.length + 0x40 });
  signed.set(certificate, UNSIGNED.length);
  return signed;
})();
const ENTRY = parseImage(SIGNED).lfanew + 24 + 112 + 4 * 8;

comparison("has no objection to a certificate table and its entry", () => {
  assert.equal(signatureViolations(UNSIGNED, SIGNED), []);
});

const spoilt = (edit: (bytes: Buffer) => void): Uint8Array => {
  const bytes = Buffer.from(SIGNED);
  edit(bytes);
  return new Uint8Array(bytes);
};
const SPOILT: readonly [what: string, bytes: () => Uint8Array, message: RegExp][] = [
  [
    "one byte of code",
    () => spoilt((b) => (b[0x1005] = (b[0x1005] ?? 0) ^ 1)),
    /^\[0x1005,0x1006\) changed \(0x90 to 0x91 at 0x1005\), needed as it was$/,
  ],
  ["the time stamp", () => spoilt((b) => b.writeUInt32LE(1, 0x88)), /^\[0x88,0x8c\) changed/],
  ["the section table", () => spoilt((b) => b.writeUInt32LE(0x40000040, 0x1bc + 36)), /^\[0x1e\w,0x1e\w\) changed/],
  ["another directory", () => spoilt((b) => b.writeUInt32LE(1, ENTRY + 12)), /changed/],
  ["the last byte", () => spoilt((b) => (b[UNSIGNED.length - 1] = 7)), /changed \(0x0 to 0x7/],
  [
    "a table that begins later",
    () => spoilt((b) => (b.writeUInt32LE(UNSIGNED.length + 8, ENTRY), b.writeUInt32LE(0x38, ENTRY + 4))),
    /^the certificate table is at .*, needed .*from the old end/,
  ],
  [
    "bytes behind the table",
    () => new Uint8Array(Buffer.concat([SIGNED, Buffer.alloc(8)])),
    /^the certificate table is at .*needed/,
  ],
  ["no table", () => UNSIGNED, /^there is no certificate table, needed one$/],
  [
    "a certificate of another type",
    () => spoilt((b) => (b[UNSIGNED.length + 6] = 9)),
    /^the certificate at .* type 9, needed type 2/,
  ],
  ["a certificate that is too long", () => spoilt((b) => b.writeUInt32LE(0x49, UNSIGNED.length)), /has length 0x49/],
  ["a certificate without contents", () => spoilt((b) => b.writeUInt32LE(8, UNSIGNED.length)), /has length 0x8/],
  [
    "something behind the certificate",
    () => spoilt((b) => b.writeUInt32LE(0x2a, UNSIGNED.length)),
    /^the certificate at/,
  ],
];

for (const [what, bytes, message] of SPOILT) {
  comparison(`objects to ${what}`, () => assert.match(signatureViolations(UNSIGNED, bytes()).join("\n"), message));
}

comparison("gives a line for each place, and no more than ten", () => {
  const two = spoilt((b) => ((b[0x1005] = 1), (b[0x1105] = 1)));
  assert.is(signatureViolations(UNSIGNED, two).length, 2);
  const many = spoilt((b) =>
    Array.from({ length: 40 }, (_, i) => (b[0x1000 + 32 * i] = (b[0x1000 + 32 * i] ?? 0) ^ 0xff)),
  );
  assert.is(signatureViolations(UNSIGNED, many).length, 10);
});

comparison.run();

// ---- with the tools

const missing = [
  ["sbsign", "sbsigntool"],
  ["sbverify", "sbsigntool"],
  ["openssl", "openssl"],
].filter(([tool = ""]) => spawnSync(tool, ["version"]).error !== undefined);
for (const [tool, name] of missing) console.log(`skipped: no ${tool} (package ${name})`);

const signing = suite("sign.ts");

signing("wants key and certificate", async () => {
  const { status, stderr } = await run(command, ["-", "-", "--key", "x"], UNSIGNED);
  assert.is(status, 2);
  assert.match(stderr, /^sign\.ts: --cert is missing; see/);
});

signing("refuses a signed image, and one that is not hashed alike by all", async () => {
  const signed = await run(command, ["-", "-", "--key", "x", "--cert", "x"], SIGNED);
  assert.is(signed.status, 1);
  assert.is(signed.stderr, "<stdin>: Cannot sign: the image is signed already, needed an unsigned one\n");
  const gap = await run(
    command,
    ["-", "-", "--key", "x", "--cert", "x"],
    sample("set section .config.ptr 0x2000\n".replace(".config", ".debug_info")),
  );
  assert.is(gap.status, 1);
  assert.match(gap.stderr, /^<stdin>: Cannot sign: .*the gap between/);
});

const UNFIT: readonly [what: string, edits: string, message: RegExp][] = [
  ["without an SBAT table", "", /there is no section \.sbat, needed an SBAT table: shim starts no other image/],
  [
    "with an SBAT table that is none",
    "section .sbat rva=0x20e000\nhex 73626174",
    /\.sbat is no SBAT table: the last line/,
  ],
  [
    "with two SBAT tables",
    "section .sbat rva=0x20e000\nhex 0a\nsection .more rva=0x20f000\nhex 0a\nset section .more.name .sbat",
    /there are two sections \.sbat, needed one/,
  ],
  [
    "with sections that overlap in memory",
    "section .ramdisk rva=0x20e000 vsize=0x2000\nfill 1 0x20\nsection .ucode rva=0x20f000\nfill 2 0x20",
    /the image cannot be loaded: section \.ucode at \[0x20f000,0x20f020\) overlaps section \.ramdisk/,
  ],
];
for (const [what, edits, message] of UNFIT) {
  signing(`refuses an image ${what}`, async () => {
    const bytes = sample(`remove section .debug_info\nremove symbols\n${edits}`);
    const { status, stderr } = await run(command, ["-", "-", "--key", "x", "--cert", "x"], bytes);
    assert.is(status, 1);
    assert.match(stderr, /^<stdin>: Cannot sign: [^\n]+\n$/);
    assert.match(stderr, message);
  });
}

signing("does not write over key or certificate", async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "sign-"));
  try {
    const key = path.join(folder, "key");
    fs.writeFileSync(key, "");
    const asKey = await run(command, ["-", key, "--key", key, "--cert", "x"], UNSIGNED);
    assert.is(asKey.stderr, `sign.ts: OUT '${key}' is the same file as --key '${key}'; see sign.ts --help\n`);
    assert.is((await run(command, ["-", key, "--key", "x", "--cert", key], UNSIGNED)).status, 2);
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
});

signing("says which package has sbsign where there is none", async () => {
  const { PATH } = process.env;
  process.env["PATH"] = "/nonexistent";
  try {
    const { status, stderr } = await run(command, ["-", "-", "--key", "x", "--cert", "x"], UNSIGNED);
    assert.is(status, 1);
    assert.is(stderr, "sbsign: Cannot run: not found, needed package sbsigntool\n");
  } finally {
    process.env["PATH"] = PATH;
  }
});

signing("gives no output when the signer changed more than it may, and says where", async () => {
  const tools = fs.mkdtempSync(path.join(os.tmpdir(), "sign-tools-"));
  const { PATH } = process.env;
  try {
    // A signer that appends the right table, and a byte of its own in .text.
    const spoiltFile = path.join(tools, "spoilt");
    fs.writeFileSync(
      spoiltFile,
      spoilt((b) => (b[0x1005] = (b[0x1005] ?? 0) ^ 1)),
    );
    fs.writeFileSync(path.join(tools, "sbsign"), `#!/bin/sh\nexec cp '${spoiltFile}' "$6"\n`, { mode: 0o755 });
    fs.writeFileSync(path.join(tools, "sbverify"), "#!/bin/sh\nexit 0\n", { mode: 0o755 });
    process.env["PATH"] = `${tools}:${PATH}`;
    const out = path.join(tools, "out");
    const { status, stderr } = await run(command, ["-", out, "--key", "x", "--cert", "x"], UNSIGNED);
    assert.is(status, 1);
    assert.match(
      stderr,
      /^\S+out: Cannot sign: \[0x1005,0x1006\) changed \(0x90 to 0x91 at 0x1005\), needed as it was$/m,
    );
    assert.is(fs.existsSync(out), false);
  } finally {
    process.env["PATH"] = PATH;
    fs.rmSync(tools, { recursive: true });
  }
});

signing("the tools are there, where nothing may be left out", () => {
  assert.ok(
    missing.length === 0 || process.env["CI"] !== "true",
    `missing: ${missing.map(([tool]) => tool).join(", ")}`,
  );
});

if (missing.length === 0) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "sign-"));
  const file = (name: string): string => path.join(folder, name);
  const makeKey = (name: string): void => {
    const args = [
      "req",
      "-new",
      "-x509",
      "-newkey",
      "rsa:2048",
      "-nodes",
      "-days",
      "2",
      "-subj",
      `/CN=${name}, thrown away/`,
    ];
    const { status, stderr } = spawnSync(
      "openssl",
      [...args, "-keyout", file(`${name}.key`), "-out", file(`${name}.crt`)],
      { encoding: "utf8" },
    );
    assert.is(status, 0, stderr);
  };
  const keyAndCert = (key: string, cert: string): string[] => [
    "--key",
    file(`${key}.key`),
    "--cert",
    file(`${cert}.crt`),
  ];

  signing.before(() => ["one", "other"].forEach(makeKey));
  signing.after(() => fs.rmSync(folder, { recursive: true }));

  const unified = (bytes: Uint8Array): Uint8Array =>
    withSbat(serializeImage(addSections(parseImage(bytes), [{ name: ".config", data: Buffer.from("[global]\n") }])));
  const IMAGES = builds(["4.17.7+13", "4.20.4+63"]).flatMap(({ id, bytes }) => [
    { what: `${id}, stripped`, bytes: stripped(bytes) },
    { what: `${id}, xen.mb.efi, stripped`, bytes: stripped(mbEfi(bytes)) },
    { what: `${id}, xen.mb.efi, stripped, unified`, bytes: unified(stripped(mbEfi(bytes))) },
  ]);

  for (const { what, bytes } of [{ what: "tiny.pe.txt, stripped", bytes: UNSIGNED }, ...IMAGES]) {
    signing(`${what}: signs without a warning, and only the signature is new`, async () => {
      fs.writeFileSync(file("in"), bytes);
      const args = [file("in"), file("out"), ...keyAndCert("one", "one"), "--no-sbat"];
      const { status, stdout, stderr } = await run(command, args);
      assert.is(stderr, "");
      assert.is(status, 0);
      const digest = authenticodeDigests(bytes, authenticode(bytes)).get("specification");
      const names = parseImage(bytes).sections.map(({ name }) => name);
      const said = String(stdout).split("\n");
      assert.is(said[0], `${file("out")}: signed ${file("in")}`);
      assert.is(said[1], `  digest       sha256 ${digest}, as firmware and shim compute it`);
      assert.match(said[2] ?? "", /^ {2}certificate {2}CN=one\\, thrown away; sha256 [0-9A-F:]{95}; valid to .* GMT$/);
      assert.is(said[3], `  sections     ${names.join(" ")}`);
      const signed = new Uint8Array(fs.readFileSync(file("out")));
      assert.equal(authenticode(signed).problems, []);
      assert.is(Buffer.compare(onBytes(stripSignature)(signed), bytes), 0, "without the signature it is the same file");
      assert.is(spawnSync("sbverify", ["--cert", file("one.crt"), file("out")]).status, 0);
      assert.ok(spawnSync("sbverify", ["--cert", file("other.crt"), file("out")]).status !== 0, "another certificate");
      signed[0x1800] = (signed[0x1800] ?? 0) ^ 1;
      fs.writeFileSync(file("tampered"), signed);
      assert.ok(spawnSync("sbverify", ["--cert", file("one.crt"), file("tampered")]).status !== 0, "a changed byte");
    });
  }

  signing("passes sbsign's warnings on: what has symbols goes on behind its sections", async () => {
    const { status, stderr } = await run(
      command,
      ["-", file("out"), ...keyAndCert("one", "one"), "--no-sbat"],
      mbEfi(sample()),
    );
    assert.is(status, 0);
    assert.match(stderr, /^<stdin>: sbsign: warning: data remaining\[\d+ vs \d+\]: gaps between PE\/COFF sections\?$/m);
  });

  signing("with OUT on standard output, says what it signed on standard error", async () => {
    const { status, stdout, stderr } = await run(command, ["-", "-", ...keyAndCert("one", "one")], UNSIGNED);
    assert.is(status, 0);
    assert.match(stderr, /^<stdin>: signed <stdin>\n {2}digest /);
    assert.equal(signatureViolations(UNSIGNED, new Uint8Array(stdout)), []);
  });

  signing("a key that is not the certificate's gives no output", async () => {
    fs.rmSync(file("out"), { force: true });
    const { TMPDIR } = process.env;
    process.env["TMPDIR"] = folder;
    const { status, stderr } = await run(command, ["-", file("out"), ...keyAndCert("other", "one")], UNSIGNED);
    if (TMPDIR === undefined) delete process.env["TMPDIR"];
    else process.env["TMPDIR"] = TMPDIR;
    assert.is(status, 1);
    const lines = stderr.trimEnd().split("\n");
    const needed = `needed a private key and its certificate, both PEM, in ${file("other.key")} and ${file("one.crt")}`;
    assert.is(lines[0], `sbsign: Cannot sign: exit status 1, ${needed}`);
    assert.ok(lines.length > 1 && lines.slice(1).every((line) => line.startsWith("<stdin>: sbsign: ")), stderr);
    assert.is(fs.existsSync(file("out")), false);
    assert.equal(
      fs.readdirSync(folder).filter((name) => name.startsWith("xen-mb-efi-sign-")),
      [],
    );
  });
}

signing.run();
