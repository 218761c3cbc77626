// SPDX-License-Identifier: GPL-2.0-only
// verify accepts what the three steps write, and nothing else: good results are spoilt in every way we could think of,
// with the CheckSum made right again each time (or it would be the CheckSum that tells), and each must be named.

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { alignSections } from "./align-sections.ts";
import { runCommand } from "./cli/cli.ts";
import type { Io } from "./cli/cli.ts";
import { knownBuilds } from "./dev/known-builds.ts";
import { MINI_XEN as MINI, SAMPLES } from "./dev/places.ts";
import { sample } from "./dev/sample/run.ts";
import { Spoilt, directoryAt, field, magicAt, optionalAt, sectionAt, sectionNamed } from "./dev/spoilt.ts";
import { emitHeader } from "./emit-header.ts";
import { imageCheckSum } from "./pe/checksum.ts";
import { parseImage } from "./pe/parse.ts";
import { serializeImage } from "./pe/serialize.ts";
import { onBytes } from "./dev/on-bytes.ts";
import { relocateReloc } from "./relocate-reloc.ts";
import { offsetOf, viewOf } from "./tables/fields.ts";
import { MB2_ADDRESS_TAG, MB2_ENTRY_ADDRESS_TAG, MB2_HEADER, MB2_RELOCATABLE_TAG } from "./tables/multiboot.ts";
import { COFF_HEADER, DIRECTORY_DEBUG, OPTIONAL_HEADER, SECTION_HEADER } from "./tables/pe.ts";
import { command, verify } from "./verify.ts";

function read(file: string): Uint8Array {
  return new Uint8Array(fs.readFileSync(file));
}

function result(original: Uint8Array, keep: boolean): Uint8Array {
  return onBytes((image) => emitHeader(alignSections(relocateReloc(image, keep))))(original);
}

function accepts(original: Uint8Array, keep: boolean): readonly string[] {
  const before = Buffer.from(original);
  const { violations, report } = verify(original, result(original, keep));
  assert.is(violations.join("\n"), "");
  assert.is(Buffer.compare(before, original), 0, "the original was changed");
  return report;
}

function rejects(original: Uint8Array, bytes: Uint8Array, pattern: RegExp): void {
  const { violations, report } = verify(original, bytes);
  assert.ok(violations.length !== 0, "no violation found");
  assert.ok(
    violations.some((line) => pattern.test(line)),
    `none of these is ${pattern}:\n${violations.join("\n")}`,
  );
  for (const line of violations) assert.match(line, /^Cannot verify: [^\n\0]+$/);
  assert.is(report.length, 0);
}

const mini = read(MINI);
/** All features in kilobytes: what is spoilt is spoilt in this one. */
const tiny = sample();
const moved = result(tiny, false);
const kept = result(tiny, true);

// ---- what is right

const good = suite("verify() accepts");

for (const keep of [false, true]) {
  const variant = keep ? "keep" : "move";
  good(`mini-xen, ${variant}`, () => {
    const report = accepts(mini, keep).join("\n");
    assert.match(report, /none unexplained/);
    assert.match(report, keep ? /table stays at/ : /table moved from/);
    assert.match(report, /base relocations: \d+ as in the original, [1-9]\d* void/);
    assert.match(report, /Multiboot1: file offset 0x0 to/);
  });

  good(`mini-xen without padding behind its header, ${variant}: optional tags are dropped`, () => {
    const original = mini.slice();
    const text = sectionNamed(parseImage(mini), ".text").header.pointerToRawData;
    for (let at = text + headerEnd(mini); original[at] === 0x90; at++) original[at] = 0;
    assert.match(accepts(original, keep).join("\n"), /no room for the optional tags FRAMEBUFFER/);
  });

  good(`mini-xen with debug sections beyond SizeOfImage, ${variant}`, () => {
    const original = mini.slice();
    const image = parseImage(original);
    const at = sectionAt(image, ".debug_aranges");
    viewOf(original).setUint32(at + offsetOf(SECTION_HEADER, "virtualAddress"), 0xc0000000, true);
    accepts(original, keep);
  });

  good(`mini-xen whose COFF symbols were stripped, ${variant}`, () => {
    const image = parseImage(mini);
    const original = mini.slice(0, image.coff.pointerToSymbolTable);
    for (const field of ["pointerToSymbolTable", "numberOfSymbols"] as const)
      viewOf(original).setUint32(image.lfanew + 4 + offsetOf(COFF_HEADER, field), 0, true);
    accepts(original, keep);
  });

  for (const { id, sha256 } of knownBuilds) {
    const file = path.join(SAMPLES, "xen", id, "xen.efi");
    const name = `Xen ${id}, ${variant}`;
    if (!fs.existsSync(file) && process.env.CI !== "true") {
      process.stderr.write(`skipped: ${name}: no ${path.relative(process.cwd(), file)} (make fetch-xen)\n`);
      good.skip(name);
      continue;
    }
    good(name, () => {
      const original = read(file);
      assert.is(createHash("sha256").update(original).digest("hex"), sha256);
      accepts(original, keep);
    });
  }
}

good("an original whose base relocations come twice, and says so", () => {
  const edits = `set directory.relocation.virtualAddress 0x20c000\nset directory.relocation.size 0x20
    in .reloc\nclear\nblock 0x201000 10:0x000 10:0x008 3:0x010 0:0x000\nblock 0x201000 10:0x008 3:0x010 10:0x248 0:0x000`;
  const report = accepts(sample(edits.replaceAll(/^ +/gm, "")), true).join("\n");
  assert.match(report, /6 as in the original, 0 void; 2 come twice, in the original as well: loaders relocate twice/);
  assert.not.match(accepts(tiny, true).join("\n"), /twice/);
});

for (const [what, edits] of [
  ["the last section below .bss is .init", "remove section .data.read_mostly\nremove section .data"],
  ["uninitialised sections lie below .bss", "section .hole rva=0x208800 vsize=0x100 flags=bss,read,write"],
  [
    "stray debug sections share a name, and one moves to where another was",
    "set optional.sizeOfImage 0x20f000\nset section .debug_info.virtualAddress 0x20eff0\nsection .debug_info rva=0x20f000 flags=data,read\nhex 01\nsection .debug_info rva=0xc0000000 flags=data,read\nhex 02",
  ],
  [
    "the last of two RELOCATABLE tags asks for 2 MiB",
    "in .text 0x18\nmb2 relocatable=0x200000,0xffffffff,0x1000,1 relocatable=0x200000,0xffffffff,0x200000,2 efi_bs? entry_address_efi64=__efi64_mb2_start\nfill 0x90 to 0x100",
  ],
] as const) {
  for (const keep of [false, true])
    good(`an image where ${what}, ${keep ? "keep" : "move"}`, () => void accepts(sample(edits), keep));
}

good("bytes in a Buffer, at an odd place in memory", () => {
  const shifted = (bytes: Uint8Array): Buffer => {
    const larger = Buffer.alloc(bytes.length + 3);
    larger.set(bytes, 3);
    return larger.subarray(3);
  };
  assert.is(verify(shifted(tiny), shifted(moved)).violations.join("\n"), "");
});

good("a result of a signed original whose signature was dropped", () => {
  const image = parseImage(tiny);
  const at = Math.ceil(tiny.length / 8) * 8;
  const signed = new Uint8Array(at + 16);
  signed.set(tiny);
  signed.fill(0x55, at);
  const directory = directoryAt(image, 4);
  viewOf(signed).setUint32(directory, at, true);
  viewOf(signed).setUint32(directory + 4, 16, true);
  assert.is(verify(signed, moved).violations.join("\n"), "");
});

good.run();

// ---- what is spoilt

/** Offset in .text behind the untouched Multiboot2 header. */
function headerEnd(original: Uint8Array): number {
  const { data } = sectionNamed(parseImage(original), ".text");
  const at = magicAt(data, 0xe85250d6);
  return at + viewOf(data).getUint32(field(at, MB2_HEADER, "headerLength"), true);
}

/** A good result, and what it was made from. */
class Patient extends Spoilt {
  readonly original: Uint8Array;

  constructor(original: Uint8Array, goodResult: Uint8Array) {
    super(goodResult);
    this.original = original;
  }

  /** File offsets of the displacements that relocate-reloc patched. */
  patched(): number[] {
    const before = sectionNamed(parseImage(this.original), ".init").data;
    const start = this.data(".init");
    const found: number[] = [];
    for (let i = 0; i < before.length; i++) {
      // A displacement is the last four of seven bytes; its lowest byte need not have changed.
      if (before[i] === this.bytes[start + i]) continue;
      let at = i;
      while (this.bytes[start + at - 2] !== 0x8d) at--;
      found.push(start + at);
      i = at + 3;
    }
    return found;
  }
  /** File offset of an entry of the base relocation table that is not padding; the first block has the voided ones. */
  fixup(): number {
    const table = this.data(".reloc");
    const second = table + this.view.getUint32(table + 4, true);
    return second + 8;
  }
  fixCheckSum(): void {
    const at = this.optional("checkSum");
    if (at + 4 <= this.bytes.length) this.set32(at, imageCheckSum(this.bytes, at));
  }
}

/** What was done to it, and what verify has to say. */
type Operation = readonly [name: string, spoil: (patient: Patient) => void, needed: RegExp];

const bad = suite("verify() rejects");

function operations(on: string, original: Uint8Array, goodResult: Uint8Array, list: readonly Operation[]): void {
  for (const [name, spoil, needed] of list) {
    bad(`${on}: ${name}`, () => {
      const patient = new Patient(original, goodResult);
      spoil(patient);
      patient.fixCheckSum();
      if (patient.bytes.length === goodResult.length)
        assert.ok(Buffer.compare(patient.bytes, goodResult) !== 0, "nothing was spoilt");
      rejects(original, patient.bytes, needed);
    });
  }
}

const WITH_DATA = [".text", ".rodata", ".buildid", ".init", ".data.read_mostly", ".data", ".debug_info"];

const SECTION_DATA: readonly Operation[] = WITH_DATA.map((name) => [
  `a byte in section ${name}`,
  (p) => p.flip(p.data(name) + Math.floor(sectionNamed(parseImage(p.original), name).data.length * 0.9), 0x10),
  new RegExp(`\\(section ${name.replaceAll(".", "\\.")} \\+ 0x`),
]);

const HEADERS: readonly Operation[] = [
  ["the MS-DOS stub", (p) => p.flip(0x50, 1), /MS-DOS stub at offset 0x50/],
  ["e_lfanew", (p) => p.flip(0x3c, 1), /result: Cannot read the image/],
  ["Machine", (p) => p.flip(p.coff("machine"), 1), /result: Cannot read the image/],
  ["TimeDateStamp", (p) => p.flip(p.coff("timeDateStamp"), 1), /field TimeDateStamp/],
  ["Characteristics", (p) => p.flip(p.coff("characteristics"), 1), /field Characteristics/],
  ["one section less", (p) => p.flip(p.coff("numberOfSections"), 1), /section .* missing|section .* new/],
  ["AddressOfEntryPoint", (p) => p.flip(p.optional("addressOfEntryPoint"), 1), /field AddressOfEntryPoint/],
  ["ImageBase", (p) => p.flip(p.optional("imageBase") + 3, 1), /field ImageBase/],
  ["SectionAlignment", (p) => p.set32(p.optional("sectionAlignment"), 0x2000), /field SectionAlignment/],
  ["FileAlignment too large", (p) => p.set32(p.optional("fileAlignment"), 512), /FileAlignment is 0x200/],
  ["FileAlignment too small", (p) => p.set32(p.optional("fileAlignment"), 2), /FileAlignment is 0x2/],
  ["MajorImageVersion", (p) => p.flip(p.optional("majorImageVersion"), 1), /field MajorImageVersion/],
  ["Subsystem", (p) => p.flip(p.optional("subsystem"), 1), /field Subsystem/],
  ["SizeOfStackReserve", (p) => p.flip(p.optional("sizeOfStackReserve"), 1), /field SizeOfStackReserve/],
  ["LoaderFlags", (p) => p.flip(p.optional("loaderFlags"), 1), /field LoaderFlags/],
  ["BaseOfCode", (p) => p.flip(p.optional("baseOfCode") + 1, 1), /field BaseOfCode/],
  [
    "SizeOfUninitializedData",
    (p) => p.flip(p.optional("sizeOfUninitializedData") + 1, 1),
    /field SizeOfUninitializedData/,
  ],
  ["SizeOfCode", (p) => p.add32(p.optional("sizeOfCode"), 16), /SizeOfCode is/],
  ["SizeOfInitializedData", (p) => p.add32(p.optional("sizeOfInitializedData"), 16), /SizeOfInitializedData is/],
  ["SizeOfImage too large", (p) => p.add32(p.optional("sizeOfImage"), 0x200000), /SizeOfImage is/],
  [
    "SizeOfImage too small",
    (p) => p.set32(p.optional("sizeOfImage"), 0x209000),
    /below SizeOfImage 0x209000: firmware refuses/,
  ],
  ["SizeOfHeaders too small", (p) => p.add32(p.optional("sizeOfHeaders"), -0x200), /SizeOfHeaders is/],
  ["SizeOfHeaders too large", (p) => p.add32(p.optional("sizeOfHeaders"), 0x1000), /SizeOfHeaders is/],
  ["NX_COMPAT restored", (p) => p.flip(p.optional("dllCharacteristics") + 1, 1), /DllCharacteristics is/],
  ["another of DllCharacteristics", (p) => p.flip(p.optional("dllCharacteristics"), 0x40), /DllCharacteristics is/],
  ["data directory 1 invented", (p) => p.set32(directoryAt(p.image, 1), 0x400000), /address in data directory 1/],
  ["data directory 4 invented", (p) => p.set32(directoryAt(p.image, 4) + 4, 8), /size in data directory 4/],
  ["data directory 5 shorter", (p) => p.add32(directoryAt(p.image, 5) + 4, -8), /size in data directory 5/],
  ["data directory 5 elsewhere", (p) => p.add32(directoryAt(p.image, 5), 0x1000), /address in data directory 5/],
  ["data directory 6 elsewhere", (p) => p.add32(directoryAt(p.image, 6), 4), /address in data directory 6/],
  ["the wrong CheckSum", (p) => (p.fixCheckSum = () => p.add32(p.optional("checkSum"), 1)), /CheckSum is/],
  ["CheckSum 0", (p) => (p.fixCheckSum = () => p.set32(p.optional("checkSum"), 0)), /CheckSum is 0x0/],
];

const SECTIONS: readonly Operation[] = [
  [
    "a section's name",
    (p) => p.flip(p.section(".rodata", "name") + 1, 1),
    /section .rodata of the original .* missing/,
  ],
  ["a character behind a short name", (p) => p.flip(p.section(".text", "name") + 7, 1), /section \.text's Name/],
  [
    "a section's VirtualAddress",
    (p) => p.add32(p.section(".data", "virtualAddress"), 0x1000),
    /section \.data's VirtualAddress/,
  ],
  ["VirtualSize smaller", (p) => p.add32(p.section(".rodata", "virtualSize"), -1), /section \.rodata's VirtualSize/],
  [
    "VirtualSize larger",
    (p) => p.add32(p.section(".data.read_mostly", "virtualSize"), 1),
    /section \.data\.read_mostly's VirtualSize/,
  ],
  ["VirtualSize not grown", (p) => p.set32(p.section(".init", "virtualSize"), 0x1000), /section \.init's VirtualSize/],
  ["VirtualSize of .bss", (p) => p.add32(p.section(".bss", "virtualSize"), -8), /section \.bss's VirtualSize/],
  [
    "VirtualSize of debug data",
    (p) => p.add32(p.section(".debug_info", "virtualSize"), 1),
    /section \.debug_info's VirtualSize/,
  ],
  ["flags", (p) => p.flip(p.section(".data", "characteristics") + 3, 0x20), /section \.data's Characteristics/],
  [
    "MEM_DISCARDABLE restored",
    (p) => p.flip(p.section(".reloc", "characteristics") + 3, 0x02),
    /section \.reloc at RVA .* not loaded by shim/,
  ],
  [
    ".reloc not readable",
    (p) => p.flip(p.section(".reloc", "characteristics") + 3, 0x40),
    /shim finds no readable section \.reloc/,
  ],
  [
    ".text discardable",
    (p) => p.flip(p.section(".text", "characteristics") + 3, 0x02),
    /section \.text at RVA 0x200000 is not loaded by shim/,
  ],
  [
    "PointerToRelocations",
    (p) => p.set32(p.section(".text", "pointerToRelocations"), 0x1000),
    /section \.text's PointerToRelocations/,
  ],
  [
    "raw data one byte on",
    (p) => p.add32(p.section(".rodata", "pointerToRawData"), 1),
    /section \.rodata's PointerToRawData/,
  ],
  [
    "raw data a page on",
    (p) => p.add32(p.section(".data", "pointerToRawData"), -0x1000),
    /section \.data's PointerToRawData/,
  ],
  [
    "SizeOfRawData smaller",
    (p) => p.add32(p.section(".text", "sizeOfRawData"), -0x1000),
    /section \.text's SizeOfRawData/,
  ],
  [
    "SizeOfRawData smaller: a signature would not cover it",
    (p) => p.add32(p.section(".data", "sizeOfRawData"), -0x10),
    /what a signature covers/,
  ],
  [
    "SizeOfRawData larger",
    (p) => p.add32(p.section(".buildid", "sizeOfRawData"), 0x200),
    /section \.buildid's SizeOfRawData/,
  ],
  [
    "raw data for .bss",
    (p) => p.set32(p.section(".bss", "sizeOfRawData"), 0x200),
    /section \.bss's SizeOfRawData is 0x200, needed 0x0/,
  ],
  ["the section table out of order", (p) => swapSections(p, ".rodata", ".buildid"), /the table is in RVA order/],
];

function swapSections(p: Patient, a: string, b: string): void {
  const [x, y] = [sectionAt(p.image, a), sectionAt(p.image, b)];
  const one = p.bytes.slice(x, x + SECTION_HEADER.size);
  p.bytes.copyWithin(x, y, y + SECTION_HEADER.size);
  p.bytes.set(one, y);
}

const PADDING: readonly Operation[] = [
  [
    "data in the gap behind .text",
    (p) => p.flip(p.data(".text") + 0xf00),
    /padding behind section \.text at offset 0x1f00/,
  ],
  ["data between .init and the table", (p) => p.flip(p.data(".reloc") - 0x1000), /section \.init \+/],
  [
    "data behind .buildid",
    (p) => p.flip(p.data(".init") - 1),
    /Multiboot2 header loads at \[0x2012a0,0x202000\) is not zero/,
  ],
  ["data behind the table, in its raw data", (p) => p.flip(p.data(".data.read_mostly") - 1), /section \.reloc/],
  [
    "data behind .data, ahead of .bss",
    (p) => p.flip(p.data(".data") + sectionNamed(p.image, ".data").header.virtualSize),
    /padding behind section \.data at/,
  ],
  [
    "padding of debug data",
    (p) => p.flip(p.data(".debug_info") + sectionNamed(p.image, ".debug_info").header.virtualSize),
    /padding behind section \.debug_info at/,
  ],
  ["the header area behind the section table", (p) => p.flip(0xd00), /header area at offset 0xd00/],
  ["the header area's end", (p) => p.flip(0xfff), /header area at offset 0xfff/],
  ["eight bytes more", (p) => p.resize(p.bytes.length + 8), /length of the file/],
  [
    "a tail of eight",
    (p) => {
      p.resize(p.bytes.length + 8);
      p.flip(p.bytes.length - 1);
    },
    /padding at the end of the file/,
  ],
  ["the end cut off", (p) => p.resize(p.bytes.length - 8), /Cannot read the image|length of the file/],
  ["half of it", (p) => p.resize(p.bytes.length >> 1), /Cannot read the image/],
  ["nothing of it", (p) => p.resize(0), /Cannot read the image/],
];

const REFERENCES: readonly Operation[] = [0, 1].map((i) => [
  `displacement ${i} not patched`,
  (p) => {
    const at = p.patched()[i] ?? 0;
    const before = parseImage(p.original);
    const start = sectionNamed(before, ".init").header.pointerToRawData;
    p.set32(at, viewOf(p.original).getUint32(at - p.data(".init") + start, true));
  },
  /in a reference to the base relocation table/,
]);

const MORE_REFERENCES: readonly Operation[] = [
  ["a displacement off by 4", (p) => p.add32(p.patched()[0] ?? 0, 4), /in a reference to the base relocation table/],
  [
    "an instruction instead of a displacement",
    (p) => p.flip((p.patched()[0] ?? 0) - 3, 4),
    /memory at RVA .*section \.init/,
  ],
  ["a reference to _end patched along", patchEnd, /memory at RVA .*section \.(text|init)/],
];

/** Patches a reference to `_end` that has nothing to do with the table. */
function patchEnd(p: Patient): void {
  const before = parseImage(p.original);
  const target = before.directories[5]?.virtualAddress ?? 0;
  const distance = (p.image.directories[5]?.virtualAddress ?? 0) - target;
  for (const name of [".text", ".init"]) {
    const { data, header } = sectionNamed(before, name);
    for (let at = 3; at + 4 <= data.length; at++) {
      const displacement = viewOf(data).getInt32(at, true);
      const place = p.data(name) + at;
      if (data[at - 2] !== 0x8d || header.virtualAddress + at + 4 + displacement !== target) continue;
      if (p.view.getInt32(place, true) !== displacement) continue;
      return p.view.setInt32(place, displacement + distance, true);
    }
  }
  throw new Error("there is no other reference to _end");
}

const FIXUPS: readonly Operation[] = [
  [
    "a void base relocation revived",
    (p) => p.bytes.set(parsedTable(p.original).subarray(0, 0x40), p.data(".reloc")),
    /base relocation number 0 is type 3/,
  ],
  ["a base relocation voided", (p) => p.view.setUint16(p.fixup(), 0, true), /base relocation number \d+ is type 0/],
  ["a base relocation for another place", (p) => p.flip(p.fixup(), 1), /base relocation number \d+/],
  ["a base relocation of the other type", (p) => p.flip(p.fixup() + 1, 0xa0 ^ 0x30), /base relocation number \d+/],
  [
    "a base relocation of an unknown type",
    (p) => p.view.setUint16(p.fixup(), 0x5000, true),
    /Unsupported relocation type/,
  ],
  ["a page of base relocations elsewhere", (p) => p.add32(p.fixup() - 8, 0x1000), /base relocation number/],
  [
    "a page of base relocations outside what Multiboot loads",
    (p) => p.set32(p.fixup() - 8, 0x209000),
    /base relocation number \d+ is type/,
  ],
  [
    "a block too long",
    (p) => p.set32(p.data(".reloc") + 4, 0x7ffffff0),
    /block at offset 0x0 .*SizeOfBlock 0x7ffffff0/,
  ],
  ["a block of nothing", (p) => p.set32(p.data(".reloc") + 4, 0), /SizeOfBlock 0x0/],
];

function parsedTable(file: Uint8Array): Uint8Array {
  return sectionNamed(parseImage(file), ".reloc").data;
}

const TABLES: readonly Operation[] = [
  [
    "a symbol's section",
    (p) => p.view.setUint16(p.symbol(symbolIn(p, ".data"), "sectionNumber"), 1, true),
    /COFF symbol number \d+ .* section 1 \(\.text\), needed section \d+ \(\.data\)/,
  ],
  [
    "a symbol not renumbered",
    (p) => p.view.setUint16(p.symbol(symbolIn(p, ".bss"), "sectionNumber"), sectionNumber(p.original, ".bss"), true),
    /COFF symbol number/,
  ],
  ["a symbol's value", (p) => p.flip(p.symbol(3, "value"), 1), /COFF symbol table at offset/],
  ["a symbol's name", (p) => p.flip(p.symbol(3, "name"), 1), /COFF symbol table at offset/],
  [
    "the string table",
    (p) => p.flip(p.image.coff.pointerToSymbolTable + p.image.symbols.length + p.image.strings.length - 2, 1),
    /string table|missing|Cannot read/,
  ],
  ["PointerToSymbolTable", (p) => p.add32(p.coff("pointerToSymbolTable"), -0x12), /PointerToSymbolTable|Cannot read/],
  ["NumberOfSymbols", (p) => p.add32(p.coff("numberOfSymbols"), -1), /field NumberOfSymbols|Cannot read/],
  [
    "no symbols",
    (p) => [p.coff("pointerToSymbolTable"), p.coff("numberOfSymbols")].forEach((at) => p.set32(at, 0)),
    /PointerToSymbolTable|field NumberOfSymbols|missing/,
  ],
  [
    "a stale debug directory offset",
    (p) => p.set32(p.debug("pointerToRawData"), staleOffset(p)),
    /in the debug directory/,
  ],
  ["debug directory offset 0", (p) => p.set32(p.debug("pointerToRawData"), 0), /in the debug directory/],
  ["a debug directory's address", (p) => p.flip(p.debug("addressOfRawData"), 1), /in the debug directory/],
  ["a debug directory's size", (p) => p.flip(p.debug("sizeOfData"), 1), /in the debug directory/],
];

function sectionNumber(file: Uint8Array, name: string): number {
  const image = parseImage(file);
  return image.sections.indexOf(sectionNamed(image, name)) + 1;
}

function symbolIn(p: Patient, name: string): number {
  const number = p.image.sections.indexOf(sectionNamed(p.image, name)) + 1;
  for (let i = 0; i < p.image.coff.numberOfSymbols; i += 1 + p.view.getUint8(p.symbol(i, "numberOfAuxSymbols"))) {
    if (p.view.getUint16(p.symbol(i, "sectionNumber"), true) === number) return i;
  }
  throw new Error(`no symbol in ${name}`);
}

function staleOffset(p: Patient): number {
  const before = new Patient(p.original, p.original);
  return before.view.getUint32(before.debug("pointerToRawData"), true);
}

const MULTIBOOT1: readonly Operation[] = [
  ["Multiboot1 missing", (p) => p.flip(p.mb1("magic"), 1), /Multiboot1 header is not in its first 0x2000 bytes/],
  ["Multiboot1 checksum", (p) => p.flip(p.mb1("checksum"), 1), /Multiboot1 header .* wrong checksum/],
  [
    "Multiboot1 flags",
    (p) => {
      p.flip(p.mb1("flags"), 4);
      p.add32(p.mb1("checksum"), -4);
    },
    /Multiboot1 header's flags is 0x10007/,
  ],
  [
    "Multiboot1 without addresses",
    (p) => {
      p.add32(p.mb1("flags"), -0x10000);
      p.add32(p.mb1("checksum"), 0x10000);
    },
    /needed bit 16 set/,
  ],
  [
    "Multiboot1 header_addr",
    (p) => p.add32(p.mb1("headerAddr"), -4),
    /Multiboot1 header's header_addr|what the Multiboot1 header loads/,
  ],
  ["Multiboot1 header_addr too high", (p) => p.add32(p.mb1("headerAddr"), 4), /Multiboot1 header .* has header_addr/],
  [
    "Multiboot1 load_addr",
    (p) => p.add32(p.mb1("loadAddr"), 0x1000),
    /Multiboot1 header .* needed from load_addr 0x200000/,
  ],
  ["Multiboot1 load_end_addr too low", (p) => p.add32(p.mb1("loadEndAddr"), -1), /Multiboot1 header's load_end_addr/],
  ["Multiboot1 load_end_addr 0", (p) => p.set32(p.mb1("loadEndAddr"), 0), /Multiboot1 header .* has load_end_addr 0x0/],
  ["Multiboot1 load_end_addr behind the file", (p) => p.add32(p.mb1("loadEndAddr"), 0x100000), /the end of the file/],
  [
    "Multiboot1 bss_end_addr not rounded",
    (p) => p.add32(p.mb1("bssEndAddr"), -0x1000),
    /Multiboot1 header's bss_end_addr/,
  ],
  [
    "Multiboot1 bss_end_addr too low",
    (p) => p.add32(p.mb1("bssEndAddr"), -0x200000),
    /Multiboot1 header .* has bss_end_addr/,
  ],
  ["Multiboot1 bss_end_addr 0", (p) => p.set32(p.mb1("bssEndAddr"), 0), /has bss_end_addr 0x0/],
  ["Multiboot1 entry_addr", (p) => p.add32(p.mb1("entryAddr"), 1), /Multiboot1 header's entry address/],
  [
    "a second Multiboot1 header ahead",
    (p) => p.bytes.copyWithin(0xc00, p.mb1("magic"), p.mb1("magic") + 32),
    /Multiboot1 header at offset 0xc00/,
  ],
  [
    "a Multiboot1 magic ahead",
    (p) => p.set32(0xc00, 0x1badb002),
    /comes behind a magic with a wrong checksum at 0xc00/,
  ],
  [
    "Multiboot1 elsewhere",
    (p) => {
      const at = p.mb1("magic");
      p.bytes.copyWithin(at - 64, at, at + 32);
      p.bytes.fill(0, at, at + 32);
      p.add32(p.mb1("headerAddr"), -64);
    },
    /Multiboot1 header's place in the file/,
  ],
];

const tagField =
  (type: number, at: number): ((p: Patient) => number) =>
  (p) =>
    p.tag(type) + at;
const address = (name: Parameters<typeof offsetOf<typeof MB2_ADDRESS_TAG.rows>>[1]): ((p: Patient) => number) =>
  tagField(2, offsetOf(MB2_ADDRESS_TAG, name));
const relocatable = (name: Parameters<typeof offsetOf<typeof MB2_RELOCATABLE_TAG.rows>>[1]): ((p: Patient) => number) =>
  tagField(10, offsetOf(MB2_RELOCATABLE_TAG, name));

const MULTIBOOT2: readonly Operation[] = [
  ["Multiboot2 missing", (p) => p.flip(p.mb2(), 1), /Multiboot2 header is not in its first 0x8000 bytes/],
  ["Multiboot2 checksum", (p) => p.flip(p.mb2() + 12, 1), /Multiboot2 header .* wrong checksum/],
  [
    "Multiboot2 architecture",
    (p) => {
      p.add32(p.mb2() + 4, 4);
      p.add32(p.mb2() + 12, -4);
    },
    /architecture 4/,
  ],
  [
    "Multiboot2 header_length",
    (p) => {
      p.add32(p.mb2() + 8, 8);
      p.add32(p.mb2() + 12, -8);
    },
    /END tag up to/,
  ],
  ["a Multiboot2 magic ahead", (p) => p.set32(0xc00, 0xe85250d6), /Multiboot2 header .* comes behind a magic/],
  ["a Multiboot2 header ahead", (p) => p.bytes.copyWithin(0xc00, p.mb2(), p.mb2() + 0x90), /Multiboot2 header/],
  [
    "the old Multiboot1 magic behind the header",
    (p) => p.set32(p.data(".text") + 0x200, 0x1badb002),
    /memory at RVA 0x200200/,
  ],
  ["no END tag", (p) => p.flip(p.tag(0), 1), /Multiboot2 header/],
  [
    "Multiboot2 header_addr",
    (p) => p.add32(address("headerAddr")(p), 8),
    /Multiboot2 header's header_addr|what the Multiboot2 header loads/,
  ],
  [
    "Multiboot2 load_addr",
    (p) => p.add32(address("loadAddr")(p), -0x1000),
    /Multiboot2 header's load_addr|has header_addr/,
  ],
  [
    "load_addr -1, from the file's start",
    (p) => p.set32(address("loadAddr")(p), 0xffffffff),
    /Multiboot2 header .* has header_addr/,
  ],
  [
    "Multiboot2 load_end_addr too low",
    (p) => p.add32(address("loadEndAddr")(p), -1),
    /Multiboot2 header's load_end_addr/,
  ],
  [
    "load_end_addr short of .data",
    (p) => p.add32(address("loadEndAddr")(p), -0x200),
    /what the Multiboot2 header loads at .*section \.data/,
  ],
  ["Multiboot2 load_end_addr 0", (p) => p.set32(address("loadEndAddr")(p), 0), /has load_end_addr 0x0/],
  [
    "Multiboot2 load_end_addr behind the file",
    (p) => p.set32(address("loadEndAddr")(p), 0x1000000),
    /the end of the file/,
  ],
  [
    "Multiboot2 bss_end_addr too low",
    (p) => p.set32(address("bssEndAddr")(p), 0x20b000),
    /what the Multiboot2 header loads or clears is/,
  ],
  [
    "Multiboot2 bss_end_addr not rounded",
    (p) => p.add32(address("bssEndAddr")(p), -0x1000),
    /Multiboot2 header's bss_end_addr/,
  ],
  [
    "Multiboot2 entry_addr",
    (p) => p.add32(p.tag(3) + offsetOf(MB2_ENTRY_ADDRESS_TAG, "entryAddr"), 1),
    /Multiboot2 header's entry address/,
  ],
  [
    "Multiboot2 entry address outside",
    (p) => p.set32(p.tag(3) + offsetOf(MB2_ENTRY_ADDRESS_TAG, "entryAddr"), 0x900000),
    /Multiboot2 header's entry address/,
  ],
  ["the EFI64 entry address", (p) => p.set32(p.tag(9) + 8, 0x100), /EFI entry address in the Multiboot2 tag of type 9/],
  ["the RELOCATABLE tag's alignment", (p) => p.set32(relocatable("align")(p), 0x1000), /_start, when loaded at/],
  ["the RELOCATABLE tag's maximum", (p) => p.set32(relocatable("maxAddr")(p), 0x300000), /RELOCATABLE tag is/],
  ["the RELOCATABLE tag's minimum", (p) => p.set32(relocatable("minAddr")(p), 0xffe00000), /RELOCATABLE tag is/],
  ["the RELOCATABLE tag's preference", (p) => p.flip(relocatable("preference")(p), 3), /in the Multiboot2 header/],
  ["a tag's flags", (p) => p.flip(p.tag(4) + 2, 1), /in the Multiboot2 header/],
  ["the padding of a tag", (p) => p.flip(p.tag(3) + 12, 1), /in the Multiboot2 header/],
  ["the padding behind the header", (p) => p.set32(p.tag(0) + 8, 0), /memory at RVA/],
  ["tags in another order", swapTags, /order of tags in the Multiboot2 header/],
  ["a tag left out", dropTag, /order of tags in the Multiboot2 header/],
  ["no ADDRESS tag", (p) => p.flip(p.tag(2), 0x40), /no tag ADDRESS/],
  ["no ENTRY_ADDRESS tag", (p) => p.flip(p.tag(3), 0x40), /no tag ENTRY_ADDRESS/],
  ["no RELOCATABLE tag", (p) => p.flip(p.tag(10), 0x40), /no tag RELOCATABLE/],
];

/** The first two tags exchanged: ENTRY_ADDRESS, ADDRESS. */
function swapTags(p: Patient): void {
  const [a, b] = [p.tag(2), p.tag(3)];
  const first = p.bytes.slice(a, b);
  p.bytes.copyWithin(a, b, b + 16);
  p.bytes.set(first, a + 16);
}

/** CONSOLE_FLAGS gone, the rest moved up, header_length and checksum right. */
function dropTag(p: Patient): void {
  const [at, end] = [p.tag(4), p.tag(0) + 8];
  p.bytes.copyWithin(at, at + 16, end);
  p.bytes.fill(0x90, end - 16, end);
  p.add32(p.mb2() + 8, -16);
  p.add32(p.mb2() + 12, 16);
}

operations("moved", tiny, moved, [
  ...SECTION_DATA,
  ...HEADERS,
  ...SECTIONS,
  ...PADDING,
  ...REFERENCES,
  ...MORE_REFERENCES,
  ...FIXUPS,
  ...TABLES,
  ...MULTIBOOT1,
  ...MULTIBOOT2,
]);

operations("kept", tiny, kept, [
  ["a byte of the table", (p) => p.flip(p.data(".reloc") + 0x20, 1), /section \.reloc \+|base relocation/],
  [
    "a void base relocation revived",
    (p) => p.bytes.set(parsedTable(p.original).subarray(0, 0x40), p.data(".reloc")),
    /base relocation number 0 is type 3/,
  ],
  [
    "MEM_DISCARDABLE restored",
    (p) => p.flip(p.section(".reloc", "characteristics") + 3, 0x02),
    /section \.reloc at RVA .* not loaded by shim/,
  ],
  ["VirtualSize of .reloc", (p) => p.add32(p.section(".reloc", "virtualSize"), 4), /section \.reloc's VirtualSize/],
  [
    "padding behind the table",
    (p) => p.flip(p.data(".reloc") + sectionNamed(p.image, ".reloc").header.virtualSize),
    /padding behind section \.reloc/,
  ],
]);

bad("a result of a tampered original: everything fits but one byte", () => {
  const tampered = tiny.slice();
  const at = sectionNamed(parseImage(tiny), ".rodata").header.pointerToRawData + 0x40;
  tampered[at] = (tampered[at] ?? 0) ^ 1;
  for (const keep of [false, true])
    rejects(tiny, result(tampered, keep), /memory at RVA 0x201040 \(section \.rodata \+ 0x40\)/);
});

bad("the other variant's table: neither moved nor kept", () => {
  const patient = new Patient(tiny, moved);
  // Moved a page too far down, consistently, but for the references.
  patient.add32(patient.section(".reloc", "virtualAddress"), -0x1000);
  patient.add32(directoryAt(patient.image, 5), -0x1000);
  patient.fixCheckSum();
  rejects(tiny, patient.bytes, /section \.reloc's VirtualAddress/);
});

bad("steps that did not run, by name", () => {
  for (const keep of [false, true]) {
    const relocated = onBytes((image) => relocateReloc(image, keep))(tiny);
    const aligned = onBytes((image) => alignSections(image))(relocated);
    rejects(tiny, tiny, /Multiboot2 header at offset 0x[0-9a-f]+ has no tag ADDRESS: run emit-header/);
    rejects(tiny, relocated, /Multiboot2 header at offset 0x[0-9a-f]+ has no tag ADDRESS: run emit-header/);
    rejects(tiny, aligned, /Multiboot2 header at offset 0x[0-9a-f]+ has no tag ADDRESS: run emit-header/);
  }
});

bad("an original that is a result", () => {
  rejects(moved, moved, /original: its Multiboot2 header at RVA 0x200008 has a tag ADDRESS: it is a result itself/);
});

bad("an original that is no image", () => {
  rejects(new Uint8Array(0), moved, /original: Cannot read the image/);
  rejects(Buffer.from("#!/bin/sh\n"), moved, /original: Cannot read the image/);
});

bad("an original with something behind what its headers describe", () => {
  const original = new Uint8Array(tiny.length + 4);
  original.set(tiny);
  original[tiny.length + 2] = 1;
  rejects(original, moved, /original, behind everything its headers describe,/);
});

bad("an original with something between what its headers describe", () => {
  const original = sample("set section .data.ptr 0x2000\npatch 0x1ffe 01");
  rejects(original, moved, /original, between what its headers describe, at offset 0x1ffe is 0x1, needed 0x0/);
});

bad("an original with a part of Xen behind .bss, where Multiboot does not load it", () => {
  const behind = (name: string, symbol = ""): Uint8Array =>
    sample(`section ${name} rva=0x20e000 flags=data,read\n${symbol}\nfill 0x77 16\nset optional.sizeOfImage 0x20f000`);
  rejects(behind(".init.ro"), moved, /original: its section \.init\.ro is at RVA 0x20e000, needed below \.bss/);
  rejects(behind(".altinst"), moved, /original: its section \.altinst is at/);
  rejects(behind(".orphan", "symbol something"), moved, /original: its section \.orphan is at/);
  for (const added of [behind(".initrd"), behind(".orphan", "local .orphan"), behind(".debug_x", "symbol something")])
    for (const keep of [false, true]) accepts(added, keep);
});

const PAD = "set optional.sizeOfImage 0x20f000\nsection .pad rva=0x20e000 vsize=0x10 flags=bss,read,write";
for (const [what, spoil, pattern] of [
  ["Subsystem is 3", (p) => p.set32(p.optional("subsystem"), 3), /Subsystem is 0x3, needed 0xa/],
  ["SectionAlignment is a page", (p) => p.set32(p.optional("sectionAlignment"), 0x1000), /SectionAlignment is 0x1000/],
  ["a section is empty", (p) => p.set32(p.section(".pad", "virtualSize"), 0), /\.pad is without data/],
  ["a section lacks its data", (p) => p.set32(p.section(".pad", "characteristics"), 0x40000040), /\.pad is without/],
  ["shim finds no .reloc", (p) => p.flip(p.section(".reloc", "name") + 7, 1), /shim finds no readable section \.reloc/],
] as readonly Operation[])
  bad(`a result that is as bad as the original: ${what}`, () => {
    const original = sample(PAD);
    const both = [original, result(original, false)].map((bytes) => {
      const patient = new Patient(tiny, bytes);
      spoil(patient);
      patient.fixCheckSum();
      return patient.bytes;
    });
    rejects(both[0] ?? tiny, both[1] ?? tiny, pattern);
  });

bad("at most 50 lines, and how many more", () => {
  const noise = moved.slice();
  const state = random(7);
  for (let at = 0x1200; at < noise.length; at += 1 + state(64)) noise[at] = state(256);
  const { violations } = verify(tiny, noise);
  assert.ok(violations.length <= 51, `${violations.length} lines`);
});

bad("a debug directory that is written over", () => {
  // Where the old header has zeros for the entry's file offset, so that there is nothing to correct in it.
  const inHeader = (bytes: Uint8Array): Uint8Array => {
    const image = parseImage(bytes);
    const virtualAddress = (image.sections[0]?.header.virtualAddress ?? 0) + 0x64;
    const directories = image.directories.map((d, i) => (i === DIRECTORY_DEBUG ? { ...d, virtualAddress } : d));
    return serializeImage({ ...image, directories });
  };
  rejects(inHeader(tiny), inHeader(moved), /the debug directory is at \[0x200064,0x200080\), needed outside/);
});

bad.run();

// ---- what nobody thought of

/** A small seeded generator (Park and Miller's), so that a failure can be repeated. */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state * 48271) % 2147483647;
    return state % below;
  };
}

const FLIPS = 250;
const blind = suite("verify() has no blind spot");

for (const [variant, goodResult] of [
  ["move", moved],
  ["keep", kept],
] as const) {
  blind(`${FLIPS} random bytes, ${variant}: every one is reported, CheckSum right or not`, () => {
    const below = random(variant === "move" ? 20240229 : 20250301);
    const used: number[] = [];
    for (let at = 0; at < goodResult.length; at++) if (goodResult[at] !== 0) used.push(at);
    const missed: string[] = [];
    for (let i = 0; i < FLIPS; i++) {
      // By turns: the headers, what is not zero, anything.
      const at = [below(0x1200), used[below(used.length)] ?? 0, below(goodResult.length)][i % 3] ?? 0;
      const mask = 1 + below(255);
      const patient = new Patient(tiny, goodResult);
      patient.flip(at, mask);
      // A different CheckSum is one itself, unless it was the CheckSum that was flipped.
      const checkSum = patient.optional("checkSum");
      if (i % 10 !== 0 && (at < checkSum || at >= checkSum + 4)) patient.fixCheckSum();
      if (verify(tiny, patient.bytes).violations.length === 0)
        missed.push(`offset 0x${at.toString(16)} ^ 0x${mask.toString(16)}`);
    }
    assert.is(missed.join(", "), "");
  });
}

blind("files cut off anywhere, either of them: a violation, and nothing thrown", () => {
  const below = random(99);
  for (let i = 0; i < 60; i++) {
    const cut = i < 40 ? below(0x1400) : below(moved.length);
    assert.ok(verify(tiny, moved.subarray(0, cut)).violations.length !== 0, `result cut at ${cut}`);
    const originalCut = i < 40 ? below(0x600) : below(tiny.length - 1);
    assert.ok(verify(tiny.subarray(0, originalCut), moved).violations.length !== 0, `original cut at ${originalCut}`);
  }
});

blind("headers full of nonsense, in either file: nothing is thrown", () => {
  const below = random(4711);
  const extremes = [0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 0xfffff000, 0x200000];
  for (let i = 0; i < 150; i++) {
    const files = [tiny.slice(), moved.slice()] as const;
    const [original, spoilt] = files;
    for (let n = 0; n < 1 + below(3); n++) {
      const file = files[below(2)] ?? original;
      viewOf(file).setUint32(4 * below(0x120), extremes[below(extremes.length)] ?? 0, true);
    }
    const { violations } = verify(original, spoilt);
    assert.ok(violations.length <= 51);
  }
});

blind("60000 sections are no reason to hang", () => {
  const many = crowd(60000);
  const start = process.cpuUsage();
  assert.ok(verify(many, many).violations.length !== 0);
  const took = process.cpuUsage(start).user / 1e6;
  assert.ok(took < 10, `it took ${took} s`);
});

/** the sample's result with very many sections: the headers grow, everything else stays away. */
function crowd(count: number): Uint8Array {
  const image = parseImage(moved);
  const tableAt = optionalAt(image) + image.coff.sizeOfOptionalHeader;
  const headers = tableAt + count * SECTION_HEADER.size;
  const bytes = new Uint8Array(headers + count);
  bytes.set(moved.subarray(0, tableAt));
  const view = viewOf(bytes);
  view.setUint16(field(image.lfanew + 4, COFF_HEADER, "numberOfSections"), count, true);
  view.setUint32(field(image.lfanew + 4, COFF_HEADER, "pointerToSymbolTable"), 0, true);
  view.setUint32(field(image.lfanew + 4, COFF_HEADER, "numberOfSymbols"), 0, true);
  view.setUint32(field(optionalAt(image), OPTIONAL_HEADER, "sizeOfHeaders"), headers, true);
  for (let i = 0; i < count; i++) {
    const at = tableAt + i * SECTION_HEADER.size;
    const name = i === count - 1 ? ".bss" : i === 0 ? ".text" : i === 1 ? ".reloc" : ".s";
    Buffer.from(name).copy(bytes, at);
    view.setUint32(field(at, SECTION_HEADER, "virtualSize"), 0x100, true);
    view.setUint32(field(at, SECTION_HEADER, "virtualAddress"), 0x800000 + 0x1000 * i, true);
    view.setUint32(field(at, SECTION_HEADER, "sizeOfRawData"), i === count - 1 ? 0 : 1, true);
    view.setUint32(field(at, SECTION_HEADER, "pointerToRawData"), i === count - 1 ? 0 : headers + i, true);
  }
  return bytes;
}

blind.run();

// ---- the command

interface Run {
  status: number;
  stdout: string;
  stderr: string;
}

async function run(...args: string[]): Promise<Run> {
  const seen = { stdout: "", stderr: "" };
  const io: Io = {
    stdin: () => moved,
    stdout: (bytes) => (seen.stdout += String(bytes)),
    stderr: (text) => (seen.stderr += text),
  };
  return { status: await runCommand(command, args, io), ...seen };
}

const cli = suite<{ folder: string; original: string }>("verify.ts");

cli.before((context) => {
  context.folder = fs.mkdtempSync(path.join(os.tmpdir(), "verify-"));
  // A copy: the sample itself may be rebuilt meanwhile, by the test beside this one.
  context.original = path.join(context.folder, "xen.efi");
  fs.writeFileSync(context.original, tiny);
});

cli.after((context) => {
  fs.rmSync(context.folder, { recursive: true });
});

cli("prints a short report and exits 0", async ({ folder, original }) => {
  const file = path.join(folder, "xen.mb.efi");
  fs.writeFileSync(file, moved);
  const { status, stdout, stderr } = await run(original, file);
  assert.is(stderr, "");
  assert.is(status, 0);
  const lines = stdout.split("\n");
  assert.is(lines[0], `${file}: verified against ${original}`);
  assert.ok(lines.length >= 6 && lines.length <= 10, stdout);
  assert.is((await run(original, "-")).stdout.split("\n")[0], `<stdin>: verified against ${original}`);
});

cli("prints a line per violation and exits 1", async ({ folder, original }) => {
  const file = path.join(folder, "bad.efi");
  const patient = new Patient(tiny, moved);
  patient.flip(patient.coff("timeDateStamp"), 1);
  fs.writeFileSync(file, patient.bytes);
  const { status, stdout, stderr } = await run(original, file);
  assert.is(stdout, "");
  assert.is(status, 1);
  assert.match(
    stderr,
    /^.*bad\.efi: Cannot verify: COFF header field TimeDateStamp is 0x[0-9a-f]+, needed 0x[0-9a-f]+\n/,
  );
  assert.is(stderr.split("\n").filter((line) => line !== "" && !line.startsWith(`${file}: Cannot verify: `)).length, 0);
});

cli("exits 1 where a file is missing, 2 for wrong usage, 0 for --help", async ({ folder, original }) => {
  const missing = await run(original, path.join(folder, "none.efi"));
  assert.is(missing.status, 1);
  assert.match(missing.stderr, /none\.efi: Cannot read: .*\n$/);
  const usage = await run(original);
  assert.is(usage.status, 2);
  assert.match(usage.stderr, /^verify\.ts: RESULT is missing; see verify\.ts --help\n$/);
  const help = await run("--help");
  assert.is(help.status, 0);
  assert.match(help.stdout, /^Usage: verify\.ts ORIGINAL RESULT\n/);
});

cli.run();
