// SPDX-License-Identifier: GPL-2.0-only
// Memory at another base, with other bytes in it, and what is different between two memories.

import * as fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { LoadedMemory, differences } from "./memory.ts";
import type { Fixup, Memory, Patch, Segment } from "./memory.ts";

const RUNS = { seed: 20261124, numRuns: 500 } as const;
const START = 0x1000;
const END = START + 96;

const segment = (bytes: Uint8Array): Segment => ({ name: "section .data", start: START, end: END, bytes });
const fixup = (type: number, target: number): Fixup => ({
  at: 8,
  type,
  target,
  width: type === 10 ? 8 : type === 3 ? 4 : 0,
});

/** In any order, overlapping, and in the zeros behind the bytes, as no linker makes them. */
const FIXUPS = fc.array(
  fc
    .record({ type: fc.constantFrom(0, 3, 10), target: fc.integer({ min: START, max: END - 8 }) })
    .map(({ type, target }) => fixup(type, target)),
  { maxLength: 24 },
);
const BYTES = fc.uint8Array({ minLength: 40, maxLength: 96 });
const DELTA = fc.oneof(
  fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
  fc.constantFrom(0n, 1n, -1n, 0x80000000n, -0x80000000n),
);

/** With zeros behind, as far as the segment goes. */
function padded(bytes: Uint8Array): Uint8Array {
  const whole = new Uint8Array(END - START);
  whole.set(bytes);
  return whole;
}

/** As a loader does it: with 64-bit arithmetic, in the table's order, byte by byte. */
function loaded(bytes: Uint8Array, fixups: readonly Fixup[], delta: bigint): Uint8Array {
  const memory = padded(bytes);
  for (const { target, width } of fixups) {
    let sum = BigInt.asUintN(64, delta);
    for (let i = width - 1; i >= 0; i--) sum += BigInt(memory[target - START + i] ?? 0) << BigInt(8 * i);
    for (let i = 0; i < width; i++) memory[target - START + i] = Number((sum >> BigInt(8 * i)) & 0xffn);
  }
  return memory;
}

const bases = suite("LoadedMemory.relocate()");

function relocated(memory: Memory, fixups: readonly Fixup[], delta: bigint, most: number): Memory {
  const there = new LoadedMemory(memory, most);
  there.relocate(fixups, delta);
  return there.segments;
}

bases("gives what a loader has in memory, and changes nothing of the file", () => {
  fc.assert(
    fc.property(BYTES, FIXUPS, DELTA, (bytes, fixups, delta) => {
      const before = bytes.slice();
      const [found] = relocated([segment(bytes)], fixups, delta, END - START);
      assert.equal(padded(found?.bytes ?? bytes), loaded(bytes, delta === 0n ? [] : fixups, delta));
      assert.equal(bytes, before);
    }),
    RUNS,
  );
});

bases("copies no segment that stays as it is", () => {
  const other = { ...segment(new Uint8Array(8)), start: END, end: END + 8 };
  const memory = [segment(new Uint8Array(96)), other];
  assert.is(relocated(memory, [fixup(3, START)], 1n, 0)[1], other);
});

bases("refuses what is outside of memory, and zeros without end", () => {
  const memory = [segment(new Uint8Array(40))];
  for (const target of [START - 1, END - 2, END])
    assert.throws(() => relocated(memory, [fixup(3, target)], 1n, 96), /which is not inside one section/);
  assert.throws(
    () => relocated(memory, [fixup(3, START + 38)], 1n, 55),
    /more zero-filled memory than its file is long/,
  );
  assert.is(relocated(memory, [fixup(3, START + 38)], 1n, 56)[0]?.bytes.length, 96);
});

bases("moves on from where it is, with patches that stay", () => {
  const fixups = [fixup(10, START), fixup(3, START + 8), fixup(0, START)];
  const fixed: Patch = { cause: "the debug directory", start: START + 20, bytes: new Uint8Array([1, 2]) };
  fc.assert(
    fc.property(BYTES, DELTA, DELTA, (bytes, first, second) => {
      const there = new LoadedMemory([segment(bytes)], 0);
      for (const delta of [first, second]) {
        there.relocate(fixups, delta);
        there.patch([fixed]);
      }
      const needed = loaded(bytes, fixups, first + second);
      needed.set(fixed.bytes, 20);
      assert.equal(padded(there.segments[0]?.bytes ?? bytes), needed);
    }),
    RUNS,
  );
});

bases.run();

// ---

const patches = suite("LoadedMemory.patch()");

function patched(memory: Memory, list: readonly Patch[]): Memory {
  const there = new LoadedMemory(memory, 0);
  there.patch(list);
  return there.segments;
}

const patch: Patch = { cause: "the debug directory", start: START + 16, bytes: new Uint8Array([1, 2, 3]) };

patches("writes where it is said, into a copy", () => {
  const bytes = new Uint8Array(96);
  const [found] = patched([segment(bytes)], [{ ...patch, start: START + 93 }, patch]);
  const needed = new Uint8Array(96);
  needed.set(patch.bytes, 16);
  needed.set(patch.bytes, 93);
  assert.equal(found?.bytes, needed);
  assert.equal(bytes, new Uint8Array(96));
});

patches("refuses changes that contradict each other, or are outside", () => {
  const change = (...list: Patch[]) => patched([segment(new Uint8Array(96))], list);
  assert.throws(
    () => change(patch, { ...patch, start: START + 18 }),
    /the debug directory at RVA 0x1012 overlaps another/,
  );
  assert.throws(() => change({ ...patch, start: START + 94 }), /the debug directory at RVA 0x105e overlaps/);
  assert.throws(() => change({ ...patch, start: END }), /is in no section/);
});

patches.run();

// ---

const compared = suite("differences()");

compared(
  "has every byte that differs in a run that begins and ends with one, and no long stretch of equal ones",
  () => {
    const FEW = fc.array(fc.record({ at: fc.nat(0x20010), byte: fc.nat(255) }), { maxLength: 12 });
    fc.assert(
      fc.property(FEW, fc.integer({ min: 0xfff0, max: 0x20010 }), fc.nat(0x20010), (changes, size, length) => {
        const a = new Uint8Array(0x20010);
        const b = new Uint8Array(length);
        for (const { at, byte } of changes) (at % 2 === 0 ? a : b)[at] = byte;
        const needed = new Set<number>();
        for (const { at } of changes) if (at < size && (a[at] ?? 0) !== (b[at] ?? 0)) needed.add(at);
        const runs = [...differences(a, b, size)];
        for (const [start, end] of runs) assert.ok(needed.has(start) && needed.has(end - 1), `${start} to ${end}`);
        for (const at of needed)
          assert.ok(
            runs.some(([start, end]) => at >= start && at < end),
            String(at),
          );
        for (const [i, [start]] of runs.entries()) assert.ok(i === 0 || start - (runs[i - 1]?.[1] ?? 0) >= 7);
      }),
      { ...RUNS, numRuns: 100 },
    );
  },
);

compared.run();
