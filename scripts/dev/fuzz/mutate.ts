// SPDX-License-Identifier: GPL-2.0-only
// What the fuzzer does to an image: bytes, but above all fields, which it finds through the same tables as the readers
// do. Random bytes alone hardly ever get past the first check.

import { Buffer } from "node:buffer";
import { parseImage } from "../../pe/parse.ts";
import { roundUp, sectionAt, type Image } from "../../pe/image.ts";
import { readStructure, viewOf, type Row, type Structure } from "../../tables/fields.ts";
import * as mb from "../../tables/multiboot.ts";
import * as pe from "../../tables/pe.ts";
import { findMultiboot1, findMultiboot2 } from "../../xen/multiboot.ts";
import type { Random } from "./random.ts";

/** A number in a file. */
interface Spot {
  readonly at: number;
  readonly width: 1 | 2 | 4 | 8;
}

/** An image that has been looked through: what is worth changing, and where. */
export interface Target {
  readonly bytes: Uint8Array;
  /** Fields by kind: all kinds are equally likely, however many fields they have. */
  readonly groups: readonly (readonly Spot[])[];
  /** File offsets of the section headers. */
  readonly sectionHeaders: readonly number[];
  /**
   * Sums that are made right again half of the time, or nobody would look behind them: words from `at` up to the sum.
   */
  readonly checksums: readonly { readonly at: number; readonly words: number }[];
}

const LFANEW: Spot = { at: 0x3c, width: 4 };
/** Values at which something overflows, ends, or is not there. */
const INTERESTING = [
  0, 1, 2, 3, 7, 8, 0xc, 0x28, 0x40, 0x7f, 0x80, 0xff, 0x100, 0x1ff, 0x200, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000,
  0xffff, 0x10000, 0x1fffff, 0x200000, 0x200001, 0x400000, 0x7fffffff, 0x80000000, 0xc0000000, 0xfffff000, 0xfffffff8,
  0xffffffff,
];
const MOST_OPERATIONS = 4;
const MOST_EXTRA = 256;

// ---- finding the fields

/** Looks through an image that can be read. */
export function target(bytes: Uint8Array): Target {
  const image = parseImage(bytes);
  const coffAt = image.lfanew + pe.SIGNATURE_SIZE;
  const optionalAt = coffAt + pe.COFF_HEADER.size;
  const directoriesAt = optionalAt + pe.OPTIONAL_HEADER.size;
  const tableAt = directoriesAt + image.directories.length * pe.DATA_DIRECTORY.size;
  const sectionHeaders = image.sections.map((_, i) => tableAt + i * pe.SECTION_HEADER.size);
  const multiboot = multibootSpots(bytes);
  const groups = [
    [LFANEW],
    spots(pe.COFF_HEADER, coffAt),
    spots(pe.OPTIONAL_HEADER, optionalAt),
    spots(pe.DATA_DIRECTORY, directoriesAt, image.directories.length),
    // The directories that mean something to somebody here.
    [4, 5, 6].flatMap((i) => spots(pe.DATA_DIRECTORY, directoriesAt + i * pe.DATA_DIRECTORY.size)),
    sectionHeaders.flatMap((at) => spots(pe.SECTION_HEADER, at)),
    sectionHeaders.flatMap((at) => spots(pe.SECTION_HEADER, at)),
    spots(pe.SYMBOL, image.coff.pointerToSymbolTable, Math.min(40, image.symbols.length / pe.SYMBOL.size)),
    image.strings.length === 0
      ? []
      : [{ at: image.coff.pointerToSymbolTable + image.symbols.length, width: 4 } as const],
    debugSpots(image),
    relocationSpots(image),
    relocationSpots(image),
    multiboot.fields,
    displacementSpots(bytes),
  ];
  return { bytes, groups: groups.filter((g) => g.length !== 0), sectionHeaders, checksums: multiboot.checksums };
}

function spots(structure: Structure<readonly Row[]>, at: number, count = 1): Spot[] {
  const found: Spot[] = [];
  for (let i = 0, offset = at; i < count; i++) {
    for (const [, width] of structure.rows) {
      const size = width === "char8" ? 8 : width;
      found.push({ at: offset, width: size });
      offset += size;
    }
  }
  return found;
}

/** The file range of a data directory's table; an empty one where there is none. */
function tableRange(image: Image, index: number): { start: number; size: number } {
  const { virtualAddress = 0, size = 0 } = image.directories[index] ?? {};
  const { header } = sectionAt(image, virtualAddress) ?? {};
  if (header === undefined) return { start: 0, size: 0 };
  return { start: virtualAddress - header.virtualAddress + header.pointerToRawData, size };
}

function debugSpots(image: Image): Spot[] {
  const { start, size } = tableRange(image, pe.DIRECTORY_DEBUG);
  return spots(pe.DEBUG_DIRECTORY_ENTRY, start, Math.floor(size / pe.DEBUG_DIRECTORY_ENTRY.size));
}

/** Page and size of each block, and the entries. */
function relocationSpots(image: Image): Spot[] {
  const { start, size } = tableRange(image, pe.DIRECTORY_BASE_RELOCATION);
  const view = viewOf(image.background);
  const found: Spot[] = [];
  for (let at = start; at < start + size;) {
    const blockSize = view.getUint32(at + 4, true);
    found.push({ at, width: 4 }, { at: at + 4, width: 4 });
    for (let entry = at + 8; entry < at + blockSize; entry += 2) found.push({ at: entry, width: 2 });
    at += Math.max(blockSize, 8);
  }
  return found;
}

function multibootSpots(bytes: Uint8Array): { fields: Spot[]; checksums: { at: number; words: number }[] } {
  const fields: Spot[] = [];
  const checksums: { at: number; words: number }[] = [];
  const one = findMultiboot1(bytes);
  if (one !== undefined) {
    const long = (readStructure(mb.MB1_HEADER, bytes, one).flags & mb.MB1_AOUT_KLUDGE) !== 0;
    fields.push(...spots(long ? mb.MB1_ADDRESS_HEADER : mb.MB1_HEADER, one));
    checksums.push({ at: one, words: 2 });
  }
  const two = findMultiboot2(bytes);
  if (two !== undefined) {
    const end = two + readStructure(mb.MB2_HEADER, bytes, two).headerLength;
    fields.push(...spots(mb.MB2_HEADER, two));
    for (let at = two + mb.MB2_HEADER.size; at < end;) {
      const { size } = readStructure(mb.MB2_TAG, bytes, at);
      fields.push(...spots(mb.MB2_TAG, at));
      for (let word = at + mb.MB2_TAG.size; word + 4 <= at + size; word += 4) fields.push({ at: word, width: 4 });
      at += roundUp(size, 8);
    }
    checksums.push({ at: two, words: 3 });
  }
  return { fields, checksums };
}

/** `lea disp32(%rip)`. */
function displacementSpots(bytes: Uint8Array): Spot[] {
  const found: Spot[] = [];
  for (let at = bytes.indexOf(0x8d); at >= 0 && at + 6 <= bytes.length; at = bytes.indexOf(0x8d, at + 1)) {
    if (((bytes[at + 1] ?? 0) & 0xc7) === 0x05) found.push({ at: at - 1, width: 1 }, { at: at + 2, width: 4 });
  }
  return found;
}

// ---- changing them

/** A changed copy of the image: a few operations, repeatable by the random numbers' seed. */
export function mutate(
  { bytes, groups, sectionHeaders, checksums }: Target,
  random: Random,
  others: readonly Target[],
): Uint8Array {
  let changed: Uint8Array = bytes.slice();
  let count = 1;
  while (count < MOST_OPERATIONS && random.oneIn(2)) count++;
  for (let i = 0; i < count; i++) {
    const kind = random.below(20);
    if (kind < 11) setField(changed, random.pick(random.pick(groups)), groups, random);
    else if (kind < 13) changeBytes(changed, random);
    else if (kind < 15) moveSectionHeaders(changed, sectionHeaders, random);
    else if (kind < 16) copyRange(changed, random.pick(others).bytes, random);
    else if (kind < 17) fillRange(changed, random);
    else if (kind < 18) changed = resize(changed, random);
    else if (kind < 19) changed = insertOrDelete(changed, random);
    else swapEntries(changed, random.pick(groups), random);
  }
  for (const { at, words } of checksums) if (random.oneIn(2)) repairSum(changed, at, words);
  return changed;
}

function read(bytes: Uint8Array, { at, width }: Spot): bigint {
  let value = 0n;
  for (let i = width - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[at + i] ?? 0);
  return value;
}

function write(bytes: Uint8Array, { at, width }: Spot, value: bigint): void {
  let rest = BigInt.asUintN(64, value);
  for (let i = 0; i < width && at + i < bytes.length; i++) {
    bytes[at + i] = Number(rest & 0xffn);
    rest >>= 8n;
  }
}

function setField(bytes: Uint8Array, spot: Spot, groups: Target["groups"], random: Random): void {
  const old = read(bytes, spot);
  const other = (): bigint => read(bytes, random.pick(random.pick(groups)));
  const small = BigInt(1 + random.below(16));
  switch (random.below(9)) {
    case 0:
    case 1:
      return write(bytes, spot, BigInt(random.pick(INTERESTING)));
    case 2:
      return write(bytes, spot, old + small);
    case 3:
      return write(bytes, spot, old - small);
    case 4:
      return write(bytes, spot, other());
    case 5:
      return write(bytes, spot, other() + other());
    case 6:
      return write(bytes, spot, old ^ (1n << BigInt(random.below(8 * spot.width))));
    case 7:
      return write(bytes, spot, BigInt(bytes.length) - BigInt(random.below(64)));
    default:
      return write(bytes, spot, old + BigInt(random.pick(INTERESTING)) * (random.oneIn(2) ? 1n : -1n));
  }
}

function changeBytes(bytes: Uint8Array, random: Random): void {
  for (let i = 1 + random.below(8); i > 0; i--) {
    const at = random.below(bytes.length);
    bytes[at] = random.oneIn(2) ? random.below(256) : (bytes[at] ?? 0) ^ (1 << random.below(8));
  }
}

/** Two headers exchanged, one over another, or one field of one over that of another. */
function moveSectionHeaders(bytes: Uint8Array, headers: readonly number[], random: Random): void {
  if (headers.length === 0) return;
  const [a, b] = [random.pick(headers), random.pick(headers)];
  if (Math.max(a, b) + pe.SECTION_HEADER.size > bytes.length) return;
  const [first, second] = [bytes.slice(a, a + pe.SECTION_HEADER.size), bytes.slice(b, b + pe.SECTION_HEADER.size)];
  const kind = random.below(3);
  if (kind === 2) {
    const { at, width } = random.pick(spots(pe.SECTION_HEADER, 0));
    return bytes.set(first.subarray(at, at + width), b + at);
  }
  if (kind === 0) bytes.set(second, a);
  bytes.set(first, b);
}

function copyRange(bytes: Uint8Array, from: Uint8Array, random: Random): void {
  const size = Math.min(1 + random.below(MOST_EXTRA), bytes.length, from.length);
  const start = random.below(from.length - size + 1);
  bytes.set(from.subarray(start, start + size), random.below(bytes.length - size + 1));
}

function fillRange(bytes: Uint8Array, random: Random): void {
  const at = random.below(bytes.length);
  bytes.fill(random.pick([0, 0x90, 0xcc, 0xff]), at, at + 1 + random.below(MOST_EXTRA));
}

function resize(bytes: Uint8Array, random: Random): Uint8Array {
  if (random.oneIn(2)) return bytes.slice(0, 1 + random.below(bytes.length));
  const longer = new Uint8Array(bytes.length + 1 + random.below(MOST_EXTRA));
  longer.set(bytes);
  if (random.oneIn(2)) longer.fill(random.below(256), bytes.length);
  return longer;
}

function insertOrDelete(bytes: Uint8Array, random: Random): Uint8Array {
  const at = random.below(bytes.length);
  const size = 1 + random.below(64);
  if (random.oneIn(2) && bytes.length > size + 64) return joined(bytes.subarray(0, at), bytes.subarray(at + size));
  return joined(bytes.subarray(0, at), new Uint8Array(size), bytes.subarray(at));
}

/** Not a Buffer, whose slice() shares its memory. */
function joined(...parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

function swapEntries(bytes: Uint8Array, group: readonly Spot[], random: Random): void {
  const [a, b] = [random.pick(group), random.pick(group)];
  const [first, second] = [read(bytes, a), read(bytes, b)];
  write(bytes, a, second);
  write(bytes, b, first);
}

function repairSum(bytes: Uint8Array, at: number, words: number): void {
  let sum = 0n;
  for (let i = 0; i < words; i++) sum += read(bytes, { at: at + 4 * i, width: 4 });
  write(bytes, { at: at + 4 * words, width: 4 }, -sum);
}
