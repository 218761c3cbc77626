// SPDX-License-Identifier: GPL-2.0-only
// Every constant and every offset that the steps and their judge share, typed anew from the specifications: a slip of the
// pen in the tables would be the one mistake that both make alike.

import { suite } from "uvu";
import * as assert from "uvu/assert";
import { readStructure, writeStructure, type Row, type Structure } from "./fields.ts";
import * as multiboot from "./multiboot.ts";
import * as pe from "./pe.ts";

/** "PE Format": "MS-DOS Stub", "Machine Types", "Section Flags", "Optional Header Data Directories" and so on. */
const PE_NUMBERS: Readonly<Record<string, number>> = {
  DOS_MAGIC: 0x5a4d,
  DOS_HEADER_SIZE: 64,
  LFANEW_AT: 60,
  PE_SIGNATURE: 0x4550,
  SIGNATURE_SIZE: 4,
  MACHINE_AMD64: 0x8664,
  PE32PLUS_MAGIC: 0x20b,
  NX_COMPAT: 0x100,
  RELOCS_STRIPPED: 1,
  CNT_CODE: 0x20,
  CNT_INITIALIZED_DATA: 0x40,
  CNT_UNINITIALIZED_DATA: 0x80,
  MEM_DISCARDABLE: 0x2000000,
  MEM_EXECUTE: 0x20000000,
  MEM_READ: 0x40000000,
  MEM_WRITE: 0x80000000,
  REL_BASED_ABSOLUTE: 0,
  REL_BASED_HIGHLOW: 3,
  REL_BASED_DIR64: 10,
  DIRECTORY_CERTIFICATE: 4,
  DIRECTORY_BASE_RELOCATION: 5,
  DIRECTORY_DEBUG: 6,
  MAX_DIRECTORIES: 16,
  PAGE_SIZE: 4096,
  SIZE_2M: 2097152,
  ADDRESS_SPACE: 4294967296,
};

/** "Multiboot Specification" 0.6.96, 3.1.1 and 3.1.2; "Multiboot2 Specification" 2.0, 3.1.1 to 3.1.13. */
const MULTIBOOT_NUMBERS: Readonly<Record<string, number>> = {
  MB1_MAGIC: 0x1badb002,
  MB1_SEARCH: 8192,
  MB1_ALIGN: 4,
  MB1_AOUT_KLUDGE: 0x10000,
  MB1_VIDEO_MODE: 4,
  MB2_MAGIC: 0xe85250d6,
  MB2_SEARCH: 32768,
  MB2_ALIGN: 8,
  MB2_ARCHITECTURE_I386: 0,
  MB2_TAG_OPTIONAL: 1,
  MB2_END: 0,
  MB2_INFORMATION_REQUEST: 1,
  MB2_ADDRESS: 2,
  MB2_ENTRY_ADDRESS: 3,
  MB2_CONSOLE_FLAGS: 4,
  MB2_FRAMEBUFFER: 5,
  MB2_RELOCATABLE: 10,
};

/** Offset and name of each field, and the size of the whole. */
const PE_FIELDS: Readonly<Record<string, string>> = {
  COFF_HEADER:
    "0 machine 2 numberOfSections 4 timeDateStamp 8 pointerToSymbolTable 12 numberOfSymbols 16 sizeOfOptionalHeader 18 characteristics 20",
  OPTIONAL_HEADER:
    "0 magic 2 majorLinkerVersion 3 minorLinkerVersion 4 sizeOfCode 8 sizeOfInitializedData 12 sizeOfUninitializedData 16 addressOfEntryPoint 20 baseOfCode 24 imageBase 32 sectionAlignment 36 fileAlignment 40 majorOperatingSystemVersion 42 minorOperatingSystemVersion 44 majorImageVersion 46 minorImageVersion 48 majorSubsystemVersion 50 minorSubsystemVersion 52 win32VersionValue 56 sizeOfImage 60 sizeOfHeaders 64 checkSum 68 subsystem 70 dllCharacteristics 72 sizeOfStackReserve 80 sizeOfStackCommit 88 sizeOfHeapReserve 96 sizeOfHeapCommit 104 loaderFlags 108 numberOfRvaAndSizes 112",
  DATA_DIRECTORY: "0 virtualAddress 4 size 8",
  SECTION_HEADER:
    "0 name 8 virtualSize 12 virtualAddress 16 sizeOfRawData 20 pointerToRawData 24 pointerToRelocations 28 pointerToLinenumbers 32 numberOfRelocations 34 numberOfLinenumbers 36 characteristics 40",
  DEBUG_DIRECTORY_ENTRY:
    "0 characteristics 4 timeDateStamp 8 majorVersion 10 minorVersion 12 type 16 sizeOfData 20 addressOfRawData 24 pointerToRawData 28",
  SYMBOL: "0 name 8 value 12 sectionNumber 14 type 16 storageClass 17 numberOfAuxSymbols 18",
};

const MULTIBOOT_FIELDS: Readonly<Record<string, string>> = {
  MB1_HEADER: "0 magic 4 flags 8 checksum 12",
  MB1_ADDRESS_HEADER:
    "0 magic 4 flags 8 checksum 12 headerAddr 16 loadAddr 20 loadEndAddr 24 bssEndAddr 28 entryAddr 32",
  MB2_HEADER: "0 magic 4 architecture 8 headerLength 12 checksum 16",
  MB2_TAG: "0 type 2 flags 4 size 8",
  MB2_ADDRESS_TAG: "0 type 2 flags 4 size 8 headerAddr 12 loadAddr 16 loadEndAddr 20 bssEndAddr 24",
  MB2_ENTRY_ADDRESS_TAG: "0 type 2 flags 4 size 8 entryAddr 12",
  MB2_RELOCATABLE_TAG: "0 type 2 flags 4 size 8 minAddr 12 maxAddr 16 align 20 preference 24",
};

const tables = suite("tables");

for (const [file, exported, numbers, fields] of [
  ["pe.ts", pe, PE_NUMBERS, PE_FIELDS],
  ["multiboot.ts", multiboot, MULTIBOOT_NUMBERS, MULTIBOOT_FIELDS],
] as const) {
  const values = Object.entries(exported) as [string, unknown][];

  tables(`${file}: every number is the specification's`, () => {
    assert.equal(Object.fromEntries(values.filter(([, value]) => typeof value === "number")), numbers);
  });

  tables(`${file}: every field is at the specification's offset, little-endian, read and written`, () => {
    const structures = values.filter((entry): entry is [string, Structure<readonly Row[]>] => isStructure(entry[1]));
    assert.equal(structures.map(([name]) => name).sort(), Object.keys(fields).sort());
    for (const [name, structure] of structures) {
      const words = (fields[name] ?? "").split(" ");
      const size = Number(words.at(-1));
      const bytes = Uint8Array.from({ length: size }, (_, i) => 0xff - i);
      const needed: Record<string, number | bigint | string> = {};
      for (let i = 0; i + 2 < words.length; i += 2) {
        const [start, end] = [Number(words[i]), Number(words[i + 2])];
        const field = [...bytes.subarray(start, end)];
        const value = field.reduceRight((sum, byte) => sum * 256n + BigInt(byte), 0n);
        const isText = words[i + 1] === "name";
        needed[words[i + 1] ?? ""] = isText
          ? String.fromCharCode(...field)
          : field.length === 8
            ? value
            : Number(value);
      }
      const shifted = new Uint8Array(size + 3);
      shifted.set(bytes, 3);
      const found = readStructure(structure, shifted, 3);
      assert.equal(found, needed, name);
      const written = new Uint8Array(size);
      writeStructure(structure, found, written, 0);
      assert.equal(written, bytes, name);
      assert.is(structure.size, size, name);
    }
  });
}

tables("multiboot.ts: the names of tags are those of the specification's types", () => {
  const names =
    "END INFORMATION_REQUEST ADDRESS ENTRY_ADDRESS CONSOLE_FLAGS FRAMEBUFFER MODULE_ALIGN EFI_BS ENTRY_ADDRESS_EFI32 ENTRY_ADDRESS_EFI64 RELOCATABLE";
  assert.equal(multiboot.MB2_TAG_NAMES, names.split(" "));
});

tables("pe.ts: the names of base relocations are those of the specification's types", () => {
  const names = { 0: "ABSOLUTE", 1: "HIGH", 2: "LOW", 3: "HIGHLOW", 4: "HIGHADJ", 10: "DIR64" };
  assert.equal(pe.RELOCATION_NAMES, names);
});

function isStructure(value: unknown): boolean {
  return typeof value === "object" && value !== null && "rows" in value;
}

tables.run();
