// SPDX-License-Identifier: GPL-2.0-only
// What a picture of an image shows: everything that has a place in the file, in memory or in both, what Multiboot loaders
// copy, and what is missing for them. No coordinates here; show/picture-scale.ts has them.

import { ImageError } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { loadMultiboot1, loadMultiboot2 } from "../judge/loads.ts";
import type { MultibootLoad } from "../judge/loads.ts";
import { byAddress, hasFlags, parseImage, sectionEnd } from "../pe/image.ts";
import type { Image, Section } from "../pe/image.ts";
import { reasonOf } from "./inspect-boot.ts";
import { SECTION_ALIGN_MASK, SECTION_FLAGS, flagNames } from "./inspect-names.ts";
import { hasBssFlag, sectionKind } from "./picture-kinds.ts";
import type { Kind } from "./picture-kinds.ts";
import { DIRECTORY_CERTIFICATE, MEM_DISCARDABLE, MEM_EXECUTE, MEM_READ, MEM_WRITE } from "../tables/pe.ts";
import { findMultiboot1, findMultiboot2 } from "../xen/multiboot.ts";
import { loadSpan, whyNotLinear } from "../xen/xen.ts";
import type { LoadSpan } from "../xen/xen.ts";

/** Half-open, in bytes: file offsets or RVAs. */
export interface Extent {
  readonly start: number;
  readonly end: number;
}

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

/** What a Multiboot loader does by the image's header. */
export interface Coverage {
  readonly name: "Multiboot2" | "Multiboot1";
  readonly headerAt: number;
  readonly file: Extent;
  readonly memory: Extent;
  readonly zeroedTo: number;
}

export interface Finding {
  readonly text: string;
  /** Whether it is in the way of a loader. */
  readonly bad: boolean;
}

export interface PictureFacts {
  readonly title: string;
  /** Bytes of the file. */
  readonly size: number;
  readonly parts: readonly Part[];
  /** Undefined for an image that Multiboot could not load whatever its headers said. */
  readonly span: LoadSpan | undefined;
  readonly coverage: readonly Coverage[];
  /** File offsets of the Multiboot headers that loaders find, with load addresses or without. */
  readonly headers: readonly { readonly name: "MB1" | "MB2"; readonly at: number }[];
  /** Memory of the load span that no byte of the file stands for. RVAs. */
  readonly holes: readonly Extent[];
  /** Bytes of the file that belong to nothing. File offsets. */
  readonly strays: readonly Extent[];
  readonly findings: readonly Finding[];
}

/** A picture with more in it shows nothing: a Xen has about 20 sections. */
const MOST_PARTS = 48;
/** Padding to a linker's or signer's alignment is not worth a line. */
const LEAST_STRAY = 16;

/**
 * Everything that a picture shows of an image.
 * @param bytes the file
 * @param title what stands above it: the file's name
 * @throws ImageError when it is no PE image, or has more sections than a picture can show
 */
export function pictureFacts(bytes: Uint8Array, title: string): PictureFacts {
  const image = parseImage(bytes);
  let span: LoadSpan | undefined;
  const whyNoSpan = reasonOf("draw", () => (span = loadSpan(image, "draw")));
  const parts = partsOf(image);
  if (parts.length > MOST_PARTS)
    throw new ImageError(`Cannot draw: there are ${parts.length} parts, needed at most ${MOST_PARTS}`);
  const loads = [
    attempt("Multiboot2", () => loadMultiboot2(bytes)),
    attempt("Multiboot1", () => loadMultiboot1(bytes)),
  ];
  const holes = span === undefined ? [] : holesOf(span);
  const strays = straysOf(image, parts);
  return {
    title,
    size: bytes.length,
    parts,
    span,
    coverage: loads.flatMap(({ coverage }) => (coverage === undefined ? [] : [coverage])),
    headers: headersOf(bytes),
    holes,
    strays,
    findings: [
      linearFinding(image, span, whyNoSpan),
      ...(holes.length === 0
        ? []
        : [
            {
              text: `${holes.length} gaps in the load span, ${count(lengthOf(holes))} bytes that the file does not have`,
              bad: true,
            },
          ]),
      ...strays.map((s) => ({ text: `bytes that belong to nothing at offset ${range(s.start, s.end)}`, bad: true })),
      ...loads.map(({ finding }) => finding),
      ...tableFinding(image, span),
    ],
  };
}

/** 1165792 as "1 165 792". */
export function count(value: number): string {
  return String(value).replace(/\B(?=(\d{3})+$)/g, " ");
}

function lengthOf(extents: readonly Extent[]): number {
  return extents.reduce((sum, { start, end }) => sum + end - start, 0);
}

// ---- what there is

function partsOf(image: Image): Part[] {
  const headers = { start: 0, end: image.optional.sizeOfHeaders };
  const parts: Part[] = [
    {
      name: "headers",
      kind: "headers",
      file: headers,
      memory: headers,
      content: headers.end,
      details: ["PE headers and section table", `SizeOfHeaders ${hex(headers.end)}`],
    },
  ];
  for (const group of groupsOf(byAddress(image.sections)))
    parts.push(group.length > 1 ? debugPart(group) : sectionPart(group[0] as Section));
  const tables = tablesOf(image);
  return [...parts, ...tables];
}

/** Debug sections that lie behind each other, in memory and in the file, are one part. */
function groupsOf(sections: readonly Section[]): Section[][] {
  const groups: Section[][] = [];
  for (const section of sections) {
    const last = groups.at(-1)?.at(-1);
    const joins =
      last !== undefined &&
      isDebug(last) &&
      isDebug(section) &&
      section.header.sizeOfRawData !== 0 &&
      section.header.pointerToRawData >= last.header.pointerToRawData + last.header.sizeOfRawData &&
      section.header.pointerToRawData < last.header.pointerToRawData + last.header.sizeOfRawData + 4096 &&
      section.header.virtualAddress < sectionEnd(last) + 4096;
    if (joins) groups.at(-1)?.push(section);
    else groups.push([section]);
  }
  return groups;
}

function isDebug(section: Section): boolean {
  return sectionKind(section) === "debug";
}

function sectionPart(section: Section): Part {
  const { header, name } = section;
  const file = fileExtent(section);
  const end = sectionEnd(section);
  return {
    name: name === "" ? "(no name)" : name,
    kind: sectionKind(section),
    file,
    memory: header.virtualSize === 0 ? undefined : { start: header.virtualAddress, end },
    content: hasBssFlag(section) ? 0 : contentLength(section.data),
    details: [
      `${file === undefined ? "not in the file" : `file ${range(file.start, file.end)}`}, memory ${range(header.virtualAddress, end)}`,
      `${count(header.sizeOfRawData)} bytes in the file, ${count(header.virtualSize)} in memory`,
      // Bit operations are safe below MEM_EXECUTE; alignment bits say nothing in an image.
      `${permissions(section)} ${flagNames((header.characteristics % MEM_EXECUTE) & ~SECTION_ALIGN_MASK, SECTION_FLAGS).join(" ")}`,
    ],
  };
}

function permissions(section: Section): string {
  return [MEM_READ, MEM_WRITE, MEM_EXECUTE].map((flag, i) => (hasFlags(section, flag) ? "rwx"[i] : "-")).join("");
}

function debugPart(group: readonly Section[]): Part {
  const parts = group.map(sectionPart);
  const files = parts.flatMap(({ file }) => (file === undefined ? [] : [file]));
  const memory = parts.flatMap((part) => (part.memory === undefined ? [] : [part.memory]));
  const file = hull(files);
  return {
    name: `DWARF, ${group.length} sections`,
    kind: "debug",
    file,
    memory: hull(memory),
    content: file === undefined ? 0 : file.end - file.start,
    details: parts.map(({ name, details }) => `${name}: ${details[0]}`),
  };
}

function hull(extents: readonly Extent[]): Extent | undefined {
  if (extents.length === 0) return undefined;
  return { start: Math.min(...extents.map(({ start }) => start)), end: Math.max(...extents.map(({ end }) => end)) };
}

function fileExtent({ header }: Section): Extent | undefined {
  if (header.sizeOfRawData === 0) return undefined;
  return { start: header.pointerToRawData, end: header.pointerToRawData + header.sizeOfRawData };
}

function contentLength(data: Uint8Array): number {
  let end = data.length;
  while (end > 0 && data[end - 1] === 0) end--;
  return end;
}

function tablesOf(image: Image): Part[] {
  const { pointerToSymbolTable: start, numberOfSymbols } = image.coff;
  const size = image.symbols.length + image.strings.length;
  const certificates = image.directories[DIRECTORY_CERTIFICATE];
  return [
    ...(size === 0
      ? []
      : [
          {
            name: "symbols",
            kind: "symbols" as const,
            file: { start, end: start + size },
            memory: undefined,
            content: size,
            details: [
              `file ${range(start, start + size)}, not loaded`,
              `COFF symbol table with ${count(numberOfSymbols)} records, string table`,
            ],
          },
        ]),
    ...(certificates === undefined || certificates.size === 0
      ? []
      : [
          {
            name: "signature",
            kind: "symbols" as const,
            file: { start: certificates.virtualAddress, end: certificates.virtualAddress + certificates.size },
            memory: undefined,
            content: certificates.size,
            details: ["the certificate table of a signed image, not loaded"],
          },
        ]),
  ];
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
  const used = parts.flatMap(({ file }) => (file === undefined ? [] : [file])).sort((a, b) => a.start - b.start);
  const strays: Extent[] = [];
  let end = 0;
  for (const extent of [...used, { start: image.fileSize, end: image.fileSize }]) {
    if (extent.start - end >= LEAST_STRAY) strays.push({ start: end, end: extent.start });
    end = Math.max(end, extent.end);
  }
  return strays;
}

function linearFinding(image: Image, span: LoadSpan | undefined, whyNoSpan: string | undefined): Finding {
  if (span === undefined) return { text: `no load span: ${whyNoSpan ?? ""}`, bad: true };
  const reason = whyNotLinear(image, span);
  if (reason !== undefined) return { text: "not linear: no one range of the file is the load span", bad: true };
  return {
    text: `linear: file offset = RVA - ${hex(span.first - image.optional.sizeOfHeaders)} over the load span`,
    bad: false,
  };
}

function headersOf(bytes: Uint8Array): PictureFacts["headers"] {
  const found = [
    { name: "MB1" as const, at: findMultiboot1(bytes) },
    { name: "MB2" as const, at: findMultiboot2(bytes) },
  ];
  return found.flatMap(({ name, at }) => (at === undefined ? [] : [{ name, at }]));
}

function attempt(name: Coverage["name"], load: () => MultibootLoad): { coverage?: Coverage; finding: Finding } {
  let done: MultibootLoad | undefined;
  const reason = reasonOf("load", () => (done = load()));
  if (done === undefined) {
    const words = (reason ?? "")
      .replace(/^cannot be loaded: the Multiboot[12] header /, "header ")
      .replace(/, run emit-header|: run emit-header/, "");
    return { finding: { text: `${name}: ${words}`, bad: true } };
  }
  const { headerAt, offset, loadAddr, loadEndAddr, bssEndAddr, entryAddr } = done;
  const zeroedTo = bssEndAddr === 0 ? loadEndAddr : bssEndAddr;
  const file = { start: offset, end: offset + loadEndAddr - loadAddr };
  return {
    coverage: { name, headerAt, file, memory: { start: loadAddr, end: loadEndAddr }, zeroedTo },
    finding: {
      text: `${name}: header at ${hex(headerAt)}, loads ${range(file.start, file.end)} at ${hex(loadAddr)}, zeroes up to ${hex(zeroedTo)}, entry ${hex(entryAddr)}`,
      bad: false,
    },
  };
}

/** Xen reads the base relocation table at run time: shim must load it, and it must not come between .bss and its end. */
function tableFinding(image: Image, span: LoadSpan | undefined): Finding[] {
  const reloc = image.sections.find((s) => s.name === ".reloc");
  if (reloc === undefined) return [{ text: "there is no section .reloc", bad: true }];
  if (hasFlags(reloc, MEM_DISCARDABLE))
    return [{ text: ".reloc is discardable: shim does not load it, and Xen reads it", bad: true }];
  const where =
    span === undefined || reloc.header.virtualAddress >= span.bssStart
      ? "behind .bss, for EFI only"
      : "ahead of __init_end, inside the load span";
  return [{ text: `.reloc is ${where}, and shim loads it`, bad: false }];
}
