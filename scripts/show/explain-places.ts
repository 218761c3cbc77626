// SPDX-License-Identifier: GPL-2.0-only
// What a byte of a result is, in words: the header field, the section and the offset in it, or the table.

import { hex } from "../cli/numbers.ts";
import { spelled } from "../judge/file.ts";
import { optionalAt, tableEnd, tableStart, type Pe } from "../judge/read.ts";
import type { Account } from "./explain-account.ts";
import type { Row } from "../tables/fields.ts";
import { COFF_HEADER, DATA_DIRECTORY, OPTIONAL_HEADER, SECTION_HEADER } from "../tables/pe.ts";

/** @param at file offset in the result */
export function placeName(account: Account, original: Pe, at: number): string {
  if (at >= account.needed.length) return "behind the end of the file that is needed";
  const change = account.changes.find((c) => at >= c.at && at < c.at + c.size);
  if (change !== undefined) return `${change.owner}: ${change.what}`;
  const piece = account.pieceAt(at);
  if (at < tableEnd(original)) return headerName(original, at);
  if (piece === undefined) return "nothing";
  if (piece.what === "the rest of the file") return restName(original, at);
  return piece.from === undefined ? `the zeros behind ${piece.what}` : `${piece.what} + ${hex(at - piece.at)}`;
}

function headerName(original: Pe, at: number): string {
  const optional = optionalAt(original);
  const directories = optional + OPTIONAL_HEADER.size;
  const rows = tableStart(original);
  const coff = optional - COFF_HEADER.size;
  if (at < original.lfanew) return `the MS-DOS header + ${hex(at)}`;
  if (at < coff) return "the PE signature";
  if (at < optional) return `COFF header: ${fieldAt(COFF_HEADER.rows, at - coff)}`;
  if (at < directories) return `optional header: ${fieldAt(OPTIONAL_HEADER.rows, at - optional)}`;
  if (at < rows) {
    const offset = at - directories;
    return `data directory ${Math.floor(offset / DATA_DIRECTORY.size)}: ${fieldAt(DATA_DIRECTORY.rows, offset % DATA_DIRECTORY.size)}`;
  }
  const offset = at - rows;
  return `section header ${Math.floor(offset / SECTION_HEADER.size) + 1}: ${fieldAt(SECTION_HEADER.rows, offset % SECTION_HEADER.size)}`;
}

function fieldAt(rows: readonly Row[], offset: number): string {
  let at = 0;
  for (const [field, width] of rows) {
    at += width === "char8" ? 8 : width;
    if (offset < at) return spelled(field);
  }
  return "nothing";
}

/** Where nothing has moved, places are the original's. */
function restName(original: Pe, at: number): string {
  if (at < original.optional.sizeOfHeaders) return "the header area behind the section table";
  const section = original.sections.find(
    ({ header }) => at >= header.pointerToRawData && at < header.pointerToRawData + header.sizeOfRawData,
  );
  if (section !== undefined) return `${section.name} + ${hex(at - section.header.pointerToRawData)}`;
  const { pointerToSymbolTable } = original.coff;
  if (pointerToSymbolTable !== 0 && at >= pointerToSymbolTable)
    return `COFF symbols and strings + ${hex(at - pointerToSymbolTable)}`;
  return "what belongs to nothing";
}
