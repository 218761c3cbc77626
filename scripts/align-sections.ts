// SPDX-License-Identifier: GPL-2.0-only
//
// Makes the file linear: over everything Multiboot loads, file offset = RVA - delta with one delta, and no gap anywhere.
// File offsets and sizes are computed in xen/layout.ts, for this step and for whatever changes an image later.
//
// Changes: raw pointers and raw sizes of all sections; VirtualSize where filler is added; SizeOfHeaders, FileAlignment,
//   SizeOfCode, SizeOfInitializedData, SizeOfImage (it never shrinks); the file offsets in COFF header and debug
//   directory; the RVA of debug sections that lie beyond SizeOfImage; the order of the section table; CheckSum.
// Leaves: every other field, every section's data, every other RVA.
// Refuses: what has no load span (no .bss, data behind it, …), a section that is not a debug section beyond SizeOfImage,
//   what it would have to drop (COFF relocations or line numbers, a signature, bytes that no header describes).
// Order: after relocate-reloc, before emit-header. Running it on its own output, or on emit-header's, changes nothing.
//
// The layout, in RVA order (first = the lowest RVA, H = the header area):
//
//   file 0          H                                   H + dataEnd - first
//        | headers  | .text  … .init … .data            | .reloc if kept, DWARF, … | symbols | strings
//   RVA             first … each at its own RVA … dataEnd   (not loaded by Multiboot)
//
// Multiboot copies one range of the file to one range of memory, so the gaps between sections must be in the file; only
// the 2 MiB below `first` need not be. A section's raw data reaches to the next section's RVA.

import { runIfMain, silent, type Say } from "./cli/cli.ts";
import type { Image } from "./pe/image.ts";
import { transformCommand } from "./pe/transform.ts";
import { layOut } from "./xen/layout.ts";
import { readyForLayout } from "./xen/sections.ts";

const USAGE = `Usage: align-sections.ts IN OUT [--strip-signature]

Step 2 of 3: makes the file linear, as Multiboot loaders copy it.
IN is relocate-reloc.ts's output; "-" is standard input, or standard output for OUT.

  --strip-signature  drop IN's signature, which no change would survive; without it a signed IN is refused
  --help             print this text

Next: emit-header.ts. Exit status: 0 done, 1 image unsuitable, 2 wrong usage.
`;

const ACTION = "align sections";

/**
 * Makes the file linear.
 * @throws ImageError when the image cannot be, or when something would be lost
 */
export function alignSections(input: Image, say: Say = silent): Image {
  const { image, span } = readyForLayout(input, ACTION, say);
  return layOut(image, span, "linear", ACTION);
}

export const command = transformCommand(USAGE, { "strip-signature": { type: "boolean" } }, (image, _values, say) =>
  alignSections(image, say),
);

runIfMain(import.meta.url, command);
