// SPDX-License-Identifier: GPL-2.0-only
// The judges' own reader of PE images, straight from the raw bytes: it shares with the steps' (pe/parse.ts) the tables of
// field names and widths, so that a fault in the one shows in the other. It looks for everything and computes nothing.

import { Buffer } from "node:buffer";
import { ImageError } from "../cli/errors.ts";
import { hex, printable, range } from "../cli/numbers.ts";
import { readStructure, viewOf } from "../tables/fields.ts";
import * as pe from "../tables/pe.ts";

export interface Section {
  /** The name, "/N" followed into the string table. */
  readonly name: string;
  readonly header: pe.SectionHeader;
  /** What loaders copy: the first min(VirtualSize, SizeOfRawData) raw bytes. */
  readonly data: Uint8Array;
}

export interface Pe {
  /** The whole file. */
  readonly bytes: Uint8Array;
  /** File offset of the PE signature. */
  readonly lfanew: number;
  readonly coff: pe.CoffHeader;
  readonly optional: pe.OptionalHeader;
  readonly directories: readonly pe.DataDirectory[];
  /** In the table's order. */
  readonly sections: readonly Section[];
  /** COFF symbol records and the string table behind them, its four bytes of length included; empty where there are none. */
  readonly symbols: Uint8Array;
  readonly strings: Uint8Array;
}

/**
 * Reads a PE32+ image for x86-64.
 * @throws ImageError when it is none, or when what its headers describe is not inside the file
 */
export function readPe(file: Uint8Array): Pe {
  // A Buffer's slices would share its memory where a Uint8Array's are copies.
  const bytes = new Uint8Array(file.buffer, file.byteOffset, file.byteLength);
  const view = viewOf(bytes);
  if (bytes.length < 2 || view.getUint16(0, true) !== pe.DOS_MAGIC)
    refuse("offset 0", firstBytes(bytes, 0), `"MZ": ${pe.otherFile(firstBytes(bytes, 0))}`);
  inside(bytes, 0, pe.DOS_HEADER_SIZE, "the MS-DOS header");
  const lfanew = view.getUint32(pe.LFANEW_AT, true);
  if (lfanew < pe.DOS_HEADER_SIZE) refuse("e_lfanew", hex(lfanew), `at least ${hex(pe.DOS_HEADER_SIZE)}`);
  const coffAt = lfanew + pe.SIGNATURE_SIZE;
  const optionalAt = coffAt + pe.COFF_HEADER.size;
  inside(bytes, lfanew, optionalAt - lfanew, "the PE header");
  if (view.getUint32(lfanew, true) !== pe.PE_SIGNATURE)
    refuse(`offset ${hex(lfanew)}`, firstBytes(bytes, lfanew), `"PE\\0\\0"`);
  const coff = readStructure(pe.COFF_HEADER, bytes, coffAt);
  if (coff.machine !== pe.MACHINE_AMD64) refuse("its machine", hex(coff.machine), `${hex(pe.MACHINE_AMD64)} (x86-64)`);
  inside(bytes, optionalAt, pe.OPTIONAL_HEADER.size, "the optional header");
  const optional = readStructure(pe.OPTIONAL_HEADER, bytes, optionalAt);
  if (optional.magic !== pe.PE32PLUS_MAGIC)
    refuse("the optional header's magic", hex(optional.magic), `${hex(pe.PE32PLUS_MAGIC)} (PE32+)`);
  const directories = readDirectories(bytes, optionalAt, coff, optional);
  const { symbols, strings } = readSymbols(bytes, coff);
  const tableAt = optionalAt + coff.sizeOfOptionalHeader;
  const tableEnd = tableAt + coff.numberOfSections * pe.SECTION_HEADER.size;
  const sections = readSections(bytes, tableAt, coff.numberOfSections, strings);
  inside(bytes, 0, optional.sizeOfHeaders, "SizeOfHeaders");
  if (optional.sizeOfHeaders < tableEnd)
    refuse("SizeOfHeaders", hex(optional.sizeOfHeaders), `at least ${hex(tableEnd)}, the end of the section table`);
  return { bytes, lfanew, coff, optional, directories, sections, symbols, strings };
}

/** EDK2 (BasePeCoff.c:PeCoffLoaderGetPeHeader) and shim want exactly this many bytes of optional header. */
function readDirectories(
  bytes: Uint8Array,
  optionalAt: number,
  { sizeOfOptionalHeader }: pe.CoffHeader,
  { numberOfRvaAndSizes: count }: pe.OptionalHeader,
): pe.DataDirectory[] {
  if (count > pe.MAX_DIRECTORIES) refuse("NumberOfRvaAndSizes", String(count), `at most ${pe.MAX_DIRECTORIES}`);
  const size = pe.OPTIONAL_HEADER.size + count * pe.DATA_DIRECTORY.size;
  if (sizeOfOptionalHeader !== size)
    refuse("SizeOfOptionalHeader", hex(sizeOfOptionalHeader), `${hex(size)} for ${count} data directories`);
  inside(bytes, optionalAt, size, "the data directories");
  const at = optionalAt + pe.OPTIONAL_HEADER.size;
  return Array.from({ length: count }, (_, i) =>
    readStructure(pe.DATA_DIRECTORY, bytes, at + i * pe.DATA_DIRECTORY.size),
  );
}

function readSymbols(bytes: Uint8Array, coff: pe.CoffHeader): { symbols: Uint8Array; strings: Uint8Array } {
  const start = coff.pointerToSymbolTable;
  const size = coff.numberOfSymbols * pe.SYMBOL.size;
  if (start === 0 && size !== 0)
    refuse("PointerToSymbolTable", "0", `an offset for NumberOfSymbols ${coff.numberOfSymbols}`);
  inside(bytes, start, size, "the COFF symbol table");
  const end = start + size;
  // A string table that the file has no room for is none; its length counts itself.
  const hasStrings = start !== 0 && end + 4 <= bytes.length;
  const length = hasStrings ? Math.max(4, viewOf(bytes).getUint32(end, true)) : 0;
  inside(bytes, end, length, "the COFF string table");
  return { symbols: bytes.subarray(start, end), strings: bytes.subarray(end, end + length) };
}

function readSections(bytes: Uint8Array, tableAt: number, count: number, strings: Uint8Array): Section[] {
  inside(bytes, tableAt, count * pe.SECTION_HEADER.size, "the section table");
  return Array.from({ length: count }, (_, i) => {
    const header = readStructure(pe.SECTION_HEADER, bytes, tableAt + i * pe.SECTION_HEADER.size);
    const name = sectionName(header.name, strings);
    if (strings.length !== 0 && /^\/\d+$/.test(name))
      refuse(`section ${i + 1}'s name`, name, "an offset inside the string table");
    const { pointerToRawData: start, sizeOfRawData, virtualSize } = header;
    if (sizeOfRawData === 0) return { name, header, data: bytes.subarray(0, 0) };
    inside(bytes, start, sizeOfRawData, `section ${name}'s raw data`);
    return { name, header, data: bytes.subarray(start, start + Math.min(sizeOfRawData, virtualSize)) };
  });
}

/** PE specification, "Section Table": "/" and a decimal offset into the string table stand for a long name. */
function sectionName(field: string, strings: Uint8Array): string {
  const [short = ""] = field.split("\0");
  const at = /^\/\d+$/.test(short) ? Number(short.slice(1)) : undefined;
  const end = at === undefined || at < 4 ? -1 : strings.indexOf(0, at);
  return printable(end < 0 ? short : Buffer.from(strings.subarray(at, end)).toString("latin1"));
}

function inside(bytes: Uint8Array, start: number, size: number, what: string): void {
  if (start + size > bytes.length)
    throw new ImageError(
      `Cannot read the image: ${what} is at ${range(start, start + size)}, the file ends at ${hex(bytes.length)}`,
    );
}

function refuse(where: string, found: string, needed: string): never {
  throw new ImageError(`Cannot read the image: ${where} is ${found}, needed ${needed}`);
}

function firstBytes(bytes: Uint8Array, at: number): string {
  const four = bytes.subarray(at, at + 4);
  return four.length === 0 ? "empty" : `${Buffer.from(four).toString("hex")} (hex)`;
}

// ---- questions about what was read

/** The least multiple of `unit` that is not below `value`. */
export function roundUp(value: number, unit: number): number {
  return value + ((unit - (value % unit)) % unit);
}

/** A data directory; an empty one where the image has none of that number. */
export function directoryOf({ directories }: Pe, index: number): pe.DataDirectory {
  return directories[index] ?? { virtualAddress: 0, size: 0 };
}

/** File offset of the optional header. */
export function optionalAt({ lfanew }: Pe): number {
  return lfanew + pe.SIGNATURE_SIZE + pe.COFF_HEADER.size;
}

/** File offset of the section table. */
export function tableStart(image: Pe): number {
  return optionalAt(image) + image.coff.sizeOfOptionalHeader;
}

/** The file offset behind the section table. */
export function tableEnd(image: Pe): number {
  return tableStart(image) + image.sections.length * pe.SECTION_HEADER.size;
}

/** The RVA behind a section. */
export function sectionEnd({ header }: Section): number {
  return header.virtualAddress + header.virtualSize;
}

/** In RVA order; those of one RVA stay in the table's order. */
export function byAddress<S extends Section>(sections: readonly S[]): S[] {
  return [...sections].sort((a, b) => a.header.virtualAddress - b.header.virtualAddress);
}

/** Whether any of the flags is set. */
export function hasFlags({ header }: Section, flags: number): boolean {
  return (header.characteristics & flags) !== 0;
}

/** The first section of the table whose memory has this RVA. */
export function sectionAt({ sections }: Pick<Pe, "sections">, rva: number): Section | undefined {
  return sections.find((s) => rva >= s.header.virtualAddress && rva < sectionEnd(s));
}
