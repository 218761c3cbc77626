// SPDX-License-Identifier: GPL-2.0-only
// Looks facts up in an image by name, for the `-- out --` blocks of golden/cases. It reads by the judges' reader, not by
// the steps': a fact must not be true because the writer and the reader are wrong in the same way.

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { hex } from "../../cli/numbers.ts";
import { readPe, type Pe } from "../../judge/read.ts";
import { readStructure, viewOf } from "../../tables/fields.ts";
import * as mb from "../../tables/multiboot.ts";
import * as pe from "../../tables/pe.ts";
import { DIRECTORY_NAMES, checkSumOf } from "./build.ts";
import { hexBytes } from "./text.ts";

type Values = Readonly<Record<string, number | bigint | string>>;

/** What one image says of itself. */
export interface Facts extends Omit<Pe, "sections" | "symbols"> {
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
  const symbols: Values[] = [];
  const strings = Buffer.from(image.strings);
  for (let at = 0; at < image.symbols.length;) {
    const symbol = readStructure(pe.SYMBOL, image.symbols, at);
    const long = symbol.name.startsWith("\0\0\0\0") ? viewOf(image.symbols).getUint32(at + 4, true) : undefined;
    const name = long === undefined ? upToNul(symbol.name) : strings.toString("latin1", long, strings.indexOf(0, long));
    symbols.push({ ...symbol, name });
    at += pe.SYMBOL.size * (1 + symbol.numberOfAuxSymbols);
  }
  return { ...image, optionalAt: image.lfanew + pe.SIGNATURE_SIZE + pe.COFF_HEADER.size, sections, symbols };
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
function fileOffset({ sections }: Facts, rva: number): number {
  const section = sections.find((s) => rva >= s.virtualAddress && rva < s.virtualAddress + s.virtualSize);
  const offset = rva - (section?.virtualAddress ?? 0);
  if (section === undefined || offset >= section.sizeOfRawData) throw new Error(`RVA ${hex(rva)} is not in the file`);
  return section.pointerToRawData + offset;
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
function relocations(facts: Facts): string[] {
  const { virtualAddress = 0, size = 0 } = facts.directories[pe.DIRECTORY_BASE_RELOCATION] ?? {};
  const at = fileOffset(facts, virtualAddress);
  const view = viewOf(facts.bytes);
  const out: string[] = [];
  for (let block = at; block < at + size;) {
    const [page, length] = [view.getUint32(block, true), view.getUint32(block + 4, true)];
    for (let i = block + 8; i < block + length; i += 2) {
      const entry = view.getUint16(i, true);
      out.push(`${entry >>> 12}:${hex(page + (entry & 0xfff))}`);
    }
    block += Math.max(length, 8);
  }
  return out;
}

function debugEntry(facts: Facts, index: number): Values {
  const { virtualAddress = 0 } = facts.directories[pe.DIRECTORY_DEBUG] ?? {};
  const at = fileOffset(facts, virtualAddress) + index * pe.DEBUG_DIRECTORY_ENTRY.size;
  return readStructure(pe.DEBUG_DIRECTORY_ENTRY, facts.bytes, at);
}

/** `mb1.offset`, `mb1.FIELD`, `mb2.offset`, `mb2.length`, `mb2.tags`, `mb2.address.FIELD`, `mb2.entry_address.entryAddr`. */
function multiboot(bytes: Uint8Array, group: string, name: string, last: string): string | number | bigint {
  const view = viewOf(bytes);
  const [magic, align, limit, words] = group === "mb1" ? [mb.MB1_MAGIC, 4, 8192, 3] : [mb.MB2_MAGIC, 8, 32768, 4];
  let at = 0;
  for (; ; at += align) {
    if (at + 4 * words > Math.min(limit, bytes.length)) throw new Error(`no ${group} header`);
    let sum = 0;
    for (let i = 0; i < words; i++) sum += view.getUint32(at + 4 * i, true);
    if (view.getUint32(at, true) === magic && sum % 2 ** 32 === 0) break;
  }
  if (name === "offset") return at;
  if (group === "mb1") return (readStructure(mb.MB1_ADDRESS_HEADER, bytes, at) as Values)[last] ?? `no field ${last}`;
  const length = view.getUint32(at + 8, true);
  if (name === "length") return length;
  const tags: string[] = [];
  for (let tag = at + 16; tag < at + length; tag += Math.ceil(Math.max(view.getUint32(tag + 4, true), 8) / 8) * 8) {
    const [type, flags] = [view.getUint16(tag, true), view.getUint16(tag + 2, true)];
    const tagName = (mb.MB2_TAG_NAMES[type] ?? String(type)).toLowerCase();
    if (tagName === name) {
      const fields: Values =
        type === 2
          ? readStructure(mb.MB2_ADDRESS_TAG, bytes, tag)
          : readStructure(mb.MB2_ENTRY_ADDRESS_TAG, bytes, tag);
      return fields[last] ?? `no field ${last}`;
    }
    tags.push(tagName + (flags === 0 ? "" : "?"));
  }
  return name === "tags" ? tags.join(" ") : `no tag ${name}`;
}
