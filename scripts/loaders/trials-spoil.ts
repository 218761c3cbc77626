// SPDX-License-Identifier: GPL-2.0-only
// For tests: a good image spoilt in one place, by the fields of its structures, whatever stands there then.

import { Buffer } from "node:buffer";
import { parseImage, roundUp, sectionTableEnd } from "../pe/image.ts";
import type { Image, Section } from "../pe/image.ts";
import { readStructure, viewOf, writeStructure } from "../tables/fields.ts";
import type { Fields, Row, Structure } from "../tables/fields.ts";
import {
  MB1_ADDRESS_HEADER,
  MB2_ADDRESS_TAG,
  MB2_ENTRY_ADDRESS_TAG,
  MB2_HEADER,
  MB2_TAG,
  MB2_TAG_NAMES,
} from "../tables/multiboot.ts";
import { COFF_HEADER, DATA_DIRECTORY, OPTIONAL_HEADER, SECTION_HEADER, SIGNATURE_SIZE } from "../tables/pe.ts";
import type { SectionHeader } from "../tables/pe.ts";
import { findMultiboot1, findMultiboot2, multibootChecksum } from "../xen/multiboot.ts";

/** A file and its structures, edited where they stand. */
export class Spoilt {
  bytes: Uint8Array;
  readonly image: Image;
  readonly #coff: number;
  readonly #optional: number;
  #added = 0;

  constructor(good: Uint8Array) {
    this.bytes = good.slice();
    this.image = parseImage(good);
    this.#coff = this.image.lfanew + SIGNATURE_SIZE;
    this.#optional = this.#coff + COFF_HEADER.size;
  }

  set<Rows extends readonly Row[]>(structure: Structure<Rows>, at: number, fields: Partial<Fields<Rows>>): this {
    writeStructure(structure, { ...readStructure(structure, this.bytes, at), ...fields }, this.bytes, at);
    return this;
  }
  coff(fields: Partial<Fields<typeof COFF_HEADER.rows>>): this {
    return this.set(COFF_HEADER, this.#coff, fields);
  }
  optional(fields: Partial<Fields<typeof OPTIONAL_HEADER.rows>>): this {
    return this.set(OPTIONAL_HEADER, this.#optional, fields);
  }
  directory(index: number, fields: Partial<Fields<typeof DATA_DIRECTORY.rows>>): this {
    return this.set(DATA_DIRECTORY, this.#optional + OPTIONAL_HEADER.size + index * DATA_DIRECTORY.size, fields);
  }
  section(name: string, fields: Partial<Fields<typeof SECTION_HEADER.rows>>): this {
    const { sections } = this.image;
    const index = sections.indexOf(this.named(name));
    return this.set(
      SECTION_HEADER,
      sectionTableEnd(this.image) - (sections.length - index) * SECTION_HEADER.size,
      fields,
    );
  }
  named(name: string): Section {
    return this.image.sections.find((s) => s.name === name) ?? fail(`no section ${name}`);
  }
  /** One more section header behind the others; there is room for it. */
  add(fields: Partial<Fields<typeof SECTION_HEADER.rows>>): this {
    const at = sectionTableEnd(this.image) + this.#added * SECTION_HEADER.size;
    writeStructure(SECTION_HEADER, { ...this.named(".rodata").header, ...fields }, this.bytes, at);
    return this.coff({ numberOfSections: this.image.sections.length + ++this.#added });
  }
  /** Only so many data directories; the section table follows them. */
  directories(count: number): this {
    const table = this.#optional + OPTIONAL_HEADER.size;
    const sizes = [this.image.directories.length, count].map((n) => n * DATA_DIRECTORY.size);
    const [from = 0, to = 0] = sizes.map((size) => table + size);
    this.bytes.copyWithin(to, from, sectionTableEnd(this.image));
    return this.coff({ sizeOfOptionalHeader: OPTIONAL_HEADER.size + to - table }).optional({
      numberOfRvaAndSizes: count,
    });
  }
  /** File offset behind the section table. */
  get tableEnd(): number {
    return sectionTableEnd(this.image);
  }
  word(at: number, value: number): this {
    viewOf(this.bytes).setUint32(at, value, true);
    return this;
  }
  /** The relocation table's file offset. */
  get table(): number {
    return this.named(".reloc").header.pointerToRawData;
  }
  /** An entry of the first relocation block. */
  entry(type: number, index = 0): this {
    const at = this.table + 8 + 2 * index;
    viewOf(this.bytes).setUint16(at, type * 0x1000 + (viewOf(this.bytes).getUint16(at, true) & 0xfff), true);
    return this;
  }
  mb1(fields: Partial<Fields<typeof MB1_ADDRESS_HEADER.rows>>): this {
    const at = headerAt(findMultiboot1(this.image.background));
    this.set(MB1_ADDRESS_HEADER, at, fields);
    const { magic, flags } = readStructure(MB1_ADDRESS_HEADER, this.bytes, at);
    return fields.checksum === undefined
      ? this.set(MB1_ADDRESS_HEADER, at, { checksum: multibootChecksum(magic, flags) })
      : this;
  }
  get mb2At(): number {
    return headerAt(findMultiboot2(this.image.background));
  }
  tagAt(type: number): number {
    let at = this.mb2At + MB2_HEADER.size;
    for (;;) {
      const tag = readStructure(MB2_TAG, this.bytes, at);
      if (tag.type === type) return at;
      if (tag.type === 0) throw new Error(`no tag ${MB2_TAG_NAMES[type]}`);
      at += roundUp(tag.size, 8);
    }
  }
  tag<Rows extends readonly Row[]>(type: number, structure: Structure<Rows>, fields: Partial<Fields<Rows>>): this {
    return this.set(structure, this.tagAt(type), fields);
  }
  /** A tag becomes MODULE_ALIGN, which all loaders know and nobody heeds. */
  dropTag(type: number): this {
    return this.tag(type, MB2_TAG, { type: 6 });
  }
  address(fields: Partial<Fields<typeof MB2_ADDRESS_TAG.rows>>): this {
    return this.tag(2, MB2_ADDRESS_TAG, fields);
  }
  /** The header at another offset, for the same addresses. */
  moveMb1(to: number): this {
    const at = headerAt(findMultiboot1(this.image.background));
    const header = readStructure(MB1_ADDRESS_HEADER, this.bytes, at);
    this.bytes.fill(0, at, at + MB1_ADDRESS_HEADER.size);
    return this.set(MB1_ADDRESS_HEADER, to, { ...header, headerAddr: header.loadAddr + to });
  }
  /** ENTRY_ADDRESS and the EFI64 entry tag, which are the same but for their types, change places. */
  swapEntries(): this {
    const [entry, efi64] = [this.tagAt(3), this.tagAt(9)];
    const [a, b] = [entry, efi64].map((at) => readStructure(MB2_ENTRY_ADDRESS_TAG, this.bytes, at));
    if (a === undefined || b === undefined) throw new Error("no entry tags");
    return this.set(MB2_ENTRY_ADDRESS_TAG, entry, b).set(MB2_ENTRY_ADDRESS_TAG, efi64, a);
  }
  text(at: number, latin1: string): this {
    this.bytes.set(Buffer.from(latin1, "latin1"), at);
    return this;
  }
  get stringsAt(): number {
    return this.image.coff.pointerToSymbolTable + this.image.symbols.length;
  }
  eachDebug(fields: (index: number) => Partial<Fields<typeof SECTION_HEADER.rows>>): this {
    const debug = this.image.sections.filter((s) => s.name.startsWith(".debug_"));
    debug.forEach(({ name }, i) => this.section(name, fields(i)));
    return this;
  }
  append(size: number): this {
    const longer = new Uint8Array(this.bytes.length + size);
    longer.set(this.bytes);
    this.bytes = longer;
    return this;
  }
}

type Pair = readonly [number, number];

/** A section: its RVA and VirtualSize, its offset and SizeOfRawData. */
export function sectionHeader(
  name: string,
  [rva, size]: Pair,
  [offset, raw]: Pair,
  characteristics: number,
): Partial<SectionHeader> {
  return {
    name,
    virtualAddress: rva,
    virtualSize: size,
    pointerToRawData: offset,
    sizeOfRawData: raw,
    characteristics,
  };
}

export type Edit = (s: Spoilt) => Spoilt;

export interface Trial {
  readonly what: string;
  readonly edit: Edit;
  /** All rules that trip and did not before, over all profiles. */
  readonly trips: string;
  /** All that tripped before, and do not any more. */
  readonly cures?: string;
}

function fail(reason: string): never {
  throw new Error(reason);
}

function headerAt(at: number | undefined): number {
  return at ?? fail("no Multiboot header");
}
