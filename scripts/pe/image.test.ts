// SPDX-License-Identifier: GPL-2.0-only
// Reading and writing PE images: what goes through unchanged, and everything that is refused, by every step.

import { createHash } from "node:crypto";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { alignSections, command as align } from "../align-sections.ts";
import { ImageError } from "../cli/errors.ts";
import { checkSumOf } from "../dev/sample/build.ts";
import { builds, run, sample } from "../dev/sample/run.ts";
import { command as emit, emitHeader } from "../emit-header.ts";
import { definedSymbols } from "./symbols.ts";
import { parseImage } from "./parse.ts";
import { serializeImage } from "./serialize.ts";
import type { Image } from "./image.ts";
import { command as relocate, relocateReloc } from "../relocate-reloc.ts";
import {
  COFF_HEADER,
  DATA_DIRECTORY,
  DEBUG_DIRECTORY_ENTRY,
  OPTIONAL_HEADER,
  SECTION_HEADER,
  SYMBOL,
} from "../tables/pe.ts";

const digest = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

// ---

const tables = suite("field tables");

tables("have the sizes of the specification", () => {
  const sizes = [COFF_HEADER, OPTIONAL_HEADER, DATA_DIRECTORY, SECTION_HEADER, DEBUG_DIRECTORY_ENTRY, SYMBOL].map(
    (s) => s.size,
  );
  assert.is(sizes.join(" "), "20 112 8 40 28 18");
});

tables.run();

// ---

const roundTrip = suite("parseImage() and serializeImage()");

for (const [what, edits, base] of [
  ["tiny", "", "tiny"],
  ["linear", "", "linear"],
  ["tiny without symbols", "remove symbols", "tiny"],
  [
    "an unsorted section table",
    "order .debug_info .reloc .bss .data .data.read_mostly .init .buildid .rodata .text",
    "tiny",
  ],
  [
    "junk in raw padding and gaps",
    "set section .rodata.virtualSize 0x100\nset section .debug_info.ptr 0x1000\npatch 0x2f1 a1a2a3",
    "tiny",
  ],
  ["a signed image", "certificate 0x100", "tiny"],
  ["an odd length", "append 010203", "tiny"],
  ["e_lfanew off 8", "set lfanew 0x85", "tiny"],
  ["six data directories", "set optional.numberOfRvaAndSizes 7", "tiny"],
] as const) {
  roundTrip(`leave ${what} as it is`, () => {
    const text = edits.includes("patch") || edits.includes("append") ? `${edits}\nset optional.checkSum 0` : edits;
    const bytes = sample(text, base);
    const written = serializeImage(parseImage(bytes));
    // Edits of the finished file make its CheckSum wrong; writing makes it right.
    const checkSumAt = parseImage(bytes).lfanew + 24 + 64;
    if (text !== edits) new DataView(bytes.buffer).setUint32(checkSumAt, checkSumOf(bytes, checkSumAt - 64), true);
    assert.is(digest(written), digest(bytes));
  });
}

for (const { id, bytes } of builds()) {
  roundTrip(`leave Xen ${id} as it is`, () => {
    assert.is(digest(serializeImage(parseImage(bytes))), digest(bytes));
  });
}

roundTrip("do not change their input", () => {
  const bytes = sample();
  const before = digest(bytes);
  for (const [, step] of STEPS) attempt(() => step(parseImage(bytes)));
  assert.is(digest(bytes), before);
});

// ---

const named = suite("definedSymbols()");

/** An image with these symbol records, and nothing else that matters. */
function withSymbols(records: readonly Uint8Array[], strings: string): Image {
  return {
    ...parseImage(sample()),
    symbols: Buffer.concat(records),
    strings: Buffer.from(`\0\0\0\0${strings}`, "latin1"),
  };
}

/** @param name its own eight bytes, or an offset in the string table */
function record(name: string | number, value: number, aux = 0): Uint8Array {
  const bytes = Buffer.alloc(18);
  if (typeof name === "string") bytes.write(name, "latin1");
  else bytes.writeUInt32LE(name, 4);
  bytes.writeUInt32LE(value, 8);
  bytes.writeUInt16LE(1, 12);
  bytes[17] = aux;
  return bytes;
}

const values = (image: Image, name: string): string =>
  [...definedSymbols(image)]
    .filter((s) => s.name === name)
    .map((s) => s.rva - (image.sections[0]?.header.virtualAddress ?? 0))
    .join(" ");

named("finds short and long names, in the table's order, and no others", () => {
  const image = withSymbols(
    [
      record("start", 1),
      record("starts", 2),
      record(4, 3),
      record("start\0xy", 4),
      record(7, 5),
      record("eight888", 6),
      record("eight889", 7),
    ],
    "my_start\0",
  );
  // An offset into a string means the rest of it.
  assert.is(values(image, "start"), "1 4 5");
  assert.is(values(image, "my_start"), "3");
  assert.is(values(image, "eight888"), "6");
  assert.is(values(image, "absent"), "");
});

named("finds a name that is in the string table any number of times", () => {
  const times = 20;
  const image = withSymbols(
    Array.from({ length: times }, (_, i) => record(4 + 10 * i, i)),
    "long_name\0".repeat(times),
  );
  assert.is(values(image, "long_name"), Array.from({ length: times }, (_, i) => i).join(" "));
});

named("takes no auxiliary record for a symbol, however it looks", () => {
  const image = withSymbols([record("file", 1, 1), record("start", 2), record("start", 3)], "");
  assert.is(values(image, "start"), "3");
});

named.run();

// ---

const STEPS: readonly (readonly [string, (image: Image) => Image])[] = [
  ["relocate-reloc", (image) => relocateReloc(image, false)],
  ["relocate-reloc --keep", (image) => relocateReloc(image, true)],
  ["align-sections", (image) => alignSections(image)],
  ["emit-header", (image) => emitHeader(image)],
];

/** The message of an ImageError, undefined when all went well; any other error is a bug. */
function attempt(work: () => unknown): string | undefined {
  try {
    work();
    return undefined;
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    if (!/^Cannot [^\n]+$/.test(error.message)) throw new Error(`not one line "Cannot …": ${error.message}`);
    return error.message;
  }
}

roundTrip.run();

const bad = suite("bad images");
const READ = "Cannot read the image: ";
const RELOCS = "Cannot read the base relocation table: ";

/** Description, edits of tiny, and what every step says; "…" for the step's own words. */
const BAD: readonly (readonly [string, string, string])[] = [
  ["an empty file", "truncate 0", `${READ}offset 0 is empty, needed "MZ": not a PE image`],
  ["one byte", "truncate 1", `${READ}offset 0 is 4d (hex), needed "MZ": not a PE image`],
  ["another magic", "patch 0 7f45", `${READ}offset 0 is 7f450000 (hex), needed "MZ": not a PE image`],
  [
    "an ELF file",
    "patch 0 7f454c46",
    `${READ}offset 0 is 7f454c46 (hex), needed "MZ": not a PE image, but ELF, as in xen.gz: the steps take xen.efi`,
  ],
  ["no PE signature", "patch 0x80 4e45", `${READ}offset 0x80 is 4e450000 (hex), needed "PE\\0\\0"`],
  ["e_lfanew inside the MS-DOS header", "patch 0x3c 20000000", `${READ}e_lfanew is 0x20, needed at least 0x40`],
  [
    "e_lfanew behind the file",
    "patch 0x3c 00100000",
    `${READ}the PE header is at [0x1000,0x1018), the file ends at 0xdc3`,
  ],
  [
    "e_lfanew that overflows",
    "patch 0x3c ffffffff",
    `${READ}the PE header is at [0xffffffff,0x100000017), the file ends at 0xdc3`,
  ],
  ["machine i386", "set coff.machine 0x14c", `${READ}its machine is 0x14c, needed 0x8664 (x86-64)`],
  ["machine ARM64", "set coff.machine 0xaa64", `${READ}its machine is 0xaa64, needed 0x8664 (x86-64)`],
  ["PE32", "set optional.magic 0x10b", `${READ}the optional header's magic is 0x10b, needed 0x20b (PE32+)`],
  ["17 data directories", "set optional.numberOfRvaAndSizes 17", `${READ}NumberOfRvaAndSizes is 17, needed at most 16`],
  [
    "NumberOfRvaAndSizes that overflows",
    "set optional.numberOfRvaAndSizes 0x20000000",
    `${READ}NumberOfRvaAndSizes is 536870912, needed at most 16`,
  ],
  [
    "a short optional header",
    "set coff.sizeOfOptionalHeader 112",
    `${READ}SizeOfOptionalHeader is 0x70, needed 0xf0 for 16 data directories`,
  ],
  [
    "a long optional header",
    "set coff.sizeOfOptionalHeader 0xffff",
    `${READ}SizeOfOptionalHeader is 0xffff, needed 0xf0 for 16 data directories`,
  ],
  [
    "NumberOfSections that overflows",
    "set coff.numberOfSections 0xffff",
    `${READ}the section table is at [0x188,0x280160), the file ends at 0xdc3`,
  ],
  [
    "no section",
    "set coff.numberOfSections 0",
    "…this is not a Xen image: no section is called .init, and the first is at RVA 0x0, needed 0x200000",
  ],
  [
    "NumberOfSymbols that overflows",
    "set coff.numberOfSymbols 0xffffffff",
    `${READ}the COFF symbol table is at [0xc40,0x1200000c2e), the file ends at 0xdc3`,
  ],
  [
    "PointerToSymbolTable behind the file",
    "set coff.pointerToSymbolTable 0xfffffff0",
    `${READ}the COFF symbol table is at [0xfffffff0,0x1000000da), the file ends at 0xdc3`,
  ],
  [
    "symbols without a table",
    "set coff.pointerToSymbolTable 0",
    `${READ}PointerToSymbolTable is 0, needed an offset for NumberOfSymbols 13`,
  ],
  [
    "a string table that overflows",
    "patch 0xd2a ffffffff",
    `${READ}the COFF string table is at [0xd2a,0x100000d29), the file ends at 0xdc3`,
  ],
  [
    "SizeOfHeaders that overflows",
    "set optional.sizeOfHeaders 0xffffffff\nlinear 0x300",
    `${READ}SizeOfHeaders is at [0x0,0xffffffff), the file ends at …`,
  ],
  [
    "SizeOfHeaders below the section table's end",
    "linear 0x300\nset optional.sizeOfHeaders 0x2ef",
    `${READ}SizeOfHeaders is 0x2ef, needed at least 0x2f0, the end of the section table`,
  ],
  [
    "PointerToRawData that overflows",
    "set section .data.pointerToRawData 0xffffff00",
    `${READ}section .data's raw data is at [0xffffff00,0x100000120), the file ends at 0xdc3`,
  ],
  [
    "SizeOfRawData that overflows",
    "set section .data.sizeOfRawData 0xffffffff",
    `${READ}section .data's raw data is at [0x9a0,0x10000099f), the file ends at 0xdc3`,
  ],
  [
    "raw data beyond the file by a byte",
    "set section .debug_info.sizeOfRawData 0x1c4",
    `${READ}section .debug_info's raw data is at [0xc00,0xdc4), the file ends at 0xdc3`,
  ],
  [
    "VirtualAddress that overflows",
    "set section .debug_info.virtualAddress 0xffffffff",
    "…section .debug_info ends at 0x100000032, needed at most 0x100000000",
  ],
  [
    "VirtualSize that overflows",
    "set section .debug_info.virtualSize 0xffffffff",
    "…section .debug_info ends at 0x10020cfff, needed at most 0x100000000",
  ],
  [
    "a section in the headers' memory",
    "set section .debug_info.virtualAddress 0x200",
    "…section .debug_info is at RVA 0x200, needed at least SizeOfHeaders 0x300",
  ],
  [
    "raw data in the headers",
    "set section .debug_info.pointerToRawData 0x2e0",
    "…section .debug_info's raw data is at 0x2e0, needed at least SizeOfHeaders 0x300",
  ],
  [
    "VirtualSize 0 with raw data",
    "set section .debug_info.virtualSize 0",
    "…section .debug_info has VirtualSize 0 and 0x40 bytes of raw data, which loaders read in different ways",
  ],
  [
    "sections that overlap in memory",
    "set section .rodata.virtualSize 0x249",
    "…section .rodata in memory [0x201000,0x201249) and section .buildid in memory [0x201248,0x2012a0) overlap",
  ],
  [
    "a section inside another",
    "set section .init.virtualSize 0x10000",
    "…section .init in memory [0x202000,0x212000) and section .data.read_mostly in memory [0x206000,0x207040) overlap",
  ],
  [
    "sections that overlap in the file",
    "set section .debug_info.pointerToRawData 0xbe0",
    "…section .reloc in the file [0xbc0,0xc00) and section .debug_info in the file [0xbe0,0xc20) overlap",
  ],
  [
    "symbols in a section's raw data",
    "set section .debug_info.sizeOfRawData 0x41",
    "…section .debug_info in the file [0xc00,0xc41) and the COFF symbol table [0xc40,0xdc3) overlap",
  ],
  [
    "a signature",
    "certificate 0x100",
    "…the image is signed, its certificate table is at [0xdc8,0xec8), needed an unsigned one…",
  ],
  [
    "a certificate table that overflows",
    "set directory.certificate.virtualAddress 0xffffffff\nset directory.certificate.size 0xffffffff",
    "…the image is signed, its certificate table is at [0xffffffff,0x1fffffffe), needed an unsigned one…",
  ],
  ["no .bss", "set section .bss.name .bsz", "…there is no section .bss, needed one behind all initialised data"],
  [
    "two .bss",
    "section .bss rva=0x20e000 vsize=0x10 flags=bss,read,write\nset optional.sizeOfImage 0x20f000",
    "…there are two sections .bss, at RVA 0x209000 and 0x20e000, needed one",
  ],
  [
    "relocations stripped",
    "set coff.characteristics 0x20f",
    `${RELOCS}Characteristics is 0x20f, needed IMAGE_FILE_RELOCS_STRIPPED (0x1) clear`,
  ],
  [
    "an empty base relocation directory",
    "set directory.relocation.size 0",
    `${RELOCS}data directory 5 is empty, needed a table: Xen runs wherever firmware loads it`,
  ],
  [
    "five data directories",
    "set optional.numberOfRvaAndSizes 5",
    `${RELOCS}data directory 5 is empty, needed a table: Xen runs wherever firmware loads it`,
  ],
  [
    "a base relocation table in no section",
    "set directory.relocation.virtualAddress 0x300000",
    "Cannot read the base relocation table: [0x300000,0x300040) is not inside one section's data",
  ],
  [
    "a base relocation table over a section's end",
    "set directory.relocation.size 0x44",
    "Cannot read the base relocation table: [0x20c000,0x20c044) is not inside one section's data",
  ],
  [
    "a base relocation table that overflows",
    "set directory.relocation.size 0xffffffff",
    "Cannot read the base relocation table: [0x20c000,0x10020bfff) is not inside one section's data",
  ],
  [
    "a block of 0 bytes",
    "in .reloc 4\nu32 0",
    `${RELOCS}block at RVA 0x20c000 is SizeOfBlock 0x0, needed a multiple of 4 from 0x8 to 0x40`,
  ],
  [
    "a block of 7 bytes",
    "in .reloc 4\nu32 7",
    `${RELOCS}block at RVA 0x20c000 is SizeOfBlock 0x7, needed a multiple of 4 from 0x8 to 0x40`,
  ],
  [
    "a block of 10 bytes",
    "in .reloc 4\nu32 10",
    `${RELOCS}block at RVA 0x20c000 is SizeOfBlock 0xa, needed a multiple of 4 from 0x8 to 0x40`,
  ],
  [
    "a block beyond the table",
    "in .reloc 0x38\nu32 0x10",
    `${RELOCS}block at RVA 0x20c034 is SizeOfBlock 0x10, needed a multiple of 4 from 0x8 to 0xc`,
  ],
  [
    "a block that overflows",
    "in .reloc 4\nu32 0xfffffffc",
    `${RELOCS}block at RVA 0x20c000 is SizeOfBlock 0xfffffffc, needed a multiple of 4 from 0x8 to 0x40`,
  ],
  [
    "four bytes behind the last block",
    "set directory.relocation.size 0x38",
    `${RELOCS}block at RVA 0x20c034 is 0x4 bytes long, needed at least 0x8`,
  ],
  [
    "a fix-up of type HIGH",
    "in .data 0x20\nreloc 1",
    `${RELOCS}the entry for RVA 0x208020 has type 1, needed 0, 3 or 10: Xen stops with "Unsupported relocation type"`,
  ],
  [
    "a fix-up of type LOW",
    "in .data 0x20\nreloc 2",
    `${RELOCS}the entry for RVA 0x208020 has type 2, needed 0, 3 or 10: Xen stops with "Unsupported relocation type"`,
  ],
  [
    "a fix-up for .bss",
    "in .bss 0x20\nreloc 10",
    "…a base relocation is for RVA 0x209020, in section .bss, behind .bss at [0x209000,0x20c000), needed in [0x200000,0x208234): .bss must be Xen's last section",
  ],
  [
    "a fix-up for no section",
    "in .data 0x300\nreloc 10",
    "…a base relocation is for RVA 0x208300, in no section, behind .bss at [0x209000,0x20c000), needed in [0x200000,0x208234): .bss must be Xen's last section",
  ],
  [
    "a fix-up over the end of the last data",
    "in .data 0x230\nreloc 10",
    "…a base relocation is for RVA 0x208230, in section .data, behind .bss at [0x209000,0x20c000), needed in [0x200000,0x208234): .bss must be Xen's last section",
  ],
  [
    "a symbol table in the headers",
    "set section .data.read_mostly.name .data.rm\nset section .debug_info.name .debug_i\nset coff.pointerToSymbolTable 0x2f4\nset coff.numberOfSymbols 0",
    "…the COFF symbol table is at 0x2f4, needed at least SizeOfHeaders 0x300",
  ],
  [
    "no entry point",
    "set optional.addressOfEntryPoint 0",
    "…AddressOfEntryPoint is 0x0, in no section, needed in [0x200000,0x208234)",
  ],
  [
    "an entry point in .bss",
    "set optional.addressOfEntryPoint __bss_start",
    "…AddressOfEntryPoint is 0x209000, in section .bss, behind .bss at [0x209000,0x20c000), needed in [0x200000,0x208234): .bss must be Xen's last section",
  ],
];

for (const [what, edits, message] of BAD) {
  bad(`${what}: every step refuses it in one line`, async () => {
    const bytes = sample(edits);
    const pattern = `^${message
      .split("…")
      .map((part) => part.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"))
      .join(".*")}$`;
    const wanted = new RegExp(
      message.startsWith("…")
        ? pattern.replace("^.*", "^Cannot (move \\.reloc|align sections|write the Multiboot headers): ")
        : pattern,
    );
    for (const [command, ...args] of [[relocate], [relocate, "--keep"], [align], [emit]] as const) {
      const { status, stdout, stderr } = await run(command, ["-", "-", ...args], bytes);
      const line = /^<stdin>: ([^\n]*)\n$/.exec(stderr)?.[1] ?? `not one line: ${stderr}`;
      if (!wanted.test(line)) assert.is(line, message);
      assert.is(status, 1);
      assert.is(stdout.length, 0);
    }
  });
}

bad("a table that claims 3.5 GiB takes no memory for it", () => {
  const bytes = sample(
    "set section .reloc.virtualSize 0xe0000000\nset section .debug_info.virtualAddress 0xf0000000\nset optional.sizeOfImage 0xf0001000\nset directory.relocation.size 0xe0000000",
  );
  let most = 0;
  const original = globalThis.Uint8Array;
  class Counting extends original {
    constructor(...args: [number]) {
      if (typeof args[0] === "number") most = Math.max(most, args[0]);
      super(...args);
    }
  }
  Object.assign(globalThis, { Uint8Array: Counting });
  try {
    assert.match(
      attempt(() => relocateReloc(parseImage(bytes), false)) ?? "accepted",
      /^Cannot read the base relocation table: /,
    );
  } finally {
    Object.assign(globalThis, { Uint8Array: original });
  }
  assert.ok(most <= 16 * bytes.length, `${most} bytes for a file of ${bytes.length}`);
});

bad.run();

// ---

const truncated = suite("truncated images");

for (const base of ["tiny", "linear"]) {
  truncated(`${base}, cut anywhere: refused in one line, unless only zeros were cut`, () => {
    const whole = sample("", base);
    const wrong: string[] = [];
    // Every byte of headers and tables; the steps copy the rest, so there a stride does.
    for (
      let end = 0;
      end < whole.length;
      end += base === "tiny" || end < 0x400 || end > whole.length - 0x300 ? 1 : 61
    ) {
      const bytes = whole.slice(0, end);
      const onlyZeros = whole.subarray(end).every((byte) => byte === 0);
      for (const [name, step] of STEPS) {
        if (attempt(() => serializeImage(step(parseImage(bytes)))) === undefined && !onlyZeros)
          wrong.push(`${name} takes it cut at 0x${end.toString(16)}`);
      }
    }
    if (wrong.length !== 0) assert.unreachable(wrong.join("\n"));
  });
}

truncated.run();

// ---

const mutated = suite("mutated images");

/** A small generator of numbers, always the same (mulberry32): no test fails by chance. */
function random(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((((t ^ (t >>> 14)) >>> 0) / 4294967296) * limit) | 0;
  };
}

const INTERESTING = [
  0, 1, 3, 4, 7, 8, 0x28, 0xff, 0x1000, 0x200000, 0x209000, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff,
];
/** More than any step may write from a few kilobytes of this kind. */
const MUCH = 1 << 26;

mutated("4000 of them: nothing but an ImageError is ever thrown", () => {
  const next = random(20251122);
  const bases = [sample(), sample("", "linear"), serializeImage(relocateReloc(parseImage(sample()), false))];
  const headers = 0x300;
  let [refused, accepted] = [0, 0];
  for (let i = 0; i < 4000; i++) {
    const bytes = (bases[i % bases.length] ?? sample()).slice();
    const view = new DataView(bytes.buffer);
    for (let edits = 1 + next(3); edits > 0; edits--) {
      // Most of what decides lies in the headers; the rest is tables and instructions.
      const at = next(4) === 0 ? next(bytes.length - 8) : 0x3c + next(headers - 0x3c - 4);
      if (next(2) === 0) view.setUint32(at & ~3, INTERESTING[next(INTERESTING.length)] ?? 0, true);
      else view.setUint8(at, next(256));
    }
    let image: Image | undefined;
    attempt(() => (image = parseImage(bytes)));
    if (image === undefined) {
      refused++;
      continue;
    }
    for (const [name, step] of STEPS) {
      let result: Image | undefined;
      const message = attempt(() => (result = step(image as Image)));
      if (message !== undefined) refused++;
      if (result === undefined) continue;
      if (result.fileSize > MUCH) continue; // align-sections.test.ts has this
      const written = serializeImage(result);
      // What is written can be read, and says what it should.
      assert.is(
        attempt(() => parseImage(written)),
        undefined,
        `${name}'s output, image ${i}`,
      );
      accepted++;
    }
  }
  assert.ok(refused > 1000 && accepted > 500, `${refused} refused, ${accepted} accepted`);
});

mutated.run();
