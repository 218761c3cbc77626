// SPDX-License-Identifier: GPL-2.0-only
//
// Writes the Multiboot2 and Multiboot1 headers with which a loader can load a file that is no ELF: with addresses.
//
// Changes: the first section from the old Multiboot1 header to the end of the new Multiboot2 header; 32 bytes at the end
//   of the header area (the new Multiboot1 header); base relocation entries for the rewritten bytes (they become
//   padding entries); NX_COMPAT where it is not true; the order of the section table; CheckSum.
// Leaves: every other byte, at its place in the file.
// Refuses: an image without Multiboot2 header, one that has addresses already (so running it twice is refused), no room
//   behind the header, one that is not linear: align-sections comes first.
// Order: the last step.
//
// Where the headers go. Multiboot2: over the old Multiboot1 header in .text, growing into the padding behind the old
// Multiboot2 header. Its relocatable tag aligns load_addr, and Xen needs `_start` aligned, so load_addr is .text and the
// header must not lie below it. Multiboot1: that form needs 32 bytes which .text has not got, so it lies at the end of the
// header area, which is loaded along, below the image: Multiboot1 loads at fixed addresses, and .text stays aligned.

import { runIfMain } from "./cli/cli.ts";
import { ImageError } from "./cli/errors.ts";
import { hex, range } from "./cli/numbers.ts";
import {
  checkSections,
  hasFlags,
  isStrayDebug,
  roundUp,
  sectionEnd,
  sectionTableEnd,
  sortSectionTable,
  symbolsNamed,
} from "./pe/image.ts";
import type { Image, Section } from "./pe/image.ts";
import { onBytes, silent, transformCommand } from "./pe/transform.ts";
import type { Say } from "./pe/transform.ts";
import { readStructure, viewOf, writeStructure } from "./tables/fields.ts";
import {
  MB1_ADDRESS_HEADER,
  MB1_AOUT_KLUDGE,
  MB1_HEADER,
  MB1_MAGIC,
  MB1_VIDEO_MODE,
  MB2_ADDRESS,
  MB2_ADDRESS_TAG,
  MB2_ALIGN,
  MB2_ARCHITECTURE_I386,
  MB2_CONSOLE_FLAGS,
  MB2_END,
  MB2_ENTRY_ADDRESS,
  MB2_ENTRY_ADDRESS_TAG,
  MB2_FRAMEBUFFER,
  MB2_HEADER,
  MB2_MAGIC,
  MB2_RELOCATABLE,
  MB2_RELOCATABLE_TAG,
  MB2_SEARCH,
  MB2_TAG,
  MB2_TAG_NAMES,
  MB2_TAG_OPTIONAL,
} from "./tables/multiboot.ts";
import { DIRECTORY_DEBUG, MEM_EXECUTE, MEM_WRITE, NX_COMPAT, PAGE_SIZE, SECTION_HEADER, SIZE_2M } from "./tables/pe.ts";
import { findMultiboot1, findMultiboot2, multiboot2Tags, multibootChecksum } from "./xen/multiboot.ts";
import type { Multiboot2Tag } from "./xen/multiboot.ts";
import { fixupSize, loadSpan, relocationDirectory, relocationLists, whyNotLinear } from "./xen/xen.ts";
import type { LoadSpan } from "./xen/xen.ts";

const USAGE = `Usage: emit-header.ts IN OUT

Step 3 of 3: writes the Multiboot2 and Multiboot1 headers with load addresses.
IN is align-sections.ts's output; "-" is standard input, or standard output for OUT.

  --help  print this text

Next: verify.ts. Exit status: 0 done, 1 image unsuitable, 2 wrong usage.
`;

const ACTION = "write the Multiboot headers";
/** What counts as padding behind the old header: NOP and INT3. Anything else, zeros included, is content. */
const PADDING: readonly number[] = [0x90, 0xcc];
/** The Multiboot1 header ends so far from the end of the header area … */
const MB1_FROM_END = 64;
/** … or from here, if that comes first: QEMU wants the header to begin below 8192 - 48 (hw/i386/multiboot.c). */
const MB1_AREA_END = 8064;
/** Room left behind the section table for tools that append section headers in place. */
const SPARE_BYTES = 16 * SECTION_HEADER.size;
/** Page-align modules, and memory information: what Xen's own Multiboot1 header asks for. */
const MB1_FLAGS = MB1_AOUT_KLUDGE | 3;
/** Xen's headers ask for a load address on such a boundary, and its page tables need it. */
const NEEDED_ALIGN = SIZE_2M;

/**
 * Writes both headers.
 * @throws ImageError when the image has no header to extend, no room for it, or is not linear
 */
export function emitHeader(image: Image, say: Say = silent): Image {
  checkSections(image, ACTION);
  const span = loadSpan(image, ACTION);
  const stray = image.sections.find((s) => isStrayDebug(image, s));
  if (stray !== undefined)
    fail(
      `section ${stray.name} ends at ${hex(sectionEnd(stray))}, beyond SizeOfImage ${hex(image.optional.sizeOfImage)}; run align-sections first`,
    );
  const notLinear = whyNotLinear(image, span);
  if (notLinear !== undefined) fail(`the file is not linear: ${notLinear}; run align-sections first`);
  const entry = entryAddress(image, span);
  const old = findOldHeaders(span);
  const header = fitHeader(old, span, entry, say);
  requireInSearchWindow(image, span, header);
  refuseDebugDirectoryIn(image, header);
  refuseOtherHeaders(image);
  const sections = new Map([[old.section, rewrite(old, header)]]);
  voidRelocations(image, sections, header.from, header.end, say);
  return sortSectionTable({
    ...image,
    optional: { ...image.optional, dllCharacteristics: truthfulDllCharacteristics(image, say) },
    sections: image.sections.map((s) => sections.get(s) ?? s),
    background: withMultiboot1(image, span, entry),
  });
}

function fail(reason: string): never {
  throw new ImageError(`Cannot ${ACTION}: ${reason}`);
}

/** The 32-bit entry point: the external symbol `start`, which is the first byte of .text in every Xen so far. */
function entryAddress(image: Image, span: LoadSpan): number {
  const found = new Set(
    symbolsNamed(image, "start")
      .filter((s) => s.external)
      .map((s) => s.rva),
  );
  const [entry = span.first, other] = found;
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
    return fail(
      `there is no Multiboot2 header in the first ${hex(MB2_SEARCH)} bytes of ${section.name} at RVA ${hex(first)}, needed one to extend: ` +
        'this Xen was built without multiboot support in its PE (upstream: "x86/efi: discard multiboot and PVH support for PE binary")',
    );
  }
  const tags = multiboot2Tags(data, at, (offset) => `RVA ${hex(first + offset)}`);
  requireSuitableTags(tags, first + at);
  const end = at + readStructure(MB2_HEADER, data, at).headerLength;
  const padding = data[end];
  let roomEnd = end;
  if (padding !== undefined && PADDING.includes(padding)) while (data[roomEnd] === padding) roomEnd++;
  return {
    section,
    from: first + (oldMultiboot1(section, at) ?? at),
    end: first + end,
    tags,
    padding: roomEnd > end && padding !== undefined ? padding : 0x90,
    roomEnd: first + roomEnd,
  };
}

function requireSuitableTags(tags: readonly Multiboot2Tag[], rva: number): void {
  const present = tags.find((t) => t.type === MB2_ADDRESS || t.type === MB2_ENTRY_ADDRESS);
  if (present !== undefined)
    fail(
      `the Multiboot2 header at RVA ${hex(rva)} has the tag ${MB2_TAG_NAMES[present.type]}, needed one without: emit-header has run already`,
    );
  const relocatable = tags.filter((t) => t.type === MB2_RELOCATABLE);
  const alignments = relocatable
    .filter((t) => t.bytes.length >= MB2_RELOCATABLE_TAG.size)
    .map((t) => readStructure(MB2_RELOCATABLE_TAG, t.bytes, 0).align);
  if (!alignments.some((align) => align >= NEEDED_ALIGN)) {
    const [align] = alignments;
    fail(
      `the Multiboot2 header at RVA ${hex(rva)} has ${align === undefined ? "no RELOCATABLE tag" : `a RELOCATABLE tag with alignment ${hex(align)}`}, needed one with an alignment of at least ${hex(NEEDED_ALIGN)}`,
    );
  }
  // GRUB keeps the last, without looking at its size (grub-core/loader/multiboot_mbi2.c).
  const short = relocatable.find((t) => t.bytes.length < MB2_RELOCATABLE_TAG.size);
  if (short !== undefined)
    fail(
      `the Multiboot2 header at RVA ${hex(rva)} has a RELOCATABLE tag of ${hex(short.bytes.length)} bytes, needed ${hex(MB2_RELOCATABLE_TAG.size)}`,
    );
}

/** The old Multiboot1 header's offset in the section: 12 bytes directly in front of the Multiboot2 header, or nowhere. */
function oldMultiboot1({ data, header: { virtualAddress } }: Section, multiboot2: number): number | undefined {
  const at = findMultiboot1(data);
  if (at === undefined) return undefined;
  const { flags } = readStructure(MB1_HEADER, data, at);
  if ((flags & (MB1_AOUT_KLUDGE | MB1_VIDEO_MODE)) !== 0)
    fail(
      `the Multiboot1 header at RVA ${hex(virtualAddress + at)} has flags ${hex(flags)}, needed the form of ${MB1_HEADER.size} bytes`,
    );
  if (roundUp(at + MB1_HEADER.size, MB2_ALIGN) !== multiboot2) {
    fail(
      `the Multiboot1 header is at RVA ${hex(virtualAddress + at)}, needed directly in front of the Multiboot2 header at ${hex(virtualAddress + multiboot2)}`,
    );
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
const EXPENDABLE: readonly number[] = [MB2_FRAMEBUFFER, MB2_CONSOLE_FLAGS];

function fitHeader(old: OldHeaders, span: LoadSpan, entry: number, say: Say): NewHeader {
  const rva = roundUp(old.from, MB2_ALIGN);
  const room = old.roomEnd - rva;
  let { tags } = old;
  const dropped: string[] = [];
  const drop = [...EXPENDABLE];
  while (headerSize(tags) > room) {
    const type = drop.shift();
    if (type === undefined)
      fail(
        `it needs ${hex(headerSize(tags))} bytes from RVA ${hex(rva)} on, there are ${hex(room)} up to the code at ${hex(rva + room)}`,
      );
    const rest = tags.filter((t) => t.type !== type || (t.flags & MB2_TAG_OPTIONAL) === 0);
    if (rest.length !== tags.length)
      dropped.push(
        `warning: no room for the optional tag ${MB2_TAG_NAMES[type]} of the Multiboot2 header at RVA ${hex(rva)}: dropped`,
      );
    tags = rest;
  }
  dropped.forEach(say);
  const bytes = headerBytes(tags, rva, span, entry);
  return { from: old.from, end: Math.max(old.end, rva + bytes.length), rva, bytes };
}

function headerSize(tags: readonly Multiboot2Tag[]): number {
  const sizes = [MB2_ADDRESS_TAG.size, MB2_ENTRY_ADDRESS_TAG.size, ...tags.map((t) => t.bytes.length), MB2_TAG.size];
  return sizes.reduce((sum, size) => sum + roundUp(size, MB2_ALIGN), MB2_HEADER.size);
}

/** ENTRY_ADDRESS comes before the EFI64 entry tag: Limine stops at that one if it has seen no other entry (multiboot2.c). */
function headerBytes(tags: readonly Multiboot2Tag[], rva: number, span: LoadSpan, entry: number): Uint8Array {
  const headerLength = headerSize(tags);
  const bytes = new Uint8Array(headerLength);
  const [magic, architecture] = [MB2_MAGIC, MB2_ARCHITECTURE_I386];
  writeStructure(
    MB2_HEADER,
    { magic, architecture, headerLength, checksum: multibootChecksum(magic, architecture, headerLength) },
    bytes,
    0,
  );
  const addressAt = MB2_HEADER.size;
  const { size } = MB2_ADDRESS_TAG;
  const addresses = { headerAddr: rva, loadAddr: span.first, loadEndAddr: span.dataEnd, bssEndAddr: span.bssEnd };
  writeStructure(MB2_ADDRESS_TAG, { type: MB2_ADDRESS, flags: 0, size, ...addresses }, bytes, addressAt);
  const entryAt = addressAt + size;
  writeStructure(
    MB2_ENTRY_ADDRESS_TAG,
    { type: MB2_ENTRY_ADDRESS, flags: 0, size: MB2_ENTRY_ADDRESS_TAG.size, entryAddr: entry },
    bytes,
    entryAt,
  );
  let at = entryAt + roundUp(MB2_ENTRY_ADDRESS_TAG.size, MB2_ALIGN);
  for (const tag of tags) {
    bytes.set(tag.bytes, at);
    at += roundUp(tag.bytes.length, MB2_ALIGN);
  }
  writeStructure(MB2_TAG, { type: MB2_END, flags: 0, size: MB2_TAG.size }, bytes, at);
  return bytes;
}

/** Loaders look at the first 32 KiB of the file only, and the whole header must be there (GRUB, multiboot_mbi2.c). */
function requireInSearchWindow(image: Image, span: LoadSpan, { rva, bytes }: NewHeader): void {
  const start = rva - span.first + image.optional.sizeOfHeaders;
  const end = start + bytes.length;
  if (end > MB2_SEARCH)
    fail(
      `the Multiboot2 header would be at offset ${range(start, end)}, needed below ${hex(MB2_SEARCH)}, where loaders look for it`,
    );
}

/** Loaders take the first header that they find in the file, and the header area comes first. */
function refuseOtherHeaders({ background, optional }: Image): void {
  const area = background.subarray(0, optional.sizeOfHeaders);
  for (const [name, at] of [
    ["Multiboot2", findMultiboot2(area)],
    ["Multiboot1", findMultiboot1(area)],
  ] as const) {
    if (at !== undefined)
      fail(`there is a ${name} header at offset ${hex(at)}, in the header area, needed none in front of the new one`);
  }
}

/** Whoever reads it would find Multiboot tags there; no linker puts it into the header, but the data directory may say so. */
function refuseDebugDirectoryIn({ directories }: Image, { from, end }: NewHeader): void {
  const { virtualAddress, size } = directories[DIRECTORY_DEBUG] ?? { virtualAddress: 0, size: 0 };
  const directoryEnd = virtualAddress + size;
  if (size !== 0 && virtualAddress < end && from < directoryEnd)
    fail(
      `the debug directory is at ${range(virtualAddress, directoryEnd)}, needed outside the Multiboot2 header, which takes ${range(from, end)}`,
    );
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

/**
 * The header area with the Multiboot1 header in it.
 * @returns the image's background: what is not section, symbol or header field
 */
function withMultiboot1(image: Image, span: LoadSpan, entry: number): Uint8Array {
  const { sizeOfHeaders } = image.optional;
  const at = Math.min(sizeOfHeaders, MB1_AREA_END) - MB1_FROM_END;
  const tableEnd = sectionTableEnd(image);
  if (at - tableEnd < SPARE_BYTES) {
    fail(
      `the Multiboot1 header would be at offset ${hex(at)}, needed at least ${hex(SPARE_BYTES)} bytes behind the section table, which ends at ${hex(tableEnd)}`,
    );
  }
  if (at % 4 !== 0 || image.background.subarray(at, at + MB1_FROM_END).some((byte) => byte !== 0)) {
    fail(
      `the Multiboot1 header would be at offset ${hex(at)}, needed a multiple of 4 and ${MB1_FROM_END} zero bytes there`,
    );
  }
  const background = image.background.slice();
  const [magic, flags] = [MB1_MAGIC, MB1_FLAGS];
  const loadAddr = span.first - sizeOfHeaders;
  const fields = {
    magic,
    flags,
    checksum: multibootChecksum(magic, flags),
    headerAddr: loadAddr + at,
    loadAddr,
    loadEndAddr: span.dataEnd,
    bssEndAddr: span.bssEnd,
    entryAddr: entry,
  };
  writeStructure(MB1_ADDRESS_HEADER, fields, background, at);
  return background;
}

// ---- what the rewritten bytes had to do with the rest

/**
 * Firmware must not relocate bytes that now mean something else: entries that target any of them become padding entries
 * (type ABSOLUTE), in place, for Xen walks the same table by its size. It reads none of the fields in question.
 */
function voidRelocations(image: Image, sections: Map<Section, Section>, from: number, end: number, say: Say): void {
  const { at: offsets, types, targets } = relocationLists(image);
  const hit: number[] = [];
  for (let i = 0; i < types.length; i++) {
    const target = targets[i] ?? 0;
    const size = fixupSize(types[i]);
    if (size !== 0 && target < end && target + size > from) hit.push(i);
  }
  if (hit.length === 0) return;
  const start = relocationDirectory(image).virtualAddress;
  const holder = image.sections.find(
    (s) => start >= s.header.virtualAddress && start < s.header.virtualAddress + s.data.length,
  );
  if (holder === undefined) return fail(`the base relocation table at RVA ${hex(start)} is not in a section's data`);
  const section = sections.get(holder) ?? holder;
  const data = section.data.slice();
  const view = viewOf(data);
  for (const i of hit) view.setUint16(start - holder.header.virtualAddress + (offsets[i] ?? 0), 0, true);
  sections.set(holder, { ...section, data });
  say(
    `note: ${hit.length} base relocations of the old header are void: ${hit.map((i) => hex(targets[i] ?? 0)).join(" ")}`,
  );
}

/**
 * GNU ld set NX_COMPAT by default for a while, on images that are not; loaders that believe it refuse them (GRUB 2.14,
 * peimage.c; shim's NX policy).
 */
function truthfulDllCharacteristics(image: Image, say: Say): number {
  const { dllCharacteristics } = image.optional;
  if ((dllCharacteristics & NX_COMPAT) === 0) return dllCharacteristics;
  const unaligned = image.sections.find((s) => s.header.virtualAddress % PAGE_SIZE !== 0);
  const writable = image.sections.find((s) => hasFlags(s, MEM_WRITE) && hasFlags(s, MEM_EXECUTE));
  if (unaligned === undefined && writable === undefined) return dllCharacteristics;
  const reasons = [
    ...(writable === undefined ? [] : [`section ${writable.name} is writable and executable`]),
    ...(unaligned === undefined
      ? []
      : [`section ${unaligned.name} at RVA ${hex(unaligned.header.virtualAddress)} is not page-aligned`]),
  ];
  say(`note: NX_COMPAT is cleared, the image is not: ${reasons.join(", ")}`);
  return dllCharacteristics & ~NX_COMPAT;
}

export const command = transformCommand(USAGE, {}, (bytes, _values, say) =>
  onBytes((image) => emitHeader(image, say))(bytes),
);

runIfMain(import.meta.url, command);
