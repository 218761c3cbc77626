// SPDX-License-Identifier: GPL-2.0-only
// What the steps that were taken have to have made of an original, entry by entry. Everything is worked out from the
// original by the rules, as verify works it out and with its functions; of the result only which steps it has gone
// through is taken, and if that is wrong, nothing fits.

import { ImageError } from "../cli/errors.ts";
import { hex, printable } from "../cli/numbers.ts";
import {
  checkSum,
  commonAlignment,
  dllCharacteristics,
  headerArea,
  newTableAddress,
  optionalAt,
  rawSize,
  spanOf,
  strayPlaces,
  tableEnd,
  withStraysInPlace,
} from "../judge/file.ts";
import type { Comparison, Span } from "../judge/file.ts";
import {
  findHeader,
  fixupWidth,
  loadByFirmware,
  multiboot2Tags,
  readFixups,
  relocationTable,
  tagName,
} from "../judge/loads.ts";
import {
  debugPatches,
  headerChange,
  multiboot1Header,
  multiboot1Place,
  referencePatches,
  voidPatches,
} from "../judge/memory.ts";
import type { HeaderChange, Patch } from "../judge/memory.ts";
import { startSymbol } from "../judge/symbols.ts";
import { byAddress, definedSymbols, roundUp } from "../pe/image.ts";
import type { Image, Section } from "../pe/image.ts";
import { Account } from "./explain-account.ts";
import type { Reason } from "./explain-why.ts";
import { offsetOf, viewOf } from "../tables/fields.ts";
import { MB2_ADDRESS, MB2_ALIGN, MB2_MAGIC, MB2_SEARCH } from "../tables/multiboot.ts";
import {
  CNT_CODE,
  CNT_INITIALIZED_DATA,
  COFF_HEADER,
  DATA_DIRECTORY,
  DIRECTORY_BASE_RELOCATION,
  DIRECTORY_CERTIFICATE,
  MEM_DISCARDABLE,
  OPTIONAL_HEADER,
  PAGE_SIZE,
  SECTION_HEADER,
  SIGNATURE_SIZE,
  SYMBOL,
} from "../tables/pe.ts";
import type { SectionHeader } from "../tables/pe.ts";

/** Which steps a result has gone through since the original. */
export interface Steps {
  readonly relocated: "moved" | "kept" | undefined;
  readonly aligned: boolean;
  readonly headers: boolean;
  readonly signatureDropped: boolean;
}

/** What the result shows of the steps. Names and places are enough: everything else has to fit afterwards. */
export function stepsBetween(original: Image, result: Image): Steps {
  const [before, after] = [original, result].map((image) => image.sections.find((s) => s.name === ".reloc"));
  const flag = (section: Section | undefined): boolean =>
    section !== undefined && (section.header.characteristics & MEM_DISCARDABLE) !== 0;
  const moved =
    before !== undefined && after !== undefined && before.header.virtualAddress !== after.header.virtualAddress;
  const signed = ({ directories }: Image): boolean =>
    directories
      .slice(DIRECTORY_CERTIFICATE, DIRECTORY_CERTIFICATE + 1)
      .some(({ virtualAddress, size }) => virtualAddress !== 0 || size !== 0);
  const places = (image: Image): string =>
    `${image.optional.sizeOfHeaders} ${image.sections
      .map(({ name, header: h }) => `${name} ${h.pointerToRawData} ${h.sizeOfRawData}`)
      .sort()
      .join()}`;
  return {
    relocated: moved ? "moved" : flag(before) && !flag(after) ? "kept" : undefined,
    aligned: places(original) !== places(result),
    headers: !hasAddresses(original) && hasAddresses(result),
    signatureDropped: signed(original) && !signed(result),
  };
}

/** Whether the image's Multiboot2 header has load addresses, as emit-header writes it. */
export function hasAddresses(image: Image): boolean {
  const [first] = byAddress(image.sections);
  const at = first === undefined ? -1 : findHeader(first.data, MB2_SEARCH, MB2_ALIGN, MB2_MAGIC, [4, 8, 12]);
  try {
    return first !== undefined && at >= 0 && multiboot2Tags(first.data, at).some(({ type }) => type === MB2_ADDRESS);
  } catch (error) {
    if (error instanceof ImageError) return false;
    throw error;
  }
}

/** Everything that depends on more than one of the functions below. */
interface Work {
  readonly original: Image;
  readonly steps: Steps;
  readonly span: Span;
  readonly reloc: Section;
  /** What each section of the original has to be. */
  readonly sections: ReadonlyMap<Section, Section>;
  /** The same in the order of the new section table. */
  readonly table: readonly Section[];
  readonly sizeOfHeaders: number;
  /** The end of the last section's raw data in the result. */
  readonly rawEnd: number;
  readonly account: Account;
}

/**
 * The account of a result.
 * @throws ImageError when the original does not tell what the steps must have made of it
 */
export function neededAccount(original: Image, steps: Steps): Account {
  const work = prepare(original, steps);
  layPieces(work);
  if (work.account.end !== work.account.needed.length)
    throw new ImageError("the original cannot be laid out: its sections overlap");
  writeHeaders(work);
  writeSectionTable(work);
  writePatches(work);
  renumberSymbols(work);
  const { account } = work;
  const at = optionalAt(original) + offsetOf(OPTIONAL_HEADER, "checkSum");
  if (account.changes.length !== 0 || steps.signatureDropped)
    account.writeNumber(at, 4, checkSum(account.needed, at), {
      owner: "optional header",
      what: "CheckSum",
      why: "checkSum",
    });
  return account;
}

// ---- where everything is

function prepare(original: Image, steps: Steps): Work {
  const [reloc, second] = original.sections.filter((s) => s.name === ".reloc");
  if (reloc === undefined || second !== undefined)
    throw new ImageError(`the original has ${reloc === undefined ? "no" : "two"} sections .reloc, needed one`);
  const file = original.background;
  const certificates = original.directories[DIRECTORY_CERTIFICATE];
  const described = steps.signatureDropped && certificates !== undefined ? certificates.virtualAddress : file.length;
  const before = new Map(
    original.sections.map((section) => [section, relocatedSection(original, section, reloc, steps)]),
  );
  // Of the moved table, too: where .bss is what follows .init, it is the last thing that Multiboot loads.
  const span = spanOf({ ...original, sections: [...before.values()] });
  if (!steps.aligned) {
    const table = inTableOrder(original, before, steps);
    const rawEnd = original.sections.reduce(
      (end, { header }) => Math.max(end, header.pointerToRawData + header.sizeOfRawData),
      0,
    );
    return {
      original,
      steps,
      span,
      reloc,
      sections: before,
      table,
      sizeOfHeaders: original.optional.sizeOfHeaders,
      rawEnd,
      account: new Account(file.subarray(0, described), described),
    };
  }
  const sizeOfHeaders = headerArea(original);
  const { sections, rawEnd } = alignedSections(before, span, sizeOfHeaders);
  const size = roundUp(rawEnd + original.symbols.length + original.strings.length, 8);
  const table = inTableOrder(original, sections, steps);
  return {
    original,
    steps,
    span,
    reloc,
    sections,
    table,
    sizeOfHeaders,
    rawEnd,
    account: new Account(file.subarray(0, described), size),
  };
}

/** A step that changes anything writes the table in RVA order. */
function inTableOrder(original: Image, sections: ReadonlyMap<Section, Section>, steps: Steps): Section[] {
  const table = original.sections.map((section) => sections.get(section) ?? section);
  return steps.relocated !== undefined || steps.aligned || steps.headers ? byAddress(table) : table;
}

function relocatedSection(original: Image, section: Section, reloc: Section, { relocated, aligned }: Steps): Section {
  const header: SectionHeader = { ...section.header };
  let { data } = section;
  if (section === reloc && relocated !== undefined)
    header.characteristics = (header.characteristics & ~MEM_DISCARDABLE) >>> 0;
  if (section === reloc && relocated === "moved") {
    const size = original.directories[DIRECTORY_BASE_RELOCATION]?.size ?? 0;
    Object.assign(header, { virtualAddress: newTableAddress(original, reloc), virtualSize: size });
    data = data.subarray(0, size);
  }
  const stray = aligned ? strayPlaces(original).get(section) : undefined;
  if (stray !== undefined) header.virtualAddress = stray.start;
  return { ...section, header, data };
}

function alignedSections(
  before: ReadonlyMap<Section, Section>,
  span: Span,
  sizeOfHeaders: number,
): { sections: Map<Section, Section>; rawEnd: number } {
  const origin = new Map([...before].map(([from, to]) => [to, from]));
  const ordered = byAddress([...before.values()]);
  const inside = ordered.filter((s) => s.header.virtualAddress < span.dataEnd);
  const sections = new Map<Section, Section>();
  let end = sizeOfHeaders;
  for (const section of ordered) {
    const header: SectionHeader = { ...section.header };
    const { virtualAddress } = header;
    const next = inside[inside.indexOf(section) + 1];
    if (inside.includes(section)) {
      header.pointerToRawData = virtualAddress - span.first + sizeOfHeaders;
      header.sizeOfRawData =
        next === undefined ? roundUp(header.virtualSize, 512) : next.header.virtualAddress - virtualAddress;
      if (next !== undefined && header.sizeOfRawData > roundUp(header.virtualSize, PAGE_SIZE))
        header.virtualSize = header.sizeOfRawData;
    } else {
      header.sizeOfRawData = roundUp(section.data.length, 512);
      header.pointerToRawData = header.sizeOfRawData === 0 ? 0 : end;
    }
    if (header.sizeOfRawData !== 0) end = header.pointerToRawData + header.sizeOfRawData;
    sections.set(origin.get(section) ?? section, { ...section, header });
  }
  return { sections, rawEnd: end };
}

function layPieces({ original, steps, span, sections, table, sizeOfHeaders, rawEnd, account }: Work): void {
  const rowsAt = tableEnd(original) - original.sections.length * SECTION_HEADER.size;
  const origin = new Map([...sections].map(([from, to]) => [to, from]));
  account.copy(0, rowsAt, "headers");
  for (const section of table) {
    const row = original.sections.indexOf(origin.get(section) ?? section);
    account.copy(rowsAt + row * SECTION_HEADER.size, SECTION_HEADER.size, "headers", "order");
  }
  const headersEnd = tableEnd(original);
  if (!steps.aligned) return account.copy(headersEnd, account.needed.length - headersEnd, "the rest of the file");
  account.copy(headersEnd, original.optional.sizeOfHeaders - headersEnd, "headers");
  account.zeros(sizeOfHeaders, "the header area", "headerArea");
  const stored = [...sections]
    .filter(([, { header }]) => header.sizeOfRawData !== 0)
    .sort(([, a], [, b]) => a.header.pointerToRawData - b.header.pointerToRawData);
  for (const [from, { header, data, name }] of stored) {
    const inSpan = header.virtualAddress < span.dataEnd;
    account.copy(from.header.pointerToRawData, data.length, name, inSpan ? "linear" : "behind");
    account.zeros(header.pointerToRawData + header.sizeOfRawData, name, inSpan ? "linear" : "behind");
  }
  if (account.end !== rawEnd) throw new ImageError("the original's sections cannot be laid out: they overlap");
  const { pointerToSymbolTable } = original.coff;
  account.copy(pointerToSymbolTable, original.symbols.length, "COFF symbols", "behind");
  account.copy(pointerToSymbolTable + original.symbols.length, original.strings.length, "COFF strings", "behind");
  account.zeros(account.needed.length, "the end of the file", "padding");
}

// ---- headers

/** As the PE specification spells it. */
export function spelled(field: string): string {
  return `${field[0]?.toUpperCase() ?? ""}${field.slice(1)}`;
}

function writeHeaders({ original, steps, span, reloc, sections, table, sizeOfHeaders, rawEnd, account }: Work): void {
  const coffAt = original.lfanew + SIGNATURE_SIZE;
  const optional = optionalAt(original);
  const field = (
    name: Parameters<typeof offsetOf<typeof OPTIONAL_HEADER.rows>>[1],
    value: number,
    why: Reason,
    size: 2 | 4 = 4,
  ): void =>
    account.writeNumber(optional + offsetOf(OPTIONAL_HEADER, name), size, value, {
      owner: "optional header",
      what: spelled(name),
      why,
    });
  if (steps.aligned) {
    const symbols = original.coff.pointerToSymbolTable === 0 ? 0 : rawEnd;
    account.writeNumber(coffAt + offsetOf(COFF_HEADER, "pointerToSymbolTable"), 4, symbols, {
      owner: "COFF header",
      what: "PointerToSymbolTable",
      why: "behind",
    });
    field("sizeOfCode", rawSize(table, CNT_CODE), "sums");
    field("sizeOfInitializedData", rawSize(table, CNT_INITIALIZED_DATA), "sums");
    field("fileAlignment", commonAlignment(table), "sums");
    field("sizeOfImage", neededImageSize(original, span), "imageSize");
    field("sizeOfHeaders", sizeOfHeaders, "headerArea");
  }
  if (steps.headers) field("dllCharacteristics", dllCharacteristics(original, table), "nxCompat", 2);
  const directory = (index: number, name: "virtualAddress" | "size", value: number, why: Reason): void =>
    account.writeNumber(
      optional + OPTIONAL_HEADER.size + index * DATA_DIRECTORY.size + offsetOf(DATA_DIRECTORY, name),
      4,
      value,
      {
        owner: `data directory ${index}`,
        what: spelled(name),
        why,
      },
    );
  if (steps.signatureDropped)
    for (const name of ["virtualAddress", "size"] as const) directory(DIRECTORY_CERTIFICATE, name, 0, "signature");
  if (steps.relocated === "moved")
    directory(
      DIRECTORY_BASE_RELOCATION,
      "virtualAddress",
      (sections.get(reloc) ?? reloc).header.virtualAddress,
      "moved",
    );
}

function neededImageSize(original: Image, span: Span): number {
  const strays = [...strayPlaces(original).values()].map(({ end }) => end);
  return roundUp(
    Math.max(original.optional.sizeOfImage, span.mappedEnd, ...strays),
    original.optional.sectionAlignment || 1,
  );
}

/** The fields of a section header that may change, in their order, with the reason. */
function writeSectionTable({ original, span, reloc, sections, table, account }: Work): void {
  const rowsAt = tableEnd(original) - original.sections.length * SECTION_HEADER.size;
  const origin = new Map([...sections].map(([from, to]) => [to, from]));
  table.forEach((section, row) => {
    const from = origin.get(section) ?? section;
    const raw: Reason = section.header.virtualAddress < span.dataEnd ? "linear" : "behind";
    const reasons: readonly (readonly [field: keyof SectionHeader, why: Reason])[] = [
      ["virtualSize", from === reloc && section.header.virtualSize < from.header.virtualSize ? "tableSize" : "grown"],
      ["virtualAddress", from === reloc ? "moved" : "stray"],
      ["sizeOfRawData", raw],
      ["pointerToRawData", raw],
      ["characteristics", "discardable"],
    ];
    for (const [field, why] of reasons) {
      const value = Number(section.header[field]);
      account.writeNumber(rowsAt + row * SECTION_HEADER.size + offsetOf(SECTION_HEADER, field), 4, value, {
        owner: `${section.name}'s header`,
        what: spelled(field),
        why,
      });
    }
  });
}

// ---- in the sections

function writePatches(work: Work): void {
  const { original, steps, span, reloc, sections, account } = work;
  if (!steps.headers && !steps.aligned && steps.relocated !== "moved") return;
  const memory = loadByFirmware(withStraysInPlace(original));
  const table = original.directories[DIRECTORY_BASE_RELOCATION] ?? { virtualAddress: 0, size: 0 };
  if (steps.aligned) {
    const comparison: Comparison = {
      original,
      result: original,
      span,
      pairs: sections,
      reloc,
      moved: steps.relocated === "moved",
    };
    for (const patch of debugPatches(comparison, memory)) writeDebugEntry(work, patch);
  }
  if (steps.relocated === "moved") {
    const distance = (sections.get(reloc) ?? reloc).header.virtualAddress - reloc.header.virtualAddress;
    const inFunction = functionAt(original);
    for (const patch of referencePatches(spanOf(original), table.virtualAddress, table.size, distance))
      writeReference(work, patch, table, inFunction);
  }
  if (!steps.headers) return;
  const entry = startSymbol(original) ?? span.first;
  const [first] = spanOf(original).sections;
  if (first === undefined) return;
  const header = headerChange(first, span, entry);
  writeMultiboot2(work, header, entry);
  const fixups = readFixups(relocationTable(original, memory));
  const targets = new Map(
    Array.from({ length: fixups.count }, (_, i) => [table.virtualAddress + (fixups.at[i] ?? 0), i]),
  );
  for (const patch of voidPatches(fixups, header.patch, table.virtualAddress)) {
    const i = targets.get(patch.start) ?? 0;
    const type = fixupWidth(fixups.types[i]) === 4 ? "HIGHLOW" : "DIR64";
    account.write(offsetInResult(work, patch), patch.bytes, {
      owner: "base relocation table",
      what: `entry for RVA ${hex(fixups.targets[i] ?? 0)}`,
      was: type,
      is: "ABSOLUTE",
      why: "voidFixup",
    });
  }
  const at = multiboot1Place(work.sizeOfHeaders);
  account.write(at, multiboot1Header(span, work.sizeOfHeaders, entry), {
    owner: "header area",
    what: "",
    was: "zeros",
    is: "Multiboot1 header with addresses",
    why: "multiboot1",
    details: [
      `header_addr ${hex(span.first - work.sizeOfHeaders + at)}, load_addr ${hex(span.first - work.sizeOfHeaders)}, load_end_addr ${hex(span.dataEnd)}, bss_end_addr ${hex(span.mappedEnd)}, entry_addr ${hex(entry)}`,
    ],
  });
}

/** Where the bytes of an RVA of the original are in the result. */
function offsetInResult({ original, sections }: Work, { start, cause }: Patch): number {
  const section = original.sections.find(
    ({ header, data }) => start >= header.virtualAddress && start < header.virtualAddress + data.length,
  );
  const now = section === undefined ? undefined : sections.get(section);
  if (section === undefined || now === undefined)
    throw new ImageError(`${cause} at RVA ${hex(start)} is in no section's data`);
  return now.header.pointerToRawData + start - section.header.virtualAddress;
}

function writeDebugEntry(work: Work, patch: Patch): void {
  // Only PointerToRawData, the last of an entry's fields, is another.
  const at = offsetInResult(work, patch) + patch.bytes.length - 4;
  const value = viewOf(patch.bytes).getUint32(patch.bytes.length - 4, true);
  work.account.writeNumber(at, 4, value, {
    owner: `debug directory entry at RVA ${hex(patch.start)}`,
    what: "PointerToRawData",
    why: "debugOffset",
  });
}

function writeReference(
  work: Work,
  patch: Patch,
  table: { virtualAddress: number; size: number },
  inFunction: (rva: number) => string,
): void {
  const at = offsetInResult(work, patch);
  const next = patch.start + 4;
  const [was, is] = [viewOf(work.account.needed).getInt32(at, true), viewOf(patch.bytes).getInt32(0, true)];
  const what = next + was === table.virtualAddress ? "__base_relocs_start" : "__base_relocs_end";
  work.account.write(at, patch.bytes, {
    owner: `code at RVA ${hex(patch.start - 3)}${inFunction(patch.start - 3)}`,
    what: `lea ${what}`,
    was: hex(next + was),
    is: hex(next + is),
    why: "reference",
  });
}

function functionAt(original: Image): (rva: number) => string {
  const symbols = [...definedSymbols(original)].filter((s) => !s.name.startsWith(".")).sort((a, b) => a.rva - b.rva);
  return (rva) => {
    const name = symbols.findLast((s) => s.rva <= rva)?.name;
    return name === undefined ? "" : ` in ${printable(name)}`;
  };
}

function writeMultiboot2(work: Work, { patch, rva, tags, dropped }: HeaderChange, entry: number): void {
  const { span, account } = work;
  account.write(offsetInResult(work, patch), patch.bytes, {
    owner: `${span.sections[0]?.name ?? ""} at RVA ${hex(patch.start)}`,
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

// ---- symbols

function renumberSymbols({ original, sections, table, rawEnd, steps, account }: Work): void {
  const numbers = [0, ...original.sections.map((section) => table.indexOf(sections.get(section) ?? section) + 1)];
  if (numbers.every((number, i) => number === i)) return;
  const [numberAt, auxAt] = [offsetOf(SYMBOL, "sectionNumber"), offsetOf(SYMBOL, "numberOfAuxSymbols")];
  const start = steps.aligned ? rawEnd : original.coff.pointerToSymbolTable;
  const { symbols } = original;
  const view = viewOf(symbols);
  for (let at = 0; at + SYMBOL.size <= symbols.length; at += SYMBOL.size * (1 + (symbols[at + auxAt] ?? 0))) {
    const number = view.getUint16(at + numberAt, true);
    const now = numbers[number] ?? number;
    if (now !== number)
      account.writeNumber(start + at + numberAt, 2, now, {
        owner: "COFF symbols",
        what: `SectionNumber of ${table[now - 1]?.name ?? "nothing"}`,
        why: "order",
        show: String,
      });
  }
}
