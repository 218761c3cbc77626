// SPDX-License-Identifier: GPL-2.0-only
// Loads an image the way boot loaders do, from the same bytes that they read: firmware (EDK2), shim, and the two
// Multiboot loaders. Written from the loaders' sources, named at each rule, and from nothing that the transforms use:
// this is what verify judges them by.
//
// Memory is a list of segments that are views of the file with zeros behind; headers may claim 4 GiB, and nothing is ever
// allocated by what they claim.

import { Buffer } from "node:buffer";
import { ImageError } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { hasFlags, roundUp, sectionEnd } from "../pe/image.ts";
import type { Image } from "../pe/image.ts";
import { readStructure, viewOf } from "../tables/fields.ts";
import {
  MB1_ADDRESS_HEADER,
  MB1_ALIGN,
  MB1_AOUT_KLUDGE,
  MB1_MAGIC,
  MB1_SEARCH,
  MB2_ADDRESS,
  MB2_ADDRESS_TAG,
  MB2_ALIGN,
  MB2_ARCHITECTURE_I386,
  MB2_END,
  MB2_ENTRY_ADDRESS,
  MB2_ENTRY_ADDRESS_TAG,
  MB2_HEADER,
  MB2_MAGIC,
  MB2_RELOCATABLE,
  MB2_RELOCATABLE_TAG,
  MB2_SEARCH,
  MB2_TAG,
  MB2_TAG_NAMES,
} from "../tables/multiboot.ts";
import { CNT_UNINITIALIZED_DATA, DIRECTORY_BASE_RELOCATION, MEM_DISCARDABLE, MEM_READ } from "../tables/pe.ts";

// ---- memory

/** A range of memory. Addresses are RVAs, or link addresses, which for Xen are the same. */
export interface Extent {
  readonly name: string;
  readonly start: number;
  readonly end: number;
}

/** A range of memory that a loader has filled. */
export interface Segment extends Extent {
  /** What is at its start; zeros follow up to `end`. */
  readonly bytes: Uint8Array;
}

/** In the order of addresses, without overlap. What is in no segment is undefined: firmware does not clear it. */
export type Memory = readonly Segment[];

const ADDRESS_SPACE = 2 ** 32;
const ZEROS = new Uint8Array(1 << 16);

/** Puts segments in order. @throws ImageError when two overlap, or one is beyond 4 GiB */
export function memoryOf<S extends Extent>(segments: readonly S[]): S[] {
  const memory = segments.filter((s) => s.end > s.start).sort((a, b) => a.start - b.start);
  memory.forEach((segment, i) => {
    const before = memory[i - 1];
    const where = `${segment.name} at ${range(segment.start, segment.end)}`;
    if (segment.end > ADDRESS_SPACE) fail(`${where} ends beyond ${hex(ADDRESS_SPACE)}`);
    if (before !== undefined && segment.start < before.end)
      fail(`${where} overlaps ${before.name} at ${range(before.start, before.end)}`);
  });
  return memory;
}

/** @throws ImageError that says so */
export function fail(reason: string): never {
  throw new ImageError(`cannot be loaded: ${reason}`);
}

/** The segment that an address lies in. */
export function segmentAt<S extends Extent>(memory: readonly S[], address: number): S | undefined {
  const segment = memory[lowerBound(memory.length, (i) => (memory[i]?.end ?? 0) <= address)];
  return segment !== undefined && segment.start <= address ? segment : undefined;
}

/** How many of `count` things in a row, from the first on, come before some place. */
export function lowerBound(count: number, isBefore: (i: number) => boolean): number {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (isBefore(middle)) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * The bytes of a range, which the file must hold.
 * @throws ImageError when it is not inside one segment's bytes
 */
export function bytesIn(memory: Memory, start: number, end: number, what: string): Uint8Array {
  const segment = segmentAt(memory, start);
  if (segment === undefined || end > segment.start + segment.bytes.length)
    fail(`${what} at ${range(start, end)} is not inside one section's data`);
  return segment.bytes.subarray(start - segment.start, end - segment.start);
}

/**
 * Where two ranges of memory differ.
 * @param size bytes to compare, from the start of both; beyond their own bytes both are zeros
 * @returns runs of differing bytes, offsets from the start; differences close to each other are one run
 */
export function* differences(a: Uint8Array, b: Uint8Array, size: number): Generator<[start: number, end: number]> {
  const [x, y] = [a.subarray(0, size), b.subarray(0, size)];
  const [short, long] = x.length < y.length ? [x, y] : [y, x];
  let run: [number, number] | undefined;
  // Two loaders may have taken the very same bytes of the file.
  let end = x.buffer === y.buffer && x.byteOffset === y.byteOffset ? short.length : 0;
  while (end < long.length) {
    const at = end;
    end = Math.min(at + ZEROS.length, at < short.length ? short.length : long.length);
    const part = long.subarray(at, end);
    if (at < short.length ? Buffer.compare(short.subarray(at, end), part) === 0 : isZero(part)) continue;
    for (let i = at; i < end; i++) {
      if ((short[i] ?? 0) === long[i]) continue;
      if (run !== undefined && i - run[1] < 8) run[1] = i + 1;
      else {
        if (run !== undefined) yield run;
        run = [i, i + 1];
      }
    }
  }
  if (run !== undefined) yield run;
}

/** Whether all bytes are zero. */
export function isZero(bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.length; at += ZEROS.length) {
    const part = bytes.subarray(at, at + ZEROS.length);
    if (Buffer.compare(part, ZEROS.subarray(0, part.length)) !== 0) return false;
  }
  return true;
}

// ---- firmware

/**
 * What EDK2 puts into memory (MdePkg/Library/BasePeCoffLib/BasePeCoff.c:PeCoffLoaderLoadImage): the headers, and of every
 * section min(VirtualSize, SizeOfRawData) bytes with zeros up to VirtualSize, whatever its flags.
 * Relocations are not applied yet.
 */
export function loadByFirmware(image: Image): Memory {
  return memoryOf([headerSegment(image), ...image.sections.map((section) => sectionSegment(section, section.data))]);
}

function headerSegment({ background, optional }: Image): Segment {
  return {
    name: "the header area",
    start: 0,
    end: optional.sizeOfHeaders,
    bytes: background.subarray(0, optional.sizeOfHeaders),
  };
}

function sectionSegment(section: Image["sections"][number], bytes: Uint8Array): Segment {
  const { virtualAddress, virtualSize, sizeOfRawData } = section.header;
  // EDK2 takes SizeOfRawData then, shim and GRUB take nothing.
  if (virtualSize === 0 && sizeOfRawData !== 0)
    fail(
      `section ${section.name} has VirtualSize 0 and ${hex(sizeOfRawData)} bytes of raw data, which loaders read in different ways`,
    );
  return { name: `section ${section.name}`, start: virtualAddress, end: sectionEnd(section), bytes };
}

/** The base relocation table as firmware finds it: in memory, by data directory 5 (BasePeCoff.c:PeCoffLoaderRelocateImage). */
export function relocationTable(image: Image, memory: Memory): Uint8Array {
  const directory = image.directories[DIRECTORY_BASE_RELOCATION];
  if (directory === undefined || directory.size === 0)
    return fail("it has no base relocation table, data directory 5 is empty");
  return bytesIn(
    memory,
    directory.virtualAddress,
    directory.virtualAddress + directory.size,
    "the base relocation table",
  );
}

// ---- shim

/**
 * What shim puts into memory (pe.c:handle_image): as firmware, but without sections that are discardable or not
 * readable; and its base relocation table, which it takes from the file by the section name .reloc.
 */
export function loadByShim(image: Image): { memory: Memory; table: Uint8Array } {
  const loaded = image.sections.filter((s) => hasFlags(s, MEM_READ) && !hasFlags(s, MEM_DISCARDABLE));
  const none = new Uint8Array(0);
  const segments = loaded.map((s) => sectionSegment(s, hasFlags(s, CNT_UNINITIALIZED_DATA) ? none : s.data));
  return { memory: memoryOf([headerSegment(image), ...segments]), table: shimTable(image) };
}

function shimTable(image: Image): Uint8Array {
  const directory = image.directories[DIRECTORY_BASE_RELOCATION];
  const [section, second] = image.sections.filter((s) => s.name === ".reloc" && hasFlags(s, MEM_READ));
  if (directory === undefined || section === undefined)
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
  return image.background.subarray(pointerToRawData, pointerToRawData + directory.size);
}

// ---- base relocations

/** The entries of a base relocation table, in its order; element i of each array is about entry i. */
export interface Fixups {
  readonly count: number;
  /** Offset of the 16-bit entry in the table. */
  readonly at: Uint32Array;
  /** 0 (nothing), 3 (32 bits) or 10 (64 bits); PE specification, "Base Relocation Types". */
  readonly types: Uint8Array;
  /** RVA. An array of numbers: what is read from a Float64Array is an object each time until the code is compiled. */
  readonly targets: readonly number[];
}

const BLOCK_HEADER_SIZE = 8;
const HIGHLOW = 3;
const DIR64 = 10;
/** Bytes that a fix-up changes; Xen stops at any other type (xen/arch/x86/efi/efi-boot.h:efi_arch_relocate_image). */
const WIDTHS: Readonly<Record<number, number>> = { 0: 0, [HIGHLOW]: 4, [DIR64]: 8 };

export function fixupWidth(type: number | undefined): number {
  return WIDTHS[type ?? 0] ?? 0;
}

/** Reads a table by the rules of EDK2, shim, U-Boot and Xen together. @throws ImageError when any of them would stop */
export function readFixups(table: Uint8Array): Fixups {
  const view = viewOf(table);
  const most = table.length >>> 1;
  const [at, types, targets] = [new Uint32Array(most), new Uint8Array(most), new Array<number>(most)];
  let count = 0;
  for (let block = 0; block < table.length;) {
    const left = table.length - block;
    const size = left < BLOCK_HEADER_SIZE ? 0 : view.getUint32(block + 4, true);
    // Xen goes on at the next multiple of 4, the others where the block ends: only the last one may end off one.
    if (size < BLOCK_HEADER_SIZE || size % (size === left ? 2 : 4) !== 0 || size > left)
      fail(
        `the block at offset ${hex(block)} of its base relocation table has SizeOfBlock ${hex(size)}, needed a multiple of 4 from 0x8 to ${hex(left)}`,
      );
    const page = view.getUint32(block, true);
    for (let entry = block + BLOCK_HEADER_SIZE; entry < block + size; entry += 2) {
      const word = view.getUint16(entry, true);
      const type = word >>> 12;
      if (WIDTHS[type] === undefined)
        fail(
          `the base relocation for RVA ${hex(page + (word & 0xfff))} has type ${type}, needed 0, 3 or 10: Xen stops with "Unsupported relocation type"`,
        );
      at[count] = entry;
      types[count] = type;
      targets[count++] = page + (word & 0xfff);
    }
    block += size;
  }
  return { count, at: at.subarray(0, count), types: types.subarray(0, count), targets };
}

// ---- Multiboot

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
  const name = "the Multiboot1 header";
  const searched = file.subarray(0, MB1_SEARCH);
  const at = onlyHeader(searched, MB1_SEARCH, MB1_ALIGN, MB1_MAGIC, [4, 8], name);
  if (at >= MB1_SEARCH - MB1_STRUCT || at + MB1_STRUCT > file.length)
    fail(`${name} is at offset ${hex(at)}, needed below ${hex(Math.min(MB1_SEARCH, file.length) - MB1_STRUCT)}`);
  const header = readStructure(MB1_ADDRESS_HEADER, searched, at);
  if ((header.flags & MB1_AOUT_KLUDGE) === 0)
    fail(
      `${name} at offset ${hex(at)} has flags ${hex(header.flags)}, needed bit 16 set: it has no load addresses, run emit-header`,
    );
  return { ...header, headerAt: at, ...loadByAddresses(file, at, header, name) };
}

export interface Multiboot2Tag {
  readonly type: number;
  readonly flags: number;
  /** The whole tag without its padding. */
  readonly bytes: Uint8Array;
}

export interface Multiboot2Load extends MultibootLoad {
  /** All tags but END. */
  readonly tags: readonly Multiboot2Tag[];
  readonly relocatable: { readonly minAddr: number; readonly maxAddr: number; readonly align: number };
}

/** As GRUB's `multiboot2` (grub-core/loader/multiboot_mbi2.c) and Limine load it. */
export function loadMultiboot2(file: Uint8Array): Multiboot2Load {
  const name = "the Multiboot2 header";
  const searched = file.subarray(0, MB2_SEARCH);
  const at = onlyHeader(searched, MB2_SEARCH, MB2_ALIGN, MB2_MAGIC, [4, 8, 12], name);
  const tags = multiboot2Tags(searched, at);
  const one = (type: number, size: number): Multiboot2Tag => {
    const found = tags.filter((t) => t.type === type);
    // Of several RELOCATABLE tags GRUB keeps the last.
    const [tag, second] = type === MB2_RELOCATABLE ? found.slice(-1) : found;
    if (tag === undefined) return fail(`${name} at offset ${hex(at)} has no tag ${tagName(type)}: run emit-header`);
    if (second !== undefined) fail(`${name} at offset ${hex(at)} has two tags ${tagName(type)}, needed one`);
    if (tag.bytes.length < size)
      fail(
        `tag ${tagName(type)} of ${name} at offset ${hex(at)} has ${hex(tag.bytes.length)} bytes, needed ${hex(size)}`,
      );
    return tag;
  };
  const addresses = readStructure(MB2_ADDRESS_TAG, one(MB2_ADDRESS, MB2_ADDRESS_TAG.size).bytes, 0);
  const { entryAddr } = readStructure(
    MB2_ENTRY_ADDRESS_TAG,
    one(MB2_ENTRY_ADDRESS, MB2_ENTRY_ADDRESS_TAG.size).bytes,
    0,
  );
  const relocatable = readStructure(MB2_RELOCATABLE_TAG, one(MB2_RELOCATABLE, MB2_RELOCATABLE_TAG.size).bytes, 0);
  return { ...addresses, headerAt: at, entryAddr, tags, relocatable, ...loadByAddresses(file, at, addresses, name) };
}

/** The tags of a header, without END. GRUB walks to END, Limine up to header_length: both must be the same. */
export function multiboot2Tags(bytes: Uint8Array, at: number): Multiboot2Tag[] {
  const { headerLength, architecture } = readStructure(MB2_HEADER, bytes, at);
  const name = `the Multiboot2 header at offset ${hex(at)}`;
  if (architecture !== MB2_ARCHITECTURE_I386)
    fail(`${name} is for architecture ${architecture}, needed ${MB2_ARCHITECTURE_I386}`);
  const end = at + headerLength;
  if (end > bytes.length) fail(`${name} ends at ${hex(end)}, needed at most ${hex(bytes.length)}`);
  const tags: Multiboot2Tag[] = [];
  for (let tag = at + MB2_HEADER.size; tag + MB2_TAG.size <= end;) {
    const { type, flags, size } = readStructure(MB2_TAG, bytes, tag);
    const next = tag + roundUp(size, MB2_ALIGN);
    if (size < MB2_TAG.size || next > end)
      fail(
        `${name} has a tag ${tagName(type)} of ${hex(size)} bytes at offset ${hex(tag)}, needed from ${hex(MB2_TAG.size)} to ${hex(end - tag)}`,
      );
    if (type === MB2_END) {
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
  return MB2_TAG_NAMES[type] ?? `of type ${type}`;
}

/** The offset of the first valid header; -1 without one. */
export function findHeader(
  bytes: Uint8Array,
  limit: number,
  step: number,
  magic: number,
  words: readonly number[],
  valid = true,
): number {
  const view = viewOf(bytes);
  const signed = magic | 0;
  const last = Math.min(bytes.length, limit) - 4 - 4 * words.length;
  for (let at = 0; at <= last; at += step) {
    if (view.getInt32(at, true) !== signed) continue;
    const sum = words.reduce((total, word) => total + view.getUint32(at + word, true), magic);
    if (!valid || sum % ADDRESS_SPACE === 0) return at;
  }
  return -1;
}

/** The first magic must be a valid header: GRUB looks on behind an invalid one, Limine stops there (common/protos/). */
function onlyHeader(
  file: Uint8Array,
  limit: number,
  step: number,
  magic: number,
  words: readonly number[],
  name: string,
): number {
  const at = findHeader(file, limit, step, magic, words);
  const first = findHeader(file, limit, step, magic, words, false);
  if (at < 0)
    fail(
      `${name} is not in its first ${hex(limit)} bytes${first < 0 ? "" : `: the magic at offset ${hex(first)} has a wrong checksum`}`,
    );
  if (first !== at) fail(`${name} at offset ${hex(at)} comes behind a magic with a wrong checksum at ${hex(first)}`);
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
