// SPDX-License-Identifier: GPL-2.0-only
// On-disk structures as ordered tables of [field, width]: the one way in which this project reads and writes headers.
// Offsets are sums of widths, so a table can be compared line by line with its specification, and a wrong offset cannot
// hide: the sum must be the size that the specification gives. All fields are little-endian, on every host.

import { Buffer } from "node:buffer";

/** Bytes of a field; "char8" is eight bytes kept as they are, one character each (a section name, NULs included). */
export type Width = 1 | 2 | 4 | 8 | "char8";
export type Row = readonly [field: string, width: Width];

/** The values of a structure. Only 64-bit fields are bigint: a JavaScript number cannot hold Xen's ImageBase plus an RVA. */
export type Fields<Rows extends readonly Row[]> = {
  -readonly [R in Rows[number] as R[0]]: R[1] extends 8 ? bigint : R[1] extends "char8" ? string : number;
};

export interface Structure<Rows extends readonly Row[]> {
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  readonly rows: Rows;
}

/**
 * Declares a structure.
 * @param size bytes that the specification gives for the whole
 * @throws Error when the widths do not add up to it
 */
export function structure<const Rows extends readonly Row[]>(name: string, size: number, rows: Rows): Structure<Rows> {
  const sum = rows.reduce((total, [, width]) => total + bytesOf(width), 0);
  if (sum !== size) throw new Error(`${name}: fields add up to ${sum} bytes, specification says ${size}`);
  return { name, size, rows };
}

/** Reads a structure at a byte offset; the caller has checked that it is inside. */
export function readStructure<Rows extends readonly Row[]>(
  { rows }: Structure<Rows>,
  bytes: Uint8Array,
  offset: number,
): Fields<Rows> {
  const view = viewOf(bytes);
  const values: Record<string, number | bigint | string> = {};
  let at = offset;
  for (const [field, width] of rows) {
    values[field] = readField(view, at, width);
    at += bytesOf(width);
  }
  return values as Fields<Rows>;
}

/** Writes a structure at a byte offset: the inverse of {@link readStructure}. */
export function writeStructure<Rows extends readonly Row[]>(
  { rows }: Structure<Rows>,
  values: Fields<Rows>,
  bytes: Uint8Array,
  offset: number,
): void {
  const view = viewOf(bytes);
  let at = offset;
  for (const [field, width] of rows) {
    writeField(view, at, width, (values as Record<string, number | bigint | string>)[field] ?? 0);
    at += bytesOf(width);
  }
}

/** The byte offset of a field inside its structure. */
export function offsetOf<Rows extends readonly Row[]>({ name, rows }: Structure<Rows>, field: Rows[number][0]): number {
  let at = 0;
  for (const [candidate, width] of rows) {
    if (candidate === field) return at;
    at += bytesOf(width);
  }
  throw new Error(`${name} has no field ${field}`);
}

/** A view of exactly these bytes: a small Buffer shares its memory with others. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function bytesOf(width: Width): number {
  return width === "char8" ? 8 : width;
}

function readField(view: DataView, at: number, width: Width): number | bigint | string {
  if (width === "char8") return Buffer.from(view.buffer, view.byteOffset + at, 8).toString("latin1");
  if (width === 8) return view.getBigUint64(at, true);
  if (width === 4) return view.getUint32(at, true);
  return width === 2 ? view.getUint16(at, true) : view.getUint8(at);
}

function writeField(view: DataView, at: number, width: Width, value: number | bigint | string): void {
  if (width === "char8") for (let i = 0; i < 8; i++) view.setUint8(at + i, String(value).charCodeAt(i) || 0);
  else if (width === 8) view.setBigUint64(at, BigInt(value), true);
  else if (width === 4) view.setUint32(at, Number(value), true);
  else if (width === 2) view.setUint16(at, Number(value), true);
  else view.setUint8(at, Number(value));
}
