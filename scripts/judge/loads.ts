// SPDX-License-Identifier: GPL-2.0-only
// Loads an image the way boot loaders do, from the same bytes that they read: firmware (EDK2), shim, and the two
// Multiboot loaders. Written from the loaders' sources, named at each rule, and from nothing that the transforms use:
// this is what verify judges them by.

import { hex, range } from "../cli/numbers.ts";
import { readStructure, viewOf, type Fields, type Row, type Structure } from "../tables/fields.ts";
import * as mb from "../tables/multiboot.ts";
import {
  ADDRESS_SPACE,
  CNT_UNINITIALIZED_DATA,
  DIRECTORY_BASE_RELOCATION,
  MEM_DISCARDABLE,
  MEM_READ,
} from "../tables/pe.ts";
import { bytesIn, fail, memoryOf, type Memory, type Segment } from "./memory.ts";
import { directoryOf, hasFlags, roundUp, sectionEnd, type Pe, type Section } from "./read.ts";

// ---- firmware

/**
 * What EDK2 puts into memory (MdePkg/Library/BasePeCoffLib/BasePeCoff.c:PeCoffLoaderLoadImage): the headers, and of every
 * section min(VirtualSize, SizeOfRawData) bytes with zeros up to VirtualSize, whatever its flags.
 * Relocations are not applied yet.
 */
export function loadByFirmware(image: Pe): Memory {
  return memoryOf([headerSegment(image), ...image.sections.map((section) => sectionSegment(section, section.data))]);
}

function headerSegment({ bytes, optional }: Pe): Segment {
  return {
    name: "the header area",
    start: 0,
    end: optional.sizeOfHeaders,
    bytes: bytes.subarray(0, optional.sizeOfHeaders),
  };
}

function sectionSegment(section: Section, bytes: Uint8Array): Segment {
  const { virtualAddress, virtualSize, sizeOfRawData } = section.header;
  // EDK2 takes SizeOfRawData then, shim and GRUB take nothing.
  if (virtualSize === 0 && sizeOfRawData !== 0)
    fail(
      `section ${section.name} has VirtualSize 0 and ${hex(sizeOfRawData)} bytes of raw data, which loaders read in different ways`,
    );
  return { name: `section ${section.name}`, start: virtualAddress, end: sectionEnd(section), bytes };
}

/** The base relocation table as firmware finds it: in memory, by data directory 5 (BasePeCoff.c:PeCoffLoaderRelocateImage). */
export function relocationTable(image: Pe, memory: Memory): Uint8Array {
  const { virtualAddress, size } = directoryOf(image, DIRECTORY_BASE_RELOCATION);
  if (size === 0) fail("it has no base relocation table, data directory 5 is empty");
  return bytesIn(memory, virtualAddress, virtualAddress + size, "the base relocation table");
}

// ---- shim

/**
 * What shim puts into memory (pe.c:handle_image): as firmware, but without sections that are discardable or not
 * readable; and its base relocation table, which it takes from the file by the section name .reloc.
 */
export function loadByShim(image: Pe): { memory: Memory; table: Uint8Array } {
  const loaded = image.sections.filter((s) => hasFlags(s, MEM_READ) && !hasFlags(s, MEM_DISCARDABLE));
  const none = new Uint8Array(0);
  const segments = loaded.map((s) => sectionSegment(s, hasFlags(s, CNT_UNINITIALIZED_DATA) ? none : s.data));
  return { memory: memoryOf([headerSegment(image), ...segments]), table: shimTable(image) };
}

/** shim compares the header's eight bytes, and does not know the string table. */
const RELOC_NAME = ".reloc\0\0";

function shimTable(image: Pe): Uint8Array {
  const directory = directoryOf(image, DIRECTORY_BASE_RELOCATION);
  const [section, second] = image.sections.filter((s) => s.header.name === RELOC_NAME && hasFlags(s, MEM_READ));
  if (directory.size === 0 || section === undefined)
    return fail("shim finds no readable section .reloc and relocates nothing");
  if (second !== undefined) fail("shim finds two sections .reloc and refuses the image");
  const { virtualAddress, pointerToRawData, sizeOfRawData } = section.header;
  if (
    virtualAddress !== directory.virtualAddress ||
    directory.size > Math.min(sizeOfRawData, section.header.virtualSize)
  ) {
    const end = directory.virtualAddress + directory.size;
    fail(
      `shim wants data directory 5 at the start of section .reloc at ${range(virtualAddress, sectionEnd(section))}, it is at ${range(directory.virtualAddress, end)}`,
    );
  }
  return image.bytes.subarray(pointerToRawData, pointerToRawData + directory.size);
}

// ---- Multiboot

/** How loaders look for a header: in so many bytes, at multiples of `align`, by a magic and words that add up to 0. */
export interface Multiboot {
  readonly name: string;
  readonly magic: number;
  readonly search: number;
  readonly align: number;
  /** Offsets of the words behind the magic. */
  readonly words: readonly number[];
}

export const MULTIBOOT1: Multiboot = {
  name: "the Multiboot1 header",
  magic: mb.MB1_MAGIC,
  search: mb.MB1_SEARCH,
  align: mb.MB1_ALIGN,
  words: [4, 8],
};
export const MULTIBOOT2: Multiboot = {
  name: "the Multiboot2 header",
  magic: mb.MB2_MAGIC,
  search: mb.MB2_SEARCH,
  align: mb.MB2_ALIGN,
  words: [4, 8, 12],
};

/** What both versions say about an image that is no ELF: link addresses. */
interface Addresses {
  readonly headerAddr: number;
  readonly loadAddr: number;
  readonly loadEndAddr: number;
  readonly bssEndAddr: number;
}

export interface MultibootLoad extends Addresses {
  /** File offset of the header. */
  readonly headerAt: number;
  readonly entryAddr: number;
  /** File offset of what is loaded. */
  readonly offset: number;
  /** What is loaded, at its link address, up to bss_end_addr. */
  readonly segment: Segment;
}

export interface Multiboot1Load extends MultibootLoad {
  readonly flags: number;
}

/** Bytes of the specification's header struct, which iPXE wants inside the file and QEMU below 8192 (hw/i386/multiboot.c). */
const MB1_STRUCT = 48;

/** As GRUB's `multiboot` (grub-core/loader/i386/multiboot_mbi.c), QEMU, syslinux, iPXE and kexec load it. */
export function loadMultiboot1(file: Uint8Array): Multiboot1Load {
  const { name, search } = MULTIBOOT1;
  const at = onlyHeader(file, MULTIBOOT1);
  if (at >= search - MB1_STRUCT || at + MB1_STRUCT > file.length)
    fail(`${name} is at offset ${hex(at)}, needed below ${hex(Math.min(search, file.length) - MB1_STRUCT)}`);
  const header = readStructure(mb.MB1_ADDRESS_HEADER, file, at);
  if ((header.flags & mb.MB1_AOUT_KLUDGE) === 0)
    fail(
      `${name} at offset ${hex(at)} has flags ${hex(header.flags)}, needed bit 16 set: it has no load addresses, run emit-header`,
    );
  return { ...header, headerAt: at, ...loadByAddresses(file, at, header, name) };
}

export interface HeaderTag {
  readonly type: number;
  readonly flags: number;
  /** The whole tag without its padding. */
  readonly bytes: Uint8Array;
}

export interface Multiboot2Load extends MultibootLoad {
  /** All tags but END. */
  readonly tags: readonly HeaderTag[];
  readonly relocatable: { readonly minAddr: number; readonly maxAddr: number; readonly align: number };
}

/** As GRUB's `multiboot2` (grub-core/loader/multiboot_mbi2.c) and Limine load it. */
export function loadMultiboot2(file: Uint8Array): Multiboot2Load {
  const { name, search } = MULTIBOOT2;
  const searched = file.subarray(0, search);
  const at = onlyHeader(searched, MULTIBOOT2);
  const tags = tagsOfHeader(searched, at);
  const one = <Rows extends readonly Row[]>(type: number, form: Structure<Rows>): Fields<Rows> => {
    const found = tags.filter((t) => t.type === type);
    // Of several RELOCATABLE tags GRUB keeps the last.
    const [tag, second] = type === mb.MB2_RELOCATABLE ? found.slice(-1) : found;
    const where = `${name} at offset ${hex(at)}`;
    if (tag === undefined) return fail(`${where} has no tag ${tagName(type)}: run emit-header`);
    if (second !== undefined) fail(`${where} has two tags ${tagName(type)}, needed one`);
    if (tag.bytes.length < form.size)
      fail(`tag ${tagName(type)} of ${where} has ${hex(tag.bytes.length)} bytes, needed ${hex(form.size)}`);
    return readStructure(form, tag.bytes, 0);
  };
  const addresses = one(mb.MB2_ADDRESS, mb.MB2_ADDRESS_TAG);
  const { entryAddr } = one(mb.MB2_ENTRY_ADDRESS, mb.MB2_ENTRY_ADDRESS_TAG);
  const relocatable = one(mb.MB2_RELOCATABLE, mb.MB2_RELOCATABLE_TAG);
  return { ...addresses, headerAt: at, entryAddr, tags, relocatable, ...loadByAddresses(file, at, addresses, name) };
}

/** The tags of a header, without END. GRUB walks to END, Limine up to header_length: both must be the same. */
export function tagsOfHeader(bytes: Uint8Array, at: number): HeaderTag[] {
  const { headerLength, architecture } = readStructure(mb.MB2_HEADER, bytes, at);
  const name = `the Multiboot2 header at offset ${hex(at)}`;
  if (architecture !== mb.MB2_ARCHITECTURE_I386)
    fail(`${name} is for architecture ${architecture}, needed ${mb.MB2_ARCHITECTURE_I386}`);
  const end = at + headerLength;
  if (end > bytes.length) fail(`${name} ends at ${hex(end)}, needed at most ${hex(bytes.length)}`);
  const tags: HeaderTag[] = [];
  for (let tag = at + mb.MB2_HEADER.size; tag + mb.MB2_TAG.size <= end;) {
    const { type, flags, size } = readStructure(mb.MB2_TAG, bytes, tag);
    const next = tag + roundUp(size, mb.MB2_ALIGN);
    if (size < mb.MB2_TAG.size || next > end)
      fail(
        `${name} has a tag ${tagName(type)} of ${hex(size)} bytes at offset ${hex(tag)}, needed from ${hex(mb.MB2_TAG.size)} to ${hex(end - tag)}`,
      );
    if (type === mb.MB2_END) {
      if (next !== end)
        fail(`${name} has an END tag up to ${hex(next)}, needed up to ${hex(end)}, where header_length ends`);
      return tags;
    }
    tags.push({ type, flags, bytes: bytes.subarray(tag, tag + size) });
    tag = next;
  }
  return fail(`${name} has no END tag up to ${hex(end)}`);
}

export function tagName(type: number): string {
  return mb.MB2_TAG_NAMES[type] ?? `of type ${type}`;
}

/**
 * The offset of the first header; -1 without one.
 * @param valid whether its checksum has to be right
 */
export function findHeader(bytes: Uint8Array, { magic, search, align, words }: Multiboot, valid = true): number {
  const view = viewOf(bytes);
  const last = Math.min(bytes.length, search) - 4 - 4 * words.length;
  for (let at = 0; at <= last; at += align) {
    if (view.getUint32(at, true) !== magic) continue;
    const sum = words.reduce((total, word) => total + view.getUint32(at + word, true), magic);
    if (!valid || sum % ADDRESS_SPACE === 0) return at;
  }
  return -1;
}

/** The first magic must be a valid header: GRUB looks on behind an invalid one, Limine stops there (common/protos/). */
function onlyHeader(file: Uint8Array, kind: Multiboot): number {
  const at = findHeader(file, kind);
  const first = findHeader(file, kind, false);
  if (at < 0)
    fail(
      `${kind.name} is not in its first ${hex(kind.search)} bytes${first < 0 ? "" : `: the magic at offset ${hex(first)} has a wrong checksum`}`,
    );
  if (first !== at)
    fail(`${kind.name} at offset ${hex(at)} comes behind a magic with a wrong checksum at ${hex(first)}`);
  return at;
}

/** GRUB checks none of this and loads garbage; QEMU, syslinux, iPXE, Limine and kexec each refuse some of it. */
function loadByAddresses(
  file: Uint8Array,
  headerAt: number,
  addresses: Addresses,
  name: string,
): { offset: number; segment: Segment } {
  const { headerAddr, loadAddr, loadEndAddr, bssEndAddr } = addresses;
  const offset = headerAt - (headerAddr - loadAddr);
  const end = offset + loadEndAddr - loadAddr;
  const where = `${name} at offset ${hex(headerAt)}`;
  if (headerAddr < loadAddr || offset < 0)
    fail(
      `${where} has header_addr ${hex(headerAddr)}, needed from load_addr ${hex(loadAddr)} to ${hex(loadAddr + headerAt)}`,
    );
  if (loadEndAddr <= loadAddr || end > file.length)
    fail(
      `${where} has load_end_addr ${hex(loadEndAddr)}, needed above load_addr ${hex(loadAddr)} and at most ${hex(loadAddr + file.length - offset)}, the end of the file`,
    );
  if (bssEndAddr < loadEndAddr)
    fail(`${where} has bss_end_addr ${hex(bssEndAddr)}, needed at least load_end_addr ${hex(loadEndAddr)}`);
  return {
    offset,
    segment: { name: "the Multiboot image", start: loadAddr, end: bssEndAddr, bytes: file.subarray(offset, end) },
  };
}
