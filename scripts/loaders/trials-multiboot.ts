// SPDX-License-Identifier: GPL-2.0-only
// For tests: what can be wrong with an image's Multiboot headers, and which rules of the loader profiles it trips. The
// numbers are those of mini-xen after the three steps.

import { MB2_ENTRY_ADDRESS_TAG, MB2_RELOCATABLE_TAG, MB2_TAG } from "../tables/multiboot.ts";
import type { Trial } from "./trials-efi.ts";

export function multibootTrials(good: Uint8Array): readonly Trial[] {
  return [
    {
      what: "no Multiboot1 magic",
      edit: (s) => s.setMb1({ magic: 0 }),
      trips: "grub-mb1-header qemu-header syslinux-header ipxe-header limine-mb1-magic kexec-header freebsd-mb1-magic",
      cures: "kexec-observed freebsd-mb1-flags",
    },
    {
      what: "Multiboot1 checksum",
      edit: (s) => s.setMb1({ checksum: 1 }),
      trips: `
      grub-mb1-header qemu-header syslinux-header ipxe-header limine-mb1-checksum kexec-header
      freebsd-mb1-checksum`,
      cures: "kexec-observed freebsd-mb1-flags",
    },
    {
      what: "Multiboot1 flag 3",
      edit: (s) => s.setMb1({ flags: 0x1000b }),
      trips: "grub-mb1-flags syslinux-flags ipxe-flags kexec-flags",
    },
    {
      what: "Multiboot1 without addresses",
      edit: (s) => s.setMb1({ flags: 3 }),
      trips: `
      grub-mb1-no-addresses qemu-no-addresses syslinux-no-addresses ipxe-no-addresses
      limine-multiboot1-no-addresses kexec-no-addresses`,
      cures: "kexec-observed freebsd-mb1-flags",
    },
    {
      what: "Multiboot1 without addresses, half an ELF32",
      edit: (s) => s.setMb1({ flags: 3 }).setText(4, "\u0001"),
      trips: `
      grub-mb1-half-elf qemu-no-addresses syslinux-no-addresses ipxe-no-addresses
      limine-multiboot1-no-addresses kexec-no-addresses`,
      cures: "kexec-observed freebsd-mb1-flags",
    },
    {
      what: "Multiboot1 without addresses, an ELF's machine",
      edit: (s) => s.setMb1({ flags: 3 }).setText(18, "\u003e\0"),
      trips: `
      grub-mb1-no-addresses qemu-half-elf syslinux-no-addresses ipxe-no-addresses
      limine-multiboot1-no-addresses kexec-no-addresses`,
      cures: "kexec-observed freebsd-mb1-flags",
    },
    {
      what: "Multiboot1 video mode",
      edit: (s) => s.setMb1({ flags: 0x10007 }),
      trips: "qemu-video",
    },
    {
      what: "Multiboot1 at the end of the window",
      edit: (s) => s.moveMb1(8192 - 48),
      trips: "qemu-window",
    },
    {
      what: "HdrS",
      edit: (s) => s.setText(0x202, "HdrS"),
      trips: "qemu-linux",
    },
    {
      what: "Multiboot1 header_addr below load_addr",
      edit: (s) => s.setMb1({ headerAddr: 0x1fe000 }),
      trips: `
      grub-mb1-load-behind qemu-load-behind syslinux-load-behind ipxe-load-behind limine-multiboot1-behind
      kexec-load-behind`,
    },
    {
      what: "Multiboot1 before the file",
      edit: (s) => s.setMb1({ loadAddr: 0x1fe000 }),
      trips: "grub-mb1-offset qemu-offset syslinux-offset ipxe-offset limine-multiboot1-offset",
    },
    {
      what: "Multiboot1 load_end_addr below load_addr",
      edit: (s) => s.setMb1({ loadEndAddr: 0x1000 }),
      trips: `
      grub-mb1-end-below qemu-end-below syslinux-end-below ipxe-end-below limine-multiboot1-end-below
      kexec-end`,
    },
    {
      what: "Multiboot1 load_end_addr beyond the file",
      edit: (s) => s.setMb1({ loadEndAddr: 0x1ff000 + good.length + 8 }),
      trips: "grub-mb1-short qemu-short syslinux-short ipxe-size ipxe-short limine-multiboot1-short kexec-short",
    },
    {
      what: "Multiboot1 load_end_addr beyond the file, but not more bytes than it has",
      edit: (s) => s.setMb1({ loadAddr: 0x1ff010, loadEndAddr: 0x1ff010 + good.length }),
      trips: "grub-mb1-short qemu-short syslinux-short ipxe-short limine-multiboot1-short kexec-page kexec-short",
    },
    {
      what: "Multiboot1 load_end_addr 0",
      edit: (s) => s.setMb1({ loadEndAddr: 0 }),
      trips: "syslinux-bss-origin kexec-end",
    },
    {
      what: "Multiboot1 load_end_addr and bss_end_addr 0",
      edit: (s) => s.setMb1({ loadEndAddr: 0, bssEndAddr: 0 }),
      trips: "xen-mb-bss kexec-end",
    },
    {
      what: "Multiboot1 bss_end_addr below load_end_addr",
      edit: (s) => s.setMb1({ bssEndAddr: 0x300000 }),
      trips: "grub-mb1-bss qemu-bss syslinux-bss ipxe-bss limine-multiboot1-bss kexec-bss",
    },
    {
      what: "Multiboot1 bss_end_addr 0",
      edit: (s) => s.setMb1({ bssEndAddr: 0 }),
      trips: "xen-mb-bss kexec-bss",
    },
    {
      what: "Multiboot1 bss_end_addr not rounded",
      edit: (s) => s.setMb1({ bssEndAddr: 0x934000 }),
      trips: "xen-mb-bss-2m",
    },
    {
      what: "Multiboot1 load_addr within a page",
      edit: (s) => s.setMb1({ loadAddr: 0x1ff010, headerAddr: 0x1ff010 + 0xfc0 }),
      trips: "xen-mb-memory kexec-page",
    },
    {
      what: "Multiboot1 entry outside",
      edit: (s) => s.setMb1({ entryAddr: 0x10000 }),
      trips: "xen-mb-entry kexec-entry",
    },
    {
      what: "_start within 2 MiB",
      edit: (s) => s.setSection(".text", { virtualAddress: 0x201000, virtualSize: 0x1ff000 }),
      trips: "peimage-raw-size xen-mb-2m xen-mb-memory",
    },
    {
      what: "a section's data elsewhere",
      edit: (s) => s.setSection(".rodata", { pointerToRawData: 0x202000 }),
      trips: "hash-uneven xen-mb-memory",
    },
    {
      what: "no Multiboot2 magic",
      edit: (s) => s.set32(s.mb2(), 0),
      trips: "grub-mb2-header limine-mb2-magic freebsd-mb2-magic",
      cures: "limine-boot-services freebsd-mb2-tag",
    },
    {
      what: "Multiboot2 checksum",
      edit: (s) => s.set32(s.mb2() + 12, 1),
      trips: "grub-mb2-header limine-mb2-checksum freebsd-mb2-checksum",
      cures: "limine-boot-services freebsd-mb2-tag",
    },
    {
      what: "a Multiboot2 tag of 4 bytes",
      edit: (s) => s.setTag(6, MB2_TAG, { size: 4 }),
      trips: "grub-mb2-tags limine-mb2-tags",
      cures: "limine-boot-services freebsd-mb2-tag",
    },
    {
      what: "an unknown information request",
      edit: (s) => s.set32(s.tag(1) + 8, 99),
      trips: "grub-mb2-request limine-mb2-request freebsd-mb2-request",
    },
    {
      what: "an information request for EFI's memory map",
      edit: (s) => s.set32(s.tag(1) + 8, 17),
      trips: "limine-mb2-request freebsd-mb2-request",
    },
    {
      what: "an unknown tag",
      edit: (s) => s.setTag(6, MB2_TAG, { type: 11 }),
      trips: "grub-mb2-tag limine-mb2-tag",
    },
    {
      what: "the EFI32 entry tag",
      edit: (s) => s.setTag(6, MB2_TAG, { type: 8 }),
      trips: "grub-mb2-tag limine-mb2-tag",
    },
    {
      what: "no entry address tag",
      edit: (s) => s.dropTag(3),
      trips: "grub-mb2-no-entry limine-mb2-order limine-mb2-no-entry",
    },
    {
      what: "no entry tag at all",
      edit: (s) => s.dropTag(3).dropTag(9),
      trips: "grub-mb2-no-entry xen-mb-efi-entry limine-mb2-no-entry freebsd-mb2-efi64",
    },
    {
      what: "the EFI64 entry tag first",
      edit: (s) => s.swapEntries(),
      trips: "limine-mb2-order",
    },
    {
      what: "no address tag",
      edit: (s) => s.dropTag(2),
      trips: "grub-mb2-no-addresses limine-multiboot2-no-addresses",
      cures: "limine-boot-services",
    },
    {
      what: "no address tag, half an ELF64",
      edit: (s) => s.dropTag(2).setText(4, "\u0002"),
      trips: "grub-mb2-half-elf limine-multiboot2-no-addresses",
      cures: "limine-boot-services",
    },
    {
      what: "no address and entry tags",
      edit: (s) => s.dropTag(2).dropTag(3),
      trips: "grub-mb2-no-addresses limine-mb2-order limine-multiboot2-no-addresses",
      cures: "limine-boot-services freebsd-mb2-tag",
    },
    {
      what: "max_addr too low",
      edit: (s) => s.setTag(10, MB2_RELOCATABLE_TAG, { maxAddr: 0x800000 }),
      trips: "grub-mb2-limits",
    },
    {
      what: "relocatable by pages",
      edit: (s) => s.setTag(10, MB2_RELOCATABLE_TAG, { align: 0x1000 }),
      trips: "xen-mb-2m",
    },
    {
      what: "no EFI boot services tag",
      edit: (s) => s.dropTag(7),
      trips: "xen-mb-boot-services freebsd-mb2-efi-bs",
    },
    {
      what: "no EFI64 entry tag",
      edit: (s) => s.dropTag(9),
      trips: "xen-mb-efi-entry freebsd-mb2-efi64",
    },
    {
      what: "Multiboot2 header_addr below load_addr",
      edit: (s) => s.setAddressTag({ headerAddr: 0x100000 }),
      trips: "grub-mb2-load-behind limine-multiboot2-behind",
    },
    {
      what: "Multiboot2 before the file",
      edit: (s) => s.setAddressTag({ loadAddr: 0x1fe000 }),
      trips: "grub-mb2-offset xen-mb-2m limine-multiboot2-offset",
    },
    {
      what: "Multiboot2 load_end_addr below load_addr",
      edit: (s) => s.setAddressTag({ loadEndAddr: 0x1000 }),
      trips: "grub-mb2-end-below limine-multiboot2-end-below",
    },
    {
      what: "Multiboot2 load_end_addr beyond the file",
      edit: (s) => s.setAddressTag({ loadEndAddr: 0x200000 + good.length }),
      trips: "grub-mb2-short limine-multiboot2-short",
    },
    {
      what: "Multiboot2 bss_end_addr below load_end_addr",
      edit: (s) => s.setAddressTag({ bssEndAddr: 0x300000 }),
      trips: "grub-mb2-bss limine-multiboot2-bss",
    },
    {
      what: "Multiboot2 bss_end_addr 0",
      edit: (s) => s.setAddressTag({ bssEndAddr: 0 }),
      trips: "xen-mb-bss",
    },
    {
      what: "Multiboot2 bss_end_addr not rounded",
      edit: (s) => s.setAddressTag({ bssEndAddr: 0x934000 }),
      trips: "xen-mb-bss-2m",
    },
    {
      what: "Multiboot2 entry outside",
      edit: (s) => s.setTag(3, MB2_ENTRY_ADDRESS_TAG, { entryAddr: 0x10000 }),
      trips: "xen-mb-entry",
    },
  ];
}
