// SPDX-License-Identifier: GPL-2.0-only
// Where verify's checks put what they find: one line each, "Cannot verify: where, found, needed", and not without end,
// for a result that is wrong altogether is wrong in millions of places.

import { ImageError } from "../cli/errors.ts";
import { hex } from "../cli/numbers.ts";

/** Lines that are kept; the rest is counted. */
const MOST = 50;

export class Findings {
  readonly #lines = new Set<string>();
  #dropped = 0;

  /** How many there are. */
  get count(): number {
    return this.#lines.size + this.#dropped;
  }

  /** Whether further ones are only counted: then a loop over millions of places need not put them into words. */
  get full(): boolean {
    return this.#lines.size >= MOST;
  }

  /** Counts violations without a line. */
  addUnnamed(count: number): void {
    this.#dropped += count;
  }

  /** One violation. The same words twice are one: two loaders may stumble over the same thing. */
  add(where: string, found: string, needed: string): void {
    this.addLine(`Cannot verify: ${where} is ${found}, needed ${needed}`);
  }

  addLine(line: string): void {
    if (this.#lines.has(line)) return;
    if (this.full) this.#dropped++;
    else this.#lines.add(line);
  }

  /** A violation unless both are the same; numbers are shown in hexadecimal. */
  same(where: string, found: number | bigint | string, needed: number | bigint | string): void {
    if (found !== needed) this.add(where, show(found), show(needed));
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

function show(value: number | bigint | string): string {
  return typeof value === "string" ? value : hex(value);
}
