// SPDX-License-Identifier: GPL-2.0-only
// The doctor for packagers: what stands in an image's way to the loaders, in the words that people search for, and
// which of our steps removes it; and what the linker has made of it. The verdicts say which loader minds.

import { ImageError } from "../cli/errors.ts";
import { hex } from "../cli/numbers.ts";
import { noAddresses1, noAddresses2, noMultiboot1, noMultiboot2 } from "./checks-multiboot.ts";
import { relocSections } from "./checks-relocations.ts";
import { anyWritableAndExecutable, notPageAligned, rawLargerThanVirtual } from "./checks.ts";
import type { Evidence } from "./facts.ts";
import type { Check } from "./rules.ts";
import { imageCheckSum } from "../pe/checksum.ts";
import { checkSections, hasFlags, isStrayDebug, sectionAt, sectionEnd, sectionTableEnd } from "../pe/image.ts";
import type { Image } from "../pe/image.ts";
import { offsetOf, readStructure } from "../tables/fields.ts";
import { MB2_HEADER } from "../tables/multiboot.ts";
import {
  COFF_HEADER,
  DIRECTORY_DEBUG,
  MEM_DISCARDABLE,
  NX_COMPAT,
  OPTIONAL_HEADER,
  PAGE_SIZE,
  SECTION_HEADER,
  SIGNATURE_SIZE,
  SIZE_2M,
} from "../tables/pe.ts";
import { loadSpan, whyNotLinear } from "../xen/xen.ts";

export type Remedy =
  "relocate-reloc" | "align-sections" | "emit-header" | "any step" | "add-sections" | "--strip-signature" | null;

export interface Obstacle {
  readonly id: string;
  /** What it is, where, and what somebody then says. */
  readonly what: string;
  /** What removes it; null when none of our steps does. */
  readonly remedy: Remedy;
  /** What to do where no step helps, or what else to know; empty when there is nothing to say. */
  readonly advice: string;
}

export interface Traits {
  /** GNU ld's version, as it leaves it in the header. */
  readonly linker: string;
  /** Bytes between the section table and what follows, and how many 40-byte section headers fit there. */
  readonly headerSlack: { readonly bytes: number; readonly headers: number };
  readonly nxCompat: boolean;
  /** Number of base relocations by section and type. */
  readonly relocations: Readonly<Record<string, Readonly<Record<string, number>>>>;
  /** Sections that begin within a page. */
  readonly unaligned: readonly string[];
}

const RELOCATION_NAMES: Readonly<Record<number, string>> = { 1: "HIGH", 2: "LOW", 3: "HIGHLOW", 10: "DIR64" };

export function traits({ image, relocations }: Evidence): Traits {
  const bytes = headerSlack(image);
  const named = [...relocations.sections].map(([section, types]) => {
    const counts = [...types].map(([type, count]) => [RELOCATION_NAMES[type] ?? `type ${type}`, count] as const);
    return [section, Object.fromEntries(counts)] as const;
  });
  return {
    linker: `${image.optional.majorLinkerVersion}.${image.optional.minorLinkerVersion}`,
    headerSlack: { bytes, headers: Math.floor(bytes / SECTION_HEADER.size) },
    nxCompat: (image.optional.dllCharacteristics & NX_COMPAT) !== 0,
    relocations: Object.fromEntries(named),
    unaligned: image.sections.filter((s) => s.header.virtualAddress % PAGE_SIZE !== 0).map((s) => s.name),
  };
}

/** Tools append section headers in place: up to SizeOfHeaders, the first section's data or a Multiboot1 header. */
function headerSlack(image: Image): number {
  const end = sectionTableEnd(image);
  const used = image.background.subarray(end, image.optional.sizeOfHeaders).findIndex((byte) => byte !== 0);
  const starts = image.sections.filter((s) => s.header.sizeOfRawData !== 0).map((s) => s.header.pointerToRawData);
  const first = starts.reduce((least, start) => Math.min(least, start), image.optional.sizeOfHeaders);
  return Math.max(0, Math.min(first - end, used < 0 ? Infinity : used));
}

/** @returns in the order in which the steps remove them, those that none removes last */
export function obstacles(evidence: Evidence): Obstacle[] {
  const found = SIGNS.flatMap(({ id, remedy, advice = "", sign }) => {
    const what = sign(evidence);
    return what === undefined ? [] : [{ id, what, remedy, advice }];
  });
  return ORDER.flatMap((remedy) => found.filter((o) => o.remedy === remedy));
}

const ORDER: readonly Remedy[] = [
  "--strip-signature",
  "relocate-reloc",
  "align-sections",
  "emit-header",
  "any step",
  "add-sections",
  null,
];

interface Sign {
  readonly id: string;
  readonly remedy: Remedy;
  readonly advice?: string;
  readonly sign: (evidence: Evidence) => string | undefined;
}

/** A check's reason with what somebody says for it. */
function because(check: Check, then: string): Sign["sign"] {
  return (evidence) => {
    const trip = check(evidence);
    return trip === undefined ? undefined : `${typeof trip === "string" ? trip : trip.why}: ${then}`;
  };
}

function reason(work: () => void): string | undefined {
  try {
    work();
    return undefined;
  } catch (error) {
    if (error instanceof ImageError) return error.message.replace(/^Cannot [^:]*: /, "");
    throw error;
  }
}

const claimsNx = ({ image }: Evidence): boolean => (image.optional.dllCharacteristics & NX_COMPAT) !== 0;

const NO_SPACE = 'ukify says "Not enough header space to add section", objcopy --add-section lays the file out anew';
const BADLY_ALIGNED = 'GRUB 2.14 says "NX compatible image with badly aligned section", then "cannot load image"';
const NO_SBAT = 'shim does not start it under Secure Boot ("Verification failed: Security Violation")';
const DISCARDED = '"x86/efi: discard multiboot and PVH support for PE binary"';

const SIGNS: readonly Sign[] = [
  {
    id: "signed",
    remedy: "--strip-signature",
    advice: "a signed image is not changed; sign the result",
    sign: ({ hash }) => (hash.signed ? "the image is signed: no change survives it" : undefined),
  },
  {
    id: "reloc-discardable",
    remedy: "relocate-reloc",
    advice: "GNU ld marks it so, unless both ld (2.46) and Xen are newer than that",
    sign: ({ image }) => {
      const reloc = relocSections(image, (s) => hasFlags(s, MEM_DISCARDABLE))[0];
      return (
        reloc &&
        `.reloc is discardable (` +
          `${hex(
            reloc.header.characteristics,
          )}): shim and Red Hat's GRUB do not load it, and Xen stops with "Unsupported relocation type"`
      );
    },
  },
  {
    id: "stray-debug",
    remedy: "align-sections",
    sign: ({ image }) => {
      const stray = image.sections.find((s) => isStrayDebug(image, s));
      return (
        stray &&
        `${stray.name} is at RVA ${hex(stray.header.virtualAddress)}, beyond SizeOfImage ` +
          `${hex(image.optional.sizeOfImage)}: firmware refuses the image and says nothing ("Load Error")`
      );
    },
  },
  { id: "not-linear", remedy: "align-sections", sign: notLinear },
  {
    id: "gaps",
    remedy: "align-sections",
    sign: ({ hash }) => {
      const [gap] = hash.notCovered;
      return (
        gap &&
        `offset ${hex(gap.start)} to ` +
          `${hex(gap.end)}, ${gap.what}, is covered by no signature: "gaps between PE/COFF sections?"`
      );
    },
  },
  {
    id: "raw-larger",
    remedy: "align-sections",
    sign: because(
      rawLargerThanVirtual,
      `GRUB 2.14 says "section data larger than virtual size", then "cannot load image"`,
    ),
  },
  {
    id: "header-slack",
    remedy: "align-sections",
    sign: ({ image }) => {
      const slack = headerSlack(image);
      return slack >= SECTION_HEADER.size
        ? undefined
        : `${slack} bytes are free behind the section table, a header takes ${SECTION_HEADER.size}: ${NO_SPACE}`;
    },
  },
  {
    id: "size-of-image",
    remedy: "align-sections",
    sign: ({ image: { optional: o } }) =>
      o.sectionAlignment === 0 || o.sizeOfImage % o.sectionAlignment === 0
        ? undefined
        : `SizeOfImage is ${hex(o.sizeOfImage)}, no multiple of SectionAlignment ${hex(o.sectionAlignment)}`,
  },
  {
    id: "size-8",
    remedy: "align-sections",
    sign: ({ image: { fileSize } }) =>
      fileSize % 8 === 0
        ? undefined
        : `the file has ${fileSize} bytes, no multiple of 8: shim and signers pad it, and an enrolled hash differs`,
  },
  {
    id: "no-address-tags",
    remedy: "emit-header",
    sign: because(noAddresses2, `GRUB's multiboot2 says "invalid arch-dependent ELF magic"`),
  },
  {
    id: "no-addresses",
    remedy: "emit-header",
    sign: because(noAddresses1, `GRUB's multiboot, syslinux, iPXE and QEMU refuse it`),
  },
  {
    id: "nx-claim",
    remedy: "emit-header",
    advice: "GNU ld set NX_COMPAT by default for a while; the step clears the claim",
    sign: (evidence) =>
      claimsNx(evidence)
        ? because(
            anyWritableAndExecutable,
            `yet NX_COMPAT is claimed: GRUB 2.14 says "NX compatible image with W|X section", then "cannot load image"`,
          )(evidence)
        : undefined,
  },
  {
    id: "nx-claim-place",
    remedy: "emit-header",
    sign: (evidence) =>
      claimsNx(evidence) ? because(notPageAligned, `yet NX_COMPAT is claimed: ${BADLY_ALIGNED}`)(evidence) : undefined,
  },
  { id: "reloc-read-only", remedy: "emit-header", advice: "it is in the Multiboot2 header", sign: readOnlyFixup(true) },
  {
    id: "checksum",
    remedy: "any step",
    sign: ({ image, bytes }) => {
      const at = image.lfanew + SIGNATURE_SIZE + COFF_HEADER.size + offsetOf(OPTIONAL_HEADER, "checkSum");
      const right = imageCheckSum(bytes, at);
      return image.optional.checkSum === right
        ? undefined
        : `CheckSum is ${hex(image.optional.checkSum)}, needed ${hex(right)}`;
    },
  },
  {
    id: "no-multiboot2",
    remedy: null,
    advice: `later Xen drops it from xen.efi (${DISCARDED}); it must be linked in`,
    sign: because(noMultiboot2, `GRUB says "no multiboot header found", Xen's own build "No Multiboot2 header found"`),
  },
  {
    id: "no-multiboot1",
    remedy: null,
    advice: "emit-header writes one of its own, given the Multiboot2 header",
    sign: because(noMultiboot1, `GRUB's multiboot says "no multiboot header found"`),
  },
  {
    id: "write-execute",
    remedy: null,
    advice: "it takes a Xen that splits .init",
    sign: because(
      anyWritableAndExecutable,
      `shim's NX policy says "Section %d is writable and executable", ukify objects`,
    ),
  },
  {
    id: "sections",
    remedy: null,
    sign: ({ image, hash }) => (hash.signed ? undefined : reason(() => checkSections(image, "transform"))),
  },
  {
    id: "beyond-image",
    remedy: null,
    sign: ({ image }) => {
      const beyond = image.sections.find((s) => sectionEnd(s) > image.optional.sizeOfImage && !isStrayDebug(image, s));
      return (
        beyond &&
        `section ${beyond.name} ends at RVA ${hex(sectionEnd(beyond))}, beyond SizeOfImage ` +
          `${hex(image.optional.sizeOfImage)}: firmware refuses the image and says nothing ("Load Error")`
      );
    },
  },
  {
    id: "alignment",
    remedy: null,
    sign: ({ image: { optional: o } }) =>
      o.sectionAlignment !== 0 && o.sectionAlignment % SIZE_2M === 0
        ? undefined
        : `SectionAlignment is ${hex(o.sectionAlignment)}: "Xen must be loaded at a 2Mb boundary."`,
  },
  {
    id: "debug-directory",
    remedy: null,
    sign: ({ image }) => {
      const { virtualAddress, size } = image.directories[DIRECTORY_DEBUG] ?? { virtualAddress: 0, size: 0 };
      const section = size === 0 ? undefined : sectionAt(image, virtualAddress);
      const left = section === undefined ? size : sectionEnd(section) - virtualAddress;
      return left >= size
        ? undefined
        : `the debug directory does not fit into ${section?.name}: objcopy says "Data Directory size (` +
            `${size.toString(16)}) exceeds space left in section (${left.toString(16)})"`;
    },
  },
  {
    id: "relocations",
    remedy: null,
    sign: ({ relocations: { size, corrupt } }) =>
      size === 0 ? "there is no base relocation table: Xen cannot run where firmware loads it" : corrupt?.why,
  },
  { id: "reloc-read-only-code", remedy: null, sign: readOnlyFixup(false) },
  {
    id: "no-sbat",
    remedy: "add-sections",
    advice: "with --section .sbat=FILE, of the vendor's own lines; behind GRUB or systemd-boot none is needed",
    sign: ({ image }) =>
      image.sections.some((s) => s.name === ".sbat") ? undefined : `there is no section .sbat: ${NO_SBAT}`,
  },
];

function notLinear({ image }: Evidence): string | undefined {
  let why: string | undefined;
  const none = reason(() => (why = whyNotLinear(image, loadSpan(image, "find the load span"))));
  if (none !== undefined) return `no load span: ${none}`;
  return why && `the file is not linear: ${why}: Multiboot copies one range of the file to one range of memory`;
}

/** Xen writes to all that is relocated; emit-header voids what the old Multiboot2 header has. */
function readOnlyFixup(inHeader: boolean): Sign["sign"] {
  return ({ image, bytes, multiboot2: { at }, relocations: { unwritable: u } }) => {
    if (u === undefined) return undefined;
    const section = sectionAt(image, u.rva);
    const offset = section === undefined ? -1 : section.header.pointerToRawData + u.rva - section.header.virtualAddress;
    const length = at < 0 ? 0 : readStructure(MB2_HEADER, bytes.subarray(at, at + MB2_HEADER.size), 0).headerLength;
    if ((at >= 0 && offset >= at && offset < at + length) !== inHeader) return undefined;
    return (
      `a base relocation is for RVA ` +
      `${hex(
        u.rva,
      )} in ${u.section}, which is not writable: where firmware enforces that, Xen's own relocation pass faults`
    );
  };
}
