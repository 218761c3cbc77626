// SPDX-License-Identifier: GPL-2.0-only
// SBAT, the table by which shim revokes generations of a component (rhboot/shim, SBAT.md): comma-separated, six fields
// a line. Under Secure Boot shim does not start an image whose table it cannot read.

import { Buffer } from "node:buffer";

/** "SBAT Version" line, of which every table is headed by one. */
const HEAD = ["sbat", "1", "SBAT Version", "sbat", "1"];
/** shim, sbat.c:parse_sbat_section: every line has them all, and none is empty. */
const FIELDS = [
  "component_name",
  "component_generation",
  "vendor_name",
  "vendor_package_name",
  "vendor_version",
  "vendor_url",
];

/**
 * What is wrong with an SBAT table.
 * @returns the first fault, "line 2: …, needed …"; undefined when shim can read it
 */
export function sbatFault(bytes: Uint8Array): string | undefined {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
  if (text.startsWith("\xef\xbb\xbf")) return "line 1 begins with a byte order mark, needed the letters sbat at once";
  const carriageReturn = text.indexOf("\r");
  if (carriageReturn >= 0) return `line ${lineOf(text, carriageReturn)} has a carriage return, needed line feeds only`;
  const odd = text.search(/[^ -~\n]/);
  if (odd >= 0) return `line ${lineOf(text, odd)} has the byte 0x${bytes[odd]?.toString(16)}, needed printable ASCII`;
  if (!text.endsWith("\n")) return "the last line does not end with a line feed, needed one";
  for (const [i, line] of text.slice(0, -1).split("\n").entries()) {
    const fault = lineFault(line, i === 0);
    if (fault !== undefined) return `line ${i + 1} ${fault}`;
  }
  return undefined;
}

/** Whether the table names a component besides itself: what shim could revoke. */
export function hasSbatComponent(bytes: Uint8Array): boolean {
  return bytes.subarray(0, -1).includes(0x0a);
}

function lineFault(line: string, isFirst: boolean): string | undefined {
  const fields = line.split(",");
  const shown = line === "" ? "is empty" : `is '${line.slice(0, 60)}'`;
  if (isFirst && HEAD.some((field, i) => fields[i] !== field)) return `${shown}, needed '${HEAD.join(",")},…'`;
  if (fields.length !== FIELDS.length) return `${shown}, ${fields.length} fields, needed ${FIELDS.length}`;
  const empty = FIELDS.find((_, i) => fields[i] === "");
  if (empty !== undefined) return `${shown}, its ${empty} is empty, needed all of them`;
  if (!/^[1-9][0-9]{0,8}$/.test(fields[1] ?? ""))
    return `${shown}, its component_generation is '${fields[1]}', needed a number from 1`;
  return undefined;
}

function lineOf(text: string, at: number): number {
  return text.slice(0, at).split("\n").length;
}
