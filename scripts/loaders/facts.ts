// SPDX-License-Identifier: GPL-2.0-only
// What the loader profiles judge an image by, read once: the image itself, its Multiboot headers as loaders find them,
// its base relocation table as far as it can be followed, and what a signature would cover. Nothing here throws over an
// image's content: what one loader refuses another takes, and that is for the profiles to say.

import { attempt } from "../cli/errors.ts";
import { authenticode } from "../judge/authenticode.ts";
import type { Authenticode } from "../judge/authenticode.ts";
import { MULTIBOOT1, MULTIBOOT2, findHeader, tagsOfHeader } from "../judge/loads.ts";
import type { HeaderTag } from "../judge/loads.ts";
import { hasFlags, readPe } from "../judge/read.ts";
import type { Pe } from "../judge/read.ts";
import { readStructure } from "../tables/fields.ts";
import type { Fields } from "../tables/fields.ts";
import * as mb from "../tables/multiboot.ts";
import { MEM_WRITE } from "../tables/pe.ts";
import { ABSOLUTE, entriesOf, repeatedTargets, sectionFinder, walkRelocations } from "./relocation-table.ts";
import type { CorruptBlock, RepeatedTargets } from "./relocation-table.ts";

export interface Evidence {
  readonly image: Pe;
  readonly relocations: RelocationEvidence;
  readonly multiboot1: Multiboot1Evidence;
  readonly multiboot2: Multiboot2Evidence;
  readonly hash: Authenticode;
}

/** @throws ImageError when it is not a PE32+ image for x86-64, or points outside the file */
export function examine(bytes: Uint8Array): Evidence {
  const image = readPe(bytes);
  return {
    image,
    relocations: relocationEvidence(image),
    multiboot1: multiboot1Evidence(image.bytes),
    multiboot2: multiboot2Evidence(image.bytes),
    hash: authenticode(image.bytes, image),
  };
}

/** {@link attempt} for what the judge's loads refuse: the reason alone. */
export function attemptLoad<T>(work: () => T): ReturnType<typeof attempt<T>> {
  const { reason, ...done } = attempt("load", work);
  return reason === undefined ? done : { reason: reason.replace(/^cannot be loaded: /, "") };
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

/** A Multiboot header of either version. */
export interface MultibootEvidence {
  /** File offset of the first magic, valid header or not; -1 without one. */
  readonly first: number;
  /** File offset of the first header whose checksum fits; -1 without one. */
  readonly at: number;
  /** Undefined also where the fields are not inside the file. */
  readonly addresses: LoadAddresses | undefined;
  readonly entryAddr: number | undefined;
  /** Only the second version has such a thing. */
  readonly relocatable: Fields<typeof mb.MB2_RELOCATABLE_TAG.rows> | undefined;
}

export interface Multiboot1Evidence extends MultibootEvidence {
  readonly flags: number;
}

const NOTHING = { addresses: undefined, entryAddr: undefined, relocatable: undefined };

function multiboot1Evidence(bytes: Uint8Array): Multiboot1Evidence {
  const first = findHeader(bytes, MULTIBOOT1, false);
  const at = findHeader(bytes, MULTIBOOT1);
  if (at < 0) return { first, at, flags: 0, ...NOTHING };
  const { flags } = readStructure(mb.MB1_HEADER, bytes, at);
  if ((flags & mb.MB1_AOUT_KLUDGE) === 0 || at + mb.MB1_ADDRESS_HEADER.size > bytes.length)
    return { first, at, flags, ...NOTHING };
  const header = readStructure(mb.MB1_ADDRESS_HEADER, bytes, at);
  return { ...NOTHING, first, at, flags, addresses: { ...header, at }, entryAddr: header.entryAddr };
}

export interface Multiboot2Evidence extends MultibootEvidence {
  /** Why the tags cannot be read. */
  readonly problem: string | undefined;
  /** Without END. */
  readonly tags: readonly HeaderTag[];
}

function multiboot2Evidence(file: Uint8Array): Multiboot2Evidence {
  // Tags behind what loaders search are none.
  const bytes = file.subarray(0, mb.MB2_SEARCH);
  const first = findHeader(bytes, MULTIBOOT2, false);
  const at = findHeader(bytes, MULTIBOOT2);
  const none = { first, at, tags: [], ...NOTHING };
  if (at < 0) return { ...none, problem: undefined };
  const { value: tags, reason } = attemptLoad(() => tagsOfHeader(bytes, at));
  if (tags === undefined) return { ...none, problem: reason };
  // Loaders keep the last tag of a type.
  const last = (type: number, size: number): Uint8Array | undefined =>
    tags.findLast((tag) => tag.type === type && tag.bytes.length >= size)?.bytes;
  const address = last(mb.MB2_ADDRESS, mb.MB2_ADDRESS_TAG.size);
  const entry = last(mb.MB2_ENTRY_ADDRESS, mb.MB2_ENTRY_ADDRESS_TAG.size);
  const relocatable = last(mb.MB2_RELOCATABLE, mb.MB2_RELOCATABLE_TAG.size);
  return {
    first,
    at,
    problem: undefined,
    tags,
    addresses: address && { ...readStructure(mb.MB2_ADDRESS_TAG, address, 0), at },
    entryAddr: entry && readStructure(mb.MB2_ENTRY_ADDRESS_TAG, entry, 0).entryAddr,
    relocatable: relocatable && readStructure(mb.MB2_RELOCATABLE_TAG, relocatable, 0),
  };
}

/** File offset of what is loaded; loaders count so, and some do not notice when it is below 0. */
export function loadOffset({ at, headerAddr, loadAddr }: LoadAddresses): number {
  return at - (headerAddr - loadAddr);
}

/** Bytes that are loaded. */
export function loadSize(addresses: LoadAddresses, { bytes }: Pe): number {
  const { loadAddr, loadEndAddr } = addresses;
  return loadEndAddr === 0 ? bytes.length - loadOffset(addresses) : loadEndAddr - loadAddr;
}

// ---- base relocations

export interface RelocationEvidence {
  /** RVA and size by data directory 5; both 0 without one. */
  readonly start: number;
  readonly size: number;
  /** Where the table can be followed no further. */
  readonly corrupt: CorruptBlock | undefined;
  /** RVA of the first target, by type. */
  readonly types: ReadonlyMap<number, number>;
  /** Number of entries by section name ("no section") and type. Padding entries are not counted. */
  readonly sections: ReadonlyMap<string, ReadonlyMap<number, number>>;
  /** The highest target; -1 without one. */
  readonly highest: number;
  readonly repeated: RepeatedTargets | undefined;
  /** The first target that is not in a writable section: Xen writes to all of them. */
  readonly unwritable: { readonly rva: number; readonly section: string } | undefined;
}

function relocationEvidence(image: Pe): RelocationEvidence {
  const { start, size, blocks, corrupt } = walkRelocations(image);
  const types = new Map<number, number>();
  const sections = new Map<string, Map<number, number>>();
  let highest = -1;
  let unwritable: RelocationEvidence["unwritable"];
  const sectionOf = sectionFinder(image);
  for (const block of blocks) {
    for (const { type, target } of entriesOf(block)) {
      if (!types.has(type)) types.set(type, target);
      if (type === ABSOLUTE) continue;
      const section = sectionOf(target);
      const name = section?.name ?? "no section";
      const counts = sections.get(name) ?? new Map<number, number>();
      sections.set(name, counts.set(type, (counts.get(type) ?? 0) + 1));
      highest = Math.max(highest, target);
      if (target >= image.optional.sizeOfImage) continue;
      if (section === undefined || !hasFlags(section, MEM_WRITE)) unwritable ??= { rva: target, section: name };
    }
  }
  return { start, size, corrupt, types, sections, highest, repeated: repeatedTargets(blocks), unwritable };
}
