// SPDX-License-Identifier: GPL-2.0-only
// Base relocations applied a window at a time are what they are applied to whole memory, one after the other.

import * as fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Fixups, Segment } from "./loads.ts";
import { Relocator } from "./relocated-memory.ts";

const RUNS = { seed: 20261124, numRuns: 500 } as const;
const START = 0x1000;
const END = START + 96;

interface Entry {
  readonly type: number;
  readonly target: number;
}

/** In any order, overlapping, and in the zeros behind the bytes, as no linker makes them. */
const ENTRIES = fc.array(
  fc.record({ type: fc.constantFrom(0, 3, 10), target: fc.integer({ min: START, max: END - 8 }) }),
  { maxLength: 24 },
);
const BYTES = fc.uint8Array({ minLength: 40, maxLength: 96 });
const DELTA = fc.oneof(
  fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
  fc.constantFrom(1n, -1n, 0x80000000n, -0x80000000n),
);

function fixupsOf(entries: readonly Entry[]): Fixups {
  return {
    count: entries.length,
    at: Uint32Array.from(entries, (_, i) => 8 + 2 * i),
    types: Uint8Array.from(entries, ({ type }) => type),
    targets: entries.map(({ target }) => target),
  };
}

/** As a loader does it: with 64-bit arithmetic, in the table's order, in all of the memory. */
function loaded(bytes: Uint8Array, entries: readonly Entry[], delta: bigint): Uint8Array {
  const memory = new Uint8Array(END - START);
  memory.set(bytes);
  const view = new DataView(memory.buffer);
  for (const { type, target } of entries) {
    const at = target - START;
    if (type === 3) view.setUint32(at, Number(BigInt.asUintN(32, BigInt(view.getUint32(at, true)) + delta)), true);
    if (type === 10) view.setBigUint64(at, BigInt.asUintN(64, view.getBigUint64(at, true) + delta), true);
  }
  return memory;
}

/** What is there, with the zeros that the segment has behind it. */
function padded(bytes: Uint8Array, size: number): number[] {
  return Array.from({ length: size }, (_, i) => bytes[i] ?? 0);
}

const relocated = suite("Relocator");

relocated("gives, in windows of any size, what a loader has in memory", () => {
  fc.assert(
    fc.property(BYTES, ENTRIES, DELTA, fc.integer({ min: 1, max: 40 }), (bytes, entries, delta, window) => {
      const segment: Segment = { name: "section .data", start: START, end: END, bytes };
      const [found] = new Relocator([segment], fixupsOf(entries), END - START).at(delta);
      const needed = loaded(bytes, entries, delta);
      assert.ok(found !== undefined);
      for (let from = 0; from < END - START; from += window) {
        const to = Math.min(from + window, END - START);
        assert.equal(padded(found.read(from, to), to - from), [...needed.subarray(from, to)], `${from} to ${to}`);
        if (!found.isChanged(from, to))
          assert.equal(padded(bytes.subarray(from, to), to - from), [...needed.subarray(from, to)]);
      }
    }),
    RUNS,
  );
});

relocated("says which windows a fix-up changes, at another base only", () => {
  const segment: Segment = { name: "section .data", start: START, end: END, bytes: new Uint8Array(END - START) };
  const relocator = new Relocator(
    [segment],
    fixupsOf([
      { type: 10, target: START + 28 },
      { type: 0, target: START + 80 },
    ]),
    0,
  );
  const changed = (delta: bigint): boolean[] =>
    [0, 16, 32, 48, 64, 80].map((from) => relocator.at(delta)[0]?.isChanged(from, from + 16) ?? false);
  assert.equal(changed(0x200000n), [false, true, true, false, false, false]);
  assert.equal(changed(0n), [false, false, false, false, false, false]);
});

relocated("leaves the file's own bytes where there is no fix-up", () => {
  const bytes = new Uint8Array(END - START);
  const segment: Segment = { name: "section .data", start: START, end: END, bytes };
  const [found] = new Relocator([segment], fixupsOf([{ type: 3, target: START }]), 0).at(1n);
  assert.is(found?.read(16, 32).buffer, bytes.buffer);
  assert.is.not(found?.read(0, 16).buffer, bytes.buffer);
});

relocated.run();
