// SPDX-License-Identifier: GPL-2.0-only
//
// For the boot tests only: makes a unified image of a PE whose header area has room for more sections. Where iPXE hands
// Xen to EFI firmware there is no file system to read xen.cfg, the kernel and the initramfs from; Xen then looks for
// sections of these names in itself. Appended behind the file's end; everything that was there stays as it is.

import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import * as path from "node:path";
import { run } from "./boot-media.ts";
import { TOOLS } from "./boot-tools.ts";
import { ImageError } from "./cli.ts";

const SECTION_HEADER = 40;
/** CNT_INITIALIZED_DATA | MEM_READ */
const READ_ONLY_DATA = 0x40000040;

/** Writes `image` with the contents of the named files as sections to `output`. */
export async function unifyFile(image: string, output: string, sections: Readonly<Record<string, string>>): Promise<void> {
  const contents = new Map(Object.entries(sections).map(([name, file]) => [name, fs.readFileSync(file)] as const));
  const original = fs.readFileSync(image);
  try {
    fs.writeFileSync(output, unify(original, contents));
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    // As the linker wrote it there is no room for section headers. objcopy, which lays the file out anew, makes some.
    const optional = original.readUInt32LE(0x3c) + 24;
    let address = original.readBigUInt64LE(optional + 24) + BigInt(original.readUInt32LE(optional + 56));
    const alignment = original.readUInt32LE(optional + 32);
    const args = [...contents].flatMap(([name, data]) => {
      const place = `${name}=0x${address.toString(16)}`;
      address += BigInt(roundUp(data.length, alignment));
      return ["--add-section", `${name}=${sections[name]}`, "--change-section-vma", place];
    });
    await run(path.dirname(output), TOOLS.objcopy.is, [...args, image, output]);
  }
}

/** @throws ImageError when there is no room for the section headers, as in every xen.efi that the linker wrote */
export function unify(image: Uint8Array, sections: ReadonlyMap<string, Uint8Array>): Uint8Array {
  const bytes = Buffer.from(image);
  const pe = bytes.readUInt32LE(0x3c);
  const optional = pe + 24;
  const count = bytes.readUInt16LE(pe + 6);
  const table = optional + bytes.readUInt16LE(pe + 20);
  const sectionAlignment = bytes.readUInt32LE(optional + 32);
  const needed = table + (count + sections.size) * SECTION_HEADER;
  const headersEnd = Math.min(...rawPointers(bytes, table, count));
  const free = bytes.subarray(table + count * SECTION_HEADER, needed);
  if (needed > headersEnd || free.some((byte) => byte !== 0)) {
    throw new ImageError(`Cannot add ${sections.size} sections: no room behind the section table`);
  }
  const parts: Uint8Array[] = [bytes, new Uint8Array(-bytes.length & 511)];
  let fileEnd = bytes.length + (-bytes.length & 511);
  let memoryEnd = bytes.readUInt32LE(optional + 56);
  let at = table + count * SECTION_HEADER;
  for (const [name, data] of sections) {
    const address = roundUp(memoryEnd, sectionAlignment);
    const rawSize = roundUp(data.length, 512);
    bytes.write(name, at, 8, "latin1");
    // Xen takes VirtualSize as the length of what is in there.
    bytes.writeUInt32LE(data.length, at + 8);
    bytes.writeUInt32LE(address, at + 12);
    bytes.writeUInt32LE(rawSize, at + 16);
    bytes.writeUInt32LE(fileEnd, at + 20);
    bytes.writeUInt32LE(READ_ONLY_DATA, at + 36);
    parts.push(data, new Uint8Array(rawSize - data.length));
    memoryEnd = address + data.length;
    fileEnd += rawSize;
    at += SECTION_HEADER;
  }
  bytes.writeUInt16LE(count + sections.size, pe + 6);
  bytes.writeUInt32LE(roundUp(memoryEnd, sectionAlignment), optional + 56);
  return Buffer.concat(parts);
}

/** Where the data of the sections begins in the file, for each that has any. */
function rawPointers(bytes: Buffer, table: number, count: number): number[] {
  const all = Array.from({ length: count }, (_, index) => bytes.readUInt32LE(table + index * SECTION_HEADER + 20));
  return all.filter((pointer) => pointer !== 0);
}

function roundUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}
