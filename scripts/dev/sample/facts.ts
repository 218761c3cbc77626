// SPDX-License-Identifier: GPL-2.0-only
// Looks facts up in an image by name, for the `-- out --` blocks of golden/cases. It shares the field tables with pe/image.ts
// and nothing else: a fact must not be true because the writer and the reader are wrong in the same way.

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { DIRECTORY_NAMES, checkSumOf } from "./build.ts";
import { hexBytes } from "./text.ts";
import { readStructure, viewOf } from "../../tables/fields.ts";
import { MB1_ADDRESS_HEADER, MB2_ADDRESS_TAG, MB2_ENTRY_ADDRESS_TAG, MB2_TAG_NAMES } from "../../tables/multiboot.ts";
import {
  COFF_HEADER,
  DATA_DIRECTORY,
  DEBUG_DIRECTORY_ENTRY,
  OPTIONAL_HEADER,
  SECTION_HEADER,
  SYMBOL,
} from "../../tables/pe.ts";

type Values = Record<string, number | bigint | string>;

/** Headers and tables of one image, read plainly. */
export interface Facts {
  readonly bytes: Uint8Array;
  readonly coff: Values;
  readonly optional: Values;
  readonly optionalAt: number;
  readonly directories: Values[];
  /** With `name` resolved and the eight raw characters as `rawName`. */
  readonly sections: Values[];
  /** Auxiliary records left out. */
  readonly symbols: Values[];
}

export function readFacts(bytes: Uint8Array): Facts {
  const at = viewOf(bytes).getUint32(0x3c, true) + 4;
  const coff: Values = readStructure(COFF_HEADER, bytes, at);
  const optionalAt = at + COFF_HEADER.size;
  const optional: Values = readStructure(OPTIONAL_HEADER, bytes, optionalAt);
  const directories = Array.from({ length: 16 }, (_, i) =>
    readStructure(DATA_DIRECTORY, bytes, optionalAt + OPTIONAL_HEADER.size + i * 8),
  );
  const symbolsAt = Number(coff["pointerToSymbolTable"]);
  const stringsAt = symbolsAt + Number(coff["numberOfSymbols"]) * SYMBOL.size;
  const text = (offset: number): string =>
    Buffer.from(bytes.subarray(offset, bytes.indexOf(0, offset))).toString("latin1");
  const short = (name: string): string => name.replace(/\0.*/s, "");
  const sections = Array.from({ length: Number(coff["numberOfSections"]) }, (_, i) => {
    const header: Values = readStructure(
      SECTION_HEADER,
      bytes,
      optionalAt + Number(coff["sizeOfOptionalHeader"]) + i * SECTION_HEADER.size,
    );
    const rawName = short(String(header["name"]));
    return { ...header, rawName, name: rawName.startsWith("/") ? text(stringsAt + Number(rawName.slice(1))) : rawName };
  });
  const symbols: Values[] = [];
  for (let record = symbolsAt; symbolsAt !== 0 && record < stringsAt;) {
    const symbol: Values = readStructure(SYMBOL, bytes, record);
    const name = String(symbol["name"]);
    const long = name.startsWith("\0\0\0\0") ? Buffer.from(name, "latin1").readUInt32LE(4) : undefined;
    symbols.push({ ...symbol, name: long === undefined ? short(name) : text(stringsAt + long) });
    record += SYMBOL.size * (1 + Number(symbol["numberOfAuxSymbols"]));
  }
  return { bytes, coff, optional, optionalAt, directories, sections, symbols };
}

/** What every output of a step must be, whatever the case is about. @returns what is wrong */
export function alwaysTrue({ bytes, optional, optionalAt, sections }: Facts): string[] {
  const wrong: string[] = [];
  const sum = checkSumOf(bytes, optionalAt);
  if (optional["checkSum"] !== sum)
    wrong.push(`checkSum is 0x${optional["checkSum"]?.toString(16)}, should be 0x${sum.toString(16)}`);
  const rvas = sections.map((s) => Number(s["virtualAddress"]));
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
  return /^\d+$/.test(expected) ? String(value) : `0x${value.toString(16)}`;
}

function rawFact(facts: Facts, path: string, expected: string): string | number | bigint {
  const { bytes } = facts;
  const [word = "", argument = ""] = path.split(" ");
  const none = (): never => {
    throw new Error(`no such fact: ${path}`);
  };
  const field = (values: Values | undefined, name: string): string | number | bigint => values?.[name] ?? none();
  const dot = path.lastIndexOf(".");
  const last = path.slice(dot + 1);
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
      return field(pick(facts.sections, path.slice(8, dot)), last);
    case "symbol":
      return field(pick(facts.symbols, path.slice(7, dot)), last);
    case "file":
      return bytesFact(bytes, argument, 0, expected);
    case "rva":
      return bytesFact(
        bytes,
        argument,
        fileOffset(facts, Number(argument.split("..")[0])) - Number(argument.split("..")[0]),
        expected,
      );
    case "u64":
      return viewOf(bytes).getBigUint64(fileOffset(facts, Number(argument)), true);
    case "lea":
      return Number(argument) + 7 + viewOf(bytes).getInt32(fileOffset(facts, Number(argument)) + 3, true);
    case "relocs":
      return relocations(facts).join(" ");
    default:
  }
  const [group = "", name = ""] = path.split(".");
  if (group === "coff" || group === "optional") return field(facts[group], name);
  if (group === "directory") return field(facts.directories[DIRECTORY_NAMES[name] ?? Number(name)], last);
  if (group.startsWith("debug[")) return field(debugEntry(facts, Number(group.slice(6, -1))), name);
  if (group === "mb1" || group === "mb2") return multiboot(facts, group, name, last);
  return none();
}

function pick(list: readonly Values[], name: string): Values | undefined {
  return name.startsWith("[") ? list[Number(name.slice(1, -1))] : list.find((entry) => entry["name"] === name);
}

/** Through [VirtualAddress, VirtualAddress + VirtualSize), as DESIGN.md has it. */
function fileOffset({ sections }: Facts, rva: number): number {
  const section = sections.find(
    (s) => rva >= Number(s["virtualAddress"]) && rva < Number(s["virtualAddress"]) + Number(s["virtualSize"]),
  );
  const offset = rva - Number(section?.["virtualAddress"]);
  if (section === undefined || offset >= Number(section["sizeOfRawData"]))
    throw new Error(`RVA 0x${rva.toString(16)} is not in the file`);
  return Number(section["pointerToRawData"]) + offset;
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
  const directory = facts.directories[5];
  const [start, size] = [Number(directory?.["virtualAddress"]), Number(directory?.["size"])];
  const at = fileOffset(facts, start);
  const view = viewOf(facts.bytes);
  const out: string[] = [];
  for (let block = at; block < at + size;) {
    const [page, length] = [view.getUint32(block, true), view.getUint32(block + 4, true)];
    for (let i = block + 8; i < block + length; i += 2) {
      const entry = view.getUint16(i, true);
      out.push(`${entry >>> 12}:0x${(page + (entry & 0xfff)).toString(16)}`);
    }
    block += Math.max(length, 8);
  }
  return out;
}

function debugEntry(facts: Facts, index: number): Values {
  const rva = Number(facts.directories[6]?.["virtualAddress"]);
  return readStructure(DEBUG_DIRECTORY_ENTRY, facts.bytes, fileOffset(facts, rva) + index * DEBUG_DIRECTORY_ENTRY.size);
}

/** `mb1.offset`, `mb1.FIELD`, `mb2.offset`, `mb2.length`, `mb2.tags`, `mb2.address.FIELD`, `mb2.entry_address.entryAddr`. */
function multiboot({ bytes }: Facts, group: string, name: string, last: string): string | number | bigint {
  const view = viewOf(bytes);
  const [magic, align, limit, words] = group === "mb1" ? [0x1badb002, 4, 8192, 3] : [0xe85250d6, 8, 32768, 4];
  let at = 0;
  for (; ; at += align) {
    if (at + 4 * words > Math.min(limit, bytes.length)) throw new Error(`no ${group} header`);
    let sum = 0;
    for (let i = 0; i < words; i++) sum += view.getUint32(at + 4 * i, true);
    if (view.getUint32(at, true) === magic && sum % 2 ** 32 === 0) break;
  }
  if (name === "offset") return at;
  if (group === "mb1") return (readStructure(MB1_ADDRESS_HEADER, bytes, at) as Values)[last] ?? `no field ${last}`;
  const length = view.getUint32(at + 8, true);
  if (name === "length") return length;
  const tags: string[] = [];
  for (let tag = at + 16; tag < at + length; tag += Math.ceil(Math.max(view.getUint32(tag + 4, true), 8) / 8) * 8) {
    const [type, flags] = [view.getUint16(tag, true), view.getUint16(tag + 2, true)];
    const tagName = (MB2_TAG_NAMES[type] ?? String(type)).toLowerCase();
    if (tagName === name) {
      const fields: Values =
        type === 2 ? readStructure(MB2_ADDRESS_TAG, bytes, tag) : readStructure(MB2_ENTRY_ADDRESS_TAG, bytes, tag);
      return fields[last] ?? `no field ${last}`;
    }
    tags.push(tagName + (flags === 0 ? "" : "?"));
  }
  return name === "tags" ? tags.join(" ") : `no tag ${name}`;
}
