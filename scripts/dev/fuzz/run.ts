// SPDX-License-Identifier: GPL-2.0-only
// A run of the fuzzer: image after image, each made from the seed and its number alone.

import { corpus } from "./corpus.ts";
import { mutate, target, type Target } from "./mutate.ts";
import { Finding, judge, type Scope } from "./oracle.ts";
import { Random } from "./random.ts";

/** One image in so many is put through everything. */
const THOROUGH = 8;

export interface Found {
  readonly index: number;
  /** The name of the image that it was made from. */
  readonly base: string;
  readonly kind: string;
  readonly message: string;
  /** The image, as small a change of the base as still does it. */
  readonly bytes: Uint8Array;
}

export interface Totals {
  images: number;
  /** Steps that took an image. */
  steps: number;
  /** Chains that came to the end and were verified. */
  verified: number;
}

export class Fuzzer {
  readonly #seed: number;
  readonly #bases: readonly { name: string; target: Target }[];
  readonly #targets: readonly Target[];

  constructor(seed: number) {
    this.#seed = seed;
    this.#bases = corpus().map(({ name, bytes }) => ({ name, target: target(new Uint8Array(bytes)) }));
    this.#targets = this.#bases.map((base) => base.target);
  }

  /** Image number `index` and what it was made from. */
  image(index: number): { base: string; from: Uint8Array; bytes: Uint8Array } {
    const random = new Random(this.#seed, index);
    const base = random.pick(this.#bases);
    return { base: base.name, from: base.target.bytes, bytes: mutate(base.target, random, this.#targets) };
  }

  /** Makes and judges one image. @returns what is wrong, if anything */
  run(index: number, totals: Totals): Found | undefined {
    const { base, from, bytes } = this.image(index);
    const scope = index % THOROUGH === 0 ? "all" : index % 2 === 0 ? "move" : "keep";
    totals.images++;
    try {
      const { steps, verified } = judge(bytes, scope);
      totals.steps += steps;
      totals.verified += verified;
      return undefined;
    } catch (error) {
      if (!(error instanceof Finding)) throw error;
      const smaller = minimize(bytes, from, error.kind, scope);
      return { index, base, kind: error.kind, message: error.message, bytes: smaller };
    }
  }
}

/** Takes changes back, one run of bytes after another, as long as the finding is of the same kind. */
function minimize(bytes: Uint8Array, from: Uint8Array, kind: string, scope: Scope): Uint8Array {
  const stillFails = (candidate: Uint8Array): boolean => {
    try {
      judge(candidate, scope);
      return false;
    } catch (error) {
      return error instanceof Finding && error.kind === kind;
    }
  };
  let best = bytes;
  for (let at = 0; at < Math.min(best.length, from.length); at++) {
    if (best[at] === from[at]) continue;
    let end = at + 1;
    while (end < Math.min(best.length, from.length) && best[end] !== from[end]) end++;
    const candidate = best.slice();
    candidate.set(from.subarray(at, end), at);
    if (stillFails(candidate)) best = candidate;
    at = end;
  }
  if (best.length === from.length) return best;
  const sameLength = new Uint8Array(from.length);
  sameLength.set(from);
  sameLength.set(best.subarray(0, from.length));
  return stillFails(sameLength) ? sameLength : best;
}
