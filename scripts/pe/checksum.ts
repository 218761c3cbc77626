// SPDX-License-Identifier: GPL-2.0-only
// The CheckSum field of a PE: what the steps write and inspect compares. verify adds up by a function of its own.

import { viewOf } from "../tables/fields.ts";

/** So many 32-bit words are added before the sum is folded: far fewer than would make it inexact. */
const BLOCK = 1 << 16;

/**
 * The CheckSum of an image file: the one's complement sum of its 16-bit words, the field itself taken as zero, plus the
 * length of the file (what ImageHlp's CheckSumMappedFile and GNU ld compute).
 * @param checkSumAt file offset of the CheckSum field
 */
export function imageCheckSum(file: Uint8Array, checkSumAt: number): number {
  const view = viewOf(file);
  const words = Math.floor(file.length / 4);
  let sum = 0;
  // Two words at once: folding adds their carries, wherever they come from.
  for (let block = 0; block < words; block += BLOCK) {
    const end = Math.min(words, block + BLOCK);
    for (let i = block; i < end; i++) sum += view.getUint32(4 * i, true);
    sum = fold(sum);
  }
  for (let at = 4 * words; at < file.length; at++) sum += (file[at] ?? 0) * byteWeight(at);
  // The field's own bytes are taken back out: in one's complement, subtracting is adding the complement.
  for (let at = checkSumAt; at < checkSumAt + 4; at++) sum += 0xffff - (file[at] ?? 0) * byteWeight(at);
  return fold(sum) + file.length;
}

function byteWeight(offset: number): number {
  return offset % 2 === 0 ? 1 : 0x100;
}

function fold(sum: number): number {
  let rest = sum;
  while (rest > 0xffff) rest = Math.floor(rest / 0x10000) + (rest % 0x10000);
  return rest;
}
