// SPDX-License-Identifier: GPL-2.0-only
// Profiles of what loads Xen by a Multiboot header. No loader notices when it puts the wrong bytes in the right place,
// so what Xen needs of its memory is a rule of each.

import { MB1_SEARCH } from "../tables/multiboot.ts";
import * as mb from "./checks-multiboot.ts";
import { version1, version2, type Version } from "./checks-multiboot.ts";
import { profile, rulesOf, type Check, type Profile, type Rule } from "./rules.ts";
import { SHIM_LOAD } from "./shim.ts";

// ---- Xen

const HEAD = "xen-project/xen xen/arch/x86/boot/head.S";

function xenIn(version: Version): Rule[] {
  return rulesOf(HEAD, [
    ["xen-mb-2m", "stops", "ERR: Xen must be loaded at a 2Mb boundary!", mb.startUnaligned(version)],
    ["xen-mb-memory", "stops", "", mb.memoryDiffers(version)],
    ["xen-mb-entry", "stops", "", mb.entryOutsideLoad(version)],
    ["xen-mb-bss", "stops", "", mb.bssNotCovered(version)],
    ["xen-mb-bss-2m", "warn", "", mb.bssNotRounded(version)],
  ]);
}

const XEN_ON_EFI: readonly Rule[] = rulesOf(`${HEAD} (on EFI)`, [
  ["xen-mb-boot-services", "stops", "ERR: Bootloader shutdown EFI x64 boot services!", mb.noBootServicesTag],
  ["xen-mb-efi-entry", "stops", "", mb.noEfi64TagForXen],
]);

// ---- GRUB

const GRUB = "GRUB grub-core/loader";
const SEEK = "attempt to seek outside of the file";
/** All that the specification had in 2.06. */
const INFORMATION = Array.from({ length: 22 }, (_, type) => type);

const grubAddresses = (source: string, id: string, version: Version): Rule[] =>
  rulesOf(`${GRUB}/${source}`, [
    [`${id}-load-behind`, "refuse", SEEK, mb.loadBehindHeader(version)],
    [`${id}-offset`, "refuse", SEEK, mb.offsetBelowFile(version)],
    [`${id}-end-below`, "stops", "", mb.endBelowLoad(version)],
    [`${id}-short`, "stops", "", mb.endBeyondFile(version)],
    [`${id}-bss`, "stops", "", mb.bssBelowEnd(version)],
  ]);

const grubElf = (loadElf: string, id: string, none: Check): Rule[] => [
  ...rulesOf(`${GRUB}/multiboot.c:${loadElf}`, [
    [`${id}-no-addresses`, "refuse", "invalid arch-dependent ELF magic", mb.whereElfClassLooks(false, none)],
  ]),
  ...rulesOf(`${GRUB}/multiboot_elfxx.c:grub_multiboot_load_elf`, [
    [`${id}-half-elf`, "refuse", "invalid arch-independent ELF magic", mb.whereElfClassLooks(true, none)],
  ]),
];

const GRUB_MB2: readonly Rule[] = [
  ...rulesOf(`${GRUB}/multiboot_mbi2.c:grub_multiboot2_load`, [
    ["grub-mb2-header", "refuse", "no multiboot header found", mb.noHeader(version2)],
    ["grub-mb2-tags", "refuse", "", mb.badTags],
    ["grub-mb2-request", "refuse", "unsupported information tag: 0x%x", mb.requestBesides(...INFORMATION)],
    ["grub-mb2-tag", "refuse", "unsupported tag: 0x%x", mb.requiredTagBesides(1, 2, 3, 4, 5, 6, 7, 9, 10)],
    ["grub-mb2-no-entry", "refuse", "load address tag without entry address tag", mb.addressWithoutEntry],
    ["grub-mb2-limits", "refuse", "invalid min/max address and/or load size", mb.limitsTooTight],
  ]),
  ...grubAddresses("multiboot_mbi2.c:grub_multiboot2_load", "grub-mb2", version2),
  ...grubElf("grub_multiboot2_load_elf", "grub-mb2", mb.noAddresses2),
];

const GRUB_MB1: readonly Rule[] = [
  ...rulesOf(`${GRUB}/i386/multiboot_mbi.c:grub_multiboot_load`, [
    ["grub-mb1-header", "refuse", "no multiboot header found", mb.noHeader(version1)],
    ["grub-mb1-flags", "refuse", "unsupported flag: 0x%x", mb.flagsOutside(0x7)],
  ]),
  ...grubAddresses("i386/multiboot_mbi.c:load_kernel", "grub-mb1", version1),
  ...grubElf("grub_multiboot_load_elf", "grub-mb1", mb.noAddresses1),
];

const NO_MODULES =
  "module2 is refused, since MULTIBOOT_MODULE is not on the list of unverified file types: no dom0; " +
  "the way that is left is to chainload an image with embedded sections";
const MODULES: readonly Rule[] = rulesOf("GRUB grub-core/kern/efi/sb.c:shim_lock_verifier_init", [
  ["grub-modules", "refuse", "prohibited by secure boot policy", () => NO_MODULES],
]);

// ---- the other loaders of Multiboot1

const QEMU = "qemu/qemu hw/i386/multiboot.c:load_multiboot";

const QEMU_RULES: readonly Rule[] = [
  ...rulesOf("qemu/qemu hw/i386/x86-common.c:x86_load_linux", [
    ["qemu-linux", "refuse", "", mb.looksLikeLinux],
    ["qemu-header", "refuse", "qemu: invalid kernel header", mb.noHeader(version1)],
  ]),
  ...rulesOf(QEMU, [
    ["qemu-window", "refuse", "qemu: invalid kernel header", mb.headerBehind(MB1_SEARCH - 52)],
    ["qemu-video", "warn", "multiboot knows VBE. we don't", mb.asksForVideo],
    ["qemu-no-addresses", "refuse", "Error while loading elf kernel", mb.whereMachineLooks64(false, mb.noAddresses1)],
    [
      "qemu-half-elf",
      "refuse",
      "Cannot load x86-64 image, give a 32bit one.",
      mb.whereMachineLooks64(true, mb.noAddresses1),
    ],
    ["qemu-load-behind", "refuse", "invalid load_addr address", mb.loadBehindHeader(version1)],
    ["qemu-offset", "refuse", "invalid header_addr address", mb.offsetBelowFile(version1)],
    ["qemu-end-below", "refuse", "invalid load_end_addr address", mb.endBelowLoad(version1)],
    ["qemu-bss", "refuse", "invalid bss_end_addr address", mb.bssBelowEnd(version1)],
    ["qemu-short", "refuse", "fread() failed", mb.endBeyondFile(version1)],
  ]),
];

const NEITHER = "Invalid Multiboot image: neither ELF header nor a.out kludge found";

const SYSLINUX_RULES: readonly Rule[] = rulesOf("syslinux com32/mboot/map.c:map_image", [
  ["syslinux-flags", "refuse", "Unsupported Multiboot flags set: %#x", mb.flagsOutside(0x7)],
  ["syslinux-header", "refuse", NEITHER, mb.noHeader(version1)],
  ["syslinux-no-addresses", "refuse", NEITHER, mb.noAddresses1],
  ["syslinux-load-behind", "stops", "", mb.loadBehindHeader(version1)],
  ["syslinux-offset", "stops", "", mb.offsetBelowFile(version1)],
  ["syslinux-end-below", "stops", "", mb.endBelowLoad(version1)],
  ["syslinux-short", "stops", "", mb.endBeyondFile(version1)],
  ["syslinux-bss-origin", "stops", "", mb.bssWithoutEnd(version1)],
  ["syslinux-bss", "stops", "", mb.bssBelowEnd(version1)],
]);

const IPXE = "ipxe/ipxe src/arch/x86/image/multiboot.c";
const INVALID_ARGUMENT = "Invalid argument";

const IPXE_RULES: readonly Rule[] = [
  ...rulesOf(`${IPXE}:multiboot_find_header`, [["ipxe-header", "refuse", "Exec format error", mb.noHeader(version1)]]),
  ...rulesOf(`${IPXE}:multiboot_exec`, [["ipxe-flags", "refuse", "Operation not supported", mb.flagsOutside(0x7)]]),
  ...rulesOf(`${IPXE}:multiboot_load_raw`, [
    ["ipxe-no-addresses", "refuse", INVALID_ARGUMENT, mb.noAddresses1],
    ["ipxe-load-behind", "refuse", INVALID_ARGUMENT, mb.loadBehindHeader(version1)],
    ["ipxe-offset", "refuse", INVALID_ARGUMENT, mb.offsetBelowFile(version1)],
    ["ipxe-end-below", "refuse", INVALID_ARGUMENT, mb.endBelowLoad(version1)],
    ["ipxe-size", "refuse", INVALID_ARGUMENT, mb.moreThanFile(version1)],
    ["ipxe-short", "stops", "", mb.endBeyondFile(version1)],
    ["ipxe-bss", "refuse", INVALID_ARGUMENT, mb.bssBelowEnd(version1)],
  ]),
];

const limine = (file: string, version: Version, noAddresses: Check): Rule[] =>
  rulesOf(`limine-bootloader/limine common/protos/${file}.c:${file}_load`, [
    [`limine-${file}-behind`, "refuse", `${file}: Illegal load address`, mb.loadBehindHeader(version)],
    [`limine-${file}-offset`, "stops", "", mb.offsetBelowFile(version)],
    [`limine-${file}-end-below`, "stops", "", mb.endBelowLoad(version)],
    [`limine-${file}-bss`, "refuse", `${file}: Illegal bss end address`, mb.bssBelowEnd(version)],
    [`limine-${file}-short`, "stops", "", mb.endBeyondFile(version)],
    [`limine-${file}-no-addresses`, "refuse", `${file}: Invalid ELF file bitness`, noAddresses],
  ]);

const LIMINE_MB1: readonly Rule[] = [
  ...rulesOf("limine-bootloader/limine common/protos/multiboot1.c:multiboot1_load", [
    ["limine-mb1-magic", "refuse", "multiboot1: Invalid magic", mb.noMagic(version1)],
    ["limine-mb1-checksum", "refuse", "multiboot1: Header checksum is invalid", mb.firstMagicInvalid(version1)],
  ]),
  ...limine("multiboot1", version1, mb.noAddresses1),
];

const EFI64_UNSUPPORTED = "multiboot2: required EFI AMD64 entry tag is unsupported and no alternative entry was found";

const LIMINE_MB2: readonly Rule[] = [
  ...rulesOf("limine-bootloader/limine common/protos/multiboot2.c:multiboot2_load", [
    ["limine-mb2-magic", "refuse", "multiboot2: Invalid magic", mb.noMagic(version2)],
    ["limine-mb2-checksum", "refuse", "multiboot2: Header checksum is invalid", mb.firstMagicInvalid(version2)],
    ["limine-mb2-tags", "refuse", "", mb.badTags],
    [
      "limine-mb2-request",
      "refuse",
      "multiboot2: Requested tag `%d` which is not supported",
      mb.requestBesides(1, 2, 3, 4, 6, 8, 9, 13, 14, 15, 16, 21),
    ],
    ["limine-mb2-order", "refuse", EFI64_UNSUPPORTED, mb.efi64BeforeEntry],
    [
      "limine-mb2-tag",
      "refuse",
      "multiboot2: Unknown header tag type: %u",
      mb.requiredTagBesides(1, 2, 3, 4, 5, 6, 7, 9, 10),
    ],
    [
      "limine-mb2-no-entry",
      "refuse",
      "multiboot2: Using address tag but entry address tag missing",
      mb.addressWithoutEntry,
    ],
  ]),
  ...limine("multiboot2", version2, mb.noAddresses2),
];

const LIMINE_ON_EFI: readonly Rule[] = rulesOf(`${HEAD} (on EFI)`, [
  [
    "limine-boot-services",
    "stops",
    "ERR: Bootloader shutdown EFI x64 boot services!",
    mb.onceLoaded(version2, "Limine ends boot services before it starts a Multiboot2 kernel"),
  ],
]);

const KEXEC = "horms/kexec-tools kexec";
const NO_TYPE = "Cannot determine the file type of %s";

const KEXEC_RULES: readonly Rule[] = [
  ...rulesOf(`${KEXEC}/kexec.c:my_load`, [
    ["kexec-header", "refuse", NO_TYPE, mb.noHeader(version1)],
    ["kexec-no-addresses", "refuse", NO_TYPE, mb.noAddresses1],
  ]),
  ...rulesOf(`${KEXEC}/arch/i386/kexec-multiboot-x86.c`, [
    [
      "kexec-flags",
      "refuse",
      "Found a multiboot header, but it requires multiboot options that I don't understand.  Sorry.",
      mb.flagsOutside(0x7),
    ],
    ["kexec-page", "refuse", "multiboot load address not 4k aligned", mb.loadNotPageAligned(version1)],
    ["kexec-load-behind", "refuse", "multiboot header address > load address", mb.loadBehindHeader(version1)],
    ["kexec-end", "refuse", "multiboot load end address < load address", mb.endZeroOrBelow(version1)],
    ["kexec-bss", "refuse", "multiboot bss end address < load end address", mb.bssZeroOrBelow(version1)],
    ["kexec-short", "refuse", "multiboot file truncated", mb.endBeyondFile(version1)],
    ["kexec-entry", "refuse", "multiboot entry out of range", mb.entryOutsideLoad(version1)],
  ]),
  ...rulesOf("observed: kexec-tools 2.0.25 on Linux 6.1, and with xen.gz's ELF through the same handler", [
    [
      "kexec-observed",
      "stops",
      "",
      mb.onceLoaded(version1, "kexec -l takes the file, the jump hangs: the information structure is at address 0"),
    ],
  ]),
];

const FREEBSD_ELF = "elf32_loadfile_raw failed: 79 unable to load multiboot kernel";
const elfOnly = (): string => "it loads ELF files only";

const FREEBSD_MB1: readonly Rule[] = rulesOf("freebsd/freebsd-src stand/i386/libi386/multiboot.c:multiboot_loadfile", [
  ["freebsd-mb1-magic", "refuse", "", mb.noMagic(version1)],
  ["freebsd-mb1-checksum", "refuse", "Multiboot checksum failed", mb.firstMagicInvalid(version1)],
  ["freebsd-mb1-flags", "refuse", "Unsupported multiboot flags found: 0x%x", mb.flagsOutside(0x3, 0)],
  ["freebsd-mb1-elf", "refuse", FREEBSD_ELF, elfOnly],
]);

const FREEBSD_MB2: readonly Rule[] = rulesOf("freebsd/freebsd-src stand/efi/loader/arch/amd64/multiboot2.c:loadfile", [
  ["freebsd-mb2-magic", "refuse", "", mb.noMagic(version2)],
  ["freebsd-mb2-checksum", "refuse", "Multiboot checksum failed", mb.firstMagicInvalid(version2)],
  ["freebsd-mb2-request", "refuse", "Unknown non-optional information request %u", mb.requestBesides(4, 6, 12, 18, 20)],
  ["freebsd-mb2-tag", "refuse", "Unknown header tag %#x not optional", mb.requiredTagBesides(1, 6, 7, 9)],
  ["freebsd-mb2-efi64", "refuse", "No EFI64 entry address provided", mb.noEfi64Tag],
  ["freebsd-mb2-efi-bs", "refuse", "Unable to boot MB2 with BS exited", mb.noBootServicesTag],
  ["freebsd-mb2-elf", "refuse", FREEBSD_ELF, elfOnly],
]);

// ---- profiles

export const MULTIBOOT_PROFILES: readonly Profile[] = [
  profile("grub-mb2", "multiboot2", "GRUB multiboot2, on BIOS and EFI", true, [GRUB_MB2, xenIn(version2), XEN_ON_EFI]),
  profile("grub-mb2-secure-boot", "multiboot2", "GRUB 2.14's multiboot2 with Secure Boot and shim", false, [
    SHIM_LOAD,
    GRUB_MB2,
    MODULES,
    xenIn(version2),
    XEN_ON_EFI,
  ]),
  profile("grub-mb1", "multiboot1", "GRUB multiboot, on BIOS", true, [GRUB_MB1, xenIn(version1)]),
  profile("qemu-mb1", "multiboot1", "QEMU -kernel", true, [QEMU_RULES, xenIn(version1)]),
  profile("syslinux-mb1", "multiboot1", "syslinux mboot.c32", true, [SYSLINUX_RULES, xenIn(version1)]),
  profile(
    "ipxe-mb1",
    "multiboot1",
    "iPXE on BIOS",
    true,
    [IPXE_RULES, xenIn(version1)],
    (says) => `Could not boot: ${says}`,
  ),
  profile("limine-mb1", "multiboot1", "Limine 8 multiboot1, on BIOS", false, [LIMINE_MB1, xenIn(version1)]),
  profile("limine-mb2", "multiboot2", "Limine 8 multiboot2, on BIOS", false, [LIMINE_MB2, xenIn(version2)]),
  profile("limine-mb2-efi", "multiboot2", "Limine 8 multiboot2, on EFI", false, [
    LIMINE_MB2,
    xenIn(version2),
    LIMINE_ON_EFI,
  ]),
  profile("kexec", "multiboot1", "kexec-tools, Multiboot1", false, [KEXEC_RULES, xenIn(version1)]),
  profile("freebsd-mb1", "multiboot1", "FreeBSD's loader on BIOS", false, [FREEBSD_MB1]),
  profile("freebsd-mb2", "multiboot2", "FreeBSD's loader.efi", false, [FREEBSD_MB2]),
];
