// SPDX-License-Identifier: GPL-2.0-only
// PE images: bytes to Image, Image to bytes, and questions about an Image. The structures are in pe/tables.ts, which
// whoever imports this file gets along. No input or output, no transform.
//
// A reader checks only what is needed to find everything; `checkSections` holds what every transform needs besides, so
// that inspect can still show an image that no transform takes.

import { Buffer } from "node:buffer";
import { hex, printable, range } from "../cli/numbers.ts";
import { ImageError } from "../cli/errors.ts";
import { imageCheckSum } from "./checksum.ts";
import { offsetOf, readStructure, viewOf, writeStructure } from "../tables/fields.ts";
import {
  ADDRESS_SPACE,
  COFF_HEADER,
  DATA_DIRECTORY,
  DIRECTORY_CERTIFICATE,
  DOS_HEADER_SIZE,
  DOS_MAGIC,
  LFANEW_AT,
  MACHINE_AMD64,
  MAX_DIRECTORIES,
  OPTIONAL_HEADER,
  PE32PLUS_MAGIC,
  PE_SIGNATURE,
  SECTION_HEADER,
  SIGNATURE_SIZE,
  SYMBOL,
} from "../tables/pe.ts";
import type { CoffHeader, DataDirectory, OptionalHeader, SectionHeader } from "../tables/pe.ts";

export interface Section {
  /** The name after "/N" was resolved through the string table. */
  readonly name: string;
  readonly header: SectionHeader;
  /** The section's data: its first min(VirtualSize, SizeOfRawData) raw bytes. The rest is padding. */
  readonly data: Uint8Array;
}

export interface Image {
  /** File offset of the PE signature (e_lfanew). */
  readonly lfanew: number;
  readonly coff: CoffHeader;
  readonly optional: OptionalHeader;
  readonly directories: readonly DataDirectory[];
  /** In the order of the section table. */
  readonly sections: readonly Section[];
  /** COFF symbol records; empty without a symbol table. */
  readonly symbols: Uint8Array;
  /** COFF string table with its four bytes of length; empty where the file has none. */
  readonly strings: Uint8Array;
  /** Bytes of the whole file. */
  readonly fileSize: number;
  /** What the file holds where nothing above says otherwise (stub, gaps, padding); past its end there are zeros. */
  readonly background: Uint8Array;
}

// ---- numbers

/** The least multiple of `unit` that is not below `value`. Not done with bit operations: those are 32 bits wide and signed. */
export function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}

// ---- sections

/** The RVA behind a section: VirtualAddress + VirtualSize. */
export function sectionEnd({ header }: Section): number {
  return header.virtualAddress + header.virtualSize;
}

/** Sections in RVA order; those of the same RVA stay in the table's order. */
export function byAddress(sections: readonly Section[]): Section[] {
  return [...sections].sort((a, b) => a.header.virtualAddress - b.header.virtualAddress);
}

/** Whether any of the flags is set; bit operations on 32 flags would come out negative. */
export function hasFlags(section: Section, flags: number): boolean {
  return (section.header.characteristics & flags) !== 0;
}

/** The section with these header fields (and perhaps other data) instead of its own. */
export function withHeader(section: Section, fields: Partial<SectionHeader>, data = section.data): Section {
  return { ...section, header: { ...section.header, ...fields }, data };
}

/**
 * The section that an RVA lies in, through [VirtualAddress, VirtualAddress + VirtualSize) only: raw padding may reach
 * over the next section. Of sections that overlap, the first in the table.
 */
export function sectionAt(image: Image, rva: number): Section | undefined {
  const inside = (section: Section): boolean => rva >= section.header.virtualAddress && rva < sectionEnd(section);
  const ordered = disjointSections(image.sections);
  if (ordered === undefined) return image.sections.find(inside);
  let from = 0;
  let to = ordered.length;
  while (from < to) {
    const middle = (from + to) >>> 1;
    const section = ordered[middle];
    if (section !== undefined && sectionEnd(section) <= rva) from = middle + 1;
    else to = middle;
  }
  const candidate = ordered[from];
  return candidate !== undefined && inside(candidate) ? candidate : undefined;
}

/** Kept because it is asked for each of thousands of base relocations, and a table may hold 65535 sections. */
const disjoint = new WeakMap<readonly Section[], Section[] | undefined>();

/** The sections with memory in RVA order; undefined when any of them overlap. */
function disjointSections(sections: readonly Section[]): Section[] | undefined {
  if (!disjoint.has(sections)) {
    const ordered = byAddress(sections).filter((s) => s.header.virtualSize !== 0);
    const overlap = ordered.some(
      (section, i) => section.header.virtualAddress < sectionEnd(ordered[i - 1] ?? section) && i > 0,
    );
    disjoint.set(sections, overlap ? undefined : ordered);
  }
  return disjoint.get(sections);
}

/**
 * The bytes of a memory range.
 * @param what names the range in the error
 * @throws ImageError when the range is not inside one section's data
 */
export function dataAt(image: Image, rva: number, size: number, what: string): Uint8Array {
  const section = sectionAt(image, rva);
  const start = rva - (section?.header.virtualAddress ?? 0);
  if (section === undefined || start + size > section.data.length) {
    throw new ImageError(`Cannot read ${what}: ${range(rva, rva + size)} is not inside one section's data`);
  }
  return section.data.subarray(start, start + size);
}

// ---- symbols

export interface Symbol {
  readonly name: string;
  /** RVA, for a symbol that is defined in a section. */
  readonly rva: number;
  /** Table index of the section, from 0. */
  readonly section: number;
  readonly external: boolean;
}

const STORAGE_CLASS_EXTERNAL = 2;

/** The COFF symbols that are defined in a section: undefined, absolute and debugging symbols are left out. */
export function definedSymbols(image: Image): Symbol[] {
  const { symbols } = image;
  const view = viewOf(symbols);
  const found: Symbol[] = [];
  for (let at = 0; at < symbols.length; at = nextSymbol(symbols, at)) {
    const symbol = definedSymbol(image, view, at);
    if (symbol !== undefined) found.push(symbol);
  }
  return found;
}

/**
 * Those of these names. Making strings of thousands of other names would take most of a step's time: first those are
 * chosen that may have one of them, by the name's place in the string table or by its first bytes.
 */
export function symbolsNamed(image: Image, ...names: readonly string[]): Symbol[] {
  const { symbols, strings } = image;
  const view = viewOf(symbols);
  const places = new Set(names.flatMap((name) => placesOf(`${name}\0`, strings)));
  const starts = new Set(names.map((name) => viewOf(Buffer.from(`${name}\0\0\0`, "latin1")).getUint32(0, true)));
  return symbolsThat(symbols, (at) => {
    const offset = longNameAt(view, at);
    return offset === undefined ? starts.has(view.getUint32(at, true)) : places.has(offset);
  })
    .flatMap((at) => definedSymbol(image, view, at) ?? [])
    .filter(({ name }) => names.includes(name));
}

/** The byte offsets of some symbol records. A loop of its own: what else its function does would be compiled with it. */
function symbolsThat(symbols: Uint8Array, isOne: (at: number) => boolean): number[] {
  const found: number[] = [];
  for (let at = 0; at < symbols.length; at = nextSymbol(symbols, at)) if (isOne(at)) found.push(at);
  return found;
}

/** All offsets of a text in the string table. */
function placesOf(text: string, { buffer, byteOffset, byteLength }: Uint8Array): number[] {
  const strings = Buffer.from(buffer, byteOffset, byteLength);
  const places: number[] = [];
  for (let at = strings.indexOf(text, 0, "latin1"); at >= 0; at = strings.indexOf(text, at + 1, "latin1"))
    places.push(at);
  return places;
}

function definedSymbol(image: Image, view: DataView, at: number): Symbol | undefined {
  const number = view.getUint16(at + SYMBOL_SECTION_AT, true) - 1;
  const section = image.sections[number];
  if (section === undefined) return undefined;
  return {
    name: symbolName(image, view, at),
    rva: section.header.virtualAddress + view.getUint32(at + SYMBOL_VALUE_AT, true),
    section: number,
    external: image.symbols[at + SYMBOL_CLASS_AT] === STORAGE_CLASS_EXTERNAL,
  };
}

/** The name of the nearest symbol at or below an RVA of a section, section symbols (".text") aside. */
export function symbolBelow(image: Image, section: Section, rva: number): string | undefined {
  const { symbols } = image;
  const view = viewOf(symbols);
  const number = image.sections.indexOf(section) + 1;
  let [nearest, best] = [-1, 0];
  for (let at = 0; at < symbols.length; at = nextSymbol(symbols, at)) {
    if (view.getUint16(at + SYMBOL_SECTION_AT, true) !== number) continue;
    const value = section.header.virtualAddress + view.getUint32(at + SYMBOL_VALUE_AT, true);
    if (value <= rva && value >= best && !symbolName(image, view, at).startsWith(".")) [nearest, best] = [at, value];
  }
  return nearest < 0 ? undefined : symbolName(image, view, nearest);
}

/** A name of more than eight characters is four zero bytes and an offset into the string table. */
function longNameAt(symbols: DataView, at: number): number | undefined {
  return symbols.getUint32(at, true) === 0 ? symbols.getUint32(at + 4, true) : undefined;
}

function symbolName({ symbols, strings }: Image, view: DataView, at: number): string {
  const offset = longNameAt(view, at);
  return offset === undefined ? upToNul(latin1(symbols.subarray(at, at + 8))) : (stringAt(strings, offset) ?? "");
}

// Read field by field: whole records would take most of a step's time.
const SYMBOL_VALUE_AT = offsetOf(SYMBOL, "value");
const SYMBOL_SECTION_AT = offsetOf(SYMBOL, "sectionNumber");
const SYMBOL_CLASS_AT = offsetOf(SYMBOL, "storageClass");
const SYMBOL_AUX_AT = offsetOf(SYMBOL, "numberOfAuxSymbols");

/** The byte offset of the next symbol record: auxiliary records belong to the one before them. */
function nextSymbol(symbols: Uint8Array, at: number): number {
  return at + SYMBOL.size * (1 + (symbols[at + SYMBOL_AUX_AT] ?? 0));
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
}

/** Longer names than any compiler makes are not names: a corrupt table must not be searched to its end for each of them. */
const MAX_NAME = 4096;

/** A string of the COFF string table; undefined when the offset is not inside it or nothing ends the string. */
function stringAt(strings: Uint8Array, offset: number): string | undefined {
  if (offset < 4 || offset >= strings.length) return undefined;
  const text = strings.subarray(offset, offset + MAX_NAME);
  const end = text.indexOf(0);
  return end < 0 ? undefined : latin1(text.subarray(0, end));
}

function upToNul(text: string): string {
  const end = text.indexOf("\0");
  return end < 0 ? text : text.slice(0, end);
}

// ---- bytes to Image

/**
 * Reads a PE32+ image for x86-64. The Image shares memory with `input`, which must not be changed afterwards.
 * @throws ImageError when it is not one, or when anything it points to is not inside the file
 */
export function parseImage(input: Uint8Array): Image {
  // A Buffer's slice() shares its memory, a plain Uint8Array's copies: transforms copy what they change by it.
  const bytes = new Uint8Array(input.buffer, input.byteOffset, input.byteLength);
  const lfanew = findPeHeader(bytes);
  const coff = readStructure(COFF_HEADER, bytes, lfanew + SIGNATURE_SIZE);
  if (coff.machine !== MACHINE_AMD64) refuse("its machine", hex(coff.machine), `${hex(MACHINE_AMD64)} (x86-64)`);
  const optionalAt = lfanew + SIGNATURE_SIZE + COFF_HEADER.size;
  requireInside(bytes, optionalAt, OPTIONAL_HEADER.size, "the optional header");
  const optional = readStructure(OPTIONAL_HEADER, bytes, optionalAt);
  if (optional.magic !== PE32PLUS_MAGIC)
    refuse("the optional header's magic", hex(optional.magic), `${hex(PE32PLUS_MAGIC)} (PE32+)`);
  const directories = readDirectories(bytes, optionalAt, coff, optional);
  const { symbols, strings } = readSymbolTable(bytes, coff);
  const sections = readSections(bytes, optionalAt + coff.sizeOfOptionalHeader, coff, optional, strings);
  return { lfanew, coff, optional, directories, sections, symbols, strings, fileSize: bytes.length, background: bytes };
}

function findPeHeader(bytes: Uint8Array): number {
  const view = viewOf(bytes);
  if (bytes.length < 2 || view.getUint16(0, true) !== DOS_MAGIC)
    refuse("offset 0", firstBytes(bytes, 0), `"MZ": not a PE image`);
  requireInside(bytes, 0, DOS_HEADER_SIZE, "the MS-DOS header");
  const lfanew = view.getUint32(LFANEW_AT, true);
  if (lfanew < DOS_HEADER_SIZE) refuse(`e_lfanew`, hex(lfanew), `at least ${hex(DOS_HEADER_SIZE)}`);
  requireInside(bytes, lfanew, SIGNATURE_SIZE + COFF_HEADER.size, "the PE header");
  if (view.getUint32(lfanew, true) !== PE_SIGNATURE)
    refuse(`offset ${hex(lfanew)}`, firstBytes(bytes, lfanew), `"PE\\0\\0"`);
  return lfanew;
}

/** EDK2 (BasePeCoff.c:PeCoffLoaderGetPeHeader) and shim want exactly this many bytes of optional header. */
function readDirectories(
  bytes: Uint8Array,
  optionalAt: number,
  coff: CoffHeader,
  optional: OptionalHeader,
): DataDirectory[] {
  const count = optional.numberOfRvaAndSizes;
  if (count > MAX_DIRECTORIES) refuse("NumberOfRvaAndSizes", String(count), `at most ${MAX_DIRECTORIES}`);
  const size = OPTIONAL_HEADER.size + count * DATA_DIRECTORY.size;
  if (coff.sizeOfOptionalHeader !== size) {
    refuse("SizeOfOptionalHeader", hex(coff.sizeOfOptionalHeader), `${hex(size)} for ${count} data directories`);
  }
  requireInside(bytes, optionalAt, size, "the data directories");
  return Array.from({ length: count }, (_, i) =>
    readStructure(DATA_DIRECTORY, bytes, optionalAt + OPTIONAL_HEADER.size + i * DATA_DIRECTORY.size),
  );
}

function readSymbolTable(bytes: Uint8Array, coff: CoffHeader): { symbols: Uint8Array; strings: Uint8Array } {
  const start = coff.pointerToSymbolTable;
  const none = bytes.subarray(0, 0);
  if (start === 0) {
    if (coff.numberOfSymbols !== 0)
      refuse("PointerToSymbolTable", "0", `an offset for NumberOfSymbols ${coff.numberOfSymbols}`);
    return { symbols: none, strings: none };
  }
  const size = coff.numberOfSymbols * SYMBOL.size;
  requireInside(bytes, start, size, "the COFF symbol table");
  const stringsAt = start + size;
  // Without strings, some tools leave the table out or give it a size of 0: then it is what is there of its length.
  const stringsSize = stringsAt + 4 > bytes.length ? 0 : Math.max(4, viewOf(bytes).getUint32(stringsAt, true));
  requireInside(bytes, stringsAt, stringsSize, "the COFF string table");
  const symbols = bytes.subarray(start, stringsAt);
  requireNames(symbols, stringsAt, stringsSize);
  return { symbols, strings: bytes.subarray(stringsAt, stringsAt + stringsSize) };
}

/** A file that was cut off in its string table shows it by names that lead behind its end. */
function requireNames(symbols: Uint8Array, stringsAt: number, stringsSize: number): void {
  const view = viewOf(symbols);
  for (let at = 0; at < symbols.length; at = nextSymbol(symbols, at)) {
    const offset = view.getUint32(at + 4, true);
    if (view.getUint32(at, true) === 0 && offset !== 0 && offset >= stringsSize) {
      refuse(
        "a COFF symbol's name",
        `at ${hex(stringsAt + offset)}`,
        `inside the string table ${range(stringsAt, stringsAt + stringsSize)}`,
      );
    }
  }
}

function readSections(
  bytes: Uint8Array,
  tableAt: number,
  coff: CoffHeader,
  optional: OptionalHeader,
  strings: Uint8Array,
): Section[] {
  const tableSize = coff.numberOfSections * SECTION_HEADER.size;
  requireInside(bytes, tableAt, tableSize, "the section table");
  requireInside(bytes, 0, optional.sizeOfHeaders, "SizeOfHeaders");
  if (optional.sizeOfHeaders < tableAt + tableSize) {
    refuse(
      "SizeOfHeaders",
      hex(optional.sizeOfHeaders),
      `at least ${hex(tableAt + tableSize)}, the end of the section table`,
    );
  }
  return Array.from({ length: coff.numberOfSections }, (_, i) => {
    const header = readStructure(SECTION_HEADER, bytes, tableAt + i * SECTION_HEADER.size);
    const name = sectionName(header.name, strings);
    if (coff.pointerToSymbolTable !== 0 && /^\/[0-9]/.test(name))
      refuse(`section ${i + 1}'s name`, name, "an offset inside the string table");
    if (header.sizeOfRawData !== 0) {
      requireInside(bytes, header.pointerToRawData, header.sizeOfRawData, `section ${name}'s raw data`);
    }
    const size = Math.min(header.virtualSize, header.sizeOfRawData);
    const start = size === 0 ? 0 : header.pointerToRawData;
    return { name, header, data: bytes.subarray(start, start + size) };
  });
}

/** "/N" is a decimal offset into the string table; one that leads nowhere (a stripped table) is shown as it stands. */
function sectionName(name: string, strings: Uint8Array): string {
  const short = upToNul(name);
  const offset = /^\/([0-9]+)$/.exec(short)?.[1];
  return printable((offset === undefined ? undefined : stringAt(strings, Number(offset))) ?? short);
}

function requireInside(bytes: Uint8Array, start: number, size: number, what: string): void {
  if (start + size > bytes.length) {
    throw new ImageError(
      `Cannot read the image: ${what} is at ${range(start, start + size)}, the file ends at ${hex(bytes.length)}`,
    );
  }
}

function refuse(where: string, found: string, needed: string): never {
  throw new ImageError(`Cannot read the image: ${where} is ${found}, needed ${needed}`);
}

function firstBytes(bytes: Uint8Array, at: number): string {
  const four = bytes.subarray(at, at + 4);
  return four.length === 0 ? "empty" : `${Buffer.from(four).toString("hex")} (hex)`;
}

// ---- what every transform needs

/**
 * Checks that sections can be moved about: nothing signed, nothing overlapping, in memory or in the file.
 * @param action what cannot be done otherwise, for the message ("align sections")
 * @throws ImageError
 */
export function checkSections(image: Image, action: string): void {
  const fail = (reason: string): never => {
    throw new ImageError(`Cannot ${action}: ${reason}`);
  };
  const certificates = image.directories[DIRECTORY_CERTIFICATE];
  if (certificates !== undefined && (certificates.size !== 0 || certificates.virtualAddress !== 0)) {
    const end = certificates.virtualAddress + certificates.size;
    fail(
      `the image is signed, its certificate table is at ${range(certificates.virtualAddress, end)}, needed an unsigned one; --strip-signature of relocate-reloc and mb-efi drops it`,
    );
  }
  for (const section of image.sections) {
    const { virtualAddress, virtualSize, sizeOfRawData, pointerToRawData } = section.header;
    const { sizeOfHeaders } = image.optional;
    if (sectionEnd(section) > ADDRESS_SPACE)
      fail(`section ${section.name} ends at ${hex(sectionEnd(section))}, needed at most ${hex(ADDRESS_SPACE)}`);
    if (virtualAddress < sizeOfHeaders)
      fail(
        `section ${section.name} is at RVA ${hex(virtualAddress)}, needed at least SizeOfHeaders ${hex(sizeOfHeaders)}`,
      );
    if (sizeOfRawData === 0) continue;
    if (virtualSize === 0)
      fail(
        `section ${section.name} has VirtualSize 0 and ${hex(sizeOfRawData)} bytes of raw data, which loaders read in different ways`,
      );
    if (pointerToRawData < sizeOfHeaders)
      fail(
        `section ${section.name}'s raw data is at ${hex(pointerToRawData)}, needed at least SizeOfHeaders ${hex(sizeOfHeaders)}`,
      );
  }
  const memory = image.sections
    .filter((s) => !isStrayDebug(image, s))
    .map((s) => ({
      what: `section ${s.name} in memory`,
      start: s.header.virtualAddress,
      end: sectionEnd(s),
    }));
  const file = image.sections.map((s) => ({
    what: `section ${s.name} in the file`,
    start: s.header.pointerToRawData,
    end: s.header.pointerToRawData + s.header.sizeOfRawData,
  }));
  const { pointerToSymbolTable } = image.coff;
  const tableEnd = pointerToSymbolTable + image.symbols.length + image.strings.length;
  if (tableEnd > pointerToSymbolTable && pointerToSymbolTable < image.optional.sizeOfHeaders) {
    fail(
      `the COFF symbol table is at ${hex(pointerToSymbolTable)}, needed at least SizeOfHeaders ${hex(image.optional.sizeOfHeaders)}`,
    );
  }
  for (const ranges of [
    // An empty section inside another one would cut that one's data short where the layout goes by RVAs.
    memory,
    [...file, { what: "the COFF symbol table", start: pointerToSymbolTable, end: tableEnd }].filter(
      (r) => r.end > r.start,
    ),
  ]) {
    const clash = firstOverlap(ranges);
    if (clash !== undefined) {
      const [a, b] = clash;
      fail(`${a.what} ${range(a.start, a.end)} and ${b.what} ${range(b.start, b.end)} overlap`);
    }
  }
}

/**
 * Whether this is a debug section that ends beyond SizeOfImage. Old GNU ld puts one that its script does not know there
 * (.debug_str_offsets of clang builds, at 0xc0000000), and firmware then refuses the whole image, silently.
 */
export function isStrayDebug(image: Image, section: Section): boolean {
  return section.name.startsWith(".debug_") && sectionEnd(section) > image.optional.sizeOfImage;
}

interface Extent {
  readonly start: number;
  readonly end: number;
}

function firstOverlap<E extends Extent>(ranges: readonly E[]): [E, E] | undefined {
  const sorted = [...ranges].sort((a, b) => a.start - b.start);
  for (let i = 1; i < sorted.length; i++) {
    const [a, b] = [sorted[i - 1], sorted[i]];
    if (a !== undefined && b !== undefined && b.start < a.end) return [a, b];
  }
  return undefined;
}

// ---- Image to bytes

/**
 * The image with its section table in RVA order, which every transform writes (signers and loaders that copy raw padding
 * rely on it). COFF symbols name their section by its place in the table, so they are renumbered along.
 */
export function sortSectionTable(image: Image): Image {
  const sections = byAddress(image.sections);
  if (sections.every((section, i) => section === image.sections[i])) return image;
  const place = new Map(sections.map((section, i) => [section, i]));
  const newNumber = image.sections.map((section) => (place.get(section) ?? 0) + 1);
  const symbols = image.symbols.slice();
  const view = viewOf(symbols);
  for (let at = 0; at < symbols.length; at = nextSymbol(symbols, at)) {
    const number = newNumber[view.getUint16(at + SYMBOL_SECTION_AT, true) - 1];
    if (number !== undefined) view.setUint16(at + SYMBOL_SECTION_AT, number, true);
  }
  return { ...image, sections, symbols };
}

/** The file offset behind the section table. */
export function sectionTableEnd(image: Image): number {
  return sectionTableAt(image) + image.sections.length * SECTION_HEADER.size;
}

function sectionTableAt(image: Image): number {
  return optionalHeaderAt(image) + OPTIONAL_HEADER.size + image.directories.length * DATA_DIRECTORY.size;
}

function optionalHeaderAt({ lfanew }: Image): number {
  return lfanew + SIGNATURE_SIZE + COFF_HEADER.size;
}

/** The file that an Image describes, with its CheckSum computed anew. Computes no offset and no size: the Image has them. */
export function serializeImage(image: Image): Uint8Array {
  const bytes = new Uint8Array(image.fileSize);
  bytes.set(image.background.subarray(0, bytes.length));
  writeHeaders(image, bytes);
  for (const { data, header } of image.sections) if (data.length !== 0) bytes.set(data, header.pointerToRawData);
  const symbolsAt = image.coff.pointerToSymbolTable;
  if (symbolsAt !== 0) {
    bytes.set(image.symbols, symbolsAt);
    bytes.set(image.strings, symbolsAt + image.symbols.length);
  }
  const checkSumAt = optionalHeaderAt(image) + offsetOf(OPTIONAL_HEADER, "checkSum");
  viewOf(bytes).setUint32(checkSumAt, imageCheckSum(bytes, checkSumAt), true);
  return bytes;
}

function writeHeaders(image: Image, bytes: Uint8Array): void {
  viewOf(bytes).setUint32(LFANEW_AT, image.lfanew, true);
  const optionalAt = optionalHeaderAt(image);
  writeStructure(COFF_HEADER, image.coff, bytes, image.lfanew + SIGNATURE_SIZE);
  writeStructure(OPTIONAL_HEADER, image.optional, bytes, optionalAt);
  image.directories.forEach((directory, i) => {
    writeStructure(DATA_DIRECTORY, directory, bytes, optionalAt + OPTIONAL_HEADER.size + i * DATA_DIRECTORY.size);
  });
  image.sections.forEach((section, i) => {
    writeStructure(SECTION_HEADER, section.header, bytes, sectionTableAt(image) + i * SECTION_HEADER.size);
  });
}
