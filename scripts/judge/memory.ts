// SPDX-License-Identifier: GPL-2.0-only
// Memory as a loader leaves it: a list of segments that are views of the file with zeros behind. Headers may claim 4 GiB,
// and nothing is ever allocated by what they claim.

import { Buffer } from "node:buffer";
import { ImageError } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { viewOf } from "../tables/fields.ts";
import { ADDRESS_SPACE } from "../tables/pe.ts";

/** A range of memory that a loader has filled. Addresses are RVAs, or link addresses, which for Xen are the same. */
export interface Segment {
  readonly name: string;
  readonly start: number;
  readonly end: number;
  /** What is at its start; zeros follow up to `end`. */
  readonly bytes: Uint8Array;
}

/** In the order of addresses, without overlap. What is in no segment is undefined: firmware does not clear it. */
export type Memory = readonly Segment[];

/** Bytes that have to be at an RVA instead of the original's. */
export interface Patch {
  readonly cause: Cause;
  readonly start: number;
  readonly bytes: Uint8Array;
  /** What a void base relocation was. */
  readonly fixup?: Fixup;
}

export type Cause =
  | "the Multiboot2 header"
  | "a reference to the base relocation table"
  | "a void base relocation"
  | "the debug directory";

/** @throws ImageError that says so */
export function fail(reason: string): never {
  throw new ImageError(`cannot be loaded: ${reason}`);
}

/** Puts segments in order. @throws ImageError when two overlap, or one is beyond 4 GiB */
export function memoryOf(segments: readonly Segment[]): Segment[] {
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

/** The last of a list, in the order of `key`, whose key is at most `value`. */
export function lastUpTo<T>(list: readonly T[], key: (item: T) => number, value: number): T | undefined {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (key(list[middle] as T) <= value) low = middle + 1;
    else high = middle;
  }
  return list[low - 1];
}

/** The segment that an address lies in. */
export function segmentAt(memory: Memory, address: number): Segment | undefined {
  const segment = lastUpTo(memory, ({ start }) => start, address);
  return segment !== undefined && address < segment.end ? segment : undefined;
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

// ---- what is compared

const BLOCK = 1 << 16;
const ZEROS = new Uint8Array(BLOCK);

/** Whether all bytes are zero. */
export function isZero(bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.length; at += BLOCK) {
    const part = bytes.subarray(at, at + BLOCK);
    if (Buffer.compare(part, ZEROS.subarray(0, part.length)) !== 0) return false;
  }
  return true;
}

/**
 * Where two ranges of memory differ.
 * @param size bytes to compare, from the start of both; beyond their own bytes both are zeros
 * @returns runs of differing bytes, offsets from the start; differences close to each other are one run
 */
export function* differences(a: Uint8Array, b: Uint8Array, size: number): Generator<[start: number, end: number]> {
  if (a === b) return;
  let run: [number, number] | undefined;
  const last = Math.min(size, Math.max(a.length, b.length));
  for (let from = 0; from < last; from += BLOCK) {
    const to = Math.min(from + BLOCK, last);
    const [x, y] = [a.subarray(from, to), b.subarray(from, to)];
    const common = Math.min(x.length, y.length);
    const same = Buffer.compare(x.subarray(0, common), y.subarray(0, common)) === 0;
    if (same && isZero(x.subarray(common)) && isZero(y.subarray(common))) continue;
    for (let i = from; i < to; i++) {
      if ((a[i] ?? 0) === (b[i] ?? 0)) continue;
      if (run !== undefined && i - run[1] < 8) run[1] = i + 1;
      else {
        if (run !== undefined) yield run;
        run = [i, i + 1];
      }
    }
  }
  if (run !== undefined) yield run;
}

// ---- base relocations

/** An entry of a base relocation table (PE specification, "Base Relocation Types"). */
export interface Fixup {
  /** Offset of the 16-bit entry in the table. */
  readonly at: number;
  /** RVA of what it changes. */
  readonly target: number;
  readonly type: number;
  /** Bytes that it changes: none for type 0, which pads. */
  readonly width: number;
}

/** The entries of a table, read anew by each loop over them: a long table takes no memory. */
export interface Fixups extends Iterable<Fixup> {
  readonly length: number;
}

const BLOCK_HEADER_SIZE = 8;
/** Xen stops at any other type (xen/arch/x86/efi/efi-boot.h:efi_arch_relocate_image): ABSOLUTE, HIGHLOW, DIR64. */
const WIDTHS: Readonly<Record<number, number>> = { 0: 0, 3: 4, 10: 8 };

/**
 * Reads a base relocation table by the rules of EDK2, shim, U-Boot and Xen together.
 * @throws ImageError when any of them would stop
 */
export function readFixups(table: Uint8Array): Fixups {
  let length = 0;
  for (const _ of fixupsIn(table)) length++;
  return { length, [Symbol.iterator]: () => fixupsIn(table) };
}

function* fixupsIn(table: Uint8Array): Generator<Fixup> {
  const view = viewOf(table);
  for (let block = 0; block < table.length;) {
    const left = table.length - block;
    const size = left < BLOCK_HEADER_SIZE ? 0 : view.getUint32(block + 4, true);
    // Xen goes on at the next multiple of 4, the others where the block ends: only the last one may end off one.
    if (size < BLOCK_HEADER_SIZE || size % (size === left ? 2 : 4) !== 0 || size > left)
      fail(
        `the block at offset ${hex(block)} of its base relocation table has SizeOfBlock ${hex(size)}, needed a multiple of 4 from 0x8 to ${hex(left)}`,
      );
    const page = view.getUint32(block, true);
    for (let at = block + BLOCK_HEADER_SIZE; at < block + size; at += 2) {
      const entry = view.getUint16(at, true);
      const [type, target] = [entry >>> 12, page + (entry & 0xfff)];
      const width = WIDTHS[type];
      if (width === undefined)
        fail(
          `the base relocation for RVA ${hex(target)} has type ${type}, needed 0, 3 or 10: Xen stops with "Unsupported relocation type"`,
        );
      yield { at, target, type, width };
    }
    block += size;
  }
}

/** Memory that base relocations and patches are written to, again for each base. */
export class LoadedMemory {
  readonly #memory: Memory;
  /** Copies of the segments that are written to; the others stay views of the file. */
  readonly #copies = new Map<Segment, DataView>();
  /** Bytes of zero-filled memory that may still become real. */
  #left: number;

  /** @param most bytes of zero-filled memory that base relocations may make real: the size of the file, say */
  constructor(memory: Memory, most: number) {
    this.#memory = memory;
    this.#left = most;
  }

  /** As it is now. */
  get segments(): Segment[] {
    return this.#memory.map((segment) => {
      const copy = this.#copies.get(segment);
      return copy === undefined ? segment : { ...segment, bytes: new Uint8Array(copy.buffer) };
    });
  }

  /**
   * Moves it to another base.
   * @param delta how far; of its 64 bits, HIGHLOW takes the lower 32
   * @throws ImageError when a target is not in memory
   */
  relocate(fixups: Fixups, delta: bigint): void {
    if (delta === 0n) return;
    let segment: Segment | undefined;
    for (const { target, width } of fixups) {
      if (width === 0) continue;
      if (segment === undefined || target < segment.start || target >= segment.end)
        segment = segmentAt(this.#memory, target);
      const end = target + width;
      if (segment === undefined || end > segment.end)
        return fail(`a base relocation is for RVA ${range(target, end)}, which is not inside one section`);
      const at = target - segment.start;
      const view = this.#writable(segment, at + width);
      if (width === 8) view.setBigUint64(at, view.getBigUint64(at, true) + delta, true);
      else view.setUint32(at, view.getUint32(at, true) + Number(BigInt.asIntN(32, delta)), true);
    }
  }

  /** @throws ImageError when a patch is in no segment's bytes, or two overlap */
  patch(patches: readonly Patch[]): void {
    let end = 0;
    for (const { cause, start, bytes } of [...patches].sort((a, b) => a.start - b.start)) {
      const segment = segmentAt(this.#memory, start);
      if (segment === undefined) throw new ImageError(`${cause} at RVA ${hex(start)} is in no section`);
      if (start < end || start + bytes.length > segment.start + segment.bytes.length)
        throw new ImageError(`${cause} at RVA ${hex(start)} overlaps another change, or the end of its section`);
      new Uint8Array(this.#writable(segment, 0).buffer).set(bytes, start - segment.start);
      end = start + bytes.length;
    }
  }

  /** A segment's copy, of at least `size` bytes. Base relocations of zero-filled memory are odd but correct. */
  #writable(segment: Segment, size: number): DataView {
    const old = this.#copies.get(segment);
    if (old !== undefined && size <= old.byteLength) return old;
    const there = segment.bytes.length;
    const copy = new Uint8Array(size <= there ? there : segment.end - segment.start);
    this.#left -= copy.length - there;
    if (this.#left < 0)
      fail(`base relocations are for more zero-filled memory than its file is long, the last in ${segment.name}`);
    copy.set(old === undefined ? segment.bytes : new Uint8Array(old.buffer));
    const view = viewOf(copy);
    this.#copies.set(segment, view);
    return view;
  }
}
