// SPDX-License-Identifier: GPL-2.0-only
// Code that refers to an address: the `lea` instructions by which Xen finds its base relocation table.

import type { Section } from "../pe/image.ts";
import { viewOf } from "../tables/fields.ts";

/** A `lea disp32(%rip), %r64`: REX.W or REX.WR, opcode 8D, ModRM with mod = 00 and rm = 101, four bytes of displacement. */
export interface LeaReference {
  readonly section: Section;
  /** RVA of the instruction. */
  readonly rva: number;
  /** RVA that it computes. */
  readonly target: number;
}

const OPCODE = 0x8d;
const LEA_SIZE = 7;
/** Where the displacement is in the instruction. It counts from the next instruction. */
export const LEA_DISPLACEMENT_AT = 3;

/** All byte sequences in a section's data that read as such an instruction and compute an address in [from, to]. */
export function leaReferences(section: Section, from: number, to: number): LeaReference[] {
  const { data } = section;
  const view = viewOf(data);
  const found: LeaReference[] = [];
  for (let at = data.indexOf(OPCODE, 1); at >= 0; at = data.indexOf(OPCODE, at + 1)) {
    const start = at - 1;
    if (start + LEA_SIZE > data.length) break;
    const [rex, modRm = 0] = [data[start], data[start + 2]];
    if ((rex !== 0x48 && rex !== 0x4c) || (modRm & 0xc7) !== 0x05) continue;
    const rva = section.header.virtualAddress + start;
    const target = rva + LEA_SIZE + view.getInt32(start + LEA_DISPLACEMENT_AT, true);
    if (target >= from && target <= to) found.push({ section, rva, target });
  }
  return found;
}
