// SPDX-License-Identifier: GPL-2.0-only
// verify's comparison of memory at further bases: only windows that differ from the file's bytes are looked at, and all
// of those. A whole image cannot show it, because verify compares the lists of base relocations too.

import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Findings } from "./findings.ts";
import type { Fixups, Segment } from "./loads.ts";
import { changedMemory, compareMemory } from "./memory.ts";
import type { Patch } from "./memory.ts";
import { Relocator } from "./relocated-memory.ts";
import type { RelocatedSegment } from "./relocated-memory.ts";

const START = 0x1000;
const SIZE = 0x40000;
const FURTHER = { where: " at base 0x400000", further: true } as const;

/** Memory with the header area in front, as loaders have it; a fix-up of 32 bits at each of these offsets. */
function memory(offsets: readonly number[], bytes = new Uint8Array(SIZE)): RelocatedSegment[] {
  const segments: Segment[] = [
    { name: "the header area", start: 0, end: START, bytes: new Uint8Array(START) },
    { name: "section .data", start: START, end: START + SIZE, bytes },
  ];
  const fixups: Fixups = {
    count: offsets.length,
    at: Uint32Array.from(offsets, (_, i) => 8 + 2 * i),
    types: Uint8Array.from(offsets, () => 3),
    targets: offsets.map((offset) => START + offset),
  };
  return new Relocator(segments, fixups, 0).at(0x200000n);
}

function findingsOf(needed: readonly RelocatedSegment[], found: readonly RelocatedSegment[]): string[] {
  const findings = new Findings();
  compareMemory(needed, found.slice(1), [], FURTHER, findings);
  return findings.lines();
}

const changes = (...patches: Patch[]) => ({ patches, reshaped: new Map() });
const patch: Patch = { cause: "the debug directory", start: START + 0x10010, bytes: new Uint8Array([1, 2, 3]) };

const compare = suite("compareMemory() at a further base");

compare("finds a fix-up that only one of both has, in whichever window", () => {
  for (const offset of [0, 0xfffe, 0x10000, 0x23456, SIZE - 4]) {
    const needed = (offsets: number[]) => changedMemory(memory(offsets), changes());
    assert.is(findingsOf(needed([0x100, 0x20000]), memory([0x100, 0x20000])).length, 0);
    // One that crosses from one window to the next is different in both.
    for (const lines of [findingsOf(needed([offset]), memory([])), findingsOf(needed([]), memory([offset]))])
      assert.match(lines.join("\n"), new RegExp(`section \\.data \\+ 0x${(offset + 2).toString(16)}\\)`), `${lines}`);
  }
});

compare("finds it in a segment that has a change elsewhere, and the change too", () => {
  const patched = changedMemory(memory([0x30000]), changes(patch));
  const bytes = new Uint8Array(SIZE);
  bytes.set(patch.bytes, patch.start - START);
  assert.is(findingsOf(patched, memory([0x30000], bytes)).length, 0);
  assert.match(findingsOf(patched, memory([], bytes)).join("\n"), /section \.data \+ 0x30002\)/);
  assert.match(findingsOf(patched, memory([0x30000])).join("\n"), /section \.data \+ 0x10010\)/);
});

compare("makes a change that crosses from one window to the next", () => {
  const crossing: Patch = {
    cause: "the Multiboot2 header",
    start: START + 0x1fffe,
    bytes: new Uint8Array([1, 2, 3, 4]),
  };
  const bytes = new Uint8Array(SIZE);
  bytes.set(crossing.bytes, 0x1fffe);
  const patched = changedMemory(memory([]), changes(crossing));
  assert.is(findingsOf(patched, memory([], bytes)).length, 0);
  assert.is(findingsOf(patched, memory([])).length, 2);
});

compare("leaves alone what is the file's own in both", () => {
  const other = new Uint8Array(SIZE);
  other[0x30000] = 1;
  assert.is(findingsOf(changedMemory(memory([0x100]), changes()), memory([0x100], other)).length, 0);
});

compare("refuses changes that contradict each other", () => {
  const overlapping = { ...patch, start: patch.start + 2 };
  const outside = { ...patch, start: START + SIZE - 2 };
  assert.throws(
    () => changedMemory(memory([]), changes(patch, overlapping)),
    /the debug directory at RVA 0x11012 overlaps another change/,
  );
  assert.throws(() => changedMemory(memory([]), changes(outside)), /the debug directory at RVA 0x40ffe overlaps/);
  assert.throws(() => changedMemory(memory([]), changes({ ...patch, start: START + SIZE })), /is in no section/);
});

compare.run();
