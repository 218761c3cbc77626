// SPDX-License-Identifier: GPL-2.0-only
// The judges' reader, written apart from the steps', reads the same from the same bytes, and refuses what is cut off.

import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ImageError } from "../cli/errors.ts";
import { MINI_XEN } from "../dev/places.ts";
import { KINDS, builds, sample } from "../dev/sample/run.ts";
import { mbEfi } from "../mb-efi.ts";
import { parseImage } from "../pe/parse.ts";
import { readPe } from "./read.ts";

const reads = suite("readPe()");

const MINI = { id: "mini-xen", bytes: new Uint8Array(fs.readFileSync(MINI_XEN)) };
for (const { id, bytes } of [{ id: "a sample", bytes: sample() }, MINI, ...builds(KINDS)]) {
  reads(`reads what the steps' reader does: ${id}`, () => {
    for (const file of [bytes, mbEfi(bytes, { keep: false, stripSignature: false })]) {
      const [found, needed] = [readPe(file), parseImage(file)];
      for (const part of ["lfanew", "coff", "optional", "directories"] as const)
        assert.equal(found[part], needed[part]);
      for (const part of ["symbols", "strings"] as const) same(found[part], needed[part]);
      assert.is(found.sections.length, needed.sections.length);
      found.sections.forEach((section, i) => {
        assert.is(section.name, needed.sections[i]?.name);
        assert.equal(section.header, needed.sections[i]?.header);
        same(section.data, needed.sections[i]?.data ?? new Uint8Array(0));
      });
    }
  });
}

/** Not assert.equal, which would print megabytes. */
function same(found: Uint8Array, needed: Uint8Array): void {
  assert.is(Buffer.compare(found, needed), 0);
}

reads("refuses a file that is cut off anywhere, in a line", () => {
  const file = sample();
  const { coff, symbols } = readPe(file);
  const stringsAt = coff.pointerToSymbolTable + symbols.length;
  for (let size = 0; size < file.length; size++) {
    // There may be no string table behind the symbols.
    if (size >= stringsAt && size < stringsAt + 4) continue;
    assert.throws(
      () => readPe(file.subarray(0, size)),
      (error: unknown) => error instanceof ImageError && /^Cannot read the image: [^\n]+$/.test(error.message),
    );
  }
});

reads("takes a Buffer as it takes plain bytes", () => {
  const file = sample();
  const larger = Buffer.alloc(file.length + 3);
  larger.set(file, 3);
  assert.equal(readPe(larger.subarray(3)), readPe(file));
});

reads.run();
