// SPDX-License-Identifier: GPL-2.0-only
// Bytes to Image. Checks only what is needed to find everything; `requireMovable` holds what every transform needs
// besides, so that inspect can still show an image that no transform takes.

import { Buffer } from "node:buffer";
import { ImageError } from "../cli/errors.ts";
import { hex, printable, range } from "../cli/numbers.ts";
import type { Image, Section } from "./image.ts";
import { nameBehind, stringAt, upToNul } from "./symbols.ts";
import { readStructure, viewOf } from "../tables/fields.ts";
import * as pe from "../tables/pe.ts";

/**
 * Reads a PE32+ image for x86-64. The Image shares memory with `input`, which must not be changed afterwards.
 * @throws ImageError when it is not one, or when anything it points to is not inside the file
 */
export function parseImage(input: Uint8Array): Image {
  // A Buffer's slice() shares its memory, a plain Uint8Array's copies: transforms copy what they change by it.
  const bytes = new Uint8Array(input.buffer, input.byteOffset, input.byteLength);
  const lfanew = findPeHeader(bytes);
  const coff = readStructure(pe.COFF_HEADER, bytes, lfanew + pe.SIGNATURE_SIZE);
  if (coff.machine !== pe.MACHINE_AMD64) refuse("its machine", hex(coff.machine), `${hex(pe.MACHINE_AMD64)} (x86-64)`);
  const optionalAt = lfanew + pe.SIGNATURE_SIZE + pe.COFF_HEADER.size;
  requireInside(bytes, optionalAt, pe.OPTIONAL_HEADER.size, "the optional header");
  const optional = readStructure(pe.OPTIONAL_HEADER, bytes, optionalAt);
  if (optional.magic !== pe.PE32PLUS_MAGIC)
    refuse("the optional header's magic", hex(optional.magic), `${hex(pe.PE32PLUS_MAGIC)} (PE32+)`);
  const directories = readDirectories(bytes, optionalAt, coff, optional);
  const { symbols, strings } = readSymbolTable(bytes, coff);
  const sections = readSections(bytes, optionalAt + coff.sizeOfOptionalHeader, coff, optional, strings);
  return { lfanew, coff, optional, directories, sections, symbols, strings, fileSize: bytes.length, background: bytes };
}

/** Whether the file has the boot protocol's magic, "HdrS", in its place (Linux, Documentation/arch/x86/boot.rst). */
export function isLinuxKernel(bytes: Uint8Array): boolean {
  return bytes.length >= 0x206 && viewOf(bytes).getUint32(0x202, true) === 0x53726448;
}

function findPeHeader(bytes: Uint8Array): number {
  const view = viewOf(bytes);
  if (bytes.length < 2 || view.getUint16(0, true) !== pe.DOS_MAGIC)
    refuse("offset 0", firstBytes(bytes, 0), `"MZ": ${pe.otherFile(firstBytes(bytes, 0))}`);
  requireInside(bytes, 0, pe.DOS_HEADER_SIZE, "the MS-DOS header");
  const lfanew = view.getUint32(pe.LFANEW_AT, true);
  if (lfanew < pe.DOS_HEADER_SIZE) refuse(`e_lfanew`, hex(lfanew), `at least ${hex(pe.DOS_HEADER_SIZE)}`);
  requireInside(bytes, lfanew, pe.SIGNATURE_SIZE + pe.COFF_HEADER.size, "the PE header");
  if (view.getUint32(lfanew, true) !== pe.PE_SIGNATURE)
    refuse(`offset ${hex(lfanew)}`, firstBytes(bytes, lfanew), `"PE\\0\\0"`);
  return lfanew;
}

/** EDK2 (BasePeCoff.c:PeCoffLoaderGetPeHeader) and shim want exactly this many bytes of optional header. */
function readDirectories(
  bytes: Uint8Array,
  optionalAt: number,
  coff: pe.CoffHeader,
  optional: pe.OptionalHeader,
): pe.DataDirectory[] {
  const count = optional.numberOfRvaAndSizes;
  if (count > pe.MAX_DIRECTORIES) refuse("NumberOfRvaAndSizes", String(count), `at most ${pe.MAX_DIRECTORIES}`);
  const size = pe.OPTIONAL_HEADER.size + count * pe.DATA_DIRECTORY.size;
  if (coff.sizeOfOptionalHeader !== size) {
    refuse("SizeOfOptionalHeader", hex(coff.sizeOfOptionalHeader), `${hex(size)} for ${count} data directories`);
  }
  requireInside(bytes, optionalAt, size, "the data directories");
  return Array.from({ length: count }, (_, i) =>
    readStructure(pe.DATA_DIRECTORY, bytes, optionalAt + pe.OPTIONAL_HEADER.size + i * pe.DATA_DIRECTORY.size),
  );
}

function readSymbolTable(bytes: Uint8Array, coff: pe.CoffHeader): Pick<Image, "symbols" | "strings"> {
  const start = coff.pointerToSymbolTable;
  if (start === 0) {
    if (coff.numberOfSymbols !== 0)
      refuse(
        "PointerToSymbolTable",
        "0",
        `an offset for NumberOfSymbols ${coff.numberOfSymbols}${isLinuxKernel(bytes) ? ": this is a Linux kernel" : ""}`,
      );
    return { symbols: new Uint8Array(), strings: new Uint8Array() };
  }
  const size = coff.numberOfSymbols * pe.SYMBOL.size;
  requireInside(bytes, start, size, "the COFF symbol table");
  const stringsAt = start + size;
  // Without strings, some tools leave the table out or give it a size of 0: then it is what is there of its length.
  const stringsSize = stringsAt + 4 > bytes.length ? 0 : Math.max(4, viewOf(bytes).getUint32(stringsAt, true));
  const stringsEnd = stringsAt + stringsSize;
  requireInside(bytes, stringsAt, stringsSize, "the COFF string table");
  const symbols = bytes.subarray(start, stringsAt);
  const behind = nameBehind(symbols, stringsSize);
  if (behind !== undefined) {
    const needed = `inside the string table ${range(stringsAt, stringsEnd)}`;
    refuse("a COFF symbol's name", `at ${hex(stringsAt + behind)}`, needed);
  }
  return { symbols, strings: bytes.subarray(stringsAt, stringsEnd) };
}

function readSections(
  bytes: Uint8Array,
  tableAt: number,
  coff: pe.CoffHeader,
  { sizeOfHeaders }: pe.OptionalHeader,
  strings: Uint8Array,
): Section[] {
  const tableEnd = tableAt + coff.numberOfSections * pe.SECTION_HEADER.size;
  requireInside(bytes, tableAt, tableEnd - tableAt, "the section table");
  requireInside(bytes, 0, sizeOfHeaders, "SizeOfHeaders");
  if (sizeOfHeaders < tableEnd)
    refuse("SizeOfHeaders", hex(sizeOfHeaders), `at least ${hex(tableEnd)}, the end of the section table`);
  return Array.from({ length: coff.numberOfSections }, (_, i) => {
    const header = readStructure(pe.SECTION_HEADER, bytes, tableAt + i * pe.SECTION_HEADER.size);
    const name = sectionName(header.name, strings);
    if (coff.pointerToSymbolTable !== 0 && /^\/[0-9]/.test(name))
      refuse(`section ${i + 1}'s name`, name, "an offset inside the string table");
    if (header.sizeOfRawData !== 0)
      requireInside(bytes, header.pointerToRawData, header.sizeOfRawData, `section ${name}'s raw data`);
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
  if (start + size <= bytes.length) return;
  const where = range(start, start + size);
  throw new ImageError(`Cannot read the image: ${what} is at ${where}, the file ends at ${hex(bytes.length)}`);
}

function refuse(where: string, found: string, needed: string): never {
  throw new ImageError(`Cannot read the image: ${where} is ${found}, needed ${needed}`);
}

function firstBytes(bytes: Uint8Array, at: number): string {
  const four = bytes.subarray(at, at + 4);
  return four.length === 0 ? "empty" : `${Buffer.from(four).toString("hex")} (hex)`;
}
