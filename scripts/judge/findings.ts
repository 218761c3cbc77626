// SPDX-License-Identifier: GPL-2.0-only
// Where verify's checks put what they find: one line each, "Cannot verify: where, found, needed", and not without end,
// for a result that is wrong altogether is wrong in millions of places.

import { ImageError } from "../cli/errors.ts";
import { hex } from "../cli/numbers.ts";
import { differences } from "./memory.ts";

/** Lines that are kept; the rest is counted. */
const MOST = 50;

type Value = number | bigint | string;

export class Findings {
  readonly #lines = new Set<string>();
  #dropped = 0;

  /** How many there are. */
  get count(): number {
    return this.#lines.size + this.#dropped;
  }

  /** One violation. The same words twice are one: two loaders may stumble over the same thing. */
  add(where: string, found: string, needed: string): void {
    this.addLine(`Cannot verify: ${where} is ${found}, needed ${needed}`);
  }

  addLine(line: string): void {
    if (this.#lines.has(line)) return;
    if (this.#lines.size >= MOST) this.#dropped++;
    else this.#lines.add(line);
  }

  /** A violation unless both are the same; numbers are shown in hexadecimal. */
  same(where: string, found: Value, needed: Value): void {
    if (found !== needed) this.add(where, show(found), show(needed));
  }

  /**
   * A violation unless all bytes are the same: the first difference is named, the rest is one number.
   * @param offset where the bytes are in the file
   */
  sameBytes(what: string, found: Uint8Array, needed: Uint8Array, offset: number): void {
    const [first, ...more] = differences(needed, found, Math.max(needed.length, found.length));
    if (first === undefined) return;
    const [at] = first;
    const elsewhere = more.length === 0 ? "" : `; it differs in ${more.length} more places`;
    this.add(`${what} at offset ${hex(offset + at)}`, hex(found[at] ?? 0), `${hex(needed[at] ?? 0)}${elsewhere}`);
  }

  /**
   * What `work` returns; where it throws an ImageError, that is a violation and nothing is returned.
   * @param who whose error it is, for the message: "the result", say
   */
  attempt<T>(who: string, work: () => T): T | undefined {
    try {
      return work();
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
      this.addLine(`Cannot verify: ${who}: ${error.message}`);
      return undefined;
    }
  }

  lines(): string[] {
    return this.#dropped === 0 ? [...this.#lines] : [...this.#lines, `Cannot verify: and ${this.#dropped} more`];
  }
}

function show(value: Value): string {
  return typeof value === "string" ? value : hex(value);
}
