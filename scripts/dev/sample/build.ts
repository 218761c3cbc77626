// SPDX-License-Identifier: GPL-2.0-only
// The model that dev/sample/text.ts reads from a text, and how it becomes bytes. On purpose this computes its own layout, tables and
// CheckSum: a test must not be made by what it tests. The field tables are tables/pe.ts's.

import { Buffer } from "node:buffer";
import { ImageError } from "../../cli/errors.ts";
import { roundUp } from "../../pe/image.ts";
import { offsetOf, readStructure, viewOf, writeStructure, type Row, type Structure } from "../../tables/fields.ts";
import * as pe from "../../tables/pe.ts";

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

/** Where the generated parts of the file are, and what is in them. */
interface Plan {
  readonly model: Model;
  readonly optionalAt: number;
  readonly tableAt: number;
  readonly directories: number;
  readonly sizeOfHeaders: number;
  readonly fileAlignment: number;
  /** RVA and bytes of the generated base relocation table. */
  readonly relocations: {
    readonly holder: SampleSection | undefined;
    readonly rva: number;
    readonly bytes: Uint8Array;
  };
  readonly symbols: ReturnType<typeof symbolTables>;
  readonly symbolsAt: number;
  readonly resolve: Resolve;
}

/** The image that a model describes. */
export function build(model: Model): Uint8Array {
  const plan = planOf(model);
  const { file, certificate } = contents(plan);
  file[0] = 0x4d;
  file[1] = 0x5a;
  // The stub, which every step must leave as it is.
  for (let i = 0x40; i < Math.min(model.lfanew, 0x80); i++) file[i] = i;
  viewOf(file).setUint32(pe.LFANEW_AT, model.lfanew, true);
  file.set(Buffer.from("PE\0\0"), model.lfanew);
  writeFields(file, plan, { ...defaultFields(plan), ...certificate });
  writeSectionTable(file, plan);
  if (!model.fields.has("optional.checkSum"))
    viewOf(file).setUint32(
      plan.optionalAt + offsetOf(pe.OPTIONAL_HEADER, "checkSum"),
      checkSumOf(file, plan.optionalAt),
      true,
    );
  return model.edits.reduce((result, edit) => edit(result), file);
}

/** Gives everything its place. */
function planOf(model: Model): Plan {
  const { sections, fields } = model;
  const fileAlignment = number(fields.get("optional.fileAlignment") ?? "0x20");
  const holder = sections.find((s) => s.tableAt !== undefined);
  const bytes = relocationTable(sections);
  const relocations = { holder, rva: (holder?.rva ?? 0) + (holder?.tableAt ?? 0), bytes };
  const contentSize = (s: SampleSection): number =>
    Math.max(s.size, s === holder ? (s.tableAt ?? 0) + bytes.length : 0);
  const directories = Math.min(16, number(fields.get("optional.numberOfRvaAndSizes") ?? "16"));
  const optionalAt = model.lfanew + pe.SIGNATURE_SIZE + pe.COFF_HEADER.size;
  const tableAt = optionalAt + pe.OPTIONAL_HEADER.size + directories * pe.DATA_DIRECTORY.size;
  const leastHeaders = roundUp(tableAt + sections.length * pe.SECTION_HEADER.size, fileAlignment);
  const sizeOfHeaders = model.linear ?? number(fields.get("optional.sizeOfHeaders") ?? String(leastHeaders));
  return {
    model,
    optionalAt,
    tableAt,
    directories,
    sizeOfHeaders,
    fileAlignment,
    relocations,
    symbolsAt: place(model, sizeOfHeaders, fileAlignment, contentSize),
    symbols: symbolTables(model),
    resolve: (expression) =>
      resolveExpression(model, expression, (s) => s.vsize ?? contentSize(s), [relocations.rva, bytes.length]),
  };
}

/** The file without its headers, and the header fields of its certificate table. */
function contents(plan: Plan): { file: Uint8Array; certificate: Record<string, number> } {
  const { model, relocations, symbols, symbolsAt, resolve } = plan;
  const tables = model.symbols === undefined ? Buffer.of() : Buffer.concat([symbols.records, symbols.strings]);
  const headersEnd = plan.tableAt + model.sections.length * pe.SECTION_HEADER.size;
  const bytes = new Uint8Array(Math.max(symbolsAt + tables.length, headersEnd));
  bytes.set(tables, symbolsAt);
  for (const section of model.sections) {
    const { ptr } = model.placed.get(section) ?? fail("not placed");
    if (section === relocations.holder) bytes.set(relocations.bytes, ptr + (section.tableAt ?? 0));
    for (const item of section.items) bytes.set(item.bytes(resolve, model), ptr + item.at);
  }
  const size = model.certificate;
  if (size === undefined) return { file: bytes, certificate: {} };
  const at = roundUp(bytes.length, 8);
  const file = new Uint8Array(at + size);
  file.set(bytes);
  file.set([...le(size, 4), ...le(0x00020200, 4)], at);
  file.fill(0x55, at + 8);
  return { file, certificate: { "directory.certificate.virtualAddress": at, "directory.certificate.size": size } };
}

/** Header fields that the text need not give; all others are 0. */
function defaultFields({ model, relocations, symbols, symbolsAt, ...plan }: Plan): Record<string, number> {
  const { debug } = model;
  return {
    "coff.machine": pe.MACHINE_AMD64,
    "coff.numberOfSections": model.sections.length,
    "coff.pointerToSymbolTable": model.symbols === undefined ? 0 : symbolsAt,
    "coff.numberOfSymbols": symbols.records.length / pe.SYMBOL.size,
    "coff.sizeOfOptionalHeader": plan.tableAt - plan.optionalAt,
    "optional.magic": pe.PE32PLUS_MAGIC,
    "optional.sizeOfHeaders": plan.sizeOfHeaders,
    "optional.fileAlignment": plan.fileAlignment,
    "optional.numberOfRvaAndSizes": 16,
    "directory.relocation.virtualAddress": relocations.rva,
    "directory.relocation.size": relocations.bytes.length,
    "directory.debug.virtualAddress": (debug?.section.rva ?? 0) + Math.min(...(debug?.entries ?? [0])),
    "directory.debug.size": (debug?.entries.size ?? 0) * pe.DEBUG_DIRECTORY_ENTRY.size,
  };
}

/** The headers up to the section table: each field as the text has it, or else by default. */
function writeFields(file: Uint8Array, plan: Plan, defaults: Readonly<Record<string, number>>): void {
  const { fields, lfanew } = plan.model;
  const known = new Set<string>();
  const value = (path: string): bigint | number => {
    known.add(path);
    const text = fields.get(path);
    if (text === undefined) return defaults[path] ?? 0;
    return /^(0x[0-9a-f]+|\d+)$/i.test(text) ? BigInt(text) : plan.resolve(text);
  };
  const write = <R extends readonly Row[]>(what: Structure<R>, prefix: string, at: number): void => {
    const entries = what.rows.map(([field, width]) => {
      const found = value(`${prefix}.${field}`);
      return [field, width === 8 ? BigInt(found) : Number(found)];
    });
    writeStructure(what, Object.fromEntries(entries), file, at);
  };
  write(pe.COFF_HEADER, "coff", lfanew + pe.SIGNATURE_SIZE);
  write(pe.OPTIONAL_HEADER, "optional", plan.optionalAt);
  const names = Object.fromEntries(Object.entries(DIRECTORY_NAMES).map(([name, index]) => [index, name]));
  for (let i = 0; i < plan.directories; i++) {
    const at = plan.optionalAt + pe.OPTIONAL_HEADER.size + i * pe.DATA_DIRECTORY.size;
    write(pe.DATA_DIRECTORY, `directory.${names[i] ?? i}`, at);
  }
  for (const path of fields.keys()) if (!known.has(path)) fail(`nothing is called '${path}'`);
}

function writeSectionTable(file: Uint8Array, { model, tableAt, symbols }: Plan): void {
  tableOrder(model).forEach((section, i) => {
    const { ptr, raw, vsize } = model.placed.get(section) ?? fail("not placed");
    const at = tableAt + i * pe.SECTION_HEADER.size;
    const header = {
      ...readStructure(pe.SECTION_HEADER, new Uint8Array(pe.SECTION_HEADER.size), 0),
      name: symbols.nameOf(section),
      virtualSize: vsize,
      virtualAddress: section.rva,
      sizeOfRawData: raw,
      pointerToRawData: ptr,
      characteristics: section.flags,
      ...section.lies,
    };
    writeStructure(pe.SECTION_HEADER, header, file, at);
  });
}

/** Numbers, labels, section names (their RVA; "NAME:end" for RVA + VirtualSize), reloc:start and reloc:end, added and subtracted. */
function resolveExpression(
  model: Model,
  expression: string,
  vsize: (s: SampleSection) => number,
  [start, size]: [number, number],
): number {
  const valueOf = (term: string): number => {
    const label = model.labels.get(term);
    if (label !== undefined) return label.section.rva + label.at;
    if (term === "reloc:start") return start;
    if (term === "reloc:end") return start + size;
    const section = model.sections.find((s) => s.name === term.replace(/:end$/, ""));
    if (section === undefined) return number(term);
    return section.rva + (term.endsWith(":end") ? vsize(section) : 0);
  };
  let sum = 0;
  for (const [, sign, term = ""] of expression.matchAll(/([+-]?)([^+-]+)/g))
    sum += sign === "-" ? -valueOf(term) : valueOf(term);
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
    const bytes = new Uint8Array(pe.SYMBOL.size);
    const record = {
      ...readStructure(pe.SYMBOL, bytes, 0),
      name: short.toString("latin1"),
      value,
      sectionNumber,
      storageClass,
      numberOfAuxSymbols: aux,
    };
    writeStructure(pe.SYMBOL, record, bytes, 0);
    records.push(...bytes, ...new Uint8Array(aux * pe.SYMBOL.size).fill(0xaa));
  }
  const table = Buffer.from(strings, "latin1");
  table.writeUInt32LE(table.length, 0);
  return { records: Uint8Array.from(records), strings: table, nameOf: (s) => names.get(s) ?? s.name };
}

/** The definition, word by word, on purpose not pe/checksum.ts's: 16-bit one's complement sum with the field as 0, plus the length. */
export function checkSumOf(bytes: Uint8Array, optionalAt: number): number {
  const skip = optionalAt + offsetOf(pe.OPTIONAL_HEADER, "checkSum");
  let sum = 0;
  const byte = (i: number): number => (i >= skip && i < skip + 4 ? 0 : (bytes[i] ?? 0));
  for (let i = 0; i < bytes.length; i += 2) {
    sum += byte(i) + 256 * byte(i + 1);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum + bytes.length;
}
