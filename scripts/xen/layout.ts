// SPDX-License-Identifier: GPL-2.0-only
// Where everything goes in the file: the one place where file offsets and sizes are computed. align-sections makes an
// image linear by it; add-sections and strip-debug lay out anew what they have changed, a linear image linear and any
// other packed. So a linear file does not show which of them ran last, nor in which order they ran.
//
// In both layouts the header area has room for more section headers, every byte belongs to the headers, to a section's
// raw data or to the COFF tables behind them, and all raw data behind the load span is on multiples of 512.

import { ImageError } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import {
  byAddress,
  hasFlags,
  isStrayDebug,
  roundUp,
  sectionAt,
  sectionEnd,
  sectionTableEnd,
  sortSectionTable,
  withHeader,
} from "../pe/image.ts";
import type { Image, Section } from "../pe/image.ts";
import type { Say } from "../pe/transform.ts";
import { readStructure, writeStructure } from "../tables/fields.ts";
import {
  CNT_CODE,
  CNT_INITIALIZED_DATA,
  DEBUG_DIRECTORY_ENTRY,
  DIRECTORY_BASE_RELOCATION,
  DIRECTORY_DEBUG,
  MEM_DISCARDABLE,
  PAGE_SIZE,
  SECTION_HEADER,
} from "../tables/pe.ts";
import type { SectionHeader } from "../tables/pe.ts";
import { whyNotLinear } from "./xen.ts";
import type { LoadSpan } from "./xen.ts";

/** Raw data outside the load span begins and ends on multiples of this: the specification's least FileAlignment. */
const FILE_ALIGNMENT = 512;
/** Below this signers and firmware do not agree on what a file's regions are. */
const LEAST_FILE_ALIGNMENT = 4;
/** Headers that tools may append to the section table in place (ukify, objcopy); the linker leaves room for none. */
export const SPARE_SECTION_HEADERS = 16;
/** Room that emit-header needs for the Multiboot header, at the end of the header area. */
export const MULTIBOOT1_ROOM = 64;
/** All gaps of a Xen together are below 8 MiB: far more are a mistake in some header, not a file worth writing. */
const MOST_FILLER = 0x4000000;
/** Signers pad a file to this before they append a certificate (PE specification, "Attribute Certificate Table"). */
const FILE_PADDING = 8;
/** PE files hold 32-bit offsets, and shim takes no file of 2 GiB or more (verify.c:shim_verify). */
const MOST_FILE = 2 ** 31 - 1;

/** Ends the work with an ImageError that names what cannot be done. */
type Fail = (reason: string) => never;

/** @param action what cannot be done, as in "align sections" */
export function failing(action: string): Fail {
  return (reason) => {
    throw new ImageError(`Cannot ${action}: ${reason}`);
  };
}

/** Which of the two layouts an image has. */
export function isLinear(image: Image, span: LoadSpan): boolean {
  return whyNotLinear(image, span) === undefined;
}

/**
 * The image laid out as Multiboot loaders copy it: file offset = RVA - delta over the load span.
 * @param image its section table in RVA order
 */
export function layOutLinear(image: Image, span: LoadSpan, action: string): Image {
  const fail = failing(action);
  const sizeOfHeaders = headerArea(image, span, fail);
  const filler = span.dataEnd - span.first - span.sections.reduce((sum, s) => sum + s.data.length, 0);
  if (filler > MOST_FILLER) {
    const where = range(span.first, span.dataEnd);
    fail(`the gaps between the sections in ${where} are ${hex(filler)} bytes, needed at most ${hex(MOST_FILLER)}`);
  }
  return layOut(image, span, placeLinear(image, span, sizeOfHeaders, fail), fail);
}

/**
 * The image laid out without filler, as a linker does: each section's raw data behind the one before it.
 * @param image its section table in RVA order
 */
export function layOutPacked(image: Image, span: LoadSpan, action: string): Image {
  const fail = failing(action);
  const sizeOfHeaders = headerArea(image, span, fail);
  const placed = placeBehind(image.sections, sizeOfHeaders, fail);
  return layOut(image, span, { sizeOfHeaders, ...placed }, fail);
}

interface Layout {
  readonly sizeOfHeaders: number;
  /** In the image's order. */
  readonly sections: Section[];
  /** File offset behind the last one's raw data, where the symbol table goes. */
  readonly end: number;
}

/** Everything that follows from where the sections are. */
function layOut(image: Image, span: LoadSpan, { sizeOfHeaders, sections, end }: Layout, fail: Fail): Image {
  const headers = new Uint8Array(sizeOfHeaders);
  headers.set(image.background.subarray(0, image.optional.sizeOfHeaders));
  const fileSize = roundUp(end + image.symbols.length + image.strings.length, FILE_PADDING);
  if (fileSize > MOST_FILE) {
    fail(`the file would have ${hex(fileSize)} bytes, needed at most ${hex(MOST_FILE)}: shim takes none of 2 GiB`);
  }
  return sortSectionTable({
    ...image,
    coff: { ...image.coff, pointerToSymbolTable: image.coff.pointerToSymbolTable === 0 ? 0 : end },
    optional: {
      ...image.optional,
      sizeOfCode: rawSizeOf(sections, CNT_CODE),
      sizeOfInitializedData: rawSizeOf(sections, CNT_INITIALIZED_DATA),
      sizeOfImage: sizeOfImage(image, span, fail),
      sizeOfHeaders,
      fileAlignment: fileAlignment(sections, fail),
    },
    sections: moveDebugData(image, sections, fail),
    fileSize,
    background: headers,
  });
}

// ---- what is refused

/** Object-file leftovers that point into the file, and bytes that belong to nothing: moving on would lose them. */
export function refuseUnmovable(image: Image, action: string): void {
  const fail = failing(action);
  for (const { name, header } of image.sections) {
    for (const field of ["pointerToRelocations", "pointerToLinenumbers"] as const) {
      if (header[field] === 0) continue;
      const spelled = `${field[0]?.toUpperCase()}${field.slice(1)}`;
      fail(`section ${name}'s ${spelled} is ${hex(header[field])}, needed 0 in an image`);
    }
  }
  const end = describedEnd(image);
  const stray = image.background.subarray(end).findIndex((byte) => byte !== 0);
  if (stray >= 0) {
    const what = `${hex(image.background[end + stray] ?? 0)} at offset ${hex(end + stray)}`;
    fail(`there is ${what}, behind everything the headers describe, needed zeros from ${hex(end)} on`);
  }
}

/** The file offset behind the last byte that headers, sections, symbols or strings account for. */
function describedEnd(image: Image): number {
  const ends = image.sections.map(({ header }) =>
    header.sizeOfRawData === 0 ? 0 : header.pointerToRawData + header.sizeOfRawData,
  );
  const tables = image.coff.pointerToSymbolTable + image.symbols.length + image.strings.length;
  return Math.max(image.optional.sizeOfHeaders, tables, ...ends);
}

// ---- debug sections beyond SizeOfImage

/**
 * Firmware refuses an image with a section beyond SizeOfImage, silently (EDK2 BasePeCoff.c:PeCoffLoaderLoadImage).
 * Debug sections may be anywhere: these are moved to above everything else; SizeOfImage becomes the last one's end.
 */
export function repairStraySections(image: Image, action: string, say: Say): Image {
  const { sizeOfImage } = image.optional;
  const stray = byAddress(image.sections).filter((s) => sectionEnd(s) > sizeOfImage);
  const other = stray.find((s) => !isStrayDebug(image, s));
  if (other !== undefined) {
    const where = range(other.header.virtualAddress, sectionEnd(other));
    failing(action)(`section ${other.name} is at ${where}, needed below SizeOfImage ${hex(sizeOfImage)}`);
  }
  if (stray.length === 0) return image;
  const moved = new Map<Section, Section>();
  let end = sizeOfImage;
  for (const section of stray) {
    const virtualAddress = roundUp(end, PAGE_SIZE);
    moved.set(section, withHeader(section, { virtualAddress }));
    end = virtualAddress + section.header.virtualSize;
    const what = `section ${section.name} at RVA ${hex(section.header.virtualAddress)}`;
    const why = `lies beyond SizeOfImage ${hex(sizeOfImage)}, so that firmware refuses the image`;
    say(`warning: ${what} ${why}; moved to ${hex(virtualAddress)}`);
  }
  const sections = image.sections.map((s) => moved.get(s) ?? s);
  return { ...image, optional: { ...image.optional, sizeOfImage: end }, sections };
}

// ---- the section table

/**
 * The image with these sections, which are in no place of the file yet. Behind a table that became shorter there are
 * zeros; one that became longer takes the place of zeros only. SizeOfImage grows with what is new, and shrinks to what
 * is left when a section that reached up to it has gone: the linker counted it.
 * @throws ImageError when something else than zeros is where new section headers go
 */
export function withSections(image: Image, sections: readonly Section[], action: string): Image {
  const before = sectionTableEnd(image);
  const after = sectionTableEnd({ ...image, sections });
  const { sizeOfHeaders } = image.optional;
  const headers = image.background.slice(0, sizeOfHeaders);
  const used = headers.subarray(before, after).findIndex((byte) => byte !== 0);
  if (used >= 0) {
    const what = `${hex(headers[before + used] ?? 0)} at offset ${hex(before + used)}`;
    failing(action)(
      `there is ${what}, behind the section table, needed zeros up to ${hex(after)} for more section headers`,
    );
  }
  if (after < before) headers.fill(0, after, before);
  const { sectionAlignment, sizeOfImage } = image.optional;
  const gone = image.sections.filter((s) => !sections.includes(s));
  const wasTop = gone.some((s) => roundUp(sectionEnd(s), sectionAlignment) >= roundUp(sizeOfImage, sectionAlignment));
  return {
    ...image,
    coff: { ...image.coff, numberOfSections: sections.length },
    optional: { ...image.optional, sizeOfImage: Math.max(wasTop ? 0 : sizeOfImage, ...sections.map(sectionEnd)) },
    sections,
    background: headers,
  };
}

// ---- the layout

/** The size of the header area (H): room for more section headers and for the Multiboot header behind the table. */
function headerArea(image: Image, span: LoadSpan, fail: Fail): number {
  const needed = sectionTableEnd(image) + SPARE_SECTION_HEADERS * SECTION_HEADER.size + MULTIBOOT1_ROOM;
  const size = roundUp(Math.max(image.optional.sizeOfHeaders, needed), PAGE_SIZE);
  if (size > span.first)
    fail(`the headers need ${hex(size)} bytes, there are ${hex(span.first)} below the first section`);
  return size;
}

function placeLinear(image: Image, span: LoadSpan, sizeOfHeaders: number, fail: Fail): Layout {
  const delta = span.first - sizeOfHeaders;
  // image.sections is in RVA order: the span's are the first of them.
  const inSpan = image.sections
    .slice(0, span.sections.length)
    .map((section, i) => placeInSpan(section, span.sections[i + 1], delta));
  const last = inSpan.at(-1);
  const end = last === undefined ? span.dataEnd - delta : last.header.pointerToRawData + last.header.sizeOfRawData;
  const behind = placeBehind(image.sections.slice(inSpan.length), end, fail);
  return { sizeOfHeaders, sections: [...inSpan, ...behind.sections], end: behind.end };
}

/** A section of the span reaches, in the file, to where the next one begins. */
function placeInSpan(section: Section, next: Section | undefined, delta: number): Section {
  const { virtualAddress, virtualSize } = section.header;
  const sizeOfRawData =
    next === undefined ? roundUp(virtualSize, FILE_ALIGNMENT) : next.header.virtualAddress - virtualAddress;
  const fields: Partial<SectionHeader> = { pointerToRawData: virtualAddress - delta, sizeOfRawData };
  // GRUB 2.14's PE loader refuses more raw data than memory, counted in pages; no loader minds more memory.
  if (sizeOfRawData > roundUp(virtualSize, PAGE_SIZE)) fields.virtualSize = sizeOfRawData;
  return withHeader(section, fields);
}

/** Sections one behind the other, from a file offset on. */
function placeBehind(sections: readonly Section[], start: number, fail: Fail): Pick<Layout, "sections" | "end"> {
  let end = start;
  const placed = sections.map((section) => {
    const sizeOfRawData = roundUp(section.data.length, FILE_ALIGNMENT);
    const pointerToRawData = sizeOfRawData === 0 ? 0 : end;
    if (pointerToRawData % FILE_ALIGNMENT !== 0) {
      const where = `would be at offset ${hex(pointerToRawData)}, needed a multiple of ${hex(FILE_ALIGNMENT)}`;
      fail(`section ${section.name}'s data ${where}: the last section below .bss begins off such a multiple`);
    }
    end += sizeOfRawData;
    return withHeader(section, { pointerToRawData, sizeOfRawData });
  });
  return { sections: placed, end };
}

/** The bytes of all sections with this content flag that stay in memory; one with several flags counts for each. */
function rawSizeOf(sections: readonly Section[], flag: number): number {
  return sections
    .filter((s) => hasFlags(s, flag) && !hasFlags(s, MEM_DISCARDABLE))
    .reduce((sum, s) => sum + s.header.sizeOfRawData, 0);
}

/** It never shrinks: whoever linked the image may have asked for the room. Xen maps .bss in pages of 2 MiB. */
function sizeOfImage(image: Image, span: LoadSpan, fail: Fail): number {
  const { sectionAlignment } = image.optional;
  if (sectionAlignment === 0 || !Number.isInteger(Math.log2(sectionAlignment))) {
    fail(`SectionAlignment is ${hex(sectionAlignment)}, needed a power of two`);
  }
  const size = roundUp(Math.max(image.optional.sizeOfImage, span.bssEnd), sectionAlignment);
  if (size > 0xffffffff) fail(`SizeOfImage would be ${hex(size)}, needed at most 0xffffffff`);
  return size;
}

/** The largest power of two that divides every raw pointer and size: .buildid lies at odd places. */
function fileAlignment(sections: readonly Section[], fail: Fail): number {
  const raw = sections.map((s) => ({ name: s.name, pointer: s.header.pointerToRawData, size: s.header.sizeOfRawData }));
  const stored = raw.filter(({ size }) => size !== 0);
  const isOff = ({ pointer, size }: { pointer: number; size: number }, unit: number): boolean =>
    pointer % unit !== 0 || size % unit !== 0;
  let alignment = FILE_ALIGNMENT;
  while (stored.some((s) => isOff(s, alignment))) alignment /= 2;
  const odd = stored.find((s) => isOff(s, LEAST_FILE_ALIGNMENT));
  if (odd !== undefined) {
    const what = `${hex(odd.size)} bytes at offset ${hex(odd.pointer)}`;
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
function moveDebugData(before: Image, placed: readonly Section[], fail: Fail): Section[] {
  const directory = before.directories[DIRECTORY_DEBUG];
  if (directory === undefined || directory.size === 0) return [...placed];
  if (directory.size % DEBUG_DIRECTORY_ENTRY.size !== 0) {
    fail(
      `the debug directory has ${hex(directory.size)} bytes, needed a multiple of ${hex(DEBUG_DIRECTORY_ENTRY.size)}`,
    );
  }
  const directoryEnd = directory.virtualAddress + directory.size;
  const where = range(directory.virtualAddress, directoryEnd);
  const holder = sectionAt(before, directory.virtualAddress);
  const offset = directory.virtualAddress - (holder?.header.virtualAddress ?? 0);
  if (holder === undefined || offset + directory.size > holder.data.length) {
    return fail(`the debug directory is at ${where}, needed inside a section's data`);
  }
  const { virtualAddress: table = 0, size = 0 } = before.directories[DIRECTORY_BASE_RELOCATION] ?? {};
  if (size !== 0 && table < directoryEnd && directory.virtualAddress < table + size) {
    fail(`the debug directory at ${where} and the base relocation table at ${range(table, table + size)} overlap`);
  }
  const data = holder.data.slice();
  for (let at = offset; at < offset + directory.size; at += DEBUG_DIRECTORY_ENTRY.size) {
    const entry = readStructure(DEBUG_DIRECTORY_ENTRY, data, at);
    if (entry.pointerToRawData === 0) continue;
    const pointerToRawData = newOffset(before, placed, entry.addressOfRawData, fail);
    writeStructure(DEBUG_DIRECTORY_ENTRY, { ...entry, pointerToRawData }, data, at);
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
