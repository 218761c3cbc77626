// SPDX-License-Identifier: GPL-2.0-only
// A file in pieces is the same file: what is read of it, both ways of adding it up, and what verify says.

import { Buffer } from "node:buffer";
import * as fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { checkSumOf } from "../dev/sample/build.ts";
import { builds, sample } from "../dev/sample/run.ts";
import { checkSum } from "../judge/file.ts";
import { mbEfiFile } from "../mb-efi.ts";
import { imageCheckSum } from "./checksum.ts";
import { PiecedFile, piecesOf, wholeOf } from "./file-bytes.ts";
import { imageFile, parseImage, withHeader } from "./image.ts";
import { verify } from "../verify.ts";

const RUNS = { seed: 20261124, numRuns: 300 } as const;
const OPTIONS = { keep: false, stripSignature: false } as const;

/** A file's bytes and where it is cut; each piece begins at an odd place of its own memory as often as at an even one. */
const FILE = fc.record({
  bytes: fc.uint8Array({ minLength: 80, maxLength: 300 }),
  cuts: fc.array(fc.nat(300), { maxLength: 6 }),
  shift: fc.nat(3),
});

function cut(bytes: Uint8Array, cuts: readonly number[], shift: number): PiecedFile {
  const bounds = [0, ...cuts.map((at) => at % bytes.length).sort((a, b) => a - b), bytes.length];
  return new PiecedFile(
    bounds.slice(1).map((end, i) => {
      const piece = bytes.subarray(bounds[i], end);
      const memory = new Uint8Array(shift + piece.length);
      memory.set(piece, shift);
      return memory.subarray(shift);
    }),
  );
}

const pieced = suite("PiecedFile");

pieced("reads as the whole does", () => {
  fc.assert(
    fc.property(FILE, fc.nat(320), fc.nat(320), ({ bytes, cuts, shift }, start, end) => {
      const file = cut(bytes, cuts, shift);
      assert.is(file.length, bytes.length);
      assert.equal(file.subarray(start, end), bytes.subarray(start, end));
      assert.equal(file.subarray(start), bytes.subarray(start));
      assert.equal(wholeOf(file), bytes);
    }),
    RUNS,
  );
});

pieced("gives a view of what is in one piece", () => {
  const [one, two] = [new Uint8Array(8), new Uint8Array(8)];
  const file = new PiecedFile([one, two]);
  assert.is(file.subarray(8, 16).buffer, two.buffer);
  assert.is.not(file.subarray(7, 9).buffer, one.buffer);
  assert.equal(piecesOf(file), [one, two]);
  assert.equal(piecesOf(one), [one]);
});

pieced("adds up as the whole does, by the writer's sum and by verify's", () => {
  fc.assert(
    fc.property(FILE, fc.constantFrom(64, 65, 66, 67, 70), ({ bytes, cuts, shift }, at) => {
      const file = cut(bytes, cuts, shift);
      const needed = checkSumOf(bytes, at - 64);
      assert.is(imageCheckSum(file, at), needed);
      assert.is(checkSum(file, at), needed);
    }),
    RUNS,
  );
});

pieced.run();

// ---

const results = suite("mbEfiFile()");
/** Two large debug sections of odd lengths, and one that is small. */
const LARGE = sample(`set optional.sizeOfImage 0x250000
in .debug_info
fill 0x41 to 0x14321
section .debug_line rva=0x230000 flags=data,discard,read
fill 0x55 to 0x10003
section .debug_str rva=0x241000 flags=data,discard,read
fill 0x66 to 0x1234`);

for (const { id, bytes: input } of [{ id: "a sample", bytes: LARGE }, ...builds(["4.20.4+63"])]) {
  results(`has debug information where it was read, and nothing else: ${id}`, () => {
    const shared = piecesOf(mbEfiFile(input, OPTIONS)).filter(({ buffer }) => buffer === input.buffer);
    const large = parseImage(input).sections.filter(
      ({ name, data }) => name.startsWith(".debug_") && data.length >= 65536,
    );
    assert.ok(large.length > 1, String(large.length));
    assert.equal(
      shared.map(({ length }) => length),
      large.map(({ data }) => data.length),
    );
  });

  results(`is a file that verify reads in pieces, and finds a change in any of them: ${id}`, () => {
    const pieces = piecesOf(mbEfiFile(input, OPTIONS));
    assert.equal(verify(input, new PiecedFile(pieces)).violations, []);
    pieces.forEach((piece, i) => {
      if (piece.length === 0) return;
      const changed = piece.slice();
      changed[piece.length >> 1] = (changed[piece.length >> 1] ?? 0) ^ 0x10;
      const { violations } = verify(input, new PiecedFile(pieces.map((p, k) => (k === i ? changed : p))));
      assert.ok(violations.length !== 0, `piece ${i} of ${piece.length} bytes`);
    });
  });
}

results("is put together in one piece where a large section shares bytes with another", () => {
  const image = parseImage(LARGE);
  const large = image.sections.find(({ name }) => name === ".debug_info");
  assert.ok(large !== undefined);
  const sections = image.sections.map((section) => {
    if (section.name !== ".debug_line") return section;
    const pointerToRawData = large.header.pointerToRawData + 0x1000;
    const data = LARGE.subarray(pointerToRawData, pointerToRawData + section.data.length);
    return withHeader(section, { pointerToRawData }, data);
  });
  const file = imageFile({ ...image, sections });
  assert.is(piecesOf(file).length, 1);
  const again = parseImage(file);
  again.sections.forEach(({ data }, i) =>
    assert.ok(Buffer.compare(data, sections[i]?.data ?? data) === 0, `section ${i}`),
  );
});

results.run();
