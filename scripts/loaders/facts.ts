// SPDX-License-Identifier: GPL-2.0-only
// What the loader profiles judge an image by, read once: the image itself, its Multiboot headers as loaders find them,
// its base relocation table as far as it can be followed, and what a signature would cover. Nothing here throws over an
// image's content: what one loader refuses another takes, and that is for the profiles to say.

import { attempt } from "../cli/attempt.ts";
import { authenticode } from "../judge/authenticode.ts";
import { MULTIBOOT1, MULTIBOOT2, findHeader, tagsOfHeader } from "../judge/loads.ts";
import { hasFlags, readPe, type Pe } from "../judge/read.ts";
import { readStructure, type Fields, type Row, type Structure } from "../tables/fields.ts";
import * as mb from "../tables/multiboot.ts";
import { MEM_WRITE } from "../tables/pe.ts";
import { ABSOLUTE, entriesOf, repeatedTargets, sectionFinder, walkRelocations } from "./relocation-table.ts";

export type Evidence = Readonly<ReturnType<typeof examine>>;

/** @throws ImageError when it is not a PE32+ image for x86-64, or points outside the file */
export function examine(bytes: Uint8Array) {
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

export type LoadAddresses = ReturnType<typeof loadAddresses>;

type AddressField = "headerAddr" | "loadAddr" | "loadEndAddr" | "bssEndAddr";

/** Where a loader puts what: the address fields of the header at a file offset, and what follows from them. */
function loadAddresses(at: number, fields: Readonly<Record<AddressField, number>>, file: Uint8Array) {
  const offset = at - (fields.headerAddr - fields.loadAddr);
  const size = fields.loadEndAddr === 0 ? file.length - offset : fields.loadEndAddr - fields.loadAddr;
  return {
    ...fields,
    at,
    /** File offset of what is loaded; loaders count so, and some do not notice when it is below 0. */
    offset,
    /** Bytes that are loaded, and the address behind them. */
    size,
    end: fields.loadAddr + size,
  };
}

/** A Multiboot header of either version; `relocatable` is something that only the second has. */
export type MultibootEvidence = Evidence["multiboot1" | "multiboot2"];

function multiboot1Evidence(bytes: Uint8Array) {
  const at = findHeader(bytes, MULTIBOOT1);
  const flags = at < 0 ? 0 : readStructure(mb.MB1_HEADER, bytes, at).flags;
  const addressed = (flags & mb.MB1_AOUT_KLUDGE) !== 0 && at + mb.MB1_ADDRESS_HEADER.size <= bytes.length;
  const header = addressed ? readStructure(mb.MB1_ADDRESS_HEADER, bytes, at) : undefined;
  return {
    /** File offset of the first magic, valid header or not; -1 without one. */
    first: findHeader(bytes, MULTIBOOT1, false),
    /** File offset of the first header whose checksum fits; -1 without one. */
    at,
    flags,
    /** Undefined also where the fields are not inside the file. */
    addresses: header && loadAddresses(at, header, bytes),
    entryAddr: header?.entryAddr,
    relocatable: undefined,
  };
}

function multiboot2Evidence(file: Uint8Array) {
  // Tags behind what loaders search are none.
  const bytes = file.subarray(0, mb.MB2_SEARCH);
  const at = findHeader(bytes, MULTIBOOT2);
  const { value: tags = [], reason: problem } = attemptLoad(() => (at < 0 ? [] : tagsOfHeader(bytes, at)));
  // Loaders keep the last tag of a type.
  const last = <Rows extends readonly Row[]>(type: number, form: Structure<Rows>): Fields<Rows> | undefined => {
    const tag = tags.findLast((tag) => tag.type === type && tag.bytes.length >= form.size);
    return tag && readStructure(form, tag.bytes, 0);
  };
  const address = last(mb.MB2_ADDRESS, mb.MB2_ADDRESS_TAG);
  return {
    first: findHeader(bytes, MULTIBOOT2, false),
    at,
    /** Why the tags cannot be read. */
    problem,
    /** Without END. */
    tags,
    addresses: address && loadAddresses(at, address, file),
    entryAddr: last(mb.MB2_ENTRY_ADDRESS, mb.MB2_ENTRY_ADDRESS_TAG)?.entryAddr,
    relocatable: last(mb.MB2_RELOCATABLE, mb.MB2_RELOCATABLE_TAG),
  };
}

// ---- base relocations

function relocationEvidence(image: Pe) {
  const { start, size, blocks, corrupt } = walkRelocations(image);
  const types = new Map<number, number>();
  const sections = new Map<string, Map<number, number>>();
  let highest = -1;
  let unwritable: { readonly rva: number; readonly section: string } | undefined;
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
  return {
    start,
    size,
    corrupt,
    /** RVA of the first target, by type. */
    types,
    /** Number of entries by section name ("no section") and type. Padding entries are not counted. */
    sections,
    /** The highest target; -1 without one. */
    highest,
    repeated: repeatedTargets(blocks),
    /** The first target that is not in a writable section: Xen writes to all of them. */
    unwritable,
  };
}
