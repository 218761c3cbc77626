// SPDX-License-Identifier: GPL-2.0-only
// What loaders look for at an image's entry point and in its base relocation table, and whether the table will be in
// memory when Xen walks it. As in checks.ts each check is one question.

import { hex, range } from "../cli/numbers.ts";
import { hasFlags, sectionAt, sectionEnd, type Pe, type Section } from "../judge/read.ts";
import { DIRECTORY_BASE_RELOCATION, MEM_DISCARDABLE, MEM_READ, type SectionHeader } from "../tables/pe.ts";
import { isStoredAs } from "./checks.ts";
import type { Evidence } from "./facts.ts";
import { repeatedText, type Corruption } from "./relocation-table.ts";
import type { Check } from "./rules.ts";

// ---- the entry point

export const entryOutsideImage: Check = ({ image: { optional: o } }) =>
  o.addressOfEntryPoint >= o.sizeOfImage &&
  `AddressOfEntryPoint is ${hex(o.addressOfEntryPoint)}, SizeOfImage is ${hex(o.sizeOfImage)}`;

/** Which sections a loader looks at. */
type Looked = (section: Section) => boolean;
const readable: Looked = (section) => hasFlags(section, MEM_READ);
const all: Looked = () => true;

/** Whether the entry point is in one section; a section's last byte does not count. */
function entryChecks(size: (header: SectionHeader) => number, looked: Looked): { nowhere: Check; several: Check } {
  const holders = ({ sections, optional: { addressOfEntryPoint: entry } }: Pe): Section[] =>
    sections.filter(
      (s) => looked(s) && s.header.virtualAddress <= entry && entry < s.header.virtualAddress + size(s.header) - 1,
    );
  return {
    nowhere: ({ image }) =>
      holders(image).length === 0 &&
      `AddressOfEntryPoint is ${hex(image.optional.addressOfEntryPoint)}, needed inside a section`,
    several: ({ image }) => {
      const names = holders(image).map((s) => s.name);
      const entry = `AddressOfEntryPoint ${hex(image.optional.addressOfEntryPoint)}`;
      const why = `${entry} is in ${names.length} sections: ${names.slice(0, 3).join(", ")}`;
      return names.length > 1 && { why, args: [names.length] };
    },
  };
}

export const entryByVirtualSize = entryChecks((h) => h.virtualSize, readable);
export const entryByRawSize = entryChecks((h) => h.sizeOfRawData, all);

// ---- base relocations

const tableRange = ({ start, size }: Evidence["relocations"]): string => range(start, start + size);

export const tableOutsideImage: Check = ({ relocations: r, image: { optional } }) =>
  r.size !== 0 &&
  r.start + r.size > optional.sizeOfImage &&
  `the base relocation table is at RVA ${tableRange(r)}, SizeOfImage is ${hex(optional.sizeOfImage)}`;

export const noTable: Check = ({ relocations: r }) =>
  r.size === 0 && "data directory 5 is empty, needed a base relocation table";

export const fewDirectories: Check = ({ image }) =>
  image.directories.length <= DIRECTORY_BASE_RELOCATION &&
  `NumberOfRvaAndSizes is ${image.directories.length}, needed at least ${DIRECTORY_BASE_RELOCATION + 1}`;

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

/** @param args what the loader's message has in it, in its order */
export function typeNotIn(
  known: readonly number[],
  args: (type: number, rva: number) => number[] = (type, rva) => [type, rva],
): Check {
  return ({ relocations: { types } }) => {
    const [type, rva] = [...types].find(([type]) => !known.includes(type)) ?? [];
    if (type === undefined || rva === undefined) return undefined;
    const why = `the base relocation for RVA ${hex(rva)} has type ${type}, needed ${known.join(", ")}`;
    return { why, args: args(type, rva) };
  };
}

export const targetOutsideImage: Check = ({ relocations: { highest }, image }) =>
  highest >= image.optional.sizeOfImage &&
  `a base relocation is for RVA ${hex(highest)}, SizeOfImage is ${hex(image.optional.sizeOfImage)}`;

export const targetRepeated: Check = ({ relocations: { repeated } }) =>
  repeated !== undefined &&
  `${repeatedText(repeated)}: the loader adds to what is there more than once, Xen takes that back once`;

export const targetNotWritable: Check = ({ relocations: { unwritable: u } }) =>
  u !== undefined && `a base relocation is for RVA ${hex(u.rva)} in ${u.section}, which is not writable`;

// ---- the section .reloc, by which shim and Red Hat's GRUB relocate

function relocSectionChecks(looked: Looked): { none: Check; several: Check; isNotTable: Check } {
  const relocs = (image: Pe): Section[] => image.sections.filter((s) => isStoredAs(s, ".reloc") && looked(s));
  return {
    none: ({ image }) =>
      relocs(image).length === 0 &&
      'no readable section has the name ".reloc\\0\\0", which is compared byte by byte: nothing is relocated',
    several: ({ image }) => relocs(image).length > 1 && "there are two sections .reloc, needed one",
    // It has to start where data directory 5 says, and be as long.
    isNotTable: ({ image, relocations: r }) => {
      const wrong = relocs(image).find(
        (s) =>
          s.header.virtualSize === 0 ||
          s.header.sizeOfRawData === 0 ||
          sectionEnd(s) > image.optional.sizeOfImage ||
          s.header.virtualAddress !== r.start ||
          r.size > s.header.virtualSize,
      );
      if (wrong === undefined) return undefined;
      return (
        `section .reloc is at RVA ${range(wrong.header.virtualAddress, sectionEnd(wrong))} with ` +
        `${hex(wrong.header.sizeOfRawData)} bytes of raw data, needed at data directory 5, ${tableRange(r)}`
      );
    },
  };
}

export const readableReloc = relocSectionChecks(readable);
export const anyReloc = relocSectionChecks(all);

/** Xen walks the table in memory, by linker symbols, whatever the loader has put there. */
export const tableNotLoaded: Check = ({ image, relocations: r }) => {
  const section = r.size === 0 ? undefined : sectionAt(image, r.start);
  if (section === undefined || !hasFlags(section, MEM_DISCARDABLE)) return undefined;
  const flags = hex(section.header.characteristics);
  return `section ${section.name} is discardable (${flags}), so it is not loaded, but Xen reads the table in memory`;
};
