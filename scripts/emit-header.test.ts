// SPDX-License-Identifier: GPL-2.0-only
// The three properties of emit-header on samples and on known builds; golden/cases/emit-header-*.txt has its rules
// one by one.

import { suite } from "uvu";
import * as assert from "uvu/assert";
import { alignSections } from "./align-sections.ts";
import { ImageError } from "./cli/errors.ts";
import { alwaysTrue, lookUp, readFacts } from "./dev/sample/facts.ts";
import { KINDS, builds, differences, once, sample } from "./dev/sample/run.ts";
import { emitHeader } from "./emit-header.ts";
import { parseImage } from "./pe/parse.ts";
import { serializeImage } from "./pe/serialize.ts";
import { relocateReloc } from "./relocate-reloc.ts";

const prepared = (bytes: Uint8Array, keep: boolean): Uint8Array =>
  serializeImage(alignSections(relocateReloc(parseImage(bytes), keep)));
const emit = (bytes: Uint8Array): Uint8Array => serializeImage(emitHeader(parseImage(bytes)));
const IMAGES = [{ id: "tiny", bytes: sample() }, ...builds(KINDS)].flatMap(({ id, bytes }) => [
  { id: `${id}, moved`, bytes: prepared(bytes, false) },
  { id: `${id}, kept`, bytes: prepared(bytes, true) },
]);

const properties = suite("emitHeader()");

for (const { id, bytes } of IMAGES) {
  const resultOnce = once(() => emit(bytes));

  properties(`${id}: nothing changes but the announced bytes`, () => {
    const result = resultOnce();
    assert.is(result.length, bytes.length);
    const facts = readFacts(result);
    const fact = (path: string): number => Number(lookUp(facts, path, "0x"));
    const wrong = alwaysTrue(facts);
    const table = fact("directory.relocation.virtualAddress");
    const holder = facts.sections.find((s) => s["virtualAddress"] === table);
    const tableAt = Number(holder?.["pointerToRawData"]);
    const allowed: readonly (readonly [number, number])[] = [
      [facts.optionalAt + 64, facts.optionalAt + 68], // CheckSum
      [facts.optionalAt + 70, facts.optionalAt + 72], // DllCharacteristics
      [fact("mb1.offset"), fact("mb1.offset") + 32],
      // The rewritten range: at most from 8 bytes in front of the new header to where that, or the old one, ends.
      [fact("mb2.offset") - 4, fact("mb2.offset") + fact("mb2.length") + 64],
    ];
    for (const [start, end] of differences(bytes, result)) {
      for (let at = start; at < end; at++) {
        if (bytes[at] === result[at] || allowed.some(([from, to]) => at >= from && at < to)) continue;
        const inTable = at >= tableAt && at < tableAt + fact("directory.relocation.size");
        if (!inTable || result[at] !== 0) wrong.push(`offset 0x${at.toString(16)} changed`);
      }
    }
    if (wrong.length !== 0) assert.unreachable(wrong.slice(0, 20).join("\n"));
  });

  properties(`${id}: a loader that follows the addresses gets what the headers say`, () => {
    const facts = readFacts(resultOnce());
    const fact = (path: string): number => Number(lookUp(facts, path, "0x"));
    const first = Number(facts.sections[0]?.["virtualAddress"]);
    for (const header of ["mb1", "mb2.address"]) {
      // File offset of load_addr = offset of the header - (header_addr - load_addr), in both specifications.
      const loadAt = fact(`${header.slice(0, 3)}.offset`) - (fact(`${header}.headerAddr`) - fact(`${header}.loadAddr`));
      assert.is(loadAt - fact(`${header}.loadAddr`), fact("optional.sizeOfHeaders") - first, `${header}: delta`);
      assert.ok(loadAt >= 0 && fact(`${header}.loadAddr`) <= fact(`${header}.headerAddr`), `${header}: load_addr`);
      assert.ok(
        loadAt + fact(`${header}.loadEndAddr`) - fact(`${header}.loadAddr`) <= facts.bytes.length,
        `${header}: load_end_addr is behind the file`,
      );
      assert.is(fact(`${header}.bssEndAddr`) % 0x200000, 0);
    }
    assert.is(fact("mb1.entryAddr"), fact("mb2.entry_address.entryAddr"));
    assert.ok(fact("mb1.offset") < 8192 - 48, "QEMU does not find the Multiboot1 header");
  });

  properties(`${id}: twice is refused by name`, () => {
    assert.throws(
      () => emit(resultOnce()),
      (error: unknown) => error instanceof ImageError && /has the tag ADDRESS/.test(error.message),
    );
  });
}

properties.run();
