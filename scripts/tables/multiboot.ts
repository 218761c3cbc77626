// SPDX-License-Identifier: GPL-2.0-only
// The Multiboot headers and their numbers, in the order and the words of their specifications ("Multiboot Specification"
// 0.6.96 section 3.1, "Multiboot2 Specification" 2.0 section 3.1). No code.

import { structure } from "./fields.ts";

// ---- Multiboot (1)

export const MB1_MAGIC = 0x1badb002;
/** A loader looks at so many bytes of the file, in steps of MB1_ALIGN. */
export const MB1_SEARCH = 8192;
export const MB1_ALIGN = 4;
/** Flag bit 16: the address fields are there and are to be used. */
export const MB1_AOUT_KLUDGE = 0x00010000;
/** Flag bit 2: the video fields are there. */
export const MB1_VIDEO_MODE = 0x00000004;

/** The form without address fields, as Xen has it. */
export const MB1_HEADER = structure("Multiboot header", 12, [
  ["magic", 4],
  ["flags", 4],
  ["checksum", 4],
]);

/** The form with address fields (flag bit 16). */
export const MB1_ADDRESS_HEADER = structure("Multiboot header with addresses", 32, [
  ["magic", 4],
  ["flags", 4],
  ["checksum", 4],
  ["headerAddr", 4],
  ["loadAddr", 4],
  ["loadEndAddr", 4],
  ["bssEndAddr", 4],
  ["entryAddr", 4],
]);

// ---- Multiboot2

export const MB2_MAGIC = 0xe85250d6;
export const MB2_SEARCH = 32768;
export const MB2_ALIGN = 8;
export const MB2_ARCHITECTURE_I386 = 0;

export const MB2_HEADER = structure("Multiboot2 header", 16, [
  ["magic", 4],
  ["architecture", 4],
  ["headerLength", 4],
  ["checksum", 4],
]);

/** "3.1.3 General tag structure". Tags begin on multiples of 8; `size` does not count the padding. */
export const MB2_TAG = structure("Multiboot2 header tag", 8, [
  ["type", 2],
  ["flags", 2],
  ["size", 4],
]);
export const MB2_TAG_OPTIONAL = 1;

export const MB2_END = 0;
export const MB2_INFORMATION_REQUEST = 1;
export const MB2_ADDRESS = 2;
export const MB2_ENTRY_ADDRESS = 3;
export const MB2_CONSOLE_FLAGS = 4;
export const MB2_FRAMEBUFFER = 5;
export const MB2_RELOCATABLE = 10;

/** Names as in the specification's headings, by type. */
export const MB2_TAG_NAMES: readonly string[] = [
  "END",
  "INFORMATION_REQUEST",
  "ADDRESS",
  "ENTRY_ADDRESS",
  "CONSOLE_FLAGS",
  "FRAMEBUFFER",
  "MODULE_ALIGN",
  "EFI_BS",
  "ENTRY_ADDRESS_EFI32",
  "ENTRY_ADDRESS_EFI64",
  "RELOCATABLE",
];

export const MB2_ADDRESS_TAG = structure("address header tag", 24, [
  ["type", 2],
  ["flags", 2],
  ["size", 4],
  ["headerAddr", 4],
  ["loadAddr", 4],
  ["loadEndAddr", 4],
  ["bssEndAddr", 4],
]);

export const MB2_ENTRY_ADDRESS_TAG = structure("entry address header tag", 12, [
  ["type", 2],
  ["flags", 2],
  ["size", 4],
  ["entryAddr", 4],
]);

export const MB2_RELOCATABLE_TAG = structure("relocatable header tag", 24, [
  ["type", 2],
  ["flags", 2],
  ["size", 4],
  ["minAddr", 4],
  ["maxAddr", 4],
  ["align", 4],
  ["preference", 4],
]);
