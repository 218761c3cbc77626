// SPDX-License-Identifier: GPL-2.0-only
// How a golden and what was written instead differ, for people: the two texts, and the first byte.

import { createTwoFilesPatch, diffLines, FILE_HEADERS_ONLY } from "diff";
import { hex } from "../../cli/numbers.ts";
import { parseImage } from "../../pe/parse.ts";
import { checkSumAt, type Image } from "../../pe/image.ts";

/** A changed layout moves every line of some tables; more than this nobody reads. */
const MAX_DIFF_LINES = 100;
const HEX_LINE = 16;

/** A unified diff of two texts. */
export function textDifference(goldenFile: string, actualFile: string, golden: string, actual: string): string {
  const patch = createTwoFilesPatch(goldenFile, actualFile, golden, actual, undefined, undefined, {
    context: 3,
    headerOptions: FILE_HEADERS_ONLY,
  });
  const lines = patch.replace(/\n$/, "").split("\n");
  const more = lines.length - MAX_DIFF_LINES;
  return [...lines.slice(0, MAX_DIFF_LINES), ...(more > 0 ? [`… and ${more} more lines`] : [])].join("\n");
}

/** How much of a text has changed; what, is for the version control to show. */
export function changedLines(before: string, after: string): string {
  const changes = diffLines(before, after);
  const count = (pick: (change: (typeof changes)[number]) => boolean): number =>
    changes.filter(pick).reduce((sum, change) => sum + change.count, 0);
  return `${count((change) => change.removed)} lines of ${before.split("\n").length - 1} changed to ${count((change) => change.added)}`;
}

/**
 * The first byte that differs, with its neighbours and its place in the image, and how many differ. CheckSum differs
 * whenever anything does, so it counts only when nothing else does.
 */
export function byteDifference(golden: Uint8Array, actual: Uint8Array): string {
  const image = imageOf(golden);
  const checkSum = image === undefined ? undefined : checkSumAt(image);
  const shared = Math.min(golden.length, actual.length);
  let [first, inCheckSum]: (number | undefined)[] = [];
  let count = Math.max(golden.length, actual.length) - shared;
  for (let at = 0; at < shared; at++) {
    if (golden[at] === actual[at]) continue;
    count++;
    if (checkSum !== undefined && at >= checkSum && at < checkSum + 4) inCheckSum ??= at;
    else first ??= at;
  }
  const offset = first ?? (golden.length === actual.length ? inCheckSum : undefined) ?? shared;
  const start = offset - (offset % HEX_LINE);
  return [
    `first difference at file offset ${hex(offset)}, ${placeOf(actual, offset) ?? placeOf(golden, offset) ?? "in no image"}; ${count} bytes differ in all`,
    `  golden ${hexLine(golden, start)}`,
    `  actual ${hexLine(actual, start)}`,
    `         ${" ".repeat(`${hex(start)}: `.length + 3 * (offset - start))}^^`,
  ].join("\n");
}

/** Undefined where the bytes are no image. */
function imageOf(bytes: Uint8Array): Image | undefined {
  try {
    return parseImage(bytes);
  } catch {
    return undefined;
  }
}

function hexLine(bytes: Uint8Array, start: number): string {
  const line = Array.from(bytes.subarray(start, start + HEX_LINE));
  const digits = line.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  const characters = line.map((byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : ".")).join("");
  return line.length === 0
    ? `${hex(start)}: (the file ends at ${hex(bytes.length)})`
    : `${hex(start)}: ${digits.padEnd(3 * HEX_LINE)} ${characters}`;
}

/** What a file offset belongs to; undefined where the bytes are no image, or end before it. */
function placeOf(bytes: Uint8Array, offset: number): string | undefined {
  const image = imageOf(bytes);
  if (image === undefined || offset >= bytes.length) return undefined;
  if (offset < image.optional.sizeOfHeaders) return "in the header area";
  const { pointerToSymbolTable } = image.coff;
  for (const { name, header } of image.sections) {
    const inside = offset - header.pointerToRawData;
    if (inside >= 0 && inside < header.sizeOfRawData)
      return `in section ${name}, RVA ${hex(header.virtualAddress + inside)}`;
  }
  return pointerToSymbolTable !== 0 && offset >= pointerToSymbolTable
    ? "in the COFF symbols and strings"
    : "in no section";
}
