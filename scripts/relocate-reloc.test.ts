// SPDX-License-Identifier: GPL-2.0-only
// The three properties of relocate-reloc on samples and on known builds; golden/cases/relocate-reloc-*.txt has its
// rules one by one.

import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ImageError } from "./cli/errors.ts";
import { lookUp, readFacts } from "./dev/sample/facts.ts";
import { KINDS, builds, differences, once, sample } from "./dev/sample/run.ts";
import { parseImage } from "./pe/parse.ts";
import { serializeImage } from "./pe/serialize.ts";
import { relocateReloc } from "./relocate-reloc.ts";

const IMAGES = [
  { id: "tiny", bytes: sample() },
  {
    id: "tiny, unsorted",
    bytes: sample("order .reloc .text .rodata .buildid .init .data .data.read_mostly .bss .debug_info"),
  },
  ...builds(KINDS),
];
const move = (bytes: Uint8Array, notes: string[] = []): Uint8Array =>
  serializeImage(relocateReloc(parseImage(bytes), false, (line) => notes.push(line)));
const keep = (bytes: Uint8Array): Uint8Array => serializeImage(relocateReloc(parseImage(bytes), true));

/** Where headers end and where the symbol records are: in between only the announced bytes may change. */
function bodies(bytes: Uint8Array): { from: number; records: [number, number]; strings: Uint8Array } {
  const image = parseImage(bytes);
  const start = image.coff.pointerToSymbolTable || bytes.length;
  const end = start + image.symbols.length;
  return { from: image.optional.sizeOfHeaders, records: [start, end], strings: bytes.subarray(end) };
}

const properties = suite("relocateReloc()");

for (const { id, bytes } of IMAGES) {
  const notes: string[] = [];
  const movedOnce = once(() => move(bytes, notes));
  const keptOnce = once(() => keep(bytes));

  properties(`${id}: outside the headers only the displacements of the pairs change`, () => {
    const moved = movedOnce();
    assert.is(moved.length, bytes.length);
    const { from, records } = bodies(bytes);
    const after = readFacts(moved);
    const facts = (rva: number): number => Number(lookUp(after, `lea ${rva}`, "0x"));
    const named = notes.flatMap((note) =>
      [...note.matchAll(/__base_relocs_(?:start|end) at (0x[0-9a-f]+)/g)].map(([, rva]) => Number(rva)),
    );
    assert.ok(named.length >= 2, "no pair named");
    const offsets = named.map((rva) => {
      const section = parseImage(bytes).sections.find(
        (s) => rva >= s.header.virtualAddress && rva < s.header.virtualAddress + s.data.length,
      );
      return section === undefined ? -1 : section.header.pointerToRawData + rva - section.header.virtualAddress;
    });
    const isDisplacement = (at: number): boolean => offsets.some((offset) => at >= offset + 3 && at < offset + 7);
    for (const [start, end] of differences(bytes, moved)) {
      for (let at = start; at < end; at++) {
        if (bytes[at] === moved[at] || at < from || (at >= records[0] && at < records[1]) || isDisplacement(at))
          continue;
        assert.unreachable(`offset 0x${at.toString(16)} changed`);
      }
    }
    // Each of them now computes an end of the table.
    const start = Number(lookUp(after, "directory.relocation.virtualAddress", "0x"));
    const size = Number(lookUp(after, "directory.relocation.size", "0x"));
    for (const rva of named)
      assert.ok(
        [start, start + size].includes(facts(rva)),
        `0x${rva.toString(16)} refers to 0x${facts(rva).toString(16)}`,
      );
  });

  properties(`${id}: with keep, nothing outside headers and symbol records changes`, () => {
    const kept = keptOnce();
    const { from, records } = bodies(bytes);
    for (const [start, end] of differences(bytes, kept)) {
      assert.ok(
        end <= from || (start >= records[0] && end <= records[1]),
        `[0x${start.toString(16)},0x${end.toString(16)}) changed`,
      );
    }
  });

  properties(`${id}: twice is once`, () => {
    const [moved, kept] = [movedOnce(), keptOnce()];
    const pairs: readonly (readonly [string, Uint8Array, Uint8Array])[] = [
      ["move, move", moved, move(moved)],
      ["move, keep", moved, keep(moved)],
      ["keep, keep", kept, keep(kept)],
      ["keep, move", moved, move(kept)],
    ];
    for (const [what, once, twice] of pairs) assert.is(differences(once, twice).length, 0, what);
  });

  properties(`${id}: a symbol is still in the section and at the place it was`, () => {
    const [before, after] = [bytes, movedOnce()].map((b) => {
      const { sections, symbols } = readFacts(b);
      return symbols
        .map(
          (s) =>
            `${s["name"]} ${sections[Number(s["sectionNumber"]) - 1]?.["name"] ?? s["sectionNumber"]} ${s["value"]}`,
        )
        .join("\n");
    });
    assert.ok(before === after, "symbols differ");
  });
}

properties("refuses in the order in which one would look: the image first, then the table, then the code", () => {
  const messages = [
    "certificate 0x100\nset section .bss.name .bsz",
    "set section .bss.name .bsz\nset section .reloc.name .fixups",
    "set section .reloc.name .fixups\nin .init 0x82\nlea r15 0",
  ].map((edits) => {
    try {
      move(sample(edits));
      return "accepted";
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
      return /signed|no section \.bss|no section \.reloc/.exec(error.message)?.[0];
    }
  });
  assert.equal(messages, ["signed", "no section .bss", "no section .reloc"]);
});

properties("names ten pairs of references, and counts the rest", () => {
  const pairs = "lea rdi reloc:start\nlea rdx reloc:end\nfill 0x90 0x90\n".repeat(14);
  const said: string[] = [];
  relocateReloc(parseImage(sample(`in .init 0x200\n${pairs}`)), false, (line) => said.push(line));
  // With the one that the sample has.
  assert.is(said.length, 11);
  assert.is(said[10], "note: and so do 5 more such pairs");
});

properties.run();
