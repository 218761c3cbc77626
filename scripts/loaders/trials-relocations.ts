// SPDX-License-Identifier: GPL-2.0-only
// For tests: what can be wrong with an image's entry point and base relocations, and which rules of the loader profiles
// it trips. The numbers are those of mini-xen after the three steps.

import { sectionHeader } from "../dev/spoilt.ts";
import type { Trial } from "./trials-efi.ts";

const BEYOND = 0x40000000;

/** @param image the good image's SizeOfImage */
export function relocationTrials(image: number): readonly Trial[] {
  return [
    {
      what: "the entry point beyond SizeOfImage",
      edit: (s) => s.setOptional({ addressOfEntryPoint: image }),
      trips: `
      pe-entry-outside shim-entry-outside shim-entry-nowhere red-hat-entry-outside red-hat-entry-nowhere
      peimage-entry-outside`,
    },
    {
      what: "the entry point in no section",
      edit: (s) => s.setOptional({ addressOfEntryPoint: 0x1000 }),
      trips: "shim-entry-nowhere red-hat-entry-nowhere",
    },
    {
      what: "the entry point in a section's last byte",
      edit: (s) => s.setOptional({ addressOfEntryPoint: 0x3fffff }),
      trips: "shim-entry-nowhere red-hat-entry-nowhere",
    },
    {
      what: "the entry point in two sections",
      edit: (s) => s.addSection(sectionHeader(".twice\0\0", [0x600000, 0x1000], [0x602200, 0x200], 0x42000040)),
      trips: `
      hash-uneven shim-entry-twice shim-attributes-write shim-nx-write red-hat-entry-twice peimage-raw-reach
      xen-mb-memory pe-overlap peimage-overlap u-boot-overlap`,
    },
    {
      what: "the entry point in two sections, by raw data",
      edit: (s) => s.addSection(sectionHeader(".twice\0\0", [0x600000, 0x10], [0x602200, 0x200], 0x42000040)),
      trips: `
      hash-uneven shim-attributes-write shim-nx-write red-hat-entry-twice peimage-raw-reach xen-mb-memory pe-overlap peimage-overlap u-boot-overlap`,
    },
    {
      what: "no base relocation table",
      edit: (s) => s.setDirectory(5, { virtualAddress: 0, size: 0 }),
      trips: "xen-no-relocs shim-reloc-section red-hat-reloc-section",
    },
    {
      what: "the table beyond SizeOfImage",
      edit: (s) => s.setDirectory(5, { virtualAddress: image, size: 0x100 }),
      trips: `
      xen-reloc-block pe-relocs-outside pe-reloc-block u-boot-reloc-block shim-reloc-section shim-block-place
      red-hat-reloc-section red-hat-block-place peimage-relocs-outside peimage-reloc-block`,
    },
    {
      what: "SizeOfBlock 0",
      edit: (s) => s.set32(s.data(".reloc") + 4, 0),
      trips: "xen-reloc-block pe-reloc-block u-boot-reloc-block shim-block-zero red-hat-block peimage-reloc-block",
    },
    {
      what: "SizeOfBlock beyond the table",
      edit: (s) => s.set32(s.data(".reloc") + 4, 0x10000),
      trips: "xen-reloc-block pe-reloc-block u-boot-reloc-block shim-block-large red-hat-block peimage-reloc-block",
    },
    {
      what: "a table longer than .reloc's data",
      edit: (s) => s.setSection(".reloc", { sizeOfRawData: 0x100 }),
      trips: `
      xen-reloc-block pe-reloc-block hash-uneven u-boot-reloc-block shim-block-place red-hat-block-place
      peimage-reloc-block xen-mb-memory`,
    },
    {
      what: "type 1",
      edit: (s) => s.set32(s.data(".reloc"), 0x600000).setRelocationType(1),
      trips: "xen-reloc-type",
    },
    {
      what: "type 5",
      edit: (s) => s.set32(s.data(".reloc"), 0x600000).setRelocationType(5),
      trips: "xen-reloc-type pe-reloc-type u-boot-reloc-type shim-reloc-type red-hat-reloc-type peimage-reloc-type",
    },
    {
      what: "a target beyond SizeOfImage",
      edit: (s) => s.set32(s.data(".reloc"), BEYOND).setRelocationType(10),
      trips: "pe-reloc-target u-boot-reloc-target shim-reloc-target red-hat-reloc-target peimage-reloc-target",
    },
    {
      what: "a target in no section",
      edit: (s) => s.set32(s.data(".reloc"), image - 0x1000).setRelocationType(10),
      trips: "u-boot-reloc-target shim-attributes-write shim-nx-write",
    },
    {
      what: "a target in .text",
      edit: (s) => s.set32(s.data(".reloc"), 0x201000).setRelocationType(10),
      trips: "shim-attributes-write shim-nx-write",
    },
    {
      what: "a base relocation block twice",
      edit: (s) => s.repeatRelocations(),
      trips: "xen-reloc-twice",
    },
    {
      what: ".reloc discardable",
      edit: (s) => s.setSection(".reloc", { characteristics: 0x42000040 }),
      trips: "xen-reloc-discardable",
    },
    {
      what: ".reloc not readable",
      edit: (s) => s.setSection(".reloc", { characteristics: 0x00000040 }),
      trips: "shim-no-reloc",
    },
    {
      what: ".reloc called otherwise",
      edit: (s) => s.setSection(".reloc", { name: ".rel\0\0\0\0" }),
      trips: "shim-no-reloc red-hat-no-reloc",
    },
    {
      what: ".reloc by a long name",
      edit: (s) => s.setText(s.strings + 36, ".reloc\0").setSection(".reloc", { name: "/36\0\0\0\0\0" }),
      trips: "shim-no-reloc red-hat-no-reloc",
    },
    {
      what: ".reloc with something behind its name",
      edit: (s) => s.setSection(".reloc", { name: ".reloc\0x" }),
      trips: "shim-no-reloc red-hat-no-reloc",
    },
    {
      what: ".reloc ahead of its table",
      edit: (s) => s.setSection(".reloc", { virtualAddress: 0x7fd000, virtualSize: 0x3000 }),
      trips: `
      xen-reloc-block pe-reloc-block u-boot-reloc-block shim-reloc-section shim-block-large red-hat-block red-hat-reloc-section peimage-reloc-block xen-mb-memory pe-overlap peimage-overlap u-boot-overlap shim-overlap red-hat-overlap`,
    },
    {
      what: "two .reloc",
      edit: (s) => s.addSection(sectionHeader(".reloc\0\0", [0x7fe000, 0x2000], [0x602200, 0], 0x42000040)),
      trips: `
      xen-reloc-block pe-reloc-block u-boot-reloc-block shim-several-relocs shim-reloc-section shim-block-place red-hat-several-relocs red-hat-reloc-section red-hat-block-place peimage-reloc-block xen-mb-memory
      pe-overlap peimage-overlap u-boot-overlap`,
    },
  ];
}
