// SPDX-License-Identifier: GPL-2.0-only
// The fuzzer's process: it can hang, and then be killed. It says on standard output, one JSON text a line, how far it
// is and what it found.
//
// Arguments: seed, first number, number behind the last, Date.now() after which to stop.

import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import process from "node:process";
import { Fuzzer, type Found, type Totals } from "./run.ts";

export type Message =
  /** After each image. */
  { readonly totals: Totals } | { readonly found: Omit<Found, "bytes"> & { readonly hex: string } };

/** At once, though the loop never lets events be handled. */
function say(message: Message): void {
  fs.writeSync(process.stdout.fd, `${JSON.stringify(message)}\n`);
}

const [seed = 0, from = 0, to = 0, deadline = 0] = process.argv.slice(2).map(Number);
const fuzzer = new Fuzzer(seed);
const totals: Totals = { images: 0, steps: 0, verified: 0 };
for (let index = from; index < to && Date.now() <= deadline; index++) {
  const found = fuzzer.run(index, totals);
  if (found !== undefined) {
    const { bytes, ...rest } = found;
    say({ found: { ...rest, hex: Buffer.from(bytes).toString("hex") } });
  }
  say({ totals });
}
