// SPDX-License-Identifier: GPL-2.0-only
// What a result has to be, worked out from the original and the rules of DESIGN.md alone: every header field, section
// header, place in the file and patch. verify demands it and explain prints it; the steps' own code is not asked.

import { ImageError } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { readStructure, writeStructure } from "../tables/fields.ts";
import * as pe from "../tables/pe.ts";
import { loadByFirmware, relocationTable } from "./loads.ts";
import { bytesIn, readFixups, segmentAt, type Fixup, type Fixups, type Memory, type Patch } from "./memory.ts";
import { MULTIBOOT1_ROOM, headerChange, type HeaderChange, type Span } from "./multiboot.ts";
import { byAddress, directoryOf, hasFlags, roundUp, sectionEnd, tableEnd, type Pe, type Section } from "./read.ts";
import { refusePointers, referencePatches } from "./references.ts";
import { VALUE_AT, definedSymbols, sectionNumbers, startSymbol } from "./symbols.ts";

/** Which steps a result has gone through since the original. */
export interface Steps {
  readonly relocated: "moved" | "kept" | undefined;
  readonly aligned: boolean;
  readonly headers: boolean;
  readonly signatureDropped: boolean;
}

/** What a section of the original has to become. */
export interface ExpectedSection extends Section {
  /** The original's. */
  readonly from: Section;
  /** Its RVA when the original is loaded; debug sections beyond SizeOfImage are where they have to be then. */
  readonly before: number;
}

/** The headers and the layout of a result. */
export interface ExpectedFile {
  readonly original: Pe;
  readonly steps: Steps;
  readonly span: Span;
  /** In the order of the new section table. */
  readonly sections: readonly ExpectedSection[];
  readonly reloc: ExpectedSection;
  readonly coff: pe.CoffHeader;
  /** CheckSum is the original's: it follows from the whole file. */
  readonly optional: pe.OptionalHeader;
  readonly directories: readonly pe.DataDirectory[];
  /** File offset behind the last section's raw data. */
  readonly rawEnd: number;
  /** Bytes of the file. */
  readonly size: number;
}

/** What a result has in its sections, but for what the original has there. */
export interface ExpectedMemory {
  /** The original as firmware loads it. */
  readonly memory: Memory;
  readonly fixups: Fixups;
  /** RVA of the 32-bit entry point. */
  readonly entry: number;
  /** Undefined without emit-header. */
  readonly header: HeaderChange | undefined;
  /** At RVAs of the original. */
  readonly patches: readonly Patch[];
}

// ---- headers and layout

/** @throws ImageError when the original does not tell what the steps must have made of it */
export function expectedFile(original: Pe, steps: Steps): ExpectedFile {
  const certificates = directoryOf(original, pe.DIRECTORY_CERTIFICATE);
  const inOrder = steps.relocated !== undefined || steps.aligned || steps.headers;
  refuseUnloaded(original);
  const relocated = relocatedSections(original, steps);
  const span = spanOf(relocated);
  const sizeOfHeaders = steps.aligned ? headerArea(original) : original.optional.sizeOfHeaders;
  const laidOut = steps.aligned ? alignedSections(byAddress(relocated), span, sizeOfHeaders) : relocated;
  const sections = inOrder ? byAddress(laidOut) : laidOut;
  const [reloc, second] = sections.filter((s) => s.name === ".reloc");
  if (reloc === undefined || second !== undefined)
    throw new ImageError(`it has ${reloc === undefined ? "no" : "more than one"} section .reloc, needed one`);
  const ends = sections.map(({ header: h }) => (h.sizeOfRawData === 0 ? 0 : h.pointerToRawData + h.sizeOfRawData));
  const rawEnd = ends.reduce((end, next) => Math.max(end, next), steps.aligned ? sizeOfHeaders : 0);
  const described =
    steps.signatureDropped && certificates.size !== 0 ? certificates.virtualAddress : original.bytes.length;
  return {
    original,
    steps,
    span,
    sections,
    reloc,
    coff:
      !steps.aligned || original.coff.pointerToSymbolTable === 0
        ? original.coff
        : { ...original.coff, pointerToSymbolTable: rawEnd },
    optional: expectedOptional(original, steps, sections, span, sizeOfHeaders),
    directories: original.directories.map((directory, i) => {
      if (i === pe.DIRECTORY_BASE_RELOCATION && steps.relocated === "moved")
        return { ...directory, virtualAddress: reloc.header.virtualAddress };
      return i === pe.DIRECTORY_CERTIFICATE && steps.signatureDropped ? { virtualAddress: 0, size: 0 } : directory;
    }),
    rawEnd,
    size: steps.aligned ? roundUp(rawEnd + original.symbols.length + original.strings.length, 8) : described,
  };
}

function relocatedSections(original: Pe, { relocated, aligned }: Steps): ExpectedSection[] {
  const table = directoryOf(original, pe.DIRECTORY_BASE_RELOCATION);
  const strays = strayPlaces(original);
  return original.sections.map((from) => {
    const before = strays.get(from) ?? from.header.virtualAddress;
    const header: pe.SectionHeader = { ...from.header };
    if (aligned) header.virtualAddress = before;
    if (from.name !== ".reloc" || relocated === undefined) return { ...from, from, before, header };
    header.characteristics = (header.characteristics & ~pe.MEM_DISCARDABLE) >>> 0;
    if (relocated === "kept") return { ...from, from, before, header };
    header.virtualAddress = newTableAddress(original, from);
    header.virtualSize = table.size;
    return { ...from, from, before, header, data: from.data.subarray(0, table.size) };
  });
}

/** The last pages ahead of __init_end, which is where the section behind the last .init section begins. */
function newTableAddress(original: Pe, reloc: Section): number {
  const sections = byAddress(original.sections);
  const next = sections[sections.findLastIndex((s) => /^\.init(\.|$)/.test(s.name)) + 1];
  const address = (next?.header.virtualAddress ?? 0) - roundUp(reloc.header.virtualSize, pe.PAGE_SIZE);
  if (address < 0) throw new ImageError("it has no place for the base relocation table below __init_end");
  return address;
}

/**
 * Where debug sections beyond SizeOfImage go: behind everything, in RVA order, on pages. Old GNU ld puts DWARF there that
 * its script does not know, and firmware then refuses the image.
 */
function strayPlaces({ sections, optional }: Pe): Map<Section, number> {
  const places = new Map<Section, number>();
  let end = optional.sizeOfImage;
  for (const section of byAddress(sections)) {
    if (!section.name.startsWith(".debug_") || sectionEnd(section) <= optional.sizeOfImage) continue;
    const start = roundUp(end, pe.PAGE_SIZE);
    places.set(section, start);
    end = start + section.header.virtualSize;
  }
  return places;
}

/** @throws ImageError when there is no such thing */
function spanOf(sections: readonly Section[]): Span {
  const [bss, second] = sections.filter((s) => s.name === ".bss");
  if (bss === undefined || second !== undefined)
    throw new ImageError(`it has ${bss === undefined ? "no" : "more than one"} section .bss, needed one`);
  const below = byAddress(sections.filter((s) => s.header.virtualAddress < bss.header.virtualAddress));
  // Uninitialised sections directly below .bss are zeroed along with it.
  const last = below.findLast((s) => !hasFlags(s, pe.CNT_UNINITIALIZED_DATA));
  const first = below[0]?.header.virtualAddress;
  if (first === undefined || last === undefined) throw new ImageError("it has no initialised section below .bss");
  if (first % pe.SIZE_2M !== 0)
    throw new ImageError(`its first section is at RVA ${hex(first)}, needed a multiple of ${hex(pe.SIZE_2M)}`);
  const bssEnd = sectionEnd(bss);
  return { first, dataEnd: sectionEnd(last), bssEnd, mappedEnd: roundUp(bssEnd, pe.SIZE_2M) };
}

/** Behind .bss may be what others added, which has no symbols, and what Xen does not read; Multiboot does not load it. */
function refuseUnloaded(original: Pe): void {
  const bss = original.sections.find((s) => s.name === ".bss")?.header.virtualAddress ?? Infinity;
  const unloaded = original.sections.filter((s) => s.header.virtualAddress >= bss && s.data.length !== 0);
  const used = unloaded.filter((s) => !/^\.(reloc$|debug_)/.test(s.name) && !hasFlags(s, pe.MEM_DISCARDABLE));
  if (used.length === 0) return;
  // A section's own symbol has its name, which old GNU ld cuts in the header.
  const named = new Set<Section>();
  for (const { name, section } of definedSymbols(original)) if (!name.startsWith(section.name)) named.add(section);
  for (const section of used) {
    const isXens =
      /^\.((text|rodata|data|init|exit|bss|buildid)(\.|$)|altinst|ex_tabl|bug_fra)/.test(section.name) ||
      named.has(section);
    if (isXens) {
      const where = `at RVA ${hex(section.header.virtualAddress)}`;
      throw new ImageError(`its section ${section.name} is ${where}, needed below .bss, where Multiboot loads it`);
    }
  }
}

/** Room for 16 more section headers and the Multiboot1 header, in whole pages. */
function headerArea(original: Pe): number {
  const used = tableEnd(original) + 16 * pe.SECTION_HEADER.size + MULTIBOOT1_ROOM;
  return roundUp(Math.max(original.optional.sizeOfHeaders, used), pe.PAGE_SIZE);
}

/**
 * File offset = RVA - constant over the span; what is not loaded by Multiboot follows without a gap.
 * @param sections in RVA order
 */
function alignedSections(sections: readonly ExpectedSection[], span: Span, sizeOfHeaders: number): ExpectedSection[] {
  let end = sizeOfHeaders;
  return sections.map((section, i) => {
    // COFF relocations and line numbers point into the original file.
    const header: pe.SectionHeader = { ...section.header, pointerToRelocations: 0, pointerToLinenumbers: 0 };
    const { virtualAddress, virtualSize } = header;
    if (virtualAddress < span.dataEnd) {
      const next = sections[i + 1]?.header.virtualAddress ?? span.dataEnd;
      const isLast = next >= span.dataEnd;
      header.pointerToRawData = virtualAddress - span.first + sizeOfHeaders;
      header.sizeOfRawData = isLast ? roundUp(virtualSize, 512) : next - virtualAddress;
      // GRUB 2.14's PE loader refuses more raw data than memory in pages (peimage.c), so there memory grows along.
      if (!isLast && header.sizeOfRawData > roundUp(virtualSize, pe.PAGE_SIZE))
        header.virtualSize = header.sizeOfRawData;
    } else {
      header.sizeOfRawData = roundUp(section.data.length, 512);
      header.pointerToRawData = header.sizeOfRawData === 0 ? 0 : end;
    }
    if (header.sizeOfRawData !== 0) end = header.pointerToRawData + header.sizeOfRawData;
    return { ...section, header };
  });
}

function expectedOptional(
  { optional }: Pe,
  { aligned, headers }: Steps,
  sections: readonly ExpectedSection[],
  span: Span,
  sizeOfHeaders: number,
): pe.OptionalHeader {
  const expected: pe.OptionalHeader = { ...optional };
  if (headers) expected.dllCharacteristics = dllCharacteristics(optional, sections);
  if (!aligned) return expected;
  const strayEnds = sections.filter((s) => s.before !== s.from.header.virtualAddress).map(sectionEnd);
  const end = strayEnds.reduce((a, b) => Math.max(a, b), Math.max(optional.sizeOfImage, span.mappedEnd));
  return {
    ...expected,
    sizeOfCode: rawSize(sections, pe.CNT_CODE),
    sizeOfInitializedData: rawSize(sections, pe.CNT_INITIALIZED_DATA),
    fileAlignment: commonAlignment(sections),
    sizeOfImage: roundUp(end, optional.sectionAlignment || 1),
    sizeOfHeaders,
  };
}

function rawSize(sections: readonly Section[], flag: number): number {
  const counted = sections.filter((s) => hasFlags(s, flag) && !hasFlags(s, pe.MEM_DISCARDABLE));
  return counted.reduce((sum, { header }) => sum + header.sizeOfRawData, 0);
}

/** The largest power of two, at most 512, that divides every raw pointer and raw size. */
function commonAlignment(sections: readonly Section[]): number {
  let bits = 512;
  for (const { header } of sections)
    if (header.sizeOfRawData !== 0) bits |= header.pointerToRawData | header.sizeOfRawData;
  return bits & -bits;
}

/** NX_COMPAT stays only where it is true: loaders that believe it refuse the image otherwise (GRUB 2.14 peimage.c). */
function dllCharacteristics({ dllCharacteristics }: pe.OptionalHeader, sections: readonly Section[]): number {
  const untrue = sections.some(
    (s) => s.header.virtualAddress % pe.PAGE_SIZE !== 0 || (hasFlags(s, pe.MEM_WRITE) && hasFlags(s, pe.MEM_EXECUTE)),
  );
  return untrue ? dllCharacteristics & ~pe.NX_COMPAT : dllCharacteristics;
}

// ---- memory

/** @throws ImageError when the original cannot be loaded, or does not tell what must have become of it */
export function expectedMemory(file: ExpectedFile): ExpectedMemory {
  const { original, steps, span, sections, reloc } = file;
  // With debug sections beyond SizeOfImage where the result has them: as it is, no firmware loads it.
  const placed = sections.map(({ from, before }) => ({ ...from, header: { ...from.header, virtualAddress: before } }));
  const memory = loadByFirmware({ ...original, sections: placed });
  const fixups = readFixups(relocationTable(original, memory));
  const entry = startSymbol(original) ?? span.first;
  const table = directoryOf(original, pe.DIRECTORY_BASE_RELOCATION);
  const [first] = byAddress(sections);
  const header = steps.headers && first !== undefined ? headerChange(first.from, span, entry) : undefined;
  const patches: Patch[] = [];
  if (header !== undefined) {
    refuseDebugDirectoryIn(original, header.patch);
    patches.push(header.patch, ...voidPatches(fixups, header, table.virtualAddress));
  }
  if (steps.aligned) patches.push(...debugPatches(file, memory));
  if (steps.relocated === "moved") {
    const loaded = sections.filter((s) => s !== reloc && s.header.virtualAddress < span.dataEnd).map((s) => s.from);
    patches.push(...referencePatches(byAddress(loaded), table, reloc.header.virtualAddress - reloc.before));
    refusePointers(memory, fixups, original.optional.imageBase, table);
  }
  return { memory, fixups, entry, header, patches };
}

/** Whether a base relocation's target is in the rewritten header: firmware must not change what is there now. */
export function isVoid({ target, width }: Fixup, header: HeaderChange | undefined): boolean {
  if (header === undefined || width === 0) return false;
  const { start, bytes } = header.patch;
  return target + width > start && target < start + bytes.length;
}

function voidPatches(fixups: Fixups, header: HeaderChange, table: number): Patch[] {
  const patches: Patch[] = [];
  for (const fixup of fixups)
    if (isVoid(fixup, header))
      patches.push({ cause: "a void base relocation", start: table + fixup.at, bytes: new Uint8Array(2), fixup });
  return patches;
}

/** Finds the section that has an RVA of the original in it. */
export function holders({ sections }: ExpectedFile, memory: Memory): (rva: number) => ExpectedSection | undefined {
  const byStart = new Map(sections.filter((s) => s.from.header.virtualSize !== 0).map((s) => [s.before, s]));
  return (rva) => byStart.get(segmentAt(memory, rva)?.start ?? -1);
}

/** File offsets in debug directory entries follow the data, which each entry's AddressOfRawData tells. */
function debugPatches(file: ExpectedFile, memory: Memory): Patch[] {
  const { original } = file;
  const { virtualAddress, size } = directoryOf(original, pe.DIRECTORY_DEBUG);
  if (size === 0) return [];
  const directory = bytesIn(memory, virtualAddress, virtualAddress + size, "its debug directory");
  const holderOf = holders(file, memory);
  const patches: Patch[] = [];
  for (let at = 0; at + pe.DEBUG_DIRECTORY_ENTRY.size <= size; at += pe.DEBUG_DIRECTORY_ENTRY.size) {
    const entry = readStructure(pe.DEBUG_DIRECTORY_ENTRY, directory, at);
    if (entry.pointerToRawData === 0) continue;
    const rva = entry.addressOfRawData;
    const holder = holderOf(rva);
    if (holder === undefined)
      throw new ImageError(
        `its debug directory entry at RVA ${hex(virtualAddress + at)} is for data at RVA ${hex(rva)}, which is in no section`,
      );
    const bytes = new Uint8Array(pe.DEBUG_DIRECTORY_ENTRY.size);
    const pointerToRawData = holder.header.pointerToRawData + rva - holder.before;
    writeStructure(pe.DEBUG_DIRECTORY_ENTRY, { ...entry, pointerToRawData }, bytes, 0);
    patches.push({ cause: "the debug directory", start: virtualAddress + at, bytes });
  }
  return patches;
}

/** One that is written over is lost, whatever its entries look like afterwards. */
function refuseDebugDirectoryIn(original: Pe, { start, bytes }: Patch): void {
  const { virtualAddress, size } = directoryOf(original, pe.DIRECTORY_DEBUG);
  const [end, headerEnd] = [virtualAddress + size, start + bytes.length];
  if (size !== 0 && virtualAddress < headerEnd && start < end)
    throw new ImageError(
      `the debug directory is at ${range(virtualAddress, end)}, needed outside ${range(start, headerEnd)}, the Multiboot2 header`,
    );
}

/** For each section number of the original its number in the result; 0 stands for no section. */
export function newSectionNumbers({ original, sections }: ExpectedFile): number[] {
  const numbers = new Map(sections.map(({ from }, i) => [from, i + 1]));
  return [0, ...original.sections.map((section) => numbers.get(section) ?? 0)];
}

/**
 * Symbols that .reloc has beyond its table name something else, the end of the image say, and stay where they are when
 * the section moves.
 * @returns where in the COFF symbol table the value is, and what it has to be
 */
export function* newSymbolValues({ original, steps, reloc }: ExpectedFile): Generator<{ at: number; value: number }> {
  if (steps.relocated !== "moved") return;
  const number = original.sections.indexOf(reloc.from) + 1;
  for (const symbol of sectionNumbers(original.symbols)) {
    if (symbol.number !== number) continue;
    const { value } = readStructure(pe.SYMBOL, original.symbols, symbol.record);
    if (value > reloc.header.virtualSize)
      yield { at: symbol.record + VALUE_AT, value: value + reloc.before - reloc.header.virtualAddress };
  }
}
