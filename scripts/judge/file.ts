// SPDX-License-Identifier: GPL-2.0-only
// verify's view of the file: headers, section table, raw layout, symbols, CheckSum, and what a signature would cover, each
// held against what expected.ts has worked out.

import { Buffer } from "node:buffer";
import { hex, printable, range } from "../cli/numbers.ts";
import { offsetOf, viewOf } from "../tables/fields.ts";
import * as pe from "../tables/pe.ts";
import { checkSum } from "./checksum.ts";
import { newSectionNumbers, newSymbolValues, type ExpectedFile, type ExpectedSection } from "./expected.ts";
import type { Findings } from "./findings.ts";
import { hashedRanges, type FileRange } from "./hashed.ts";
import { isZero } from "./memory.ts";
import { MULTIBOOT1_ROOM, multiboot1Header, multiboot1Place } from "./multiboot.ts";
import { directoryOf, hasFlags, optionalAt, sectionEnd, tableEnd, type Pe, type Section } from "./read.ts";
import { sectionNumbers } from "./symbols.ts";

/** A section of the original with what it has to be, and what it is. */
export interface Pair {
  readonly needed: ExpectedSection;
  readonly found: Section;
}

/**
 * Finds each section by its name; of several of one name the first is the first.
 * @returns undefined when sections are missing or new, which is a violation
 */
export function pairSections({ sections }: ExpectedFile, result: Pe, findings: Findings): Pair[] | undefined {
  const left = new Map<string, Section[]>();
  for (const section of [...result.sections].reverse()) {
    const others = left.get(section.name);
    if (others === undefined) left.set(section.name, [section]);
    else others.push(section);
  }
  const pairs = sections.flatMap((needed): Pair[] => {
    const found = left.get(needed.name)?.pop();
    if (found !== undefined) return [{ needed, found }];
    const rva = hex(needed.from.header.virtualAddress);
    findings.add(`section ${needed.name} of the original at RVA ${rva}`, "missing", "in the result");
    return [];
  });
  for (const { name, header } of [...left.values()].flat())
    findings.add(`section ${name} at RVA ${hex(header.virtualAddress)}`, "new", "only what the original has");
  return pairs.length === sections.length && pairs.length === result.sections.length ? pairs : undefined;
}

/** Everything that is no section's data. */
export function checkFile(expected: ExpectedFile, result: Pe, pairs: readonly Pair[], findings: Findings): void {
  const { original } = expected;
  findings.same("e_lfanew", result.lfanew, original.lfanew);
  const [stub, needed] = [result, original].map(({ bytes, lfanew }) => bytes.subarray(0, lfanew));
  if (stub !== undefined && needed !== undefined) findings.sameBytes("the MS-DOS stub", stub, needed, 0);
  sameFields("COFF header field", result.coff, expected.coff, findings);
  const checkSumAt = optionalAt(result) + offsetOf(pe.OPTIONAL_HEADER, "checkSum");
  const optional = { ...expected.optional, checkSum: checkSum(result.bytes, checkSumAt) };
  sameFields("optional header field", result.optional, optional, findings);
  if (optional.fileAlignment < 4)
    findings.add(
      "FileAlignment",
      hex(optional.fileAlignment),
      "at least 0x4: signers and firmware do not agree otherwise",
    );
  expected.directories.forEach(({ virtualAddress, size }, i) => {
    const found = directoryOf(result, i);
    findings.same(`the address in data directory ${i}`, found.virtualAddress, virtualAddress);
    findings.same(`the size in data directory ${i}`, found.size, size);
  });
  checkSectionTable(result, pairs, findings);
  checkBootable(result, findings);
  checkSymbols(expected, result, findings);
  const { rawEnd, size } = expected;
  findings.same("the length of the file", result.bytes.length, size);
  const end = rawEnd + result.symbols.length + result.strings.length;
  zeros(result.bytes, end, result.bytes.length, "the padding at the end of the file", findings);
  checkNothingLost(original, findings);
  const { bySum, byLine } = hashedRanges(result);
  const text = (ranges: readonly FileRange[]): string =>
    ranges
      .slice(0, 8)
      .map((r) => range(r.start, r.end))
      .join(" ");
  findings.same("what a signature covers as firmware and shim count it", text(bySum), text(byLine));
}

/** As the PE specification spells it. */
export function spelled(field: string): string {
  return `${field[0]?.toUpperCase() ?? ""}${field.slice(1)}`;
}

function sameFields<T extends object>(what: string, found: T, needed: T, findings: Findings): void {
  // Names are padded with zeros, which no terminal shows.
  const shown = (value: unknown): number | bigint | string =>
    typeof value === "string" ? `"${printable(value)}"` : (value as number | bigint);
  for (const field of Object.keys(needed) as (keyof T & string)[])
    findings.same(`${what} ${spelled(field)}`, shown(found[field]), shown(needed[field]));
}

function checkSectionTable({ sections, optional, bytes }: Pe, pairs: readonly Pair[], findings: Findings): void {
  sections.forEach((section, i) => {
    const { virtualAddress, pointerToRawData, sizeOfRawData } = section.header;
    const before = sections[i - 1]?.header.virtualAddress ?? 0;
    if (virtualAddress < before)
      findings.add(
        `section ${section.name}, number ${i + 1} in the table`,
        `at RVA ${hex(virtualAddress)}`,
        `at least ${hex(before)}: the table is in RVA order`,
      );
    if (sectionEnd(section) > optional.sizeOfImage)
      findings.add(
        `section ${section.name}`,
        `at ${range(virtualAddress, sectionEnd(section))}`,
        `below SizeOfImage ${hex(optional.sizeOfImage)}: firmware refuses the image`,
      );
    const dataEnd = pointerToRawData + section.data.length;
    zeros(bytes, dataEnd, pointerToRawData + sizeOfRawData, `the padding behind section ${section.name}`, findings);
  });
  for (const { needed, found } of pairs) sameFields(`section ${needed.name}'s`, found.header, needed.header, findings);
}

/**
 * What no step changes and somebody refuses all the same: shim an empty section (pe-relocate.c:get_section_vma), Xen a
 * place off 2 MiB (efi-boot.h:efi_arch_load_addr_check), GRUB another subsystem (peimage.c).
 */
function checkBootable({ optional, sections }: Pe, findings: Findings): void {
  const { subsystem, sectionAlignment, sizeOfHeaders } = optional;
  findings.same("Subsystem", subsystem, 10);
  if (sectionAlignment === 0 || sectionAlignment % pe.SIZE_2M !== 0)
    findings.add("SectionAlignment", hex(sectionAlignment), "a multiple of 0x200000: Xen stops elsewhere");
  for (const section of sections) {
    const { virtualSize, pointerToRawData } = section.header;
    const isInHeaders = pointerToRawData < sizeOfHeaders && !hasFlags(section, pe.CNT_UNINITIALIZED_DATA);
    if (virtualSize === 0 || isInHeaders)
      findings.add(`section ${section.name}`, "without data", "some: shim takes no image with such a section");
  }
}

/** Symbols are the original's, each in the same section, whose number may be another. */
function checkSymbols(expected: ExpectedFile, result: Pe, findings: Findings): void {
  const { original } = expected;
  const at = result.coff.pointerToSymbolTable;
  findings.sameBytes("the COFF string table", result.strings, original.strings, at + result.symbols.length);
  const numbers = newSectionNumbers(expected);
  const needed = new Uint8Array(original.symbols);
  const view = viewOf(needed);
  for (const symbol of sectionNumbers(original.symbols))
    view.setUint16(symbol.at, numbers[symbol.number] ?? symbol.number, true);
  for (const { at: valueAt, value } of newSymbolValues(expected)) view.setUint32(valueAt, value, true);
  if (Buffer.compare(needed, result.symbols) === 0) return;
  const found = viewOf(result.symbols);
  const name = (n: number): string => `section ${n} (${result.sections[n - 1]?.name ?? "none"})`;
  for (const symbol of sectionNumbers(needed)) {
    const number = symbol.at + 2 <= result.symbols.length ? found.getUint16(symbol.at, true) : symbol.number;
    if (number === symbol.number) continue;
    const record = Math.floor(symbol.at / pe.SYMBOL.size);
    const where = `the COFF symbol number ${record} at offset ${hex(at + record * pe.SYMBOL.size)}`;
    findings.add(where, `in ${name(number)}`, name(symbol.number));
    view.setUint16(symbol.at, number, true);
  }
  findings.sameBytes("the COFF symbol table", result.symbols, needed, at);
}

/** What the original has where its headers describe nothing would not be in the result: it must be nothing. */
function checkNothingLost(original: Pe, findings: Findings): void {
  const { bytes, coff, optional, symbols, strings } = original;
  const stored = original.sections.filter(({ header }) => header.sizeOfRawData !== 0);
  const described = stored.map(({ header: h }) => [h.pointerToRawData, h.pointerToRawData + h.sizeOfRawData] as const);
  const table = coff.pointerToSymbolTable;
  if (table !== 0) described.push([table, table + symbols.length + strings.length]);
  let end = optional.sizeOfHeaders;
  for (const [start, next] of described.sort(([a], [b]) => a - b)) {
    zeros(bytes, end, start, "the original, between what its headers describe,", findings);
    end = Math.max(end, next);
  }
  const certificates = directoryOf(original, pe.DIRECTORY_CERTIFICATE);
  const fileEnd = certificates.size === 0 ? bytes.length : certificates.virtualAddress;
  zeros(bytes, end, fileEnd, "the original, behind everything its headers describe,", findings);
}

function zeros(file: Uint8Array, start: number, end: number, what: string, findings: Findings): void {
  const bytes = file.subarray(start, end);
  if (end <= start || isZero(bytes)) return;
  const at = bytes.findIndex((byte) => byte !== 0);
  findings.add(`${what} at offset ${hex(start + at)}`, hex(bytes[at] ?? 0), "0x0");
}

/**
 * The header area behind the section table: what was there, then zeros, with the Multiboot1 header in them.
 * @param entry RVA of the 32-bit entry point
 */
export function checkHeaderArea({ original, span }: ExpectedFile, result: Pe, entry: number, findings: Findings): void {
  const { sizeOfHeaders } = result.optional;
  const [start, at] = [tableEnd(result), multiboot1Place(sizeOfHeaders)];
  const room = start + 16 * pe.SECTION_HEADER.size;
  if (at < room)
    return findings.add(
      "the place of the Multiboot1 header",
      hex(at),
      `at least ${hex(room)}: room for 16 section headers`,
    );
  const needed = new Uint8Array(sizeOfHeaders - start);
  const before = original.bytes.subarray(tableEnd(original), original.optional.sizeOfHeaders);
  needed.set(before.subarray(0, needed.length));
  if (!isZero(needed.subarray(at - start, at - start + MULTIBOOT1_ROOM)))
    findings.add(
      `the original, behind its section table at offset ${hex(at)},`,
      "in use",
      "64 zero bytes for the Multiboot1 header",
    );
  needed.set(multiboot1Header(span, sizeOfHeaders, entry), at - start);
  findings.sameBytes("the header area", result.bytes.subarray(start, sizeOfHeaders), needed, start);
}
