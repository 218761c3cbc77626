// SPDX-License-Identifier: GPL-2.0-only
// Profiles of the loaders that do firmware's work themselves: shim, Red Hat's GRUB, and Debian's and Ubuntu's GRUB
// (peimage). Read from their sources; the words are those of the source, or of the built loader.

import { hex } from "../cli/numbers.ts";
import type { Pe, Section } from "../judge/read.ts";
import * as reloc from "./checks-relocations.ts";
import * as check from "./checks.ts";
import { XEN_EFI, XEN_UNDER_SHIM } from "./efi.ts";
import { profile, rulesOf, type Check, type Profile, type Rule } from "./rules.ts";

// ---- shim

const SHIM = "rhboot/shim";

/** The first function that any way into shim calls; Red Hat's GRUB calls it through the protocol. */
const READ_HEADER: readonly Rule[] = rulesOf(`${SHIM} pe-relocate.c:read_header`, [
  ["shim-file-alignment", "refuse", "File Alignment is invalid (%d)", check.oddFileAlignment],
  ["shim-table-room", "refuse", "Image sections overflow image size", check.imageHasNoRoomForTable],
  ["shim-relocs-stripped", "refuse", "Unsupported image - Relocations have been stripped", check.relocationsStripped],
  ["shim-image-size", "refuse", "Invalid image", check.imageBelowHeaders],
  ["shim-certificate", "refuse", "", check.certificateOutsideFile],
]);

const NX_HEADER: readonly Rule[] = rulesOf(`${SHIM} pe-relocate.c:read_header`, [
  ["shim-nx-claim", "refuse", "Policy requires NX, but image does not support NX", check.notNxCompat],
]);

/** Also without Secure Boot: the hash is measured. */
const GENERATE_HASH: readonly Rule[] = [
  ...rulesOf(`${SHIM} pe-relocate.c:get_section_vma`, [
    ["shim-section-base", "refuse", "Section %d has invalid base address", check.baseOutsideImage],
    ["shim-section-end", "refuse", "Section %d has zero size", check.endOutsideImage],
    ["shim-section-headers", "refuse", "Section %d is inside image headers", check.notUninitialisedInsideHeaders],
    ["shim-section-negative", "refuse", "Section %d has negative size", check.negativeSize],
  ]),
  ...rulesOf(`${SHIM} pe.c:generate_hash`, [
    ["shim-hash-sum", "refuse", "Malformed section %d size", check.hashProblem("sum")],
    ["shim-certificate-last", "refuse", "Malformed binary after Attribute Certificate Table", check.certificateNotLast],
  ]),
];

const HANDLE_IMAGE: readonly Rule[] = [
  ...rulesOf(`${SHIM} pe.c:handle_image`, [
    ["shim-entry-outside", "refuse", "Entry point is invalid", reloc.entryOutsideImage],
    ["shim-several-relocs", "refuse", "Image has multiple relocation sections", reloc.readableReloc.several],
    ["shim-reloc-section", "refuse", "Relocation section is invalid ", reloc.readableReloc.isNotTable],
    ["shim-directories", "refuse", "Image has no relocation entry", reloc.fewDirectories],
    ["shim-no-reloc", "stops", "", reloc.readableReloc.none],
    ["shim-overlap", "stops", "", check.readableOverlap],
  ]),
  ...rulesOf(`${SHIM} pe-relocate.c:relocate_coff`, [
    ["shim-block-zero", "refuse", "Reloc %d block size 0 is invalid", reloc.corruptTable("block size")],
    [
      "shim-block-large",
      "refuse",
      "Reloc %d block size %d greater than reloc dirsize %d, which is invalid",
      reloc.corruptTable("beyond the table"),
    ],
    // It is read from the file, and what follows .reloc's data there is taken for the rest of it.
    ["shim-block-place", "stops", "", reloc.corruptTable("not in memory")],
    ["shim-reloc-target", "refuse", "Reloc %d Invalid fixupbase", reloc.targetOutsideImage],
    ["shim-reloc-type", "refuse", "Reloc %d Unknown relocation", reloc.typeNotIn(reloc.LOADER_TYPES, () => [])],
  ]),
  ...rulesOf(`${SHIM} pe.c:handle_image`, [
    ["shim-entry-nowhere", "refuse", "Entry point is not within sections", reloc.entryByVirtualSize.nowhere],
    ["shim-entry-twice", "refuse", "%d sections contain entry point", reloc.entryByVirtualSize.several],
  ]),
];

/** Where firmware can change memory attributes, shim does: each readable section gets those that its flags say. */
const ATTRIBUTES: readonly Rule[] = rulesOf(`${SHIM} memattrs.c:efi_update_mem_attrs`, [
  ["shim-attributes-place", "warn", "Invalid call efi_update_mem_attrs(addr:...)", check.notPageAligned],
  ["shim-attributes-write", "warn", "", reloc.targetNotWritable],
]);

const NX_SECTIONS: readonly Rule[] = [
  ...rulesOf(`${SHIM} pe.c:handle_image`, [
    ["shim-nx-section", "refuse", "Section %d is writable and executable", check.loadedWritableAndExecutable],
  ]),
  // The policy is on only where firmware enforces attributes: Xen's own relocation pass then faults.
  ...rulesOf("xen-project/xen xen/arch/x86/efi/efi-boot.h:efi_arch_relocate_image", [
    ["shim-nx-write", "stops", "", reloc.targetNotWritable],
  ]),
];

const sbatOf = (image: Pe): Section[] => image.sections.filter((s) => check.isStoredAs(s, ".sbat"));

export const noSbat: Check = ({ image }) => sbatOf(image).length === 0 && "there is no section .sbat";
const twoSbat: Check = ({ image }) => sbatOf(image).length > 1 && "there are two sections .sbat";
const sbatHasRelocations: Check = ({ image }) => {
  const count = sbatOf(image).find((s) => s.header.numberOfRelocations !== 0)?.header.numberOfRelocations;
  return count !== undefined && `section .sbat has NumberOfRelocations ${count}, needed 0`;
};
const sbatTooShort: Check = ({ image }) => {
  const h = sbatOf(image)[0]?.header;
  return (
    h !== undefined &&
    h.sizeOfRawData < h.virtualSize &&
    `section .sbat has ${hex(h.sizeOfRawData)} bytes of raw data, needed VirtualSize ` +
      `${hex(h.virtualSize)}: it does not count`
  );
};

const SECOND_STAGE: readonly Rule[] = [
  ...rulesOf(`${SHIM} verify.c:verify_buffer_sbat`, [
    ["shim-two-sbat", "refuse", "Image has multiple SBAT sections", twoSbat],
    ["shim-sbat-relocs", "refuse", "SBAT section has relocations", sbatHasRelocations],
  ]),
  // EFI_SECURITY_VIOLATION for what shim itself starts; what asks through its protocols may come without.
  ...rulesOf(`${SHIM} pe.c:verify_sbat_section`, [
    ["shim-no-sbat", "refuse", "Verification failed", noSbat],
    ["shim-short-sbat", "refuse", "Verification failed", sbatTooShort],
  ]),
  ...rulesOf(`${SHIM} pe.c:handle_image`, [["unsigned", "warn", "", check.unsigned]]),
];

// ---- Red Hat's GRUB

const CHAINLOADER = "rhboot/grub2 grub-core/loader/efi/chainloader.c";

const RED_HAT_RULES: readonly Rule[] = [
  // shim's own words appear above GRUB's.
  ...READ_HEADER.map((rule) => ({ ...rule, says: rule.says === "" ? "context error unsupported" : rule.says })),
  ...rulesOf(`${CHAINLOADER}:handle_image`, [
    ["red-hat-entry-outside", "refuse", "invalid entry point", reloc.entryOutsideImage],
    ["red-hat-section-negative", "refuse", "Image has invalid negative size", check.negativeSize],
    ["red-hat-several-relocs", "refuse", "Image has multiple relocation sections", reloc.anyReloc.several],
    ["red-hat-section-base", "refuse", "Invalid section size", check.baseOutsideImage],
    ["red-hat-section-end", "refuse", "Invalid section size", check.endOutsideImage],
    ["red-hat-section-headers", "refuse", "Section %d is inside image headers", check.notUninitialisedInsideHeaders],
    ["red-hat-directories", "refuse", "", reloc.fewDirectories],
    // Then nothing is relocated, and nothing said.
    ["red-hat-reloc-section", "stops", "", reloc.anyReloc.isNotTable],
    ["red-hat-no-reloc", "stops", "", reloc.anyReloc.none],
    // All of SizeOfRawData is copied.
    ["red-hat-raw-reach", "stops", "", check.rawReachesOverUnlessDiscarded],
    ["red-hat-overlap", "stops", "", check.overlapUnlessDiscarded],
  ]),
  ...rulesOf(`${CHAINLOADER}:relocate_coff`, [
    [
      "red-hat-block",
      "refuse",
      "Reloc %d block size %d is invalid",
      reloc.corruptTable("block size", "beyond the table"),
    ],
    ["red-hat-block-place", "stops", "", reloc.corruptTable("not in memory")],
    ["red-hat-reloc-target", "refuse", "Reloc %d Invalid fixupbase", reloc.targetOutsideImage],
    ["red-hat-reloc-type", "refuse", "relocation failed", reloc.typeNotIn(reloc.LOADER_TYPES)],
  ]),
  ...rulesOf(`${CHAINLOADER}:handle_image`, [
    ["red-hat-entry-nowhere", "refuse", "entry point is not within sections", reloc.entryByRawSize.nowhere],
    ["red-hat-entry-twice", "refuse", "%d sections contain entry point", reloc.entryByRawSize.several],
  ]),
];

// ---- Debian's and Ubuntu's GRUB

const PEIMAGE = "Debian grub2 grub-core/loader/efi/peimage.c";

const peimage = (version: string, sizes: readonly Rule[]): Rule[] => [
  ...rulesOf(`${PEIMAGE} (${version})`, [
    ["peimage-subsystem", "refuse", "", check.subsystemIsNot(10)],
    ["peimage-alignment", "refuse", "invalid section alignment", check.sectionAlignmentNoPowerOfTwo],
    ["peimage-in-headers", "refuse", "section inside header", check.sectionInsideHeaders],
    [
      "peimage-raw-in-headers",
      "refuse",
      version === "2.12" ? "" : "section data inside header",
      check.rawInsideHeaders,
    ],
    ["peimage-truncated", "refuse", "truncated image", check.rawOutsideFile],
    ["peimage-outside", "refuse", "section outside image", check.sectionOutsideImage],
  ]),
  ...sizes,
  ...rulesOf(`${PEIMAGE} (${version})`, [
    ["peimage-raw-reach", "stops", "", check.rawReachesOver],
    ["peimage-overlap", "stops", "", check.anyOverlap],
    ["peimage-relocs-outside", "refuse", "relocation block outside image", reloc.tableOutsideImage],
    [
      "peimage-reloc-type",
      "refuse",
      "unsupported relocation type %d, rva 0x%08lx",
      reloc.typeNotIn(reloc.LOADER_TYPES),
    ],
    // Block sizes are trusted; one of 0 is walked for ever.
    ["peimage-reloc-block", "stops", "", reloc.corruptTable()],
    ["peimage-reloc-target", "stops", "", reloc.targetOutsideImage],
    ["peimage-entry-outside", "stops", "", reloc.entryOutsideImage],
  ]),
];

const PEIMAGE_2_14: readonly Rule[] = rulesOf(`${PEIMAGE} (2.14)`, [
  ["peimage-nx-page", "refuse", "NX compatible image with sub-page section alignment", check.nxAlignmentBelowPage],
  ["peimage-raw-size", "refuse", "section data larger than virtual size", check.rawLargerThanVirtual],
  ["peimage-nx-place", "refuse", "NX compatible image with badly aligned section", check.nxNotPageAligned],
  ["peimage-nx-section", "refuse", "NX compatible image with W|X section", check.nxWritableAndExecutable],
]);

/** What the chainloader command prints last, over any reason. */
const cannotLoad = (): string => "cannot load image";

/** The rules of a complete load by shim, which GRUB 2.14 asks for before it loads a Multiboot2 kernel itself. */
export const SHIM_LOAD: readonly Rule[] = [...READ_HEADER, ...GENERATE_HASH, ...HANDLE_IMAGE];

export const SHIM_PROFILES: readonly Profile[] = [
  profile(
    "shim",
    "shim",
    "shim: as second stage without Secure Boot, or through its protocols for GRUB and systemd-boot",
    true,
    [SHIM_LOAD, XEN_UNDER_SHIM, ATTRIBUTES],
  ),
  profile("shim-secure-boot", "shim", "shim with Secure Boot, as its second stage, once the file is signed", false, [
    READ_HEADER,
    SECOND_STAGE,
    GENERATE_HASH,
    HANDLE_IMAGE,
    XEN_UNDER_SHIM,
    ATTRIBUTES,
  ]),
  profile("shim-nx", "shim", "shim with its REQUIRE_NX policy on", false, [
    READ_HEADER,
    NX_HEADER,
    GENERATE_HASH,
    NX_SECTIONS,
    HANDLE_IMAGE,
    XEN_UNDER_SHIM,
    ATTRIBUTES,
  ]),
  profile("grub-chain-redhat", "shim", "Red Hat's and Fedora's GRUB chainloader with Secure Boot", true, [
    RED_HAT_RULES,
    XEN_UNDER_SHIM,
  ]),
  profile(
    "grub-peimage-2.12",
    "firmware",
    "Debian's and Ubuntu's GRUB 2.12 chainloader, its own PE loader",
    true,
    [peimage("2.12", []), XEN_EFI],
    cannotLoad,
  ),
  profile(
    "grub-peimage-2.14",
    "firmware",
    "Debian's GRUB 2.14 chainloader, its own PE loader where shim has none",
    true,
    [peimage("2.14", PEIMAGE_2_14), XEN_EFI],
    cannotLoad,
  ),
];
