// SPDX-License-Identifier: GPL-2.0-only
// Where everything goes in the file: the one place where file offsets and sizes are computed. align-sections makes an
// image linear by it; add-sections and strip-debug lay out anew what they have changed, a linear image linear and any
// other packed. So a linear file does not show which of them ran last, nor in which order they ran.
//
// In both layouts the header area has room for more section headers, every byte belongs to the headers, to a section's
// raw data or to the COFF tables behind them, and all raw data behind the load span is on multiples of 512.

import { failing, type Fail } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { hasFlags, roundUp, sectionAt, sectionTableEnd, withHeader, type Image, type Section } from "../pe/image.ts";
import { sortSectionTable } from "../pe/serialize.ts";
import { readStructure, writeStructure } from "../tables/fields.ts";
import * as pe from "../tables/pe.ts";
import { MULTIBOOT1_ROOM, SPARE_HEADERS, whyNotLinear, type LoadSpan } from "./span.ts";

/** Raw data outside the load span begins and ends on multiples of this: the specification's least FileAlignment. */
const FILE_ALIGNMENT = 512;
/** Below this signers and firmware do not agree on what a file's regions are. */
const LEAST_FILE_ALIGNMENT = 4;
/** All gaps of a Xen together are below 8 MiB: far more are a mistake in some header, not a file worth writing. */
const MOST_FILLER = 0x4000000;
/** Signers pad a file to this before they append a certificate (PE specification, "Attribute Certificate Table"). */
const FILE_PADDING = 8;
/** PE files hold 32-bit offsets, and shim takes no file of 2 GiB or more (verify.c:shim_verify). */
const MOST_FILE = 2 ** 31 - 1;

/**
 * Linear, as Multiboot loaders copy a file: file offset = RVA - delta over the load span. Or packed, as linkers do it:
 * without filler, each section's raw data behind the one before it.
 */
export type Layout = "linear" | "packed";

/** Which of the two an image has. */
export function layoutOf(image: Image, span: LoadSpan): Layout {
  return whyNotLinear(image, span) === undefined ? "linear" : "packed";
}

/**
 * The image laid out anew.
 * @param image its section table in RVA order
 * @param action what cannot be done otherwise, for the message
 * @throws ImageError
 */
export function layOut(image: Image, span: LoadSpan, layout: Layout, action: string): Image {
  const fail: Fail = failing(action);
  const sizeOfHeaders = headerArea(image, span, fail);
  const inSpan = layout === "linear" ? placeInSpan(image, span, sizeOfHeaders, fail) : [];
  const behind = placeBehind(image.sections.slice(inSpan.length), rawEnd(inSpan, sizeOfHeaders), fail);
  const sections = [...inSpan, ...behind];
  const end = rawEnd(sections, sizeOfHeaders);
  const fileSize = roundUp(end + image.symbols.length + image.strings.length, FILE_PADDING);
  if (fileSize > MOST_FILE)
    fail(`the file would have ${hex(fileSize)} bytes, needed at most ${hex(MOST_FILE)}: shim takes none of 2 GiB`);
  const headers = new Uint8Array(sizeOfHeaders);
  headers.set(image.background.subarray(0, image.optional.sizeOfHeaders));
  return sortSectionTable({
    ...image,
    coff: { ...image.coff, pointerToSymbolTable: image.coff.pointerToSymbolTable === 0 ? 0 : end },
    optional: {
      ...image.optional,
      sizeOfCode: rawSizeOf(sections, pe.CNT_CODE),
      sizeOfInitializedData: rawSizeOf(sections, pe.CNT_INITIALIZED_DATA),
      sizeOfImage: sizeOfImage(image, span, fail),
      sizeOfHeaders,
      fileAlignment: fileAlignment(sections, fail),
    },
    sections: moveDebugData(image, sections, fail),
    fileSize,
    background: headers,
  });
}

/** The size of the header area (H): room for more section headers and for the Multiboot header behind the table. */
function headerArea(image: Image, span: LoadSpan, fail: Fail): number {
  const needed = sectionTableEnd(image) + SPARE_HEADERS + MULTIBOOT1_ROOM;
  const size = roundUp(Math.max(image.optional.sizeOfHeaders, needed), pe.PAGE_SIZE);
  if (size > span.first)
    fail(`the headers need ${hex(size)} bytes, there are ${hex(span.first)} below the first section`);
  return size;
}

/** The span's sections where they are in a linear file. */
function placeInSpan(image: Image, span: LoadSpan, sizeOfHeaders: number, fail: Fail): Section[] {
  const filler = span.dataEnd - span.first - span.sections.reduce((sum, s) => sum + s.data.length, 0);
  if (filler > MOST_FILLER) {
    const where = range(span.first, span.dataEnd);
    fail(`the gaps between the sections in ${where} are ${hex(filler)} bytes, needed at most ${hex(MOST_FILLER)}`);
  }
  const delta = span.first - sizeOfHeaders;
  // image.sections is in RVA order: the span's are the first of them.
  return image.sections.slice(0, span.sections.length).map((section, i) => {
    const { virtualAddress, virtualSize } = section.header;
    const next = span.sections[i + 1]?.header.virtualAddress;
    // A section reaches, in the file, to where the next one begins.
    const sizeOfRawData = next === undefined ? roundUp(virtualSize, FILE_ALIGNMENT) : next - virtualAddress;
    const placed = withHeader(section, { pointerToRawData: virtualAddress - delta, sizeOfRawData });
    // GRUB 2.14's PE loader refuses more raw data than memory, counted in pages; no loader minds more memory.
    if (sizeOfRawData <= roundUp(virtualSize, pe.PAGE_SIZE)) return placed;
    return withHeader(placed, { virtualSize: sizeOfRawData });
  });
}

/** Sections one behind the other, from a file offset on. */
function placeBehind(sections: readonly Section[], start: number, fail: Fail): Section[] {
  let end = start;
  return sections.map((section) => {
    const sizeOfRawData = roundUp(section.data.length, FILE_ALIGNMENT);
    const pointerToRawData = sizeOfRawData === 0 ? 0 : end;
    if (pointerToRawData % FILE_ALIGNMENT !== 0) {
      const where = `would be at offset ${hex(pointerToRawData)}, needed a multiple of ${hex(FILE_ALIGNMENT)}`;
      fail(`section ${section.name}'s data ${where}: the last section below .bss begins off such a multiple`);
    }
    end += sizeOfRawData;
    return withHeader(section, { pointerToRawData, sizeOfRawData });
  });
}

/** The file offset behind the raw data of all sections. @param least where they may begin */
function rawEnd(sections: readonly Section[], least: number): number {
  return sections.reduce((end, { header }) => Math.max(end, header.pointerToRawData + header.sizeOfRawData), least);
}

/** The bytes of all sections with this content flag that stay in memory; one with several flags counts for each. */
function rawSizeOf(sections: readonly Section[], flag: number): number {
  return sections
    .filter((s) => hasFlags(s, flag) && !hasFlags(s, pe.MEM_DISCARDABLE))
    .reduce((sum, s) => sum + s.header.sizeOfRawData, 0);
}

/** It never shrinks: whoever linked the image may have asked for the room. Xen maps .bss in pages of 2 MiB. */
function sizeOfImage(image: Image, span: LoadSpan, fail: Fail): number {
  const { sectionAlignment } = image.optional;
  if (sectionAlignment === 0 || !Number.isInteger(Math.log2(sectionAlignment)))
    fail(`SectionAlignment is ${hex(sectionAlignment)}, needed a power of two`);
  const size = roundUp(Math.max(image.optional.sizeOfImage, span.bssEnd), sectionAlignment);
  if (size > 0xffffffff) fail(`SizeOfImage would be ${hex(size)}, needed at most 0xffffffff`);
  return size;
}

/** The largest power of two that divides every raw pointer and size: .buildid lies at odd places. */
function fileAlignment(sections: readonly Section[], fail: Fail): number {
  const stored = sections.filter((s) => s.header.sizeOfRawData !== 0);
  const isOff = ({ header }: Section, unit: number): boolean =>
    header.pointerToRawData % unit !== 0 || header.sizeOfRawData % unit !== 0;
  let alignment = FILE_ALIGNMENT;
  while (stored.some((s) => isOff(s, alignment))) alignment /= 2;
  const odd = stored.find((s) => isOff(s, LEAST_FILE_ALIGNMENT));
  if (odd !== undefined) {
    const what = `${hex(odd.header.sizeOfRawData)} bytes at offset ${hex(odd.header.pointerToRawData)}`;
    fail(`section ${odd.name}'s raw data would be ${what}, needed multiples of ${LEAST_FILE_ALIGNMENT}`);
  }
  return alignment;
}

// ---- file offsets inside the data

/**
 * The sections with their debug directory entries pointing to where the debug data is now. Loaders ignore these
 * offsets; debuggers and symbol servers do not.
 * @param before the image as it was: addresses are resolved through the VirtualSizes it has
 * @param placed its sections, in the same order, where they are now
 */
function moveDebugData(before: Image, placed: readonly Section[], fail: Fail): readonly Section[] {
  const { virtualAddress = 0, size = 0 } = before.directories[pe.DIRECTORY_DEBUG] ?? {};
  if (size === 0) return placed;
  const entrySize = pe.DEBUG_DIRECTORY_ENTRY.size;
  if (size % entrySize !== 0)
    fail(`the debug directory has ${hex(size)} bytes, needed a multiple of ${hex(entrySize)}`);
  const end = virtualAddress + size;
  const where = range(virtualAddress, end);
  const holder = sectionAt(before, virtualAddress);
  const offset = virtualAddress - (holder?.header.virtualAddress ?? 0);
  if (holder === undefined || offset + size > holder.data.length)
    return fail(`the debug directory is at ${where}, needed inside a section's data`);
  const relocations = before.directories[pe.DIRECTORY_BASE_RELOCATION] ?? { virtualAddress: 0, size: 0 };
  const relocationsEnd = relocations.virtualAddress + relocations.size;
  if (relocations.size !== 0 && relocations.virtualAddress < end && virtualAddress < relocationsEnd) {
    const table = range(relocations.virtualAddress, relocationsEnd);
    fail(`the debug directory at ${where} and the base relocation table at ${table} overlap`);
  }
  const data = holder.data.slice();
  for (let at = offset; at < offset + size; at += entrySize) {
    const entry = readStructure(pe.DEBUG_DIRECTORY_ENTRY, data, at);
    if (entry.pointerToRawData === 0) continue;
    const pointerToRawData = newOffset(before, placed, entry.addressOfRawData, fail);
    writeStructure(pe.DEBUG_DIRECTORY_ENTRY, { ...entry, pointerToRawData }, data, at);
  }
  return placed.map((section, i) => (before.sections[i] === holder ? { ...section, data } : section));
}

function newOffset(before: Image, placed: readonly Section[], rva: number, fail: Fail): number {
  const section = sectionAt(before, rva);
  const moved = section === undefined ? undefined : placed[before.sections.indexOf(section)];
  const what = `a debug directory entry's data is at RVA ${hex(rva)}`;
  if (moved === undefined) return fail(`${what}, needed inside a section`);
  const offset = rva - moved.header.virtualAddress;
  if (offset >= moved.header.sizeOfRawData) fail(`${what}, behind the raw data of ${moved.name}, needed inside it`);
  return moved.header.pointerToRawData + offset;
}
