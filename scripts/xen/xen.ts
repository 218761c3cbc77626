// SPDX-License-Identifier: GPL-2.0-only
// What Xen's image is beyond a PE: the load span that Multiboot loads, the base relocations and the code that refers to
// their table, and whether the file is linear. The steps, verify and inspect ask these questions of the same functions.

import { ImageError } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { byAddress, dataAt, hasFlags, roundUp, sectionAt, sectionEnd } from "../pe/image.ts";
import type { Image, Section } from "../pe/image.ts";
import { viewOf } from "../tables/fields.ts";
import { CNT_UNINITIALIZED_DATA, DIRECTORY_BASE_RELOCATION, RELOCS_STRIPPED, SIZE_2M } from "../tables/pe.ts";
import type { DataDirectory } from "../tables/pe.ts";

// ---- the load span

/** What Multiboot copies from the file, and the memory behind it that it zeroes. All addresses are RVAs. */
export interface LoadSpan {
  /** From the lowest section to the last initialised one below .bss, in RVA order: the first of the image's sections. */
  readonly sections: readonly Section[];
  /** The lowest section's RVA: `_start`, which Xen needs on a 2 MiB boundary (xen/arch/x86/boot/head.S). */
  readonly first: number;
  /** The end of the last of these sections: VirtualAddress + VirtualSize, not rounded. */
  readonly dataEnd: number;
  /** RVA of .bss. */
  readonly bssStart: number;
  /** The end of .bss rounded up to 2 MiB: Xen maps so far, and mkelf32 pads so far. */
  readonly bssEnd: number;
}

/**
 * The load span of an image.
 * @param action what cannot be done without it, for the message
 * @throws ImageError when there is none: no .bss or two, .bss without data below, uninitialised data in between, a
 *   first section off a 2 MiB boundary, or something that Xen needs loaded behind .bss
 */
export function loadSpan(image: Image, action: string): LoadSpan {
  const fail = (reason: string): never => {
    throw new ImageError(`Cannot ${action}: ${reason}`);
  };
  const bss = onlyBss(image, fail);
  const bssStart = bss.header.virtualAddress;
  const below = byAddress(image.sections).filter((s) => s.header.virtualAddress < bssStart);
  const sections = below.slice(0, below.findLastIndex((s) => !hasFlags(s, CNT_UNINITIALIZED_DATA)) + 1);
  const [lowest, last] = [sections[0], sections.at(-1)];
  if (lowest === undefined || last === undefined)
    return fail(`there is no initialised data below .bss at RVA ${hex(bssStart)}`);
  const gap = sections.find((s) => hasFlags(s, CNT_UNINITIALIZED_DATA));
  if (gap !== undefined) {
    fail(
      `section ${gap.name} at ${range(gap.header.virtualAddress, sectionEnd(gap))} is uninitialised, and ${last.name} at ${hex(last.header.virtualAddress)} behind it is not, needed initialised data only below .bss`,
    );
  }
  const lost = below.slice(sections.length).find((s) => s.data.length !== 0);
  if (lost !== undefined) {
    fail(
      `section ${lost.name} at RVA ${hex(lost.header.virtualAddress)} is uninitialised and has ${hex(lost.data.length)} bytes of data, needed none: Multiboot loaders zero it`,
    );
  }
  const first = lowest.header.virtualAddress;
  if (first % SIZE_2M !== 0)
    fail(`the first section, ${lowest.name}, is at RVA ${hex(first)}, needed a multiple of ${hex(SIZE_2M)}`);
  const span = { sections, first, dataEnd: sectionEnd(last), bssStart, bssEnd: roundUp(sectionEnd(bss), SIZE_2M) };
  requireNothingBehind(image, span, bss, fail);
  return span;
}

function onlyBss(image: Image, fail: (reason: string) => never): Section {
  const [bss, second] = image.sections.filter((s) => s.name === ".bss");
  if (bss === undefined) return fail("there is no section .bss, needed one behind all initialised data");
  if (second !== undefined)
    fail(
      `there are two sections .bss, at RVA ${hex(bss.header.virtualAddress)} and ${hex(second.header.virtualAddress)}, needed one`,
    );
  if (bss.data.length !== 0)
    fail(`section .bss has ${hex(bss.data.length)} bytes of data, needed none: Multiboot loaders zero it`);
  return bss;
}

/**
 * Multiboot loads nothing behind .bss. What is there may be a unified image's .config, .sbat or DWARF, whatever its name
 * or flags; but the entry point and everything that base relocations point into belongs to Xen itself.
 */
function requireNothingBehind(image: Image, span: LoadSpan, bss: Section, fail: (reason: string) => never): void {
  const inside = (rva: number): boolean => rva >= span.first && rva < span.dataEnd;
  const where = `behind .bss at ${range(bss.header.virtualAddress, sectionEnd(bss))}, needed in ${range(span.first, span.dataEnd)}: .bss must be Xen's last section`;
  const entry = image.optional.addressOfEntryPoint;
  if (!inside(entry)) fail(`AddressOfEntryPoint is ${hex(entry)}, in ${sectionName(image, entry)}, ${where}`);
  const { lowest, highest } = relocationLists(image);
  if (lowest >= span.first && highest <= span.dataEnd) return;
  const lost = baseRelocations(image).find(
    ({ target, size }) => size !== 0 && !(inside(target) && inside(target + size - 1)),
  );
  if (lost !== undefined)
    fail(`a base relocation is for RVA ${hex(lost.target)}, in ${sectionName(image, lost.target)}, ${where}`);
}

function sectionName(image: Image, rva: number): string {
  const section = sectionAt(image, rva);
  return section === undefined ? "no section" : `section ${section.name}`;
}

/**
 * The sections whose names begin with .init, in RVA order: one today; an upstream series splits it in two.
 * Xen frees the memory up to __init_end, the start of the section that follows the last of them.
 */
export function initSections(image: Image): Section[] {
  return byAddress(image.sections).filter((s) => s.name.startsWith(".init"));
}

/**
 * Why the file is not linear; undefined when it is. Linear: for every byte of the load span file offset = RVA - delta with
 * one delta, and no byte between the headers and the end of the last section's raw data belongs to nobody.
 */
export function whyNotLinear(image: Image, span: LoadSpan): string | undefined {
  const delta = span.first - image.optional.sizeOfHeaders;
  for (const [i, section] of span.sections.entries()) {
    const { pointerToRawData, sizeOfRawData } = section.header;
    const next = span.sections[i + 1]?.header.virtualAddress;
    const start = section.header.virtualAddress - delta;
    const end = (next ?? span.dataEnd) - delta;
    if (sizeOfRawData === 0 && start === end) continue;
    if (pointerToRawData !== start || pointerToRawData + sizeOfRawData < end) {
      return `section ${section.name}'s raw data is at ${range(pointerToRawData, pointerToRawData + sizeOfRawData)}, needed ${range(start, end)} for RVA ${hex(section.header.virtualAddress)}`;
    }
  }
  const raw = image.sections
    .filter((s) => s.header.sizeOfRawData !== 0)
    .sort((a, b) => a.header.pointerToRawData - b.header.pointerToRawData);
  let end = image.optional.sizeOfHeaders;
  for (const { name, header } of raw) {
    if (header.pointerToRawData !== end)
      return `section ${name}'s raw data is at ${hex(header.pointerToRawData)}, needed ${hex(end)}, the end of what is before it`;
    end += header.sizeOfRawData;
  }
  return undefined;
}

// ---- base relocations

/** PE specification, "Base Relocation Types". */
export const REL_BASED_ABSOLUTE = 0;
export const REL_BASED_HIGHLOW = 3;
export const REL_BASED_DIR64 = 10;

/** Bytes that a fix-up changes, by type. Xen's efi_arch_relocate_image (xen/arch/x86/efi/efi-boot.h) knows no others. */
const FIXUP_SIZE: Readonly<Record<number, number>> = {
  [REL_BASED_ABSOLUTE]: 0,
  [REL_BASED_HIGHLOW]: 4,
  [REL_BASED_DIR64]: 8,
};
const BLOCK_HEADER_SIZE = 8;
const ENTRY_SIZE = 2;

export interface BaseRelocation {
  /** Byte offset of the 16-bit entry in the table. */
  readonly at: number;
  readonly type: number;
  /** RVA that is fixed up; meaningless for ABSOLUTE, which pads. */
  readonly target: number;
  /** Bytes that are fixed up: 0, 4 or 8. */
  readonly size: number;
}

/** {@link BaseRelocation}s by their fields. */
export interface RelocationLists {
  readonly at: Uint32Array;
  readonly types: Uint8Array;
  readonly targets: readonly number[];
  /** RVAs of the first byte that any entry fixes up, and behind the last one; Infinity and 0 without any. */
  readonly lowest: number;
  readonly highest: number;
}

/** Bytes that an entry of a type fixes up. */
export function fixupSize(type: number | undefined): number {
  return FIXUP_SIZE[type ?? REL_BASED_ABSOLUTE] ?? 0;
}

/** The base relocation data directory. @throws ImageError when there is none, or the image says that there is none */
export function relocationDirectory(image: Image): DataDirectory {
  const directory = image.directories[DIRECTORY_BASE_RELOCATION];
  if (directory === undefined || directory.size === 0) {
    throw new ImageError(
      "Cannot read the base relocation table: data directory 5 is empty, needed a table: Xen runs wherever firmware loads it",
    );
  }
  if ((image.coff.characteristics & RELOCS_STRIPPED) !== 0) {
    throw new ImageError(
      `Cannot read the base relocation table: Characteristics is ${hex(image.coff.characteristics)}, needed IMAGE_FILE_RELOCS_STRIPPED (0x1) clear`,
    );
  }
  return directory;
}

/**
 * Kept because every step and half of the loader profiles ask for all of them, thousands. By the data of the section
 * that holds the table, which an image shares with the one it was made from as long as nothing in it changes.
 */
const known = new WeakMap<Uint8Array, { readonly table: Uint8Array; readonly relocations: RelocationLists }>();

/**
 * Every entry of the base relocation table, in its order.
 * @throws ImageError when the table is missing or corrupt by Xen's rules, which are the strictest
 */
export function baseRelocations(image: Image): BaseRelocation[] {
  const { at, types, targets } = relocationLists(image);
  return Array.from(at, (offset, i) => ({
    at: offset,
    type: types[i] ?? 0,
    target: targets[i] ?? 0,
    size: fixupSize(types[i]),
  }));
}

/**
 * The same in lists, element i of each being about entry i: for what is asked in every build, because an object for each
 * of thousands takes long to make.
 * @throws ImageError as {@link baseRelocations}
 */
export function relocationLists(image: Image): RelocationLists {
  const { virtualAddress, size } = relocationDirectory(image);
  const table = dataAt(image, virtualAddress, size, "the base relocation table");
  const data = sectionAt(image, virtualAddress)?.data ?? table;
  const last = known.get(data);
  if (last !== undefined && last.table.byteOffset === table.byteOffset && last.table.length === size)
    return last.relocations;
  const relocations = readBaseRelocations(table, virtualAddress);
  known.set(data, { table, relocations });
  return relocations;
}

/** @param virtualAddress the table's RVA, for messages */
function readBaseRelocations(table: Uint8Array, virtualAddress: number): RelocationLists {
  const size = table.length;
  const view = viewOf(table);
  const offsets = new Uint32Array(size / ENTRY_SIZE);
  const types = new Uint8Array(size / ENTRY_SIZE);
  const targets: number[] = [];
  let lowest = Infinity;
  let highest = 0;
  for (let block = 0; block < size;) {
    const place = `block at RVA ${hex(virtualAddress + block)}`;
    if (block + BLOCK_HEADER_SIZE > size)
      corrupt(place, `${hex(size - block)} bytes long`, `at least ${hex(BLOCK_HEADER_SIZE)}`);
    const page = view.getUint32(block, true);
    const blockSize = view.getUint32(block + 4, true);
    // Blocks begin on multiples of 4 (PE specification, "The .reloc Section"): only the last may end off one.
    const unit = block + blockSize === size ? ENTRY_SIZE : 4;
    if (blockSize < BLOCK_HEADER_SIZE || blockSize % unit !== 0 || block + blockSize > size) {
      corrupt(
        place,
        `SizeOfBlock ${hex(blockSize)}`,
        `a multiple of 4 from ${hex(BLOCK_HEADER_SIZE)} to ${hex(size - block)}`,
      );
    }
    for (let at = block + BLOCK_HEADER_SIZE; at < block + blockSize; at += ENTRY_SIZE) {
      const entry = view.getUint16(at, true);
      const type = entry >>> 12;
      const target = page + (entry & 0xfff);
      const width = FIXUP_SIZE[type];
      if (width === undefined) {
        throw new ImageError(
          `Cannot read the base relocation table: the entry for RVA ${hex(target)} has type ${type}, needed 0, 3 or 10: Xen stops with "Unsupported relocation type"`,
        );
      }
      offsets[targets.length] = at;
      types[targets.length] = type;
      targets.push(target);
      if (width === 0) continue;
      lowest = Math.min(lowest, target);
      highest = Math.max(highest, target + width);
    }
    block += blockSize;
  }
  const count = targets.length;
  return { at: offsets.subarray(0, count), types: types.subarray(0, count), targets, lowest, highest };
}

function corrupt(where: string, found: string, needed: string): never {
  throw new ImageError(`Cannot read the base relocation table: ${where} is ${found}, needed ${needed}`);
}

// ---- code that refers to an address

/** A `lea disp32(%rip), %r64`: REX.W or REX.WR, opcode 8D, ModRM with mod = 00 and rm = 101, four bytes of displacement. */
export interface LeaReference {
  readonly section: Section;
  /** RVA of the instruction. */
  readonly rva: number;
  /** RVA that it computes. */
  readonly target: number;
}

const LEA_SIZE = 7;
/** Where the displacement is in the instruction. It counts from the next instruction. */
export const LEA_DISPLACEMENT_AT = 3;

/** All byte sequences in a section's data that read as such an instruction and compute an address in [from, to]. */
export function* leaReferences(section: Section, from: number, to: number): Generator<LeaReference> {
  const { data } = section;
  const view = viewOf(data);
  const start = section.header.virtualAddress;
  // indexOf is native code: the rest runs for one byte in some hundreds.
  for (let at = data.indexOf(0x8d, 1); at >= 0; at = data.indexOf(0x8d, at + 1)) {
    const offset = at - 1;
    if (offset + LEA_SIZE > data.length) return;
    const rex = data[offset];
    if ((rex !== 0x48 && rex !== 0x4c) || ((data[offset + 2] ?? 0) & 0xc7) !== 0x05) continue;
    const target = start + offset + LEA_SIZE + view.getInt32(offset + LEA_DISPLACEMENT_AT, true);
    if (target >= from && target <= to) yield { section, rva: start + offset, target };
  }
}
