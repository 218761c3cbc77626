// SPDX-License-Identifier: GPL-2.0-only
// What comes before a layout: an image that cannot be laid out anew is refused, and the section table is made what it is
// to be.

import type { Say } from "../cli/cli.ts";
import { failing, type Fail } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { byAddress, isStrayDebug, roundUp, sectionEnd, sectionTableEnd, withHeader } from "../pe/image.ts";
import type { Image, Section } from "../pe/image.ts";
import { requireMovable } from "../pe/movable.ts";
import { sortSectionTable } from "../pe/serialize.ts";
import { PAGE_SIZE } from "../tables/pe.ts";
import { loadSpan, type LoadSpan } from "./span.ts";

/**
 * The image with every section inside SizeOfImage and its section table in RVA order, and its load span.
 * @param action what cannot be done otherwise, for the message
 * @throws ImageError when laying it out anew would lose something, or when it has no load span
 */
export function readyForLayout(input: Image, action: string, say: Say): { image: Image; span: LoadSpan } {
  requireMovable(input, action);
  const image = sortSectionTable(repairStraySections(input, say, failing(action)));
  const span = loadSpan(image, action);
  refuseLosses(input, failing(action));
  return { image, span };
}

/** Object-file leftovers that point into the file, and bytes that belong to nothing: moving on would lose them. */
function refuseLosses({ sections, coff, optional, symbols, strings, background }: Image, fail: Fail): void {
  for (const { name, header } of sections)
    for (const [field, value] of [
      ["PointerToRelocations", header.pointerToRelocations],
      ["PointerToLinenumbers", header.pointerToLinenumbers],
    ] as const)
      if (value !== 0) fail(`section ${name}'s ${field} is ${hex(value)}, needed 0 in an image`);
  const described = sections
    .filter(({ header }) => header.sizeOfRawData !== 0)
    .map(({ header }) => ({ start: header.pointerToRawData, size: header.sizeOfRawData }));
  described.push({ start: coff.pointerToSymbolTable, size: symbols.length + strings.length });
  described.push({ start: Infinity, size: 0 });
  let end = optional.sizeOfHeaders;
  for (const { start, size } of described.sort((a, b) => a.start - b.start)) {
    const stray = end + background.subarray(end, start).findIndex((byte) => byte !== 0);
    if (stray >= end) {
      const [where, needed] =
        start === Infinity ? ["behind everything", `from ${hex(end)} on`] : ["between what", `in ${range(end, start)}`];
      fail(
        `there is ${hex(background[stray] ?? 0)} at offset ${hex(stray)}, ${where} the headers describe, needed zeros ${needed}`,
      );
    }
    end = Math.max(end, start + size);
  }
}

/**
 * Firmware refuses an image with a section beyond SizeOfImage, silently (EDK2 BasePeCoff.c:PeCoffLoaderLoadImage).
 * Debug sections may be anywhere: these are moved to above everything else; SizeOfImage becomes the last one's end.
 */
function repairStraySections(image: Image, say: Say, fail: Fail): Image {
  const { sizeOfImage } = image.optional;
  const stray = byAddress(image.sections).filter((s) => sectionEnd(s) > sizeOfImage);
  const other = stray.find((s) => !isStrayDebug(image, s));
  if (other !== undefined) {
    const where = range(other.header.virtualAddress, sectionEnd(other));
    fail(`section ${other.name} is at ${where}, needed below SizeOfImage ${hex(sizeOfImage)}`);
  }
  if (stray.length === 0) return image;
  const moved = new Map<Section, Section>();
  let end = sizeOfImage;
  for (const section of stray) {
    const virtualAddress = roundUp(end, PAGE_SIZE);
    moved.set(section, withHeader(section, { virtualAddress }));
    end = virtualAddress + section.header.virtualSize;
    const what = `section ${section.name} at RVA ${hex(section.header.virtualAddress)}`;
    const why = `lies beyond SizeOfImage ${hex(sizeOfImage)}, so that firmware refuses the image`;
    say(`warning: ${what} ${why}; moved to ${hex(virtualAddress)}`);
  }
  const sections = image.sections.map((s) => moved.get(s) ?? s);
  return { ...image, optional: { ...image.optional, sizeOfImage: end }, sections };
}

/**
 * The image with these sections, which are in no place of the file yet. Behind a table that became shorter there are
 * zeros; one that became longer takes the place of zeros only. SizeOfImage grows with what is new, and shrinks to what
 * is left when a section that reached up to it has gone: the linker counted it.
 * @throws ImageError when something else than zeros is where new section headers go
 */
export function withSections(image: Image, sections: readonly Section[], action: string): Image {
  const before = sectionTableEnd(image);
  const after = sectionTableEnd({ ...image, sections });
  const { sectionAlignment, sizeOfImage, sizeOfHeaders } = image.optional;
  const headers = image.background.slice(0, sizeOfHeaders);
  const used = headers.subarray(before, after).findIndex((byte) => byte !== 0);
  if (used >= 0) {
    const what = `${hex(headers[before + used] ?? 0)} at offset ${hex(before + used)}, behind the section table`;
    failing(action)(`there is ${what}, needed zeros up to ${hex(after)} for more section headers`);
  }
  if (after < before) headers.fill(0, after, before);
  const gone = image.sections.filter((s) => !sections.includes(s));
  const wasTop = gone.some((s) => roundUp(sectionEnd(s), sectionAlignment) >= roundUp(sizeOfImage, sectionAlignment));
  return {
    ...image,
    coff: { ...image.coff, numberOfSections: sections.length },
    optional: { ...image.optional, sizeOfImage: Math.max(wasTop ? 0 : sizeOfImage, ...sections.map(sectionEnd)) },
    sections,
    background: headers,
  };
}
