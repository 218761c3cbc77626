// SPDX-License-Identifier: GPL-2.0-only
// The structures and numbers of the PE/COFF format, in the order and the words of its specification ("PE Format", by
// Microsoft); Xen's name for a structure (xen/include/efi/pe.h) stands beside it. No code.

import { structure, type Fields } from "./fields.ts";

/** The part of the MS-DOS header that a loader reads (struct mz_hdr): the magic, and at 0x3c where the PE header is. */
export const DOS_MAGIC = 0x5a4d;
export const DOS_HEADER_SIZE = 64;
export const LFANEW_AT = 0x3c;
export const PE_SIGNATURE = 0x00004550;
export const SIGNATURE_SIZE = 4;

/** "COFF File Header" (struct pe_hdr, behind its magic). */
export const COFF_HEADER = structure("COFF file header", 20, [
  ["machine", 2],
  ["numberOfSections", 2],
  ["timeDateStamp", 4],
  ["pointerToSymbolTable", 4],
  ["numberOfSymbols", 4],
  ["sizeOfOptionalHeader", 2],
  ["characteristics", 2],
]);

/** "Optional Header" of PE32+ without its data directories (struct pe32plus_opt_hdr). */
export const OPTIONAL_HEADER = structure("PE32+ optional header", 112, [
  ["magic", 2],
  ["majorLinkerVersion", 1],
  ["minorLinkerVersion", 1],
  ["sizeOfCode", 4],
  ["sizeOfInitializedData", 4],
  ["sizeOfUninitializedData", 4],
  ["addressOfEntryPoint", 4],
  ["baseOfCode", 4],
  ["imageBase", 8],
  ["sectionAlignment", 4],
  ["fileAlignment", 4],
  ["majorOperatingSystemVersion", 2],
  ["minorOperatingSystemVersion", 2],
  ["majorImageVersion", 2],
  ["minorImageVersion", 2],
  ["majorSubsystemVersion", 2],
  ["minorSubsystemVersion", 2],
  ["win32VersionValue", 4],
  ["sizeOfImage", 4],
  ["sizeOfHeaders", 4],
  ["checkSum", 4],
  ["subsystem", 2],
  ["dllCharacteristics", 2],
  ["sizeOfStackReserve", 8],
  ["sizeOfStackCommit", 8],
  ["sizeOfHeapReserve", 8],
  ["sizeOfHeapCommit", 8],
  ["loaderFlags", 4],
  ["numberOfRvaAndSizes", 4],
]);

/** "Optional Header Data Directories" (struct data_dirent). The certificate table's address is a file offset, all others are RVAs. */
export const DATA_DIRECTORY = structure("data directory", 8, [
  ["virtualAddress", 4],
  ["size", 4],
]);

/** "Section Table" (struct section_header). */
export const SECTION_HEADER = structure("section header", 40, [
  ["name", "char8"],
  ["virtualSize", 4],
  ["virtualAddress", 4],
  ["sizeOfRawData", 4],
  ["pointerToRawData", 4],
  ["pointerToRelocations", 4],
  ["pointerToLinenumbers", 4],
  ["numberOfRelocations", 2],
  ["numberOfLinenumbers", 2],
  ["characteristics", 4],
]);

/** ".debug Section", "Debug Directory". */
export const DEBUG_DIRECTORY_ENTRY = structure("debug directory entry", 28, [
  ["characteristics", 4],
  ["timeDateStamp", 4],
  ["majorVersion", 2],
  ["minorVersion", 2],
  ["type", 4],
  ["sizeOfData", 4],
  ["addressOfRawData", 4],
  ["pointerToRawData", 4],
]);

/** "COFF Symbol Table"; auxiliary records have the same size. */
export const SYMBOL = structure("COFF symbol", 18, [
  ["name", "char8"],
  ["value", 4],
  ["sectionNumber", 2],
  ["type", 2],
  ["storageClass", 1],
  ["numberOfAuxSymbols", 1],
]);

export const MACHINE_AMD64 = 0x8664;
export const PE32PLUS_MAGIC = 0x20b;
/** DllCharacteristics. */
export const NX_COMPAT = 0x0100;
/** COFF Characteristics. */
export const RELOCS_STRIPPED = 0x0001;
/** Section flags. */
export const CNT_CODE = 0x00000020;
export const CNT_INITIALIZED_DATA = 0x00000040;
export const CNT_UNINITIALIZED_DATA = 0x00000080;
export const MEM_DISCARDABLE = 0x02000000;
export const MEM_EXECUTE = 0x20000000;
export const MEM_READ = 0x40000000;
export const MEM_WRITE = 0x80000000;
/** "Base Relocation Types". */
export const REL_BASED_ABSOLUTE = 0;
export const REL_BASED_HIGHLOW = 3;
export const REL_BASED_DIR64 = 10;
export const RELOCATION_NAMES: Readonly<Record<number, string>> = {
  [REL_BASED_ABSOLUTE]: "ABSOLUTE",
  1: "HIGH",
  2: "LOW",
  [REL_BASED_HIGHLOW]: "HIGHLOW",
  4: "HIGHADJ",
  [REL_BASED_DIR64]: "DIR64",
};
/** Data directory indices. */
export const DIRECTORY_CERTIFICATE = 4;
export const DIRECTORY_BASE_RELOCATION = 5;
export const DIRECTORY_DEBUG = 6;
export const MAX_DIRECTORIES = 16;

export const PAGE_SIZE = 0x1000;
export const SIZE_2M = 0x200000;
export const ADDRESS_SPACE = 2 ** 32;

export type CoffHeader = Fields<typeof COFF_HEADER.rows>;
export type OptionalHeader = Fields<typeof OPTIONAL_HEADER.rows>;
export type DataDirectory = Fields<typeof DATA_DIRECTORY.rows>;
export type SectionHeader = Fields<typeof SECTION_HEADER.rows>;
export type DebugDirectoryEntry = Fields<typeof DEBUG_DIRECTORY_ENTRY.rows>;

/** What a file is that is no PE image. @param first its first bytes, in hex */
export function otherFile(first: string): string {
  if (first.startsWith("1f8b")) return "not a PE image, but gzip: xen.gz has the ELF, the steps take xen.efi";
  if (first.startsWith("7f454c46")) return "not a PE image, but ELF, as in xen.gz: the steps take xen.efi";
  return "not a PE image";
}
