// SPDX-License-Identifier: GPL-2.0-only
// For tests: what can be wrong with the headers and sections of an image, and which rules of the loader profiles it
// trips. The numbers are those of mini-xen after the three steps.

import { sectionHeader, type Spoil } from "../dev/spoilt.ts";
import { DEBUG_DIRECTORY_ENTRY } from "../tables/pe.ts";

export interface Trial {
  readonly what: string;
  readonly edit: Spoil;
  /** All rules that trip and did not before, over all profiles. */
  readonly trips: string;
  /** All that tripped before, and do not any more. */
  readonly cures?: string;
}

/** A section that holds some bytes of another. */
const SBAT = sectionHeader(".sbat\0\0\0", [0x935000, 0x100], [0x602200, 0x200], 0x42000040);

/** Two that share 0x100 bytes of memory. */
export const PAYLOADS = [
  sectionHeader(".ramdisk", [0x935000, 0x180], [0x602200, 0x200], 0x40000040),
  sectionHeader(".ucode\0\0", [0x935080, 0x100], [0x602400, 0x200], 0x40000040),
] as const;

/** @param headers the good image's SizeOfHeaders, and `image` its SizeOfImage */
export function efiTrials(good: Uint8Array, headers: number, image: number): readonly Trial[] {
  return [
    {
      what: "SizeOfImage below the section table",
      edit: (s) => s.setOptional({ sizeOfImage: 0x200 }),
      trips: `
      pe-table-room pe-headers-size pe-data-outside pe-relocs-outside pe-reloc-target pe-entry-outside
      shim-table-room shim-image-size shim-section-base shim-entry-outside shim-reloc-section
      shim-reloc-target red-hat-entry-outside red-hat-section-base red-hat-reloc-target red-hat-reloc-section
      red-hat-raw-reach peimage-outside peimage-relocs-outside peimage-raw-reach peimage-reloc-target
      peimage-entry-outside`,
    },
    {
      what: "SizeOfImage below SizeOfHeaders",
      edit: (s) => s.setOptional({ sizeOfImage: headers - 0x100 }),
      trips: `
      pe-headers-size pe-data-outside pe-relocs-outside pe-reloc-target pe-entry-outside shim-image-size
      shim-section-base shim-entry-outside shim-reloc-section shim-reloc-target red-hat-entry-outside
      red-hat-section-base red-hat-reloc-target red-hat-reloc-section red-hat-raw-reach peimage-outside
      peimage-relocs-outside peimage-raw-reach peimage-reloc-target peimage-entry-outside`,
    },
    {
      what: "SizeOfImage above 4 GiB less 2 MiB",
      edit: (s) => s.setOptional({ sizeOfImage: 0xffffffff }),
      trips: "xen-below-4g",
    },
    {
      what: "SizeOfHeaders above SizeOfImage",
      edit: (s) => s.setOptional({ sizeOfHeaders: 0x602000, sizeOfImage: 0x602000 }),
      trips: `
      pe-headers-size pe-data-in-headers pe-data-outside pe-relocs-outside pe-reloc-target hash-sum
      hash-uneven shim-section-base shim-section-end shim-section-headers shim-hash-sum shim-reloc-section
      shim-reloc-target red-hat-section-base red-hat-section-end red-hat-section-headers red-hat-reloc-target
      red-hat-reloc-section red-hat-raw-reach peimage-in-headers peimage-raw-in-headers peimage-outside
      peimage-relocs-outside peimage-raw-reach peimage-reloc-target`,
    },
    {
      what: "Subsystem 3",
      edit: (s) => s.setOptional({ subsystem: 3 }),
      trips: "pe-subsystem peimage-subsystem u-boot-subsystem",
    },
    {
      what: "Subsystem 11",
      edit: (s) => s.setOptional({ subsystem: 11 }),
      trips: "peimage-subsystem",
    },
    {
      what: "RELOCS_STRIPPED",
      edit: (s) => s.setCoff({ characteristics: 0x227 }),
      trips: "pe-relocs-stripped shim-relocs-stripped",
    },
    {
      what: "an odd FileAlignment",
      edit: (s) => s.setOptional({ fileAlignment: 0x201 }),
      trips: "shim-file-alignment",
    },
    {
      what: "SectionAlignment 0x300000",
      edit: (s) => s.setOptional({ sectionAlignment: 0x300000 }),
      trips: "xen-2m peimage-alignment",
    },
    {
      what: "SectionAlignment 0x1000",
      edit: (s) => s.setOptional({ sectionAlignment: 0x1000 }),
      trips: "xen-2m",
    },
    {
      what: "five data directories",
      edit: (s) => s.setDirectoryCount(5),
      trips: "xen-no-relocs shim-reloc-section shim-directories red-hat-directories red-hat-reloc-section",
    },
    {
      what: "five data directories, no .reloc",
      edit: (s) => s.setSection(".reloc", { name: ".rel\0\0\0\0" }).setDirectoryCount(5),
      trips: "xen-no-relocs shim-directories shim-no-reloc red-hat-directories red-hat-no-reloc",
    },
    {
      what: "a section's data in the headers",
      edit: (s) => s.setSection(".debug_info", { pointerToRawData: headers - 0x200 }),
      trips: "pe-data-in-headers hash-uneven shim-section-headers red-hat-section-headers peimage-raw-in-headers",
    },
    {
      what: "a section's memory in the headers",
      edit: (s) => s.setSection(".debug_info", { virtualAddress: 0 }),
      trips: "pe-data-in-headers shim-section-headers red-hat-section-headers peimage-in-headers xen-mb-memory",
    },
    {
      what: "no data, an offset in the headers",
      edit: (s) => s.setSection(".debug_info", { sizeOfRawData: 0, pointerToRawData: 0 }),
      trips: "hash-uneven shim-section-headers red-hat-section-headers",
    },
    {
      what: "no data, an offset beyond the file",
      edit: (s) => s.setSection(".bss", { pointerToRawData: 0x7fffffff }),
      trips: "peimage-truncated",
    },
    {
      what: "data beyond SizeOfImage",
      edit: (s) => s.setSection(".debug_info", { virtualAddress: image }),
      trips: "pe-data-outside peimage-outside peimage-raw-reach",
    },
    {
      what: "data that ends beyond SizeOfImage",
      edit: (s) => s.setSection(".debug_info", { virtualAddress: image - 0x10 }),
      trips: "pe-data-outside shim-section-negative red-hat-section-negative peimage-outside peimage-raw-reach",
    },
    {
      what: "data that is not discardable beyond SizeOfImage",
      edit: (s) => s.setSection(".data", { virtualAddress: image + 0x1000 }),
      trips: `
      pe-data-outside shim-section-base shim-attributes-write shim-nx-write red-hat-section-base red-hat-raw-reach peimage-outside peimage-raw-reach`,
    },
    {
      what: "data that is not discardable ends beyond SizeOfImage",
      edit: (s) => s.setSection(".data", { virtualAddress: image - 0x10 }),
      trips: `
      pe-data-outside shim-section-end shim-attributes-write shim-nx-write red-hat-section-end red-hat-raw-reach peimage-outside peimage-raw-reach`,
    },
    {
      what: "no data beyond SizeOfImage",
      edit: (s) => s.addSection(sectionHeader(".pad\0\0\0\0", [image, 0x1000], [0, 0], 0xc2000080)),
      trips: "peimage-outside",
    },
    {
      what: "VirtualSize 0",
      edit: (s) => s.setSection(".debug_info", { virtualSize: 0 }),
      trips: `
      shim-section-negative red-hat-section-negative peimage-raw-size pe-overlap peimage-overlap u-boot-overlap`,
    },
    {
      what: "no data, VirtualSize 0, RVA 0",
      edit: (s) => s.addSection(sectionHeader(".empty\0\0", [0, 0], [0, 0], 0x40000040)),
      trips:
        "shim-section-end shim-section-headers red-hat-section-end red-hat-section-headers peimage-in-headers xen-mb-memory",
    },
    {
      what: "no data, VirtualSize 0",
      edit: (s) => s.addSection(sectionHeader(".empty\0\0", [0x935000, 0], [0x602200, 0], 0x40000040)),
      trips: "shim-section-negative red-hat-section-negative",
    },
    {
      what: "payloads that overlap",
      edit: (s) => s.addSection(PAYLOADS[0]).addSection(PAYLOADS[1]),
      trips: "hash-uneven pe-overlap peimage-overlap u-boot-overlap red-hat-overlap shim-overlap",
    },
    {
      what: "payloads that overlap, one discardable",
      edit: (s) => s.addSection(PAYLOADS[0]).addSection({ ...PAYLOADS[1], characteristics: 0x42000040 }),
      trips: "hash-uneven pe-overlap peimage-overlap u-boot-overlap",
    },
    {
      what: "payloads that overlap, one not readable",
      edit: (s) => s.addSection(PAYLOADS[0]).addSection({ ...PAYLOADS[1], characteristics: 0x00000040 }),
      trips: "hash-uneven pe-overlap peimage-overlap u-boot-overlap red-hat-overlap",
    },
    {
      what: "raw data beyond VirtualSize",
      edit: (s) => s.setSection(".data", { virtualSize: 0x67, sizeOfRawData: 0x1200 }),
      trips: "hash-sum hash-uneven shim-hash-sum peimage-raw-size",
    },
    {
      what: "raw data over a section that is loaded before",
      edit: (s) =>
        s.setSection(".data.read_mostly", { virtualAddress: 0x801000 }).setSection(".data", {
          virtualAddress: 0x800800,
          sizeOfRawData: 0x1000,
        }),
      trips: `
      hash-sum hash-uneven shim-hash-sum shim-attributes-write shim-nx-write red-hat-raw-reach peimage-raw-reach xen-mb-memory`,
    },
    {
      what: "raw data beyond SizeOfImage",
      edit: (s) => s.setOptional({ sizeOfImage: 0x934600 }),
      trips: "peimage-raw-reach",
    },
    {
      what: "a section within a page, NX_COMPAT",
      edit: (s) => s.setOptional({ dllCharacteristics: 0x100 }),
      trips: "peimage-nx-place peimage-nx-section",
      cures: "shim-nx-claim",
    },
    {
      what: "NX_COMPAT, SectionAlignment 0x800",
      edit: (s) => s.setOptional({ dllCharacteristics: 0x100, sectionAlignment: 0x800 }),
      trips: "xen-2m peimage-nx-page peimage-nx-place peimage-nx-section",
      cures: "shim-nx-claim",
    },
    {
      what: "a second section within a page",
      edit: (s) => s.setSection(".rodata", { virtualAddress: 0x400008 }),
      trips: "xen-mb-memory pe-overlap peimage-overlap u-boot-overlap shim-overlap red-hat-overlap",
    },
    {
      what: "a certificate table beyond the file",
      edit: (s) => s.setDirectory(4, { virtualAddress: s.bytes.length, size: 8 }),
      trips: "pe-certificate certificate-last shim-certificate shim-certificate-last",
      cures: "unsigned",
    },
    {
      what: "a certificate table not at the end",
      edit: (s) =>
        s.resize(s.bytes.length + 0x200).setDirectory(4, { virtualAddress: s.bytes.length - 0x100, size: 8 }),
      trips: "certificate-last shim-certificate-last",
      cures: "unsigned",
    },
    {
      what: "a debug directory beyond the file",
      edit: (s) =>
        s.setSection(".debug_aranges", { virtualSize: 0x10000 }).setDirectory(6, {
          virtualAddress: 0x9344e0 + 0x8000,
          size: 28,
        }),
      trips: "pe-debug-directory",
    },
    {
      what: "a CODEVIEW entry of 20 bytes",
      edit: (s) => s.set(DEBUG_DIRECTORY_ENTRY, 0x2016d8, { sizeOfData: 20 }),
      trips: "pe-codeview",
    },
    {
      what: "a gap in the file",
      edit: (s) => s.setSection(".debug_line", { sizeOfRawData: 0x100 }),
      trips: "hash-uneven",
    },
    {
      what: "raw sizes that add up to more than the file",
      edit: (s) => s.setSection(".debug_info", { pointerToRawData: 0x1000, sizeOfRawData: 0x600000 }),
      trips: "hash-sum hash-uneven shim-hash-sum peimage-raw-reach peimage-raw-size",
    },
    {
      what: "a file of odd length",
      edit: (s) => s.resize(s.bytes.length + 1),
      trips: "hash-padding",
    },
    {
      what: ".sbat",
      edit: (s) => s.addSection(SBAT),
      trips: "hash-uneven",
      cures: "shim-no-sbat",
    },
    {
      what: ".sbat with relocations",
      edit: (s) => s.addSection({ ...SBAT, numberOfRelocations: 1 }),
      trips: "hash-uneven shim-sbat-relocs",
      cures: "shim-no-sbat",
    },
    {
      what: ".sbat that is too short",
      edit: (s) => s.addSection({ ...SBAT, virtualSize: 0x300 }),
      trips: "hash-uneven shim-short-sbat",
      cures: "shim-no-sbat",
    },
    {
      what: "two .sbat",
      edit: (s) => s.addSection(SBAT).addSection(SBAT),
      trips: "hash-uneven shim-two-sbat pe-overlap peimage-overlap u-boot-overlap",
      cures: "shim-no-sbat",
    },
    {
      what: ".config beyond SizeOfImage",
      edit: (s) => s.addSection(sectionHeader(".config\0", [image, 0x100], [0, 0], 0xc2000080)),
      trips: "xen-payload peimage-outside",
    },
    {
      what: ".config by a long name",
      edit: (s) => s.setText(s.strings + 36, ".config\0"),
      trips: "xen-payload-name",
    },
    {
      what: "a certificate table",
      edit: (s) => s.resize(s.bytes.length + 8).setDirectory(4, { virtualAddress: good.length, size: 8 }),
      trips: "",
      cures: "unsigned",
    },
    {
      what: "NX_COMPAT",
      edit: (s) => s.setOptional({ dllCharacteristics: 0x100 }),
      trips: "peimage-nx-place peimage-nx-section",
      cures: "shim-nx-claim",
    },
    {
      what: "no section writable and executable",
      edit: (s) => s.setSection(".init", { characteristics: 0x60000060 }),
      trips: "shim-attributes-write shim-nx-write",
      cures: "shim-nx-section",
    },
    {
      what: "all sections on pages",
      edit: (s) =>
        s
          .setSection(".buildid", { virtualAddress: 0x401000, virtualSize: 0x1ff000, sizeOfRawData: 0x1ff000 })
          .setEachDebug((i) => ({ virtualAddress: 0xa00000 + i * 0x1000 })),
      trips: "hash-uneven xen-mb-memory",
      cures: "shim-attributes-place",
    },
    {
      what: "all sections on pages, NX_COMPAT",
      edit: (s) =>
        s
          .setSection(".buildid", { virtualAddress: 0x401000, virtualSize: 0x1ff000, sizeOfRawData: 0x1ff000 })
          .setEachDebug((i) => ({ virtualAddress: 0xa00000 + i * 0x1000 }))
          .setOptional({ dllCharacteristics: 0x100 }),
      trips: "hash-uneven peimage-nx-section xen-mb-memory",
      cures: "shim-attributes-place shim-nx-claim",
    },
  ];
}
