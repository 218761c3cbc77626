// SPDX-License-Identifier: GPL-2.0-only
// The books of an explanation: where every byte of the result comes from, and what was written over it. They are made
// from the original and the rules alone; then the result must be equal to them, byte for byte.

import { Buffer } from "node:buffer";
import { ImageError } from "../cli/errors.ts";
import { hex } from "../cli/numbers.ts";
import { lastUpTo } from "../judge/memory.ts";
import { viewOf } from "../tables/fields.ts";
import { IN_SECTIONS, type Reason } from "./explain-why.ts";

/** A run of the result that comes from one run of the original, or is zeros where the original has nothing. */
export interface Piece {
  readonly at: number;
  readonly size: number;
  /** Offset in the original; undefined for zeros that were added. */
  readonly from: number | undefined;
  readonly what: string;
  readonly why: Reason | undefined;
}

/** What is written over a piece, and why. */
export interface Subject {
  /** What it is part of, ".rodata's header", say: neighbours of one owner and one reason are said in one line. */
  readonly owner: string;
  readonly what: string;
  readonly why: Reason;
}

/** A field, a reference, an entry, a header, in words. */
export interface Words extends Subject {
  readonly was: string;
  readonly is: string;
  /** More lines, where it is more than a field. */
  readonly details?: readonly string[];
}

export interface Change extends Words {
  readonly at: number;
  readonly size: number;
  /** Bytes that are other than before. */
  readonly changed: number;
}

export interface Sums {
  readonly changed: number;
  readonly places: number;
  /** Those of them that are sections' data, which is what verify counts. */
  readonly inSections: { readonly changed: number; readonly places: number };
  /** Unchanged bytes of the original, at another file offset, and at the same. */
  readonly moved: number;
  readonly stayed: number;
  /** Zeros that the original does not have. */
  readonly added: number;
}

/** A run of the original that is not in the result. */
export interface Dropped {
  readonly start: number;
  readonly end: number;
  /** Bytes of it that are not zero. */
  readonly content: number;
}

export class Account {
  readonly original: Uint8Array;
  /** What the result has to be. */
  needed: Uint8Array;
  readonly pieces: Piece[] = [];
  readonly changes: Change[] = [];
  #end = 0;

  /** @param size bytes of the result */
  constructor(original: Uint8Array, size: number) {
    this.original = original;
    this.needed = new Uint8Array(size);
  }

  get end(): number {
    return this.#end;
  }

  /** The next bytes of the result are these of the original. */
  copy(from: number, size: number, what: string, why?: Reason): void {
    if (size <= 0) return;
    const at = this.#end;
    this.#push(size, from, what, why);
    this.needed.set(this.original.subarray(from, from + size), at);
  }

  /** The next bytes of the result, up to an offset, are zeros. */
  zeros(to: number, what: string, why: Reason): void {
    if (to > this.#end) this.#push(to - this.#end, undefined, what, why);
  }

  #push(size: number, from: number | undefined, what: string, why: Reason | undefined): void {
    const last = this.pieces.at(-1);
    if (this.#end + size > this.needed.length || (from !== undefined && from + size > this.original.length))
      throw new ImageError(`the original cannot be laid out: ${what} does not fit`);
    if (last !== undefined && last.what === what && last.from !== undefined && last.from + last.size === from)
      this.pieces[this.pieces.length - 1] = { ...last, size: last.size + size };
    else this.pieces.push({ at: this.#end, size, from, what, why });
    this.#end += size;
  }

  /** Writes over what is there. Nothing is a change that leaves every byte as it was. */
  write(at: number, bytes: Uint8Array, words: Words): void {
    this.#requireInside(at, bytes.length, words.owner);
    const changed = bytes.filter((byte, i) => this.needed[at + i] !== byte).length;
    if (changed === 0) return;
    this.needed.set(bytes, at);
    this.changes.push({ ...words, at, size: bytes.length, changed });
  }

  /** A little-endian field of 2 or 4 bytes. */
  writeNumber(at: number, size: 2 | 4, value: number, subject: Subject, show: (value: number) => string = hex): void {
    if (value < 0 || value >= 2 ** (8 * size))
      throw new ImageError(`the original cannot be changed: ${subject.owner} would have ${subject.what} ${value}`);
    this.#requireInside(at, size, subject.owner);
    const bytes = new Uint8Array(size);
    const [before, after] = [viewOf(this.needed), viewOf(bytes)];
    const old = size === 2 ? before.getUint16(at, true) : before.getUint32(at, true);
    if (old === value) return;
    if (size === 2) after.setUint16(0, value, true);
    else after.setUint32(0, value, true);
    this.write(at, bytes, { ...subject, was: show(old), is: show(value) });
  }

  #requireInside(at: number, size: number, owner: string): void {
    if (at < 0 || at + size > this.needed.length)
      throw new ImageError(`the original cannot be changed: ${owner} is not inside the file`);
  }

  /** The piece that an offset of the result is in. */
  pieceAt(at: number): Piece | undefined {
    const piece = lastUpTo(this.pieces, (p) => p.at, at);
    return piece !== undefined && at < piece.at + piece.size ? piece : undefined;
  }

  sums(): Sums {
    const inSections = this.changes.filter(({ why }) => IN_SECTIONS.has(why));
    const bytes = (changes: readonly Change[]): number => changes.reduce((sum, { changed }) => sum + changed, 0);
    const sizes = { moved: 0, stayed: 0, added: 0 };
    const kind = (piece: Piece | undefined): keyof typeof sizes =>
      piece?.from === undefined ? "added" : piece.from === piece.at ? "stayed" : "moved";
    for (const piece of this.pieces) sizes[kind(piece)] += piece.size;
    for (const change of this.changes) sizes[kind(this.pieceAt(change.at))] -= change.changed;
    return {
      changed: bytes(this.changes),
      places: this.changes.length,
      inSections: { changed: bytes(inSections), places: inSections.length },
      ...sizes,
    };
  }

  /** What of the original was not copied, in its order. */
  dropped(): Dropped[] {
    const copied = this.pieces
      .flatMap(({ from, size }) => (from === undefined ? [] : [{ start: from, end: from + size }]))
      .sort((a, b) => a.start - b.start);
    const dropped: Dropped[] = [];
    let end = 0;
    for (const { start, end: next } of [...copied, { start: this.original.length, end: this.original.length }]) {
      if (start > end)
        dropped.push({
          start: end,
          end: start,
          content: this.original.subarray(end, start).filter((byte) => byte !== 0).length,
        });
      end = Math.max(end, next);
    }
    return dropped;
  }

  /** Where a result is not what it has to be: [start, end, bytes that differ]. */
  unexplained(result: Uint8Array): [start: number, end: number, count: number][] {
    const size = Math.max(this.needed.length, result.length);
    const runs: [number, number, number][] = [];
    const BLOCK = 1 << 12;
    for (let block = 0; block < size; block += BLOCK) {
      const [a, b] = [this.needed.subarray(block, block + BLOCK), result.subarray(block, block + BLOCK)];
      if (Buffer.compare(a, b) === 0) continue;
      for (let i = 0; i < Math.max(a.length, b.length); i++) {
        if (a[i] === b[i]) continue;
        const last = runs.at(-1);
        if (last !== undefined && last[1] === block + i) (last[1]++, last[2]++);
        else runs.push([block + i, block + i + 1, 1]);
      }
    }
    return runs;
  }
}
