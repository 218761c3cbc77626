// SPDX-License-Identifier: GPL-2.0-only
// What loaders look for at an image's entry point and in its base relocation table, and whether the table will be in
// memory when Xen walks it. As in loader-checks.ts each check is one question.

import { hex, range } from "../cli/numbers.ts";
import type { Corruption, Evidence } from "./facts.ts";
import type { Check, Trip } from "./rules.ts";
import { hasFlags, sectionAt, sectionEnd } from "../pe/image.ts";
import type { Image, Section } from "../pe/image.ts";
import { DIRECTORY_BASE_RELOCATION, MEM_DISCARDABLE, MEM_READ } from "../tables/pe.ts";
import type { SectionHeader } from "../tables/pe.ts";

// ---- the entry point

export const entryOutsideImage: Check = ({ image: { optional: o } }) =>
  o.addressOfEntryPoint < o.sizeOfImage
    ? undefined
    : `AddressOfEntryPoint is ${hex(o.addressOfEntryPoint)}, SizeOfImage is ${hex(o.sizeOfImage)}`;

type EntrySections = (image: Image) => Section[];

/** The last byte of a section does not count. */
function entrySections(size: (header: SectionHeader) => number, loaded: (section: Section) => boolean): EntrySections {
  return ({ sections, optional: { addressOfEntryPoint: entry } }) =>
    sections.filter(
      (s) => loaded(s) && s.header.virtualAddress <= entry && entry < s.header.virtualAddress + size(s.header) - 1,
    );
}

export const entryByVirtualSize = entrySections(
  (h) => h.virtualSize,
  (s) => hasFlags(s, MEM_READ),
);
export const entryByRawSize = entrySections(
  (h) => h.sizeOfRawData,
  () => true,
);

export function entryInNoSection(of: EntrySections): Check {
  return ({ image }) =>
    of(image).length !== 0
      ? undefined
      : `AddressOfEntryPoint is ${hex(image.optional.addressOfEntryPoint)}, needed inside a section`;
}

export function entryInSeveralSections(of: EntrySections): Check {
  return ({ image }) => {
    const found = of(image);
    if (found.length < 2) return undefined;
    const names = found
      .slice(0, 3)
      .map((s) => s.name)
      .join(", ");
    return {
      why: `AddressOfEntryPoint ${hex(image.optional.addressOfEntryPoint)} is in ${found.length} sections: ${names}`,
      args: [found.length],
    };
  };
}

// ---- base relocations

const inEvidence = ({ relocations: r }: Evidence): string =>
  `the base relocation table is at RVA ${range(r.start, r.start + r.size)}`;

export const tableOutsideImage: Check = (evidence) => {
  const { relocations: r, image } = evidence;
  return r.size === 0 || r.start + r.size <= image.optional.sizeOfImage
    ? undefined
    : `${inEvidence(evidence)}, SizeOfImage is ${hex(image.optional.sizeOfImage)}`;
};

export const noTable: Check = ({ relocations: r }) =>
  r.size !== 0 ? undefined : "data directory 5 is empty, needed a base relocation table";

export const fewDirectories: Check = ({ image }) =>
  image.directories.length > DIRECTORY_BASE_RELOCATION
    ? undefined
    : `NumberOfRvaAndSizes is ${image.directories.length}, needed at least ${DIRECTORY_BASE_RELOCATION + 1}`;

/** A table that cannot be followed to its end, for one of these reasons, or for any. */
export function corruptTable(...how: readonly Corruption[]): Check {
  return ({ relocations: { corrupt, size } }) => {
    if (corrupt === undefined || (how.length !== 0 && !how.includes(corrupt.how))) return undefined;
    return { why: corrupt.why, args: [corrupt.block, corrupt.size, size] };
  };
}

/** The types that the PE specification gives for this machine and its loaders know: none, HIGH, LOW, HIGHLOW, DIR64. */
export const LOADER_TYPES: readonly number[] = [0, 1, 2, 3, 10];
export const XEN_TYPES: readonly number[] = [0, 3, 10];

export function typeNotIn(
  known: readonly number[],
  args: (type: number, rva: number) => number[] = (type) => [type],
): Check {
  return ({ relocations: { types } }): Trip | undefined => {
    for (const [type, rva] of types) {
      if (!known.includes(type)) {
        return {
          why: `the base relocation for RVA ${hex(rva)} has type ${type}, needed ${known.join(", ")}`,
          args: args(type, rva),
        };
      }
    }
    return undefined;
  };
}

export const targetOutsideImage: Check = ({ relocations: { beyondImage }, image }) =>
  beyondImage === undefined
    ? undefined
    : `a base relocation is for RVA ${hex(beyondImage)}, SizeOfImage is ${hex(image.optional.sizeOfImage)}`;

export const targetNotWritable: Check = ({ relocations: { unwritable: u } }) =>
  u === undefined ? undefined : `a base relocation is for RVA ${hex(u.rva)} in ${u.section}, which is not writable`;

// ---- the section .reloc, by which shim and Red Hat's GRUB relocate

export function relocSections({ sections }: Image, loaded: (section: Section) => boolean): Section[] {
  // By the eight bytes of the header: a name from the string table is none.
  return sections.filter((s) => s.header.name === ".reloc\0\0" && loaded(s));
}

export const readable = (section: Section): boolean => hasFlags(section, MEM_READ);

export function severalRelocSections(loaded: (section: Section) => boolean): Check {
  return ({ image }) =>
    relocSections(image, loaded).length < 2 ? undefined : "there are two sections .reloc, needed one";
}

export function noRelocSection(loaded: (section: Section) => boolean): Check {
  return ({ image }) =>
    relocSections(image, loaded).length !== 0 ? undefined : "there is no readable section .reloc: nothing is relocated";
}

/** Whether a section .reloc is the table: it starts where data directory 5 says, and is as long. */
export function relocSectionIsNotTable(loaded: (section: Section) => boolean): Check {
  return ({ image, relocations: r }) => {
    const wrong = relocSections(image, loaded).find((s) => {
      const { virtualAddress, virtualSize, sizeOfRawData } = s.header;
      return (
        virtualSize === 0 ||
        sizeOfRawData === 0 ||
        sectionEnd(s) > image.optional.sizeOfImage ||
        virtualAddress !== r.start ||
        r.size > virtualSize
      );
    });
    if (wrong === undefined) return undefined;
    return (
      `section .reloc is at RVA ${range(wrong.header.virtualAddress, sectionEnd(wrong))} with ` +
      `${hex(wrong.header.sizeOfRawData)} bytes of raw data, needed at data directory 5, ${range(
        r.start,
        r.start + r.size,
      )}`
    );
  };
}

/** Xen walks the table in memory, by linker symbols, whatever the loader has put there. */
export const tableNotLoaded: Check = ({ image, relocations: r }) => {
  const section = r.size === 0 ? undefined : sectionAt(image, r.start);
  return section === undefined || !hasFlags(section, MEM_DISCARDABLE)
    ? undefined
    : `section ${section.name} is discardable (` +
        `${hex(section.header.characteristics)}), so it is not loaded, but Xen reads the table in memory`;
};
