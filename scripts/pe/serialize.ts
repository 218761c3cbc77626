// SPDX-License-Identifier: GPL-2.0-only
// Image to bytes.

import { imageCheckSum } from "./checksum.ts";
import { byAddress, checkSumAt, directoryAt, optionalHeaderAt, sectionTableAt, type Image } from "./image.ts";
import { renumbered } from "./symbols.ts";
import { viewOf, writeStructure } from "../tables/fields.ts";
import * as pe from "../tables/pe.ts";

/**
 * The image with its section table in RVA order, which every transform writes (signers and loaders that copy raw padding
 * rely on it), and its symbols renumbered along.
 */
export function sortSectionTable(image: Image): Image {
  const sections = byAddress(image.sections);
  if (sections.every((section, i) => section === image.sections[i])) return image;
  const place = new Map(sections.map((section, i) => [section, i + 1]));
  const numbers = image.sections.map((section) => place.get(section) ?? 0);
  return { ...image, sections, symbols: renumbered(image.symbols, numbers) };
}

/** The file that an Image describes, with its CheckSum computed anew. Computes no offset and no size: the Image has them. */
export function serializeImage(image: Image): Uint8Array {
  const bytes = new Uint8Array(image.fileSize);
  bytes.set(image.background.subarray(0, bytes.length));
  writeHeaders(image, bytes);
  for (const { data, header } of image.sections) if (data.length !== 0) bytes.set(data, header.pointerToRawData);
  const symbolsAt = image.coff.pointerToSymbolTable;
  if (symbolsAt !== 0) {
    bytes.set(image.symbols, symbolsAt);
    bytes.set(image.strings, symbolsAt + image.symbols.length);
  }
  const at = checkSumAt(image);
  viewOf(bytes).setUint32(at, imageCheckSum(bytes, at), true);
  return bytes;
}

function writeHeaders(image: Image, bytes: Uint8Array): void {
  viewOf(bytes).setUint32(pe.LFANEW_AT, image.lfanew, true);
  writeStructure(pe.COFF_HEADER, image.coff, bytes, image.lfanew + pe.SIGNATURE_SIZE);
  writeStructure(pe.OPTIONAL_HEADER, image.optional, bytes, optionalHeaderAt(image));
  image.directories.forEach((d, i) => writeStructure(pe.DATA_DIRECTORY, d, bytes, directoryAt(image, i)));
  const tableAt = sectionTableAt(image);
  image.sections.forEach(({ header }, i) => {
    writeStructure(pe.SECTION_HEADER, header, bytes, tableAt + i * pe.SECTION_HEADER.size);
  });
}
