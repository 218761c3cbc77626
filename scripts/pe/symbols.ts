// SPDX-License-Identifier: GPL-2.0-only
// The COFF symbol table and the string table behind it.

import { Buffer } from "node:buffer";
import type { Image } from "./image.ts";
import { offsetOf, viewOf } from "../tables/fields.ts";
import { SYMBOL } from "../tables/pe.ts";

export interface Symbol {
  readonly name: string;
  /** RVA, for a symbol that is defined in a section. */
  readonly rva: number;
  /** Table index of the section, from 0. */
  readonly section: number;
  readonly external: boolean;
}

/** Where fields are in a record. A name of more than eight characters is four zero bytes and an offset into the string table. */
const NAME_OFFSET_AT = 4;
const VALUE_AT = offsetOf(SYMBOL, "value");
const SECTION_NUMBER_AT = offsetOf(SYMBOL, "sectionNumber");
const STORAGE_CLASS_AT = offsetOf(SYMBOL, "storageClass");
const AUX_AT = offsetOf(SYMBOL, "numberOfAuxSymbols");
const STORAGE_CLASS_EXTERNAL = 2;
/** Longer names than any compiler makes are not names: a corrupt table must not be searched to its end for each of them. */
const MAX_NAME = 4096;

/** The COFF symbols that are defined in a section: undefined, absolute and debugging symbols are left out. */
export function* definedSymbols({ symbols, strings, sections }: Image): Generator<Symbol> {
  const view = viewOf(symbols);
  for (const at of recordOffsets(symbols)) {
    const section = view.getUint16(at + SECTION_NUMBER_AT, true) - 1;
    const holder = sections[section];
    if (holder === undefined) continue;
    const offset = nameOffset(view, at);
    const name = offset === undefined ? upToNul(latin1(symbols.subarray(at, at + 8))) : stringAt(strings, offset);
    const rva = holder.header.virtualAddress + view.getUint32(at + VALUE_AT, true);
    const external = symbols[at + STORAGE_CLASS_AT] === STORAGE_CLASS_EXTERNAL;
    yield { name: name ?? "", rva, section, external };
  }
}

/** The different RVAs of external symbols named start: Xen's 32-bit entry point. */
export function startSymbols(image: Image): number[] {
  const found = new Set<number>();
  for (const { name, rva, external } of definedSymbols(image)) if (external && name === "start") found.add(rva);
  return [...found];
}

/** The first name that leads behind the string table, as an offset into it: so a file shows that it was cut off there. */
export function nameBehind(symbols: Uint8Array, stringsSize: number): number | undefined {
  const view = viewOf(symbols);
  for (const at of recordOffsets(symbols)) {
    const offset = nameOffset(view, at) ?? 0;
    if (offset !== 0 && offset >= stringsSize) return offset;
  }
  return undefined;
}

/**
 * The symbol table for sections in another order: symbols name their section by its place in the table.
 * @param numbers the new number of each section, from 1, in the old order
 */
export function renumbered(symbols: Uint8Array, numbers: readonly number[]): Uint8Array {
  const copy = symbols.slice();
  const view = viewOf(copy);
  for (const at of recordOffsets(copy)) {
    const number = numbers[view.getUint16(at + SECTION_NUMBER_AT, true) - 1];
    if (number !== undefined) view.setUint16(at + SECTION_NUMBER_AT, number, true);
  }
  return copy;
}

/**
 * The symbol table with more added to the values of one section's symbols, if they are above a limit.
 * @param section the section's number, from 1
 */
export function movedSymbols(symbols: Uint8Array, section: number, above: number, distance: number): Uint8Array {
  const moved = symbols.slice();
  const view = viewOf(moved);
  for (const at of recordOffsets(moved)) {
    const value = view.getUint32(at + VALUE_AT, true);
    if (view.getUint16(at + SECTION_NUMBER_AT, true) !== section || value <= above) continue;
    view.setUint32(at + VALUE_AT, value + distance, true);
  }
  return moved;
}

/** A string of the COFF string table; undefined when the offset is not inside it or nothing ends the string. */
export function stringAt(strings: Uint8Array, offset: number): string | undefined {
  if (offset < 4 || offset >= strings.length) return undefined;
  const text = strings.subarray(offset, offset + MAX_NAME);
  const end = text.indexOf(0);
  return end < 0 ? undefined : latin1(text.subarray(0, end));
}

export function upToNul(text: string): string {
  const end = text.indexOf("\0");
  return end < 0 ? text : text.slice(0, end);
}

/** The byte offsets of the symbol records; auxiliary records belong to the one before them. */
function* recordOffsets(symbols: Uint8Array): Generator<number> {
  for (let at = 0; at < symbols.length; at += SYMBOL.size * (1 + (symbols[at + AUX_AT] ?? 0))) yield at;
}

function nameOffset(view: DataView, at: number): number | undefined {
  return view.getUint32(at, true) === 0 ? view.getUint32(at + NAME_OFFSET_AT, true) : undefined;
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
}
