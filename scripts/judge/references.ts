// SPDX-License-Identifier: GPL-2.0-only
// What refers to the base relocation table, and has to be different when the table moves. Its start is `_end` too, to
// which all other references stay as they are.

import { ImageError } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { viewOf } from "../tables/fields.ts";
import type { DataDirectory } from "../tables/pe.ts";
import { segmentAt, type Fixups, type Memory, type Patch } from "./memory.ts";
import type { Section } from "./read.ts";

/** A `lea` of an RVA relative to the next instruction: 48 or 4C, 8D, ModRM with mod 00 and rm 101, displacement. */
interface Reference {
  readonly section: Section;
  /** RVA of the instruction, whose displacement is its last four of seven bytes. */
  readonly rva: number;
  readonly target: number;
}

function referencesTo(sections: readonly Section[], from: number, to: number): Reference[] {
  const found: Reference[] = [];
  for (const section of sections) {
    const { data } = section;
    const view = viewOf(data);
    const start = section.header.virtualAddress;
    for (let at = data.indexOf(0x8d, 1); at > 0 && at + 6 <= data.length; at = data.indexOf(0x8d, at + 1)) {
      if (((data[at + 1] ?? 0) & 0xc7) !== 0x05 || ((data[at - 1] ?? 0) & 0xfb) !== 0x48) continue;
      const target = start + at + 6 + view.getInt32(at + 2, true);
      if (target >= from && target <= to) found.push({ section, rva: start + at - 1, target });
    }
  }
  return found;
}

const PAIR_DISTANCE = 64;

/**
 * The displacements that have to change when the table moves: of every reference to its end, and of the one to its start
 * beside it.
 * @param sections the original's that Multiboot loads
 * @param distance how far the table moves
 * @throws ImageError when the original does not tell which references are about the table
 */
export function referencePatches(
  sections: readonly Section[],
  { virtualAddress: start, size }: DataDirectory,
  distance: number,
): Patch[] {
  const tableEnd = start + size;
  const all = referencesTo(sections, start, tableEnd);
  const inside = all.find((r) => r.target !== start && r.target !== tableEnd);
  if (inside !== undefined)
    throw new ImageError(
      `its code at RVA ${hex(inside.rva)} refers to ${hex(inside.target)}, inside the moved base relocation table`,
    );
  const ends = all.filter((r) => r.target === tableEnd);
  if (ends.length === 0)
    throw new ImageError(`none of its code refers to the moved base relocation table's end ${hex(tableEnd)}`);
  const starts = new Map(all.filter((r) => r.target === start).map((r) => [r.rva, r]));
  const patched = new Map<number, Reference>();
  for (const end of ends) {
    const partners: Reference[] = [];
    for (let rva = end.rva - PAIR_DISTANCE; rva <= end.rva + PAIR_DISTANCE; rva++) {
      const partner = starts.get(rva);
      if (partner?.section === end.section) partners.push(partner);
    }
    const [partner, second] = partners;
    if (!end.section.name.startsWith(".init") || partner === undefined || second !== undefined)
      throw new ImageError(
        `its code at RVA ${hex(end.rva)} in section ${end.section.name} refers to the moved base relocation table's end, with ${partners.length} references to its start close by, needed it in .init with one`,
      );
    for (const reference of [partner, end]) patched.set(reference.rva, reference);
  }
  return [...patched.values()].map(({ section, rva }) => {
    const bytes = new Uint8Array(4);
    const at = rva + 3 - section.header.virtualAddress;
    viewOf(bytes).setInt32(0, viewOf(section.data).getInt32(at, true) + distance, true);
    return { cause: "a reference to the base relocation table", start: rva + 3, bytes };
  });
}

/**
 * Pointers into the table, or to its end, would go on pointing to where it was.
 * @throws ImageError that names the first
 */
export function refusePointers(
  memory: Memory,
  fixups: Fixups,
  imageBase: bigint,
  { virtualAddress: start, size }: DataDirectory,
): void {
  const [from, to] = [imageBase + BigInt(start), imageBase + BigInt(start + size)];
  for (const { target, width } of fixups) {
    if (width !== 8) continue;
    const segment = segmentAt(memory, target);
    const at = target - (segment?.start ?? 0);
    if (segment === undefined || at + 8 > segment.bytes.length) continue;
    const value = viewOf(segment.bytes).getBigUint64(at, true);
    if (value > from && value <= to)
      throw new ImageError(
        `its pointer at RVA ${hex(target)} is ${hex(value - imageBase)}, needed outside ${range(start, start + size)}, from where the base relocation table was moved`,
      );
  }
}
