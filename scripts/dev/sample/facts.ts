// SPDX-License-Identifier: GPL-2.0-only
// Looks facts up in an image by name, for the `-- out --` blocks of golden/cases. It reads by the judges' reader, not by
// the steps': a fact must not be true because the writer and the reader are wrong in the same way.

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { hex } from "../../cli/numbers.ts";
import { MULTIBOOT1, MULTIBOOT2, findHeader, tagName, tagsOfHeader } from "../../judge/loads.ts";
import { optionalAt, readPe, sectionAt, type Pe } from "../../judge/read.ts";
import { recordsOf } from "../../judge/symbols.ts";
import { entriesOf, walkRelocations } from "../../loaders/relocation-table.ts";
import { readStructure, viewOf } from "../../tables/fields.ts";
import * as mb from "../../tables/multiboot.ts";
import * as pe from "../../tables/pe.ts";
import { DIRECTORY_NAMES, checkSumOf } from "./build.ts";
import { hexBytes } from "./text.ts";

type Values = Readonly<Record<string, number | bigint | string>>;

/** What one image says of itself. */
export interface Facts extends Omit<Pe, "sections" | "symbols"> {
  /** As it was read. */
  readonly image: Pe;
  readonly optionalAt: number;
  /** Header fields, with `name` resolved and the eight raw characters as `rawName`. */
  readonly sections: readonly (pe.SectionHeader & { readonly rawName: string })[];
  /** Auxiliary records left out. */
  readonly symbols: readonly Values[];
}

export function readFacts(bytes: Uint8Array): Facts {
  const image = readPe(bytes);
  const upToNul = (name: string): string => name.replace(/\0.*/s, "");
  const sections = image.sections.map(({ name, header }) => ({ ...header, name, rawName: upToNul(header.name) }));
  const strings = Buffer.from(image.strings);
  const symbols = [...recordsOf(image.symbols)].map((at) => {
    const symbol = readStructure(pe.SYMBOL, image.symbols, at);
    const long = symbol.name.startsWith("\0\0\0\0") ? viewOf(image.symbols).getUint32(at + 4, true) : undefined;
    const name = long === undefined ? upToNul(symbol.name) : strings.toString("latin1", long, strings.indexOf(0, long));
    return { ...symbol, name };
  });
  return { ...image, image, optionalAt: optionalAt(image), sections, symbols };
}

/** What every output of a step must be, whatever the case is about. @returns what is wrong */
export function alwaysTrue({ bytes, optional, optionalAt, sections }: Facts): string[] {
  const wrong: string[] = [];
  const sum = checkSumOf(bytes, optionalAt);
  if (optional.checkSum !== sum) wrong.push(`checkSum is ${hex(optional.checkSum)}, should be ${hex(sum)}`);
  const rvas = sections.map(({ virtualAddress }) => virtualAddress);
  if (rvas.some((rva, i) => rva < (rvas[i - 1] ?? 0))) wrong.push("the section table is not in RVA order");
  return wrong;
}

/**
 * The value of one fact as text, in the way in which `expected` is written.
 * @param path as in samples/README.md, "Facts"
 * @throws Error for a path that does not exist
 */
export function lookUp(facts: Facts, path: string, expected: string): string {
  const value = rawFact(facts, path, expected);
  if (typeof value === "string") return value;
  return /^\d+$/.test(expected) ? String(value) : hex(value);
}

function rawFact(facts: Facts, path: string, expected: string): string | number | bigint {
  const { bytes, coff, optional, directories } = facts;
  const [word = "", argument = ""] = path.split(" ");
  const [start] = argument.split("..").map(Number);
  const dot = path.lastIndexOf(".");
  const last = path.slice(dot + 1);
  const field = (values: Values | undefined): string | number | bigint => {
    const value = values?.[last];
    if (value === undefined) throw new Error(`no such fact: ${path}`);
    return value;
  };
  switch (word) {
    case "length":
      return bytes.length;
    case "sha256":
      return createHash("sha256").update(bytes).digest("hex");
    case "sections":
      return facts.sections.map((s) => s["name"]).join(" ");
    case "symbols":
      return facts.symbols.map((s) => `${s["name"]}:${s["sectionNumber"]}`).join(" ");
    case "section":
      return field(pick(facts.sections, path.slice(8, dot)));
    case "symbol":
      return field(pick(facts.symbols, path.slice(7, dot)));
    case "file":
      return bytesFact(bytes, argument, 0, expected);
    case "rva":
      return bytesFact(bytes, argument, fileOffset(facts, Number(start)) - Number(start), expected);
    case "u64":
      return viewOf(bytes).getBigUint64(fileOffset(facts, Number(start)), true);
    case "lea":
      return Number(start) + 7 + viewOf(bytes).getInt32(fileOffset(facts, Number(start)) + 3, true);
    case "relocs":
      return relocations(facts).join(" ");
    default:
  }
  const [group = "", name = ""] = path.split(".");
  if (group === "coff") return field(coff);
  if (group === "optional") return field(optional);
  if (group === "directory") return field(directories[DIRECTORY_NAMES[name] ?? Number(name)]);
  if (group.startsWith("debug[")) return field(debugEntry(facts, Number(group.slice(6, -1))));
  if (group === "mb1" || group === "mb2") return multiboot(bytes, group, name, last);
  return field(undefined);
}

function pick(list: readonly Values[], name: string): Values | undefined {
  return name.startsWith("[") ? list[Number(name.slice(1, -1))] : list.find((entry) => entry["name"] === name);
}

/** Through [VirtualAddress, VirtualAddress + VirtualSize), as DESIGN.md has it. */
function fileOffset({ image }: Facts, rva: number): number {
  const header = sectionAt(image, rva)?.header;
  const offset = rva - (header?.virtualAddress ?? 0);
  if (header === undefined || offset >= header.sizeOfRawData) throw new Error(`RVA ${hex(rva)} is not in the file`);
  return header.pointerToRawData + offset;
}

/** "0x100": as many bytes as are expected. "0x100..0x180": all of them, shortened to one pattern where they repeat the expected one. */
function bytesFact(bytes: Uint8Array, argument: string, shift: number, expected: string): string {
  const pattern = hexBytes([expected.replaceAll(" ", "")]);
  const [start = 0, end = start + pattern.length] = argument.split("..").map(Number);
  const found = bytes.subarray(start + shift, end + shift);
  if (end > start && found.length === end - start && found.every((byte, i) => byte === pattern[i % pattern.length]))
    return expected;
  return Buffer.from(found).toString("hex");
}

/** "type:rva" of every entry, padding included. */
function relocations({ image }: Facts): string[] {
  const entries = walkRelocations(image).blocks.flatMap((block) => [...entriesOf(block)]);
  return entries.map(({ type, target }) => `${type}:${hex(target)}`);
}

function debugEntry(facts: Facts, index: number): Values {
  const { virtualAddress = 0 } = facts.directories[pe.DIRECTORY_DEBUG] ?? {};
  const at = fileOffset(facts, virtualAddress) + index * pe.DEBUG_DIRECTORY_ENTRY.size;
  return readStructure(pe.DEBUG_DIRECTORY_ENTRY, facts.bytes, at);
}

/** `mb1.offset`, `mb1.FIELD`, `mb2.offset`, `mb2.length`, `mb2.tags`, `mb2.address.FIELD`, `mb2.entry_address.entryAddr`. */
function multiboot(bytes: Uint8Array, group: string, name: string, last: string): string | number | bigint {
  const at = findHeader(bytes, group === "mb1" ? MULTIBOOT1 : MULTIBOOT2);
  if (at < 0) throw new Error(`no ${group} header`);
  if (name === "offset") return at;
  if (group === "mb1") return (readStructure(mb.MB1_ADDRESS_HEADER, bytes, at) as Values)[last] ?? `no field ${last}`;
  if (name === "length") return readStructure(mb.MB2_HEADER, bytes, at).headerLength;
  const tags = tagsOfHeader(bytes, at).map((tag) => ({ ...tag, name: tagName(tag.type).toLowerCase() }));
  if (name === "tags") return [...tags.map((tag) => tag.name + (tag.flags === 0 ? "" : "?")), "end"].join(" ");
  const tag = tags.find((candidate) => candidate.name === name);
  if (tag === undefined) return `no tag ${name}`;
  const fields: Values =
    name === "address"
      ? readStructure(mb.MB2_ADDRESS_TAG, tag.bytes, 0)
      : readStructure(mb.MB2_ENTRY_ADDRESS_TAG, tag.bytes, 0);
  return fields[last] ?? `no field ${last}`;
}
