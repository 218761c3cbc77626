// SPDX-License-Identifier: GPL-2.0-only
// A file in memory, in one piece or in several. Debug information is most of a large Xen image and no step changes it:
// what a step makes has it where it was read, and it is not copied until it is written. No format knowledge here.

/** The bytes of a file. Any Uint8Array is that, too. */
export interface FileBytes {
  readonly length: number;
  /** In their order; left out where it is all in one. */
  readonly pieces?: readonly Uint8Array[];
  /** The bytes of [start, end), as far as the file goes: a view where one piece holds them all, otherwise a copy. */
  subarray(start: number, end?: number): Uint8Array;
}

/** A file that is what its pieces are, one behind the other. */
export class PiecedFile implements FileBytes {
  readonly length: number;
  readonly pieces: readonly Uint8Array[];
  /** File offsets of the pieces. */
  readonly #starts: readonly number[];

  constructor(pieces: readonly Uint8Array[]) {
    let length = 0;
    this.#starts = pieces.map((piece) => (length += piece.length) - piece.length);
    this.pieces = pieces;
    this.length = length;
  }

  subarray(start: number, end = this.length): Uint8Array {
    const behind = Math.min(Math.max(start, end), this.length);
    const i = this.#starts.findLastIndex((at) => at <= start);
    const [piece, at] = [this.pieces[i], this.#starts[i]];
    if (piece !== undefined && at !== undefined && behind <= at + piece.length)
      return piece.subarray(start - at, behind - at);
    return joined(
      this.pieces.map((each, k) => {
        const from = this.#starts[k] ?? 0;
        return each.subarray(Math.max(0, start - from), Math.max(0, behind - from));
      }),
    );
  }
}

/** The pieces of a file in their order. */
export function piecesOf(file: FileBytes): readonly Uint8Array[] {
  return file.pieces ?? [file.subarray(0)];
}

/** The whole file in one piece. */
export function wholeOf(file: FileBytes): Uint8Array {
  return file.subarray(0);
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
