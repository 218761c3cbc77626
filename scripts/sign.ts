// SPDX-License-Identifier: GPL-2.0-only
//
// Signs an image for Secure Boot with sbsign, and proves of the result what has to be believed otherwise: that sbverify
// takes it, that nothing but checksum, security directory and certificate table changed, and that every loader hashes
// the bytes that were signed.
//
// Changes: CheckSum, the certificate table's directory entry, and what is appended: the certificate table, behind zeros
//   up to a multiple of 8. sbsign writes these; this script writes nothing by itself, and never sees the key.
// Leaves: every other byte.
// Refuses: a signed image, one that loaders hash in different ways or cannot load, one without an SBAT table, which shim
//   would not start, a result that differs elsewhere (a line each).
// Order: last. Needs sbsign and sbverify (Debian, Ubuntu: sbsigntool).

import { spawnSync } from "node:child_process";
import { X509Certificate } from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { aboutFile, displayName, readInput, refuseSameFile, runIfMain, sayOn, writeOutput } from "./cli/cli.ts";
import type { Command } from "./cli/cli.ts";
import { attempt } from "./cli/attempt.ts";
import { FileError, UsageError, failing, type Fail } from "./cli/errors.ts";
import { hex, range } from "./cli/numbers.ts";
import { authenticode, authenticodeDigests } from "./judge/authenticode.ts";
import { loadByFirmware } from "./judge/loads.ts";
import { readPe } from "./judge/read.ts";
import { checkSumAt, directoryAt, roundUp, type Image } from "./pe/image.ts";
import { parseImage } from "./pe/parse.ts";
import { sbatFault } from "./pe/sbat.ts";
import { viewOf } from "./tables/fields.ts";
import { DIRECTORY_CERTIFICATE } from "./tables/pe.ts";

const USAGE = `Usage: sign.ts IN OUT --key KEY --cert CERT [--no-sbat]

Signs IN for Secure Boot with sbsign, verifies OUT with sbverify, and proves that only checksum, security directory and
certificate table changed. "-" is standard input, or standard output for OUT. Prints what it signed.

  --key KEY    the private key, PEM; it is only handed to sbsign
  --cert CERT  its X.509 certificate, PEM
  --no-sbat    sign an image without an SBAT table (section .sbat) too, for firmware only: shim does not start it
  --help       print this text

Exit status: 0 signed and proved, 1 image unsuitable, tools missing, or violations (a line each), 2 wrong usage.
`;

const ACTION = "sign";
/** sbsign tells its warnings from what it always says by nothing but this. */
const CHATTER = /^(Signing Unsigned original image|Signature verification OK)$/;
const CHECK_SUM_SIZE = 4;
/** "Attribute Certificate Table": entries begin on multiples of this. */
const CERTIFICATE_ALIGN = 8;
const WIN_CERTIFICATE_HEADER = 8;
/** WIN_CERT_TYPE_PKCS_SIGNED_DATA */
const PKCS_SIGNED_DATA = 0x0002;
const MOST_LINES = 10;
/** Shim compares all eight bytes of the name in the header (pe.c). */
const SBAT_NAME = ".sbat\0\0\0";

const fail: Fail = failing(ACTION);

/**
 * Compares a signed file with what it was made from. Shares nothing with signers but the specification.
 * @returns a line for each difference that no signer may make; none when only the signature is new
 */
export function signatureViolations(unsigned: Uint8Array, signed: Uint8Array): string[] {
  const before = parseImage(unsigned);
  const after = parseImage(signed);
  const lines: string[] = [];
  const end = roundUp(unsigned.length, CERTIFICATE_ALIGN);
  const table = after.directories[DIRECTORY_CERTIFICATE];
  if (table === undefined || table.size === 0) return ["there is no certificate table, needed one"];
  const where = range(table.virtualAddress, table.virtualAddress + table.size);
  if (table.virtualAddress !== end || table.virtualAddress + table.size !== signed.length) {
    const needed = `${range(end, signed.length)}, from the old end of the file to the new one`;
    lines.push(`the certificate table is at ${where}, needed ${needed}`);
  }
  const exempt = mayChange(before);
  for (let at = 0; at < Math.min(end, signed.length) && lines.length < MOST_LINES; at++) {
    const [is, was] = [signed[at], unsigned[at] ?? 0];
    if (is === was || exempt.some(([from, to]) => at >= from && at < to)) continue;
    const last = lastDifference(unsigned, signed, at, end);
    lines.push(`${range(at, last + 1)} changed (${hex(was)} to ${hex(is ?? 0)} at ${hex(at)}), needed as it was`);
    at = last;
  }
  return lines.length === 0 ? certificateViolations(signed, table.virtualAddress, table.size) : lines;
}

/** File ranges: CheckSum and the certificate table's directory entry. */
function mayChange(image: Image): [from: number, to: number][] {
  return [
    [checkSumAt(image), checkSumAt(image) + CHECK_SUM_SIZE],
    [directoryAt(image, DIRECTORY_CERTIFICATE), directoryAt(image, DIRECTORY_CERTIFICATE + 1)],
  ];
}

/** The end of a run of differences, short agreements in between included. */
function lastDifference(a: Uint8Array, b: Uint8Array, from: number, end: number): number {
  let last = from;
  for (let at = from; at < end && at - last < CERTIFICATE_ALIGN; at++) if ((a[at] ?? 0) !== b[at]) last = at;
  return last;
}

/** Every entry a PKCS#7 signature, and together exactly the table: anything else could be hidden there. */
function certificateViolations(signed: Uint8Array, start: number, size: number): string[] {
  const view = viewOf(signed);
  const end = start + size;
  for (let at = start; at < end;) {
    if (at + WIN_CERTIFICATE_HEADER > end)
      return [`the certificate table ends at ${hex(end)}, inside the entry at ${hex(at)}`];
    const [length, type] = [view.getUint32(at, true), view.getUint16(at + 6, true)];
    const next = at + roundUp(length, CERTIFICATE_ALIGN);
    if (length <= WIN_CERTIFICATE_HEADER || next > end || type !== PKCS_SIGNED_DATA) {
      const what = `the certificate at ${hex(at)} has length ${hex(length)} and type ${type}`;
      return [`${what}, needed type ${PKCS_SIGNED_DATA} and an end at ${hex(end)} at most`];
    }
    at = next;
  }
  return [];
}

/** What everybody hashes must be the same bytes, and the same as before signing. */
function digestViolations(unsigned: Uint8Array, signed: Uint8Array): string[] {
  const { problems } = authenticode(signed);
  if (problems.length !== 0) return problems.map(({ text }) => text);
  const [before, after] = [digestOf(unsigned), digestOf(signed)];
  return before === after ? [] : [`the digest is ${after}, needed ${before} as before signing`];
}

/** SHA-256 as firmware and shim compute it. */
function digestOf(bytes: Uint8Array): string | undefined {
  return authenticodeDigests(bytes, authenticode(bytes)).get("shim");
}

/** Refuses what would be signed for nothing: loaders would not take it, or not know for what the signature stands. */
function requireSignable(bytes: Uint8Array, withoutSbat: boolean): void {
  const { signed, problems } = authenticode(bytes);
  if (signed) fail("the image is signed already, needed an unsigned one");
  // Padding to a multiple of 8 is the signer's to add.
  const problem = problems.find(({ kind }) => kind !== "padding");
  if (problem !== undefined) fail(problem.text);
  const { reason } = attempt("load", () => loadByFirmware(readPe(bytes)));
  if (reason !== undefined) fail(`the image ${reason}`);
  if (withoutSbat) return;
  const [sbat, second] = parseImage(bytes).sections.filter(({ header }) => header.name === SBAT_NAME);
  const why = "shim starts no other image";
  const help = "add-sections adds it, --no-sbat signs for firmware only";
  if (sbat === undefined) return fail(`there is no section .sbat, needed an SBAT table: ${why}; ${help}`);
  if (second !== undefined) fail(`there are two sections .sbat, needed one: ${why}`);
  const fault = sbatFault(sbat.data);
  if (fault !== undefined) fail(`.sbat is no SBAT table: ${fault}`);
}

// ---- the command

interface ToolRun {
  readonly tool: string;
  /** Not 0 when it failed. */
  readonly status: number | null;
  /** What it said, chatter aside. */
  readonly lines: readonly string[];
}

/** Runs a signing tool. @throws FileError when it is missing */
function runTool(tool: string, args: readonly string[]): ToolRun {
  const { error, status, stdout, stderr } = spawnSync(tool, args, {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "pipe"],
  });
  if (error !== undefined) {
    const missing = (error as NodeJS.ErrnoException).code === "ENOENT";
    throw new FileError(tool, `Cannot run: ${missing ? "not found, needed package sbsigntool" : error.message}`);
  }
  const lines = `${stdout}${stderr}`.split("\n").filter((line) => line !== "" && !CHATTER.test(line));
  return { tool, status, lines };
}

/** Signs and verifies. @returns the signed file, which is none when the last of the runs failed */
function signed(bytes: Uint8Array, key: string, cert: string): { result: Uint8Array; runs: readonly ToolRun[] } {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "xen-mb-efi-sign-"));
  try {
    const [from, to] = [path.join(folder, "unsigned.efi"), path.join(folder, "signed.efi")];
    fs.writeFileSync(from, bytes);
    const runs = [runTool("sbsign", ["--key", key, "--cert", cert, "--output", to, from])];
    if (runs[0]?.status === 0) runs.push(runTool("sbverify", ["--cert", cert, to]));
    const failed = runs.some(({ status }) => status !== 0);
    return { result: failed ? new Uint8Array() : new Uint8Array(fs.readFileSync(to)), runs };
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

/** What was signed, for whoever keeps a record of signatures. */
function report(input: string, output: string, bytes: Uint8Array, certificate: X509Certificate): string {
  const { subject, fingerprint256, validTo } = certificate;
  const sections = parseImage(bytes).sections.map(({ name }) => name);
  return [
    `${displayName(output)}: signed ${displayName(input)}`,
    `  digest       sha256 ${digestOf(bytes)}, as firmware and shim compute it`,
    `  certificate  ${subject.split("\n").join(", ")}; sha256 ${fingerprint256}; valid to ${validTo}`,
    `  sections     ${sections.join(" ")}`,
    "",
  ].join("\n");
}

export const command: Command = {
  usage: USAGE,
  options: { key: { type: "string" }, cert: { type: "string" }, "no-sbat": { type: "boolean" } },
  positionals: ["IN", "OUT"],
  run([input = "", output = ""], { key, cert, "no-sbat": withoutSbat }, io) {
    if (typeof key !== "string" || typeof cert !== "string")
      throw new UsageError(`--${typeof key === "string" ? "cert" : "key"} is missing`);
    refuseSameFile(input, output);
    refuseSameFile(key, output, "--key");
    refuseSameFile(cert, output, "--cert");
    const bytes = readInput(input, io);
    aboutFile(input, () => requireSignable(bytes, withoutSbat === true));
    const { result, runs } = signed(bytes, key, cert);
    // Ours first: what OpenSSL says of a wrong key is long, and names neither file.
    const failed = runs.find(({ status }) => status !== 0);
    if (failed !== undefined) {
      const needed = `needed a private key and its certificate, both PEM, in ${displayName(key)} and ${displayName(cert)}`;
      io.stderr(`${failed.tool}: Cannot ${ACTION}: exit status ${failed.status}, ${needed}\n`);
    }
    // Not the temporary name, by which sbsign calls the file.
    for (const { tool, lines } of runs) for (const line of lines) sayOn(io, input)(`${tool}: ${line}`);
    if (failed !== undefined) return 1;
    const violations = aboutFile(output, () => [
      ...signatureViolations(bytes, result),
      ...digestViolations(bytes, result),
    ]);
    for (const line of violations) sayOn(io, output)(`Cannot ${ACTION}: ${line}`);
    if (violations.length !== 0) return 1;
    const text = report(input, output, bytes, new X509Certificate(readInput(cert, io)));
    writeOutput(output, result, io);
    if (output === "-") io.stderr(text);
    else io.stdout(text);
    return 0;
  },
};

runIfMain(import.meta.url, command);
