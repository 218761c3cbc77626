// SPDX-License-Identifier: GPL-2.0-only
// The load span: what of a Xen image Multiboot loads, and whether the file is linear over it.

import { failing, type Fail } from "../cli/errors.ts";
import { hex, printable, range } from "../cli/numbers.ts";
import { byAddress, hasFlags, roundUp, sectionAt, sectionEnd, type Image, type Section } from "../pe/image.ts";
import { definedSymbols } from "../pe/symbols.ts";
import { CNT_UNINITIALIZED_DATA, MEM_DISCARDABLE, SECTION_HEADER, SIZE_2M } from "../tables/pe.ts";
import { baseRelocations } from "./relocations.ts";

/** Room in the header area for section headers that tools append in place (ukify, objcopy); the linker leaves none. */
export const SPARE_HEADERS = 16 * SECTION_HEADER.size;
/** Room in it for the Multiboot1 header, at its end. */
export const MULTIBOOT1_ROOM = 64;

/** What Xen's own sections are called (xen/arch/x86/xen.lds.S), those that a linker did not place and old GNU ld cut to eight letters included. */
const OWN_NAME = /^\.((text|rodata|data|init|exit|bss|buildid)(\.|$)|altinst|ex_tabl|bug_fra)/;

/** What Multiboot copies from the file, and the memory behind it that it zeroes. All addresses are RVAs. */
export interface LoadSpan {
  /** From the lowest section to the last initialised one below .bss, in RVA order: the first of the image's sections. */
  readonly sections: readonly Section[];
  /** The lowest section's RVA: `_start`, which Xen needs on a 2 MiB boundary (xen/arch/x86/boot/head.S). */
  readonly first: number;
  /** The end of the last of these sections: VirtualAddress + VirtualSize, not rounded. */
  readonly dataEnd: number;
  /** RVA of .bss. */
  readonly bssStart: number;
  /** The end of .bss rounded up to 2 MiB: Xen maps so far, and mkelf32 pads so far. */
  readonly bssEnd: number;
}

/**
 * The load span of an image.
 * @param action what cannot be done without it, for the message
 * @throws ImageError when there is none: no .bss or two, .bss without data below, uninitialised data in between, a
 *   first section off a 2 MiB boundary, or something that Xen needs loaded behind .bss
 */
export function loadSpan(image: Image, action: string): LoadSpan {
  const fail: Fail = failing(action);
  const bss = onlyBss(image, fail);
  const bssStart = bss.header.virtualAddress;
  const below = byAddress(image.sections).filter((s) => s.header.virtualAddress < bssStart);
  const sections = below.slice(0, below.findLastIndex((s) => !hasFlags(s, CNT_UNINITIALIZED_DATA)) + 1);
  const [lowest, last] = [sections[0], sections.at(-1)];
  if (lowest === undefined || last === undefined)
    return fail(`there is no initialised data below .bss at RVA ${hex(bssStart)}`);
  const gap = sections.find((s) => hasFlags(s, CNT_UNINITIALIZED_DATA));
  if (gap !== undefined) {
    const what = `section ${gap.name} at ${range(gap.header.virtualAddress, sectionEnd(gap))} is uninitialised`;
    const behind = `${last.name} at ${hex(last.header.virtualAddress)} behind it is not`;
    fail(`${what}, and ${behind}, needed initialised data only below .bss`);
  }
  const lost = below.slice(sections.length).find((s) => s.data.length !== 0);
  if (lost !== undefined) {
    const what = `section ${lost.name} at RVA ${hex(lost.header.virtualAddress)} is uninitialised`;
    fail(`${what} and has ${hex(lost.data.length)} bytes of data, needed none: Multiboot loaders zero it`);
  }
  const first = lowest.header.virtualAddress;
  if (first % SIZE_2M !== 0)
    fail(`the first section, ${lowest.name}, is at RVA ${hex(first)}, needed a multiple of ${hex(SIZE_2M)}`);
  const span = { sections, first, dataEnd: sectionEnd(last), bssStart, bssEnd: roundUp(sectionEnd(bss), SIZE_2M) };
  requireNothingBehind(image, span, bss, fail);
  refuseOwnBehind(image, bssStart, fail);
  return span;
}

function onlyBss(image: Image, fail: Fail): Section {
  const [bss, second] = image.sections.filter((s) => s.name === ".bss");
  if (bss === undefined) return fail("there is no section .bss, needed one behind all initialised data");
  if (second !== undefined) {
    const where = `${hex(bss.header.virtualAddress)} and ${hex(second.header.virtualAddress)}`;
    fail(`there are two sections .bss, at RVA ${where}, needed one`);
  }
  if (bss.data.length !== 0)
    fail(`section .bss has ${hex(bss.data.length)} bytes of data, needed none: Multiboot loaders zero it`);
  return bss;
}

/**
 * Multiboot loads nothing behind .bss. What is there may be a unified image's .config, .sbat or DWARF, whatever its name
 * or flags; but the entry point and everything that base relocations point into belongs to Xen itself.
 */
function requireNothingBehind(image: Image, { first, dataEnd }: LoadSpan, bss: Section, fail: Fail): void {
  const inside = (rva: number): boolean => rva >= first && rva < dataEnd;
  const refuse = (what: string, rva: number): never => {
    const section = sectionAt(image, rva);
    const holder = section === undefined ? "no section" : `section ${section.name}`;
    const where = `${what} ${hex(rva)}, in ${holder}`;
    const needed = `needed in ${range(first, dataEnd)}`;
    if (rva < first) return fail(`${where}, ${needed}`);
    const behind = `behind .bss at ${range(bss.header.virtualAddress, sectionEnd(bss))}`;
    return fail(`${where}, ${behind}, ${needed}: .bss must be Xen's last section`);
  };
  const entry = image.optional.addressOfEntryPoint;
  if (!inside(entry)) refuse("AddressOfEntryPoint is", entry);
  for (const { target, size } of baseRelocations(image))
    if (size !== 0 && !(inside(target) && inside(target + size - 1))) refuse("a base relocation is for RVA", target);
}

/**
 * A linker puts what its script does not name behind .bss, and Xen's code reads it there: by its name, or by the symbols in
 * it, it is Xen's own. Nothing that is added to an image has symbols; DWARF and what is discardable, Xen does not read.
 */
function refuseOwnBehind(image: Image, bssStart: number, fail: Fail): void {
  for (const section of image.sections) {
    const { name, header, data } = section;
    const isRead = data.length !== 0 && !hasFlags(section, MEM_DISCARDABLE) && !/^\.(reloc$|debug_)/.test(name);
    if (!isRead || header.virtualAddress < bssStart) continue;
    const number = image.sections.indexOf(section);
    // The section's own symbol has its name, which may be cut in the header.
    const symbol = [...definedSymbols(image)].find((s) => s.section === number && !s.name.startsWith(name));
    if (symbol === undefined && !OWN_NAME.test(name)) continue;
    const holds = symbol === undefined ? "" : `, which has the symbol ${printable(symbol.name)},`;
    const needed = `needed below .bss at ${hex(bssStart)}, where Multiboot loads it`;
    fail(`section ${name}${holds} is at RVA ${hex(header.virtualAddress)}, ${needed}`);
  }
}

/**
 * Why the file is not linear; undefined when it is. Linear: for every byte of the load span file offset = RVA - delta with
 * one delta, and no byte between the headers and the end of the last section's raw data belongs to nobody.
 */
export function whyNotLinear(image: Image, span: LoadSpan): string | undefined {
  const delta = span.first - image.optional.sizeOfHeaders;
  for (const [i, { name, header }] of span.sections.entries()) {
    const { virtualAddress, pointerToRawData, sizeOfRawData } = header;
    const start = virtualAddress - delta;
    const end = (span.sections[i + 1]?.header.virtualAddress ?? span.dataEnd) - delta;
    if (sizeOfRawData === 0 && start === end) continue;
    const rawEnd = pointerToRawData + sizeOfRawData;
    if (pointerToRawData !== start || rawEnd < end) {
      const needed = `needed ${range(start, end)} for RVA ${hex(virtualAddress)}`;
      return `section ${name}'s raw data is at ${range(pointerToRawData, rawEnd)}, ${needed}`;
    }
  }
  const raw = image.sections
    .filter((s) => s.header.sizeOfRawData !== 0)
    .sort((a, b) => a.header.pointerToRawData - b.header.pointerToRawData);
  let end = image.optional.sizeOfHeaders;
  for (const { name, header } of raw) {
    const at = header.pointerToRawData;
    if (at !== end)
      return `section ${name}'s raw data is at ${hex(at)}, needed ${hex(end)}, the end of what is before it`;
    end += header.sizeOfRawData;
  }
  return undefined;
}
