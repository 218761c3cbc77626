// SPDX-License-Identifier: GPL-2.0-only
// What a signature of a file covers, by each way of counting (hashed.ts), and where that is not every byte once.

import { createHash } from "node:crypto";
import { hex, range } from "../cli/numbers.ts";
import { DIRECTORY_CERTIFICATE, type DataDirectory } from "../tables/pe.ts";
import { bytesAddedUp, certificatesStart, exemptRanges, hashedRanges, join, type FileRange } from "./hashed.ts";
import { directoryOf, readPe, roundUp, type Pe } from "./read.ts";

/** A range of the file and what is there: a section's raw data, a field, a gap between two of them. */
export interface Place extends FileRange {
  readonly what: string;
}

/** Why a signature would not mean one thing to everybody. */
export interface Problem {
  /**
   * "table": the certificate table's place; "sum": sizes that firmware and shim refuse to add up; "gap", "twice" and
   * "order": not every byte, once, in the file's order; "padding": zeros that shim and signers add and firmware does not.
   */
  readonly kind: "table" | "sum" | "gap" | "twice" | "order" | "padding";
  readonly text: string;
}

export type CountName = "specification" | "shim" | "linear";

/** One way of counting, applied to a file. */
export interface Count {
  readonly name: CountName;
  /** Who else counts so. */
  readonly also: readonly string[];
  /** What is hashed, in this order, neighbours joined. */
  readonly ranges: readonly FileRange[];
  /** Zero bytes hashed behind the file's own. */
  readonly padding: number;
}

/** What is hashed of a file, without its digest, which costs far more. */
export interface Authenticode {
  readonly signed: boolean;
  readonly counts: readonly Count[];
  /** The checksum, the certificate table and its directory entry: what a signer may change afterwards. */
  readonly exempt: readonly Place[];
  /** Bytes besides `exempt` that the sum rule leaves out: anybody can change them, and the signature still holds. */
  readonly notCovered: readonly Place[];
  /** Bytes that the sum rule hashes more than once. */
  readonly twice: readonly Place[];
  /** None when a signature would mean one thing to everybody. */
  readonly problems: readonly Problem[];
}

/**
 * Signers append the certificate table on a multiple of this, behind zeros (PE specification, "Attribute Certificate
 * Table").
 */
const CERTIFICATE_ALIGN = 8;
/** Ranges that are shown by name; a file that is broken all over would make a list without end. */
const MOST_PLACES = 100;
/** Parts of the file that are named where many overlap. */
const MOST_NAMES = 4;

/**
 * How Authenticode's digest of a file is counted.
 * @param bytes a whole PE file, signed or not
 * @throws ImageError when it is not one
 */
export function authenticode(bytes: Uint8Array, image: Pe = readPe(bytes)): Authenticode {
  const table = directoryOf(image, DIRECTORY_CERTIFICATE);
  const names = ["CheckSum", "the certificate table's directory entry", "the certificate table"];
  const exempt = exemptRanges(image)
    .map((range, i): Place => ({ ...range, what: names[i] ?? "" }))
    .filter(({ start, end }) => end > start);
  const { bySum, byLine } = hashedRanges(image);
  const padding = table.size === 0 ? roundUp(bytes.length, CERTIFICATE_ALIGN) - bytes.length : 0;
  const parts = fileParts(image);
  const { gaps, overlaps } = coverage(bySum, exempt, bytes.length);
  const named = (ranges: readonly FileRange[]): Place[] => {
    const found: Place[] = [];
    for (const range of ranges) if (found.length < MOST_PLACES) found.push(...places(range, parts, bytes.length));
    return found;
  };
  const [notCovered, twice] = [named(gaps), named(overlaps)];
  return {
    signed: table.size !== 0,
    counts: [
      { name: "specification", also: ["EDK2"], ranges: bySum, padding: 0 },
      { name: "shim", also: ["sbsign", "pesign"], ranges: bySum, padding },
      { name: "linear", also: ["osslsigncode"], ranges: byLine, padding },
    ],
    exempt,
    notCovered,
    twice,
    problems: [
      ...certificateProblems(table, bytes.length),
      ...sumProblems(image),
      ...notCovered.map(({ start, end, what }) =>
        problem("gap", `${range(start, end)}, ${what}, is not covered by the digest, needed every byte to be`),
      ),
      ...twice.map(({ start, end, what }) =>
        problem("twice", `${range(start, end)}, ${what}, is hashed twice, needed every byte once`),
      ),
      ...(gaps.length + overlaps.length === 0 ? orderProblems(bySum, byLine) : []),
      ...paddingProblems(bytes.length, padding),
    ],
  };
}

/**
 * The SHA-256 of what a count hashes. No byte is copied.
 * @returns lower-case hexadecimal
 */
export function digestOf(bytes: Uint8Array, { ranges, padding }: Count): string {
  const hash = createHash("sha256");
  for (const { start, end } of ranges) hash.update(bytes.subarray(start, end));
  return hash.update(new Uint8Array(padding)).digest("hex");
}

/** The digest of each count, computed once for all that hash the same bytes. */
export function authenticodeDigests(bytes: Uint8Array, { counts }: Authenticode): Map<CountName, string> {
  const known = new Map<string, string>();
  return new Map(
    counts.map((count) => {
      const key = JSON.stringify([count.ranges, count.padding]);
      const digest = known.get(key) ?? digestOf(bytes, count);
      known.set(key, digest);
      return [count.name, digest];
    }),
  );
}

// ---- what is where

function fileParts(image: Pe): Place[] {
  const { pointerToSymbolTable: symbols } = image.coff;
  const strings = symbols + image.symbols.length;
  const headers = { start: 0, end: image.optional.sizeOfHeaders, what: "the headers" };
  const sections = image.sections.map(({ name, header }) => ({
    start: header.pointerToRawData,
    end: header.pointerToRawData + header.sizeOfRawData,
    what: `section ${name}`,
  }));
  const tables = [
    { start: symbols, end: strings, what: "the COFF symbol table" },
    { start: strings, end: strings + image.strings.length, what: "the COFF string table" },
  ];
  return [headers, ...sections, ...tables].filter((p) => p.end > p.start).sort((a, b) => a.start - b.start);
}

/**
 * A range cut where a part of the file begins or ends, with the name of what is there; a gap is named by its
 * neighbours.
 */
function places({ start, end }: FileRange, parts: readonly Place[], fileSize: number): Place[] {
  const cuts = [start, ...parts.flatMap((p) => [p.start, p.end]).filter((at) => at > start && at < end), end];
  const sorted = [...new Set(cuts)].sort((a, b) => a - b);
  return sorted.slice(1, MOST_PLACES).map((to, i) => {
    const from = sorted[i] ?? start;
    return { start: from, end: to, what: whatIsAt(from, parts, fileSize) };
  });
}

function whatIsAt(at: number, parts: readonly Place[], fileSize: number): string {
  const here = parts.filter((p) => at >= p.start && at < p.end).map((p) => p.what);
  if (here.length > MOST_NAMES) here.splice(MOST_NAMES, Infinity, `${here.length - MOST_NAMES} more`);
  if (here.length !== 0) return here.join(" and ");
  const before = parts
    .filter((p) => p.end <= at)
    .reduce<Place | undefined>((a, p) => (a === undefined || p.end >= a.end ? p : a), undefined);
  const after = parts.find((p) => p.start > at);
  const until = after?.what ?? `the end of the file, ${hex(fileSize)}`;
  return `the gap between ${before?.what ?? "offset 0"} and ${until}`;
}

// ---- ranges

/** The bytes of the file that no range has, and those that more than one has. */
function coverage(
  hashed: readonly FileRange[],
  exempt: readonly FileRange[],
  size: number,
): { gaps: FileRange[]; overlaps: FileRange[] } {
  const gaps: FileRange[] = [];
  const overlaps: FileRange[] = [];
  let at = 0;
  for (const { start, end } of [...hashed, ...exempt].sort((a, b) => a.start - b.start)) {
    if (start > at) gaps.push({ start: at, end: start });
    if (start < at) overlaps.push({ start, end: Math.min(end, at) });
    at = Math.max(at, end);
  }
  if (at < size) gaps.push({ start: at, end: size });
  return { gaps: join(gaps), overlaps: join(overlaps) };
}

// ---- why a signature would not hold

function problem(kind: Problem["kind"], text: string): Problem {
  return { kind, text };
}

/** Firmware and shim ("Malformed binary", pe.c:generate_hash) take a certificate table only at the end of the file. */
function certificateProblems({ virtualAddress, size }: DataDirectory, fileSize: number): Problem[] {
  if (size === 0) return [];
  const end = virtualAddress + size;
  const where = `the certificate table is at ${range(virtualAddress, end)}`;
  if (end !== fileSize) return [problem("table", `${where}, needed at the end of the file, ${hex(fileSize)}`)];
  if (virtualAddress % CERTIFICATE_ALIGN === 0) return [];
  return [problem("table", `${where}, needed at a multiple of ${CERTIFICATE_ALIGN}`)];
}

function sumProblems(image: Pe): Problem[] {
  const [sum, end] = [bytesAddedUp(image), certificatesStart(image)];
  if (sum <= end) return [];
  const sizes = `SizeOfHeaders and all SizeOfRawData add up to ${hex(sum)}, needed at most ${hex(end)}`;
  return [problem("sum", `${sizes}: firmware and shim refuse to hash it`)];
}

/** Every byte once and still not the same: the sections' raw data begins ahead of the headers' end, say. */
function orderProblems(bySum: readonly FileRange[], byLine: readonly FileRange[]): Problem[] {
  if (JSON.stringify(bySum) === JSON.stringify(byLine)) return [];
  const covered = bySum.map((r) => range(r.start, r.end)).join(" ");
  return [problem("order", `the digest covers ${covered} in this order, needed the file's own`)];
}

function paddingProblems(fileSize: number, padding: number): Problem[] {
  if (padding === 0) return [];
  const needed = `the file has ${hex(fileSize)} bytes, needed a multiple of ${CERTIFICATE_ALIGN}`;
  return [problem("padding", `${needed}: shim and signers add ${padding} zero bytes, firmware does not`)];
}
