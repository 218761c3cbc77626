// SPDX-License-Identifier: GPL-2.0-only
// The base relocation table, by the rules of Xen's own reader, efi_arch_relocate_image (xen/arch/x86/efi/efi-boot.h).

import { failing, type Fail } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { sectionAt, type Image } from "../pe/image.ts";
import { viewOf } from "../tables/fields.ts";
import * as pe from "../tables/pe.ts";

/** Bytes that a fix-up changes, by type. Xen knows no others. */
const FIXUP_SIZES: ReadonlyMap<number, number> = new Map([
  [pe.REL_BASED_ABSOLUTE, 0],
  [pe.REL_BASED_HIGHLOW, 4],
  [pe.REL_BASED_DIR64, 8],
]);
const BLOCK_HEADER_SIZE = 8;
const ENTRY_SIZE = 2;
/** Half a million entries, where a Xen has some thousands: far more are a mistake in some header. */
const MOST_TABLE = 0x100000;

export interface BaseRelocation {
  /** Byte offset of the 16-bit entry in the table. */
  readonly at: number;
  readonly type: number;
  /** RVA that is fixed up; meaningless for ABSOLUTE, which pads. */
  readonly target: number;
  /** Bytes that are fixed up: 0, 4 or 8. */
  readonly size: number;
}

const fail: Fail = failing("read the base relocation table");

/** The base relocation data directory. @throws ImageError when there is none, or the image says that there is none */
export function relocationDirectory(image: Image): pe.DataDirectory {
  const directory = image.directories[pe.DIRECTORY_BASE_RELOCATION];
  if (directory === undefined || directory.size === 0)
    return fail("data directory 5 is empty, needed a table: Xen runs wherever firmware loads it");
  const { characteristics } = image.coff;
  if ((characteristics & pe.RELOCS_STRIPPED) !== 0)
    fail(`Characteristics is ${hex(characteristics)}, needed IMAGE_FILE_RELOCS_STRIPPED (0x1) clear`);
  return directory;
}

/**
 * Every entry of the base relocation table, in its order.
 * @throws ImageError when the table is missing or corrupt by Xen's rules, which are the strictest
 */
export function baseRelocations(image: Image): BaseRelocation[] {
  const { virtualAddress, size } = relocationDirectory(image);
  const section = sectionAt(image, virtualAddress);
  const start = virtualAddress - (section?.header.virtualAddress ?? 0);
  if (section === undefined || start + size > section.data.length)
    return fail(`${range(virtualAddress, virtualAddress + size)} is not inside one section's data`);
  if (size > MOST_TABLE) fail(`data directory 5 has ${hex(size)} bytes, needed at most ${hex(MOST_TABLE)}`);
  const view = viewOf(section.data.subarray(start, start + size));
  const found: BaseRelocation[] = [];
  for (let block = 0; block < size;) {
    const { page, end } = readBlock(view, block, virtualAddress);
    for (let at = block + BLOCK_HEADER_SIZE; at < end; at += ENTRY_SIZE) {
      const entry = view.getUint16(at, true);
      const type = entry >>> 12;
      const target = page + (entry & 0xfff);
      const fixupSize = FIXUP_SIZES.get(type);
      if (fixupSize === undefined) {
        const why = 'Xen stops with "Unsupported relocation type"';
        return fail(`the entry for RVA ${hex(target)} has type ${type}, needed 0, 3 or 10: ${why}`);
      }
      found.push({ at, type, target, size: fixupSize });
    }
    block = end;
  }
  return found;
}

/** @param tableAt the table's RVA, for messages */
function readBlock(table: DataView, block: number, tableAt: number): { page: number; end: number } {
  const left = table.byteLength - block;
  const where = `block at RVA ${hex(tableAt + block)}`;
  if (left < BLOCK_HEADER_SIZE) fail(`${where} is ${hex(left)} bytes long, needed at least ${hex(BLOCK_HEADER_SIZE)}`);
  const size = table.getUint32(block + 4, true);
  // Blocks begin on multiples of 4 (PE specification, "The .reloc Section"): only the last may end off one.
  const unit = size === left ? ENTRY_SIZE : 4;
  if (size < BLOCK_HEADER_SIZE || size % unit !== 0 || size > left) {
    const needed = `a multiple of 4 from ${hex(BLOCK_HEADER_SIZE)} to ${hex(left)}`;
    fail(`${where} is SizeOfBlock ${hex(size)}, needed ${needed}`);
  }
  return { page: table.getUint32(block, true), end: block + size };
}
