// SPDX-License-Identifier: GPL-2.0-only
// What inspect finds in an image beyond its PE headers: base relocations, Multiboot headers, symbols, debug directory.
// Nothing here throws over an image's content: a fact that cannot be had has the reason in its place ("problem").

import { Buffer } from "node:buffer";
import { ImageError } from "../cli/errors.ts";
import { hex } from "../cli/numbers.ts";
import { byAddress, definedSymbols, hasFlags, sectionAt, sectionEnd } from "../pe/image.ts";
import type { Image } from "../pe/image.ts";
import {
  DEBUG_TYPES,
  MB1_FLAGS,
  MB2_INFORMATION_NAMES,
  MB2_TAG_FIELDS,
  RELOCATION_NAMES,
  SYMBOLS_OF_INTEREST,
  flagNames,
} from "./inspect-names.ts";
import { readStructure, structure, viewOf } from "../tables/fields.ts";
import {
  MB1_ADDRESS_HEADER,
  MB1_AOUT_KLUDGE,
  MB1_HEADER,
  MB1_SEARCH,
  MB1_VIDEO_MODE,
  MB2_HEADER,
  MB2_INFORMATION_REQUEST,
  MB2_SEARCH,
  MB2_TAG,
  MB2_TAG_NAMES,
  MB2_TAG_OPTIONAL,
} from "../tables/multiboot.ts";
import {
  CNT_CODE,
  DEBUG_DIRECTORY_ENTRY,
  DIRECTORY_BASE_RELOCATION,
  DIRECTORY_DEBUG,
  MEM_EXECUTE,
} from "../tables/pe.ts";
import type { DebugDirectoryEntry } from "../tables/pe.ts";
import { findMultiboot1, findMultiboot2, multiboot2Tags } from "../xen/multiboot.ts";
import type { Multiboot2Tag } from "../xen/multiboot.ts";
import { REL_BASED_ABSOLUTE, baseRelocations, leaReferences } from "../xen/xen.ts";

/** Runs `work`; the message of its ImageError becomes the reason, without "Cannot …: " where that says `action` only. */
export function reasonOf(action: string, work: () => void): string | undefined {
  try {
    work();
    return undefined;
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    return error.message.startsWith(`Cannot ${action}`) ? error.message.replace(/^[^:]*: /, "") : error.message;
  }
}

/** The bytes of a memory range as far as a section has data for it: less than `size` where it has not. Copies nothing. */
function presentAt(image: Image, rva: number, size: number): Uint8Array {
  const section = sectionAt(image, rva);
  if (section === undefined) return new Uint8Array(0);
  const start = rva - section.header.virtualAddress;
  return section.data.subarray(start, start + size);
}

/** Where the data for an RVA lies in the file. */
export function fileOffsetOf(image: Image, rva: number): number | undefined {
  const section = sectionAt(image, rva);
  if (section === undefined) return undefined;
  const offset = rva - section.header.virtualAddress;
  return offset < section.data.length ? section.header.pointerToRawData + offset : undefined;
}

// ---- base relocations

export interface RelocationBlock {
  page: number;
  size: number;
  /** Number of entries by the name of their type. */
  types: Record<string, number>;
  /** Lowest and highest target; null in a block that pads only. */
  first: number | null;
  last: number | null;
  sections: string[];
}

export interface RelocationFacts {
  entries: number;
  types: Record<string, number>;
  /** Number of targets by the name of their section; padding entries have none. */
  sections: Record<string, number>;
  blocks: RelocationBlock[];
  /** `lea` instructions in code sections that compute the table's first address, and the one behind it: what moving it patches. */
  startReferences: number[];
  endReferences: number[];
  /** Why no transform takes the table; the blocks go as far as it can be followed. */
  problem: string | null;
}

const RELOCATION_BLOCK = structure("base relocation block", 8, [
  ["page", 4],
  ["size", 4],
]);

export function relocationFacts(image: Image): RelocationFacts {
  const { virtualAddress, size } = image.directories[DIRECTORY_BASE_RELOCATION] ?? { virtualAddress: 0, size: 0 };
  const table = presentAt(image, virtualAddress, size);
  const types = new Map<number, number>();
  const sections = new Map<string, number>();
  const blocks: RelocationBlock[] = [];
  for (let at = 0; at + RELOCATION_BLOCK.size <= table.length;) {
    const header = readStructure(RELOCATION_BLOCK, table, at);
    if (header.size < RELOCATION_BLOCK.size || at + header.size > table.length) break;
    blocks.push(relocationBlock(image, header.page, table.subarray(at, at + header.size), types, sections));
    at += header.size;
  }
  return {
    entries: [...types.values()].reduce((sum, number) => sum + number, 0),
    types: byTypeName(types),
    sections: Object.fromEntries(sections),
    blocks,
    startReferences: size === 0 ? [] : references(image, virtualAddress),
    endReferences: size === 0 ? [] : references(image, virtualAddress + size),
    problem: relocationProblem(image, table.length, size),
  };
}

function relocationBlock(
  image: Image,
  page: number,
  block: Uint8Array,
  allTypes: Map<number, number>,
  allSections: Map<string, number>,
): RelocationBlock {
  const types = new Map<number, number>();
  const sections = new Set<string>();
  let [first, last]: (number | null)[] = [null, null];
  const view = viewOf(block);
  for (let at = RELOCATION_BLOCK.size; at + 2 <= block.length; at += 2) {
    const entry = view.getUint16(at, true);
    const type = entry >>> 12;
    count(types, type);
    count(allTypes, type);
    if (type === REL_BASED_ABSOLUTE) continue;
    const target = page + (entry & 0xfff);
    const section = sectionAt(image, target)?.name ?? "no section";
    count(allSections, section);
    sections.add(section);
    first = Math.min(target, first ?? target);
    last = Math.max(target, last ?? target);
  }
  return {
    page,
    size: block.length,
    types: byTypeName(types),
    first: first ?? null,
    last: last ?? null,
    sections: [...sections],
  };
}

function count<Key>(counts: Map<Key, number>, key: Key): void {
  counts.set(key, (counts.get(key) ?? 0) + 1);
}

function byTypeName(types: ReadonlyMap<number, number>): Record<string, number> {
  const sorted = [...types].sort(([a], [b]) => a - b);
  return Object.fromEntries(sorted.map(([type, number]) => [RELOCATION_NAMES[type] ?? `type ${type}`, number]));
}

function references(image: Image, target: number): number[] {
  const code = byAddress(image.sections).filter((s) => hasFlags(s, CNT_CODE | MEM_EXECUTE));
  return code.flatMap((section) => [...leaReferences(section, target, target)].map(({ rva }) => rva));
}

/** What the transforms would say. Asked only where the table is there in full: a directory can claim 4 GiB. */
function relocationProblem(image: Image, present: number, size: number): string | null {
  if (present < size) return `of the table's ${hex(size)} bytes, ${hex(present)} are in a section's data`;
  return reasonOf("read the base relocation table", () => baseRelocations(image)) ?? null;
}

// ---- Multiboot headers

export interface MultibootPlace {
  fileOffset: number;
  /** null: in no section's data. */
  rva: number | null;
  section: string | null;
  /** Whether a loader finds it: it looks at so many bytes of the file only. */
  found: boolean;
}

export interface Multiboot1Facts extends MultibootPlace {
  fields: Record<string, number>;
  flagNames: string[];
  problem: string | null;
}

export interface TagFacts {
  /** From the header's begin. */
  offset: number;
  type: number;
  name: string;
  optional: boolean;
  flags: number;
  size: number;
  fields: Record<string, number>;
  /** INFORMATION_REQUEST: the types it asks for. */
  requests: string[];
  /** Bytes that no field describes, in hexadecimal. */
  rest: string;
}

export interface Multiboot2Facts extends MultibootPlace {
  fields: Record<string, number>;
  tags: TagFacts[];
  /** What follows the header: how many bytes of the same value, where emit-header could grow into. */
  behind: { byte: number; bytes: number } | null;
  problem: string | null;
}

/** Multiboot Specification, section 3.1.4, behind the address fields. */
const MB1_VIDEO_FIELDS = structure("Multiboot header, video fields", 16, [
  ["modeType", 4],
  ["width", 4],
  ["height", 4],
  ["depth", 4],
]);

type Find = (bytes: Uint8Array, limit: number) => number | undefined;

/**
 * The place of a header: the first in what loaders look at; else the first one in the lowest section, where Xen has it,
 * which is too far into the file.
 */
function place(image: Image, bytes: Uint8Array, find: Find, limit: number): MultibootPlace | undefined {
  const found = find(bytes, limit);
  if (found !== undefined) return { fileOffset: found, ...locate(image, found), found: true };
  const lowest = byAddress(image.sections).find((s) => s.data.length !== 0);
  const offset = lowest === undefined ? undefined : find(lowest.data, limit);
  if (lowest === undefined || offset === undefined) return undefined;
  const fileOffset = lowest.header.pointerToRawData + offset;
  return { fileOffset, ...locate(image, fileOffset), found: false };
}

function locate(image: Image, fileOffset: number): { rva: number | null; section: string | null } {
  const section = image.sections.find(
    ({ header, data }) => fileOffset >= header.pointerToRawData && fileOffset < header.pointerToRawData + data.length,
  );
  if (section === undefined) return { rva: null, section: null };
  return { rva: section.header.virtualAddress + fileOffset - section.header.pointerToRawData, section: section.name };
}

export function multiboot1Facts(image: Image, bytes: Uint8Array): Multiboot1Facts | null {
  const at = place(image, bytes, findMultiboot1, MB1_SEARCH);
  if (at === undefined) return null;
  const { flags } = readStructure(MB1_HEADER, bytes, at.fileOffset);
  const names = flagNames(flags, MB1_FLAGS);
  const addresses = (flags & MB1_AOUT_KLUDGE) !== 0;
  const video = (flags & MB1_VIDEO_MODE) !== 0;
  const end =
    at.fileOffset +
    (video ? MB1_ADDRESS_HEADER.size + MB1_VIDEO_FIELDS.size : addresses ? MB1_ADDRESS_HEADER.size : MB1_HEADER.size);
  if (end > bytes.length) {
    return {
      ...at,
      fields: readStructure(MB1_HEADER, bytes, at.fileOffset),
      flagNames: names,
      problem: `it ends at ${hex(end)}, the file at ${hex(bytes.length)}`,
    };
  }
  const fields = {
    ...(addresses
      ? readStructure(MB1_ADDRESS_HEADER, bytes, at.fileOffset)
      : readStructure(MB1_HEADER, bytes, at.fileOffset)),
    ...(video ? readStructure(MB1_VIDEO_FIELDS, bytes, at.fileOffset + MB1_ADDRESS_HEADER.size) : {}),
  };
  return { ...at, fields, flagNames: names, problem: null };
}

export function multiboot2Facts(image: Image, bytes: Uint8Array): Multiboot2Facts | null {
  const at = place(image, bytes, findMultiboot2, MB2_SEARCH);
  if (at === undefined) return null;
  const fields = readStructure(MB2_HEADER, bytes, at.fileOffset);
  let tags: TagFacts[] = [];
  const problem = reasonOf("read the Multiboot2 header", () => {
    tags = tagFacts(multiboot2Tags(bytes, at.fileOffset, (offset) => `file offset ${hex(offset)}`));
  });
  return { ...at, fields, tags, behind: runAt(bytes, at.fileOffset + fields.headerLength), problem: problem ?? null };
}

function runAt(bytes: Uint8Array, at: number): { byte: number; bytes: number } | null {
  const byte = bytes[at];
  if (byte === undefined) return null;
  let end = at;
  while (bytes[end] === byte) end++;
  return { byte, bytes: end - at };
}

/** Offsets follow from the sizes: multiboot2Tags has checked that tags follow each other, padded to 8. */
function tagFacts(tags: readonly Multiboot2Tag[]): TagFacts[] {
  const facts: TagFacts[] = [];
  let offset = MB2_HEADER.size;
  for (const { type, flags, bytes } of tags) {
    const words = Array.from({ length: Math.floor((bytes.length - MB2_TAG.size) / 4) }, (_, i) =>
      viewOf(bytes).getUint32(MB2_TAG.size + 4 * i, true),
    );
    const request = type === MB2_INFORMATION_REQUEST;
    const names = request ? [] : (MB2_TAG_FIELDS[type] ?? []).slice(0, words.length);
    const described = MB2_TAG.size + 4 * (request ? words.length : names.length);
    facts.push({
      offset,
      type,
      name: MB2_TAG_NAMES[type] ?? `type ${type}`,
      optional: (flags & MB2_TAG_OPTIONAL) !== 0,
      flags,
      size: bytes.length,
      fields: Object.fromEntries(names.map((name, i) => [name, words[i] ?? 0])),
      requests: request ? words.map((word) => MB2_INFORMATION_NAMES[word] ?? String(word)) : [],
      rest: Buffer.from(bytes.subarray(described)).toString("hex"),
    });
    offset += Math.ceil(bytes.length / 8) * 8;
  }
  const [name = ""] = MB2_TAG_NAMES;
  facts.push({
    offset,
    type: 0,
    name,
    optional: false,
    flags: 0,
    size: MB2_TAG.size,
    fields: {},
    requests: [],
    rest: "",
  });
  return facts;
}

// ---- symbols

export interface SymbolFacts {
  name: string;
  rva: number;
  section: string;
  external: boolean;
}

/** Those whose names say where Xen's parts are, in RVA order. */
export function symbolFacts(image: Image): SymbolFacts[] {
  const facts: SymbolFacts[] = [];
  for (const { name, rva, section, external } of definedSymbols(image)) {
    if (SYMBOLS_OF_INTEREST.has(name))
      facts.push({ name, rva, section: image.sections[section]?.name ?? "", external });
  }
  // Not localeCompare: the order must be the same everywhere.
  return facts.sort((a, b) => a.rva - b.rva || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
}

// ---- debug directory

export interface DebugFacts extends DebugDirectoryEntry {
  typeName: string;
  /** Where the data is by its RVA; what pointerToRawData should say. */
  fileOffset: number | null;
  codeView: { signature: string; guid: string; age: number; path: string } | null;
}

const CODEVIEW_RSDS = structure("CodeView PDB 7.0 record", 24, [
  ["signature", 4],
  ["guid0", 8],
  ["guid1", 8],
  ["age", 4],
]);
const RSDS = 0x53445352;

export function debugFacts(image: Image): DebugFacts[] {
  const { virtualAddress, size } = image.directories[DIRECTORY_DEBUG] ?? { virtualAddress: 0, size: 0 };
  const table = presentAt(image, virtualAddress, size);
  return Array.from({ length: Math.floor(table.length / DEBUG_DIRECTORY_ENTRY.size) }, (_, i) => {
    const entry = readStructure(DEBUG_DIRECTORY_ENTRY, table, i * DEBUG_DIRECTORY_ENTRY.size);
    const data = presentAt(image, entry.addressOfRawData, entry.sizeOfData);
    return {
      ...entry,
      typeName: DEBUG_TYPES[entry.type] ?? `type ${entry.type}`,
      fileOffset: fileOffsetOf(image, entry.addressOfRawData) ?? null,
      codeView: codeView(data),
    };
  });
}

/** GNU ld's --build-id for PE is the GUID: its bytes are what Xen reports as build-id (xen/common/version.c). */
function codeView(data: Uint8Array): DebugFacts["codeView"] {
  if (data.length < CODEVIEW_RSDS.size) return null;
  const { signature, age } = readStructure(CODEVIEW_RSDS, data, 0);
  if (signature !== RSDS) return null;
  const rest = data.subarray(CODEVIEW_RSDS.size);
  const end = rest.indexOf(0);
  const text = (from: number, to: number): string => Buffer.from(data.subarray(from, to)).toString("hex");
  return {
    signature: "RSDS",
    guid: text(4, 20),
    age,
    path: Buffer.from(rest.subarray(0, end < 0 ? rest.length : end)).toString("latin1"),
  };
}

/** Whether a section ends where firmware does not look: EDK2 refuses the whole image then. */
export function beyondImage(image: Image): string[] {
  const { sizeOfImage } = image.optional;
  return image.sections
    .filter((s) => sectionEnd(s) > sizeOfImage)
    .map((s) => `section ${s.name} ends at ${hex(sectionEnd(s))}, beyond SizeOfImage ${hex(sizeOfImage)}`);
}
