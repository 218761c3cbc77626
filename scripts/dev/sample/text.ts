// SPDX-License-Identifier: GPL-2.0-only
// Text to PE image, for tests: samples/*.pe.txt and the images of golden/cases. samples/README.md describes the format.
// A test that wants a broken image edits a good one: `from tiny.pe.txt`, then the one line that breaks it.

import { Buffer } from "node:buffer";
import { ImageError } from "../../cli/errors.ts";
import { FLAG_NAMES, build, fail, fileOffset, le, number, sectionOf } from "./build.ts";
import type { Item, Model, SampleSection } from "./build.ts";
import { roundUp } from "../../pe/image.ts";
import { writeStructure } from "../../tables/fields.ts";
import { MB1_MAGIC, MB2_MAGIC, MB2_TAG_NAMES } from "../../tables/multiboot.ts";
import { DEBUG_DIRECTORY_ENTRY, SECTION_HEADER } from "../../tables/pe.ts";

const REGISTERS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split(" ");
const HIGHLOW = 3;
const DIR64 = 10;

/** Gives the text that a `from` line names. */
export type ReadText = (name: string) => string;

/**
 * Makes the image that a text describes.
 * @param read gives the texts that `from` lines name
 * @throws ImageError that names the line which cannot be understood
 */
export function makeSample(text: string, read: ReadText): Uint8Array {
  const model: Model = {
    lfanew: 0x80,
    fields: new Map(),
    sections: [],
    order: undefined,
    current: undefined,
    cursor: 0,
    labels: new Map(),
    symbols: [],
    debug: undefined,
    linear: undefined,
    certificate: undefined,
    edits: [],
    placed: new Map(),
  };
  try {
    readLines(model, text, read);
    return build(model);
  } catch (error) {
    if (!(error instanceof ImageError) || error.message.startsWith("Cannot ")) throw error;
    throw new ImageError(`Cannot make the sample: ${error.message}`);
  }
}

function readLines(model: Model, text: string, read: ReadText): void {
  text.split("\n").forEach((line, i) => {
    const words = line
      .replace(/(^|\s)#.*/, "")
      .trim()
      .split(/\s+/);
    const [verb = "", ...args] = words;
    if (verb === "") return;
    try {
      if (verb === "from") return readLines(model, read(args[0] ?? ""), read);
      const top = STATEMENTS[verb];
      if (top !== undefined) return top(model, args);
      const content = CONTENT[verb];
      if (content === undefined) fail(`unknown word '${verb}'`);
      content(model, args);
    } catch (error) {
      if (error instanceof ImageError && !error.message.startsWith("Cannot "))
        throw new ImageError(`Cannot make the sample: line ${i + 1} '${line.trim()}': ${error.message}`);
      throw error;
    }
  });
}

/** "de ad beef" and "deadbeef" alike. */
export function hexBytes(words: readonly string[]): Uint8Array {
  const text = words.join("");
  if (!/^([0-9a-f]{2})+$/i.test(text)) fail(`'${words.join(" ")}' is not hexadecimal bytes`);
  return Buffer.from(text, "hex");
}

function flags(text: string): number {
  return text.split(",").reduce((sum, word) => sum + (FLAG_NAMES[word] ?? number(word)), 0);
}

function open(model: Model, section: SampleSection, at: number): void {
  model.current = section;
  model.cursor = at;
}

// ---- statements

const STATEMENTS: Readonly<Record<string, (model: Model, args: string[]) => void>> = {
  section(model, [name = "", ...attributes]) {
    const given = new Map(attributes.map((a) => [a.split("=")[0], a.split("=")[1] ?? ""]));
    const optional = (key: string): number | undefined => (given.has(key) ? number(given.get(key)) : undefined);
    const section: SampleSection = {
      name,
      rva: number(given.get("rva")),
      vsize: optional("vsize"),
      raw: optional("raw"),
      ptr: optional("ptr"),
      flags: flags(given.get("flags") ?? "data,read"),
      lies: {},
      size: 0,
      items: [],
      relocs: [],
      tableAt: undefined,
    };
    model.sections.push(section);
    open(model, section, 0);
  },
  in(model, [name = "", at = "0"]) {
    open(model, sectionOf(model, name), number(at));
  },
  set(model, [path = "", ...rest]) {
    const value = rest.join("");
    if (path === "lfanew") model.lfanew = number(value);
    else if (path === "section") setSection(model, rest);
    else model.fields.set(path, value);
  },
  order(model, names) {
    model.order = names;
  },
  linear(model, [headers]) {
    model.linear = number(headers);
  },
  remove(model, [what, name = ""]) {
    if (what === "symbols") model.symbols = undefined;
    else if (what === "symbol") model.symbols = model.symbols?.filter((s) => s.name !== name);
    else if (what === "section") {
      const section = sectionOf(model, name);
      model.sections = model.sections.filter((s) => s !== section);
      model.symbols = model.symbols?.filter((s) => s.section !== section);
      if (model.debug?.section === section) model.debug = undefined;
    } else fail(`cannot remove '${what}'`);
  },
  record(model, [name = "", value, section = "", storageClass, aux = "0"]) {
    const where = model.sections.find((s) => s.name === section) ?? number(section);
    model.symbols?.push({
      name,
      value: number(value),
      section: where,
      storageClass: number(storageClass),
      aux: number(aux),
    });
  },
  certificate(model, [size]) {
    model.certificate = number(size);
  },
  truncate(model, [at]) {
    const end = number(at);
    model.edits.push((bytes) => bytes.slice(0, end));
  },
  append(model, words) {
    model.edits.push((bytes) => Buffer.concat([bytes, hexBytes(words)]));
  },
  patch(model, [at = "", ...words]) {
    const offset = number(at.replace(/:$/, ""));
    model.edits.push((bytes) => {
      bytes.set(hexBytes(words), offset);
      return bytes;
    });
  },
};

function setSection(model: Model, [path = "", value = ""]: string[]): void {
  const dot = path.lastIndexOf(".");
  const section = sectionOf(model, path.slice(0, dot));
  const field = path.slice(dot + 1);
  if (field === "name") section.name = value;
  else if (field === "virtualAddress") section.rva = number(value);
  else if (field === "virtualSize") section.vsize = number(value);
  else if (field === "characteristics") section.flags = flags(value);
  else if (field === "raw" || field === "ptr") section[field] = number(value);
  else if (SECTION_HEADER.rows.some(([name]) => name === field)) section.lies[field] = number(value);
  else fail(`no section header field ${field}`);
}

// ---- content of a section

/** @param fixUp type of a base relocation for these bytes */
function emit(model: Model, size: number, bytes: Item["bytes"], fixUp?: number): void {
  const section = model.current ?? fail("no section to put it in");
  const at = model.cursor;
  // Writing over something else replaces the fix-ups in it too.
  section.relocs = section.relocs.filter((r) => r.at < at || r.at >= at + size);
  if (fixUp !== undefined) section.relocs.push({ at, type: fixUp });
  section.items.push({ at, size, bytes });
  model.cursor += size;
  section.size = Math.max(section.size, model.cursor);
}

function addLabel(model: Model, name: string, storageClass?: number): void {
  const section = model.current ?? fail("no section for the label");
  model.labels.set(name, { section, at: model.cursor });
  if (storageClass !== undefined) model.symbols?.push({ name, value: model.cursor, section, storageClass, aux: 0 });
}

const CONTENT: Readonly<Record<string, (model: Model, args: string[]) => void>> = {
  hex(model, words) {
    const bytes = hexBytes(words);
    emit(model, bytes.length, () => bytes);
  },
  /** `fill 0x90 16`, or `fill 0x90 to 0x100`. */
  fill(model, [byte, count, end]) {
    const size = count === "to" ? number(end) - model.cursor : number(count);
    if (size < 0) fail(`already at ${model.cursor}`);
    emit(model, size, () => new Uint8Array(size).fill(number(byte)));
  },
  at(model, [offset]) {
    model.cursor = number(offset);
  },
  /** Forgets what the section had. */
  clear(model) {
    const section = model.current ?? fail("no section to clear");
    Object.assign(section, { items: [], relocs: [], size: 0, tableAt: undefined });
    model.symbols = model.symbols?.filter((s) => s.section !== section);
    if (model.debug?.section === section) model.debug = undefined;
    model.cursor = 0;
  },
  label: (model, [name = ""]) => addLabel(model, name),
  symbol: (model, [name = ""]) => addLabel(model, name, 2),
  local: (model, [name = ""]) => addLabel(model, name, 3),
  u32: (model, args) => emit(model, 4, (resolve) => le(resolve(args.join("")), 4)),
  highlow: (model, args) => emit(model, 4, (resolve) => le(resolve(args.join("")), 4), HIGHLOW),
  dir64(model, args) {
    const address: Item["bytes"] = (resolve, { fields }) =>
      le(BigInt(fields.get("optional.imageBase") ?? 0) + BigInt(resolve(args.join(""))), 8);
    emit(model, 8, address, DIR64);
  },
  /** A fix-up of this type for what is here already. */
  reloc(model, [type]) {
    model.current?.relocs.push({ at: model.cursor, type: number(type) });
  },
  lea(model, [register = "", ...args]) {
    const index = REGISTERS.indexOf(register);
    if (index < 0) fail(`no register ${register}`);
    const { current, cursor } = model;
    emit(model, 7, (resolve) => [
      index < 8 ? 0x48 : 0x4c,
      0x8d,
      0x05 | ((index % 8) << 3),
      ...le(resolve(args.join("")) - ((current?.rva ?? 0) + cursor + 7), 4),
    ]);
  },
  /** `mb1 FLAGS [WORD…]` */
  mb1(model, [flagsWord, ...words]) {
    const value = number(flagsWord);
    emit(model, 12 + 4 * words.length, (resolve) => [
      ...le(MB1_MAGIC, 4),
      ...le(value, 4),
      ...le(-(MB1_MAGIC + value), 4),
      ...words.flatMap((w) => le(resolve(w), 4)),
    ]);
  },
  /** `mb2 TAG…`; a TAG is NAME[?][=WORD,…], "?" for OPTIONAL; words that are no numbers get a HIGHLOW fix-up. END is added. */
  mb2(model, tags) {
    const start = model.cursor;
    const parts = tags.map((tag) => {
      const [, name = "", optional, words = ""] = /^(\w+)(\?)?(?:=(.*))?$/.exec(tag) ?? fail(`'${tag}' is no tag`);
      const type = MB2_TAG_NAMES.indexOf(name.toUpperCase());
      if (type < 0) fail(`no tag ${name}`);
      return { type, optional: optional === undefined ? 0 : 1, words: words === "" ? [] : words.split(",") };
    });
    const length = parts.reduce((sum, { words }) => sum + roundUp(8 + 4 * words.length, 8), 16 + 8);
    emit(model, 16, () => [...le(MB2_MAGIC, 4), ...le(0, 4), ...le(length, 4), ...le(-(MB2_MAGIC + length), 4)]);
    for (const { type, optional, words } of parts) {
      emit(model, 8, () => [...le(type, 2), ...le(optional, 2), ...le(8 + 4 * words.length, 4)]);
      for (const word of words) (Number.isNaN(Number(word)) ? CONTENT["highlow"] : CONTENT["u32"])?.(model, [word]);
      if (words.length % 2 !== 0) emit(model, 4, () => [0, 0, 0, 0]);
    }
    emit(model, 8, () => le(8n << 32n, 8));
    if (model.cursor !== start + length) fail("tags do not add up");
  },
  /** `debug TYPE LABEL SIZE [POINTER]`: a debug directory entry; the pointer is LABEL's file offset unless given. */
  debug(model, [type, address = "", size, pointer]) {
    const section = model.current ?? fail("no section");
    model.debug ??= { section, entries: new Set() };
    model.debug.entries.add(model.cursor);
    emit(model, DEBUG_DIRECTORY_ENTRY.size, (resolve, m) => {
      const bytes = new Uint8Array(DEBUG_DIRECTORY_ENTRY.size);
      const addressOfRawData = resolve(address);
      const pointerToRawData = pointer === undefined ? fileOffset(m, addressOfRawData) : number(pointer);
      const zero = { characteristics: 0, timeDateStamp: 0, majorVersion: 0, minorVersion: 0 };
      writeStructure(
        DEBUG_DIRECTORY_ENTRY,
        { ...zero, type: number(type), sizeOfData: number(size), addressOfRawData, pointerToRawData },
        bytes,
        0,
      );
      return bytes;
    });
  },
  /** The base relocation table of all fix-ups. */
  relocs(model) {
    if (model.current !== undefined) model.current.tableAt = model.cursor;
  },
  /** `block PAGE TYPE:OFFSET…`: one block of a base relocation table, as it stands. */
  block(model, [page = "", ...entries]) {
    emit(model, 8 + 2 * entries.length, (resolve) => [
      ...le(resolve(page), 4),
      ...le(8 + 2 * entries.length, 4),
      ...entries.flatMap((e) => le(number(e.split(":")[0]) * 0x1000 + number(e.split(":")[1]), 2)),
    ]);
  },
};
