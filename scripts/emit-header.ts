// SPDX-License-Identifier: GPL-2.0-only
//
// Writes the Multiboot2 and Multiboot1 headers with which a loader can load a file that is no ELF: with addresses.
//
// Changes: the first section from the old Multiboot1 header to the end of the new Multiboot2 header; 32 bytes at the end
//   of the header area (the new Multiboot1 header); base relocation entries for the rewritten bytes (they become
//   padding entries); NX_COMPAT where it is not true; the order of the section table; CheckSum.
// Leaves: every other byte, at its place in the file.
// Refuses: an image without Multiboot2 header, one that has addresses already (so running it twice is refused), no room
//   behind the header, one that is not linear: align-sections comes first. And what the linker should have done
//   otherwise, no step changes, and a loader that the result is for refuses: Subsystem, SectionAlignment, empty sections.
// Order: the last step.
//
// Where the headers go. Multiboot2: over the old Multiboot1 header in .text, growing into the padding behind the old
// Multiboot2 header. Its relocatable tag aligns load_addr, and Xen needs `_start` aligned, so load_addr is .text and the
// header must not lie below it. Multiboot1: that form needs 32 bytes which .text has not got, so it lies at the end of the
// header area, which is loaded along, below the image: Multiboot1 loads at fixed addresses, and .text stays aligned.

import { runIfMain, silent, type Say } from "./cli/cli.ts";
import { failing, type Fail } from "./cli/errors.ts";
import { hex, range, some } from "./cli/numbers.ts";
import { hasFlags, isStrayDebug, roundUp, sectionAt, sectionEnd, sectionTableEnd } from "./pe/image.ts";
import type { Image, Section } from "./pe/image.ts";
import { requireMovable } from "./pe/movable.ts";
import { sortSectionTable } from "./pe/serialize.ts";
import { startSymbols } from "./pe/symbols.ts";
import { transformCommand } from "./pe/transform.ts";
import { readStructure, viewOf, writeStructure } from "./tables/fields.ts";
import * as mb from "./tables/multiboot.ts";
import * as pe from "./tables/pe.ts";
import { INT3, NOP, findMultiboot1, findMultiboot2, multiboot2Tags, multibootChecksum } from "./xen/multiboot.ts";
import type { Multiboot2Tag } from "./xen/multiboot.ts";
import { withTruthfulNxCompat } from "./xen/nx-compat.ts";
import { baseRelocations, relocationDirectory } from "./xen/relocations.ts";
import { MULTIBOOT1_ROOM, SPARE_HEADERS, loadSpan, whyNotLinear, type LoadSpan } from "./xen/span.ts";

const USAGE = `Usage: emit-header.ts IN OUT

Step 3 of 3: writes the Multiboot2 and Multiboot1 headers with load addresses.
IN is align-sections.ts's output; "-" is standard input, or standard output for OUT.

  --help  print this text

Next: verify.ts. Exit status: 0 done, 1 image unsuitable, 2 wrong usage.
`;

const ACTION = "write the Multiboot headers";
/** The Multiboot1 header's room ends with the header area, or here if that comes first: QEMU wants the header to begin below 8192 - 48 (hw/i386/multiboot.c). */
const MB1_AREA_END = 8064;
/** Page-align modules, and memory information: what Xen's own Multiboot1 header asks for. */
const MB1_FLAGS = mb.MB1_AOUT_KLUDGE | 3;
/** Xen's headers ask for a load address on such a boundary, and its page tables need it. */
const NEEDED_ALIGN = pe.SIZE_2M;
const SUBSYSTEM_EFI_APPLICATION = 10;

const fail: Fail = failing(ACTION);

/**
 * Writes both headers.
 * @throws ImageError when the image has no header to extend, no room for it, or is not linear
 */
export function emitHeader(image: Image, say: Say = silent): Image {
  requireMovable(image, ACTION);
  const span = loadSpan(image, ACTION);
  requireAligned(image, span);
  requireBootable(image);
  const entry = entryAddress(image, span);
  const old = findOldHeaders(span);
  const header = fitHeader(old, span, entry, say);
  requireInSearchWindow(image, span, header);
  refuseDebugDirectoryIn(image, header);
  refuseOtherHeaders(image);
  const rewritten = image.sections.map((s) => (s === old.section ? rewrite(old, header) : s));
  const sections = voidRelocations(image, rewritten, header, say);
  const truthful = withTruthfulNxCompat({ ...image, sections }, image, say);
  return sortSectionTable({ ...truthful, background: withMultiboot1(image, span, entry) });
}

function requireAligned(image: Image, span: LoadSpan): void {
  const stray = image.sections.find((s) => isStrayDebug(image, s));
  if (stray !== undefined) {
    const where = `${hex(sectionEnd(stray))}, beyond SizeOfImage ${hex(image.optional.sizeOfImage)}`;
    fail(`section ${stray.name} ends at ${where}; run align-sections first`);
  }
  const notLinear = whyNotLinear(image, span);
  if (notLinear !== undefined) fail(`the file is not linear: ${notLinear}; run align-sections first`);
}

/** What no step changes, and a loader that the result is for refuses. */
function requireBootable({ optional, sections }: Image): void {
  const { subsystem, sectionAlignment, sizeOfHeaders } = optional;
  // GRUB's own PE loader takes no other (peimage.c:check_pe_header).
  if (subsystem !== SUBSYSTEM_EFI_APPLICATION)
    fail(`Subsystem is ${subsystem}, needed ${SUBSYSTEM_EFI_APPLICATION} (EFI application)`);
  // Firmware aligns the image by it (xen/arch/x86/efi/efi-boot.h:efi_arch_load_addr_check).
  if (sectionAlignment === 0 || sectionAlignment % NEEDED_ALIGN !== 0) {
    const why = 'Xen stops with "Xen must be loaded at a 2Mb boundary"';
    fail(`SectionAlignment is ${hex(sectionAlignment)}, needed a multiple of ${hex(NEEDED_ALIGN)}: ${why}`);
  }
  // shim, pe-relocate.c:get_section_vma: "has zero size", "has negative size", "is inside image headers".
  const empty = sections.find(
    (s) =>
      s.header.virtualSize === 0 ||
      (s.header.pointerToRawData < sizeOfHeaders && !hasFlags(s, pe.CNT_UNINITIALIZED_DATA)),
  );
  if (empty === undefined) return;
  const { virtualSize, sizeOfRawData } = empty.header;
  const what = `has VirtualSize ${hex(virtualSize)} and ${hex(sizeOfRawData)} bytes of raw data`;
  fail(`section ${empty.name} ${what}, needed some of both: shim takes no image with such a section`);
}

/** The 32-bit entry point: the external symbol `start`, which is the first byte of .text in every Xen so far. */
function entryAddress(image: Image, span: LoadSpan): number {
  const [entry = span.first, other] = startSymbols(image);
  if (other !== undefined) fail(`there are two external symbols start, at ${hex(entry)} and ${hex(other)}, needed one`);
  if (entry < span.first || entry >= span.dataEnd)
    fail(`symbol start is ${hex(entry)}, needed in ${range(span.first, span.dataEnd)}`);
  return entry;
}

// ---- what is there

/** All numbers are RVAs. */
interface OldHeaders {
  readonly section: Section;
  /** Where the old Multiboot1 header begins, or the Multiboot2 header where there is none. */
  readonly from: number;
  readonly end: number;
  readonly tags: readonly Multiboot2Tag[];
  /** The padding byte behind the old header. */
  readonly padding: number;
  /** The end of the padding. */
  readonly roomEnd: number;
}

function findOldHeaders({ sections: [section], first }: LoadSpan): OldHeaders {
  if (section === undefined) return fail("there is no section below .bss");
  const { data } = section;
  const at = findMultiboot2(data);
  if (at === undefined) {
    const where = `the first ${hex(mb.MB2_SEARCH)} bytes of ${section.name} at RVA ${hex(first)}`;
    const why = "this Xen was built without multiboot support in its PE";
    const upstream = `(upstream: "x86/efi: discard multiboot and PVH support for PE binary")`;
    return fail(`there is no Multiboot2 header in ${where}, needed one to extend: ${why} ${upstream}`);
  }
  const tags = multiboot2Tags(data, at, (offset) => `RVA ${hex(first + offset)}`);
  requireSuitableTags(tags, `the Multiboot2 header at RVA ${hex(first + at)} has`);
  const end = at + readStructure(mb.MB2_HEADER, data, at).headerLength;
  const padding = data[end] === INT3 ? INT3 : NOP;
  let roomEnd = end;
  while (data[roomEnd] === padding) roomEnd++;
  const from = first + (oldMultiboot1(section, at) ?? at);
  return { section, from, end: first + end, tags, padding, roomEnd: first + roomEnd };
}

/** @param has the beginning of the message */
function requireSuitableTags(tags: readonly Multiboot2Tag[], has: string): void {
  const present = tags.find((t) => t.type === mb.MB2_ADDRESS || t.type === mb.MB2_ENTRY_ADDRESS);
  if (present !== undefined)
    fail(`${has} the tag ${mb.MB2_TAG_NAMES[present.type]}, needed one without: emit-header has run already`);
  const size = mb.MB2_RELOCATABLE_TAG.size;
  const relocatable = tags.filter((t) => t.type === mb.MB2_RELOCATABLE);
  const alignments = relocatable
    .filter((t) => t.bytes.length >= size)
    .map((t) => readStructure(mb.MB2_RELOCATABLE_TAG, t.bytes, 0).align);
  if (!alignments.some((align) => align >= NEEDED_ALIGN)) {
    const [align] = alignments;
    const what = align === undefined ? "no RELOCATABLE tag" : `a RELOCATABLE tag with alignment ${hex(align)}`;
    fail(`${has} ${what}, needed one with an alignment of at least ${hex(NEEDED_ALIGN)}`);
  }
  // GRUB keeps the last, without looking at its size (grub-core/loader/multiboot_mbi2.c).
  const short = relocatable.find((t) => t.bytes.length < size);
  if (short !== undefined) fail(`${has} a RELOCATABLE tag of ${hex(short.bytes.length)} bytes, needed ${hex(size)}`);
}

/** The old Multiboot1 header's offset in the section: 12 bytes directly in front of the Multiboot2 header, or nowhere. */
function oldMultiboot1({ data, header: { virtualAddress } }: Section, multiboot2: number): number | undefined {
  const at = findMultiboot1(data);
  if (at === undefined) return undefined;
  const { flags } = readStructure(mb.MB1_HEADER, data, at);
  const rva = hex(virtualAddress + at);
  if ((flags & (mb.MB1_AOUT_KLUDGE | mb.MB1_VIDEO_MODE)) !== 0)
    fail(`the Multiboot1 header at RVA ${rva} has flags ${hex(flags)}, needed the form of ${mb.MB1_HEADER.size} bytes`);
  if (roundUp(at + mb.MB1_HEADER.size, mb.MB2_ALIGN) !== multiboot2) {
    const needed = `needed directly in front of the Multiboot2 header at ${hex(virtualAddress + multiboot2)}`;
    fail(`the Multiboot1 header is at RVA ${rva}, ${needed}`);
  }
  return at;
}

// ---- the new Multiboot2 header

/** All numbers are RVAs. */
interface NewHeader {
  /** Where rewriting begins, and ends. */
  readonly from: number;
  readonly end: number;
  /** Where the header begins. */
  readonly rva: number;
  readonly bytes: Uint8Array;
}

/** Tags that may go where there is no room, in this order, if the header itself marks them OPTIONAL: Xen does not read FRAMEBUFFER. */
const EXPENDABLE: readonly number[] = [mb.MB2_FRAMEBUFFER, mb.MB2_CONSOLE_FLAGS];

function fitHeader(old: OldHeaders, span: LoadSpan, entry: number, say: Say): NewHeader {
  const rva = roundUp(old.from, mb.MB2_ALIGN);
  const room = old.roomEnd - rva;
  let { tags } = old;
  const dropped: string[] = [];
  for (const type of EXPENDABLE) {
    if (headerSize(tags) <= room) break;
    const rest = tags.filter((t) => t.type !== type || (t.flags & mb.MB2_TAG_OPTIONAL) === 0);
    if (rest.length !== tags.length) dropped.push(`optional tag ${mb.MB2_TAG_NAMES[type]}`);
    tags = rest;
  }
  const size = headerSize(tags);
  if (size > room) {
    const there = `there are ${hex(room)} up to the code at ${hex(rva + room)}`;
    fail(`it needs ${hex(size)} bytes from RVA ${hex(rva)} on, ${there}`);
  }
  for (const tag of dropped)
    say(`warning: no room for the ${tag} of the Multiboot2 header at RVA ${hex(rva)}: dropped`);
  return { from: old.from, end: Math.max(old.end, rva + size), rva, bytes: headerBytes(tags, rva, span, entry) };
}

function headerSize(tags: readonly Multiboot2Tag[]): number {
  const sizes = [mb.MB2_ADDRESS_TAG, mb.MB2_ENTRY_ADDRESS_TAG, mb.MB2_TAG].map((tag) => tag.size);
  for (const { bytes } of tags) sizes.push(bytes.length);
  return sizes.reduce((sum, size) => sum + roundUp(size, mb.MB2_ALIGN), mb.MB2_HEADER.size);
}

/** ENTRY_ADDRESS comes before the EFI64 entry tag: Limine stops at that one if it has seen no other entry (multiboot2.c). */
function headerBytes(tags: readonly Multiboot2Tag[], rva: number, span: LoadSpan, entryAddr: number): Uint8Array {
  const headerLength = headerSize(tags);
  const bytes = new Uint8Array(headerLength);
  const [magic, architecture] = [mb.MB2_MAGIC, mb.MB2_ARCHITECTURE_I386];
  const checksum = multibootChecksum(magic, architecture, headerLength);
  writeStructure(mb.MB2_HEADER, { magic, architecture, headerLength, checksum }, bytes, 0);
  let at = mb.MB2_HEADER.size;
  const tag = (type: number, { size }: { readonly size: number }) => ({ type, flags: 0, size });
  const addresses = { headerAddr: rva, loadAddr: span.first, loadEndAddr: span.dataEnd, bssEndAddr: span.bssEnd };
  writeStructure(mb.MB2_ADDRESS_TAG, { ...tag(mb.MB2_ADDRESS, mb.MB2_ADDRESS_TAG), ...addresses }, bytes, at);
  at += roundUp(mb.MB2_ADDRESS_TAG.size, mb.MB2_ALIGN);
  const entryTag = { ...tag(mb.MB2_ENTRY_ADDRESS, mb.MB2_ENTRY_ADDRESS_TAG), entryAddr };
  writeStructure(mb.MB2_ENTRY_ADDRESS_TAG, entryTag, bytes, at);
  at += roundUp(mb.MB2_ENTRY_ADDRESS_TAG.size, mb.MB2_ALIGN);
  for (const old of tags) {
    bytes.set(old.bytes, at);
    at += roundUp(old.bytes.length, mb.MB2_ALIGN);
  }
  writeStructure(mb.MB2_TAG, tag(mb.MB2_END, mb.MB2_TAG), bytes, at);
  return bytes;
}

/** Loaders look at the first 32 KiB of the file only, and the whole header must be there (GRUB, multiboot_mbi2.c). */
function requireInSearchWindow(image: Image, span: LoadSpan, { rva, bytes }: NewHeader): void {
  const start = rva - span.first + image.optional.sizeOfHeaders;
  const end = start + bytes.length;
  if (end <= mb.MB2_SEARCH) return;
  const needed = `needed below ${hex(mb.MB2_SEARCH)}, where loaders look for it`;
  fail(`the Multiboot2 header would be at offset ${range(start, end)}, ${needed}`);
}

/** Loaders take the first header that they find in the file, and the header area comes first. */
function refuseOtherHeaders({ background, optional }: Image): void {
  const area = background.subarray(0, optional.sizeOfHeaders);
  for (const [name, at] of [
    ["Multiboot2", findMultiboot2(area)],
    ["Multiboot1", findMultiboot1(area)],
  ] as const) {
    if (at === undefined) continue;
    const needed = "needed none in front of the new one";
    fail(`there is a ${name} header at offset ${hex(at)}, in the header area, ${needed}`);
  }
}

/** Whoever reads it would find Multiboot tags there; no linker puts it into the header, but the data directory may say so. */
function refuseDebugDirectoryIn({ directories }: Image, { from, end }: NewHeader): void {
  const { virtualAddress = 0, size = 0 } = directories[pe.DIRECTORY_DEBUG] ?? {};
  const directoryEnd = virtualAddress + size;
  if (size === 0 || virtualAddress >= end || directoryEnd <= from) return;
  const needed = `needed outside the Multiboot2 header, which takes ${range(from, end)}`;
  fail(`the debug directory is at ${range(virtualAddress, directoryEnd)}, ${needed}`);
}

/** The section with both old headers gone and the new one in place: no second magic may be left for a loader to find. */
function rewrite({ section, padding }: OldHeaders, { from, end, rva, bytes }: NewHeader): Section {
  const start = section.header.virtualAddress;
  const data = section.data.slice();
  data.fill(padding, from - start, end - start);
  data.set(bytes, rva - start);
  return { ...section, data };
}

// ---- the Multiboot1 header

/** The image's background with the Multiboot1 header in the header area. */
function withMultiboot1(image: Image, span: LoadSpan, entryAddr: number): Uint8Array {
  const { sizeOfHeaders } = image.optional;
  const at = Math.min(sizeOfHeaders, MB1_AREA_END) - MULTIBOOT1_ROOM;
  const where = `the Multiboot1 header would be at offset ${hex(at)}`;
  const tableEnd = sectionTableEnd(image);
  if (at - tableEnd < SPARE_HEADERS) {
    const needed = `needed at least ${hex(SPARE_HEADERS)} bytes behind the section table`;
    fail(`${where}, ${needed}, which ends at ${hex(tableEnd)}`);
  }
  if (at % 4 !== 0 || image.background.subarray(at, at + MULTIBOOT1_ROOM).some((byte) => byte !== 0))
    fail(`${where}, needed a multiple of 4 and ${MULTIBOOT1_ROOM} zero bytes there`);
  const background = image.background.slice();
  const loadAddr = span.first - sizeOfHeaders;
  const fields = {
    magic: mb.MB1_MAGIC,
    flags: MB1_FLAGS,
    checksum: multibootChecksum(mb.MB1_MAGIC, MB1_FLAGS),
    headerAddr: loadAddr + at,
    loadAddr,
    loadEndAddr: span.dataEnd,
    bssEndAddr: span.bssEnd,
    entryAddr,
  };
  writeStructure(mb.MB1_ADDRESS_HEADER, fields, background, at);
  return background;
}

// ---- what the rewritten bytes had to do with the rest

/**
 * Firmware must not relocate bytes that now mean something else: entries that target any of them become padding entries
 * (type ABSOLUTE), in place, for Xen walks the same table by its size. It reads none of the fields in question.
 * @param sections the image's sections, one of them rewritten already
 * @returns these sections, with the table in one of them changed
 */
function voidRelocations(
  image: Image,
  sections: readonly Section[],
  { from, end }: NewHeader,
  say: Say,
): readonly Section[] {
  const hit = baseRelocations(image).filter(({ target, size }) => size !== 0 && target < end && target + size > from);
  if (hit.length === 0) return sections;
  say(`note: ${hit.length} base relocations of the old header are void: ${some(hit.map((r) => hex(r.target)))}`);
  const table = relocationDirectory(image).virtualAddress;
  const holder = sectionAt({ ...image, sections }, table);
  return sections.map((section) => {
    if (section !== holder) return section;
    const data = section.data.slice();
    for (const { at } of hit) viewOf(data).setUint16(table - section.header.virtualAddress + at, 0, true);
    return { ...section, data };
  });
}

export const command = transformCommand(USAGE, {}, (image, _values, say) => emitHeader(image, say));

runIfMain(import.meta.url, command);
