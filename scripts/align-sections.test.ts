// SPDX-License-Identifier: GPL-2.0-only
// The three properties of align-sections on samples and on known builds, with the layout computed once more from
// DESIGN.md; golden/cases/align-sections-*.txt has its rules one by one.

import { Buffer } from "node:buffer";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { alignSections } from "./align-sections.ts";
import { ImageError } from "./cli/errors.ts";
import { alwaysTrue, readFacts } from "./dev/sample/facts.ts";
import type { Facts } from "./dev/sample/facts.ts";
import { KINDS, builds, differences, once, sample } from "./dev/sample/run.ts";
import { parseImage } from "./pe/parse.ts";
import { serializeImage } from "./pe/serialize.ts";
import { relocateReloc } from "./relocate-reloc.ts";

const relocated = (bytes: Uint8Array, keep: boolean): Uint8Array =>
  serializeImage(relocateReloc(parseImage(bytes), keep));
const align = (bytes: Uint8Array): Uint8Array => serializeImage(alignSections(parseImage(bytes)));
const IMAGES = [{ id: "tiny", bytes: sample() }, ...builds(KINDS)].flatMap(({ id, bytes }) => [
  { id: `${id}, moved`, bytes: relocated(bytes, false) },
  { id: `${id}, kept`, bytes: relocated(bytes, true) },
]);

/** What the output's bytes must be, section by section. @returns what is wrong */
function wrongBytes(before: Facts, after: Facts): string[] {
  const wrong: string[] = [];
  const sections = after.sections;
  const bss = sections.findIndex((s) => s.name === ".bss");
  const headers = after.optional.sizeOfHeaders;
  const first = sections[0]?.virtualAddress ?? 0;
  let end = headers;
  sections.forEach((section, i) => {
    const { name, pointerToRawData: pointer, sizeOfRawData: size, virtualAddress: rva } = section;
    if (size !== 0 && pointer !== end) wrong.push(`${name} is at 0x${pointer.toString(16)}, a gap or an overlap`);
    if (i < bss && pointer !== rva - first + headers) wrong.push(`${name} is not linear`);
    end = Math.max(end, pointer + size);
    const old = before.sections.find((s) => s.name === name);
    const length = Math.min(old?.virtualSize ?? 0, old?.sizeOfRawData ?? 0);
    const source = old?.pointerToRawData ?? 0;
    const [was, is] = [before.bytes.subarray(source, source + length), after.bytes.subarray(pointer, pointer + length)];
    for (const [from, to] of differences(was, is)) {
      // Only a debug directory entry's file offset may change: its last four bytes.
      const debug = (after.directories[6]?.virtualAddress ?? 0) - rva;
      const entries = after.directories[6]?.size ?? 0;
      if (!(from >= debug && to <= debug + entries && (from - debug) % 28 >= 24))
        wrong.push(`${name}+0x${from.toString(16)} changed`);
    }
    if (after.bytes.subarray(pointer + length, pointer + size).some((byte) => byte !== 0))
      wrong.push(`${name}: not zero behind its data`);
  });
  const [oldTable, newTable] = [before, after].map((facts) => facts.bytes.subarray(facts.coff.pointerToSymbolTable));
  if (after.coff.pointerToSymbolTable !== 0) {
    if (after.coff.pointerToSymbolTable !== end) wrong.push("the symbol table does not follow the sections");
    const size = after.symbols.length === 0 ? 0 : (oldTable?.length ?? 0);
    if (Buffer.compare(oldTable ?? Buffer.of(), newTable?.subarray(0, size) ?? Buffer.of()) !== 0)
      wrong.push("symbols or strings changed");
    end += size;
  }
  if (after.bytes.length !== Math.ceil(end / 8) * 8)
    wrong.push(`length 0x${after.bytes.length.toString(16)} for an end of 0x${end.toString(16)}`);
  return [...wrong, ...alwaysTrue(after)];
}

const properties = suite("alignSections()");

for (const { id, bytes } of IMAGES) {
  const alignedOnce = once(() => align(bytes));

  properties(`${id}: the same data, linear, zeros between, symbols behind; twice is once`, () => {
    const aligned = alignedOnce();
    const wrong = wrongBytes(readFacts(bytes), readFacts(aligned));
    if (wrong.length !== 0) assert.unreachable(wrong.join("\n"));
    assert.is(differences(aligned, align(aligned)).length, 0, "twice");
  });

  properties(`${id}: only the announced header fields change`, () => {
    const [before, after] = [readFacts(bytes), readFacts(alignedOnce())];
    const announced = new Set([
      "sizeOfCode",
      "sizeOfInitializedData",
      "fileAlignment",
      "sizeOfImage",
      "sizeOfHeaders",
      "checkSum",
      "pointerToSymbolTable",
    ]);
    const fields = ({ coff, optional }: Facts): [string, unknown][] => Object.entries({ ...coff, ...optional });
    const now = new Map(fields(after));
    const changed = fields(before).filter(([field, value]) => now.get(field) !== value && !announced.has(field));
    assert.equal(changed, []);
    assert.equal(after.directories, before.directories);
    for (const [i, section] of after.sections.entries()) {
      const { pointerToRawData: _p, sizeOfRawData: _s, virtualSize: _v, virtualAddress: rva, ...rest } = section;
      const {
        pointerToRawData: _p2,
        sizeOfRawData: _s2,
        virtualSize: _v2,
        virtualAddress: oldRva,
        ...oldRest
      } = before.sections[i] ?? {};
      assert.equal(rest, oldRest);
      assert.ok(rva === oldRva, section.name);
    }
  });
}

/** Memory is to be bounded by the file's size, and no step reads what is longer than 2^31 - 1 bytes. */
properties("refuses what would become longer than any file that can be read", () => {
  const image = parseImage(
    sample(`
set section .data.virtualAddress 0xc0000000
set section .bss.virtualAddress 0xc0001000
set section .reloc.virtualAddress 0xc0004000
set section .debug_info.virtualAddress 0xc0005000
set optional.sizeOfImage 0xc0006000`),
  );
  assert.throws(
    () => alignSections(image),
    (error: unknown) => error instanceof ImageError && /^Cannot align sections: /.test(error.message),
  );
});

properties.run();
