// SPDX-License-Identifier: GPL-2.0-only
// What inspect finds in an image beyond its PE headers: base relocations, Multiboot headers, symbols, debug directory.
// Nothing here throws over an image's content: a fact that cannot be had has the reason in its place ("problem").

import { Buffer } from "node:buffer";
import { attempt } from "../cli/attempt.ts";
import { hex } from "../cli/numbers.ts";
import { ABSOLUTE, entriesOf, repeatedTargets, walkRelocations } from "../loaders/relocation-table.ts";
import type { RelocationBlock } from "../loaders/relocation-table.ts";
import { definedSymbols } from "../pe/symbols.ts";
import { baseRelocations } from "../xen/relocations.ts";
import { leaReferences } from "../xen/references.ts";
import { byAddress, hasFlags, sectionAt, type Image } from "../pe/image.ts";
import { readStructure, structure, viewOf } from "../tables/fields.ts";
import * as mb from "../tables/multiboot.ts";
import * as pe from "../tables/pe.ts";
import { findMultiboot1, findMultiboot2, multiboot2Tags, type Multiboot2Tag } from "../xen/multiboot.ts";
import * as names from "./inspect-names.ts";

/** A data directory; an empty one where the image has fewer. */
export function directory(image: Image, index: number): pe.DataDirectory {
  return image.directories[index] ?? { virtualAddress: 0, size: 0 };
}

/** The bytes of a memory range as far as a section has data for it: less than `size` where it has not. Copies nothing. */
function presentAt(image: Image, rva: number, size: number): Uint8Array {
  const section = sectionAt(image, rva);
  if (section === undefined) return new Uint8Array(0);
  const start = rva - section.header.virtualAddress;
  return section.data.subarray(start, start + size);
}

/** Where the data for an RVA lies in the file; null where a section has none for it. */
function fileOffsetOf(image: Image, rva: number): number | null {
  const section = sectionAt(image, rva);
  const offset = rva - (section?.header.virtualAddress ?? 0);
  return section !== undefined && offset < section.data.length ? section.header.pointerToRawData + offset : null;
}

// ---- base relocations

export function relocationFacts(image: Image) {
  const { start, size, present, blocks } = walkRelocations(image);
  const { entries, types, sections } = tally(image, blocks);
  return {
    entries,
    types,
    /** Number of targets by the name of their section; padding entries have none. */
    sections,
    blocks: blocks.map((block) => blockFacts(image, block)),
    /** `lea` instructions in code sections that compute the table's first address, and the one behind it: what moving it patches. */
    startReferences: size === 0 ? [] : references(image, start),
    endReferences: size === 0 ? [] : references(image, start + size),
    /** What every loader of PE images fixes up more than once; null where nothing is. */
    repeated: repeatedTargets(blocks) ?? null,
    /** Why no transform takes the table; the blocks go as far as it can be followed. */
    problem: relocationProblem(image, present, size),
  };
}

function blockFacts(image: Image, block: RelocationBlock) {
  const { types, sections, first, last } = tally(image, [block]);
  return { page: block.page, size: block.bytes.length, types, first, last, sections: Object.keys(sections) };
}

/** What blocks have, counted without keeping any entry: a corrupt image may claim more of them than memory can hold. */
function tally(image: Image, blocks: readonly RelocationBlock[]) {
  const [types, sections] = [new Map<number, number>(), new Map<string, number>()];
  let [entries, first, last] = [0, Infinity, -Infinity];
  for (const block of blocks)
    for (const { type, target } of entriesOf(block)) {
      entries++;
      types.set(type, (types.get(type) ?? 0) + 1);
      // Entries that pad have no target.
      if (type === ABSOLUTE) continue;
      const section = sectionAt(image, target)?.name ?? "no section";
      sections.set(section, (sections.get(section) ?? 0) + 1);
      [first, last] = [Math.min(first, target), Math.max(last, target)];
    }
  const named = [...types]
    .sort(([a], [b]) => a - b)
    .map(([type, count]) => [pe.RELOCATION_NAMES[type] ?? `type ${type}`, count]);
  return {
    entries,
    /** Number of entries by the name of their type. */
    types: Object.fromEntries(named) as Record<string, number>,
    /** Number of targets by the name of their section. */
    sections: Object.fromEntries(sections),
    /** Lowest and highest target; null where all entries pad. */
    first: sections.size === 0 ? null : first,
    last: sections.size === 0 ? null : last,
  };
}

function references(image: Image, target: number): number[] {
  const code = byAddress(image.sections).filter((s) => hasFlags(s, pe.CNT_CODE | pe.MEM_EXECUTE));
  return code.flatMap((section) => [...leaReferences(section, target, target)].map(({ rva }) => rva));
}

/** What the transforms would say. Asked only where the table is there in full: a directory can claim 4 GiB. */
function relocationProblem(image: Image, present: number, size: number): string | null {
  if (present < size) return `of the table's ${hex(size)} bytes, ${hex(present)} are in a section's data`;
  return attempt("read the base relocation table", () => baseRelocations(image)).reason ?? null;
}

// ---- Multiboot headers

/** Multiboot Specification, section 3.1.4, behind the address fields. */
const MB1_VIDEO_FIELDS = structure("Multiboot header, video fields", 16, [
  ["modeType", 4],
  ["width", 4],
  ["height", 4],
  ["depth", 4],
]);

export type MultibootPlace = NonNullable<ReturnType<typeof place>>;

/**
 * The place of a header: the first in what loaders look at; else the first one in the lowest section, where Xen has it,
 * which is too far into the file.
 */
function place(image: Image, bytes: Uint8Array, find: typeof findMultiboot1, limit: number) {
  const found = find(bytes, limit);
  if (found !== undefined) return located(image, found, true);
  const lowest = byAddress(image.sections).find((s) => s.data.length !== 0);
  const offset = lowest === undefined ? undefined : find(lowest.data, limit);
  if (lowest === undefined || offset === undefined) return undefined;
  return located(image, lowest.header.pointerToRawData + offset, false);
}

function located(image: Image, fileOffset: number, found: boolean) {
  const inside = image.sections.find(
    ({ header, data }) => fileOffset >= header.pointerToRawData && fileOffset < header.pointerToRawData + data.length,
  );
  const rva = inside && inside.header.virtualAddress + fileOffset - inside.header.pointerToRawData;
  return {
    fileOffset,
    /** null: in no section's data. */
    rva: rva ?? null,
    section: inside?.name ?? null,
    /** Whether a loader finds it: it looks at so many bytes of the file only. */
    found,
  };
}

export function multiboot1Facts(image: Image, bytes: Uint8Array) {
  const at = place(image, bytes, findMultiboot1, mb.MB1_SEARCH);
  if (at === undefined) return null;
  const header = readStructure(mb.MB1_HEADER, bytes, at.fileOffset);
  const addresses = (header.flags & mb.MB1_AOUT_KLUDGE) !== 0;
  const video = (header.flags & mb.MB1_VIDEO_MODE) !== 0;
  const videoAt = at.fileOffset + mb.MB1_ADDRESS_HEADER.size;
  const size = addresses ? mb.MB1_ADDRESS_HEADER.size : mb.MB1_HEADER.size;
  const end = video ? videoAt + MB1_VIDEO_FIELDS.size : at.fileOffset + size;
  const complete = end <= bytes.length;
  return {
    ...at,
    fields: {
      ...header,
      ...(complete && addresses ? readStructure(mb.MB1_ADDRESS_HEADER, bytes, at.fileOffset) : {}),
      ...(complete && video ? readStructure(MB1_VIDEO_FIELDS, bytes, videoAt) : {}),
    },
    flagNames: names.flagNames(header.flags, names.MB1_FLAGS),
    problem: complete ? null : `it ends at ${hex(end)}, the file at ${hex(bytes.length)}`,
  };
}

export function multiboot2Facts(image: Image, bytes: Uint8Array) {
  const at = place(image, bytes, findMultiboot2, mb.MB2_SEARCH);
  if (at === undefined) return null;
  const fields = readStructure(mb.MB2_HEADER, bytes, at.fileOffset);
  const { value: tags, reason = null } = attempt("read the Multiboot2 header", () =>
    multiboot2Tags(bytes, at.fileOffset, (offset) => `file offset ${hex(offset)}`),
  );
  return {
    ...at,
    fields,
    tags: tags === undefined ? [] : tagFacts([...tags, END]),
    /** What follows the header: how many bytes of the same value, where emit-header could grow into. */
    behind: runAt(bytes, at.fileOffset + fields.headerLength),
    problem: reason,
  };
}

function runAt(bytes: Uint8Array, at: number) {
  const byte = bytes[at];
  if (byte === undefined) return null;
  let end = at;
  while (bytes[end] === byte) end++;
  return { byte, bytes: end - at };
}

/** The tag that multiboot2Tags leaves out, after making sure of it. */
const END: Multiboot2Tag = { type: mb.MB2_END, flags: 0, bytes: new Uint8Array(mb.MB2_TAG.size) };

export type TagFacts = ReturnType<typeof tagFacts>[number];

/** Offsets follow from the sizes: multiboot2Tags has checked that tags follow each other, padded to 8. */
function tagFacts(tags: readonly Multiboot2Tag[]) {
  let next = mb.MB2_HEADER.size;
  return tags.map(({ type, flags, bytes }) => {
    const offset = next;
    next += Math.ceil(bytes.length / mb.MB2_ALIGN) * mb.MB2_ALIGN;
    const length = Math.floor((bytes.length - mb.MB2_TAG.size) / 4);
    const words = Array.from({ length }, (_, i) => viewOf(bytes).getUint32(mb.MB2_TAG.size + 4 * i, true));
    const request = type === mb.MB2_INFORMATION_REQUEST;
    const fields = request ? [] : (names.MB2_TAG_FIELDS[type] ?? []).slice(0, words.length);
    const described = mb.MB2_TAG.size + 4 * (request ? words.length : fields.length);
    return {
      /** From the header's begin. */
      offset,
      type,
      name: mb.MB2_TAG_NAMES[type] ?? `type ${type}`,
      optional: (flags & mb.MB2_TAG_OPTIONAL) !== 0,
      flags,
      size: bytes.length,
      fields: Object.fromEntries(fields.map((name, i) => [name, words[i] ?? 0])),
      /** INFORMATION_REQUEST: the types it asks for. */
      requests: request ? words.map((word) => names.MB2_INFORMATION_NAMES[word] ?? String(word)) : [],
      /** Bytes that no field describes, in hexadecimal. */
      rest: Buffer.from(bytes.subarray(described)).toString("hex"),
    };
  });
}

// ---- symbols

/** Those whose names say where Xen's parts are, in RVA order. */
export function symbolFacts(image: Image) {
  const found = [];
  for (const symbol of definedSymbols(image))
    if (names.SYMBOLS_OF_INTEREST.has(symbol.name))
      found.push({ ...symbol, section: image.sections[symbol.section]?.name ?? "" });
  // Not localeCompare: the order must be the same everywhere.
  return found.sort((a, b) => a.rva - b.rva || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
}

// ---- debug directory

export function debugFacts(image: Image) {
  const { virtualAddress, size } = directory(image, pe.DIRECTORY_DEBUG);
  const table = presentAt(image, virtualAddress, size);
  return Array.from({ length: Math.floor(table.length / pe.DEBUG_DIRECTORY_ENTRY.size) }, (_, i) => {
    const entry = readStructure(pe.DEBUG_DIRECTORY_ENTRY, table, i * pe.DEBUG_DIRECTORY_ENTRY.size);
    return {
      ...entry,
      typeName: names.DEBUG_TYPES[entry.type] ?? `type ${entry.type}`,
      /** Where the data is by its RVA; what pointerToRawData should say. */
      fileOffset: fileOffsetOf(image, entry.addressOfRawData),
      codeView: codeView(presentAt(image, entry.addressOfRawData, entry.sizeOfData)),
    };
  });
}

/** A CodeView record of PDB 7.0: "RSDS", 16 bytes of GUID, four of age, the path up to a NUL. */
const RSDS = 0x53445352;
const RSDS_GUID_AT = 4;
const RSDS_AGE_AT = 20;
const RSDS_PATH_AT = 24;

/** GNU ld's --build-id for PE is the GUID: its bytes are what Xen reports as build-id (xen/common/version.c). */
function codeView(record: Uint8Array) {
  if (record.length < RSDS_PATH_AT || viewOf(record).getUint32(0, true) !== RSDS) return null;
  const text = Buffer.from(record);
  return {
    signature: "RSDS",
    guid: text.toString("hex", RSDS_GUID_AT, RSDS_AGE_AT),
    age: viewOf(record).getUint32(RSDS_AGE_AT, true),
    path: text.toString("latin1", RSDS_PATH_AT).replace(/\0.*$/s, ""),
  };
}
