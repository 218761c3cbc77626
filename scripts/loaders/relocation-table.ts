// SPDX-License-Identifier: GPL-2.0-only
// The base relocation table as far as it can be followed, of any image whatever: what a loader makes of a broken table is
// a rule of that loader. The steps and verify read it by readers of their own, which are strict.

import { hex } from "../cli/numbers.ts";
import { byAddress, sectionEnd, type Pe, type Section } from "../judge/read.ts";
import { readStructure, structure, viewOf } from "../tables/fields.ts";
import { DIRECTORY_BASE_RELOCATION } from "../tables/pe.ts";

/** Why a table can be followed no further. */
export type Corruption = "block size" | "beyond the table" | "not in memory";

export interface RelocationBlock {
  /** RVA that its entries count from. */
  readonly page: number;
  /** The whole block. */
  readonly bytes: Uint8Array;
}

export interface RelocationEntry {
  readonly type: number;
  /** RVA that is fixed up; meaningless for {@link ABSOLUTE}. */
  readonly target: number;
}

/** The type of an entry that pads. */
export const ABSOLUTE = 0;

const BLOCK = structure("base relocation block", 8, [
  ["page", 4],
  ["size", 4],
]);

/** Reads the table of an image. Nothing in it is an error. */
export function walkRelocations(image: Pick<Pe, "directories" | "sections">) {
  const directory = image.directories[DIRECTORY_BASE_RELOCATION];
  const { virtualAddress: start, size } = directory ?? { virtualAddress: 0, size: 0 };
  const holder = sectionFinder(image)(start);
  const from = start - (holder?.header.virtualAddress ?? start);
  const table = holder?.data.subarray(from, from + size) ?? new Uint8Array(0);
  const blocks: RelocationBlock[] = [];
  let corrupt: ReturnType<typeof corruptBlock>;
  for (let at = 0; at < size;) {
    corrupt = corruptBlock(table, at, blocks.length, start, size);
    if (corrupt !== undefined) break;
    const header = readStructure(BLOCK, table, at);
    blocks.push({ page: header.page, bytes: table.subarray(at, at + header.size) });
    at += header.size;
  }
  return {
    /** RVA and size in bytes by data directory 5; both 0 without one. */
    start,
    size,
    /** Bytes of it that are in a section's data. */
    present: table.length,
    /** Up to the corrupt one. */
    blocks,
    /** Where the table can be followed no further. */
    corrupt,
  };
}

/** What is wrong with the block at an offset of the table, which is number `block`, counted from 0. */
function corruptBlock(table: Uint8Array, at: number, block: number, start: number, tableSize: number) {
  /** @param size what stands for the block's size, in bytes */
  const because = (how: Corruption, size: number, why: string) => ({
    how,
    block,
    size,
    why: `the base relocation block at RVA ${hex(start + at)} ${why}`,
  });
  const left = tableSize - at;
  if (left < BLOCK.size)
    return because("beyond the table", left, `has ${hex(left)} bytes up to the end of the table, needed at least 0x8`);
  if (at + BLOCK.size > table.length) return because("not in memory", 0, "is not in a section's data");
  const { size } = readStructure(BLOCK, table, at);
  // Behind the last block nothing begins that would have to be on a multiple of 4.
  if (size < BLOCK.size || size % (size === left ? 2 : 4) !== 0)
    return because("block size", size, `has SizeOfBlock ${hex(size)}, needed a multiple of 4 from 0x8 on`);
  if (size > left)
    return because("beyond the table", size, `has SizeOfBlock ${hex(size)}, needed at most ${hex(left)}`);
  if (at + size > table.length)
    return because("not in memory", size, `ends at RVA ${hex(start + at + size)}, which is not in a section's data`);
  return undefined;
}

/** The entries of a block, in its order. */
export function* entriesOf({ page, bytes }: RelocationBlock): Generator<RelocationEntry> {
  const view = viewOf(bytes);
  for (let at = BLOCK.size; at < bytes.length; at += 2) {
    const word = view.getUint16(at, true);
    yield { type: word >>> 12, target: page + (word & 0xfff) };
  }
}

export interface RepeatedTargets {
  /** Entries for an RVA that another entry has already fixed up. */
  readonly count: number;
  /** The lowest such RVA. */
  readonly rva: number;
}

/** What loaders fix up more than once: all of it where the linker has added a table of its own to Xen's (4.11, ld 2.40). */
export function repeatedTargets(blocks: readonly RelocationBlock[]): RepeatedTargets | undefined {
  const most = blocks.reduce((sum, { bytes }) => sum + bytes.length / 2, 0);
  const targets = new Uint32Array(most);
  let length = 0;
  for (const block of blocks) {
    for (const { type, target } of entriesOf(block)) if (type !== ABSOLUTE) targets[length++] = target;
  }
  const repeated = targets
    .subarray(0, length)
    .sort()
    .filter((rva, i, sorted) => i !== 0 && rva === sorted[i - 1]);
  return repeated[0] === undefined ? undefined : { count: repeated.length, rva: repeated[0] };
}

export function repeatedText({ count, rva }: RepeatedTargets): string {
  return `${count === 1 ? "a base relocation comes" : `${count} base relocations come`} twice, the first for RVA ${hex(rva)}`;
}

/** Finds the section of an RVA: of several that overlap, any. */
export function sectionFinder(image: Pick<Pe, "sections">): (rva: number) => Section | undefined {
  const sections = byAddress(image.sections).filter((s) => s.header.virtualSize !== 0);
  let last: Section | undefined;
  const holds = (s: Section | undefined, rva: number): boolean =>
    s !== undefined && rva >= s.header.virtualAddress && rva < sectionEnd(s);
  return (rva) => {
    // Neighbours are mostly of one section.
    if (!holds(last, rva)) last = sections.findLast((s) => holds(s, rva));
    return last;
  };
}
