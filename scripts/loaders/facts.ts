// SPDX-License-Identifier: GPL-2.0-only
// What the loader profiles judge an image by, read once: the image itself, its Multiboot headers as loaders find them,
// its base relocation table as far as it can be followed, and what a signature would cover. Nothing here throws over an
// image's content: what one loader refuses another takes, and that is for the profiles to say.

import { ImageError } from "../cli/errors.ts";
import { hex } from "../cli/numbers.ts";
import { MULTIBOOT1, MULTIBOOT2, findHeader } from "../judge/loads.ts";
import { authenticode } from "../judge/authenticode.ts";
import type { Authenticode } from "../judge/authenticode.ts";
import { byAddress, hasFlags, parseImage, sectionEnd } from "../pe/image.ts";
import type { Image, Section } from "../pe/image.ts";
import { readStructure, structure, viewOf } from "../tables/fields.ts";
import type { Fields } from "../tables/fields.ts";
import {
  MB1_ADDRESS_HEADER,
  MB1_AOUT_KLUDGE,
  MB1_HEADER,
  MB1_SEARCH,
  MB2_ADDRESS,
  MB2_ADDRESS_TAG,
  MB2_ENTRY_ADDRESS,
  MB2_ENTRY_ADDRESS_TAG,
  MB2_RELOCATABLE,
  MB2_RELOCATABLE_TAG,
  MB2_SEARCH,
} from "../tables/multiboot.ts";
import { DIRECTORY_BASE_RELOCATION, MEM_WRITE } from "../tables/pe.ts";
import { multiboot2Tags } from "../xen/multiboot.ts";
import type { Multiboot2Tag } from "../xen/multiboot.ts";
import { loadSpan } from "../xen/xen.ts";
import type { LoadSpan } from "../xen/xen.ts";

export interface Evidence {
  readonly bytes: Uint8Array;
  readonly image: Image;
  /** Without one, no Multiboot loader can put what firmware would at the same addresses. */
  readonly span: LoadSpan | undefined;
  readonly relocations: RelocationWalk;
  readonly multiboot1: Multiboot1Facts;
  readonly multiboot2: Multiboot2Facts;
  readonly hash: Authenticode;
}

/**
 * @param image what parseImage makes of the bytes
 * @throws ImageError when it is not a PE32+ image for x86-64, or points outside the file
 */
export function examine(bytes: Uint8Array, image: Image = parseImage(bytes)): Evidence {
  return {
    bytes,
    image,
    span: spanOf(image),
    relocations: walkRelocations(image),
    multiboot1: multiboot1Facts(bytes.subarray(0, MB1_SEARCH + MB1_ADDRESS_HEADER.size)),
    multiboot2: multiboot2Facts(bytes.subarray(0, MB2_SEARCH)),
    hash: authenticode(bytes),
  };
}

function spanOf(image: Image): LoadSpan | undefined {
  try {
    return loadSpan(image, "find the load span");
  } catch (error) {
    if (error instanceof ImageError) return undefined;
    throw error;
  }
}

// ---- Multiboot headers

/** Where a loader puts what: both versions' address fields. */
export interface LoadAddresses {
  /** File offset of the header. */
  readonly at: number;
  readonly headerAddr: number;
  readonly loadAddr: number;
  readonly loadEndAddr: number;
  readonly bssEndAddr: number;
}

export interface Multiboot1Facts {
  /** File offset of the first magic, valid header or not; -1 without one. */
  readonly first: number;
  /** File offset of the first header whose checksum fits; -1 without one. */
  readonly at: number;
  readonly flags: number;
  /** With flag bit 16, and when the fields are inside the file. */
  readonly addresses: LoadAddresses | undefined;
  readonly entryAddr: number;
}

function multiboot1Facts(bytes: Uint8Array): Multiboot1Facts {
  const first = findHeader(bytes, MULTIBOOT1, false);
  const at = findHeader(bytes, MULTIBOOT1);
  if (at < 0) return { first, at, flags: 0, addresses: undefined, entryAddr: 0 };
  const { flags } = readStructure(MB1_HEADER, bytes, at);
  if ((flags & MB1_AOUT_KLUDGE) === 0 || at + MB1_ADDRESS_HEADER.size > bytes.length) {
    return { first, at, flags, addresses: undefined, entryAddr: 0 };
  }
  const header = readStructure(MB1_ADDRESS_HEADER, bytes, at);
  return { first, at, flags, addresses: { ...header, at }, entryAddr: header.entryAddr };
}

export interface Multiboot2Facts {
  /** As in {@link Multiboot1Facts}. */
  readonly first: number;
  readonly at: number;
  /** Why the tags cannot be read. */
  readonly problem: string | undefined;
  /** Without END. */
  readonly tags: readonly Multiboot2Tag[];
  readonly addresses: LoadAddresses | undefined;
  readonly entryAddr: number | undefined;
  readonly relocatable: Fields<typeof MB2_RELOCATABLE_TAG.rows> | undefined;
}

function multiboot2Facts(bytes: Uint8Array): Multiboot2Facts {
  const first = findHeader(bytes, MULTIBOOT2, false);
  const at = findHeader(bytes, MULTIBOOT2);
  const none = { first, at, tags: [], addresses: undefined, entryAddr: undefined, relocatable: undefined };
  if (at < 0) return { ...none, problem: undefined };
  let tags: Multiboot2Tag[];
  try {
    tags = multiboot2Tags(bytes, at, (offset) => `offset ${hex(offset)}`);
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    return { ...none, problem: error.message.replace(/^Cannot [^:]*: /, "") };
  }
  // Loaders keep the last tag of a type.
  const last = (type: number, size: number): Uint8Array | undefined =>
    tags.findLast((tag) => tag.type === type && tag.bytes.length >= size)?.bytes;
  const address = last(MB2_ADDRESS, MB2_ADDRESS_TAG.size);
  const entry = last(MB2_ENTRY_ADDRESS, MB2_ENTRY_ADDRESS_TAG.size);
  const relocatable = last(MB2_RELOCATABLE, MB2_RELOCATABLE_TAG.size);
  return {
    first,
    at,
    problem: undefined,
    tags,
    addresses: address === undefined ? undefined : { ...readStructure(MB2_ADDRESS_TAG, address, 0), at },
    entryAddr: entry === undefined ? undefined : readStructure(MB2_ENTRY_ADDRESS_TAG, entry, 0).entryAddr,
    relocatable: relocatable === undefined ? undefined : readStructure(MB2_RELOCATABLE_TAG, relocatable, 0),
  };
}

/** File offset of what is loaded; loaders count so, and some do not notice when it is below 0. */
export function loadOffset({ at, headerAddr, loadAddr }: LoadAddresses): number {
  return at - (headerAddr - loadAddr);
}

/** Bytes that are loaded. */
export function loadSize(addresses: LoadAddresses, fileSize: number): number {
  const { loadAddr, loadEndAddr } = addresses;
  return loadEndAddr === 0 ? fileSize - loadOffset(addresses) : loadEndAddr - loadAddr;
}

// ---- base relocations

export type Corruption = "block size" | "beyond the table" | "not in memory";

export interface RelocationWalk {
  /** RVA and size by data directory 5; both 0 without one. */
  readonly start: number;
  readonly size: number;
  /** Where the table can be followed no further. */
  readonly corrupt:
    { readonly how: Corruption; readonly block: number; readonly size: number; readonly why: string } | undefined;
  /** RVA of the first target, by type. */
  readonly types: ReadonlyMap<number, number>;
  /** Number of entries by section name ("no section") and type. Padding entries are not counted. */
  readonly sections: ReadonlyMap<string, ReadonlyMap<number, number>>;
  /** The first target beyond SizeOfImage. */
  readonly beyondImage: number | undefined;
  /** The first target that is not in a writable section: Xen writes to all of them. */
  readonly unwritable: { readonly rva: number; readonly section: string } | undefined;
}

const BLOCK = structure("base relocation block", 8, [
  ["page", 4],
  ["size", 4],
]);
const ABSOLUTE = 0;

function walkRelocations(image: Image): RelocationWalk {
  const { virtualAddress: start, size } = image.directories[DIRECTORY_BASE_RELOCATION] ?? {
    virtualAddress: 0,
    size: 0,
  };
  const types = new Map<number, number>();
  const sections = new Map<string, Map<number, number>>();
  const walk = {
    corrupt: undefined as RelocationWalk["corrupt"],
    beyondImage: undefined as number | undefined,
    unwritable: undefined as RelocationWalk["unwritable"],
  };
  const at = sectionFinder(image.sections);
  const holder = at(start);
  const table =
    holder === undefined
      ? new Uint8Array(0)
      : holder.data.subarray(start - holder.header.virtualAddress, start - holder.header.virtualAddress + size);
  const view = viewOf(table);
  // Neighbours are mostly of one section and type, and are counted together.
  let run = { section: undefined as Section | undefined, type: ABSOLUTE, count: 0 };
  const endRun = (): void => {
    if (run.count !== 0) count(sections, run.section?.name ?? "no section", run.type, run.count);
  };
  for (let offset = 0, block = 0; offset < size; block++) {
    const place = `the base relocation block at RVA ${hex(start + offset)}`;
    const stop = (how: Corruption, blockSize: number, why: string): void =>
      void (walk.corrupt = { how, block, size: blockSize, why: `${place} ${why}` });
    if (offset + BLOCK.size > table.length) {
      if (offset + BLOCK.size > size) {
        stop(
          "beyond the table",
          size - offset,
          `has ${hex(size - offset)} bytes up to the end of the table, needed at least 0x8`,
        );
      } else stop("not in memory", 0, "is not in a section's data");
      break;
    }
    const { page, size: blockSize } = readStructure(BLOCK, table, offset);
    // Behind the last block nothing begins that would have to be on a multiple of 4.
    if (blockSize < BLOCK.size || blockSize % (offset + blockSize === size ? 2 : 4) !== 0) {
      stop("block size", blockSize, `has SizeOfBlock ${hex(blockSize)}, needed a multiple of 4 from 0x8 on`);
      break;
    }
    if (offset + blockSize > size) {
      stop("beyond the table", blockSize, `has SizeOfBlock ${hex(blockSize)}, needed at most ${hex(size - offset)}`);
      break;
    }
    if (offset + blockSize > table.length) {
      stop(
        "not in memory",
        blockSize,
        `ends at RVA ${hex(start + offset + blockSize)}, which is not in a section's data`,
      );
      break;
    }
    for (let entry = offset + BLOCK.size; entry < offset + blockSize; entry += 2) {
      const word = view.getUint16(entry, true);
      const type = word >>> 12;
      const rva = page + (word & 0xfff);
      if (!types.has(type)) types.set(type, rva);
      if (type === ABSOLUTE) continue;
      const section = at(rva);
      if (section !== run.section || type !== run.type) {
        endRun();
        run = { section, type, count: 0 };
      }
      run.count++;
      if (rva >= image.optional.sizeOfImage) walk.beyondImage ??= rva;
      else if (section === undefined || !hasFlags(section, MEM_WRITE)) {
        walk.unwritable ??= { rva, section: section?.name ?? "no section" };
      }
    }
    offset += blockSize;
  }
  endRun();
  return { start, size, types, sections, ...walk };
}

function count(sections: Map<string, Map<number, number>>, name: string, type: number, more: number): void {
  let types = sections.get(name);
  if (types === undefined) sections.set(name, (types = new Map()));
  types.set(type, (types.get(type) ?? 0) + more);
}

/** Finds the section of an RVA; fast for many RVAs that lie near each other. */
function sectionFinder(all: readonly Section[]): (rva: number) => Section | undefined {
  const sections = byAddress(all).filter((s) => s.header.virtualSize !== 0);
  let last: Section | undefined;
  const inside = (s: Section | undefined, rva: number): boolean =>
    s !== undefined && rva >= s.header.virtualAddress && rva < sectionEnd(s);
  return (rva) => {
    if (inside(last, rva)) return last;
    let low = 0;
    let high = sections.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((sections[middle]?.header.virtualAddress ?? 0) <= rva) low = middle + 1;
      else high = middle;
    }
    const found = sections[low - 1];
    return inside(found, rva) ? (last = found) : undefined;
  };
}
