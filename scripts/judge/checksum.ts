// SPDX-License-Identifier: GPL-2.0-only
// The judges' own CheckSum.

import { viewOf } from "../tables/fields.ts";
import { isZero } from "./memory.ts";

/** Bytes that are added up at a time: as many as have a sum below 2^31, which is added faster. */
const BLOCK = 1 << 16;

/**
 * The sum of 16-bit words, carries added back, the field itself as zero, plus the file's length (PE specification,
 * "CheckSum").
 * @param at file offset of the field
 */
export function checkSum(file: Uint8Array, at: number): number {
  const view = viewOf(file);
  const words = file.length & ~3;
  const plain = (from: number, to: number): number =>
    file.subarray(from, to).reduce((sum, byte, i) => sum + (byte << (8 * ((from + i) & 1))), 0);
  let sum = plain(words, file.length) - plain(at, at + 4);
  for (let block = 0; block < words; block += BLOCK) {
    const end = Math.min(block + BLOCK, words);
    // Gaps between sections are long, and seeing that they are zero is faster than adding them.
    if (isZero(file.subarray(block, end))) continue;
    let part = 0;
    for (let i = block; i < end; i += 4) {
      const word = view.getInt32(i, true);
      part += (word & 0xffff) + (word >>> 16);
    }
    sum += part;
  }
  // A sum of words that are not all zero never ends as 0 but as 0xffff, which is the same modulo 0xffff.
  return (((((sum % 0xffff) + 0xffff) % 0xffff) + 0xfffe) % 0xffff) + 1 + file.length;
}
