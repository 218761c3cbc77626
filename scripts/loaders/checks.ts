// SPDX-License-Identifier: GPL-2.0-only
// What loaders look for in the headers and sections of a PE image. Each check is one question, asked by one or more of
// the profiles, and says what it found and what would be needed; the profiles add whose rule it is and the words.

import { hex, range } from "../cli/numbers.ts";
import type { Problem } from "../judge/authenticode.ts";
import { byAddress, directoryOf, hasFlags, roundUp, sectionAt, sectionEnd, tableEnd } from "../judge/read.ts";
import type { Pe, Section } from "../judge/read.ts";
import { readStructure } from "../tables/fields.ts";
import * as pe from "../tables/pe.ts";
import type { Evidence } from "./facts.ts";
import type { Check } from "./rules.ts";

/** A check that is made only of some images. */
export function onlyIf(holds: (evidence: Evidence) => boolean, check: Check): Check {
  return (evidence) => (holds(evidence) ? check(evidence) : undefined);
}

// ---- headers

/** EDK2 and shim want room in SizeOfImage for more section headers than there are. */
export const imageHasNoRoomForTable: Check = ({ image }) => {
  const { sizeOfImage } = image.optional;
  const needed = tableEnd(image) + pe.SECTION_HEADER.size;
  return (
    sizeOfImage < needed &&
    `SizeOfImage is ${hex(sizeOfImage)}, needed more than the section table, up to ${hex(needed)}`
  );
};

export const headersFillImage: Check = ({ image: { optional: o } }) =>
  o.sizeOfHeaders >= o.sizeOfImage &&
  `SizeOfHeaders is ${hex(o.sizeOfHeaders)}, needed below SizeOfImage ${hex(o.sizeOfImage)}`;

export const imageBelowHeaders: Check = ({ image: { optional: o } }) =>
  o.sizeOfImage < o.sizeOfHeaders &&
  `SizeOfImage is ${hex(o.sizeOfImage)}, needed at least SizeOfHeaders ${hex(o.sizeOfHeaders)}`;

export function subsystemIsNot(...taken: readonly number[]): Check {
  return ({ image: { optional: o } }) =>
    !taken.includes(o.subsystem) && `Subsystem is ${o.subsystem}, needed ${taken.join(" or ")} (EFI)`;
}

export const relocationsStripped: Check = ({ image: { coff } }) =>
  (coff.characteristics & pe.RELOCS_STRIPPED) !== 0 &&
  `Characteristics is ${hex(coff.characteristics)}, IMAGE_FILE_RELOCS_STRIPPED is set`;

export const oddFileAlignment: Check = ({ image: { optional: o } }) =>
  o.fileAlignment % 2 !== 0 && {
    why: `FileAlignment is ${o.fileAlignment}, needed an even number`,
    args: [o.fileAlignment],
  };

export const sectionAlignmentNoPowerOfTwo: Check = ({ image: { optional: o } }) => {
  const { sectionAlignment: a } = o;
  // Of 0 the logarithm is no number.
  return !Number.isInteger(Math.log2(a)) && `SectionAlignment is ${hex(a)}, needed a power of two`;
};

/** A question about the place of the certificate table; where there is none, there is nothing to ask. */
function certificateCheck(wrong: (end: number, fileEnd: number) => string | false): Check {
  return ({ image }) => {
    const { virtualAddress, size } = directoryOf(image, pe.DIRECTORY_CERTIFICATE);
    const end = virtualAddress + size;
    const needed = size !== 0 && wrong(end, image.bytes.length);
    return needed && `the certificate table is at ${range(virtualAddress, end)}, ${needed}`;
  };
}

export const certificateOutsideFile = certificateCheck(
  (end, fileEnd) => end > fileEnd && `the file ends at ${hex(fileEnd)}`,
);

/** As firmware, shim and every signer want it (PE specification, "Attribute Certificate Table"). */
export const certificateNotLast = certificateCheck(
  (end, fileEnd) => end !== fileEnd && `needed at the end of the file, ${hex(fileEnd)}`,
);

/** EDK2 looks for CODEVIEW entries; it needs to be able to read each entry. */
export const debugEntriesOutsideFile: Check = ({ image }) => {
  const { virtualAddress, size } = directoryOf(image, pe.DIRECTORY_DEBUG);
  const section = size === 0 ? undefined : sectionAt(image, virtualAddress);
  if (section === undefined) return undefined;
  const start = section.header.pointerToRawData + virtualAddress - section.header.virtualAddress;
  return (
    start + size > image.bytes.length &&
    `the debug directory is at offset ${range(start, start + size)}, the file ends at ${hex(image.bytes.length)}`
  );
};

const CODEVIEW = 2;
/** "RSDS", a GUID and an age. */
const RSDS_SIZE = 24;
const RSDS = "RSDS";

export const codeviewTooSmall: Check = ({ image }) => {
  const { virtualAddress, size } = directoryOf(image, pe.DIRECTORY_DEBUG);
  const table = dataFrom(image, virtualAddress, size);
  for (let at = 0; at + pe.DEBUG_DIRECTORY_ENTRY.size <= table.length; at += pe.DEBUG_DIRECTORY_ENTRY.size) {
    const { type, sizeOfData, addressOfRawData } = readStructure(pe.DEBUG_DIRECTORY_ENTRY, table, at);
    if (type !== CODEVIEW || sizeOfData >= RSDS_SIZE || addressOfRawData === 0) continue;
    if (String.fromCharCode(...dataFrom(image, addressOfRawData, RSDS.length)) !== RSDS) continue;
    return (
      `the CODEVIEW debug entry at RVA ${hex(virtualAddress + at)} has SizeOfData ` +
      `${hex(sizeOfData)}, needed at least ${hex(RSDS_SIZE)} for "RSDS"`
    );
  }
  return undefined;
};

/** As many of `size` bytes from an RVA on as one section's data has. */
function dataFrom(image: Pe, rva: number, size: number): Uint8Array {
  const section = sectionAt(image, rva);
  const from = rva - (section?.header.virtualAddress ?? rva);
  return section?.data.subarray(from, from + size) ?? new Uint8Array(0);
}

// ---- signatures

/** What would be wrong with a signature over the file. */
export function hashProblem(...kinds: readonly Problem["kind"][]): Check {
  return ({ hash }) => hash.problems.find(({ kind }) => kinds.includes(kind))?.text;
}

export const unsigned: Check = ({ hash }) => !hash.signed && "the file is not signed yet";

// ---- sections

/** The first section for which `found` gives a reason; messages that name a section do it by its place in the table. */
export function anySection(found: (section: Section, image: Pe) => string | false | undefined): Check {
  return ({ image }) => {
    for (const [index, section] of image.sections.entries()) {
      const reason = found(section, image);
      if (reason !== undefined && reason !== false) return { why: `section ${section.name} ${reason}`, args: [index] };
    }
    return undefined;
  };
}

/** Whether it has this name in the eight bytes of the header: one from the string table is none to most loaders. */
export function isStoredAs({ header }: Section, name: string): boolean {
  return header.name === name.padEnd(8, "\0");
}

const outside = (rva: number, { optional }: Pe): boolean => rva >= optional.sizeOfImage;
const discardable = (section: Section): boolean => hasFlags(section, pe.MEM_DISCARDABLE);

/** Where a section is in memory, and how long that is. */
export function placeIn(section: Section, { optional }: Pe): string {
  const { virtualAddress } = section.header;
  return `is at RVA ${range(virtualAddress, sectionEnd(section))}, SizeOfImage is ${hex(optional.sizeOfImage)}`;
}

/** EDK2, for whatever has data, DWARF included. The last byte is what counts. */
export const dataOutsideImage = anySection(
  (s, image) =>
    s.header.sizeOfRawData !== 0 &&
    (outside(s.header.virtualAddress, image) || outside(sectionEnd(s) - 1, image)) &&
    placeIn(s, image),
);

/** GRUB's peimage: every section, with data or without. */
export const sectionOutsideImage = anySection(
  (s, image) => sectionEnd(s) > image.optional.sizeOfImage && placeIn(s, image),
);

const inHeaders = ({ header: h }: Section, { optional: { sizeOfHeaders } }: Pe): boolean =>
  h.virtualAddress < sizeOfHeaders || h.pointerToRawData < sizeOfHeaders;

const inHeadersText = ({ header: h }: Section, { optional }: Pe): string =>
  `is at RVA ${hex(h.virtualAddress)} and offset ${hex(h.pointerToRawData)}, needed both from SizeOfHeaders ` +
  `${hex(optional.sizeOfHeaders)} on`;

export const dataInsideHeaders = anySection(
  (s, image) => s.header.sizeOfRawData !== 0 && inHeaders(s, image) && inHeadersText(s, image),
);

/** shim and Red Hat's GRUB: nothing but UNINITIALIZED_DATA may point into the headers, not even without data. */
export const notUninitialisedInsideHeaders = anySection(
  (s, image) =>
    !hasFlags(s, pe.CNT_UNINITIALIZED_DATA) &&
    inHeaders(s, image) &&
    `${inHeadersText(s, image)}, or UNINITIALIZED_DATA`,
);

export const sectionInsideHeaders = anySection(
  ({ header: h }, { optional: { sizeOfHeaders } }) =>
    h.virtualAddress < sizeOfHeaders &&
    `is at RVA ${hex(h.virtualAddress)}, needed from SizeOfHeaders ${hex(sizeOfHeaders)} on`,
);

export const rawInsideHeaders = anySection(
  ({ header: h }, { optional: { sizeOfHeaders } }) =>
    h.sizeOfRawData !== 0 &&
    h.pointerToRawData < sizeOfHeaders &&
    `has its raw data at ${hex(h.pointerToRawData)}, needed from SizeOfHeaders ${hex(sizeOfHeaders)} on`,
);

/** Also where there is no data: an offset far out is read as a length, too. */
export const rawOutsideFile = anySection(({ header: h }, { bytes }) => {
  const end = h.pointerToRawData + h.sizeOfRawData;
  return (
    end > bytes.length && `has its raw data at ${range(h.pointerToRawData, end)}, the file ends at ${hex(bytes.length)}`
  );
});

export const baseOutsideImage = anySection(
  (s, image) => !discardable(s) && outside(s.header.virtualAddress, image) && placeIn(s, image),
);

/** RVA of a section's last byte in 32 bits, as loaders count: of an empty section at 0 it is 0xffffffff. */
const lastByte = (section: Section): number => (sectionEnd(section) - 1) >>> 0;
const lastByteOutside = (s: Section, image: Pe): boolean => !discardable(s) && outside(lastByte(s), image);

/** What shim calls "zero size". */
export const endOutsideImage = anySection(
  (s, image) => lastByteOutside(s, image) && !outside(s.header.virtualAddress, image) && placeIn(s, image),
);

/** An address that is outside counts as 0, so a discardable section must be all inside or all outside. */
export const negativeSize = anySection((s, image) => {
  const value = (rva: number): number => (outside(rva, image) ? 0 : rva);
  const { sizeOfImage } = image.optional;
  // Of a last byte that is outside the rules before have said it.
  return lastByteOutside(s, image) || value(lastByte(s)) >= value(s.header.virtualAddress)
    ? undefined
    : `is at RVA ${range(s.header.virtualAddress, sectionEnd(s))}, needed a VirtualSize, and all of it inside or ` +
        `outside SizeOfImage ${hex(sizeOfImage)}`;
});

export const rawLargerThanVirtual = anySection(
  ({ header: h }) =>
    h.sizeOfRawData > roundUp(h.virtualSize, pe.PAGE_SIZE) &&
    `has ${hex(h.sizeOfRawData)} bytes of raw data, needed at most VirtualSize rounded up to a page, ` +
      `${hex(roundUp(h.virtualSize, pe.PAGE_SIZE))}`,
);

const MOST_UNSORTED = 1000;

/**
 * Raw data that is copied whole, and so reaches over what follows. Sections are loaded in the table's order: it does
 * harm only where the section it reaches into was loaded before.
 */
function rawReaches(loaded: (section: Section) => boolean): Check {
  return ({ image }) => {
    const done: Section[] = [];
    for (const section of image.sections.filter(loaded)) {
      const { virtualAddress: start, sizeOfRawData } = section.header;
      const end = start + sizeOfRawData;
      const reach = `section ${section.name}'s raw data reaches up to RVA ${hex(end)}`;
      if (end > image.optional.sizeOfImage)
        return `${reach}, SizeOfImage is ${hex(image.optional.sizeOfImage)}: memory behind it is overwritten`;
      // In a table by address no earlier section can be behind; otherwise each has to be looked at.
      if ((done.at(-1)?.header.virtualAddress ?? 0) > start) {
        const hit = done.find(
          ({ header: h }) => h.virtualSize !== 0 && h.virtualAddress >= start && h.virtualAddress < end,
        );
        if (hit !== undefined) return `${reach}, into section ${hit.name}, which is loaded before it`;
        if (done.length > MOST_UNSORTED) return "its sections are not in the order of their addresses";
      }
      done.push(section);
    }
    return undefined;
  };
}

export const rawReachesOver = rawReaches(() => true);
export const rawReachesOverUnlessDiscarded = rawReaches((s) => !discardable(s));

/**
 * Sections that share memory. No loader refuses them: it writes one over the other, and the second to be loaded stays.
 * @param loaded whether the loader puts a section into memory at all
 * @param backwards whether it begins with the last section of the table
 */
function overlap(loaded: (section: Section) => boolean, backwards = false): Check {
  return ({ image: { sections } }) => {
    let low: Section | undefined;
    for (const high of byAddress(sections.filter((s) => loaded(s) && memorySize(s) !== 0))) {
      if (low !== undefined && high.header.virtualAddress < memoryEnd(low)) {
        const swapped = sections.indexOf(low) > sections.indexOf(high) !== backwards;
        const [lost, kept] = swapped ? [high, low] : [low, high];
        return `section ${placed(kept)} is loaded over section ${placed(lost)}`;
      }
      if (low === undefined || memoryEnd(high) > memoryEnd(low)) low = high;
    }
    return undefined;
  };
}

/** Where there is no VirtualSize, it is SizeOfRawData that is loaded. */
const memorySize = ({ header }: Section): number => header.virtualSize || header.sizeOfRawData;
const memoryEnd = (section: Section): number => section.header.virtualAddress + memorySize(section);
const placed = (s: Section): string => `${s.name} at RVA ${range(s.header.virtualAddress, memoryEnd(s))}`;

export const anyOverlap = overlap(() => true);
export const anyOverlapBackwards = overlap(() => true, true);
export const overlapUnlessDiscarded = overlap((s) => !discardable(s));
export const readableOverlap = overlap((s) => !discardable(s) && hasFlags(s, pe.MEM_READ));

// ---- NX

export const claimsNx = ({ image }: Evidence): boolean => (image.optional.dllCharacteristics & pe.NX_COMPAT) !== 0;

export const notNxCompat: Check = (evidence) =>
  !claimsNx(evidence) &&
  `DllCharacteristics is ${hex(evidence.image.optional.dllCharacteristics)}, needed NX_COMPAT (${hex(pe.NX_COMPAT)})`;

const sectionAlignmentBelowPage: Check = ({ image: { optional: o } }) =>
  o.sectionAlignment < pe.PAGE_SIZE &&
  `SectionAlignment is ${hex(o.sectionAlignment)}, needed at least ${hex(pe.PAGE_SIZE)}`;

export const notPageAligned = anySection(
  ({ header: h }) =>
    h.virtualAddress % pe.PAGE_SIZE !== 0 && `is at RVA ${hex(h.virtualAddress)}, which is not page-aligned`,
);

const writableAndExecutable = (s: Section): string | false =>
  hasFlags(s, pe.MEM_WRITE) && hasFlags(s, pe.MEM_EXECUTE) && "is writable and executable";

export const anyWritableAndExecutable = anySection(writableAndExecutable);
/** Of those that shim loads. */
export const loadedWritableAndExecutable = anySection(
  (s) => hasFlags(s, pe.MEM_READ) && !discardable(s) && writableAndExecutable(s),
);

// What the claim promises.
export const nxAlignmentBelowPage = onlyIf(claimsNx, sectionAlignmentBelowPage);
export const nxNotPageAligned = onlyIf(claimsNx, notPageAligned);
export const nxWritableAndExecutable = onlyIf(claimsNx, anyWritableAndExecutable);
