// SPDX-License-Identifier: GPL-2.0-only
// The CheckSum field of a PE: what the steps write and inspect compares. verify adds up by a function of its own.

import { Buffer } from "node:buffer";
import { piecesOf } from "./file-bytes.ts";
import type { FileBytes } from "./file-bytes.ts";
import { words32 } from "../tables/fields.ts";

/**
 * The CheckSum of an image file: the one's complement sum of its 16-bit words, the field itself taken as zero, plus the
 * length of the file (what ImageHlp's CheckSumMappedFile and GNU ld compute).
 * @param checkSumAt file offset of the CheckSum field
 */
export function imageCheckSum(file: FileBytes, checkSumAt: number): number {
  let sum = 0;
  let at = 0;
  for (const piece of piecesOf(file)) {
    // At an odd offset, what is the low byte of a word in the piece is the high one in the file.
    sum = fold(sum + wordSum(piece) * byteWeight(at));
    at += piece.length;
  }
  // The field's own bytes are taken back out: in one's complement, subtracting is adding the complement.
  file.subarray(checkSumAt, checkSumAt + 4).forEach((byte, i) => (sum += 0xffff - byte * byteWeight(checkSumAt + i)));
  return fold(sum) + file.length;
}

function byteWeight(offset: number): number {
  return offset % 2 === 0 ? 1 : 0x100;
}

/** The one's complement sum of the 16-bit words of bytes; a last byte without a second is a word. */
function wordSum(bytes: Uint8Array): number {
  const words = words32(bytes);
  const whole = words.length - (words.length % 4);
  let sum = 0;
  for (let at = 0; at < whole; at += GAP) {
    const end = Math.min(whole, at + GAP);
    // Half of a linear image's load span is zeros, which native code finds faster than they are added.
    if (Buffer.compare(bytes.subarray(4 * at, 4 * end), ZEROS) === 0) continue;
    for (let block = at; block < end; block += SUM_BLOCK)
      sum = fold(sum + sumOfHalves(words, block, Math.min(end, block + SUM_BLOCK)));
  }
  for (let at = 4 * whole; at < bytes.length; at++) sum += (bytes[at] ?? 0) * byteWeight(at);
  return fold(sum);
}

/** Sums of so many 16-bit halves stay below 2^31: V8 has larger numbers, as it has unsigned words, in memory of their own. */
const SUM_BLOCK = 1 << 12;
/** Words that are looked at together for being zeros. */
const GAP = 4 * SUM_BLOCK;
const ZEROS = new Uint8Array(4 * GAP);

/**
 * Both halves of each word, four words at a time: V8 looks up where an array is whenever it takes one. A function of its
 * own, because V8 compiles one that is called often sooner than a loop that takes long.
 * @param end a multiple of 4 behind `start`
 */
function sumOfHalves(words: Int32Array, start: number, end: number): number {
  let sum = 0;
  for (let i = start; i < end; i += 4) {
    const a = words[i] ?? 0;
    const b = words[i + 1] ?? 0;
    const c = words[i + 2] ?? 0;
    const d = words[i + 3] ?? 0;
    sum = (sum + (a & 0xffff) + (b & 0xffff) + (c & 0xffff) + (d & 0xffff)) | 0;
    sum = (sum + (a >>> 16) + (b >>> 16) + (c >>> 16) + (d >>> 16)) | 0;
  }
  return sum;
}

function fold(sum: number): number {
  let rest = sum;
  while (rest > 0xffff) rest = Math.floor(rest / 0x10000) + (rest % 0x10000);
  return rest;
}
