// SPDX-License-Identifier: GPL-2.0-only
// For packagers: what stands in an image's way to the loaders and to other tools, in the words that people search for,
// and which of our steps removes it. The questions are the loaders' own checks, and a few that only signers, ukify and
// objcopy ask. The verdicts say which loader minds.

import { hex, range } from "../cli/numbers.ts";
import { checkSum } from "../judge/checksum.ts";
import { loadByFirmware } from "../judge/loads.ts";
import { directoryOf, optionalAt, sectionAt, sectionEnd, tableEnd, type Pe, type Section } from "../judge/read.ts";
import { offsetOf, readStructure } from "../tables/fields.ts";
import { MB2_HEADER } from "../tables/multiboot.ts";
import * as pe from "../tables/pe.ts";
import * as mb from "./checks-multiboot.ts";
import * as reloc from "./checks-relocations.ts";
import * as check from "./checks.ts";
import { alignmentTooSmall } from "./efi.ts";
import { attemptLoad, type Evidence } from "./facts.ts";
import { reasonOf, type Check } from "./rules.ts";
import { noSbat } from "./shim.ts";

/** What removes an obstacle; null when none of our steps does. */
type Remedy =
  "relocate-reloc" | "align-sections" | "emit-header" | "any step" | "add-sections" | "--strip-signature" | null;

export type Obstacle = Readonly<ReturnType<typeof obstacles>[number]>;

/** What stands in the way of an image, in the order of {@link OBSTACLES}: what it is, where, and what somebody then says. */
export function obstacles(evidence: Evidence) {
  return OBSTACLES.flatMap(([id, remedy, question, then, advice = ""]) => {
    const why = reasonOf(question, evidence);
    return why === undefined ? [] : [{ id, what: then === "" ? why : `${why}: ${then}`, remedy, advice }];
  });
}

// ---- what only other tools than loaders ask

const signed: Check = ({ hash }) => hash.signed && "the image is signed";

/** Bytes free behind the section table, where tools append headers: up to the first section's data or a Multiboot1 header. */
export function headerSlack(image: Pe): number {
  const end = tableEnd(image);
  const { sizeOfHeaders } = image.optional;
  const used = image.bytes.subarray(end, sizeOfHeaders).findIndex((byte) => byte !== 0);
  const first = image.sections
    .filter((s) => s.header.sizeOfRawData !== 0)
    .reduce((least, s) => Math.min(least, s.header.pointerToRawData), sizeOfHeaders);
  return Math.max(0, Math.min(first - end, used < 0 ? Infinity : used));
}

const noRoomForHeader: Check = ({ image }) => {
  const slack = headerSlack(image);
  return (
    slack < pe.SECTION_HEADER.size &&
    `${slack} bytes are free behind the section table, a header takes ${pe.SECTION_HEADER.size}`
  );
};

const oddSizeOfImage: Check = ({ image: { optional: o } }) =>
  o.sectionAlignment !== 0 &&
  o.sizeOfImage % o.sectionAlignment !== 0 &&
  `SizeOfImage is ${hex(o.sizeOfImage)}, no multiple of SectionAlignment ${hex(o.sectionAlignment)}`;

const wrongCheckSum: Check = ({ image }) => {
  const right = checkSum(image.bytes, optionalAt(image) + offsetOf(pe.OPTIONAL_HEADER, "checkSum"));
  const found = image.optional.checkSum;
  return found !== right && `CheckSum is ${hex(found)}, needed ${hex(right)}`;
};

const debugDirectoryLeavesSection: Check = ({ image }) => {
  const { virtualAddress, size } = directoryOf(image, pe.DIRECTORY_DEBUG);
  const section = size === 0 ? undefined : sectionAt(image, virtualAddress);
  const left = section === undefined ? size : sectionEnd(section) - virtualAddress;
  return (
    left < size &&
    `the debug directory does not fit into ${section?.name}: objcopy says "Data Directory size (` +
      `${size.toString(16)}) exceeds space left in section (${left.toString(16)})"`
  );
};

/** Multiboot copies one range of the file to one range of memory. */
const notLinear: Check = ({ image }) => {
  const [first, ...others] = mb.sectionsToLoad(image);
  if (first === undefined) return "no load span: there is no initialised section below .bss";
  const delta = first.header.virtualAddress - first.header.pointerToRawData;
  const wrong = others.find(
    ({ header: h }) => h.sizeOfRawData !== 0 && h.virtualAddress - h.pointerToRawData !== delta,
  );
  if (wrong === undefined) return undefined;
  const { pointerToRawData: start, sizeOfRawData, virtualAddress } = wrong.header;
  return (
    `the file is not linear: section ${wrong.name}'s raw data is at ${range(start, start + sizeOfRawData)}, needed ` +
    `at ${hex(virtualAddress - delta)} for RVA ${hex(virtualAddress)}`
  );
};

const isBeyondImage = (section: Section, { optional }: Pe): boolean => sectionEnd(section) > optional.sizeOfImage;

/** Old GNU ld puts DWARF that its script does not know far out (.debug_str_offsets of clang builds, at 0xc0000000). */
const isStray = (section: Section, image: Pe): boolean =>
  section.name.startsWith(".debug_") && isBeyondImage(section, image);

const beyondImage = (stray: boolean): Check =>
  check.anySection((s, image) => isBeyondImage(s, image) && isStray(s, image) === stray && check.placeIn(s, image));

/** Loaders would make different memory of it. Of stray sections align-sections makes good ones. */
const loadedInSeveralWays: Check = ({ image }) => {
  const sections = image.sections.filter((s) => !isStray(s, image));
  return attemptLoad(() => loadByFirmware({ ...image, sections })).reason;
};

/** Xen writes to all that is relocated; emit-header voids what the old Multiboot2 header has. */
function targetInHeader({ image, multiboot2: { at }, relocations: { unwritable } }: Evidence): boolean {
  const section = unwritable === undefined ? undefined : sectionAt(image, unwritable.rva);
  if (unwritable === undefined || section === undefined || at < 0) return false;
  const offset = section.header.pointerToRawData + unwritable.rva - section.header.virtualAddress;
  return offset >= at && offset < at + readStructure(MB2_HEADER, image.bytes, at).headerLength;
}

const firstOf =
  (...checks: readonly Check[]): Check =>
  (evidence) =>
    checks.map((one) => one(evidence)).find(Boolean);

// ---- the table

const UNWRITABLE = "where firmware enforces that, Xen's own relocation pass faults";
const SILENT = 'firmware refuses the image and says nothing ("Load Error")';
const DISCARDED = '"x86/efi: discard multiboot and PVH support for PE binary"';

/** `advice` is what to do where no step helps, or what else to know. */
type Row = readonly [id: string, remedy: Remedy, question: Check, then: string, advice?: string];

/** In the order in which the steps remove them, those that none removes last. */
export const OBSTACLES: readonly Row[] = [
  ["signed", "--strip-signature", signed, "no change survives it", "a signed image is not changed; sign the result"],
  [
    "reloc-discardable",
    "relocate-reloc",
    reloc.tableNotLoaded,
    'under shim and Red Hat\'s GRUB Xen stops with "Unsupported relocation type"',
    "GNU ld marks it so, unless both ld (2.46) and Xen are newer than that",
  ],
  ["stray-debug", "align-sections", beyondImage(true), SILENT],
  ["not-linear", "align-sections", notLinear, "Multiboot copies one range of the file to one range of memory"],
  ["gaps", "align-sections", check.hashProblem("gap"), '"gaps between PE/COFF sections?"'],
  [
    "raw-larger",
    "align-sections",
    check.rawLargerThanVirtual,
    'GRUB 2.14 says "section data larger than virtual size", then "cannot load image"',
  ],
  [
    "header-slack",
    "align-sections",
    noRoomForHeader,
    'ukify says "Not enough header space to add section", objcopy --add-section lays the file out anew',
  ],
  ["size-of-image", "align-sections", oddSizeOfImage, ""],
  ["size-8", "align-sections", check.hashProblem("padding"), "an enrolled hash differs"],
  ["no-address-tags", "emit-header", mb.noAddresses2, 'GRUB\'s multiboot2 says "invalid arch-dependent ELF magic"'],
  ["no-addresses", "emit-header", mb.noAddresses1, "GRUB's multiboot, syslinux, iPXE and QEMU refuse it"],
  [
    "nx-claim",
    "emit-header",
    check.nxWritableAndExecutable,
    'yet NX_COMPAT is claimed: GRUB 2.14 says "NX compatible image with W|X section", then "cannot load image"',
    "GNU ld set NX_COMPAT by default for a while; the step clears the claim",
  ],
  [
    "nx-claim-place",
    "emit-header",
    check.nxNotPageAligned,
    "yet NX_COMPAT is claimed: " +
      'GRUB 2.14 says "NX compatible image with badly aligned section", then "cannot load image"',
  ],
  [
    "reloc-read-only",
    "emit-header",
    check.onlyIf(targetInHeader, reloc.targetNotWritable),
    UNWRITABLE,
    "it is in the Multiboot2 header",
  ],
  ["checksum", "any step", wrongCheckSum, ""],
  [
    "no-sbat",
    "add-sections",
    noSbat,
    'shim does not start it under Secure Boot ("Verification failed: Security Violation")',
    "with --section .sbat=FILE, of the vendor's own lines; behind GRUB or systemd-boot none is needed",
  ],
  [
    "no-multiboot2",
    null,
    mb.noHeader(mb.version2),
    'GRUB says "no multiboot header found", Xen\'s own build "No Multiboot2 header found"',
    `later Xen drops it from xen.efi (${DISCARDED}); it must be linked in`,
  ],
  [
    "no-multiboot1",
    null,
    mb.noHeader(mb.version1),
    'GRUB\'s multiboot says "no multiboot header found"',
    "emit-header writes one of its own, given the Multiboot2 header",
  ],
  [
    "write-execute",
    null,
    check.anyWritableAndExecutable,
    'shim\'s NX policy says "Section %d is writable and executable", ukify objects',
    "it takes a Xen that splits .init",
  ],
  [
    "sections",
    null,
    firstOf(check.rawInsideHeaders, loadedInSeveralWays, check.hashProblem("twice")),
    "no step takes such an image",
  ],
  ["beyond-image", null, beyondImage(false), SILENT],
  ["alignment", null, alignmentTooSmall, '"Xen must be loaded at a 2Mb boundary."'],
  ["debug-directory", null, debugDirectoryLeavesSection, ""],
  ["relocations", null, firstOf(reloc.noTable, reloc.corruptTable()), "Xen cannot run where firmware loads it"],
  ["reloc-read-only-code", null, check.onlyIf((e) => !targetInHeader(e), reloc.targetNotWritable), UNWRITABLE],
];

// ---- what the linker has made of it

export type Traits = Readonly<ReturnType<typeof traits>>;

export function traits(evidence: Evidence) {
  const { optional, sections } = evidence.image;
  const bytes = headerSlack(evidence.image);
  const relocations = [...evidence.relocations.sections].map(([section, types]) => {
    const counts = [...types].map(([type, count]) => [pe.RELOCATION_NAMES[type] ?? `type ${type}`, count] as const);
    return [section, Object.fromEntries(counts)] as const;
  });
  return {
    /** GNU ld's version, as it leaves it in the header. */
    linker: `${optional.majorLinkerVersion}.${optional.minorLinkerVersion}`,
    /** Bytes between the section table and what follows, and how many 40-byte section headers fit there. */
    headerSlack: { bytes, headers: Math.floor(bytes / pe.SECTION_HEADER.size) },
    nxCompat: check.claimsNx(evidence),
    /** Number of base relocations by section and type. */
    relocations: Object.fromEntries(relocations),
    /** Sections that begin within a page. */
    unaligned: sections.filter((s) => s.header.virtualAddress % pe.PAGE_SIZE !== 0).map((s) => s.name),
  };
}
