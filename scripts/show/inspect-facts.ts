// SPDX-License-Identifier: GPL-2.0-only
// Everything inspect knows about an image, as one plain object: what JSON can hold and nothing else. 64-bit fields are
// strings of hexadecimal digits. The text is made from these facts, so the two cannot disagree.

import { createHash } from "node:crypto";
import { hex } from "../cli/numbers.ts";
import { imageCheckSum } from "../pe/checksum.ts";
import { checkSections, hasFlags, parseImage, sectionAt, sectionEnd } from "../pe/image.ts";
import type { Image, Section } from "../pe/image.ts";
import {
  beyondImage,
  debugFacts,
  multiboot1Facts,
  multiboot2Facts,
  reasonOf,
  relocationFacts,
  symbolFacts,
} from "./inspect-boot.ts";
import type { DebugFacts, Multiboot1Facts, Multiboot2Facts, RelocationFacts, SymbolFacts } from "./inspect-boot.ts";
import {
  DIRECTORY_NAMES,
  DLL_FLAGS,
  FILE_FLAGS,
  SECTION_ALIGN_MASK,
  SECTION_ALIGN_SHIFT,
  SECTION_FLAGS,
  SUBSYSTEMS,
  flagNames,
} from "./inspect-names.ts";
import { offsetOf } from "../tables/fields.ts";
import {
  COFF_HEADER,
  DIRECTORY_CERTIFICATE,
  MEM_EXECUTE,
  MEM_READ,
  MEM_WRITE,
  OPTIONAL_HEADER,
  SIGNATURE_SIZE,
} from "../tables/pe.ts";
import { loadSpan, whyNotLinear } from "../xen/xen.ts";

/** A structure's fields as JSON can hold them. */
export type Plain = Record<string, number | string>;

export interface SectionFacts {
  name: string;
  /** As stored: "/4" where `name` comes from the string table. */
  storedName: string;
  header: Plain;
  /** Half-open; null where there is no raw data. */
  file: { start: number; end: number } | null;
  memory: { start: number; end: number };
  /** RVA - file offset: the same for every section of the load span in a linear file. */
  delta: number | null;
  rwx: string;
  flagNames: string[];
}

export interface DirectoryFacts {
  name: string;
  virtualAddress: number;
  size: number;
  section: string | null;
}

/** A part of the file; the parts cover all of it. */
export interface RegionFacts {
  what: string;
  start: number;
  end: number;
  sha256: string;
  /** Only asked for what belongs to nobody. */
  zeros: boolean;
  /** Begins before another part has ended. */
  overlaps: boolean;
}

export interface Facts {
  /** Counts up when a field changes its meaning or goes. */
  format: 1;
  file: { size: number; sha256: string };
  checkSum: { found: number; computed: number; right: boolean };
  signed: boolean;
  /** Why no transform takes the image; null when nothing is wrong with its sections. */
  problems: string[];
  loadSpan: {
    first: number;
    dataEnd: number;
    bssStart: number;
    bssEnd: number;
    delta: number | null;
    notLinear: string | null;
  } | null;
  /** Why there is no load span. */
  noLoadSpan: string | null;
  lfanew: number;
  coff: Plain;
  coffFlagNames: string[];
  optional: Plain;
  subsystemName: string;
  dllFlagNames: string[];
  directories: DirectoryFacts[];
  sections: SectionFacts[];
  relocations: RelocationFacts;
  multiboot1: Multiboot1Facts | null;
  multiboot2: Multiboot2Facts | null;
  debug: DebugFacts[];
  symbols: SymbolFacts[];
  regions: RegionFacts[];
}

/**
 * Looks at an image.
 * @throws ImageError when it is not a PE32+ image for x86-64, or points outside the file; anything else is shown
 */
export function inspectFacts(bytes: Uint8Array): Facts {
  const image = parseImage(bytes);
  const { coff, optional } = image;
  const certificate = certificateRange(image);
  return {
    format: 1,
    file: { size: bytes.length, sha256: sha256(bytes) },
    checkSum: checkSumFacts(image, bytes),
    signed: certificate !== undefined,
    problems: problems(image),
    ...loadSpanFacts(image),
    lfanew: image.lfanew,
    coff: plain(coff),
    coffFlagNames: flagNames(coff.characteristics, FILE_FLAGS),
    optional: plain(optional),
    subsystemName: SUBSYSTEMS[optional.subsystem] ?? "unknown",
    dllFlagNames: flagNames(optional.dllCharacteristics, DLL_FLAGS),
    directories: directoryFacts(image),
    sections: image.sections.map(sectionFacts),
    relocations: relocationFacts(image),
    multiboot1: multiboot1Facts(image, bytes),
    multiboot2: multiboot2Facts(image, bytes),
    debug: debugFacts(image),
    symbols: symbolFacts(image),
    regions: regionFacts(image, bytes, certificate),
  };
}

export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

function plain(fields: Record<string, number | bigint | string>): Plain {
  return Object.fromEntries(
    Object.entries(fields).map(([name, value]) => [name, typeof value === "bigint" ? hex(value) : value]),
  );
}

function checkSumFacts(image: Image, bytes: Uint8Array): Facts["checkSum"] {
  const at = image.lfanew + SIGNATURE_SIZE + COFF_HEADER.size + offsetOf(OPTIONAL_HEADER, "checkSum");
  const found = image.optional.checkSum;
  const computed = imageCheckSum(bytes, at);
  return { found, computed, right: found === computed };
}

function problems(image: Image): string[] {
  const sections = reasonOf("transform", () => checkSections(image, "transform"));
  return [...(sections === undefined ? [] : [sections]), ...beyondImage(image)];
}

function loadSpanFacts(image: Image): Pick<Facts, "loadSpan" | "noLoadSpan"> {
  let facts: Facts["loadSpan"] = null;
  const action = "find the load span";
  const reason = reasonOf(action, () => {
    const span = loadSpan(image, action);
    const { first, dataEnd, bssStart, bssEnd } = span;
    const notLinear = whyNotLinear(image, span) ?? null;
    facts = {
      first,
      dataEnd,
      bssStart,
      bssEnd,
      delta: notLinear === null ? first - image.optional.sizeOfHeaders : null,
      notLinear,
    };
  });
  return { loadSpan: facts, noLoadSpan: reason ?? null };
}

function directoryFacts(image: Image): DirectoryFacts[] {
  return image.directories.map(({ virtualAddress, size }, i) => {
    // The certificate table's address is a file offset.
    const section = i === DIRECTORY_CERTIFICATE || size === 0 ? undefined : sectionAt(image, virtualAddress);
    return { name: DIRECTORY_NAMES[i] ?? `Directory ${i}`, virtualAddress, size, section: section?.name ?? null };
  });
}

function sectionFacts(section: Section): SectionFacts {
  const { name, header } = section;
  const { virtualAddress, pointerToRawData, sizeOfRawData } = header;
  const empty = sizeOfRawData === 0;
  return {
    name,
    storedName: header.name.replace(/\0.*$/s, ""),
    header: plain(header),
    file: empty ? null : { start: pointerToRawData, end: pointerToRawData + sizeOfRawData },
    memory: { start: virtualAddress, end: sectionEnd(section) },
    delta: empty ? null : virtualAddress - pointerToRawData,
    rwx:
      (hasFlags(section, MEM_READ) ? "r" : "-") +
      (hasFlags(section, MEM_WRITE) ? "w" : "-") +
      (hasFlags(section, MEM_EXECUTE) ? "x" : "-"),
    flagNames: sectionFlagNames(header.characteristics),
  };
}

function sectionFlagNames(characteristics: number): string[] {
  // As bigint: bit operations on numbers are signed, and MEM_WRITE is bit 31.
  const access = BigInt(MEM_READ) | BigInt(MEM_WRITE) | BigInt(MEM_EXECUTE);
  const align = (characteristics & SECTION_ALIGN_MASK) >>> SECTION_ALIGN_SHIFT;
  const rest = Number(BigInt(characteristics) & ~access & ~BigInt(SECTION_ALIGN_MASK));
  return [...flagNames(rest, SECTION_FLAGS), ...(align === 0 ? [] : [`ALIGN_${2 ** (align - 1)}BYTES`])];
}

// ---- the file, part by part

interface Range {
  readonly what: string;
  readonly start: number;
  readonly end: number;
}

function certificateRange(image: Image): Range | undefined {
  const table = image.directories[DIRECTORY_CERTIFICATE];
  if (table === undefined || (table.virtualAddress === 0 && table.size === 0)) return undefined;
  return { what: "certificate table", start: table.virtualAddress, end: table.virtualAddress + table.size };
}

function regionFacts(image: Image, bytes: Uint8Array, certificate: Range | undefined): RegionFacts[] {
  const { pointerToSymbolTable } = image.coff;
  const stringsAt = pointerToSymbolTable + image.symbols.length;
  const owned: Range[] = [
    { what: "headers", start: 0, end: image.optional.sizeOfHeaders },
    ...image.sections.map(({ name, header }) => ({
      what: name,
      start: header.pointerToRawData,
      end: header.pointerToRawData + header.sizeOfRawData,
    })),
    { what: "COFF symbols", start: pointerToSymbolTable, end: stringsAt },
    { what: "COFF strings", start: stringsAt, end: stringsAt + image.strings.length },
    ...(certificate === undefined ? [] : [{ ...certificate, end: Math.min(certificate.end, bytes.length) }]),
  ];
  const facts: RegionFacts[] = [];
  const add = ({ what, start, end }: Range, nobodys: boolean, overlaps: boolean): void => {
    const part = bytes.subarray(start, end);
    facts.push({
      what,
      start,
      end,
      sha256: sha256(part),
      zeros: nobodys && part.every((byte) => byte === 0),
      overlaps,
    });
  };
  let end = 0;
  for (const region of owned.filter((r) => r.end > r.start).sort((a, b) => a.start - b.start || a.end - b.end)) {
    if (region.start > end) add({ what: "gap", start: end, end: region.start }, true, false);
    add(region, false, region.start < end);
    end = Math.max(end, region.end);
  }
  if (end < bytes.length) add({ what: "trailing", start: end, end: bytes.length }, true, false);
  return facts;
}
