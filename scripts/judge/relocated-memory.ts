// SPDX-License-Identifier: GPL-2.0-only
// Memory at another base: base relocations applied to what a loader has put there, a window at a time. Copies of whole
// segments would need as much memory as all else, and most of Xen's memory has no fix-up in it.

import { hex, range } from "../cli/numbers.ts";
import { fail, fixupWidth, lowerBound, segmentAt } from "./loads.ts";
import type { Extent, Fixups, Memory, Segment } from "./loads.ts";
import { viewOf } from "../tables/fields.ts";

/** A segment as it is at some base. Offsets count from its start. */
export interface RelocatedSegment extends Extent {
  /** Bytes that are there; zeros follow up to `end`. */
  readonly size: number;
  /** Whether any of the bytes of [from, to) are others than the file's. */
  isChanged(from: number, to: number): boolean;
  /**
   * Its bytes of [from, to), as far as they are there. Good until the next call: they may be in a buffer that all
   * segments of the memory share, or the file's own.
   */
  read(from: number, to: number): Uint8Array;
}

/** The fix-ups of one segment. */
interface Group {
  /** Numbers of entries, in the order of their targets; of the same target, in the table's. */
  readonly entries: number[];
  /** Whether that is the table's order, as linkers have it. */
  inOrder: boolean;
  /** How many of the segment's bytes they need to be there. */
  size: number;
}

/** No fix-up changes more bytes. */
const WIDEST = 8;
const SIGN = 1 << 31;
/** Fix-ups that no byte depends on. */
const NONE = { first: 0, behind: 0 };

/** Applies base relocations to memory. */
export class Relocator {
  readonly #memory: Memory;
  readonly #fixups: Fixups;
  readonly #budget: number;
  #groups: Map<Segment, Group> | undefined;
  #buffer = new Uint8Array(0);

  /** @param budget bytes of zero-filled memory that fix-ups may make real: the size of the file, say */
  constructor(memory: Memory, fixups: Fixups, budget: number) {
    this.#memory = memory;
    this.#fixups = fixups;
    this.#budget = budget;
  }

  /**
   * The memory as it is at another base.
   * @param delta the difference of the base and ImageBase; of its 64 bits, HIGHLOW takes the lower 32
   * @throws ImageError when a fix-up's target is not in memory
   */
  at(delta: bigint): RelocatedSegment[] {
    if (delta !== 0n) this.#groups ??= this.#group();
    const low = Number(BigInt.asIntN(32, delta));
    const high = Number(BigInt.asIntN(32, delta >> 32n));
    return this.#memory.map((segment) => {
      const { name, start, end, bytes } = segment;
      const group = delta === 0n ? undefined : this.#groups?.get(segment);
      if (group === undefined) {
        const read = (from: number, to: number): Uint8Array => bytes.subarray(from, to);
        return { name, start, end, size: bytes.length, isChanged: () => false, read };
      }
      return {
        name,
        start,
        end,
        size: group.size,
        isChanged: (from, to) => {
          const { first, behind } = this.#reaching(group, start + from, start + to);
          return first !== behind;
        },
        read: (from, to) => this.#read(segment, group, from, to, low, high),
      };
    });
  }

  /** Which entries of the table are for which segment, and how many of its bytes they need to be there. */
  #group(): Map<Segment, Group> {
    const { count, types, targets } = this.#fixups;
    const groups = new Map<Segment, Group>();
    let left = this.#budget;
    let segment: Segment | undefined;
    let group: Group | undefined;
    for (let i = 0; i < count; i++) {
      const width = fixupWidth(types[i]);
      const target = targets[i] ?? 0;
      if (width === 0) continue;
      if (segment === undefined || target < segment.start || target >= segment.end) {
        segment = segmentAt(this.#memory, target);
        group = segment === undefined ? undefined : groups.get(segment);
      }
      if (segment === undefined || target + width > segment.end)
        return fail(`a base relocation is for RVA ${range(target, target + width)}, which is not inside one section`);
      if (group === undefined)
        groups.set(segment, (group = { entries: [], inOrder: true, size: segment.bytes.length }));
      if (target < (targets[group.entries.at(-1) ?? i] ?? 0)) group.inOrder = false;
      group.entries.push(i);
      if (target + width <= segment.start + group.size) continue;
      // A fix-up of zero-filled memory is odd but correct; then that memory has to be there.
      left -= segment.end - segment.start - group.size;
      if (left < 0)
        fail(`base relocations are for more zero-filled memory than its file is long, the last for RVA ${hex(target)}`);
      group.size = segment.end - segment.start;
    }
    for (const { entries, inOrder } of groups.values())
      if (!inOrder) entries.sort((a, b) => (targets[a] ?? 0) - (targets[b] ?? 0));
    return groups;
  }

  /** The fix-ups that bytes of the RVAs [from, to) depend on: those that change one, and those that overlap such a one. */
  #reaching({ entries }: Group, from: number, to: number): { readonly first: number; readonly behind: number } {
    const { types, targets } = this.#fixups;
    const target = (i: number): number => targets[entries[i] ?? 0] ?? 0;
    const behind = lowerBound(entries.length, (i) => target(i) < to);
    let first = lowerBound(behind, (i) => target(i) < from);
    let edge = from;
    for (let i = first - 1; i >= 0 && target(i) + WIDEST > edge; i--) {
      if (target(i) + fixupWidth(types[entries[i] ?? 0]) <= edge) continue;
      first = i;
      edge = target(i);
    }
    return first === behind ? NONE : { first, behind };
  }

  #read(segment: Segment, group: Group, from: number, to: number, low: number, high: number): Uint8Array {
    const { first, behind } = this.#reaching(group, segment.start + from, segment.start + to);
    if (first === behind) return segment.bytes.subarray(from, to);
    const lowest = this.#fixups.targets[group.entries[first] ?? 0] ?? 0;
    const start = Math.min(from, lowest - segment.start);
    const size = Math.min(group.size, to + WIDEST) - start;
    if (this.#buffer.length < size) this.#buffer = new Uint8Array(size);
    const bytes = this.#buffer.subarray(0, size);
    const there = segment.bytes.subarray(start, start + size);
    bytes.set(there);
    bytes.fill(0, there.length);
    const entries = group.entries.slice(first, behind);
    // Where they overlap, the table's order matters.
    if (!group.inOrder) entries.sort((a, b) => a - b);
    this.#apply(entries, viewOf(bytes), segment.start + start, low, high);
    return bytes.subarray(from - start, to - start);
  }

  /**
   * All words are signed: unsigned ones of 32 bits would be objects until this is compiled.
   * @param start RVA of the view's first byte
   */
  #apply(entries: readonly number[], view: DataView, start: number, low: number, high: number): void {
    const { types, targets } = this.#fixups;
    for (let i = 0; i < entries.length; i++) {
      const entry = entries[i] ?? 0;
      const at = (targets[entry] ?? 0) - start;
      const old = view.getInt32(at, true);
      const sum = (old + low) | 0;
      view.setInt32(at, sum, true);
      if (fixupWidth(types[entry]) !== 8) continue;
      // As unsigned numbers, a sum that is less than what was added to has a carry; flipping the sign makes them such.
      const carry = (sum ^ SIGN) < (old ^ SIGN) ? 1 : 0;
      view.setInt32(at + 4, view.getInt32(at + 4, true) + high + carry, true);
    }
  }
}
