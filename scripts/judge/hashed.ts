// SPDX-License-Identifier: GPL-2.0-only
// The bytes that an Authenticode signature is about ("Windows Authenticode Portable Executable Signature Format",
// "Calculating the PE Image Hash"), by each way of counting that signers and loaders use.
//
// They all hash the headers without CheckSum and without the certificate table's directory entry, and never the
// certificate table. For what follows there are two rules. By sum (the specification, firmware, shim, sbsign, pesign):
// the sections in the order of their raw pointers, then the rest of the file, which is taken to begin at SizeOfHeaders
// + the sum of all SizeOfRawData. By line (osslsigncode): simply every byte up to the certificate table. They differ
// where the raw data has a gap, which the sum rule leaves out, or overlaps, which it hashes twice.

import { offsetOf } from "../tables/fields.ts";
import { DATA_DIRECTORY, DIRECTORY_CERTIFICATE, OPTIONAL_HEADER } from "../tables/pe.ts";
import { directoryOf, optionalAt, type Pe } from "./read.ts";

/** File offsets, half-open. */
export interface FileRange {
  readonly start: number;
  readonly end: number;
}

/**
 * What is hashed of an image, in this order and with neighbours joined: by the rule that adds up sizes, and simply by line.
 * A signature means one thing to everybody where both are the same.
 */
export function hashedRanges(image: Pe): {
  readonly bySum: readonly FileRange[];
  readonly byLine: readonly FileRange[];
} {
  const exempt = exemptRanges(image);
  const end = certificatesStart(image);
  const sections = image.sections
    .filter(({ header }) => header.sizeOfRawData !== 0)
    .map(({ header }) => ({ start: header.pointerToRawData, end: header.pointerToRawData + header.sizeOfRawData }))
    .sort((a, b) => a.start - b.start);
  const rest = { start: bytesAddedUp(image), end };
  return {
    bySum: join([...without({ start: 0, end: image.optional.sizeOfHeaders }, exempt), ...sections, rest]),
    byLine: join(without({ start: 0, end }, exempt)),
  };
}

/** CheckSum, the certificate table's directory entry and the table itself: what a signer may change afterwards. */
export function exemptRanges(image: Pe): [checkSum: FileRange, entry: FileRange, table: FileRange] {
  const checkSum = optionalAt(image) + offsetOf(OPTIONAL_HEADER, "checkSum");
  const entry = optionalAt(image) + OPTIONAL_HEADER.size + DIRECTORY_CERTIFICATE * DATA_DIRECTORY.size;
  const hasEntry = image.directories.length > DIRECTORY_CERTIFICATE;
  return [
    { start: checkSum, end: checkSum + 4 },
    { start: entry, end: hasEntry ? entry + DATA_DIRECTORY.size : entry },
    { start: certificatesStart(image), end: image.bytes.length },
  ];
}

/** File offset of the certificate table, which is what its size takes from the end of the file: so all of them count. */
export function certificatesStart(image: Pe): number {
  return Math.max(0, image.bytes.length - directoryOf(image, DIRECTORY_CERTIFICATE).size);
}

/** Where the rest of the file begins, as loaders add up what they have hashed. */
export function bytesAddedUp(image: Pe): number {
  return image.sections.reduce((sum, { header }) => sum + header.sizeOfRawData, image.optional.sizeOfHeaders);
}

/** What is left of a range without the exempt places in it. */
function without(whole: FileRange, exempt: readonly FileRange[]): FileRange[] {
  const pieces: FileRange[] = [];
  let { start } = whole;
  for (const hole of exempt) {
    if (hole.start > start) pieces.push({ start, end: Math.min(hole.start, whole.end) });
    start = Math.max(start, hole.end);
  }
  pieces.push({ start, end: whole.end });
  return pieces.filter((p) => p.end > p.start);
}

/** The same bytes in the same order in as few ranges as possible. */
export function join(ranges: readonly FileRange[]): FileRange[] {
  const joined: { start: number; end: number }[] = [];
  for (const { start, end } of ranges) {
    const last = joined.at(-1);
    if (last?.end === start) last.end = Math.max(start, end);
    else if (end > start) joined.push({ start, end });
  }
  return joined;
}
