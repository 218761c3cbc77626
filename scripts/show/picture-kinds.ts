// SPDX-License-Identifier: GPL-2.0-only
// The kinds of things in a picture. Each has a pattern besides its colour, so that it can be told apart on paper too.

import { hasFlags, type Section } from "../pe/image.ts";
import { CNT_UNINITIALIZED_DATA, MEM_EXECUTE } from "../tables/pe.ts";

/** In the legend's order: its words there, and what is drawn over the kind's fill, in a square of 8 pixels. */
export const KINDS = [
  ["headers", "headers", ""],
  ["code", "code", "M0 8L8 0"],
  ["data", "data", ""],
  ["reloc", ".reloc", "M0 8L8 0M0 0L8 8"],
  ["bss", "uninitialised, zeroed", "M1 2h2M5 6h2"],
  ["zeros", "zeros", "M3 4h1"],
  ["debug", "debug information", "M0 2h8M0 6h8"],
  ["added", "added sections", "M0 0L8 8"],
  ["symbols", "symbols, signature", "M2 0v8M6 0v8"],
  ["gap", "gap: not in the file", "M0 0L8 8M0 8L8 0"],
] as const;

export type Kind = (typeof KINDS)[number][0] | "nothing";

/** Names that tools and Xen's linker script give; everything else goes by its flags. */
const DEBUG_NAME = /^\.(z?debug_|stab|gdb_index|gnu_debug)/;
const ADDED_NAME = /^\.(config|kernel|ramdisk|ucode|xsm|sbat|initrd|cmdline)$/;

export function sectionKind(section: Section): Kind {
  if (hasBssFlag(section)) return "bss";
  if (section.name === ".reloc") return "reloc";
  if (DEBUG_NAME.test(section.name)) return "debug";
  if (ADDED_NAME.test(section.name)) return "added";
  return hasFlags(section, MEM_EXECUTE) ? "code" : "data";
}

export function hasBssFlag(section: Section): boolean {
  return hasFlags(section, CNT_UNINITIALIZED_DATA);
}
