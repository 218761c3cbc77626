// SPDX-License-Identifier: GPL-2.0-only
// Profiles of what loads Xen as a PE: firmware and what leaves it to firmware, and U-Boot; and what Xen itself then
// asks for. Read from the sources named in each table; the words are those of the source, or of the built loader.
// Firmware says no with a status and nothing else, which whoever called it prints: EFI_UNSUPPORTED is "Unsupported".

import { hex } from "../cli/numbers.ts";
import { sectionEnd } from "../judge/read.ts";
import { SIZE_2M } from "../tables/pe.ts";
import * as reloc from "./checks-relocations.ts";
import * as check from "./checks.ts";
import { profile, rulesOf, type Check, type Profile, type Rule } from "./rules.ts";

// ---- Xen

/** Where Xen's payloads are looked up by name (xen/common/efi/boot.c): at most eight characters, no string table. */
const PAYLOADS = [".config", ".kernel", ".ramdisk", ".ucode", ".xsm"];

const payloadOutsideImage = check.anySection(
  (s, image) =>
    PAYLOADS.some((name) => check.isStoredAs(s, name)) &&
    sectionEnd(s) > image.optional.sizeOfImage &&
    check.placeIn(s, image),
);

const payloadNotFound = check.anySection(
  (s) =>
    PAYLOADS.includes(s.name) &&
    s.header.name.startsWith("/") &&
    "has its name in the string table, where Xen does not look: it is not found",
);

/** Loaders guarantee a 2 MiB boundary only by SectionAlignment. */
export const alignmentTooSmall: Check = ({ image: { optional: o } }) =>
  (o.sectionAlignment === 0 || o.sectionAlignment % SIZE_2M !== 0) &&
  `SectionAlignment is ${hex(o.sectionAlignment)}, needed a multiple of ` +
    `${hex(SIZE_2M)}: the image is loaded at a multiple of it`;

const tooLargeFor4G: Check = ({ image: { optional: o } }) =>
  o.sizeOfImage > 2 ** 32 - SIZE_2M && `SizeOfImage is ${hex(o.sizeOfImage)}, needed room for it below 4 GiB`;

const XEN = "xen-project/xen";

/** Xen as an EFI application, with its whole table of base relocations in memory. */
export const XEN_EFI: readonly Rule[] = [
  ...rulesOf(`${XEN} xen/arch/x86/efi/efi-boot.h:efi_arch_load_addr_check`, [
    ["xen-below-4g", "stops", "Xen must be loaded below 4Gb.", tooLargeFor4G],
    ["xen-2m", "stops", "Xen must be loaded at a 2Mb boundary.", alignmentTooSmall],
  ]),
  ...rulesOf(`${XEN} xen/common/efi/pe.c:pe_find_section`, [
    ["xen-payload", "stops", "PE invalid section size + address", payloadOutsideImage],
    ["xen-payload-name", "warn", "", payloadNotFound],
  ]),
  ...rulesOf(`${XEN} xen/arch/x86/efi/efi-boot.h:efi_arch_relocate_image`, [
    ["xen-no-relocs", "stops", "", reloc.noTable],
    ["xen-reloc-twice", "stops", "", reloc.targetRepeated],
    ["xen-reloc-type", "stops", "Unsupported relocation type", reloc.typeNotIn(reloc.XEN_TYPES)],
    // SizeOfBlock is trusted: what is behind the block is then read as types.
    ["xen-reloc-block", "stops", "Unsupported relocation type", reloc.corruptTable()],
  ]),
];

/** The same under a loader that leaves discardable sections out. */
export const XEN_UNDER_SHIM: readonly Rule[] = [
  ...XEN_EFI,
  ...rulesOf(`${XEN} xen/arch/x86/efi/efi-boot.h:efi_arch_relocate_image`, [
    ["xen-reloc-discardable", "stops", "Unsupported relocation type", reloc.tableNotLoaded],
  ]),
];

// ---- EDK2

const EDK2 = "tianocore/edk2";
const PECOFF = `${EDK2} MdePkg/Library/BasePeCoffLib/BasePeCoff.c`;

/** LoadImage's own rules; nothing is printed, and these are the names of the statuses. */
const EDK2_RULES: readonly Rule[] = [
  ...rulesOf(`${PECOFF}:PeCoffLoaderGetPeHeader`, [
    ["pe-table-room", "refuse", "Unsupported", check.imageHasNoRoomForTable],
    ["pe-headers-size", "refuse", "Unsupported", check.headersFillImage],
    ["pe-data-in-headers", "refuse", "Unsupported", check.dataInsideHeaders],
    ["pe-certificate", "refuse", "Unsupported", check.certificateOutsideFile],
  ]),
  ...rulesOf(`${PECOFF}:PeCoffLoaderGetImageInfo`, [
    ["pe-debug-directory", "refuse", "Unsupported", check.debugEntriesOutsideFile],
  ]),
  ...rulesOf(`${EDK2} MdeModulePkg/Core/Dxe/Image/Image.c:CoreLoadPeImage`, [
    ["pe-subsystem", "refuse", "Unsupported", check.subsystemIsNot(10, 11, 12)],
    // It may be loaded at ImageBase only, where no machine has memory.
    ["pe-relocs-stripped", "refuse", "", check.relocationsStripped],
  ]),
  ...rulesOf(`${PECOFF}:PeCoffLoaderLoadImage`, [
    ["pe-data-outside", "refuse", "Load Error", check.dataOutsideImage],
    ["pe-codeview", "refuse", "Load Error", check.codeviewTooSmall],
    // EntryPoint becomes NULL, and is called.
    ["pe-entry-outside", "stops", "", reloc.entryOutsideImage],
    ["pe-overlap", "stops", "", check.anyOverlap],
  ]),
  ...rulesOf(`${PECOFF}:PeCoffLoaderRelocateImage`, [
    ["pe-relocs-outside", "refuse", "Load Error", reloc.tableOutsideImage],
    ["pe-reloc-block", "refuse", "Load Error", reloc.corruptTable()],
    ["pe-reloc-target", "refuse", "Load Error", reloc.targetOutsideImage],
    ["pe-reloc-type", "refuse", "Load Error", reloc.typeNotIn(reloc.LOADER_TYPES)],
  ]),
];

const VERIFICATION = `${EDK2} SecurityPkg/Library/DxeImageVerificationLib/DxeImageVerificationLib.c`;

const SECURE_BOOT: readonly Rule[] = [
  ...rulesOf(`${VERIFICATION}:HashPeImage`, [["hash-sum", "refuse", "Access Denied", check.hashProblem("sum")]]),
  ...rulesOf(`${VERIFICATION}:DxeImageVerificationHandler`, [
    ["certificate-last", "refuse", "Access Denied", check.certificateNotLast],
    // What any signature would mean; that there is none, or by whom, is not the image's shape.
    ["hash-uneven", "warn", "", check.hashProblem("gap", "twice", "order")],
    ["hash-padding", "warn", "", check.hashProblem("padding")],
    ["unsigned", "warn", "", check.unsigned],
  ]),
];

// ---- U-Boot

const U_BOOT = "u-boot/u-boot lib/efi_loader/efi_image_loader.c";

const targetBeyondSections: Check = ({ image, relocations: { highest } }) => {
  const end = image.sections.reduce((most, s) => Math.max(most, sectionEnd(s)), 0);
  return highest >= end && `a base relocation is for RVA ${hex(highest)}, memory ends at RVA ${hex(end)}`;
};

const U_BOOT_RULES: readonly Rule[] = [
  ...rulesOf(`${U_BOOT}:efi_set_code_and_data_type`, [
    ["u-boot-subsystem", "warn", "invalid image type: %u", check.subsystemIsNot(10, 11, 12, 13)],
  ]),
  ...rulesOf(`${U_BOOT}:efi_load_pe`, [["u-boot-overlap", "stops", "", check.anyOverlapBackwards]]),
  ...rulesOf(`${U_BOOT}:efi_loader_relocate`, [
    ["u-boot-reloc-block", "refuse", "", reloc.corruptTable()],
    ["u-boot-reloc-target", "refuse", "", targetBeyondSections],
    [
      "u-boot-reloc-type",
      "refuse",
      "Unknown Relocation off %x type %x",
      reloc.typeNotIn(reloc.LOADER_TYPES, (type, rva) => [rva, type]),
    ],
  ]),
  ...rulesOf("observed: Debian 12's U-Boot 2023.01 qemu-x86_64, also with an untouched xen.efi", [
    [
      "u-boot-observed",
      "stops",
      "",
      () => "bootefi starts Xen's EFI loader, which prints the addresses of kernel and ramdisk and goes no further",
    ],
  ]),
];

// ---- profiles

export const EFI_PROFILES: readonly Profile[] = [
  profile("xen", "firmware", "Xen itself, once it runs as an EFI application", true, [XEN_EFI]),
  profile("edk2", "firmware", "UEFI firmware, LoadImage", true, [EDK2_RULES, XEN_EFI]),
  profile(
    "edk2-secure-boot",
    "firmware",
    "UEFI firmware with Secure Boot, once the file is signed with a key in db",
    true,
    [EDK2_RULES, SECURE_BOOT, XEN_EFI],
  ),
  profile(
    "systemd-boot",
    "firmware",
    "systemd-boot, an efi entry (LoadImage)",
    true,
    [EDK2_RULES, XEN_EFI],
    (says) => `Error loading EFI binary: ${says}`,
  ),
  profile(
    "grub-chainloader",
    "firmware",
    "GRUB's chainloader as upstream has it (LoadImage)",
    true,
    [EDK2_RULES, XEN_EFI],
    () => "cannot load image",
  ),
  profile("ipxe-efi", "firmware", "iPXE as an EFI program (LoadImage)", true, [EDK2_RULES, XEN_EFI]),
  profile("u-boot-efi", "firmware", "U-Boot's bootefi", false, [U_BOOT_RULES, XEN_EFI]),
];
