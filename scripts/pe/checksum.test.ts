// SPDX-License-Identifier: GPL-2.0-only
// CheckSum of files of any length and at any place of memory, as the steps add it up and as verify does.

import * as fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { checkSumOf } from "../dev/sample/build.ts";
import { builds } from "../dev/sample/run.ts";
import { checkSum } from "../judge/checksum.ts";
import { imageCheckSum } from "./checksum.ts";
import { checkSumAt } from "./image.ts";
import { parseImage } from "./parse.ts";

const RUNS = { seed: 20261124, numRuns: 300 } as const;

/** A file's bytes; they begin at an odd place of their memory as often as at an even one. */
const FILE = fc
  .record({ bytes: fc.uint8Array({ minLength: 80, maxLength: 300 }), shift: fc.nat(3) })
  .map(({ bytes, shift }) => {
    const memory = new Uint8Array(shift + bytes.length);
    memory.set(bytes, shift);
    return memory.subarray(shift);
  });

const sums = suite("imageCheckSum()");

sums("is the sum of a plain loop over the words", () => {
  fc.assert(
    fc.property(FILE, fc.constantFrom(64, 65, 66, 67, 70), (file, at) => {
      const needed = checkSumOf(file, at - 64);
      assert.is(imageCheckSum(file, at), needed);
      assert.is(checkSum(file, at), needed);
    }),
    RUNS,
  );
});

sums("stays exact over megabytes of the largest words", () => {
  for (const length of [0x300000, 0x300001, 0x2ffffe]) {
    const file = new Uint8Array(length).fill(0xff);
    const needed = checkSumOf(file, 0);
    assert.is(imageCheckSum(file, 64), needed);
    assert.is(checkSum(file, 64), needed);
  }
});

sums("is the linker's on the known builds", () => {
  for (const { id, bytes } of builds()) {
    const image = parseImage(bytes);
    assert.is(imageCheckSum(bytes, checkSumAt(image)), image.optional.checkSum, id);
  }
});

sums.run();
