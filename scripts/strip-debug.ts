// SPDX-License-Identifier: GPL-2.0-only
//
// Drops what only debuggers read: DWARF, COFF symbols and their string table. A Xen with debug information is 29 MB, of
// which 2.6 are Xen, and the rest takes memory too, for DWARF has addresses in Xen's images.
//
// Changes: removes the debug sections behind .bss, the symbol table and the string table; SizeOfImage shrinks to what
//   is left (to .bss rounded up to 2 MiB at least); section names longer than 8 characters are cut to 8, as older
//   linkers wrote them; COFF Characteristics say so; CheckSum, file offsets and sizes follow (xen/layout.ts). A linear
//   image stays linear, any other is laid out packed, on multiples of 512.
// Leaves: every other section's data and RVA, build-id and debug directory, TimeDateStamp, both Multiboot headers.
// Refuses: an image whose entry point for Multiboot only the symbol `start` tells, until emit-header has read it; a
//   signed image.
// Order: before the three steps or after any of them; the bytes come out the same. Before add-sections.
//
// Why names are cut: a long one is an offset into the string table, which lies behind the last section. GNU strip keeps
// a string table for them; but then sbsign warns of "data remaining … gaps between PE/COFF sections?", as of every file
// that goes on behind its sections. No loader reads these names, nor does Xen: .bss, .reloc and .init are short.

import { aboutFile, readInput, refuseSameFile, runIfMain, sayOn, silent, targetOf, writeOutputs } from "./cli/cli.ts";
import type { Command, Say } from "./cli/cli.ts";
import { UsageError, failing } from "./cli/errors.ts";
import { hex } from "./cli/numbers.ts";
import { sectionAt, sectionEnd, sectionTableEnd, withHeader, type Image, type Section } from "./pe/image.ts";
import { parseImage } from "./pe/parse.ts";
import { serializeImage } from "./pe/serialize.ts";
import { startSymbols } from "./pe/symbols.ts";
import { unsigned } from "./pe/transform.ts";
import { readStructure } from "./tables/fields.ts";
import { MB2_ENTRY_ADDRESS } from "./tables/multiboot.ts";
import { CNT_UNINITIALIZED_DATA, DEBUG_DIRECTORY_ENTRY, DIRECTORY_DEBUG } from "./tables/pe.ts";
import { layOut, layoutOf } from "./xen/layout.ts";
import { findMultiboot2, hasNewHeaders, multiboot2Tags } from "./xen/multiboot.ts";
import { withTruthfulNxCompat } from "./xen/nx-compat.ts";
import { readyForLayout, withSections } from "./xen/sections.ts";
import { loadSpan, type LoadSpan } from "./xen/span.ts";

const USAGE = `Usage: strip-debug.ts IN OUT [--debug-file FILE] [--strip-signature]

Drops DWARF and symbols from a xen.efi or xen.mb.efi, and keeps them in a file of their own for gdb and addr2line.
"-" is standard input, or standard output for OUT or FILE.

  --debug-file FILE  what was dropped, with the sections' addresses and the build-id
  --strip-signature  drop IN's signature, which no change would survive; without it a signed IN is refused
  --help             print this text

Exit status: 0 done, 1 image unsuitable, 2 wrong usage.
`;

const ACTION = "strip debug information";
/** DWARF, compressed DWARF, and what GNU tools put beside it. */
const DEBUG_NAME = /^\.(z?debug_|stab|gdb_index|gnu_debug)/;
const MOST_NAME = 8;
/** COFF Characteristics, as GNU strip sets them. */
const LOCAL_SYMS_STRIPPED = 0x0008;
const DEBUG_STRIPPED = 0x0200;

/**
 * The image without DWARF and symbols.
 * @throws ImageError when it cannot do without
 */
export function stripDebug(input: Image, say: Say = silent): Image {
  const { image, span } = prepared(input);
  const kept = image.sections.filter((s) => !isDebug(image, s, span));
  if (kept.length === image.sections.length && image.coff.pointerToSymbolTable === 0)
    say("note: there is neither DWARF nor a symbol table to drop");
  const smaller = withSections(image, kept, ACTION);
  const stripped = {
    ...smaller,
    coff: {
      ...smaller.coff,
      pointerToSymbolTable: 0,
      numberOfSymbols: 0,
      // Bit operations on 16-bit values are safe.
      characteristics: smaller.coff.characteristics | LOCAL_SYMS_STRIPPED | DEBUG_STRIPPED,
    },
    sections: smaller.sections.map(withShortName),
    symbols: new Uint8Array(),
    strings: new Uint8Array(),
  };
  const result = layOut(stripped, loadSpan(stripped, ACTION), layoutOf(image, span), ACTION);
  return hasNewHeaders(image) ? withTruthfulNxCompat(result, image, say) : result;
}

/**
 * What stripDebug drops, as a PE of the same sections at the same addresses in which only DWARF and the build-id have
 * contents. Debuggers read it in place of the image; no loader is to take it for one.
 */
export function debugFile(input: Image): Image {
  const { image, span } = prepared(input);
  const noted = debugDirectoryData(image);
  const sections = image.sections.map((section) => {
    if (isDebug(image, section, span)) return section;
    if (section === noted?.section) return { ...section, data: section.data.subarray(0, noted.end) };
    // As GNU objcopy --only-keep-debug marks them: BFD then takes VirtualSize for the section's size.
    const characteristics = (section.header.characteristics | CNT_UNINITIALIZED_DATA) >>> 0;
    return withHeader(section, { characteristics }, new Uint8Array());
  });
  const background = image.background.slice(0, image.optional.sizeOfHeaders);
  background.fill(0, sectionTableEnd(image));
  const directories = image.directories.map((d, i) =>
    i === DIRECTORY_DEBUG && noted !== undefined ? d : { virtualAddress: 0, size: 0 },
  );
  return layOut({ ...image, directories, sections, background }, span, "packed", ACTION);
}

// ---- what is there

function prepared(input: Image): { image: Image; span: LoadSpan } {
  // Debug sections that have to be moved are dropped here: nobody needs to know.
  const ready = readyForLayout(input, ACTION, silent);
  requireEntryKnown(ready.image, ready.span);
  return ready;
}

/** Debug information behind everything that Multiboot loads, unless the headers point into it. */
function isDebug(image: Image, section: Section, span: LoadSpan): boolean {
  const { virtualAddress } = section.header;
  if (virtualAddress < span.bssStart || !DEBUG_NAME.test(section.name)) return false;
  return !image.directories.some(
    (d) => d.size !== 0 && d.virtualAddress >= virtualAddress && d.virtualAddress < sectionEnd(section),
  );
}

/** emit-header takes the entry point from the symbol `start`; without symbols it is the first byte of .text. */
function requireEntryKnown(image: Image, { first, sections: [text] }: LoadSpan): void {
  const start = startSymbols(image).find((rva) => rva !== first);
  if (start === undefined || text === undefined) return;
  const at = findMultiboot2(text.data);
  if (at === undefined) return;
  const tags = multiboot2Tags(text.data, at, (offset) => `RVA ${hex(first + offset)}`);
  if (tags.some(({ type }) => type === MB2_ENTRY_ADDRESS)) return;
  const where = `${hex(start)} and not at the first byte of ${text.name}, ${hex(first)}`;
  failing(ACTION)(`symbol start is at ${where}: emit-header needs it, strip after that`);
}

/** How far into its section the debug directory and what it describes reach. */
function debugDirectoryData(image: Image): { section: Section; end: number } | undefined {
  const { virtualAddress = 0, size = 0 } = image.directories[DIRECTORY_DEBUG] ?? {};
  const section = size === 0 ? undefined : sectionAt(image, virtualAddress);
  if (section === undefined) return undefined;
  const start = virtualAddress - section.header.virtualAddress;
  let end = start + size;
  if (end > section.data.length) return undefined;
  for (let at = start; at + DEBUG_DIRECTORY_ENTRY.size <= start + size; at += DEBUG_DIRECTORY_ENTRY.size) {
    const { addressOfRawData, sizeOfData } = readStructure(DEBUG_DIRECTORY_ENTRY, section.data, at);
    // Data elsewhere would need another section with contents: then the file does without a build-id.
    if (sectionAt(image, addressOfRawData) !== section) return undefined;
    end = Math.max(end, addressOfRawData - section.header.virtualAddress + sizeOfData);
  }
  return { section, end };
}

function withShortName(section: Section): Section {
  if (section.name.length <= MOST_NAME || !section.header.name.startsWith("/")) return section;
  const name = section.name.slice(0, MOST_NAME);
  return { ...withHeader(section, { name }), name };
}

// ---- the command

export const command: Command = {
  usage: USAGE,
  options: { "debug-file": { type: "string" }, "strip-signature": { type: "boolean" } },
  positionals: ["IN", "OUT"],
  run([input = "", output = ""], values, io) {
    const debug = values["debug-file"];
    refuseSameFile(input, output);
    if (typeof debug === "string") {
      refuseSameFile(input, debug);
      if (debug === output || targetOf(debug) === targetOf(output))
        throw new UsageError(`OUT and --debug-file are both '${debug}'`);
      refuseSameFile(debug, output, "--debug-file");
    }
    const said: string[] = [];
    const files = aboutFile(input, () => {
      const image = unsigned(parseImage(readInput(input, io)), values);
      const stripped = serializeImage(stripDebug(image, (line) => said.push(line)));
      return [
        ...(typeof debug === "string" ? [[debug, serializeImage(debugFile(image))] as const] : []),
        [output, stripped] as const,
      ];
    });
    writeOutputs(files, io);
    said.forEach(sayOn(io, input));
    return 0;
  },
};

runIfMain(import.meta.url, command);
