// SPDX-License-Identifier: GPL-2.0-only
// What a picture of an image shows: everything that has a place in the file, in memory or in both, what Multiboot loaders
// copy, and what is missing for them. No coordinates here; show/picture-scale.ts has them.

import { attempt } from "../cli/attempt.ts";
import { ImageError } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { loadMultiboot1, loadMultiboot2, type MultibootLoad } from "../judge/loads.ts";
import { parseImage } from "../pe/parse.ts";
import { loadSpan, whyNotLinear, type LoadSpan } from "../xen/span.ts";
import { byAddress, hasFlags, sectionEnd, type Image, type Section } from "../pe/image.ts";
import { DIRECTORY_CERTIFICATE, MEM_DISCARDABLE } from "../tables/pe.ts";
import { findMultiboot1, findMultiboot2 } from "../xen/multiboot.ts";
import { directory } from "./inspect-boot.ts";
import { permissions, sectionFlagNames } from "./inspect-names.ts";
import { hasBssFlag, sectionKind, type Kind } from "./picture-kinds.ts";

/** Half-open, in bytes: file offsets or RVAs. */
export interface Extent {
  readonly start: number;
  readonly end: number;
}

const extent = (start: number, size: number): Extent => ({ start, end: start + size });

/** One thing that is drawn: headers, a section, several debug sections, the symbol table … */
export interface Part {
  readonly name: string;
  readonly kind: Kind;
  /** Its raw data; undefined where the file has nothing of it. */
  readonly file: Extent | undefined;
  /** What it is in memory; undefined for what no loader loads. */
  readonly memory: Extent | undefined;
  /** Bytes up to the last one that is not zero: what follows is filler, drawn as such. */
  readonly content: number;
  /** For hovering: a line each. */
  readonly details: readonly string[];
}

/** A line below the picture. */
export interface Remark {
  readonly text: string;
  /** Whether it is in the way of a loader. */
  readonly bad: boolean;
}

export type PictureFacts = Readonly<ReturnType<typeof pictureFacts>>;

/** What a Multiboot loader does by the image's header. */
export type Coverage = PictureFacts["coverage"][number];

/** A picture with more in it shows nothing: a Xen has about 20 sections. */
const MOST_PARTS = 48;
/** Padding to a linker's or signer's alignment is not worth a line. */
const LEAST_STRAY = 16;
/** Less than a page between debug sections is rounding. */
const LEAST_GAP = 4096;

/**
 * Everything that a picture shows of an image.
 * @param bytes the file
 * @param title what stands above it: the file's name
 * @throws ImageError when it is no PE image, or has more sections than a picture can show
 */
export function pictureFacts(bytes: Uint8Array, title: string) {
  const image = parseImage(bytes);
  const { value: span, reason: whyNoSpan = "" } = attempt("draw", () => loadSpan(image, "draw"));
  const parts = partsOf(image);
  if (parts.length > MOST_PARTS)
    throw new ImageError(`Cannot draw: there are ${parts.length} parts, needed at most ${MOST_PARTS}`);
  const loads = [loaded("Multiboot2", () => loadMultiboot2(bytes)), loaded("Multiboot1", () => loadMultiboot1(bytes))];
  const holes = span === undefined ? [] : holesOf(span);
  const strays = straysOf(image, parts);
  const headers = [
    { name: "MB1", at: findMultiboot1(bytes) },
    { name: "MB2", at: findMultiboot2(bytes) },
  ];
  return {
    title,
    /** Bytes of the file. */
    size: bytes.length,
    parts,
    /** Undefined for an image that Multiboot could not load whatever its headers said. */
    span,
    coverage: loads.map(({ coverage }) => coverage).filter((c) => c !== undefined),
    /** File offsets of the Multiboot headers that loaders find, with load addresses or without. */
    headers: headers.flatMap(({ name, at }) => (at === undefined ? [] : [{ name, at }])),
    /** Memory of the load span that no byte of the file stands for. RVAs. */
    holes,
    /** Bytes of the file that belong to nothing. File offsets. */
    strays,
    remarks: [
      span === undefined ? bad(`no load span: ${whyNoSpan}`) : linearRemark(image, span),
      ...holesRemark(holes),
      ...strays.map((s) => bad(`bytes that belong to nothing at offset ${range(s.start, s.end)}`)),
      ...loads.map(({ remark }) => remark),
      tableRemark(image, span),
    ],
  };
}

const bad = (text: string): Remark => ({ text, bad: true });
const good = (text: string): Remark => ({ text, bad: false });

/** 1165792 as "1 165 792". */
export function count(value: number): string {
  return String(value).replace(/\B(?=(\d{3})+$)/g, " ");
}

// ---- what there is

function partsOf(image: Image): Part[] {
  const headers = extent(0, image.optional.sizeOfHeaders);
  return [
    {
      name: "headers",
      kind: "headers",
      file: headers,
      memory: headers,
      content: headers.end,
      details: ["PE headers and section table", `SizeOfHeaders ${hex(headers.end)}`],
    },
    ...groupsOf(byAddress(image.sections)).map(groupPart),
    ...tableParts(image),
  ];
}

/** Debug sections that lie behind each other, in memory and in the file, are one part. */
function groupsOf(sections: readonly Section[]): Section[][] {
  const groups: Section[][] = [];
  for (const section of sections) {
    const group = groups.at(-1);
    const last = group?.at(-1);
    if (group !== undefined && last !== undefined && isDebugBehind(last, section)) group.push(section);
    else groups.push([section]);
  }
  return groups;
}

function isDebugBehind(before: Section, section: Section): boolean {
  if (sectionKind(before) !== "debug" || sectionKind(section) !== "debug" || section.header.sizeOfRawData === 0)
    return false;
  const inFile = section.header.pointerToRawData - (before.header.pointerToRawData + before.header.sizeOfRawData);
  const inMemory = section.header.virtualAddress - sectionEnd(before);
  return inFile >= 0 && inFile < LEAST_GAP && inMemory < LEAST_GAP;
}

function sectionPart(section: Section): Part {
  const { header, name, data } = section;
  const file = header.sizeOfRawData === 0 ? undefined : extent(header.pointerToRawData, header.sizeOfRawData);
  const memory = extent(header.virtualAddress, header.virtualSize);
  const inFile = file === undefined ? "not in the file" : `file ${range(file.start, file.end)}`;
  return {
    name: name === "" ? "(no name)" : name,
    kind: sectionKind(section),
    file,
    memory: header.virtualSize === 0 ? undefined : memory,
    content: hasBssFlag(section) ? 0 : data.findLastIndex((byte) => byte !== 0) + 1,
    details: [
      `${inFile}, memory ${range(memory.start, memory.end)}`,
      `${count(header.sizeOfRawData)} bytes in the file, ${count(header.virtualSize)} in memory`,
      `${permissions(section)} ${sectionFlagNames(section).join(" ")}`,
    ],
  };
}

function groupPart(group: readonly Section[]): Part {
  const parts = group.map(sectionPart);
  const [only] = parts;
  if (only !== undefined && parts.length === 1) return only;
  const file = hull(parts.map((part) => part.file));
  return {
    name: `DWARF, ${group.length} sections`,
    kind: "debug",
    file,
    memory: hull(parts.map((part) => part.memory)),
    content: file === undefined ? 0 : file.end - file.start,
    details: parts.map(({ name, details }) => `${name}: ${details[0]}`),
  };
}

function hull(extents: readonly (Extent | undefined)[]): Extent | undefined {
  const present = extents.filter((extent) => extent !== undefined);
  if (present.length === 0) return undefined;
  return { start: Math.min(...present.map(({ start }) => start)), end: Math.max(...present.map(({ end }) => end)) };
}

/** What lies behind the sections, and is loaded by nobody. */
function tableParts(image: Image): Part[] {
  const { coff, symbols, strings } = image;
  const table = extent(coff.pointerToSymbolTable, symbols.length + strings.length);
  const records = `COFF symbol table with ${count(coff.numberOfSymbols)} records, string table`;
  const certificates = directory(image, DIRECTORY_CERTIFICATE);
  const signature = extent(certificates.virtualAddress, certificates.size);
  const part = (name: string, file: Extent, ...details: string[]): Part => {
    return { name, kind: "symbols", file, memory: undefined, content: file.end - file.start, details };
  };
  return [
    part("symbols", table, `file ${range(table.start, table.end)}, not loaded`, records),
    part("signature", signature, "the certificate table of a signed image, not loaded"),
  ].filter(({ content }) => content !== 0);
}

// ---- what is missing

/** Between two sections of the span, what lies behind one's raw data, or all of it where the next one's is elsewhere. */
function holesOf({ sections }: LoadSpan): Extent[] {
  return sections.slice(0, -1).flatMap((section, i) => {
    const next = sections[i + 1] ?? section;
    const { virtualAddress, pointerToRawData, sizeOfRawData } = section.header;
    const linear = next.header.pointerToRawData - pointerToRawData === next.header.virtualAddress - virtualAddress;
    const start = linear ? Math.max(sectionEnd(section), virtualAddress + sizeOfRawData) : sectionEnd(section);
    return start < next.header.virtualAddress ? [{ start, end: next.header.virtualAddress }] : [];
  });
}

function straysOf(image: Image, parts: readonly Part[]): Extent[] {
  const files = parts.map(({ file }) => file).filter((file) => file !== undefined);
  const used = files.sort((a, b) => a.start - b.start);
  const strays: Extent[] = [];
  let end = 0;
  for (const extent of [...used, { start: image.fileSize, end: image.fileSize }]) {
    if (extent.start - end >= LEAST_STRAY) strays.push({ start: end, end: extent.start });
    end = Math.max(end, extent.end);
  }
  return strays;
}

function holesRemark(holes: readonly Extent[]): Remark[] {
  if (holes.length === 0) return [];
  const bytes = holes.reduce((sum, { start, end }) => sum + end - start, 0);
  return [bad(`${holes.length} gaps in the load span, ${count(bytes)} bytes that the file does not have`)];
}

function linearRemark(image: Image, span: LoadSpan): Remark {
  if (whyNotLinear(image, span) !== undefined) return bad("not linear: no one range of the file is the load span");
  return good(`linear: file offset = RVA - ${hex(span.first - image.optional.sizeOfHeaders)} over the load span`);
}

function loaded(name: "Multiboot2" | "Multiboot1", load: () => MultibootLoad) {
  const { value, reason = "" } = attempt("load", load);
  if (value === undefined) {
    const words = reason.replace(/^cannot be loaded: the Multiboot[12] header /, "header ");
    return { remark: bad(`${name}: ${words.replace(/, run emit-header|: run emit-header/, "")}`) };
  }
  const { headerAt, offset, loadAddr, loadEndAddr, bssEndAddr, entryAddr } = value;
  const zeroedTo = bssEndAddr === 0 ? loadEndAddr : bssEndAddr;
  const file = extent(offset, loadEndAddr - loadAddr);
  const what = `header at ${hex(headerAt)}, loads ${range(file.start, file.end)} at ${hex(loadAddr)}`;
  return {
    coverage: { name, headerAt, file, memory: { start: loadAddr, end: loadEndAddr }, zeroedTo },
    remark: good(`${name}: ${what}, zeroes up to ${hex(zeroedTo)}, entry ${hex(entryAddr)}`),
  };
}

/** Xen reads the base relocation table at run time: shim must load it, and it must not come between .bss and its end. */
function tableRemark(image: Image, span: LoadSpan | undefined): Remark {
  const reloc = image.sections.find((s) => s.name === ".reloc");
  if (reloc === undefined) return bad("there is no section .reloc");
  if (hasFlags(reloc, MEM_DISCARDABLE)) return bad(".reloc is discardable: shim does not load it, and Xen reads it");
  const behind = span === undefined || reloc.header.virtualAddress >= span.bssStart;
  const where = behind ? "behind .bss, for EFI only" : "ahead of __init_end, inside the load span";
  return good(`.reloc is ${where}, and shim loads it`);
}
