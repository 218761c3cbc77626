// SPDX-License-Identifier: GPL-2.0-only
// A PE image in memory, and questions about it. parse.ts makes one of a file, serialize.ts makes a file of one; transforms
// make a new one and leave the old one as it was.

import { offsetOf } from "../tables/fields.ts";
import * as pe from "../tables/pe.ts";

export interface Section {
  /** The name after "/N" was resolved through the string table. */
  readonly name: string;
  readonly header: pe.SectionHeader;
  /** The section's data: its first min(VirtualSize, SizeOfRawData) raw bytes. The rest is padding. */
  readonly data: Uint8Array;
}

export interface Image {
  /** File offset of the PE signature (e_lfanew). */
  readonly lfanew: number;
  readonly coff: pe.CoffHeader;
  readonly optional: pe.OptionalHeader;
  readonly directories: readonly pe.DataDirectory[];
  /** In the order of the section table. */
  readonly sections: readonly Section[];
  /** COFF symbol records; empty without a symbol table. */
  readonly symbols: Uint8Array;
  /** COFF string table with its four bytes of length; empty where the file has none. */
  readonly strings: Uint8Array;
  /** Bytes of the whole file. */
  readonly fileSize: number;
  /** What the file holds where nothing above says otherwise (stub, gaps, padding); past its end there are zeros. */
  readonly background: Uint8Array;
}

/** The least multiple of `unit` that is not below `value`. Not done with bit operations: those are 32 bits wide and signed. */
export function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}

// ---- sections

/** The RVA behind a section: VirtualAddress + VirtualSize. */
export function sectionEnd({ header }: Section): number {
  return header.virtualAddress + header.virtualSize;
}

/** Sections in RVA order; those of the same RVA stay in the table's order. */
export function byAddress(sections: readonly Section[]): Section[] {
  return [...sections].sort((a, b) => a.header.virtualAddress - b.header.virtualAddress);
}

/** Whether any of the flags is set; bit operations on 32 flags would come out negative. */
export function hasFlags(section: Section, flags: number): boolean {
  return (section.header.characteristics & flags) !== 0;
}

/** The section with these header fields (and perhaps other data) instead of its own. */
export function withHeader(section: Section, fields: Partial<pe.SectionHeader>, data = section.data): Section {
  return { ...section, header: { ...section.header, ...fields }, data };
}

/**
 * The section that an RVA lies in, through [VirtualAddress, VirtualAddress + VirtualSize) only: raw padding may reach
 * over the next section. Of sections that overlap, the first in the table.
 */
export function sectionAt({ sections }: Image, rva: number): Section | undefined {
  return sections.find((section) => rva >= section.header.virtualAddress && rva < sectionEnd(section));
}

/**
 * Whether this is a debug section that ends beyond SizeOfImage. Old GNU ld puts one that its script does not know there
 * (.debug_str_offsets of clang builds, at 0xc0000000), and firmware then refuses the whole image, silently.
 */
export function isStrayDebug(image: Image, section: Section): boolean {
  return section.name.startsWith(".debug_") && sectionEnd(section) > image.optional.sizeOfImage;
}

// ---- where the headers are, as file offsets

export function optionalHeaderAt({ lfanew }: Image): number {
  return lfanew + pe.SIGNATURE_SIZE + pe.COFF_HEADER.size;
}

export function checkSumAt(image: Image): number {
  return optionalHeaderAt(image) + offsetOf(pe.OPTIONAL_HEADER, "checkSum");
}

/** @param index the directory's, or the number of directories for the end of them all */
export function directoryAt(image: Image, index: number): number {
  return optionalHeaderAt(image) + pe.OPTIONAL_HEADER.size + index * pe.DATA_DIRECTORY.size;
}

export function sectionTableAt(image: Image): number {
  return directoryAt(image, image.directories.length);
}

/** The file offset behind the section table. */
export function sectionTableEnd(image: Image): number {
  return sectionTableAt(image) + image.sections.length * pe.SECTION_HEADER.size;
}
