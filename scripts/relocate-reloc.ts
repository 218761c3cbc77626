// SPDX-License-Identifier: GPL-2.0-only
//
// Moves .reloc from behind .bss to the last pages ahead of __init_end, so that .bss is the last thing in memory, and
// repairs the code that refers to it.
//
// Changes: .reloc's VirtualAddress, VirtualSize and MEM_DISCARDABLE; data directory 5; the displacements of the `lea`
//   pairs that compute __base_relocs_start and __base_relocs_end; the order of the section table; CheckSum.
//   With --keep only MEM_DISCARDABLE (and order, CheckSum).
// Leaves: every other byte, at its place in the file.
// Refuses: no room behind .init, a reference that cannot be told apart or would be left behind, a corrupt table.
// Order: the first step, since align-sections grows .init over the room that this step needs. An image that is already
//   linear is refused by name; one whose .reloc is where it belongs stays as it is, so running it twice changes nothing.
//
// Why MEM_DISCARDABLE goes: shim does not load a discardable section (pe.c:handle_image), but Xen reads the table in
// memory (xen/arch/x86/efi/efi-boot.h:efi_arch_relocate_image) and stops with "Unsupported relocation type".

import { runIfMain } from "./cli/cli.ts";
import { ImageError } from "./cli/errors.ts";
import { hex, printable, range } from "./cli/numbers.ts";
import {
  byAddress,
  checkSections,
  hasFlags,
  roundUp,
  sectionAt,
  sectionEnd,
  sortSectionTable,
  symbolBelow,
  symbolsNamed,
  withHeader,
} from "./pe/image.ts";
import type { Image, Section } from "./pe/image.ts";
import { onBytes, silent, stripSignature, transformCommand } from "./pe/transform.ts";
import type { Say } from "./pe/transform.ts";
import { viewOf } from "./tables/fields.ts";
import {
  CNT_UNINITIALIZED_DATA,
  DIRECTORY_BASE_RELOCATION,
  MEM_DISCARDABLE,
  MEM_EXECUTE,
  MEM_WRITE,
  PAGE_SIZE,
} from "./tables/pe.ts";
import {
  LEA_DISPLACEMENT_AT,
  REL_BASED_DIR64,
  initSections,
  leaReferences,
  loadSpan,
  relocationDirectory,
  relocationLists,
  whyNotLinear,
} from "./xen/xen.ts";
import type { LeaReference, LoadSpan } from "./xen/xen.ts";

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

/**
 * Moves .reloc ahead of __init_end (or, with `keep`, only makes it not discardable).
 * @throws ImageError when it cannot be done without guessing
 */
export function relocateReloc(image: Image, keep: boolean, say: Say = silent): Image {
  checkSections(image, ACTION);
  const span = loadSpan(image, ACTION);
  const reloc = relocSection(image);
  const stays = keep || span.sections.includes(reloc);
  const done = stays && !hasFlags(reloc, MEM_DISCARDABLE);
  if (!done && whyNotLinear(image, span) === undefined) {
    throw new ImageError(
      `Cannot ${ACTION}: the sections are aligned already, so .init has grown over the room behind it; run relocate-reloc first, then align-sections`,
    );
  }
  const kept = withHeader(reloc, { characteristics: withoutDiscardable(reloc) });
  if (stays) return sortSectionTable(replaceSections(image, new Map([[reloc, kept]])));
  return moveTable(image, span, reloc, say);
}

function moveTable(image: Image, span: LoadSpan, reloc: Section, say: Say): Image {
  const { size } = relocationDirectory(image);
  refuseSectionsBetween(image, span, reloc);
  const target = newAddress(image, span, reloc);
  const pairs = findPairs(image, span, reloc, size);
  refuseLeftBehind(image, span, reloc, size);
  checkSymbols(image, reloc, size);
  for (const [start, end] of pairs) {
    say(
      `note: __base_relocs_start at ${hex(start.rva)} and __base_relocs_end at ${hex(end.rva)} now refer to ${hex(target)} and ${hex(target + size)}${inFunction(image, end)}`,
    );
  }
  const changed = patchReferences(pairs, target - reloc.header.virtualAddress);
  const header = { virtualAddress: target, virtualSize: size, characteristics: withoutDiscardable(reloc) };
  // The same data where it can be: its base relocations are known by it.
  const data = reloc.data.length === size ? reloc.data : reloc.data.subarray(0, size);
  changed.set(reloc, withHeader(reloc, header, data));
  const directories = image.directories.map((d, i) =>
    i === DIRECTORY_BASE_RELOCATION ? { ...d, virtualAddress: target } : d,
  );
  return sortSectionTable({ ...replaceSections(image, changed), directories });
}

/** The one section by which shim relocates: named .reloc, beginning at the directory's address (pe-relocate.c). */
function relocSection(image: Image): Section {
  const directory = relocationDirectory(image);
  const [reloc, second] = image.sections.filter((s) => s.name === ".reloc");
  if (reloc === undefined)
    throw new ImageError(
      `Cannot ${ACTION}: there is no section .reloc, needed one at data directory 5's ${hex(directory.virtualAddress)}`,
    );
  if (hasFlags(reloc, CNT_UNINITIALIZED_DATA))
    throw new ImageError(
      `Cannot ${ACTION}: section .reloc has flags ${hex(reloc.header.characteristics)}, needed IMAGE_SCN_CNT_UNINITIALIZED_DATA (0x80) clear: loaders would zero it`,
    );
  if (second !== undefined)
    throw new ImageError(
      `Cannot ${ACTION}: there are two sections .reloc, at RVA ${hex(reloc.header.virtualAddress)} and ${hex(second.header.virtualAddress)}, needed one`,
    );
  const end = directory.virtualAddress + directory.size;
  if (
    reloc.header.virtualAddress !== directory.virtualAddress ||
    end > reloc.header.virtualAddress + reloc.data.length
  ) {
    throw new ImageError(
      `Cannot ${ACTION}: section .reloc's data is at ${range(reloc.header.virtualAddress, reloc.header.virtualAddress + reloc.data.length)}, needed all of data directory 5's ${range(directory.virtualAddress, end)} at its start`,
    );
  }
  return reloc;
}

/**
 * The table begins at `_end`: code or writable data between .bss and it would be a part of Xen that Multiboot does not
 * load. A section of another kind may be there, .sbat for one, which Xen itself does not read.
 */
function refuseSectionsBetween(image: Image, span: LoadSpan, reloc: Section): void {
  const between = image.sections.find(
    (s) =>
      s.header.virtualAddress > span.bssStart &&
      s.header.virtualAddress < reloc.header.virtualAddress &&
      !hasFlags(s, CNT_UNINITIALIZED_DATA) &&
      hasFlags(s, MEM_WRITE | MEM_EXECUTE),
  );
  if (between === undefined) return;
  throw new ImageError(
    `Cannot ${ACTION}: section ${between.name} at ${range(between.header.virtualAddress, sectionEnd(between))} lies between .bss and .reloc, needed .bss to be Xen's last section`,
  );
}

/**
 * The last pages ahead of __init_end, which is where the section behind the last .init section begins: Xen frees them
 * with the init memory.
 * @returns RVA
 */
function newAddress(image: Image, span: LoadSpan, reloc: Section): number {
  const last = initSections(image).at(-1);
  if (last === undefined)
    throw new ImageError(`Cannot ${ACTION}: no section's name begins with .init, needed one to move it behind`);
  const ordered = byAddress(image.sections);
  const next = ordered[ordered.indexOf(last) + 1];
  if (next === undefined || next === reloc)
    throw new ImageError(
      `Cannot ${ACTION}: no section follows ${last.name} at ${range(last.header.virtualAddress, sectionEnd(last))}, needed one that begins at __init_end`,
    );
  const initEnd = next.header.virtualAddress;
  const from = roundUp(sectionEnd(last), PAGE_SIZE);
  const needed = roundUp(reloc.header.virtualSize, PAGE_SIZE);
  if (last.header.virtualAddress >= span.bssStart)
    throw new ImageError(
      `Cannot ${ACTION}: section ${last.name} is at RVA ${hex(last.header.virtualAddress)}, needed below .bss at ${hex(span.bssStart)}, where Multiboot loads it`,
    );
  if (initEnd % PAGE_SIZE !== 0)
    throw new ImageError(
      `Cannot ${ACTION}: __init_end, where ${next.name} begins, is at RVA ${hex(initEnd)}, needed a multiple of ${hex(PAGE_SIZE)}`,
    );
  if (initEnd - needed < from) {
    throw new ImageError(
      `Cannot ${ACTION}: it needs ${hex(needed)} bytes behind ${last.name}, there are ${hex(Math.max(0, initEnd - from))} in ${range(from, Math.max(from, initEnd))}; RELOC=keep (--keep) leaves it where it is`,
    );
  }
  return initEnd - needed;
}

/** Start and end reference of one copy of the loop that walks the table. */
type Pair = readonly [start: LeaReference, end: LeaReference];

/**
 * The references to patch. `__base_relocs_start` has the same address as `_end`, which dozens of other instructions use:
 * only one that stands close to a reference to `__base_relocs_end` is about the table.
 */
function findPairs(image: Image, span: LoadSpan, reloc: Section, size: number): Pair[] {
  const start = reloc.header.virtualAddress;
  const end = start + size;
  const references = span.sections.flatMap((s) => [...leaReferences(s, start, end)]);
  const inside = references.find((r) => r.target !== start && r.target !== end);
  if (inside !== undefined)
    throw new ImageError(
      `Cannot ${ACTION}: the code at RVA ${hex(inside.rva)} refers to ${hex(inside.target)}, inside the table ${range(start, end)}, needed its start or end only`,
    );
  const starts = references.filter((r) => r.target === start);
  const ends = references.filter((r) => r.target === end);
  if (ends.length === 0) {
    throw new ImageError(
      `Cannot ${ACTION}: no code in ${range(span.first, span.dataEnd)} refers to the table's end ${hex(end)}, needed a lea for it beside one for its start ${hex(start)}; RELOC=keep (--keep) leaves the table where it is`,
    );
  }
  const init = initSections(image);
  const startAt = new Map(starts.map((reference) => [reference.rva, reference]));
  return ends.map((reference) => {
    if (!init.includes(reference.section)) {
      throw new ImageError(
        `Cannot ${ACTION}: the reference to the table's end ${hex(end)} at RVA ${hex(reference.rva)} is in ${reference.section.name}, needed in .init`,
      );
    }
    const near: LeaReference[] = [];
    for (let rva = reference.rva - PAIR_DISTANCE; rva <= reference.rva + PAIR_DISTANCE; rva++) {
      const candidate = startAt.get(rva);
      if (candidate?.section === reference.section) near.push(candidate);
    }
    const [first] = near;
    if (first === undefined || near.length > 1) {
      const found = near.length === 0 ? "none" : near.map((s) => hex(s.rva)).join(" and ");
      throw new ImageError(
        `Cannot ${ACTION}: the reference to the table's end ${hex(end)} at RVA ${hex(reference.rva)} has ${found} to its start ${hex(start)} within ${PAIR_DISTANCE} bytes, needed exactly one`,
      );
    }
    return [first, reference] as const;
  });
}

/** A pointer into the table, in data, would go on pointing to where the table was. One to its start is `_end`. */
function refuseLeftBehind(image: Image, span: LoadSpan, reloc: Section, size: number): void {
  const start = reloc.header.virtualAddress;
  const pointedTo = pointerReader(image);
  const { types, targets } = relocationLists(image);
  for (let i = 0; i < types.length; i++) {
    const target = targets[i] ?? 0;
    const value = types[i] === REL_BASED_DIR64 ? pointedTo(target) : start;
    if (value > start && value <= start + size) {
      throw new ImageError(
        `Cannot ${ACTION}: the pointer at RVA ${hex(target)} is to ${hex(value)}, inside or at the end of the table ${range(start, start + size)}, needed none in ${range(span.first, span.dataEnd)}`,
      );
    }
  }
}

/**
 * A function that tells what the 64-bit pointer at an RVA points to, as an RVA; what a section has no data for is zero.
 * Exact where it matters: only what is far from any RVA may be rounded. Neighbours are asked for one after the other,
 * so it keeps the section it found.
 */
function pointerReader(image: Image): (rva: number) => number {
  const low = Number(image.optional.imageBase & 0xffffffffn);
  const high = Number(BigInt.asIntN(32, image.optional.imageBase >> 32n));
  const read = (view: DataView, at: number): number => {
    const rva = view.getUint32(at, true) - low;
    // Addresses are modulo 2^64. Nearly all differ in the lower half alone, and small numbers are fast.
    const above = (view.getInt32(at + 4, true) - high) | 0;
    return above === 0 ? rva : above * 2 ** 32 + rva;
  };
  let section: Section | undefined;
  let view = viewOf(new Uint8Array(0));
  return (rva) => {
    if (section === undefined || rva < section.header.virtualAddress || rva >= sectionEnd(section)) {
      section = sectionAt(image, rva);
      if (section === undefined)
        throw new ImageError(`Cannot ${ACTION}: a base relocation is for RVA ${hex(rva)}, needed one inside a section`);
      view = viewOf(section.data);
    }
    const at = rva - section.header.virtualAddress;
    if (at + 8 <= view.byteLength) return read(view, at);
    const padded = new Uint8Array(8);
    padded.set(section.data.subarray(at, at + 8));
    return read(viewOf(padded), 0);
  };
}

/** Where there are symbols, they must say what the instructions said. */
function checkSymbols(image: Image, reloc: Section, size: number): void {
  const start = reloc.header.virtualAddress;
  const needed = new Map([
    ["__base_relocs_start", start],
    ["__base_relocs_end", start + size],
  ]);
  const wrong = symbolsNamed(image, ...needed.keys()).find(({ name, rva }) => rva !== needed.get(name));
  if (wrong === undefined) return;
  const right = hex(needed.get(wrong.name) ?? start);
  throw new ImageError(
    `Cannot ${ACTION}: symbol ${wrong.name} is ${hex(wrong.rva)}, needed ${right} as data directory 5 says`,
  );
}

/** For an RVA, ", in FUNCTION", where the image has symbols. */
function inFunction(image: Image, { section, rva }: LeaReference): string {
  const name = symbolBelow(image, section, rva);
  return name === undefined ? "" : `, in ${printable(name)}`;
}

/** Adds to the displacement of every referring instruction; two pairs may share one. */
function patchReferences(pairs: readonly Pair[], distance: number): Map<Section, Section> {
  const references = new Map(pairs.flat().map((reference) => [reference.rva, reference]));
  const changed = new Map<Section, Section>();
  for (const { section, rva } of references.values()) {
    const copy = changed.get(section) ?? { ...section, data: section.data.slice() };
    changed.set(section, copy);
    const view = viewOf(copy.data);
    const at = rva - section.header.virtualAddress + LEA_DISPLACEMENT_AT;
    view.setInt32(at, view.getInt32(at, true) + distance, true);
  }
  return changed;
}

function replaceSections(image: Image, changed: ReadonlyMap<Section, Section>): Image {
  return { ...image, sections: image.sections.map((s) => changed.get(s) ?? s) };
}

function withoutDiscardable({ header }: Section): number {
  return (header.characteristics & ~MEM_DISCARDABLE) >>> 0;
}

export const command = transformCommand(
  USAGE,
  { keep: { type: "boolean" }, "strip-signature": { type: "boolean" } },
  (bytes, values, say) =>
    onBytes((image) => relocateReloc(image, values.keep === true, say))(
      values["strip-signature"] === true ? stripSignature(bytes) : bytes,
    ),
);

runIfMain(import.meta.url, command);
