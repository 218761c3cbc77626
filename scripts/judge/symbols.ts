// SPDX-License-Identifier: GPL-2.0-only
// The judges' view of the COFF symbol table.

import { Buffer } from "node:buffer";
import { ImageError } from "../cli/errors.ts";
import { hex } from "../cli/numbers.ts";
import { offsetOf, viewOf } from "../tables/fields.ts";
import { SYMBOL } from "../tables/pe.ts";
import type { Pe, Section } from "./read.ts";

/** Offset of the value in a symbol's record. */
export const VALUE_AT = offsetOf(SYMBOL, "value");
const CLASS_AT = offsetOf(SYMBOL, "storageClass");
const AUX_AT = offsetOf(SYMBOL, "numberOfAuxSymbols");
const NUMBER_AT = offsetOf(SYMBOL, "sectionNumber");
const CLASS_EXTERNAL = 2;

/** Offsets of the symbols' records; auxiliary records, which have the same size, are passed over. */
export function* recordsOf(symbols: Uint8Array): Generator<number> {
  for (let at = 0; at + SYMBOL.size <= symbols.length; at += SYMBOL.size * (1 + (symbols[at + AUX_AT] ?? 0))) yield at;
}

export interface DefinedSymbol {
  readonly name: string;
  readonly rva: number;
  readonly section: Section;
  readonly isExternal: boolean;
}

/** The symbols that are defined in a section. */
export function* definedSymbols({ symbols, strings, sections }: Pe): Generator<DefinedSymbol> {
  const view = viewOf(symbols);
  const [records, names] = [symbols, strings].map((bytes) => Buffer.from(bytes).toString("latin1")) as [string, string];
  for (const at of recordsOf(symbols)) {
    const section = sections[view.getUint16(at + NUMBER_AT, true) - 1];
    if (section === undefined) continue;
    // Four zero bytes and a string table offset stand for a name of more than eight characters.
    const isLong = view.getUint32(at, true) === 0;
    yield {
      name: isLong ? upToZero(names, view.getUint32(at + 4, true)) : upToZero(records.slice(at, at + 8), 0),
      rva: section.header.virtualAddress + view.getUint32(at + VALUE_AT, true),
      section,
      isExternal: symbols[at + CLASS_AT] === CLASS_EXTERNAL,
    };
  }
}

function upToZero(text: string, start: number): string {
  const end = text.indexOf("\0", start);
  return text.slice(start, end < 0 ? undefined : end);
}

/**
 * The RVA of the external symbol `start`, Xen's 32-bit entry point.
 * @throws ImageError when there are several that differ
 */
export function startSymbol(image: Pe): number | undefined {
  const found = new Set<number>();
  for (const { name, rva, isExternal } of definedSymbols(image)) if (isExternal && name === "start") found.add(rva);
  const [one, other] = found;
  if (one !== undefined && other !== undefined)
    throw new ImageError(`it has two external symbols start, ${hex(one)} and ${hex(other)}`);
  return one;
}

/** Where each symbol's record and its section number are, and the number. */
export function* sectionNumbers(symbols: Uint8Array): Generator<{ record: number; at: number; number: number }> {
  const view = viewOf(symbols);
  for (const record of recordsOf(symbols)) {
    const at = record + NUMBER_AT;
    yield { record, at, number: view.getUint16(at, true) };
  }
}
