// SPDX-License-Identifier: GPL-2.0-only
// verify's view of memory: what the original's memory has to become, change by change, so that the result's can be held
// against it byte for byte. Every change is derived from the original and the rules of DESIGN.md; what the result has
// beyond them is a violation, wherever it is.

import { ImageError } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { strayPlaces } from "./file.ts";
import type { Comparison, Span } from "./file.ts";
import type { Findings } from "./findings.ts";
import {
  bytesIn,
  differences,
  findHeader,
  fixupWidth,
  lowerBound,
  memoryOf,
  multiboot2Tags,
  segmentAt,
  tagName,
} from "./loads.ts";
import type { Extent, Fixups, Memory, Multiboot2Load, Multiboot2Tag, Segment } from "./loads.ts";
import type { RelocatedSegment } from "./relocated-memory.ts";
import { byAddress, roundUp, sectionEnd } from "../pe/image.ts";
import type { Section } from "../pe/image.ts";
import { readStructure, viewOf, writeStructure } from "../tables/fields.ts";
import {
  MB1_ADDRESS_HEADER,
  MB1_ALIGN,
  MB1_AOUT_KLUDGE,
  MB1_HEADER,
  MB1_MAGIC,
  MB1_SEARCH,
  MB1_VIDEO_MODE,
  MB2_ADDRESS,
  MB2_ADDRESS_TAG,
  MB2_ALIGN,
  MB2_ARCHITECTURE_I386,
  MB2_CONSOLE_FLAGS,
  MB2_END,
  MB2_ENTRY_ADDRESS,
  MB2_ENTRY_ADDRESS_TAG,
  MB2_FRAMEBUFFER,
  MB2_HEADER,
  MB2_MAGIC,
  MB2_SEARCH,
  MB2_TAG,
  MB2_TAG_OPTIONAL,
} from "../tables/multiboot.ts";
import { DEBUG_DIRECTORY_ENTRY, DIRECTORY_DEBUG } from "../tables/pe.ts";

export type Cause =
  | "the Multiboot2 header"
  | "a reference to the base relocation table"
  | "a void base relocation"
  | "the debug directory";

/** Bytes that the result must have instead of the original's, at an RVA of the original. */
export interface Patch {
  readonly cause: Cause;
  readonly start: number;
  readonly bytes: Uint8Array;
}

/** A section that is elsewhere, or larger, in the result's memory. */
export interface Reshaped {
  readonly name: string;
  readonly start: number;
  readonly end: number;
}

// ---- the Multiboot2 header

/** What has to be at the place of the old headers. */
export interface HeaderChange {
  readonly patch: Patch;
  /** RVA of the new header. */
  readonly rva: number;
  readonly dropped: readonly string[];
  /** The tags behind ADDRESS and ENTRY_ADDRESS. */
  readonly tags: readonly Multiboot2Tag[];
}

/**
 * The new Multiboot2 header, made from the old one.
 * @param section the original's first section
 * @param entry RVA of the 32-bit entry point
 * @throws ImageError when the original has nothing to make it from, or no room
 */
export function headerChange({ data, header, name }: Section, span: Span, entry: number): HeaderChange {
  const base = header.virtualAddress;
  const at = findHeader(data, MB2_SEARCH, MB2_ALIGN, MB2_MAGIC, [4, 8, 12]);
  if (at < 0)
    throw new ImageError(`there is no Multiboot2 header in the first ${hex(MB2_SEARCH)} bytes of section ${name}`);
  const old = multiboot2Tags(data, at);
  const present = old.find((t) => t.type === MB2_ADDRESS || t.type === MB2_ENTRY_ADDRESS);
  if (present !== undefined)
    throw new ImageError(
      `its Multiboot2 header at RVA ${hex(base + at)} has a tag ${tagName(present.type)}: it is a result itself`,
    );
  const oldEnd = at + readStructure(MB2_HEADER, data, at).headerLength;
  const from = oldMultiboot1(data, at, base) ?? at;
  const start = roundUp(from, MB2_ALIGN);
  const { fill, roomEnd } = padding(data, oldEnd);
  const tags = choices(old).find((choice) => headerSize(choice) <= roomEnd - start);
  if (tags === undefined)
    throw new ImageError(`there is no room for the Multiboot2 header in ${range(base + start, base + roomEnd)}`);
  const newHeader = headerBytes(tags, base + start, span, entry);
  const bytes = new Uint8Array(Math.max(oldEnd, start + newHeader.length) - from).fill(fill);
  bytes.set(newHeader, start - from);
  const dropped = old.filter((tag) => !tags.includes(tag)).map((tag) => tagName(tag.type));
  return { patch: { cause: "the Multiboot2 header", start: base + from, bytes }, rva: base + start, dropped, tags };
}

/** Offset of the old Multiboot1 header; the new Multiboot2 header takes its place, so that no loader finds it. */
function oldMultiboot1(data: Uint8Array, multiboot2: number, base: number): number | undefined {
  const at = findHeader(data, MB1_SEARCH, MB1_ALIGN, MB1_MAGIC, [4, 8]);
  if (at < 0) return undefined;
  const { flags } = readStructure(MB1_HEADER, data, at);
  if ((flags & (MB1_AOUT_KLUDGE | MB1_VIDEO_MODE)) !== 0 || roundUp(at + MB1_HEADER.size, MB2_ALIGN) !== multiboot2) {
    throw new ImageError(
      `its Multiboot1 header at RVA ${hex(base + at)} with flags ${hex(flags)} is not 12 bytes directly in front of its Multiboot2 header at ${hex(base + multiboot2)}`,
    );
  }
  return at;
}

/** NOP or INT3 behind the old header is room, anything else is code. */
function padding(data: Uint8Array, oldEnd: number): { fill: number; roomEnd: number } {
  const byte = data[oldEnd];
  if (byte !== 0x90 && byte !== 0xcc) return { fill: 0x90, roomEnd: oldEnd };
  let roomEnd = oldEnd;
  while (data[roomEnd] === byte) roomEnd++;
  return { fill: byte, roomEnd };
}

/** All tags; without room for them, without those that the header itself calls optional: FRAMEBUFFER first. */
function choices(tags: readonly Multiboot2Tag[]): (readonly Multiboot2Tag[])[] {
  const without = (...types: number[]): Multiboot2Tag[] =>
    tags.filter((t) => (t.flags & MB2_TAG_OPTIONAL) === 0 || !types.includes(t.type));
  return [tags, without(MB2_FRAMEBUFFER), without(MB2_FRAMEBUFFER, MB2_CONSOLE_FLAGS)];
}

function headerSize(tags: readonly Multiboot2Tag[]): number {
  const fixed = MB2_HEADER.size + MB2_ADDRESS_TAG.size + roundUp(MB2_ENTRY_ADDRESS_TAG.size, MB2_ALIGN) + MB2_TAG.size;
  return tags.reduce((size, tag) => size + roundUp(tag.bytes.length, MB2_ALIGN), fixed);
}

function headerBytes(tags: readonly Multiboot2Tag[], headerAddr: number, span: Span, entryAddr: number): Uint8Array {
  const bytes = new Uint8Array(headerSize(tags));
  const header = { magic: MB2_MAGIC, architecture: MB2_ARCHITECTURE_I386, headerLength: bytes.length };
  const sum = header.magic + header.architecture + header.headerLength;
  writeStructure(MB2_HEADER, { ...header, checksum: -sum >>> 0 }, bytes, 0);
  const address = {
    type: MB2_ADDRESS,
    flags: 0,
    size: MB2_ADDRESS_TAG.size,
    headerAddr,
    loadAddr: span.first,
    loadEndAddr: span.dataEnd,
    bssEndAddr: span.mappedEnd,
  };
  let at = MB2_HEADER.size;
  writeStructure(MB2_ADDRESS_TAG, address, bytes, at);
  at += MB2_ADDRESS_TAG.size;
  writeStructure(
    MB2_ENTRY_ADDRESS_TAG,
    { type: MB2_ENTRY_ADDRESS, flags: 0, size: MB2_ENTRY_ADDRESS_TAG.size, entryAddr },
    bytes,
    at,
  );
  at += roundUp(MB2_ENTRY_ADDRESS_TAG.size, MB2_ALIGN);
  for (const tag of tags) {
    bytes.set(tag.bytes, at);
    at += roundUp(tag.bytes.length, MB2_ALIGN);
  }
  writeStructure(MB2_TAG, { type: MB2_END, flags: 0, size: MB2_TAG.size }, bytes, at);
  return bytes;
}

/** The Multiboot1 header ends 64 bytes below the end of the header area, or of the first 8064 bytes (QEMU's limit). */
export function multiboot1Place(sizeOfHeaders: number): number {
  return Math.min(sizeOfHeaders, 8064) - 64;
}

/** The new Multiboot1 header, which loads the header area along, below the span. */
export function multiboot1Header(span: Span, sizeOfHeaders: number, entryAddr: number): Uint8Array {
  const [magic, flags, loadAddr] = [MB1_MAGIC, MB1_AOUT_KLUDGE | 3, span.first - sizeOfHeaders];
  const addresses = {
    headerAddr: loadAddr + multiboot1Place(sizeOfHeaders),
    loadAddr,
    loadEndAddr: span.dataEnd,
    bssEndAddr: span.mappedEnd,
    entryAddr,
  };
  const bytes = new Uint8Array(MB1_ADDRESS_HEADER.size);
  writeStructure(MB1_ADDRESS_HEADER, { magic, flags, checksum: -(magic + flags) >>> 0, ...addresses }, bytes, 0);
  return bytes;
}

/** The tags that a loader finds, by name; the bytes are compared with all other memory. */
export function checkTags(found: Multiboot2Load, needed: HeaderChange, findings: Findings): void {
  const names = [MB2_ADDRESS, MB2_ENTRY_ADDRESS, ...needed.tags.map((t) => t.type)].map(tagName).join(", ");
  findings.same(
    `the order of tags in the Multiboot2 header at offset ${hex(found.headerAt)}`,
    found.tags.map((t) => tagName(t.type)).join(", "),
    names,
  );
}

// ---- references to the table

/** A `lea` of an RVA relative to the next instruction: 48 or 4C, 8D, ModRM with mod 00 and rm 101, displacement. */
interface Reference {
  readonly section: Section;
  /** RVA of the instruction, whose displacement is its last four of seven bytes. */
  readonly rva: number;
  readonly target: number;
}

function references({ sections }: Span, from: number, to: number): Reference[] {
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
 * beside it. Its start is `_end` too, to which all other references stay as they are.
 * @param before the original's load span
 * @param distance how far the table moves
 * @throws ImageError when the original does not tell which references are about the table
 */
export function referencePatches(before: Span, start: number, size: number, distance: number): Patch[] {
  const all = references(before, start, start + size);
  const inside = all.find((r) => r.target !== start && r.target !== start + size);
  if (inside !== undefined)
    throw new ImageError(
      `its code at RVA ${hex(inside.rva)} refers to ${hex(inside.target)}, inside the moved base relocation table`,
    );
  const ends = all.filter((r) => r.target === start + size);
  if (ends.length === 0)
    throw new ImageError(`none of its code refers to the moved base relocation table's end ${hex(start + size)}`);
  const starts = new Map(all.filter((r) => r.target === start).map((r) => [r.rva, r]));
  const patched = new Map<number, Reference>();
  for (const end of ends) {
    const partners: Reference[] = [];
    for (let rva = end.rva - PAIR_DISTANCE; rva <= end.rva + PAIR_DISTANCE; rva++) {
      const partner = starts.get(rva);
      if (partner?.section === end.section) partners.push(partner);
    }
    const [partner, second] = partners;
    if (!end.section.name.startsWith(".init") || partner === undefined || second !== undefined) {
      throw new ImageError(
        `its code at RVA ${hex(end.rva)} in section ${end.section.name} refers to the moved base relocation table's end, with ${partners.length} references to its start close by, needed it in .init with one`,
      );
    }
    for (const reference of [partner, end]) patched.set(reference.rva, reference);
  }
  return [...patched.values()].map(({ section, rva }) => {
    const bytes = new Uint8Array(4);
    const at = rva + 3 - section.header.virtualAddress;
    viewOf(bytes).setInt32(0, viewOf(section.data).getInt32(at, true) + distance, true);
    return { cause: "a reference to the base relocation table", start: rva + 3, bytes };
  });
}

/** Pointers into the table would go on pointing to where it was. */
export function checkPointers(
  memory: Memory,
  fixups: Fixups,
  imageBase: bigint,
  start: number,
  end: number,
  findings: Findings,
): void {
  const low = Number(imageBase & 0xffffffffn);
  const high = Number(BigInt.asIntN(32, imageBase >> 32n));
  let segment: Segment | undefined;
  let view = viewOf(new Uint8Array(0));
  for (let i = 0; i < fixups.count; i++) {
    const target = fixups.targets[i] ?? 0;
    if (fixupWidth(fixups.types[i]) !== 8) continue;
    if (segment === undefined || target < segment.start || target >= segment.end) {
      segment = segmentAt(memory, target);
      if (segment !== undefined) view = viewOf(segment.bytes);
    }
    const at = target - (segment?.start ?? 0);
    if (segment === undefined || at + 8 > view.byteLength) continue;
    // Exact for RVAs; only what is far from any may be rounded. Modulo 2^64, as addresses are.
    const above = (view.getInt32(at + 4, true) - high) | 0;
    const value = view.getUint32(at, true) - low + (above === 0 ? 0 : above * 2 ** 32);
    if (value > start && value <= end)
      findings.add(
        `the pointer at RVA ${hex(target)}`,
        hex(value),
        `outside ${range(start, end)}, from where the base relocation table was moved`,
      );
  }
}

// ---- base relocations and the debug directory

/** Entries with a target in the rewritten header: firmware must not relocate what is there now. */
export function voidPatches({ count, at, types, targets }: Fixups, header: Patch, table: number): Patch[] {
  const patches: Patch[] = [];
  const end = header.start + header.bytes.length;
  for (let i = 0; i < count; i++) {
    const target = targets[i] ?? 0;
    const width = fixupWidth(types[i]);
    if (width === 0 || target + width <= header.start || target >= end) continue;
    patches.push({ cause: "a void base relocation", start: table + (at[i] ?? 0), bytes: new Uint8Array(2) });
  }
  return patches;
}

/** File offsets in debug directory entries follow the data, which each entry's AddressOfRawData tells. */
export function debugPatches({ original, pairs }: Comparison, memory: Memory): Patch[] {
  const { virtualAddress, size } = original.directories[DIRECTORY_DEBUG] ?? { virtualAddress: 0, size: 0 };
  if (size === 0) return [];
  const directory = bytesIn(memory, virtualAddress, virtualAddress + size, "its debug directory");
  const patches: Patch[] = [];
  const sections = byAddress(original.sections.filter((s) => s.header.virtualSize !== 0));
  for (let at = 0; at + DEBUG_DIRECTORY_ENTRY.size <= size; at += DEBUG_DIRECTORY_ENTRY.size) {
    const entry = readStructure(DEBUG_DIRECTORY_ENTRY, directory, at);
    if (entry.pointerToRawData === 0) continue;
    const rva = entry.addressOfRawData;
    const holder = sections[lowerBound(sections.length, (i) => (sections[i]?.header.virtualAddress ?? 0) <= rva) - 1];
    const target = holder === undefined || rva >= sectionEnd(holder) ? undefined : pairs.get(holder);
    if (holder === undefined || target === undefined)
      throw new ImageError(
        `its debug directory entry at RVA ${hex(virtualAddress + at)} is for data at RVA ${hex(rva)}, which is in no section`,
      );
    const bytes = new Uint8Array(DEBUG_DIRECTORY_ENTRY.size);
    writeStructure(
      DEBUG_DIRECTORY_ENTRY,
      { ...entry, pointerToRawData: target.header.pointerToRawData + rva - holder.header.virtualAddress },
      bytes,
      0,
    );
    patches.push({ cause: "the debug directory", start: virtualAddress + at, bytes });
  }
  return patches;
}

// ---- the memory that is needed

/** Bytes that are relocated, patched and compared at once: few enough to stay in the processor's cache. */
const WINDOW = 1 << 16;

/** What may be different in memory, and must be. */
export interface Changes {
  readonly patches: readonly Patch[];
  /** By the section's RVA in the original. */
  readonly reshaped: ReadonlyMap<number, Reshaped>;
}

/** Sections that moved or grew, but for stray ones, which are in place from the start. Growth is zeros. */
export function reshapedSections({ original, pairs }: Comparison): Map<number, Reshaped> {
  const strays = strayPlaces(original);
  const reshaped = new Map<number, Reshaped>();
  for (const [from, { header }] of pairs) {
    const { virtualAddress: start, virtualSize } = header;
    if (strays.has(from) || (start === from.header.virtualAddress && virtualSize === from.header.virtualSize)) continue;
    reshaped.set(from.header.virtualAddress, { name: `section ${from.name}`, start, end: start + virtualSize });
  }
  return reshaped;
}

/**
 * The original's memory, relocated or not, with the changes made; without the header area, which is compared by fields.
 * @throws ImageError when changes contradict each other
 */
export function changedMemory(memory: readonly RelocatedSegment[], { patches, reshaped }: Changes): RelocatedSegment[] {
  const bySegment = patchesBySegment(memory, patches);
  const grown = new Map(reshaped);
  const buffer = new Uint8Array(WINDOW);
  const changed = memory.slice(1).map((segment): RelocatedSegment => {
    const { start, end } = grown.get(segment.start) ?? segment;
    grown.delete(segment.start);
    const list = bySegment.get(segment);
    const patched = list === undefined ? segment : withPatches(segment, list, buffer);
    return { ...patched, start, end, size: Math.min(segment.size, end - start) };
  });
  // What is left was empty, and is not any more.
  const empty = { size: 0, isChanged: () => false, read: () => buffer.subarray(0, 0) };
  return memoryOf([...changed, ...[...grown.values()].map((shape) => ({ ...shape, ...empty }))]);
}

/** @throws ImageError when one is in no segment */
function patchesBySegment(
  memory: readonly RelocatedSegment[],
  patches: readonly Patch[],
): Map<RelocatedSegment, Patch[]> {
  const bySegment = new Map<RelocatedSegment, Patch[]>();
  for (const patch of patches) {
    const segment = segmentAt(memory, patch.start);
    if (segment === undefined) throw new ImageError(`${patch.cause} at RVA ${hex(patch.start)} is in no section`);
    const list = bySegment.get(segment);
    if (list === undefined) bySegment.set(segment, [patch]);
    else list.push(patch);
  }
  for (const list of bySegment.values()) list.sort((a, b) => a.start - b.start);
  return bySegment;
}

/**
 * @param patches in the order of their places
 * @param buffer takes the windows that a patch changes
 * @throws ImageError when a patch overlaps another one or the end of the bytes
 */
function withPatches(segment: RelocatedSegment, patches: readonly Patch[], buffer: Uint8Array): RelocatedSegment {
  const places = patches.map(({ start, bytes }) => ({
    start: start - segment.start,
    end: start - segment.start + bytes.length,
  }));
  places.forEach(({ start, end }, i) => {
    if (start >= (places[i - 1]?.end ?? 0) && end <= segment.size) return;
    const { cause, start: rva } = patches[i] ?? { cause: "a change", start };
    throw new ImageError(`${cause} at RVA ${hex(rva)} overlaps another change, or the end of its section`);
  });
  const inside = (from: number, to: number): readonly Patch[] => {
    const first = lowerBound(places.length, (i) => (places[i]?.end ?? 0) <= from);
    return patches.slice(
      first,
      lowerBound(places.length, (i) => (places[i]?.start ?? 0) < to),
    );
  };
  const read = (from: number, to: number): Uint8Array => {
    const bytes = segment.read(from, to);
    const here = inside(from, to);
    if (here.length === 0) return bytes;
    const copy = buffer.subarray(0, to - from);
    copy.set(bytes);
    copy.fill(0, bytes.length);
    here.forEach((patch) => {
      const at = patch.start - segment.start - from;
      const skip = Math.max(0, -at);
      copy.set(patch.bytes.subarray(skip, to - from - at), at + skip);
    });
    return copy;
  };
  const isChanged = (from: number, to: number): boolean => segment.isChanged(from, to) || inside(from, to).length !== 0;
  return { ...segment, read, isChanged };
}

/** Differences of one section that are named; a section that is wrong altogether needs no more. */
const MOST_PER_SECTION = 8;

/** A base, and how it is called: " at base 0x200000", say. */
export interface Base {
  readonly where: string;
  /** Whether all memory is known to be right at another base: then what is the files' own bytes is right at this one. */
  readonly further: boolean;
}

/**
 * Holds the result's memory against what it must be.
 * @returns bytes compared
 */
export function compareMemory(
  needed: readonly RelocatedSegment[],
  found: readonly RelocatedSegment[],
  patches: readonly Patch[],
  base: Base,
  findings: Findings,
): number {
  let compared = 0;
  const causes = patches
    .map(({ cause, start, bytes }) => ({ name: cause, start, end: start + bytes.length }))
    .sort((a, b) => a.start - b.start);
  const there = new Map(found.map((segment) => [segment.start, segment]));
  for (const segment of needed) {
    const other = there.get(segment.start);
    if (other === undefined || other.end !== segment.end) {
      findings.add(
        `${memoryName(segment)}${base.where}`,
        other === undefined ? "missing" : `at ${range(other.start, other.end)}`,
        "as in the original",
      );
      continue;
    }
    there.delete(segment.start);
    compared += segment.end - segment.start;
    compareSegment(segment, other, causes, base, findings);
  }
  for (const segment of there.values())
    findings.add(`${memoryName(segment)}${base.where}`, "new", "nothing the original has not");
  return compared;
}

function memoryName({ name, start, end }: Extent): string {
  return `memory of ${name} at ${range(start, end)}`;
}

function compareSegment(
  needed: RelocatedSegment,
  found: RelocatedSegment,
  causes: readonly Extent[],
  { where, further }: Base,
  findings: Findings,
): void {
  const size = Math.min(Math.max(needed.size, found.size), needed.end - needed.start);
  let runs = 0;
  let bytes = 0;
  const isChanged = (from: number, to: number): boolean => needed.isChanged(from, to) || found.isChanged(from, to);
  const window = isChanged(0, size) ? WINDOW : size;
  for (let from = 0; from < size; from += window) {
    const to = Math.min(from + window, size);
    if (further && !isChanged(from, to)) continue;
    const [wanted, actual] = [needed.read(from, to), found.read(from, to)];
    for (const [start, end] of differences(wanted, actual, to - from)) {
      if (++runs > MOST_PER_SECTION || findings.full) {
        bytes += end - start;
        continue;
      }
      const rva = needed.start + from + start;
      const cause = segmentAt(causes, rva)?.name;
      findings.add(
        `memory at RVA ${hex(rva)} (${needed.name} + ${hex(from + start)}${cause === undefined ? "" : `, in ${cause}`})${where}`,
        dump(actual, start, end),
        dump(wanted, start, end),
      );
    }
  }
  if (bytes !== 0)
    findings.add(
      `${memoryName(needed)}${where}`,
      `different in more places, in all ${runs} (${bytes} bytes or more)`,
      "no difference",
    );
}

function dump(bytes: Uint8Array, start: number, end: number): string {
  const shown = Array.from({ length: Math.min(end - start, 8) }, (_, i) =>
    (bytes[start + i] ?? 0).toString(16).padStart(2, "0"),
  );
  return `${shown.join(" ")}${end - start > 8 ? " …" : ""}`;
}

/** Bytes that the patches change, and how many patches change any, by cause. */
export function countChanges(memory: Memory, patches: readonly Patch[]): Map<Cause, { places: number; bytes: number }> {
  const counts = new Map<Cause, { places: number; bytes: number }>();
  for (const { cause, start, bytes } of patches) {
    const old = bytesIn(memory, start, start + bytes.length, cause);
    const changed = bytes.filter((byte, i) => byte !== old[i]).length;
    const count = counts.get(cause) ?? { places: 0, bytes: 0 };
    counts.set(cause, { places: count.places + (changed === 0 ? 0 : 1), bytes: count.bytes + changed });
  }
  return counts;
}
