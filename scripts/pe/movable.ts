// SPDX-License-Identifier: GPL-2.0-only
// What every transform needs of an image.

import { failing, type Fail } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { byAddress, isStrayDebug, sectionEnd, type Image, type Section } from "./image.ts";
import { isLinuxKernel } from "./parse.ts";
import { ADDRESS_SPACE, DIRECTORY_CERTIFICATE, SIZE_2M } from "../tables/pe.ts";

/**
 * Checks that the image may be Xen, and that its sections can be moved about: nothing signed, nothing overlapping, in memory or in the file.
 * @param action what cannot be done otherwise, for the message ("align sections")
 * @throws ImageError
 */
export function requireMovable(image: Image, action: string): void {
  const fail: Fail = failing(action);
  requireXen(image, fail);
  const { virtualAddress = 0, size = 0 } = image.directories[DIRECTORY_CERTIFICATE] ?? {};
  if (size !== 0 || virtualAddress !== 0) {
    const where = range(virtualAddress, virtualAddress + size);
    const help = "--strip-signature of relocate-reloc and mb-efi drops it";
    fail(`the image is signed, its certificate table is at ${where}, needed an unsigned one; ${help}`);
  }
  const { sizeOfHeaders } = image.optional;
  for (const section of image.sections) requirePlace(section, sizeOfHeaders, fail);
  const tableAt = image.coff.pointerToSymbolTable;
  const table = { what: "the COFF symbol table", start: tableAt, size: image.symbols.length + image.strings.length };
  if (table.size !== 0 && tableAt < sizeOfHeaders)
    fail(`${table.what} is at ${hex(tableAt)}, needed at least SizeOfHeaders ${hex(sizeOfHeaders)}`);
  // An empty section inside another one would cut that one's data short where the layout goes by RVAs.
  const inMemory = image.sections.filter((section) => !isStrayDebug(image, section));
  refuseOverlap(
    inMemory.map(({ name, header }) => ({
      what: `section ${name} in memory`,
      start: header.virtualAddress,
      size: header.virtualSize,
    })),
    fail,
  );
  const inFile = image.sections.map(({ name, header }) => ({
    what: `section ${name} in the file`,
    start: header.pointerToRawData,
    size: header.sizeOfRawData,
  }));
  refuseOverlap(
    [...inFile, table].filter((r) => r.size !== 0),
    fail,
  );
}

/** shim, GRUB, iPXE and Linux, given by mistake, have neither of the two: Xen's `_start` is on a 2 MiB boundary. */
function requireXen(image: Image, fail: Fail): void {
  const first = byAddress(image.sections)[0]?.header.virtualAddress ?? 0;
  if ((first !== 0 && first % SIZE_2M === 0) || image.sections.some(({ name }) => name.startsWith(".init"))) return;
  const what = isLinuxKernel(image.background) ? "a Linux kernel" : "not a Xen image";
  fail(`this is ${what}: no section is called .init, and the first is at RVA ${hex(first)}, needed ${hex(SIZE_2M)}`);
}

function requirePlace(section: Section, sizeOfHeaders: number, fail: Fail): void {
  const { name, header } = section;
  const least = `needed at least SizeOfHeaders ${hex(sizeOfHeaders)}`;
  if (sectionEnd(section) > ADDRESS_SPACE)
    fail(`section ${name} ends at ${hex(sectionEnd(section))}, needed at most ${hex(ADDRESS_SPACE)}`);
  if (header.virtualAddress < sizeOfHeaders) fail(`section ${name} is at RVA ${hex(header.virtualAddress)}, ${least}`);
  if (header.sizeOfRawData === 0) return;
  if (header.virtualSize === 0) {
    const what = `has VirtualSize 0 and ${hex(header.sizeOfRawData)} bytes of raw data`;
    fail(`section ${name} ${what}, which loaders read in different ways`);
  }
  if (header.pointerToRawData < sizeOfHeaders)
    fail(`section ${name}'s raw data is at ${hex(header.pointerToRawData)}, ${least}`);
}

interface Place {
  readonly what: string;
  readonly start: number;
  readonly size: number;
}

function refuseOverlap(places: readonly Place[], fail: Fail): void {
  const sorted = [...places].sort((a, b) => a.start - b.start);
  for (const [i, b] of sorted.entries()) {
    const a = sorted[i - 1];
    if (a === undefined || b.start >= a.start + a.size) continue;
    fail(`${a.what} ${range(a.start, a.start + a.size)} and ${b.what} ${range(b.start, b.start + b.size)} overlap`);
  }
}
