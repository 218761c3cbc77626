// SPDX-License-Identifier: GPL-2.0-only
// How Multiboot headers are found and decoded; tables/multiboot.ts has their fields.

import { failing, type Fail } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { roundUp, type Image } from "../pe/image.ts";
import { readStructure, viewOf } from "../tables/fields.ts";
import * as mb from "../tables/multiboot.ts";

/** What counts as padding behind Xen's Multiboot2 header. Anything else, zeros included, is content. */
export const NOP = 0x90;
export const INT3 = 0xcc;

/**
 * The offset of the first Multiboot header: on a multiple of 4, with the magic and a checksum that fits.
 * @param limit bytes that are looked at
 */
export function findMultiboot1(bytes: Uint8Array, limit = mb.MB1_SEARCH): number | undefined {
  return find(bytes, limit, mb.MB1_ALIGN, mb.MB1_MAGIC, 3);
}

/** Whether emit-header has run: it alone puts a Multiboot1 header into the header area. */
export function hasNewHeaders({ background, optional }: Image): boolean {
  return findMultiboot1(background.subarray(0, optional.sizeOfHeaders)) !== undefined;
}

/** The checksum field that makes magic, flags (and other words) and itself add up to 0. */
export function multibootChecksum(...words: number[]): number {
  return (2 ** 32 - (words.reduce((sum, word) => sum + word, 0) % 2 ** 32)) % 2 ** 32;
}

export interface Multiboot2Tag {
  readonly type: number;
  readonly flags: number;
  /** The whole tag, its 8 bytes of type, flags and size included, padding not. */
  readonly bytes: Uint8Array;
}

/** The offset of the first Multiboot2 header: on a multiple of 8, with the magic and a checksum that fits. */
export function findMultiboot2(bytes: Uint8Array, limit = mb.MB2_SEARCH): number | undefined {
  return find(bytes, limit, mb.MB2_ALIGN, mb.MB2_MAGIC, 4);
}

/**
 * The tags of a Multiboot2 header, without END.
 * @param at offset of the header in `bytes`
 * @param where what the offset counts from, for the message: "RVA" and its start, say
 * @throws ImageError when they do not fill the header exactly, up to an END tag
 */
export function multiboot2Tags(bytes: Uint8Array, at: number, where: (offset: number) => string): Multiboot2Tag[] {
  const header = readStructure(mb.MB2_HEADER, bytes, at);
  const end = at + header.headerLength;
  const fail: Fail = failing(`read the Multiboot2 header at ${where(at)}`);
  if (header.architecture !== mb.MB2_ARCHITECTURE_I386)
    fail(`architecture is ${header.architecture}, needed ${mb.MB2_ARCHITECTURE_I386} (i386)`);
  if (end > bytes.length)
    fail(`header_length is ${hex(header.headerLength)}, needed at most ${hex(bytes.length - at)}`);
  const tags: Multiboot2Tag[] = [];
  for (let tagAt = at + mb.MB2_HEADER.size; tagAt + mb.MB2_TAG.size <= end;) {
    const { type, flags, size } = readStructure(mb.MB2_TAG, bytes, tagAt);
    if (size < mb.MB2_TAG.size || tagAt + size > end) {
      const needed = `needed ${hex(mb.MB2_TAG.size)} to ${hex(end - tagAt)}`;
      fail(`the tag at ${where(tagAt)} has type ${type} and size ${hex(size)}, ${needed}`);
    }
    const next = tagAt + roundUp(size, mb.MB2_ALIGN);
    if (type === mb.MB2_END) {
      if (next !== end)
        fail(`header_length is ${hex(header.headerLength)}, its END tag ends at ${hex(next - at)}, needed the same`);
      return tags;
    }
    tags.push({ type, flags, bytes: bytes.subarray(tagAt, tagAt + size) });
    tagAt = next;
  }
  return fail(`there is no END tag in ${range(at + mb.MB2_HEADER.size, end)}`);
}

/** Both searches: the magic on aligned offsets, and `count` words from it on that add up to 0 modulo 2^32. */
function find(bytes: Uint8Array, limit: number, align: number, magic: number, count: number): number | undefined {
  const view = viewOf(bytes);
  for (let at = 0; at + 4 * count <= Math.min(bytes.length, limit); at += align) {
    if (view.getUint32(at, true) !== magic) continue;
    let sum = 0;
    for (let i = 0; i < count; i++) sum += view.getUint32(at + 4 * i, true);
    if (sum % 2 ** 32 === 0) return at;
  }
  return undefined;
}
