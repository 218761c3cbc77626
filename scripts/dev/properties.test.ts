// SPDX-License-Identifier: GPL-2.0-only
// What holds for every image whatever its sections, by arbitrary images (fast-check): everything that the fuzzer demands
// (fuzz/oracle.ts), among it that reading and writing, or a step run again, changes nothing; and that a step changes what
// it announces, no other byte. The seed is fixed: the same images on every run.

import * as fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { alignSections } from "../align-sections.ts";
import { ImageError } from "../cli/errors.ts";
import { hex } from "../cli/numbers.ts";
import { judge } from "./fuzz/oracle.ts";
import { makeSample } from "./sample/text.ts";
import { emitHeader } from "../emit-header.ts";
import { parseImage } from "../pe/parse.ts";
import { serializeImage } from "../pe/serialize.ts";
import { roundUp, sectionAt } from "../pe/image.ts";
import type { Image, Section } from "../pe/image.ts";
import { relocateReloc } from "../relocate-reloc.ts";
import { offsetOf, readStructure } from "../tables/fields.ts";
import { MB2_HEADER } from "../tables/multiboot.ts";
import * as pe from "../tables/pe.ts";
import { findMultiboot2 } from "../xen/multiboot.ts";

const RUNS = { seed: 20260818, numRuns: 250 } as const;

// ---- arbitrary images, as sample texts

interface Part {
  readonly name: string;
  readonly flags: string;
  /** Bytes of content, and of zeros behind it in memory. */
  readonly size: number;
  readonly tail: number;
  /** Where it begins: the least multiple of this that is free, or a few multiples later. */
  readonly align: number;
  readonly skip: number;
  readonly fill: number;
  readonly dir64: boolean;
  readonly symbol: boolean;
}

interface Description {
  readonly text: Part;
  readonly between: readonly Part[];
  readonly inits: readonly Part[];
  readonly data: readonly Part[];
  readonly bss: number;
  readonly behind: readonly Part[];
  readonly order: number;
  readonly symbols: boolean;
  readonly debug: boolean;
  readonly room: number;
  readonly fileAlignment: number;
  /** Free space behind .init, where .reloc may go. */
  readonly slack: number;
}

const FLAGS = [
  "data,read",
  "data,read,write",
  "code,execute,read",
  "code,data,read,write,execute",
  "data,read,align16",
  "data",
];
const NAMES = [
  ".rodata",
  ".buildid",
  ".data.read_mostly",
  ".extable",
  ".a",
  ".livepatch_section",
  "x y",
  ".bss2",
  ".note.gnu.build-id",
];
const BEHIND = [".debug_info", ".debug_abbrev", ".debug_str_offsets", ".config", ".sbat", ".kernel", ".zdebug"];

function part(names: readonly string[], flags: readonly string[] = FLAGS): fc.Arbitrary<Part> {
  return fc.record({
    name: fc.constantFrom(...names),
    flags: fc.constantFrom(...flags),
    size: fc.integer({ min: 1, max: 0x180 }),
    tail: fc.constantFrom(0, 0, 0, 1, 0x333, 0x1800),
    align: fc.constantFrom(4, 8, 0x40, 0x200, 0x1000, 0x1000),
    skip: fc.constantFrom(0, 0, 0, 1, 2),
    fill: fc.integer({ min: 0, max: 255 }),
    dir64: fc.boolean(),
    symbol: fc.boolean(),
  });
}

const descriptions: fc.Arbitrary<Description> = fc.record({
  text: part([".text"], ["code,execute,read"]),
  between: fc.array(part(NAMES), { maxLength: 4 }),
  inits: fc.array(part([".init", ".init.text", ".init.data"], ["code,data,read,write,execute"]), {
    minLength: 1,
    maxLength: 2,
  }),
  data: fc.array(part([".data", ".data.rel", "data"]), { maxLength: 3 }),
  bss: fc.integer({ min: 1, max: 0x3000 }),
  behind: fc.array(part(BEHIND, ["data,discard,read", "data,read"]), { maxLength: 4 }),
  order: fc.nat(),
  symbols: fc.boolean(),
  debug: fc.boolean(),
  room: fc.constantFrom(0, 0x10, 0x100),
  fileAlignment: fc.constantFrom(4, 0x20, 0x200),
  slack: fc.constantFrom(0, 0x1000, 0x1000, 0x2000),
});

/** The sample text of a description: like Xen's, with everything that can vary varied. */
function sampleText(d: Description): string {
  const names = new Set<string>();
  const sections: string[] = [];
  let end = 0x200000;
  const place = (
    { name, flags, size, tail, align, skip, fill, dir64, symbol }: Part,
    content: readonly string[] = [],
  ): void => {
    let unique = name;
    for (let i = 2; names.has(unique); i++) unique = `${name}_${i}`;
    names.add(unique);
    const rva = roundUp(end, align) + skip * align;
    // Content comes first; fix-ups, a symbol and bytes fill up the rest.
    const lines = [
      ...content,
      ...(symbol ? [`symbol at_${names.size}`] : []),
      ...(dir64 ? ["dir64 .text"] : []),
      `fill ${fill} ${size}`,
    ];
    const bytes = 0x200 + size;
    sections.push(
      `section ${unique.replace(" ", "_")} rva=${hex(rva)} vsize=${hex(bytes + tail)} flags=${flags}`,
      ...lines,
      `in ${unique.replace(" ", "_")} ${hex(bytes - 1)}`,
      "hex 77",
    );
    end = rva + bytes + tail;
  };
  const [init, ...moreInits] = d.inits;
  const headers = [
    "symbol start",
    "hex ebfe",
    "fill 0x90 to 8",
    "mb1 3",
    "fill 0x90 to 0x18",
    "mb2 relocatable=start,0xffffffff,0x200000,2 framebuffer?=0,0,0 efi_bs?",
    `fill 0x90 ${d.room}`,
  ];
  place({ ...d.text, align: 0x200000, skip: 0 }, headers);
  d.between.forEach((p) => place(p));
  if (d.debug)
    place({ ...d.text, name: ".dbg", flags: "data,read", align: 4 }, [
      "debug 2 codeview 0x18",
      "label codeview",
      "hex 52534453000102030405060708090a0b0c0d0e0f00000000",
    ]);
  if (init !== undefined)
    place(init, [
      "fill 0x55 0x10",
      "lea rdi reloc:start",
      "fill 0x90 0x50",
      "lea rax reloc:start",
      "lea rbx reloc:end",
    ]);
  moreInits.forEach((p) => place(p));
  end = roundUp(end, 0x1000) + d.slack;
  place({ ...d.text, name: ".data.first", flags: "data,read,write", align: 0x1000, skip: 0 });
  d.data.forEach((p) => place(p));
  const bss = roundUp(end, 0x1000);
  const reloc = roundUp(bss + d.bss, 8);
  sections.push(
    `section .bss rva=${hex(bss)} vsize=${hex(d.bss)} flags=bss,read,write`,
    `section .reloc rva=${hex(reloc)} flags=data,discard,read`,
    "relocs",
  );
  end = reloc + 0x800;
  d.behind.forEach((p) => place({ ...p, dir64: false }));
  const all = sections.filter((line) => line.startsWith("section ")).map((line) => line.split(" ")[1] ?? "");
  const from = d.order % all.length;
  return [
    `set optional.addressOfEntryPoint start`,
    `set optional.imageBase 0xffff82d040000000`,
    `set optional.sectionAlignment 0x200000`,
    `set optional.fileAlignment ${d.fileAlignment}`,
    `set optional.sizeOfImage ${hex(end)}`,
    `set optional.subsystem 10`,
    `set optional.dllCharacteristics ${d.order % 2 === 0 ? 0x160 : 0x40}`,
    `set coff.timeDateStamp ${d.order % 0x7fffffff}`,
    ...sections,
    ...(d.symbols ? [] : ["remove symbols"]),
    ...(d.order % 3 === 0 ? [`order ${[...all.slice(from), ...all.slice(0, from)].join(" ")}`] : []),
  ].join("\n");
}

function imageOf(description: Description): Uint8Array {
  return new Uint8Array(makeSample(sampleText(description), () => assert.unreachable("reads nothing") as never));
}

// ---- helpers

/** Undefined where the step refuses by an ImageError of one line. */
function attempt(step: (image: Image) => Image, bytes: Uint8Array): Uint8Array | undefined {
  try {
    return serializeImage(step(parseImage(bytes)));
  } catch (error) {
    if (!(error instanceof ImageError) || !/^Cannot [^\n]+: [^\n]+$/.test(error.message)) throw error;
    return undefined;
  }
}

/** A chain of steps, for the steps behind; undefined when one of them refuses. */
function chain(bytes: Uint8Array, ...steps: readonly ((image: Image) => Image)[]): Uint8Array | undefined {
  return steps.reduce<Uint8Array | undefined>(
    (input, step) => (input === undefined ? undefined : attempt(step, input)),
    bytes,
  );
}

type Ranges = (readonly [start: number, end: number])[];

/** Fails with the first byte that differs outside the ranges. */
function onlyIn(allowed: Ranges, before: Uint8Array, after: Uint8Array): void {
  const inside = new Uint8Array(Math.max(before.length, after.length));
  for (const [start, end] of allowed) inside.fill(1, start, end);
  const at = inside.findIndex((is, i) => is === 0 && before[i] !== after[i]);
  if (at >= 0)
    throw new Error(`the byte at offset ${hex(at)} changed from ${before[at]} to ${after[at]}, needed the same`);
}

function zeros(bytes: Uint8Array, what: string): void {
  assert.not(
    bytes.some((byte) => byte !== 0),
    what,
  );
}

const optionalAt = (image: Image): number => image.lfanew + pe.SIGNATURE_SIZE + pe.COFF_HEADER.size;
const field = (
  image: Image,
  name: Parameters<typeof offsetOf<typeof pe.OPTIONAL_HEADER.rows>>[1],
  size: number,
): readonly [number, number] => {
  const at = optionalAt(image) + offsetOf(pe.OPTIONAL_HEADER, name);
  return [at, at + size];
};
const directoryOf = (image: Image, index: number): pe.DataDirectory =>
  image.directories[index] ?? { virtualAddress: 0, size: 0 };
const directory = (image: Image, index: number): readonly [number, number] => {
  const at = optionalAt(image) + pe.OPTIONAL_HEADER.size + index * pe.DATA_DIRECTORY.size;
  return [at, at + pe.DATA_DIRECTORY.size];
};

function sectionTable(image: Image): readonly [number, number] {
  const at = optionalAt(image) + pe.OPTIONAL_HEADER.size + image.directories.length * pe.DATA_DIRECTORY.size;
  return [at, at + image.sections.length * pe.SECTION_HEADER.size];
}

/** The section numbers of the symbols, which follow the table's order. The records have no auxiliary ones here. */
function sectionNumbers(image: Image): Ranges {
  const at = image.coff.pointerToSymbolTable + offsetOf(pe.SYMBOL, "sectionNumber");
  return Array.from(
    { length: image.symbols.length / pe.SYMBOL.size },
    (_, i) => [at + i * pe.SYMBOL.size, at + i * pe.SYMBOL.size + 2] as const,
  );
}

function offsetInFile(image: Image, rva: number): number {
  const section = sectionAt(image, rva) ?? (assert.unreachable(`nothing is at ${hex(rva)}`) as never);
  return rva - section.header.virtualAddress + section.header.pointerToRawData;
}

/** Sections have different names here. */
function named(image: Image, name: string): Section {
  return image.sections.find((s) => s.name === name) ?? (assert.unreachable(`no section ${name}`) as never);
}

const keep = (image: Image): Image => relocateReloc(image, true);
const move = (image: Image): Image => relocateReloc(image, false);

// ---- the laws

/** A law for one image. @returns whether the image got so far; where a step refuses it, nothing can be said */
type Law = (bytes: Uint8Array) => boolean;

function relocateChanges(bytes: Uint8Array, step: typeof move): boolean {
  const after = attempt(step, bytes);
  if (after === undefined) return false;
  const image = parseImage(bytes);
  const { virtualAddress, size } = directoryOf(image, pe.DIRECTORY_BASE_RELOCATION);
  const init =
    image.sections.find((s) => s.data[0x67] === 0x48 && s.data[0x68] === 0x8d) ?? assert.unreachable("no code");
  const code = (init as Section).header.pointerToRawData;
  // sampleText puts the pair's instructions at 0x67 and 0x6e of the first .init section.
  const displacements = [0x67, 0x6e].map((at) => [code + at + 3, code + at + 7] as const);
  const moved = step === keep ? [] : [directory(image, pe.DIRECTORY_BASE_RELOCATION), ...displacements];
  onlyIn([sectionTable(image), field(image, "checkSum", 4), ...moved, ...sectionNumbers(image)], bytes, after);
  assert.is(after.length, bytes.length);
  const result = parseImage(after);
  for (const section of image.sections) {
    const now = named(result, section.name);
    const place =
      step === keep
        ? { virtualAddress, virtualSize: section.header.virtualSize }
        : { virtualAddress: now.header.virtualAddress, virtualSize: size };
    const changed = section.name === ".reloc" ? { ...place, characteristics: 0x40000040 } : {};
    assert.equal(now.header, { ...section.header, ...changed }, section.name);
  }
  return true;
}

function alignChanges(bytes: Uint8Array): boolean {
  const input = chain(bytes, keep);
  const after = input === undefined ? undefined : attempt(alignSections, input);
  if (input === undefined || after === undefined) return false;
  const [image, result] = [parseImage(input), parseImage(after)];
  const { pointerToSymbolTable } = result.coff;
  assert.equal(result.coff, { ...image.coff, pointerToSymbolTable });
  const { sizeOfCode, sizeOfInitializedData, sizeOfImage, sizeOfHeaders, fileAlignment, checkSum } = result.optional;
  const announced = { sizeOfCode, sizeOfInitializedData, sizeOfImage, sizeOfHeaders, fileAlignment, checkSum };
  assert.equal(result.optional, { ...image.optional, ...announced });
  assert.equal(result.directories, image.directories);
  assert.is(Buffer.compare(result.strings, image.strings), 0);
  const records = { ...image, coff: { ...image.coff, pointerToSymbolTable: 0 } };
  onlyIn(sectionNumbers(records), image.symbols, result.symbols);
  const pointers = debugPointers(image);
  for (const section of image.sections) {
    const now = named(result, section.name);
    const { virtualSize, pointerToRawData, sizeOfRawData, name } = now.header;
    assert.equal(now.header, { ...section.header, virtualSize, pointerToRawData, sizeOfRawData, name });
    const start = section.header.virtualAddress;
    const exempt = pointers.map((rva) => [rva - start, rva - start + 4] as const).filter(([from]) => from >= 0);
    onlyIn(exempt, section.data, now.data.subarray(0, section.data.length));
    zeros(now.data.subarray(section.data.length), `${section.name}'s padding`);
  }
  const [before, headers] = [input, after].map((file) => file.subarray(0, image.optional.sizeOfHeaders));
  onlyIn([[image.lfanew, sectionTable(image)[1]]], before ?? input, headers ?? after);
  zeros(after.subarray(image.optional.sizeOfHeaders, sizeOfHeaders), "the new header area");
  return true;
}

function emitChanges(bytes: Uint8Array): boolean {
  const input = chain(bytes, move, alignSections);
  const after = input === undefined ? undefined : attempt(emitHeader, input);
  if (input === undefined || after === undefined) return false;
  const image = parseImage(input);
  const text = named(image, ".text");
  const newHeader = parseImage(after).sections[0]?.data ?? new Uint8Array(0);
  const [oldAt, newAt] = [findMultiboot2(text.data) ?? 0, findMultiboot2(newHeader) ?? 0];
  const end = Math.max(
    oldAt + readStructure(MB2_HEADER, text.data, oldAt).headerLength,
    newAt + readStructure(MB2_HEADER, newHeader, newAt).headerLength,
  );
  const { pointerToRawData } = text.header;
  const { virtualAddress, size } = directoryOf(image, pe.DIRECTORY_BASE_RELOCATION);
  const table = offsetInFile(image, virtualAddress);
  const area = image.optional.sizeOfHeaders;
  assert.is(newAt, 8);
  assert.is(after.length, input.length);
  onlyIn(
    [
      [pointerToRawData + 8, pointerToRawData + end],
      [table, table + size],
      [area - 64, area - 32],
      field(image, "checkSum", 4),
      field(image, "dllCharacteristics", 2),
    ],
    input,
    after,
  );
  // Of the table, only whole entries that pointed into the old header, and they become padding entries.
  for (let at = table; at < table + size; at++)
    if (input[at] !== after[at]) assert.is(after[at], 0, `the table at ${hex(at)}`);
  return true;
}

/** RVAs of the debug entries' PointerToRawData. */
function debugPointers(image: Image): number[] {
  const { virtualAddress, size } = directoryOf(image, pe.DIRECTORY_DEBUG);
  const at = virtualAddress + offsetOf(pe.DEBUG_DIRECTORY_ENTRY, "pointerToRawData");
  return Array.from({ length: size / pe.DEBUG_DIRECTORY_ENTRY.size }, (_, i) => at + i * pe.DEBUG_DIRECTORY_ENTRY.size);
}

const LAWS: readonly (readonly [what: string, law: Law, least: number])[] = [
  ["the fuzzer finds nothing, up to verify", (bytes) => judge(bytes, "all").verified > 0, RUNS.numRuns / 16],
  [
    "relocate-reloc changes the table's place and what refers to it, no other byte",
    (bytes) => relocateChanges(bytes, move),
    RUNS.numRuns / 4,
  ],
  ["relocate-reloc --keep changes one flag, no other byte", (bytes) => relocateChanges(bytes, keep), RUNS.numRuns / 4],
  [
    "align-sections keeps every section's data and address, and every header field that it does not name",
    alignChanges,
    RUNS.numRuns / 4,
  ],
  [
    "emit-header changes the old headers, its own places and fix-ups of the old header, no other byte",
    emitChanges,
    RUNS.numRuns / 8,
  ],
];

/** The first of them takes as long as ten of the others: one image in so many. */
const JUDGED = 4;

const properties = suite("properties");

/** All laws of an image before the next image: making one takes as long as a law does. */
const through = LAWS.map(() => 0);

properties(`${RUNS.numRuns} arbitrary images keep every law`, () => {
  const run = fc.property(descriptions, (description) => {
    const bytes = imageOf(description);
    LAWS.forEach(([what, law], i) => {
      if (i === 0 && description.order % JUDGED !== 0) return;
      try {
        if (law(bytes)) through[i] = (through[i] ?? 0) + 1;
      } catch (error) {
        throw new Error(`not so: ${what}: ${(error as Error).message}`, { cause: error });
      }
    });
  });
  fc.assert(run, { ...RUNS, includeErrorInReport: true });
});

LAWS.forEach(([what, , least], i) => {
  // A law that hardly any image comes to would hold for nothing.
  properties(what, () =>
    assert.ok((through[i] ?? 0) >= least, `only ${through[i]} images came to it, needed ${least}`),
  );
});

properties.run();
