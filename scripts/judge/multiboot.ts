// SPDX-License-Identifier: GPL-2.0-only
// The two Multiboot headers that a result must have, made from the original by the rules of DESIGN.md.

import { ImageError } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { readStructure, writeStructure, type Fields, type Row, type Structure } from "../tables/fields.ts";
import * as mb from "../tables/multiboot.ts";
import { MULTIBOOT1, MULTIBOOT2, findHeader, tagsOfHeader, tagName, type HeaderTag } from "./loads.ts";
import type { Patch } from "./memory.ts";
import { roundUp, type Section } from "./read.ts";

/** What Multiboot loads of a result, as RVAs: everything below .bss, and .bss. */
export interface Span {
  readonly first: number;
  readonly dataEnd: number;
  readonly bssEnd: number;
  /** The end of .bss rounded up to 2 MiB, so far Xen maps it. */
  readonly mappedEnd: number;
}

/** What has to be at the place of the old headers. */
export interface HeaderChange {
  readonly patch: Patch;
  /** RVA of the new header. */
  readonly rva: number;
  /** Names of tags that there is no room for. */
  readonly dropped: readonly string[];
  /** The tags behind ADDRESS and ENTRY_ADDRESS. */
  readonly tags: readonly HeaderTag[];
}

/**
 * The new Multiboot2 header, made from the old one.
 * @param section the original's first section
 * @param entry RVA of the 32-bit entry point
 * @throws ImageError when the original has nothing to make it from, or no room
 */
export function headerChange({ data, header, name }: Section, span: Span, entry: number): HeaderChange {
  const base = header.virtualAddress;
  const at = findHeader(data, MULTIBOOT2);
  if (at < 0)
    throw new ImageError(`there is no Multiboot2 header in the first ${hex(mb.MB2_SEARCH)} bytes of section ${name}`);
  const old = tagsOfHeader(data, at);
  const present = old.find((t) => t.type === mb.MB2_ADDRESS || t.type === mb.MB2_ENTRY_ADDRESS);
  if (present !== undefined)
    throw new ImageError(
      `its Multiboot2 header at RVA ${hex(base + at)} has a tag ${tagName(present.type)}: it is a result itself`,
    );
  const oldEnd = at + readStructure(mb.MB2_HEADER, data, at).headerLength;
  const from = oldMultiboot1(data, at, base) ?? at;
  const start = roundUp(from, mb.MB2_ALIGN);
  const { fill, roomEnd } = padding(data, oldEnd);
  const tags = choices(old).find((choice) => headerBytes(choice, base + start, span, entry).length <= roomEnd - start);
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
  const at = findHeader(data, MULTIBOOT1);
  if (at < 0) return undefined;
  const { flags } = readStructure(mb.MB1_HEADER, data, at);
  const isShort = (flags & (mb.MB1_AOUT_KLUDGE | mb.MB1_VIDEO_MODE)) === 0;
  if (!isShort || roundUp(at + mb.MB1_HEADER.size, mb.MB2_ALIGN) !== multiboot2)
    throw new ImageError(
      `its Multiboot1 header at RVA ${hex(base + at)} with flags ${hex(flags)} is not 12 bytes directly in front of its Multiboot2 header at ${hex(base + multiboot2)}`,
    );
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
function choices(tags: readonly HeaderTag[]): (readonly HeaderTag[])[] {
  const without = (...types: number[]): HeaderTag[] =>
    tags.filter((t) => (t.flags & mb.MB2_TAG_OPTIONAL) === 0 || !types.includes(t.type));
  return [tags, without(mb.MB2_FRAMEBUFFER), without(mb.MB2_FRAMEBUFFER, mb.MB2_CONSOLE_FLAGS)];
}

function headerBytes(tags: readonly HeaderTag[], headerAddr: number, span: Span, entryAddr: number): Uint8Array {
  const { first: loadAddr, dataEnd: loadEndAddr, mappedEnd: bssEndAddr } = span;
  const tag = (type: number, { size }: Structure<readonly Row[]>): Fields<typeof mb.MB2_TAG.rows> => ({
    type,
    flags: 0,
    size,
  });
  const addresses = { ...tag(mb.MB2_ADDRESS, mb.MB2_ADDRESS_TAG), headerAddr, loadAddr, loadEndAddr, bssEndAddr };
  const parts = [
    bytesOf(mb.MB2_ADDRESS_TAG, addresses),
    bytesOf(mb.MB2_ENTRY_ADDRESS_TAG, { ...tag(mb.MB2_ENTRY_ADDRESS, mb.MB2_ENTRY_ADDRESS_TAG), entryAddr }),
    ...tags.map((old) => old.bytes),
    bytesOf(mb.MB2_TAG, tag(mb.MB2_END, mb.MB2_TAG)),
  ];
  const headerLength = parts.reduce((sum, part) => sum + roundUp(part.length, mb.MB2_ALIGN), mb.MB2_HEADER.size);
  const [magic, architecture] = [mb.MB2_MAGIC, mb.MB2_ARCHITECTURE_I386];
  const checksum = -(magic + architecture + headerLength) >>> 0;
  const bytes = new Uint8Array(headerLength);
  bytes.set(bytesOf(mb.MB2_HEADER, { magic, architecture, headerLength, checksum }));
  let at = mb.MB2_HEADER.size;
  for (const part of parts) {
    bytes.set(part, at);
    at += roundUp(part.length, mb.MB2_ALIGN);
  }
  return bytes;
}

/** A structure by itself. */
function bytesOf<Rows extends readonly Row[]>(form: Structure<Rows>, values: Fields<Rows>): Uint8Array {
  const bytes = new Uint8Array(form.size);
  writeStructure(form, values, bytes, 0);
  return bytes;
}

/** Bytes that the Multiboot1 header has to itself. */
export const MULTIBOOT1_ROOM = 64;

/** File offset of the Multiboot1 header: at the end of the header area, or of the first 8064 bytes (QEMU's limit). */
export function multiboot1Place(sizeOfHeaders: number): number {
  return Math.min(sizeOfHeaders, 8064) - MULTIBOOT1_ROOM;
}

/** The new Multiboot1 header, which loads the header area along, below the span. */
export function multiboot1Header(span: Span, sizeOfHeaders: number, entryAddr: number): Uint8Array {
  const [magic, flags, loadAddr] = [mb.MB1_MAGIC, mb.MB1_AOUT_KLUDGE | 3, span.first - sizeOfHeaders];
  return bytesOf(mb.MB1_ADDRESS_HEADER, {
    magic,
    flags,
    checksum: -(magic + flags) >>> 0,
    headerAddr: loadAddr + multiboot1Place(sizeOfHeaders),
    loadAddr,
    loadEndAddr: span.dataEnd,
    bssEndAddr: span.mappedEnd,
    entryAddr,
  });
}
