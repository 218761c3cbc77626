// SPDX-License-Identifier: GPL-2.0-only
// verify's view of the file: headers, section table, raw layout, symbols, debug directory, CheckSum, and what a signature
// would cover. DESIGN.md says what may change; the values are computed anew here, from the original and by the rules,
// never by the code that wrote them.

import { ImageError } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import type { Findings } from "./findings.ts";
import { differences, isZero } from "./loads.ts";
import { byAddress, hasFlags, roundUp, sectionEnd } from "../pe/image.ts";
import type { Image, Section } from "../pe/image.ts";
import { offsetOf, words32 } from "../tables/fields.ts";
import {
  CNT_CODE,
  CNT_INITIALIZED_DATA,
  CNT_UNINITIALIZED_DATA,
  COFF_HEADER,
  DATA_DIRECTORY,
  DIRECTORY_BASE_RELOCATION,
  DIRECTORY_CERTIFICATE,
  MEM_DISCARDABLE,
  MEM_EXECUTE,
  MEM_WRITE,
  NX_COMPAT,
  OPTIONAL_HEADER,
  PAGE_SIZE,
  SECTION_HEADER,
  SIZE_2M,
} from "../tables/pe.ts";
import type { SectionHeader } from "../tables/pe.ts";

/** What Multiboot loads, as RVAs: everything below .bss, and .bss. */
export interface Span {
  /** In RVA order. */
  readonly sections: readonly Section[];
  readonly first: number;
  readonly dataEnd: number;
  readonly bssStart: number;
  readonly bssEnd: number;
  /** The end of .bss rounded up to 2 MiB, so far Xen maps it. */
  readonly mappedEnd: number;
}

/** Both images and what of one became what of the other. */
export interface Comparison {
  readonly original: Image;
  readonly result: Image;
  readonly span: Span;
  /** Section of the original: its section in the result. */
  readonly pairs: ReadonlyMap<Section, Section>;
  readonly reloc: Section;
  /** Whether .reloc was moved below .bss. */
  readonly moved: boolean;
}

/** Old GNU ld puts DWARF that its script does not know beyond SizeOfImage; align-sections brings it back. */
function isStray(image: Image, section: Section): boolean {
  return section.name.startsWith(".debug_") && sectionEnd(section) > image.optional.sizeOfImage;
}

/** @throws ImageError when there is no such thing */
export function spanOf(image: Image): Span {
  const [bss, second] = image.sections.filter((s) => s.name === ".bss");
  if (bss === undefined || second !== undefined)
    throw new ImageError(`it has ${bss === undefined ? "no" : "more than one"} section .bss, needed one`);
  const bssStart = bss.header.virtualAddress;
  const below = byAddress(image.sections.filter((s) => s.header.virtualAddress < bssStart));
  // Uninitialised sections directly below .bss are zeroed along with it.
  const sections = below.slice(0, below.findLastIndex((s) => !hasFlags(s, CNT_UNINITIALIZED_DATA)) + 1);
  const first = sections[0]?.header.virtualAddress;
  const last = sections.at(-1);
  if (first === undefined || last === undefined) throw new ImageError("it has no initialised section below .bss");
  if (first % SIZE_2M !== 0)
    throw new ImageError(`its first section is at RVA ${hex(first)}, needed a multiple of ${hex(SIZE_2M)}`);
  const bssEnd = sectionEnd(bss);
  return { sections, first, dataEnd: sectionEnd(last), bssStart, bssEnd, mappedEnd: roundUp(bssEnd, SIZE_2M) };
}

// ---- which section is which

/**
 * Finds each section's counterpart: by name and RVA, or, for what may move, by name and order. Stray debug sections may
 * share a name, since old linkers cut names to 8 characters.
 * @returns undefined when sections are missing or new, which is a violation
 */
export function pairSections(original: Image, result: Image, findings: Findings): Map<Section, Section> | undefined {
  const key = ({ name, header }: Section): string => `${header.virtualAddress} ${name}`;
  const mayMove = (section: Section): boolean => section.name === ".reloc" || isStray(original, section);
  const there = new Map(result.sections.map((section) => [key(section), section]));
  const pairs = new Map<Section, Section>();
  const open: Section[] = [];
  for (const section of byAddress(original.sections)) {
    const partner = mayMove(section) ? undefined : there.get(key(section));
    if (partner === undefined) open.push(section);
    else {
      pairs.set(section, partner);
      there.delete(key(section));
    }
  }
  /** By name; the lowest is the last. */
  const left = new Map<string, Section[]>();
  for (const section of byAddress([...there.values()]).reverse()) {
    const others = left.get(section.name);
    if (others === undefined) left.set(section.name, [section]);
    else others.push(section);
  }
  for (const section of open) {
    const partner = left.get(section.name)?.pop();
    if (partner !== undefined && mayMove(section)) pairs.set(section, partner);
    else
      findings.add(
        `section ${section.name} of the original at RVA ${hex(section.header.virtualAddress)}`,
        partner === undefined ? "missing" : `at ${hex(partner.header.virtualAddress)}`,
        "at the same address",
      );
  }
  for (const section of [...left.values()].flat())
    findings.add(
      `section ${section.name} at RVA ${hex(section.header.virtualAddress)}`,
      "new",
      "only what the original has",
    );
  return pairs.size === original.sections.length && pairs.size === result.sections.length ? pairs : undefined;
}

// ---- headers

/** COFF and optional header fields that may change; `checkHeaders` says how. */
const VARIABLE: ReadonlySet<string> = new Set([
  "pointerToSymbolTable",
  "sizeOfCode",
  "sizeOfInitializedData",
  "fileAlignment",
  "sizeOfImage",
  "sizeOfHeaders",
  "checkSum",
  "dllCharacteristics",
]);

export function checkHeaders(comparison: Comparison, findings: Findings): void {
  const { original, result, span } = comparison;
  findings.same("e_lfanew", result.lfanew, original.lfanew);
  sameBytes(
    findings,
    original.background.subarray(0, original.lfanew),
    result.background.subarray(0, original.lfanew),
    0,
    "the MS-DOS stub",
  );
  sameFields(findings, "COFF header field", result.coff, original.coff);
  sameFields(findings, "optional header field", result.optional, original.optional);
  const { optional, sections } = result;
  findings.same("SizeOfCode", optional.sizeOfCode, rawSize(sections, CNT_CODE));
  findings.same("SizeOfInitializedData", optional.sizeOfInitializedData, rawSize(sections, CNT_INITIALIZED_DATA));
  findings.same("FileAlignment", optional.fileAlignment, commonAlignment(sections));
  if (optional.fileAlignment < 4)
    findings.add(
      "FileAlignment",
      hex(optional.fileAlignment),
      "at least 0x4: signers and firmware do not agree otherwise",
    );
  findings.same("SizeOfHeaders", optional.sizeOfHeaders, headerArea(original));
  const strayEnd = [...strayPlaces(original).values()].reduce((end, place) => Math.max(end, place.end), 0);
  findings.same(
    "SizeOfImage",
    optional.sizeOfImage,
    roundUp(Math.max(original.optional.sizeOfImage, strayEnd, span.mappedEnd), original.optional.sectionAlignment || 1),
  );
  findings.same("DllCharacteristics", optional.dllCharacteristics, dllCharacteristics(original, sections));
  findings.same(
    "CheckSum",
    optional.checkSum,
    checkSum(result.background, optionalAt(result) + offsetOf(OPTIONAL_HEADER, "checkSum")),
  );
  checkDirectories(comparison, findings);
}

function sameFields(findings: Findings, what: string, found: object, needed: object): void {
  const values = Object.entries(found) as [string, number | bigint | string][];
  const wanted = needed as Record<string, number | bigint | string>;
  // Names are padded with zeros, which no terminal shows.
  const show = (value: number | bigint | string): number | bigint | string =>
    typeof value === "string" ? JSON.stringify(value) : value;
  for (const [field, value] of values)
    if (!VARIABLE.has(field)) findings.same(`${what} ${field}`, show(value), show(wanted[field] ?? 0));
}

function checkDirectories({ original, result, pairs, reloc }: Comparison, findings: Findings): void {
  const distance = (pairs.get(reloc) ?? reloc).header.virtualAddress - reloc.header.virtualAddress;
  original.directories.forEach((needed, i) => {
    const found = result.directories[i] ?? { virtualAddress: 0, size: 0 };
    // --strip-signature may have dropped it; a signature of the original cannot be one of the result.
    const certificate = i === DIRECTORY_CERTIFICATE;
    const address = i === DIRECTORY_BASE_RELOCATION ? needed.virtualAddress + distance : needed.virtualAddress;
    findings.same(`the address in data directory ${i}`, found.virtualAddress, certificate ? 0 : address);
    findings.same(`the size in data directory ${i}`, found.size, certificate ? 0 : needed.size);
  });
}

export function rawSize(sections: readonly Section[], flag: number): number {
  let size = 0;
  for (const section of sections)
    if (hasFlags(section, flag) && !hasFlags(section, MEM_DISCARDABLE)) size += section.header.sizeOfRawData;
  return size;
}

export function commonAlignment(sections: readonly Section[]): number {
  let bits = 512;
  for (const { header } of sections)
    if (header.sizeOfRawData !== 0) bits |= header.pointerToRawData | header.sizeOfRawData;
  return bits & -bits;
}

/** Room for 16 more section headers and the Multiboot1 header, in whole pages. */
export function headerArea(original: Image): number {
  return roundUp(
    Math.max(original.optional.sizeOfHeaders, tableEnd(original) + 16 * SECTION_HEADER.size + 64),
    PAGE_SIZE,
  );
}

/** NX_COMPAT stays only where it is true: loaders that believe it refuse the image otherwise (GRUB 2.14 peimage.c). */
export function dllCharacteristics(original: Image, sections: readonly Section[]): number {
  const untrue = sections.some(
    (s) => s.header.virtualAddress % PAGE_SIZE !== 0 || (hasFlags(s, MEM_WRITE) && hasFlags(s, MEM_EXECUTE)),
  );
  return untrue ? original.optional.dllCharacteristics & ~NX_COMPAT : original.optional.dllCharacteristics;
}

export function optionalAt({ lfanew }: Image): number {
  return lfanew + 4 + COFF_HEADER.size;
}

/** The file offset behind the section table. */
export function tableEnd(image: Image): number {
  return optionalAt(image) + image.coff.sizeOfOptionalHeader + image.sections.length * SECTION_HEADER.size;
}

/** The sum of 16-bit words, carries added back, the field itself as zero, plus the file's length (PE specification, "CheckSum"). */
export function checkSum(file: Uint8Array, at: number): number {
  let sum = sumOfWords(file);
  file.subarray(at, at + 4).forEach((byte, i) => (sum -= byte << (8 * ((at + i) & 1))));
  // A sum of words that are not all zero never ends as 0 but as 0xffff, which is the same modulo 0xffff.
  return (((((sum % 0xffff) + 0xffff) % 0xffff) + 0xfffe) % 0xffff) + 1 + file.length;
}

/** Modulo 2^16 - 1. */
function sumOfWords(bytes: Uint8Array): number {
  const words = words32(bytes);
  const fours = words.length & ~3;
  let sum = 0;
  for (let start = 0; start < fours; start += GAP_WORDS) {
    const end = Math.min(fours, start + GAP_WORDS);
    // Gaps are long, and looking for a byte that is not zero is faster than adding them.
    if (isZero(bytes.subarray(4 * start, 4 * end))) continue;
    for (let word = start; word < end; word += WORDS_AT_ONCE)
      sum = (sum + sumOf(words, word, Math.min(end, word + WORDS_AT_ONCE))) % 0xffff;
  }
  for (let i = 4 * fours; i < bytes.length; i++) sum += (bytes[i] ?? 0) << (8 * (i & 1));
  return sum % 0xffff;
}

/** Few enough for sums of their halves to be below 2^31: larger numbers are slow in JavaScript. */
const WORDS_AT_ONCE = 1 << 12;
const GAP_WORDS = 1 << 14;

/**
 * The halves of all words from `start` to `end`, a number of words that 4 divides. Called again and again, and so
 * compiled soon: a single loop would be interpreted for long.
 */
function sumOf(words: Int32Array, start: number, end: number): number {
  let even = 0;
  let odd = 0;
  for (let i = start; i < end; i += 4) {
    const a = words[i] ?? 0;
    const b = words[i + 1] ?? 0;
    const c = words[i + 2] ?? 0;
    const d = words[i + 3] ?? 0;
    even = (even + (a & 0xffff) + (b & 0xffff) + (c & 0xffff) + (d & 0xffff)) | 0;
    odd = (odd + (a >>> 16) + (b >>> 16) + (c >>> 16) + (d >>> 16)) | 0;
  }
  return even + odd;
}

// ---- sections

interface Place {
  readonly start: number;
  readonly end: number;
}

/** Where debug sections beyond SizeOfImage go: behind everything, in RVA order, on pages. */
export function strayPlaces(original: Image): Map<Section, Place> {
  let end = original.optional.sizeOfImage;
  const places = new Map<Section, Place>();
  for (const section of byAddress(original.sections.filter((s) => isStray(original, s)))) {
    const start = roundUp(end, PAGE_SIZE);
    end = start + section.header.virtualSize;
    places.set(section, { start, end });
  }
  return places;
}

/** The original with debug sections beyond SizeOfImage where the result has to have them: as it is, no firmware loads it. */
export function withStraysInPlace(original: Image): Image {
  const places = strayPlaces(original);
  const sections = original.sections.map((section) => {
    const virtualAddress = places.get(section)?.start;
    return virtualAddress === undefined ? section : { ...section, header: { ...section.header, virtualAddress } };
  });
  return { ...original, sections };
}

/** The section table: order, and every field of every section. */
export function checkSections({ original, result, span, pairs, reloc, moved }: Comparison, findings: Findings): void {
  const table = original.directories[DIRECTORY_BASE_RELOCATION]?.size ?? 0;
  const stray = strayPlaces(original);
  result.sections.forEach((section, i) => {
    const before = result.sections[i - 1]?.header.virtualAddress ?? 0;
    if (section.header.virtualAddress < before)
      findings.add(
        `section ${section.name}, number ${i + 1} in the table`,
        `at RVA ${hex(section.header.virtualAddress)}`,
        `at least ${hex(before)}: the table is in RVA order`,
      );
  });
  const behind = followers(span.sections);
  for (const [from, to] of pairs) {
    const needed: SectionHeader = {
      ...from.header,
      pointerToRawData: to.header.pointerToRawData,
      sizeOfRawData: to.header.sizeOfRawData,
    };
    if (from === reloc) needed.characteristics = (needed.characteristics & ~MEM_DISCARDABLE) >>> 0;
    if (from === reloc && moved)
      Object.assign(needed, { virtualAddress: newTableAddress(original, reloc), virtualSize: table });
    if (from === reloc && to.header.virtualAddress % PAGE_SIZE !== 0 && moved)
      findings.add("section .reloc", `at RVA ${hex(to.header.virtualAddress)}`, "on a page of its own");
    const place = stray.get(from);
    if (place !== undefined) needed.virtualAddress = place.start;
    const next = behind.get(to);
    // GRUB 2.14's PE loader refuses more raw data than memory in pages (peimage.c), so there memory grows along.
    if (next !== undefined && next - to.header.virtualAddress > roundUp(needed.virtualSize, PAGE_SIZE))
      needed.virtualSize = next - to.header.virtualAddress;
    sameFields(findings, `section ${from.name}'s field`, to.header, needed);
    if (to.header.pointerToRelocations !== 0 || to.header.pointerToLinenumbers !== 0)
      findings.add(
        `section ${from.name}`,
        "one with COFF relocations or line numbers",
        "none: they point into the original file",
      );
    if (sectionEnd(to) > result.optional.sizeOfImage)
      findings.add(
        `section ${from.name}`,
        `at ${range(to.header.virtualAddress, sectionEnd(to))}`,
        `below SizeOfImage ${hex(result.optional.sizeOfImage)}: firmware refuses the image`,
      );
  }
}

/** For every section but the last, where the next one begins. */
function followers(sections: readonly Section[]): Map<Section, number> {
  return new Map(sections.slice(0, -1).map((section, i) => [section, sections[i + 1]?.header.virtualAddress ?? 0]));
}

/** The last pages ahead of __init_end, which is where the section behind the last .init section begins; undefined becomes 0. */
export function newTableAddress(original: Image, reloc: Section): number {
  const sections = byAddress(original.sections);
  const init = sections.findLastIndex((s) => s.name.startsWith(".init"));
  return (sections[init + 1]?.header.virtualAddress ?? 0) - roundUp(reloc.header.virtualSize, PAGE_SIZE);
}

// ---- the file's layout

/** Raw data: linear over the span, then section by section without a gap, then symbols; zeros wherever nothing is. */
export function checkLayout({ original, result, span, pairs }: Comparison, findings: Findings): void {
  const { sizeOfHeaders } = result.optional;
  const delta = span.first - sizeOfHeaders;
  const inSpan = followers(span.sections);
  const last = span.sections.at(-1);
  const data = new Map([...pairs].map(([from, to]) => [to, from.data.length]));
  let end = sizeOfHeaders;
  for (const section of byAddress(result.sections)) {
    const { virtualAddress, virtualSize, pointerToRawData, sizeOfRawData } = section.header;
    const inside = section === last || inSpan.has(section);
    const size = inside
      ? section === last
        ? roundUp(virtualSize, 512)
        : (inSpan.get(section) ?? virtualAddress) - virtualAddress
      : roundUp(data.get(section) ?? 0, 512);
    findings.same(`section ${section.name}'s SizeOfRawData`, sizeOfRawData, size);
    findings.same(
      `section ${section.name}'s PointerToRawData`,
      pointerToRawData,
      inside ? virtualAddress - delta : size === 0 ? 0 : end,
    );
    if (size !== 0) end = pointerToRawData + sizeOfRawData;
    zeros(
      findings,
      result.background,
      pointerToRawData + section.data.length,
      pointerToRawData + sizeOfRawData,
      `the padding behind section ${section.name}`,
    );
  }
  const { pointerToSymbolTable } = result.coff;
  findings.same("PointerToSymbolTable", pointerToSymbolTable, original.coff.pointerToSymbolTable === 0 ? 0 : end);
  if (pointerToSymbolTable !== 0) end = pointerToSymbolTable + result.symbols.length + result.strings.length;
  findings.same("the length of the file", result.background.length, roundUp(end, 8));
  zeros(findings, result.background, end, result.background.length, "the padding at the end of the file");
  checkNothingLost(original, findings);
}

/** What the original has behind everything its headers describe would not be in the result: it must be nothing. */
function checkNothingLost(original: Image, findings: Findings): void {
  const certificates = original.directories[DIRECTORY_CERTIFICATE];
  const fileEnd =
    certificates === undefined || certificates.size === 0 ? original.background.length : certificates.virtualAddress;
  let end = Math.max(
    original.optional.sizeOfHeaders,
    original.coff.pointerToSymbolTable + original.symbols.length + original.strings.length,
  );
  for (const { header } of original.sections)
    if (header.sizeOfRawData !== 0) end = Math.max(end, header.pointerToRawData + header.sizeOfRawData);
  zeros(findings, original.background, end, fileEnd, "the original, behind everything its headers describe,");
}

function zeros(findings: Findings, file: Uint8Array, start: number, end: number, what: string): void {
  const bytes = file.subarray(start, end);
  if (end <= start || isZero(bytes)) return;
  const at = bytes.findIndex((byte) => byte !== 0);
  findings.add(`${what} at offset ${hex(start + at)}`, hex(bytes[at] ?? 0), "0x0");
}

/** The first difference is named; the rest is one number. */
export function sameBytes(
  findings: Findings,
  needed: Uint8Array,
  found: Uint8Array,
  offset: number,
  what: string,
): void {
  const size = Math.max(needed.length, found.length);
  let [first, more] = [-1, 0];
  for (const [start] of differences(needed, found, size)) {
    if (first < 0) first = start;
    else more++;
  }
  if (first < 0) return;
  const elsewhere = more === 0 ? "" : `; it differs in ${more} more places`;
  findings.add(
    `${what} at offset ${hex(offset + first)}`,
    hex(found[first] ?? 0),
    `${hex(needed[first] ?? 0)}${elsewhere}`,
  );
}

// ---- what a signature covers

/**
 * The file ranges that Authenticode covers, joined where they touch. Firmware and shim count the bytes of headers and
 * sections and go on from there (EDK2 DxeImageVerificationLib.c:HashPeImage, shim pe.c:generate_hash), which is the end of
 * the last section only where the file has no gap and no overlap; signers take everything.
 */
export function checkAuthenticode(image: Image, findings: Findings): void {
  const { background, optional } = image;
  const checkSumAt = optionalAt(image) + offsetOf(OPTIONAL_HEADER, "checkSum");
  const certificateAt = optionalAt(image) + OPTIONAL_HEADER.size + DIRECTORY_CERTIFICATE * DATA_DIRECTORY.size;
  const holes =
    image.directories.length > DIRECTORY_CERTIFICATE
      ? [checkSumAt, checkSumAt + 4, certificateAt, certificateAt + 8]
      : [checkSumAt, checkSumAt + 4];
  const all = joined([0, ...holes, background.length]);
  const counted = [0, ...holes, optional.sizeOfHeaders];
  let sum = optional.sizeOfHeaders;
  for (const { header } of [...image.sections].sort((a, b) => a.header.pointerToRawData - b.header.pointerToRawData)) {
    if (header.sizeOfRawData === 0) continue;
    counted.push(header.pointerToRawData, header.pointerToRawData + header.sizeOfRawData);
    sum += header.sizeOfRawData;
  }
  counted.push(sum, background.length);
  findings.same("what a signature covers as firmware and shim count it", joined(counted), all);
}

function joined(bounds: readonly number[]): string {
  const ranges: [number, number][] = [];
  for (let i = 0; i + 1 < bounds.length; i += 2) {
    const [start, end] = [bounds[i] ?? 0, bounds[i + 1] ?? 0];
    const last = ranges.at(-1);
    if (start === end) continue;
    if (last !== undefined && last[1] === start) last[1] = end;
    else ranges.push([start, end]);
  }
  return ranges
    .slice(0, 8)
    .map(([start, end]) => range(start, end))
    .join(" ");
}
