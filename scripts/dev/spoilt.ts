// SPDX-License-Identifier: GPL-2.0-only
// For tests: a good image spoilt in one place, whatever stands there then; by the fields of its structures, or by file
// offset. A name says where a field is, and the same with "set" gives it a value.

import { Buffer } from "node:buffer";
import { readPe, roundUp, type Pe, type Section } from "../judge/read.ts";
import { offsetOf, readStructure, viewOf, writeStructure } from "../tables/fields.ts";
import type { Fields, Row, Structure } from "../tables/fields.ts";
import * as mb from "../tables/multiboot.ts";
import * as pe from "../tables/pe.ts";

type Headers = Pick<Pe, "lfanew" | "coff" | "sections">;
type Name<S extends Structure<readonly Row[]>> = Parameters<typeof offsetOf<S["rows"]>>[1];
type Some<S extends Structure<readonly Row[]>> = Partial<Fields<S["rows"]>>;

/** File offset of a field of a structure that starts there. */
export function field<Rows extends readonly Row[]>(
  start: number,
  table: Structure<Rows>,
  name: Rows[number][0],
): number {
  return start + offsetOf(table, name);
}

export function optionalAt({ lfanew }: Headers): number {
  return lfanew + pe.SIGNATURE_SIZE + pe.COFF_HEADER.size;
}

export function directoryAt(image: Headers, index: number): number {
  return optionalAt(image) + pe.OPTIONAL_HEADER.size + index * pe.DATA_DIRECTORY.size;
}

export function sectionNamed<S extends Section>({ sections }: { readonly sections: readonly S[] }, name: string): S {
  return sections.find((s) => s.name === name) ?? fail(`no section ${name}`);
}

/** File offset of a section's header. */
export function sectionAt(image: Headers, name: string): number {
  return tableAt(image) + image.sections.indexOf(sectionNamed(image, name)) * pe.SECTION_HEADER.size;
}

function tableAt(image: Headers): number {
  return optionalAt(image) + image.coff.sizeOfOptionalHeader;
}

/** Offset of a magic in bytes. */
export function magicAt(bytes: Uint8Array, magic: number, from = 0): number {
  const view = viewOf(bytes);
  for (let at = from; at + 4 <= bytes.length; at += 4) if (view.getUint32(at, true) === magic) return at;
  return fail(`no magic ${magic.toString(16)}`);
}

/** A file under the knife. */
export class Spoilt {
  bytes: Uint8Array;
  /** As it was before. */
  readonly image: Pe;
  #added = 0;

  constructor(good: Uint8Array) {
    this.bytes = good.slice();
    this.image = readPe(good);
  }

  get view(): DataView {
    return viewOf(this.bytes);
  }

  // ---- file offsets

  coff(name: Name<typeof pe.COFF_HEADER>): number {
    return field(this.image.lfanew + pe.SIGNATURE_SIZE, pe.COFF_HEADER, name);
  }
  optional(name: Name<typeof pe.OPTIONAL_HEADER>): number {
    return field(optionalAt(this.image), pe.OPTIONAL_HEADER, name);
  }
  section(of: string, name: Name<typeof pe.SECTION_HEADER>): number {
    return field(sectionAt(this.image, of), pe.SECTION_HEADER, name);
  }
  /** Of the first byte behind the section table. */
  get tableEnd(): number {
    return tableAt(this.image) + this.image.sections.length * pe.SECTION_HEADER.size;
  }
  /** Of a section's data. */
  data(of: string): number {
    return sectionNamed(this.image, of).header.pointerToRawData;
  }
  get strings(): number {
    return this.image.coff.pointerToSymbolTable + this.image.symbols.length;
  }
  symbol(index: number, name: Name<typeof pe.SYMBOL>): number {
    return field(this.image.coff.pointerToSymbolTable + index * pe.SYMBOL.size, pe.SYMBOL, name);
  }
  /** In the first debug directory entry. */
  debug(name: Name<typeof pe.DEBUG_DIRECTORY_ENTRY>): number {
    const rva = this.image.directories[pe.DIRECTORY_DEBUG]?.virtualAddress ?? 0;
    const { header } =
      this.image.sections.find(
        (s) => rva >= s.header.virtualAddress && rva < s.header.virtualAddress + s.header.virtualSize,
      ) ?? fail("no debug directory");
    return field(header.pointerToRawData + rva - header.virtualAddress, pe.DEBUG_DIRECTORY_ENTRY, name);
  }
  mb1(name: Name<typeof mb.MB1_ADDRESS_HEADER>): number {
    return field(magicAt(this.bytes, mb.MB1_MAGIC), mb.MB1_ADDRESS_HEADER, name);
  }
  mb2(): number {
    return magicAt(this.bytes, mb.MB2_MAGIC);
  }
  /** Of a Multiboot2 tag. */
  tag(type: number): number {
    for (let at = this.mb2() + mb.MB2_HEADER.size; ;) {
      const tag = readStructure(mb.MB2_TAG, this.bytes, at);
      if (tag.type === type) return at;
      if (tag.type === mb.MB2_END) fail(`no tag ${type}`);
      at += roundUp(tag.size, mb.MB2_ALIGN);
    }
  }

  // ---- changes by offset

  flip(at: number, mask = 0xff): this {
    this.view.setUint8(at, this.view.getUint8(at) ^ mask);
    return this;
  }
  set32(at: number, value: number): this {
    this.view.setUint32(at, value, true);
    return this;
  }
  add32(at: number, value: number): this {
    return this.set32(at, this.view.getUint32(at, true) + value);
  }
  setText(at: number, latin1: string): this {
    this.bytes.set(Buffer.from(latin1, "latin1"), at);
    return this;
  }
  /** What is new is zeros. */
  resize(length: number): this {
    const resized = new Uint8Array(length);
    resized.set(this.bytes.subarray(0, length));
    this.bytes = resized;
    return this;
  }

  // ---- changes by structure

  set<Rows extends readonly Row[]>(structure: Structure<Rows>, at: number, fields: Partial<Fields<Rows>>): this {
    writeStructure(structure, { ...readStructure(structure, this.bytes, at), ...fields }, this.bytes, at);
    return this;
  }
  setCoff(fields: Some<typeof pe.COFF_HEADER>): this {
    return this.set(pe.COFF_HEADER, this.image.lfanew + pe.SIGNATURE_SIZE, fields);
  }
  setOptional(fields: Some<typeof pe.OPTIONAL_HEADER>): this {
    return this.set(pe.OPTIONAL_HEADER, optionalAt(this.image), fields);
  }
  setDirectory(index: number, fields: Some<typeof pe.DATA_DIRECTORY>): this {
    return this.set(pe.DATA_DIRECTORY, directoryAt(this.image, index), fields);
  }
  setSection(of: string, fields: Some<typeof pe.SECTION_HEADER>): this {
    return this.set(pe.SECTION_HEADER, sectionAt(this.image, of), fields);
  }
  setEachDebug(fields: (index: number) => Some<typeof pe.SECTION_HEADER>): this {
    const debug = this.image.sections.filter((s) => s.name.startsWith(".debug_"));
    debug.forEach(({ name }, i) => this.setSection(name, fields(i)));
    return this;
  }
  /** One more section header behind the others; there is room for it. */
  addSection(fields: Some<typeof pe.SECTION_HEADER>): this {
    const at = this.tableEnd + this.#added * pe.SECTION_HEADER.size;
    writeStructure(pe.SECTION_HEADER, { ...sectionNamed(this.image, ".rodata").header, ...fields }, this.bytes, at);
    return this.setCoff({ numberOfSections: this.image.sections.length + ++this.#added });
  }
  /** Only so many data directories; the section table follows them. */
  setDirectoryCount(count: number): this {
    const [from, to] = [tableAt(this.image), directoryAt(this.image, count)];
    this.bytes.copyWithin(to, from, this.tableEnd);
    const sizeOfOptionalHeader = to - optionalAt(this.image);
    return this.setCoff({ sizeOfOptionalHeader }).setOptional({ numberOfRvaAndSizes: count });
  }
  /** An entry of the first relocation block gets another type. */
  setRelocationType(type: number, index = 0): this {
    const at = this.data(".reloc") + 8 + 2 * index;
    this.view.setUint16(at, type * 0x1000 + (this.view.getUint16(at, true) & 0xfff), true);
    return this;
  }
  /** The second relocation block comes again behind the last; the section's padding has room for it. */
  repeatRelocations(): this {
    const { header } = sectionNamed(this.image, ".reloc");
    const { virtualAddress, pointerToRawData: at, virtualSize } = header;
    const second = at + this.view.getUint32(at + 4, true);
    const size = this.view.getUint32(second + 4, true);
    this.bytes.copyWithin(at + virtualSize, second, second + size);
    return this.setSection(".reloc", { virtualSize: virtualSize + size }).setDirectory(5, {
      virtualAddress,
      size: virtualSize + size,
    });
  }
  /** With the checksum that it then needs, unless that is given. */
  setMb1(fields: Some<typeof mb.MB1_ADDRESS_HEADER>): this {
    const at = this.mb1("magic");
    this.set(mb.MB1_ADDRESS_HEADER, at, fields);
    const { magic, flags } = readStructure(mb.MB1_ADDRESS_HEADER, this.bytes, at);
    return fields.checksum === undefined
      ? this.set(mb.MB1_ADDRESS_HEADER, at, { checksum: -(magic + flags) >>> 0 })
      : this;
  }
  /** The header at another offset, for the same addresses. */
  moveMb1(to: number): this {
    const at = this.mb1("magic");
    const header = readStructure(mb.MB1_ADDRESS_HEADER, this.bytes, at);
    this.bytes.fill(0, at, at + mb.MB1_ADDRESS_HEADER.size);
    return this.set(mb.MB1_ADDRESS_HEADER, to, { ...header, headerAddr: header.loadAddr + to });
  }
  setTag<Rows extends readonly Row[]>(type: number, structure: Structure<Rows>, fields: Partial<Fields<Rows>>): this {
    return this.set(structure, this.tag(type), fields);
  }
  setAddressTag(fields: Some<typeof mb.MB2_ADDRESS_TAG>): this {
    return this.setTag(mb.MB2_ADDRESS, mb.MB2_ADDRESS_TAG, fields);
  }
  /** A tag becomes MODULE_ALIGN, which all loaders know and nobody heeds. */
  dropTag(type: number): this {
    return this.setTag(type, mb.MB2_TAG, { type: 6 });
  }
  /** ENTRY_ADDRESS and the EFI64 entry tag, which are the same but for their types, change places. */
  swapEntries(): this {
    const [entry, efi64] = [this.tag(3), this.tag(9)];
    const [a, b] = [entry, efi64].map((at) => readStructure(mb.MB2_ENTRY_ADDRESS_TAG, this.bytes, at));
    if (a === undefined || b === undefined) throw new Error("no entry tags");
    return this.set(mb.MB2_ENTRY_ADDRESS_TAG, entry, b).set(mb.MB2_ENTRY_ADDRESS_TAG, efi64, a);
  }
}

type Pair = readonly [number, number];

/** A section: its RVA and VirtualSize, its offset and SizeOfRawData. */
export function sectionHeader(
  name: string,
  [virtualAddress, virtualSize]: Pair,
  [pointerToRawData, sizeOfRawData]: Pair,
  characteristics: number,
): Partial<pe.SectionHeader> {
  return { name, virtualAddress, virtualSize, pointerToRawData, sizeOfRawData, characteristics };
}

/** One change. */
export type Spoil = (s: Spoilt) => Spoilt;

function fail(reason: string): never {
  throw new Error(reason);
}
