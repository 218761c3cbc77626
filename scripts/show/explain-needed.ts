// SPDX-License-Identifier: GPL-2.0-only
// What the steps that were taken have to have made of an original, entry by entry, as judge/expected.ts works it out and
// verify demands it. Of the result only which steps it has gone through is taken, and if that is wrong, nothing fits.

import { ImageError } from "../cli/errors.ts";
import { hex, printable } from "../cli/numbers.ts";
import { checkSum } from "../judge/checksum.ts";
import { expectedFile, expectedMemory, holders, newSectionNumbers, newSymbolValues } from "../judge/expected.ts";
import type { ExpectedFile, ExpectedMemory, Steps } from "../judge/expected.ts";
import { spelled } from "../judge/file.ts";
import { MULTIBOOT2, findHeader, tagsOfHeader, tagName } from "../judge/loads.ts";
import { lastUpTo, type Patch } from "../judge/memory.ts";
import { multiboot1Header, multiboot1Place, type HeaderChange } from "../judge/multiboot.ts";
import { byAddress, directoryOf, optionalAt, tableEnd, tableStart, type Pe, type Section } from "../judge/read.ts";
import { definedSymbols, sectionNumbers, type DefinedSymbol } from "../judge/symbols.ts";
import { offsetOf, viewOf, type Row, type Structure } from "../tables/fields.ts";
import { MB2_ADDRESS } from "../tables/multiboot.ts";
import * as pe from "../tables/pe.ts";
import { Account, type Subject } from "./explain-account.ts";
import { FIELD_REASONS, type Reason } from "./explain-why.ts";

/** What the result shows of the steps. Names and places are enough: everything else has to fit afterwards. */
export function stepsBetween(original: Pe, result: Pe): Steps {
  const [before, after] = [original, result].map(({ sections }) => sections.find((s) => s.name === ".reloc"));
  const isDiscardable = (section: Section | undefined): boolean =>
    section !== undefined && (section.header.characteristics & pe.MEM_DISCARDABLE) !== 0;
  const moved =
    before !== undefined && after !== undefined && before.header.virtualAddress !== after.header.virtualAddress;
  const isSigned = (image: Pe): boolean => {
    const { virtualAddress, size } = directoryOf(image, pe.DIRECTORY_CERTIFICATE);
    return virtualAddress !== 0 || size !== 0;
  };
  const places = ({ optional, sections }: Pe): string =>
    `${optional.sizeOfHeaders} ${sections
      .map(({ name, header: h }) => `${name} ${h.pointerToRawData} ${h.sizeOfRawData}`)
      .sort()
      .join()}`;
  return {
    relocated: moved ? "moved" : isDiscardable(before) && !isDiscardable(after) ? "kept" : undefined,
    aligned: places(original) !== places(result),
    headers: !hasAddresses(original) && hasAddresses(result),
    signatureDropped: isSigned(original) && !isSigned(result),
  };
}

/** Whether the image's Multiboot2 header has load addresses, as emit-header writes it. */
export function hasAddresses({ sections }: Pe): boolean {
  const data = byAddress(sections)[0]?.data ?? new Uint8Array(0);
  const at = findHeader(data, MULTIBOOT2);
  try {
    return at >= 0 && tagsOfHeader(data, at).some(({ type }) => type === MB2_ADDRESS);
  } catch (error) {
    if (error instanceof ImageError) return false;
    throw error;
  }
}

/**
 * The account of a result.
 * @throws ImageError when the original does not tell what the steps must have made of it
 */
export function neededAccount(original: Pe, steps: Steps): Account {
  const file = expectedFile(original, steps);
  const certificates = directoryOf(original, pe.DIRECTORY_CERTIFICATE);
  const described = steps.signatureDropped ? certificates.virtualAddress : original.bytes.length;
  const account = new Account(original.bytes.subarray(0, described), file.size);
  layPieces(file, account);
  if (account.end !== account.needed.length)
    throw new ImageError("the original cannot be laid out: its sections overlap");
  writeHeaders(file, account);
  writeSectionTable(file, account);
  if (steps.headers || steps.aligned || steps.relocated === "moved") writePatches(file, account);
  renumberSymbols(file, account);
  const at = optionalAt(original) + offsetOf(pe.OPTIONAL_HEADER, "checkSum");
  if (account.changes.length !== 0 || steps.signatureDropped)
    account.writeNumber(at, 4, checkSum(account.needed, at), {
      owner: "optional header",
      what: "CheckSum",
      why: "checkSum",
    });
  return account;
}

// ---- where everything is

function layPieces(file: ExpectedFile, account: Account): void {
  const { original, steps, span, sections, optional, rawEnd } = file;
  const [rows, headersEnd] = [tableStart(original), tableEnd(original)];
  const rowOf = new Map(original.sections.map((section, i) => [section, rows + i * pe.SECTION_HEADER.size]));
  account.copy(0, rows, "headers");
  for (const { from } of sections) account.copy(rowOf.get(from) ?? 0, pe.SECTION_HEADER.size, "headers", "order");
  if (!steps.aligned) return account.copy(headersEnd, account.needed.length - headersEnd, "the rest of the file");
  account.copy(headersEnd, original.optional.sizeOfHeaders - headersEnd, "headers");
  account.zeros(optional.sizeOfHeaders, "the header area", "headerArea");
  const stored = sections.filter(({ header }) => header.sizeOfRawData !== 0);
  for (const { from, header, data, name } of stored.sort(
    (a, b) => a.header.pointerToRawData - b.header.pointerToRawData,
  )) {
    const why = header.virtualAddress < span.dataEnd ? "linear" : "behind";
    account.copy(from.header.pointerToRawData, data.length, name, why);
    account.zeros(header.pointerToRawData + header.sizeOfRawData, name, why);
  }
  if (account.end !== rawEnd) throw new ImageError("the original's sections cannot be laid out: they overlap");
  const symbols = original.coff.pointerToSymbolTable;
  account.copy(symbols, original.symbols.length, "COFF symbols", "behind");
  account.copy(symbols + original.symbols.length, original.strings.length, "COFF strings", "behind");
  account.zeros(account.needed.length, "the end of the file", "padding");
}

// ---- headers

/** Writes the fields that have to be others, each for its reason. */
function writeFields<Rows extends readonly Row[]>(
  account: Account,
  at: number,
  owner: string,
  table: Structure<Rows>,
  needed: object,
  reasons: Readonly<Record<string, Reason>>,
): void {
  for (const [field, width] of table.rows) {
    const why = reasons[field];
    if (why === undefined || (width !== 2 && width !== 4)) continue;
    const value = Number((needed as Readonly<Record<string, unknown>>)[field]);
    account.writeNumber(at + offsetOf(table, field), width, value, { owner, what: spelled(field), why });
  }
}

function writeHeaders({ original, coff, optional, directories }: ExpectedFile, account: Account): void {
  const at = optionalAt(original);
  writeFields(account, at - pe.COFF_HEADER.size, "COFF header", pe.COFF_HEADER, coff, FIELD_REASONS);
  writeFields(account, at, "optional header", pe.OPTIONAL_HEADER, optional, FIELD_REASONS);
  directories.forEach((directory, i) => {
    const why = i === pe.DIRECTORY_CERTIFICATE ? "signature" : "moved";
    const entry = at + pe.OPTIONAL_HEADER.size + i * pe.DATA_DIRECTORY.size;
    const reasons = { virtualAddress: why, size: why } as const;
    writeFields(account, entry, `data directory ${i}`, pe.DATA_DIRECTORY, directory, reasons);
  });
}

function writeSectionTable({ original, span, sections }: ExpectedFile, account: Account): void {
  sections.forEach(({ name, header, from }, i) => {
    const raw: Reason = header.virtualAddress < span.dataEnd ? "linear" : "behind";
    const isReloc = name === ".reloc";
    const reasons: Readonly<Partial<Record<keyof pe.SectionHeader, Reason>>> = {
      virtualSize: isReloc && header.virtualSize < from.header.virtualSize ? "tableSize" : "grown",
      virtualAddress: isReloc ? "moved" : "stray",
      sizeOfRawData: raw,
      pointerToRawData: raw,
      characteristics: "discardable",
    };
    const row = tableStart(original) + i * pe.SECTION_HEADER.size;
    writeFields(account, row, `${name}'s header`, pe.SECTION_HEADER, header, reasons);
  });
}

function renumberSymbols(file: ExpectedFile, account: Account): void {
  const { original, sections, coff } = file;
  const numbers = newSectionNumbers(file);
  const subject = (number: number): Subject => ({
    owner: "COFF symbols",
    what: `SectionNumber of ${sections[number - 1]?.name ?? "nothing"}`,
    why: "order",
  });
  for (const { at, number } of sectionNumbers(original.symbols)) {
    const now = numbers[number] ?? number;
    if (now !== number) account.writeNumber(coff.pointerToSymbolTable + at, 2, now, subject(now), String);
  }
  const beyond = {
    owner: "COFF symbols",
    what: "Value of one that names what is behind .reloc",
    why: "beyond",
  } as const;
  for (const { at, value } of newSymbolValues(file))
    account.writeNumber(coff.pointerToSymbolTable + at, 4, value, beyond);
}

// ---- in the sections

function writePatches(file: ExpectedFile, account: Account): void {
  const memory = expectedMemory(file);
  const table = directoryOf(file.original, pe.DIRECTORY_BASE_RELOCATION);
  const holderOf = holders(file, memory.memory);
  const functions = [...definedSymbols(file.original)].filter(({ name }) => !name.startsWith("."));
  functions.sort((a, b) => a.rva - b.rva);
  for (const patch of memory.patches) {
    const { start, cause } = patch;
    const section = holderOf(start);
    if (section === undefined) throw new ImageError(`${cause} at RVA ${hex(start)} is in no section's data`);
    const at = section.header.pointerToRawData + start - section.before;
    if (cause === "the debug directory") writeDebugEntry(account, at, patch);
    else if (cause === "a reference to the base relocation table")
      writeReference(account, at, patch, table, functionAt(functions, start - 3));
    else if (patch.fixup !== undefined)
      account.write(at, patch.bytes, {
        owner: "base relocation table",
        what: `entry for RVA ${hex(patch.fixup.target)}`,
        was: patch.fixup.width === 4 ? "HIGHLOW" : "DIR64",
        is: "ABSOLUTE",
        why: "voidFixup",
      });
    else if (memory.header !== undefined) writeMultiboot2(account, at, file, memory.header, memory.entry);
  }
  if (file.steps.headers) writeMultiboot1(account, file, memory);
}

function writeDebugEntry(account: Account, at: number, { start, bytes }: Patch): void {
  const field = offsetOf(pe.DEBUG_DIRECTORY_ENTRY, "pointerToRawData");
  account.writeNumber(at + field, 4, viewOf(bytes).getUint32(field, true), {
    owner: `debug directory entry at RVA ${hex(start)}`,
    what: "PointerToRawData",
    why: "debugOffset",
  });
}

function writeReference(
  account: Account,
  at: number,
  { start, bytes }: Patch,
  table: pe.DataDirectory,
  inFunction: string,
): void {
  const next = start + 4;
  const [was, is] = [viewOf(account.needed).getInt32(at, true), viewOf(bytes).getInt32(0, true)];
  account.write(at, bytes, {
    owner: `code at RVA ${hex(start - 3)}${inFunction}`,
    what: `lea ${next + was === table.virtualAddress ? "__base_relocs_start" : "__base_relocs_end"}`,
    was: hex(next + was),
    is: hex(next + is),
    why: "reference",
  });
}

/** The nearest symbol at or below an RVA; sections' own, which begin with a dot, do not count. */
function functionAt(functions: readonly DefinedSymbol[], rva: number): string {
  const nearest = lastUpTo(functions, (symbol) => symbol.rva, rva);
  return nearest === undefined ? "" : ` in ${printable(nearest.name)}`;
}

function writeMultiboot2(account: Account, at: number, file: ExpectedFile, header: HeaderChange, entry: number): void {
  const { span, sections } = file;
  const { patch, rva, tags, dropped } = header;
  account.write(at, patch.bytes, {
    owner: `${sections[0]?.name ?? ""} at RVA ${hex(patch.start)}`,
    what: "",
    was: "Multiboot headers without addresses",
    is: "Multiboot2 header with addresses",
    why: "multiboot2",
    details: [
      `new: ADDRESS header_addr ${hex(rva)}, load_addr ${hex(span.first)}, load_end_addr ${hex(span.dataEnd)}, bss_end_addr ${hex(span.mappedEnd)}`,
      `new: ENTRY_ADDRESS entry_addr ${hex(entry)}`,
      `as before: ${tags.map(({ type }) => tagName(type)).join(", ")}`,
      ...(dropped.length === 0 ? [] : [`no room for the optional ${dropped.join(", ")}, which Xen does without`]),
    ],
  });
}

function writeMultiboot1(account: Account, { span, optional }: ExpectedFile, { entry }: ExpectedMemory): void {
  const { sizeOfHeaders } = optional;
  const at = multiboot1Place(sizeOfHeaders);
  const lowest = span.first - sizeOfHeaders;
  account.write(at, multiboot1Header(span, sizeOfHeaders, entry), {
    owner: "header area",
    what: "",
    was: "zeros",
    is: "Multiboot1 header with addresses",
    why: "multiboot1",
    details: [
      `header_addr ${hex(lowest + at)}, load_addr ${hex(lowest)}, load_end_addr ${hex(span.dataEnd)}, bss_end_addr ${hex(span.mappedEnd)}, entry_addr ${hex(entry)}`,
    ],
  });
}
