// SPDX-License-Identifier: GPL-2.0-only
// Random numbers that are the same everywhere for the same seed: the fuzzer's images must be repeatable by their
// number.

/** A generator of 32-bit numbers: "mulberry32", whose whole state is one word. Good enough to choose bytes with. */
export class Random {
  #state: number;

  /**
   * The sequence of image `index` of a run: each image has its own, so that it can be made again without the others.
   */
  constructor(seed: number, index = 0) {
    this.#state = (Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(index + 1, 0xc2b2ae35)) >>> 0;
    this.word();
  }

  /** Any 32-bit number, unsigned. */
  word(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  }

  /** A number from 0 up to `limit`, which is not reached. */
  below(limit: number): number {
    return Math.floor((this.word() / 2 ** 32) * limit);
  }

  /** True once in `n` times. */
  oneIn(n: number): boolean {
    return this.below(n) === 0;
  }

  /** One of these; there must be one. */
  pick<T>(from: readonly T[]): T {
    const chosen = from[this.below(from.length)];
    if (chosen === undefined) throw new Error("Cannot choose from nothing");
    return chosen;
  }
}
