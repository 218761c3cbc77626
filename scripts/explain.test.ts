// SPDX-License-Identifier: GPL-2.0-only
// Explanations: goldens of them, that they are complete for every step and build, and that a flipped byte is found
// wherever it is.

import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { addSections } from "./add-sections.ts";
import { ImageError } from "./cli/errors.ts";
import { Random } from "./dev/fuzz/random.ts";
import { Fuzzer } from "./dev/fuzz/run.ts";
import { VARIANTS, builtInBuilds, chainOf, readBuild } from "./dev/golden/cases.ts";
import { beforeAndAfter, matchView } from "./dev/golden/views.ts";
import type { BeforeAndAfter } from "./dev/golden/views.ts";
import { TOP } from "./dev/places.ts";
import { run, sample } from "./dev/sample/run.ts";
import { makeSample } from "./dev/sample/text.ts";
import { command, explain } from "./explain.ts";
import { mbEfi } from "./mb-efi.ts";
import { imageCheckSum } from "./pe/checksum.ts";
import { parseImage } from "./pe/parse.ts";
import { serializeImage } from "./pe/serialize.ts";
import { sectionTableEnd } from "./pe/image.ts";
import { explanationText } from "./show/explain-text.ts";
import { WHY } from "./show/explain-why.ts";
import { stripDebug } from "./strip-debug.ts";
import { verify } from "./verify.ts";

/** The text, which must end as a complete one does. */
function complete(original: Uint8Array, result: Uint8Array): string {
  const { account, steps, unexplained } = explain(original, result);
  assert.is(unexplained.join("\n"), "");
  const text = explanationText(account, steps, "xen.efi", "xen.mb.efi");
  const [, size, changed, moved, stayed, added] =
    /^(\d+) bytes: (\d+) changed, (\d+) moved, (\d+) as they were, (\d+) zeros added$/m.exec(text)?.map(Number) ?? [];
  assert.is(size, result.length);
  assert.is((changed ?? 0) + (moved ?? 0) + (stayed ?? 0) + (added ?? 0), result.length, "the sums do not add up");
  assert.match(
    text,
    new RegExp(
      `\\n${changed} bytes changed in \\d+ places \\(in sections \\d+ in \\d+\\), ${moved} moved unchanged, none unexplained\\n$`,
    ),
  );
  return text;
}

// ---

const goldens = suite("explanations");

for (const build of builtInBuilds()) {
  const there = fs.existsSync(build.file) || process.env.CI === "true";
  if (!there) console.log(`skipped: explanations of ${build.name}: its xen.efi is not there (${build.hint})`);
  const test = there ? goldens : goldens.skip;
  for (const variant of VARIANTS) {
    // Step by step for the sample: what the others have is in the whole chain's explanation.
    const steps =
      build.name === "mini-xen" ? (["1-relocated", "2-aligned", "3-headers"] as const) : (["3-headers"] as const);
    test(`${build.name}, RELOC=${variant}: ${steps.length === 1 ? "the result" : "every step"} by the original, and by what is before it`, () => {
      const input = readBuild(build);
      if (!("bytes" in input)) throw new Error(`${build.name} is not the known build`);
      let before = input.bytes;
      for (const { step, bytes } of chainOf(input.bytes, variant).filter(({ step }) =>
        steps.some((wanted) => wanted === step),
      )) {
        assert.ok(bytes !== undefined, step);
        if (before !== input.bytes) complete(before, bytes);
        const text = complete(input.bytes, bytes);
        const { changed, places } = explain(input.bytes, bytes).account.sums().inSections;
        if (step === "3-headers")
          assert.match(
            verify(input.bytes, bytes).report.join("\n"),
            `changed in sections: ${changed} bytes in ${places} places,`,
          );
        if (step === "3-headers") matchView(`${build.name}-${variant}-explained.txt`, text);
        before = bytes;
      }
    });
  }
}

goldens.run();

// ---

const MINI = beforeAndAfter("mini-xen", "move") as BeforeAndAfter;
const TINY = { original: sample(), result: mbEfi(sample(), { keep: false, stripSignature: false }) };

const flips = suite("flipped bytes");

/** Puts CheckSum right, so that it alone does not give the flip away. */
function withCheckSum(bytes: Uint8Array): Uint8Array {
  const at = Buffer.from(bytes).readUInt32LE(0x3c) + 88;
  Buffer.from(bytes.buffer, bytes.byteOffset).writeUInt32LE(imageCheckSum(bytes, at), at);
  return bytes;
}

/** Whether something is said against a result, and what. */
function objection(original: Uint8Array, result: Uint8Array): string {
  try {
    return explain(original, result).unexplained.join("\n");
  } catch (error) {
    if (error instanceof ImageError) return error.message;
    throw error;
  }
}

function flipped(bytes: Uint8Array, at: number, mask: number): Uint8Array {
  const copy = new Uint8Array(bytes);
  copy[at] = (copy[at] ?? 0) ^ mask;
  return copy;
}

flips(
  "every byte of a small result's headers, and every eighth of the zeros behind them, with CheckSum made right",
  () => {
    const { sizeOfHeaders } = parseImage(TINY.result).optional;
    const checkSumAt = parseImage(TINY.result).lfanew + 88;
    const tableEnd = sectionTableEnd(parseImage(TINY.result));
    for (let at = 0; at < sizeOfHeaders; at++) {
      if (at >= checkSumAt && at < checkSumAt + 4) continue;
      if (at >= tableEnd && TINY.result[at] === 0 && at % 8 !== 7) continue;
      const copy = flipped(TINY.result, at, 1 << (at % 8));
      const found = objection(TINY.original, at < 0x40 ? copy : withCheckSum(copy));
      assert.is.not(found, "", `offset 0x${at.toString(16)}`);
    }
  },
);

flips("every byte of CheckSum", () => {
  const checkSumAt = parseImage(MINI.result).lfanew + 88;
  for (let at = checkSumAt; at < checkSumAt + 4; at++)
    assert.match(
      objection(MINI.original, flipped(MINI.result, at, 0x10)),
      /optional header: CheckSum, is .., needed .*\n.* 1 bytes in 1 places/,
    );
});

const CASES = VARIANTS.flatMap((variant) =>
  chainOf(TINY.original, variant).map(
    ({ step, bytes }) => [`${variant}, ${step}`, TINY.original, bytes ?? new Uint8Array()] as const,
  ),
);

for (const [name, original, result] of [...CASES, ["move, of mini-xen", MINI.original, MINI.result] as const]) {
  /** Of every so many places one: a larger file takes longer. */
  const every = original === TINY.original ? 2 : 16;
  flips(`RELOC=${name}: a byte of each part: headers, bodies, filler, tables, symbols, strings, the end`, () => {
    const { account } = explain(original, result);
    const random = new Random(7);
    const places = [
      ...account.pieces.flatMap(({ at, size }) => [
        at,
        at + size - 1,
        at + random.below(size),
        at + random.below(size),
      ]),
      ...Array.from({ length: 100 }, () => random.below(result.length)),
      ...account.changes.slice(0, 40).flatMap(({ at, size }) => [at, at + size - 1]),
    ];
    assert.ok(places.length >= 100, String(places.length));
    const checkSumAt = parseImage(result).lfanew + 88;
    for (const at of [...new Set(places)].filter((_, i) => i % every === 0)) {
      if (at >= checkSumAt && at < checkSumAt + 4) continue;
      const found = objection(original, withCheckSum(flipped(result, at, 1 << random.below(8))));
      assert.is.not(found, "", `offset 0x${at.toString(16)}`);
    }
  });
}

flips("a byte more, a byte less, and bytes of another build's result", () => {
  const longer = new Uint8Array(TINY.result.length + 8);
  longer.set(TINY.result);
  longer[longer.length - 1] = 1;
  assert.match(objection(TINY.original, longer), /behind the end of the file that is needed/);
  assert.match(objection(TINY.original, TINY.result.subarray(0, -8)), /needed 00|Cannot read the image/);
  assert.is.not(objection(MINI.original, TINY.result), "");
});

flips("words say where: a field, a section, the filler, a reference", () => {
  const where = (at: number): string =>
    /Cannot explain: \[0x[0-9a-f]+,0x[0-9a-f]+\), (.*?), is /.exec(
      objection(MINI.original, flipped(MINI.result, at, 4)),
    )?.[1] ?? "";
  const image = parseImage(MINI.result);
  const init = image.sections.find((s) => s.name === ".init");
  const { account } = explain(MINI.original, MINI.result);
  const reference = account.changes.find(({ why }) => why === "reference");
  assert.is(where(image.lfanew + 24 + 16), "optional header: AddressOfEntryPoint");
  assert.is(where((init?.header.pointerToRawData ?? 0) + 0x10), ".init + 0x10");
  assert.is(
    where((init?.header.pointerToRawData ?? 0) + (init?.header.sizeOfRawData ?? 0) - 1),
    "the zeros behind .init",
  );
  assert.match(where(reference?.at ?? 0), /^code at RVA 0x[0-9a-f]+ in \w+: lea __base_relocs_(start|end)$/);
  assert.match(where(image.coff.pointerToSymbolTable + 3), /^COFF symbols \+ 0x3$/);
});

flips("every image that golden/cases describes and that the chain takes is explained", () => {
  let explained = 0;
  for (const name of fs.readdirSync(path.join(TOP, "golden/cases"))) {
    const text = fs.readFileSync(path.join(TOP, "golden/cases", name), "utf8");
    const image = /^-- image --\n([^]*?)^-- /m.exec(text)?.[1];
    if (image === undefined) continue;
    const original = makeSample(image, (from) => fs.readFileSync(path.join(TOP, "samples", from), "utf8"));
    for (const keep of [false, true]) {
      try {
        const result = mbEfi(original, { keep, stripSignature: true });
        complete(original, result);
        explained++;
      } catch (error) {
        if (!(error instanceof ImageError)) throw new Error(`${name}: ${(error as Error).message}`);
      }
    }
  }
  assert.ok(explained > 400, String(explained));
});

flips("any bytes are explained, or refused in a line", () => {
  const fuzzer = new Fuzzer(20260908);
  for (let i = 0; i < 300; i++) {
    const { bytes } = fuzzer.image(i);
    for (const found of [
      objection(bytes, TINY.result),
      objection(TINY.original, bytes),
      objection(bytes, fuzzer.image(i + 1).bytes),
    ])
      assert.not.match(found, /undefined|NaN/);
    try {
      const result = mbEfi(bytes, { keep: i % 2 === 0, stripSignature: true });
      complete(bytes, result);
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
    }
  }
});

flips.run();

// ---

const words = suite("words");

words("nothing was done: nothing is explained, and nothing is left", () => {
  const text = complete(MINI.original, MINI.original);
  assert.match(text, /: no step\n/);
  assert.match(text, /\n0 bytes changed in 0 places \(in sections 0 in 0\), 0 moved unchanged, none unexplained\n$/);
});

words("every change that an explanation of mini-xen has is asked for by somebody", () => {
  const used = new Set(explain(MINI.original, MINI.result).account.changes.map(({ why }) => why));
  for (const why of [
    "discardable",
    "moved",
    "reference",
    "linear",
    "grown",
    "headerArea",
    "multiboot1",
    "multiboot2",
    "voidFixup",
    "debugOffset",
  ] as const) {
    assert.ok(used.has(why), why);
    assert.ok(WHY[why].text.length > 40);
  }
});

words("exchanged files, and what add-sections and strip-debug make, are refused in a line", () => {
  assert.is(
    objection(TINY.result, TINY.original),
    "Cannot explain: the original has Multiboot headers with addresses and the result has none: they seem to be exchanged",
  );
  const unified = serializeImage(addSections(parseImage(MINI.result), [{ name: ".config", data: new Uint8Array(4) }]));
  assert.match(
    objection(MINI.original, unified),
    /^Cannot explain: the sections are \.config new, needed the original's \d+: explain the image that add-sections or strip-debug was given$/,
  );
  const stripped = serializeImage(stripDebug(parseImage(MINI.result)));
  assert.match(
    objection(MINI.original, stripped),
    /^Cannot explain: the sections are [^\n]*\.debug_abbrev [^\n]*missing/,
  );
});

words("sections that are in disorder, a signature that was dropped", () => {
  const signed = sample("certificate 0x28");
  const unsigned = mbEfi(signed, { keep: false, stripSignature: true });
  const text = complete(signed, unsigned);
  assert.match(
    text,
    /data directory 4: VirtualAddress 0x[0-9a-f]+ -> 0x0, Size 0x[0-9a-f]+ -> 0x0 {2}--strip-signature/,
  );
  const disorder = sample("order .debug_info .reloc .bss .data .data.read_mostly .init .buildid .rodata .text");
  complete(disorder, mbEfi(disorder, { keep: true, stripSignature: false }));
});

words.run();

// ---

const usage = suite("explain.ts");

usage("files, standard input, exit status", async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "explain-"));
  try {
    const [original, result, bad] = ["xen.efi", "xen.mb.efi", "bad.efi"].map((name) => path.join(folder, name)) as [
      string,
      string,
      string,
    ];
    fs.writeFileSync(original, TINY.original);
    fs.writeFileSync(result, TINY.result);
    fs.writeFileSync(bad, flipped(TINY.result, TINY.result.length >> 1, 1));
    const good = await run(command, [original, "-"], TINY.result);
    assert.is(good.status, 0, good.stderr);
    assert.match(good.stdout.toString(), /^\S+xen\.efi to <stdin>: relocate-reloc, align-sections, emit-header\n/);
    const wrong = await run(command, [original, bad]);
    assert.is(wrong.status, 1);
    assert.is(wrong.stdout.length, 0);
    assert.ok(
      wrong.stderr.split("\n").every((line) => line === "" || line.startsWith(`${bad}: Cannot explain: `)),
      wrong.stderr,
    );
    assert.is((await run(command, ["-", "-"])).status, 2);
    assert.is((await run(command, [original])).status, 2);
    for (const args of [
      [folder, result],
      [original, folder],
    ])
      assert.match((await run(command, args)).stderr, /^[^\n]*: Cannot read[^\n]*\n$/);
    const none = await run(command, ["-", result], Buffer.from("no image"));
    assert.match(none.stderr, /^<stdin>: Cannot read the image: [^\n]*\n$/);
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
});

usage.run();
