// SPDX-License-Identifier: GPL-2.0-only
// The kinds of things in a picture. Each has a pattern besides its colour, so that it can be told apart on paper too.

import { hasFlags, type Section } from "../pe/image.ts";
import { CNT_UNINITIALIZED_DATA, MEM_EXECUTE } from "../tables/pe.ts";

export type Kind =
  "headers" | "code" | "data" | "reloc" | "bss" | "debug" | "added" | "symbols" | "zeros" | "gap" | "nothing";

/** In the legend's order. */
export const KINDS: readonly (readonly [kind: Kind, words: string])[] = [
  ["headers", "headers"],
  ["code", "code"],
  ["data", "data"],
  ["reloc", ".reloc"],
  ["bss", "uninitialised, zeroed"],
  ["zeros", "zeros"],
  ["debug", "debug information"],
  ["added", "added sections"],
  ["symbols", "symbols, signature"],
  ["gap", "gap: not in the file"],
];

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
