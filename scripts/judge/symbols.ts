// SPDX-License-Identifier: GPL-2.0-only
// verify's view of the COFF symbol table, and the one symbol that says something about the result: `start`.

import { Buffer } from "node:buffer";
import { ImageError } from "../cli/errors.ts";
import { hex } from "../cli/numbers.ts";
import { sameBytes } from "./file.ts";
import type { Comparison } from "./file.ts";
import type { Findings } from "./findings.ts";
import type { Image } from "../pe/image.ts";
import { offsetOf, viewOf } from "../tables/fields.ts";
import { SYMBOL } from "../tables/pe.ts";

const SECTION_NUMBER_AT = offsetOf(SYMBOL, "sectionNumber");
const AUX_AT = offsetOf(SYMBOL, "numberOfAuxSymbols");
const VALUE_AT = offsetOf(SYMBOL, "value");
const CLASS_AT = offsetOf(SYMBOL, "storageClass");
const CLASS_EXTERNAL = 2;

/** Symbols are the original's, each in a section of the same name: its number may be another. */
export function checkSymbols({ original, result, pairs }: Comparison, findings: Findings): void {
  sameBytes(
    findings,
    original.strings,
    result.strings,
    result.coff.pointerToSymbolTable + result.symbols.length,
    "the COFF string table",
  );
  const place = new Map(result.sections.map((section, i) => [section, i + 1]));
  const numbers = [0, ...original.sections.map((section) => place.get(pairs.get(section) ?? section) ?? 0)];
  const needed = renumbered(original.symbols, numbers);
  if (Buffer.compare(needed, result.symbols) !== 0) nameDifferences(result, needed, findings);
}

/** Symbol records with other section numbers: `numbers` has the new one at the old one's place. */
function renumbered(symbols: Uint8Array, numbers: readonly number[]): Uint8Array {
  const records = new Uint8Array(symbols);
  const view = viewOf(records);
  for (let at = 0; at + SYMBOL.size <= records.length; at += SYMBOL.size * (1 + (records[at + AUX_AT] ?? 0))) {
    const number = numbers[view.getUint16(at + SECTION_NUMBER_AT, true)];
    if (number !== undefined) view.setUint16(at + SECTION_NUMBER_AT, number, true);
  }
  return records;
}

/** @param needed is changed: what has been named is made equal */
function nameDifferences(result: Image, needed: Uint8Array, findings: Findings): void {
  const view = viewOf(needed);
  const found = viewOf(result.symbols);
  const end = Math.min(needed.length, result.symbols.length);
  for (let at = 0; at + SYMBOL.size <= end; at += SYMBOL.size * (1 + (needed[at + AUX_AT] ?? 0))) {
    const wanted = view.getUint16(at + SECTION_NUMBER_AT, true);
    const actual = found.getUint16(at + SECTION_NUMBER_AT, true);
    if (actual === wanted) continue;
    view.setUint16(at + SECTION_NUMBER_AT, actual, true);
    if (findings.full) {
      findings.addUnnamed(1);
      continue;
    }
    const name = (n: number): string => `section ${n} (${result.sections[n - 1]?.name ?? "none"})`;
    findings.add(
      `the COFF symbol number ${at / SYMBOL.size} at offset ${hex(result.coff.pointerToSymbolTable + at)}`,
      `in ${name(actual)}`,
      name(wanted),
    );
  }
  sameBytes(findings, needed, result.symbols, result.coff.pointerToSymbolTable, "the COFF symbol table");
}

/**
 * The RVA of the external symbol `start`, Xen's 32-bit entry point.
 * @throws ImageError when there are several that differ
 */
export function startSymbol(image: Image): number | undefined {
  const found = new Set<number>();
  const { symbols, strings } = image;
  const view = viewOf(symbols);
  for (let at = 0; at + SYMBOL.size <= symbols.length; at += SYMBOL.size * (1 + (symbols[at + AUX_AT] ?? 0))) {
    if (symbols[at + CLASS_AT] !== CLASS_EXTERNAL) continue;
    // A name of more than eight characters, or one that a tool has put there, is four zero bytes and a string table offset.
    const isStart =
      view.getUint32(at, true) === 0 ? spells(strings, view.getUint32(at + 4, true)) : spells(symbols, at);
    const section = image.sections[view.getUint16(at + SECTION_NUMBER_AT, true) - 1];
    if (isStart && section !== undefined)
      found.add(section.header.virtualAddress + view.getUint32(at + VALUE_AT, true));
  }
  const [one, other] = found;
  if (one !== undefined && other !== undefined)
    throw new ImageError(`it has two external symbols start, ${hex(one)} and ${hex(other)}`);
  return one;
}

const START = [..."start\0"].map((character) => character.charCodeAt(0));

function spells(bytes: Uint8Array, at: number): boolean {
  for (let i = 0; i < START.length; i++) if (bytes[at + i] !== START[i]) return false;
  return true;
}
