// SPDX-License-Identifier: GPL-2.0-only
// The Multiboot headers ("Multiboot Specification" 0.6.96 section 3.1, "Multiboot2 Specification" 2.0 section 3.1) as
// field tables, and how they are found and decoded. emit-header writes them, verify loads by them, inspect shows them.

import { ImageError } from "./cli.ts";
import { readStructure, structure, viewOf } from "./fields.ts";
import { hex, range, roundUp } from "./pe.ts";

// ---- Multiboot (1)

export const MB1_MAGIC = 0x1badb002;
/** A loader looks at so many bytes of the file, in steps of MB1_ALIGN. */
export const MB1_SEARCH = 8192;
export const MB1_ALIGN = 4;
/** Flag bit 16: the address fields are there and are to be used. */
export const MB1_AOUT_KLUDGE = 0x00010000;
/** Flag bit 2: the video fields are there. */
export const MB1_VIDEO_MODE = 0x00000004;

/** The form without address fields, as Xen has it. */
export const MB1_HEADER = structure("Multiboot header", 12, [
  ["magic", 4],
  ["flags", 4],
  ["checksum", 4],
]);

/** The form with address fields (flag bit 16). */
export const MB1_ADDRESS_HEADER = structure("Multiboot header with addresses", 32, [
  ["magic", 4],
  ["flags", 4],
  ["checksum", 4],
  ["headerAddr", 4],
  ["loadAddr", 4],
  ["loadEndAddr", 4],
  ["bssEndAddr", 4],
  ["entryAddr", 4],
]);

/**
 * The offset of the first Multiboot header: on a multiple of 4, with the magic and a checksum that fits.
 * @param limit bytes that are looked at
 */
export function findMultiboot1(bytes: Uint8Array, limit = MB1_SEARCH): number | undefined {
  return find(bytes, limit, MB1_ALIGN, MB1_MAGIC, [4, 8]);
}

/** The checksum field that makes magic, flags (and other words) and itself add up to 0. */
export function multibootChecksum(...words: number[]): number {
  return (2 ** 32 - (words.reduce((sum, word) => sum + word, 0) % 2 ** 32)) % 2 ** 32;
}

// ---- Multiboot2

export const MB2_MAGIC = 0xe85250d6;
export const MB2_SEARCH = 32768;
export const MB2_ALIGN = 8;
export const MB2_ARCHITECTURE_I386 = 0;

export const MB2_HEADER = structure("Multiboot2 header", 16, [
  ["magic", 4],
  ["architecture", 4],
  ["headerLength", 4],
  ["checksum", 4],
]);

/** "3.1.3 General tag structure". Tags begin on multiples of 8; `size` does not count the padding. */
export const MB2_TAG = structure("Multiboot2 header tag", 8, [
  ["type", 2],
  ["flags", 2],
  ["size", 4],
]);
export const MB2_TAG_OPTIONAL = 1;

export const MB2_END = 0;
export const MB2_INFORMATION_REQUEST = 1;
export const MB2_ADDRESS = 2;
export const MB2_ENTRY_ADDRESS = 3;
export const MB2_CONSOLE_FLAGS = 4;
export const MB2_FRAMEBUFFER = 5;
export const MB2_RELOCATABLE = 10;

/** Names as in the specification's headings, by type. */
export const MB2_TAG_NAMES: readonly string[] = [
  "END",
  "INFORMATION_REQUEST",
  "ADDRESS",
  "ENTRY_ADDRESS",
  "CONSOLE_FLAGS",
  "FRAMEBUFFER",
  "MODULE_ALIGN",
  "EFI_BS",
  "ENTRY_ADDRESS_EFI32",
  "ENTRY_ADDRESS_EFI64",
  "RELOCATABLE",
];

export const MB2_ADDRESS_TAG = structure("address header tag", 24, [
  ["type", 2],
  ["flags", 2],
  ["size", 4],
  ["headerAddr", 4],
  ["loadAddr", 4],
  ["loadEndAddr", 4],
  ["bssEndAddr", 4],
]);

export const MB2_ENTRY_ADDRESS_TAG = structure("entry address header tag", 12, [
  ["type", 2],
  ["flags", 2],
  ["size", 4],
  ["entryAddr", 4],
]);

export const MB2_RELOCATABLE_TAG = structure("relocatable header tag", 24, [
  ["type", 2],
  ["flags", 2],
  ["size", 4],
  ["minAddr", 4],
  ["maxAddr", 4],
  ["align", 4],
  ["preference", 4],
]);

export interface Multiboot2Tag {
  readonly type: number;
  readonly flags: number;
  /** The whole tag, its 8 bytes of type, flags and size included, padding not. */
  readonly bytes: Uint8Array;
}

/** The offset of the first Multiboot2 header: on a multiple of 8, with the magic and a checksum that fits. */
export function findMultiboot2(bytes: Uint8Array, limit = MB2_SEARCH): number | undefined {
  return find(bytes, limit, MB2_ALIGN, MB2_MAGIC, [4, 8, 12]);
}

/**
 * The tags of a Multiboot2 header, without END.
 * @param at offset of the header in `bytes`
 * @param where what the offset counts from, for the message: "RVA" and its start, say
 * @throws ImageError when they do not fill the header exactly, up to an END tag
 */
export function multiboot2Tags(bytes: Uint8Array, at: number, where: (offset: number) => string): Multiboot2Tag[] {
  const header = readStructure(MB2_HEADER, bytes, at);
  const end = at + header.headerLength;
  const fail = (reason: string): never => {
    throw new ImageError(`Cannot read the Multiboot2 header at ${where(at)}: ${reason}`);
  };
  if (header.architecture !== MB2_ARCHITECTURE_I386) fail(`architecture is ${header.architecture}, needed ${MB2_ARCHITECTURE_I386} (i386)`);
  if (end > bytes.length) fail(`header_length is ${hex(header.headerLength)}, needed at most ${hex(bytes.length - at)}`);
  const tags: Multiboot2Tag[] = [];
  for (let tagAt = at + MB2_HEADER.size; tagAt + MB2_TAG.size <= end; ) {
    const { type, flags, size } = readStructure(MB2_TAG, bytes, tagAt);
    if (size < MB2_TAG.size || tagAt + size > end) {
      fail(`the tag at ${where(tagAt)} has type ${type} and size ${hex(size)}, needed ${hex(MB2_TAG.size)} to ${hex(end - tagAt)}`);
    }
    const next = tagAt + roundUp(size, MB2_ALIGN);
    if (type === MB2_END) {
      if (next !== end) fail(`header_length is ${hex(header.headerLength)}, its END tag ends at ${hex(next - at)}, needed the same`);
      return tags;
    }
    tags.push({ type, flags, bytes: bytes.subarray(tagAt, tagAt + size) });
    tagAt = next;
  }
  return fail(`there is no END tag in ${range(at + MB2_HEADER.size, end)}`);
}

/** Both searches: the magic on aligned offsets, and words that add up to 0 with it modulo 2^32. */
function find(bytes: Uint8Array, limit: number, align: number, magic: number, words: readonly number[]): number | undefined {
  const view = viewOf(bytes);
  const size = 4 * (words.length + 1);
  for (let at = 0; at + size <= Math.min(bytes.length, limit); at += align) {
    if (view.getUint32(at, true) !== magic) continue;
    if (words.reduce((sum, word) => sum + view.getUint32(at + word, true), magic) % 2 ** 32 === 0) return at;
  }
  return undefined;
}
