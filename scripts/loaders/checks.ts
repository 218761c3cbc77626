// SPDX-License-Identifier: GPL-2.0-only
// What loaders look for in the headers and sections of a PE image. Each check is one question, asked by one or more of
// the profiles, and says what it found and what would be needed; the profiles add whose rule it is and the words.

import { hex, range } from "../cli/numbers.ts";
import type { Check } from "./rules.ts";
import type { Problem } from "../judge/authenticode.ts";
import { hasFlags, roundUp, sectionAt, sectionEnd, sectionTableEnd } from "../pe/image.ts";
import type { Image, Section } from "../pe/image.ts";
import { readStructure } from "../tables/fields.ts";
import {
  CNT_UNINITIALIZED_DATA,
  DEBUG_DIRECTORY_ENTRY,
  DIRECTORY_CERTIFICATE,
  DIRECTORY_DEBUG,
  MEM_DISCARDABLE,
  MEM_EXECUTE,
  MEM_READ,
  MEM_WRITE,
  NX_COMPAT,
  PAGE_SIZE,
  RELOCS_STRIPPED,
  SECTION_HEADER,
} from "../tables/pe.ts";
import type { SectionHeader } from "../tables/pe.ts";

// ---- headers

/** EDK2 and shim want room in SizeOfImage for more section headers than there are. */
export const imageHasNoRoomForTable: Check = ({ image }) => {
  const { sizeOfImage } = image.optional;
  const count = image.sections.length;
  const tableAt = sectionTableEnd(image) - count * SECTION_HEADER.size;
  if (sizeOfImage > tableAt && Math.floor((sizeOfImage - tableAt) / SECTION_HEADER.size) > count) return undefined;
  return (
    `SizeOfImage is ${hex(sizeOfImage)}, needed more than the section table, up to ` +
    `${hex(tableAt + (count + 1) * SECTION_HEADER.size)}`
  );
};

export const headersFillImage: Check = ({ image: { optional: o } }) =>
  o.sizeOfHeaders < o.sizeOfImage
    ? undefined
    : `SizeOfHeaders is ${hex(o.sizeOfHeaders)}, needed below SizeOfImage ${hex(o.sizeOfImage)}`;

export const imageBelowHeaders: Check = ({ image: { optional: o } }) =>
  o.sizeOfImage >= o.sizeOfHeaders
    ? undefined
    : `SizeOfImage is ${hex(o.sizeOfImage)}, needed at least SizeOfHeaders ${hex(o.sizeOfHeaders)}`;

export function subsystemIsNot(...taken: readonly number[]): Check {
  return ({ image: { optional: o } }) =>
    taken.includes(o.subsystem) ? undefined : `Subsystem is ${o.subsystem}, needed ${taken.join(" or ")} (EFI)`;
}

export const relocationsStripped: Check = ({ image: { coff } }) =>
  (coff.characteristics & RELOCS_STRIPPED) === 0
    ? undefined
    : `Characteristics is ${hex(coff.characteristics)}, IMAGE_FILE_RELOCS_STRIPPED is set`;

export const oddFileAlignment: Check = ({ image: { optional: o } }) =>
  o.fileAlignment % 2 === 0
    ? undefined
    : { why: `FileAlignment is ${o.fileAlignment}, needed an even number`, args: [o.fileAlignment] };

export const sectionAlignmentNoPowerOfTwo: Check = ({ image: { optional: o } }) => {
  const { sectionAlignment: a } = o;
  return a !== 0 && Number.isInteger(Math.log2(a)) ? undefined : `SectionAlignment is ${hex(a)}, needed a power of two`;
};

export const certificateOutsideFile: Check = ({ image }) => {
  const { virtualAddress, size } = image.directories[DIRECTORY_CERTIFICATE] ?? { virtualAddress: 0, size: 0 };
  const end = virtualAddress + size;
  return size === 0 || end <= image.fileSize
    ? undefined
    : `the certificate table is at ${range(virtualAddress, end)}, the file ends at ${hex(image.fileSize)}`;
};

/** As firmware, shim and every signer want it (PE specification, "Attribute Certificate Table"). */
export const certificateNotLast: Check = ({ image }) => {
  const { virtualAddress, size } = image.directories[DIRECTORY_CERTIFICATE] ?? { virtualAddress: 0, size: 0 };
  const end = virtualAddress + size;
  return size === 0 || end === image.fileSize
    ? undefined
    : `the certificate table is at ${range(virtualAddress, end)}, needed at the end of the file, ` +
        `${hex(image.fileSize)}`;
};

/** EDK2 looks for CODEVIEW entries; it needs to be able to read each entry. */
export const debugEntriesOutsideFile: Check = ({ image }) => {
  const { virtualAddress, size } = image.directories[DIRECTORY_DEBUG] ?? { virtualAddress: 0, size: 0 };
  const section = size === 0 ? undefined : sectionAt(image, virtualAddress);
  if (section === undefined) return undefined;
  const start = section.header.pointerToRawData + virtualAddress - section.header.virtualAddress;
  return start + size <= image.fileSize
    ? undefined
    : `the debug directory is at offset ${range(start, start + size)}, the file ends at ${hex(image.fileSize)}`;
};

const CODEVIEW = 2;
/** "RSDS", a GUID and an age. */
const RSDS_SIZE = 24;
const RSDS = "RSDS";

export const codeviewTooSmall: Check = ({ image }) => {
  const { virtualAddress, size } = image.directories[DIRECTORY_DEBUG] ?? { virtualAddress: 0, size: 0 };
  const section = size === 0 ? undefined : sectionAt(image, virtualAddress);
  if (section === undefined) return undefined;
  const start = virtualAddress - section.header.virtualAddress;
  const table = section.data.subarray(start, start + size);
  for (let at = 0; at + DEBUG_DIRECTORY_ENTRY.size <= table.length; at += DEBUG_DIRECTORY_ENTRY.size) {
    const { type, sizeOfData, addressOfRawData } = readStructure(DEBUG_DIRECTORY_ENTRY, table, at);
    if (type !== CODEVIEW || sizeOfData >= RSDS_SIZE || addressOfRawData === 0) continue;
    const holder = sectionAt(image, addressOfRawData);
    const from = addressOfRawData - (holder?.header.virtualAddress ?? 0);
    if (String.fromCharCode(...(holder?.data.subarray(from, from + 4) ?? [])) !== RSDS) continue;
    return (
      `the CODEVIEW debug entry at RVA ${hex(virtualAddress + at)} has SizeOfData ` +
      `${hex(sizeOfData)}, needed at least ${hex(RSDS_SIZE)} for "RSDS"`
    );
  }
  return undefined;
};

/** What would be wrong with a signature over the file. */
export function hashProblem(kind: Problem["kind"]): Check {
  return ({ hash }) => hash.problems.find((problem) => problem.kind === kind)?.text;
}

export const unsigned: Check = ({ hash }) => (hash.signed ? undefined : "the file is not signed yet");

// ---- sections

/** The first section for which `found` gives a reason; messages that name a section do it by its place in the table. */
export function anySection(
  found: (header: SectionHeader, image: Image, section: Section) => string | undefined,
): Check {
  return ({ image }) => {
    let reason: string | undefined;
    const index = image.sections.findIndex((section) => {
      reason = found(section.header, image, section);
      return reason !== undefined;
    });
    return reason === undefined
      ? undefined
      : { why: `section ${image.sections[index]?.name} ${reason}`, args: [index] };
  };
}

const outside = (rva: number, { optional }: Image): boolean => rva >= optional.sizeOfImage;
const place = (section: Section): string => `is at RVA ${range(section.header.virtualAddress, sectionEnd(section))}`;
const discardable = (section: Section): boolean => hasFlags(section, MEM_DISCARDABLE);

/** EDK2, for whatever has data, DWARF included. The last byte is what counts. */
export const dataOutsideImage = anySection((h, image, s) =>
  h.sizeOfRawData !== 0 && (outside(h.virtualAddress, image) || outside(sectionEnd(s) - 1, image))
    ? `${place(s)}, SizeOfImage is ${hex(image.optional.sizeOfImage)}`
    : undefined,
);

/** GRUB's peimage: every section, with data or without. */
export const sectionOutsideImage = anySection((_h, image, s) =>
  sectionEnd(s) > image.optional.sizeOfImage
    ? `${place(s)}, SizeOfImage is ${hex(image.optional.sizeOfImage)}`
    : undefined,
);

export const dataInsideHeaders = anySection((h, image) => {
  const { sizeOfHeaders } = image.optional;
  if (h.sizeOfRawData === 0 || (h.virtualAddress >= sizeOfHeaders && h.pointerToRawData >= sizeOfHeaders)) {
    return undefined;
  }
  return (
    `is at RVA ${hex(h.virtualAddress)} and offset ${hex(h.pointerToRawData)}, needed both from SizeOfHeaders ` +
    `${hex(sizeOfHeaders)} on`
  );
});

export const sectionInsideHeaders = anySection((h, image) =>
  h.virtualAddress >= image.optional.sizeOfHeaders
    ? undefined
    : `is at RVA ${hex(h.virtualAddress)}, needed from SizeOfHeaders ${hex(image.optional.sizeOfHeaders)} on`,
);

export const rawInsideHeaders = anySection((h, image) =>
  h.sizeOfRawData === 0 || h.pointerToRawData >= image.optional.sizeOfHeaders
    ? undefined
    : `has its raw data at ${hex(h.pointerToRawData)}, needed from SizeOfHeaders ` +
      `${hex(image.optional.sizeOfHeaders)} on`,
);

/** Also where there is no data: an offset far out is read as a length, too. */
export const rawOutsideFile = anySection((h, image) => {
  const end = h.pointerToRawData + h.sizeOfRawData;
  return end <= image.fileSize
    ? undefined
    : `has its raw data at ${range(h.pointerToRawData, end)}, the file ends at ${hex(image.fileSize)}`;
});

/** shim and Red Hat's GRUB: nothing but UNINITIALIZED_DATA may point into the headers, not even without data. */
export const notUninitialisedInsideHeaders = anySection((h, image, s) => {
  const { sizeOfHeaders } = image.optional;
  if (hasFlags(s, CNT_UNINITIALIZED_DATA) || (h.virtualAddress >= sizeOfHeaders && h.pointerToRawData >= sizeOfHeaders))
    return undefined;
  return (
    `is at RVA ${hex(h.virtualAddress)} and offset ${hex(h.pointerToRawData)}, needed both from SizeOfHeaders ` +
    `${hex(sizeOfHeaders)} on, or UNINITIALIZED_DATA`
  );
});

export const baseOutsideImage = anySection((h, image, s) =>
  !discardable(s) && outside(h.virtualAddress, image)
    ? `${place(s)}, SizeOfImage is ${hex(image.optional.sizeOfImage)}`
    : undefined,
);

/** What shim calls "zero size": the last byte is outside SizeOfImage. */
export const endOutsideImage = anySection((h, image, s) =>
  !discardable(s) && !outside(h.virtualAddress, image) && outside(sectionEnd(s) - 1, image)
    ? `${place(s)}, SizeOfImage is ${hex(image.optional.sizeOfImage)}`
    : undefined,
);

/** An address that is outside counts as 0, so a discardable section must be all inside or all outside. */
export const negativeSize = anySection((h, image, s) => {
  const value = (rva: number): number => (outside(rva, image) ? 0 : rva);
  if (value(sectionEnd(s) - 1) >= value(h.virtualAddress)) return undefined;
  if (!discardable(s) && outside(sectionEnd(s) - 1, image)) return undefined; // the rules before have it
  return (
    `${place(s)}, needed a VirtualSize, and all of it inside or outside SizeOfImage ` +
    `${hex(image.optional.sizeOfImage)}`
  );
});

export const rawLargerThanVirtual = anySection((h) =>
  h.sizeOfRawData <= roundUp(h.virtualSize, PAGE_SIZE)
    ? undefined
    : `has ${hex(h.sizeOfRawData)} bytes of raw data, needed at most VirtualSize rounded up to a page, ` +
      `${hex(roundUp(h.virtualSize, PAGE_SIZE))}`,
);

/**
 * Raw data that is copied whole, and so reaches over what follows. Sections are loaded in the table's order: it does
 * harm only where the section it reaches into was loaded before.
 */
function rawReaches(loaded: (section: Section) => boolean): Check {
  return ({ image }) => {
    const sections = image.sections.filter(loaded);
    const done: Section[] = [];
    for (const section of sections) {
      const { virtualAddress, sizeOfRawData } = section.header;
      const end = virtualAddress + sizeOfRawData;
      if (end > image.optional.sizeOfImage) {
        return (
          `section ${section.name}'s raw data reaches up to RVA ${hex(end)}, SizeOfImage is ` +
          `${hex(image.optional.sizeOfImage)}: memory behind it is overwritten`
        );
      }
      const last = done.at(-1);
      // In a table by address no earlier section can be behind; otherwise each has to be looked at.
      if (last !== undefined && last.header.virtualAddress > virtualAddress) {
        const hit = done.find(
          (s) =>
            s.header.virtualSize !== 0 && s.header.virtualAddress >= virtualAddress && s.header.virtualAddress < end,
        );
        if (hit !== undefined) {
          return (
            `section ${section.name}'s raw data reaches up to RVA ` +
            `${hex(end)}, into section ${hit.name}, which is loaded before it`
          );
        }
        if (done.length > MOST_UNSORTED) return `its sections are not in the order of their addresses`;
      }
      done.push(section);
    }
    return undefined;
  };
}

const MOST_UNSORTED = 1000;
export const rawReachesOver = rawReaches(() => true);
export const rawReachesOverUnlessDiscarded = rawReaches((s) => !discardable(s));

export const notPageAligned = anySection((h) =>
  h.virtualAddress % PAGE_SIZE === 0 ? undefined : `is at RVA ${hex(h.virtualAddress)}, which is not page-aligned`,
);

export const writableAndExecutable = anySection((_h, _image, s) =>
  hasFlags(s, MEM_READ) && !discardable(s) && hasFlags(s, MEM_WRITE) && hasFlags(s, MEM_EXECUTE)
    ? "is writable and executable"
    : undefined,
);

// ---- NX

export function unlessNx(check: Check): Check {
  return (evidence) => ((evidence.image.optional.dllCharacteristics & NX_COMPAT) === 0 ? undefined : check(evidence));
}

export const notNxCompat: Check = ({ image: { optional: o } }) =>
  (o.dllCharacteristics & NX_COMPAT) !== 0
    ? undefined
    : `DllCharacteristics is ${hex(o.dllCharacteristics)}, needed NX_COMPAT (${hex(NX_COMPAT)})`;

export const sectionAlignmentBelowPage: Check = ({ image: { optional: o } }) =>
  o.sectionAlignment >= PAGE_SIZE
    ? undefined
    : `SectionAlignment is ${hex(o.sectionAlignment)}, needed at least ${hex(PAGE_SIZE)}`;

export const anyWritableAndExecutable = anySection((_h, _image, s) =>
  hasFlags(s, MEM_WRITE) && hasFlags(s, MEM_EXECUTE) ? "is writable and executable" : undefined,
);
