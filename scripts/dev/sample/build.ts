// SPDX-License-Identifier: GPL-2.0-only
// The model that dev/sample/text.ts reads from a text, and how it becomes bytes. On purpose this computes its own layout, tables and
// CheckSum: a test must not be made by what it tests. The field tables are pe/image.ts's.

import { Buffer } from "node:buffer";
import { ImageError } from "../../cli/errors.ts";
import { roundUp } from "../../pe/image.ts";
import { offsetOf, readStructure, viewOf, writeStructure } from "../../tables/fields.ts";
import type { Row, Structure } from "../../tables/fields.ts";
import {
  COFF_HEADER,
  DATA_DIRECTORY,
  DEBUG_DIRECTORY_ENTRY,
  OPTIONAL_HEADER,
  SECTION_HEADER,
  SYMBOL,
} from "../../tables/pe.ts";

/** Section flags by the names that the format uses. */
export const FLAG_NAMES: Readonly<Record<string, number>> = {
  code: 0x20,
  data: 0x40,
  bss: 0x80,
  discard: 0x02000000,
  execute: 0x20000000,
  read: 0x40000000,
  write: 0x80000000,
  // Old GNU ld leaves the object file's alignment in the flags: IMAGE_SCN_ALIGN_16BYTES.
  align16: 0x00500000,
};
/** Data directories by the names that the format uses. */
export const DIRECTORY_NAMES: Readonly<Record<string, number>> = { certificate: 4, relocation: 5, debug: 6 };
export type Resolve = (expression: string) => number;

export interface Item {
  readonly at: number;
  readonly size: number;
  readonly bytes: (resolve: Resolve, model: Model) => Uint8Array | readonly number[];
}

export interface SampleSection {
  name: string;
  rva: number;
  vsize: number | undefined;
  raw: number | undefined;
  ptr: number | undefined;
  flags: number;
  /** Header fields that say something else than what is there. */
  lies: Record<string, number>;
  /** Length of the content so far, without the generated relocation table. */
  size: number;
  items: Item[];
  relocs: { at: number; type: number }[];
  /** Where the generated relocation table goes. */
  tableAt: number | undefined;
}

export interface SampleSymbol {
  readonly name: string;
  readonly value: number;
  /** A section, or a section number as it stands. */
  readonly section: SampleSection | number;
  readonly storageClass: number;
  /** Auxiliary records behind it; they hold 0xaa bytes. */
  readonly aux: number;
}

/** What a text says, before anything has its place. */
export interface Model {
  lfanew: number;
  fields: Map<string, string>;
  sections: SampleSection[];
  order: string[] | undefined;
  current: SampleSection | undefined;
  cursor: number;
  labels: Map<string, { section: SampleSection; at: number }>;
  symbols: SampleSymbol[] | undefined;
  debug: { section: SampleSection; entries: Set<number> } | undefined;
  /** Header area of a linear layout; undefined: packed, as a linker does. */
  linear: number | undefined;
  certificate: number | undefined;
  /** What happens to the finished file, in this order. */
  edits: ((bytes: Uint8Array) => Uint8Array)[];
  placed: Map<SampleSection, { ptr: number; raw: number; vsize: number }>;
}

// ---- numbers

export function fail(reason: string): never {
  throw new ImageError(reason);
}

export function number(text: string | undefined): number {
  const value = Number(text);
  if (text === undefined || text === "" || !Number.isSafeInteger(value)) fail(`'${text}' is not a number`);
  return value;
}

/** A section by its name, or by its place in the text as "[3]". */
export function sectionOf(model: Model, name: string): SampleSection {
  const index = /^\[(\d+)\]$/.exec(name)?.[1];
  return (
    (index === undefined ? model.sections.find((s) => s.name === name) : model.sections[Number(index)]) ??
    fail(`no section ${name}`)
  );
}

/** A number as little-endian bytes. */
export function le(value: number | bigint, size: number): number[] {
  return Array.from({ length: size }, (_, i) => Number((BigInt.asUintN(64, BigInt(value)) >> BigInt(8 * i)) & 0xffn));
}

/** The file offset of an RVA, through VirtualSizes; 0 where nothing is. */
export function fileOffset(model: Model, rva: number): number {
  const section = model.sections.find((s) => rva >= s.rva && rva < s.rva + (model.placed.get(s)?.vsize ?? 0));
  return section === undefined ? 0 : (model.placed.get(section)?.ptr ?? 0) + rva - section.rva;
}

// ---- model to bytes

/** The image that a model describes. */
export function build(model: Model): Uint8Array {
  const { sections } = model;
  const fileAlignment = number(model.fields.get("optional.fileAlignment") ?? "0x20");
  const holder = sections.find((s) => s.tableAt !== undefined);
  const table = relocationTable(sections);
  const contentSize = (s: SampleSection): number =>
    Math.max(s.size, s === holder ? (s.tableAt ?? 0) + table.length : 0);
  const resolve: Resolve = (expression) =>
    resolveExpression(model, expression, (s) => s.vsize ?? contentSize(s), [
      (holder?.rva ?? 0) + (holder?.tableAt ?? 0),
      table.length,
    ]);

  const directories = Math.min(16, number(model.fields.get("optional.numberOfRvaAndSizes") ?? "16"));
  const optionalSize = OPTIONAL_HEADER.size + directories * DATA_DIRECTORY.size;
  const tableAt = model.lfanew + 4 + COFF_HEADER.size + optionalSize;
  const headersEnd = tableAt + sections.length * SECTION_HEADER.size;
  const sizeOfHeaders =
    model.linear ?? number(model.fields.get("optional.sizeOfHeaders") ?? String(roundUp(headersEnd, fileAlignment)));
  let end = place(model, sizeOfHeaders, fileAlignment, contentSize);

  const { records, strings, nameOf } = symbolTables(model);
  const symbolsAt = end;
  if (model.symbols !== undefined) end += records.length + strings.length;
  const bytes = new Uint8Array(Math.max(end, headersEnd));
  if (model.symbols !== undefined) {
    bytes.set(records, symbolsAt);
    bytes.set(strings, symbolsAt + records.length);
  }
  for (const section of sections) {
    const { ptr } = model.placed.get(section) ?? fail("not placed");
    if (section === holder) bytes.set(table, ptr + (section.tableAt ?? 0));
    for (const item of section.items) bytes.set(item.bytes(resolve, model), ptr + item.at);
  }

  const defaults: Record<string, number> = {
    "coff.machine": 0x8664,
    "coff.numberOfSections": sections.length,
    "coff.pointerToSymbolTable": model.symbols === undefined ? 0 : symbolsAt,
    "coff.numberOfSymbols": model.symbols === undefined ? 0 : records.length / SYMBOL.size,
    "coff.sizeOfOptionalHeader": optionalSize,
    "optional.magic": 0x20b,
    "optional.sizeOfHeaders": sizeOfHeaders,
    "optional.fileAlignment": fileAlignment,
    "optional.numberOfRvaAndSizes": 16,
    "directory.relocation.virtualAddress": (holder?.rva ?? 0) + (holder?.tableAt ?? 0),
    "directory.relocation.size": table.length,
    "directory.debug.virtualAddress": (model.debug?.section.rva ?? 0) + Math.min(...(model.debug?.entries ?? [0])),
    "directory.debug.size": (model.debug?.entries.size ?? 0) * DEBUG_DIRECTORY_ENTRY.size,
  };
  let file: Uint8Array = bytes;
  if (model.certificate !== undefined) {
    const at = roundUp(file.length, 8);
    file = Buffer.concat([
      file,
      new Uint8Array(at - file.length),
      Buffer.from(le(model.certificate, 4)),
      Buffer.from(le(0x00020200, 4)),
      new Uint8Array(model.certificate - 8).fill(0x55),
    ]);
    Object.assign(defaults, {
      "directory.certificate.virtualAddress": at,
      "directory.certificate.size": model.certificate,
    });
  }
  file[0] = 0x4d;
  file[1] = 0x5a;
  // The stub, which every step must leave as it is.
  for (let i = 0x40; i < Math.min(model.lfanew, 0x80); i++) file[i] = i;
  viewOf(file).setUint32(0x3c, model.lfanew, true);
  file.set(Buffer.from("PE\0\0"), model.lfanew);
  const value = (path: string): bigint | number => {
    const text = model.fields.get(path);
    return text === undefined
      ? (defaults[path] ?? 0)
      : /^(0x[0-9a-f]+|\d+)$/i.test(text)
        ? BigInt(text)
        : resolve(text);
  };
  const known = new Set<string>();
  const write = <R extends readonly Row[]>(what: Structure<R>, prefix: string, at: number): void => {
    for (const [field] of what.rows) known.add(`${prefix}.${field}`);
    const entries = what.rows.map(([field, width]) => [
      field,
      width === 8 ? BigInt(value(`${prefix}.${field}`)) : Number(value(`${prefix}.${field}`)),
    ]);
    writeStructure(what, Object.fromEntries(entries), file, at);
  };
  const optionalAt = model.lfanew + 4 + COFF_HEADER.size;
  write(COFF_HEADER, "coff", model.lfanew + 4);
  write(OPTIONAL_HEADER, "optional", optionalAt);
  for (let i = 0; i < directories; i++) {
    const name = Object.entries(DIRECTORY_NAMES).find(([, index]) => index === i)?.[0] ?? String(i);
    write(DATA_DIRECTORY, `directory.${name}`, optionalAt + OPTIONAL_HEADER.size + i * DATA_DIRECTORY.size);
  }
  for (const path of model.fields.keys()) if (!known.has(path)) fail(`nothing is called '${path}'`);
  tableOrder(model).forEach((section, i) => {
    const { ptr, raw, vsize } = model.placed.get(section) ?? fail("not placed");
    const at = tableAt + i * SECTION_HEADER.size;
    writeStructure(
      SECTION_HEADER,
      {
        name: nameOf(section),
        virtualSize: vsize,
        virtualAddress: section.rva,
        sizeOfRawData: raw,
        pointerToRawData: ptr,
        pointerToRelocations: 0,
        pointerToLinenumbers: 0,
        numberOfRelocations: 0,
        numberOfLinenumbers: 0,
        characteristics: section.flags,
        ...section.lies,
      },
      file,
      at,
    );
  });
  if (!model.fields.has("optional.checkSum"))
    viewOf(file).setUint32(optionalAt + offsetOf(OPTIONAL_HEADER, "checkSum"), checkSumOf(file, optionalAt), true);
  return model.edits.reduce((result, edit) => edit(result), file);
}

/** Numbers, labels, section names (their RVA; "NAME:end" for RVA + VirtualSize), reloc:start and reloc:end, added and subtracted. */
function resolveExpression(
  model: Model,
  expression: string,
  vsize: (s: SampleSection) => number,
  [start, size]: [number, number],
): number {
  let sum = 0;
  for (const [, sign, term = ""] of expression.matchAll(/([+-]?)([^+-]+)/g)) {
    const label = model.labels.get(term);
    const section = model.sections.find((s) => s.name === term.replace(/:end$/, ""));
    const value =
      label !== undefined
        ? label.section.rva + label.at
        : term === "reloc:start"
          ? start
          : term === "reloc:end"
            ? start + size
            : section !== undefined
              ? section.rva + (term.endsWith(":end") ? vsize(section) : 0)
              : number(term);
    sum += sign === "-" ? -value : value;
  }
  return sum;
}

function tableOrder(model: Model): SampleSection[] {
  return model.order?.map((name) => sectionOf(model, name)) ?? model.sections;
}

/** Blocks by page, entries by address, each block padded to a multiple of 4, as GNU ld and mkreloc write them. */
function relocationTable(sections: readonly SampleSection[]): Uint8Array {
  const all = sections
    .flatMap((s) => s.relocs.map(({ at, type }) => ({ rva: s.rva + at, type })))
    .sort((a, b) => a.rva - b.rva);
  const out: number[] = [];
  for (const page of new Set(all.map(({ rva }) => rva - (rva % 0x1000)))) {
    const entries = all
      .filter(({ rva }) => rva - (rva % 0x1000) === page)
      .map(({ rva, type }) => type * 0x1000 + (rva % 0x1000));
    if (entries.length % 2 !== 0) entries.push(0);
    out.push(...le(page, 4), ...le(8 + 2 * entries.length, 4), ...entries.flatMap((e) => le(e, 2)));
  }
  return Uint8Array.from(out);
}

/** Gives every section its place in the file. @returns where the symbol table goes */
function place(
  model: Model,
  headers: number,
  fileAlignment: number,
  contentSize: (s: SampleSection) => number,
): number {
  const ordered = [...model.sections].sort((a, b) => a.rva - b.rva);
  const bss = ordered.findIndex((s) => s.name === ".bss");
  let end = headers;
  for (const section of model.linear === undefined ? model.sections : ordered) {
    const vsize = section.vsize ?? contentSize(section);
    const i = ordered.indexOf(section);
    const empty = (section.flags & (FLAG_NAMES["bss"] ?? 0)) !== 0;
    let raw =
      section.raw ?? (empty ? 0 : roundUp(contentSize(section), model.linear === undefined ? fileAlignment : 512));
    if (model.linear !== undefined && i < bss && section.raw === undefined)
      raw = i === bss - 1 ? roundUp(vsize, 512) : (ordered[i + 1]?.rva ?? 0) - section.rva;
    const linearPtr =
      model.linear !== undefined && i < bss ? section.rva - (ordered[0]?.rva ?? 0) + headers : undefined;
    const ptr = section.ptr ?? (raw === 0 ? 0 : (linearPtr ?? end));
    model.placed.set(section, { ptr, raw, vsize });
    end = Math.max(end, ptr + Math.max(raw, section.items.length === 0 ? 0 : section.size));
  }
  return end;
}

/** Names longer than 8 characters go to the string table: sections' first, then symbols'. */
function symbolTables(model: Model): {
  records: Uint8Array;
  strings: Uint8Array;
  nameOf: (s: SampleSection) => string;
} {
  let strings = "\0\0\0\0";
  const place = (name: string): number => {
    const at = strings.length;
    strings += `${name}\0`;
    return at;
  };
  const names = new Map(model.sections.map((s) => [s, s.name.length > 8 ? `/${place(s.name)}` : s.name]));
  const order = tableOrder(model);
  const records: number[] = [];
  for (const { name, value, section, storageClass, aux } of model.symbols ?? []) {
    const short = Buffer.alloc(8);
    if (name.length > 8) short.writeUInt32LE(place(name), 4);
    else short.write(name, "latin1");
    const sectionNumber = typeof section === "number" ? section : order.indexOf(section) + 1;
    const bytes = new Uint8Array(SYMBOL.size);
    const record = {
      ...readStructure(SYMBOL, bytes, 0),
      name: short.toString("latin1"),
      value,
      sectionNumber,
      storageClass,
      numberOfAuxSymbols: aux,
    };
    writeStructure(SYMBOL, record, bytes, 0);
    records.push(...bytes, ...new Uint8Array(aux * SYMBOL.size).fill(0xaa));
  }
  const table = Buffer.from(strings, "latin1");
  table.writeUInt32LE(table.length, 0);
  return { records: Uint8Array.from(records), strings: table, nameOf: (s) => names.get(s) ?? s.name };
}

/** The definition, word by word, on purpose not pe/image.ts's: 16-bit one's complement sum with the field as 0, plus the length. */
export function checkSumOf(bytes: Uint8Array, optionalAt: number): number {
  const skip = optionalAt + offsetOf(OPTIONAL_HEADER, "checkSum");
  let sum = 0;
  const byte = (i: number): number => (i >= skip && i < skip + 4 ? 0 : (bytes[i] ?? 0));
  for (let i = 0; i < bytes.length; i += 2) {
    sum += byte(i) + 256 * byte(i + 1);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum + bytes.length;
}
