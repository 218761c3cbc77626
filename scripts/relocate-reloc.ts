// SPDX-License-Identifier: GPL-2.0-only
//
// Moves .reloc from behind .bss to the last pages ahead of __init_end, so that .bss is the last thing in memory, and
// repairs the code that refers to it.
//
// Changes: .reloc's VirtualAddress, VirtualSize and MEM_DISCARDABLE; data directory 5; the displacements of the `lea`
//   pairs that compute __base_relocs_start and __base_relocs_end; the order of the section table; CheckSum. COFF symbols
//   of .reloc go along with it up to the table's end, which may be called __image_end__ as well (4.17). Those beyond name
//   the end of the image, with which the section has nothing to do: their values count from its new place.
//   With --keep only MEM_DISCARDABLE (and order, CheckSum).
// Leaves: every other byte, at its place in the file.
// Refuses: no room behind .init, a reference that cannot be told apart or would be left behind, a corrupt table.
// Order: the first step, since align-sections grows .init over the room that this step needs. An image that is already
//   linear is refused by name; one whose .reloc is where it belongs stays as it is, so running it twice changes nothing.
//
// Why MEM_DISCARDABLE goes: shim does not load a discardable section (pe.c:handle_image), but Xen reads the table in
// memory (xen/arch/x86/efi/efi-boot.h:efi_arch_relocate_image) and stops with "Unsupported relocation type".

import { runIfMain, silent, type Say } from "./cli/cli.ts";
import { failing, type Fail } from "./cli/errors.ts";
import { hex, printable, range } from "./cli/numbers.ts";
import { byAddress, hasFlags, roundUp, sectionAt, sectionEnd, withHeader } from "./pe/image.ts";
import type { Image, Section } from "./pe/image.ts";
import { requireMovable } from "./pe/movable.ts";
import { sortSectionTable } from "./pe/serialize.ts";
import { definedSymbols, movedSymbols, type Symbol } from "./pe/symbols.ts";
import { transformCommand } from "./pe/transform.ts";
import { viewOf } from "./tables/fields.ts";
import * as pe from "./tables/pe.ts";
import { LEA_DISPLACEMENT_AT, leaReferences, type LeaReference } from "./xen/references.ts";
import { baseRelocations, relocationDirectory } from "./xen/relocations.ts";
import { loadSpan, whyNotLinear, type LoadSpan } from "./xen/span.ts";

const USAGE = `Usage: relocate-reloc.ts IN OUT [--keep] [--strip-signature]

Step 1 of 3: moves .reloc ahead of __init_end and repairs the code that refers to it.
IN is xen.efi as linked; "-" is standard input, or standard output for OUT.

  --keep             leave .reloc behind .bss, where Multiboot does not load it; only make it not discardable
  --strip-signature  drop IN's signature, which no change would survive; without it a signed IN is refused
  --help             print this text

Next: align-sections.ts. Exit status: 0 done, 1 image unsuitable, 2 wrong usage.
`;

const ACTION = "move .reloc";
/** A pair's two instructions begin at most so many bytes apart: wide enough for every known compiler, and narrow enough to tell pairs apart. */
const PAIR_DISTANCE = 64;
/** The eight bytes that shim compares; it looks into no string table (pe.c:handle_image). */
const RELOC_NAME = ".reloc\0\0";
/** Pairs that are named: a Xen has one or two. */
const MOST_NOTES = 10;

const fail: Fail = failing(ACTION);

/**
 * Moves .reloc ahead of __init_end (or, with `keep`, only makes it not discardable).
 * @throws ImageError when it cannot be done without guessing
 */
export function relocateReloc(image: Image, keep: boolean, say: Say = silent): Image {
  requireMovable(image, ACTION);
  const span = loadSpan(image, ACTION);
  const reloc = relocSection(image);
  warnOfDoubles(image, say);
  const stays = keep || span.sections.includes(reloc);
  const done = stays && !hasFlags(reloc, pe.MEM_DISCARDABLE);
  if (!done && whyNotLinear(image, span) === undefined) {
    const why = "the sections are aligned already, so .init has grown over the room behind it";
    fail(`${why}; run relocate-reloc first, then align-sections`);
  }
  const kept = withHeader(reloc, { characteristics: (reloc.header.characteristics & ~pe.MEM_DISCARDABLE) >>> 0 });
  return sortSectionTable(
    stays ? withSections(image, new Map([[reloc, kept]])) : moveTable(image, span, reloc, kept, say),
  );
}

/** Where the table is: RVAs. */
interface Table {
  readonly start: number;
  readonly end: number;
}

/** @param kept the section `reloc` with the flags that it needs, where it is */
function moveTable(image: Image, span: LoadSpan, reloc: Section, kept: Section, say: Say): Image {
  const { virtualAddress: start, size } = relocationDirectory(image);
  const table = { start, end: start + size };
  refuseSectionsBetween(image, span, table);
  const target = newAddress(image, span, reloc);
  const pairs = findPairs(image, span, table);
  refuseLeftBehind(image, span, table);
  checkSymbols(image, table);
  for (const [first, last] of pairs.slice(0, MOST_NOTES)) {
    const was = `__base_relocs_start at ${hex(first.rva)} and __base_relocs_end at ${hex(last.rva)}`;
    const where = inFunction(image, image.sections.indexOf(last.section), last.rva);
    say(`note: ${was} now refer to ${hex(target)} and ${hex(target + size)}${where}`);
  }
  if (pairs.length > MOST_NOTES) say(`note: and so do ${pairs.length - MOST_NOTES} more such pairs`);
  const changed = patchReferences(pairs, target - start);
  changed.set(reloc, withHeader(kept, { virtualAddress: target, virtualSize: size }, reloc.data.subarray(0, size)));
  const directories = image.directories.map((d, i) =>
    i === pe.DIRECTORY_BASE_RELOCATION ? { ...d, virtualAddress: target } : d,
  );
  const staying = movedSymbols(image.symbols, image.sections.indexOf(reloc) + 1, size, start - target);
  return { ...withSections(image, changed), directories, symbols: staying };
}

function withSections(image: Image, changed: ReadonlyMap<Section, Section>): Image {
  return { ...image, sections: image.sections.map((s) => changed.get(s) ?? s) };
}

/** The one section by which shim relocates: named .reloc, beginning at the directory's address (pe-relocate.c). */
function relocSection(image: Image): Section {
  const { virtualAddress, size } = relocationDirectory(image);
  const [reloc, second] = image.sections.filter((s) => s.name === ".reloc");
  if (reloc === undefined)
    return fail(`there is no section .reloc, needed one at data directory 5's ${hex(virtualAddress)}`);
  const { name, virtualAddress: start, characteristics } = reloc.header;
  if (name !== RELOC_NAME) {
    const needed = `needed "${printable(RELOC_NAME)}": shim compares the eight bytes`;
    fail(`section .reloc has the name "${printable(name)}" in its header, ${needed}`);
  }
  if (hasFlags(reloc, pe.CNT_UNINITIALIZED_DATA)) {
    const needed = "needed IMAGE_SCN_CNT_UNINITIALIZED_DATA (0x80) clear: loaders would zero it";
    fail(`section .reloc has flags ${hex(characteristics)}, ${needed}`);
  }
  if (second !== undefined) {
    const where = `${hex(start)} and ${hex(second.header.virtualAddress)}`;
    fail(`there are two sections .reloc, at RVA ${where}, needed one`);
  }
  const [end, tableEnd] = [start + reloc.data.length, virtualAddress + size];
  if (start !== virtualAddress || tableEnd > end) {
    const needed = `needed all of data directory 5's ${range(virtualAddress, tableEnd)} at its start`;
    fail(`section .reloc's data is at ${range(start, end)}, ${needed}`);
  }
  return reloc;
}

/** As Xen 4.11 and 4.12 have it when linked by binutils 2.40, whose relocations come on top of those of Xen's mkreloc. */
function warnOfDoubles(image: Image, say: Say): void {
  const seen = new Set<number>();
  const doubles = baseRelocations(image).filter((r) => r.size !== 0 && seen.size === seen.add(r.target).size);
  if (doubles.length === 0) return;
  const what = `${doubles.length} base relocations come twice, the first for RVA ${hex(doubles[0]?.target ?? 0)}`;
  say(`warning: ${what}: loaders add to what is there more than once, Xen takes that back once`);
}

/**
 * The table begins at `_end`: code or writable data between .bss and it would be a part of Xen that Multiboot does not
 * load. A section of another kind may be there, .sbat for one, which Xen itself does not read.
 */
function refuseSectionsBetween(image: Image, span: LoadSpan, table: Table): void {
  const between = image.sections.find(
    (s) =>
      s.header.virtualAddress > span.bssStart &&
      s.header.virtualAddress < table.start &&
      !hasFlags(s, pe.CNT_UNINITIALIZED_DATA) &&
      hasFlags(s, pe.MEM_WRITE | pe.MEM_EXECUTE),
  );
  if (between === undefined) return;
  const where = range(between.header.virtualAddress, sectionEnd(between));
  fail(`section ${between.name} at ${where} lies between .bss and .reloc, needed .bss to be Xen's last section`);
}

/**
 * The sections .init and .init.…, in RVA order: one today; an upstream series splits it in two.
 * Xen frees the memory up to __init_end, the start of the section that follows the last of them.
 */
function initSections(image: Image): Section[] {
  return byAddress(image.sections).filter((s) => /^\.init(\.|$)/.test(s.name));
}

/**
 * The last pages ahead of __init_end, which is where the section behind the last .init section begins: Xen frees them
 * with the init memory.
 * @returns RVA
 */
function newAddress(image: Image, span: LoadSpan, reloc: Section): number {
  const last = initSections(image).at(-1);
  if (last === undefined) return fail("no section's name begins with .init, needed one to move it behind");
  const start = last.header.virtualAddress;
  const ordered = byAddress(image.sections);
  const next = ordered[ordered.indexOf(last) + 1];
  if (next === undefined || next === reloc) {
    const where = range(start, sectionEnd(last));
    return fail(`no section follows ${last.name} at ${where}, needed one that begins at __init_end`);
  }
  if (start >= span.bssStart) {
    const needed = `needed below .bss at ${hex(span.bssStart)}, where Multiboot loads it`;
    fail(`section ${last.name} is at RVA ${hex(start)}, ${needed}`);
  }
  const initEnd = next.header.virtualAddress;
  if (initEnd % pe.PAGE_SIZE !== 0) {
    const what = `__init_end, where ${next.name} begins, is at RVA ${hex(initEnd)}`;
    fail(`${what}, needed a multiple of ${hex(pe.PAGE_SIZE)}`);
  }
  const from = roundUp(sectionEnd(last), pe.PAGE_SIZE);
  const room = Math.max(0, initEnd - from);
  const needed = roundUp(reloc.header.virtualSize, pe.PAGE_SIZE);
  if (needed > room) {
    const there = `there are ${hex(room)} in ${range(from, from + room)}`;
    fail(`it needs ${hex(needed)} bytes behind ${last.name}, ${there}; RELOC=keep (--keep) leaves it where it is`);
  }
  return initEnd - needed;
}

/** Start and end reference of one copy of the loop that walks the table. */
type Pair = readonly [start: LeaReference, end: LeaReference];

/**
 * The references to patch. `__base_relocs_start` has the same address as `_end`, which dozens of other instructions use:
 * only one that stands close to a reference to `__base_relocs_end` is about the table.
 */
function findPairs(image: Image, span: LoadSpan, { start, end }: Table): Pair[] {
  const references = span.sections.flatMap((s) => leaReferences(s, start, end));
  const inside = references.find((r) => r.target !== start && r.target !== end);
  if (inside !== undefined) {
    const what = `the code at RVA ${hex(inside.rva)} refers to ${hex(inside.target)}, inside the table`;
    fail(`${what} ${range(start, end)}, needed its start or end only`);
  }
  const starts = references.filter((r) => r.target === start);
  const ends = references.filter((r) => r.target === end);
  if (ends.length === 0) {
    const what = `no code in ${range(span.first, span.dataEnd)} refers to the table's end ${hex(end)}`;
    const needed = `needed a lea for it beside one for its start ${hex(start)}`;
    fail(`${what}, ${needed}; RELOC=keep (--keep) leaves the table where it is`);
  }
  const init = initSections(image);
  let from = 0;
  return ends.map((reference) => {
    const { section, rva } = reference;
    const what = `the reference to the table's end ${hex(end)} at RVA ${hex(rva)}`;
    if (!init.includes(section)) fail(`${what} is in ${section.name}, needed in .init`);
    // Both are in the order of RVAs, and begin at different bytes.
    while ((starts[from]?.rva ?? rva) < rva - PAIR_DISTANCE) from++;
    const near = starts
      .slice(from, from + 2 * PAIR_DISTANCE)
      .filter((s) => s.section === section && s.rva <= rva + PAIR_DISTANCE);
    const [first] = near;
    if (first === undefined || near.length > 1) {
      const found = near.length === 0 ? "none" : near.map((s) => hex(s.rva)).join(" and ");
      return fail(`${what} has ${found} to its start ${hex(start)} within ${PAIR_DISTANCE} bytes, needed exactly one`);
    }
    return [first, reference] as const;
  });
}

/** A pointer into the table, in data, would go on pointing to where the table was. One to its start is `_end`. */
function refuseLeftBehind(image: Image, span: LoadSpan, { start, end }: Table): void {
  for (const { type, target } of baseRelocations(image)) {
    if (type !== pe.REL_BASED_DIR64) continue;
    const value = pointerAt(image, target);
    if (value <= start || value > end) continue;
    const where = `inside or at the end of the table ${range(start, end)}`;
    const needed = `needed none in ${range(span.first, span.dataEnd)}`;
    fail(`the pointer at RVA ${hex(target)} is to ${hex(value)}, ${where}, ${needed}`);
  }
}

/** What the 64-bit pointer at an RVA points to, as an RVA; what a section has no data for is zero. */
function pointerAt(image: Image, rva: number): number {
  const section = sectionAt(image, rva);
  if (section === undefined) return fail(`a base relocation is for RVA ${hex(rva)}, needed one inside a section`);
  const at = rva - section.header.virtualAddress;
  const bytes = new Uint8Array(8);
  bytes.set(section.data.subarray(at, at + 8));
  return Number(BigInt.asUintN(64, viewOf(bytes).getBigUint64(0, true) - image.optional.imageBase));
}

/** Where there are symbols, they must say what the instructions said. */
function checkSymbols(image: Image, { start, end }: Table): void {
  const addresses = new Map([
    ["__base_relocs_start", start],
    ["__base_relocs_end", end],
  ]);
  for (const { name, rva } of definedSymbols(image)) {
    const needed = addresses.get(name) ?? rva;
    if (rva !== needed) fail(`symbol ${name} is ${hex(rva)}, needed ${hex(needed)} as data directory 5 says`);
  }
}

/**
 * For an RVA, ", in FUNCTION", where there are symbols: the nearest at or below it, section symbols (".text") aside.
 * @param section its section's place in the table, from 0
 */
function inFunction(image: Image, section: number, rva: number): string {
  let nearest: Symbol | undefined;
  for (const symbol of definedSymbols(image)) {
    if (symbol.section !== section || symbol.rva > rva || symbol.name.startsWith(".")) continue;
    if (nearest === undefined || symbol.rva >= nearest.rva) nearest = symbol;
  }
  return nearest === undefined ? "" : `, in ${printable(nearest.name)}`;
}

/** Adds to the displacement of every referring instruction; two pairs may share one. */
function patchReferences(pairs: readonly Pair[], distance: number): Map<Section, Section> {
  const changed = new Map<Section, Section>();
  for (const { section, rva } of new Set(pairs.flat())) {
    const copy = changed.get(section) ?? { ...section, data: section.data.slice() };
    changed.set(section, copy);
    const view = viewOf(copy.data);
    const at = rva - section.header.virtualAddress + LEA_DISPLACEMENT_AT;
    view.setInt32(at, view.getInt32(at, true) + distance, true);
  }
  return changed;
}

export const command = transformCommand(
  USAGE,
  { keep: { type: "boolean" }, "strip-signature": { type: "boolean" } },
  (image, values, say) => relocateReloc(image, values["keep"] === true, say),
);

runIfMain(import.meta.url, command);
