// SPDX-License-Identifier: GPL-2.0-only
// The work of mb-efi in a process that has just started, measured from inside: reading, the steps with verify, writing.
// Then the same again, as in a process that has done it before. bench.ts bundles this as dist bundles mb-efi: translated
// while it is loaded, it would be slower.
//
// Arguments: input, output, how often. A JSON array on standard output: for each time three numbers, milliseconds.

import * as fs from "node:fs";
import process from "node:process";
import { readInput, realIo, writeOutput } from "../../cli/cli.ts";
import { mbEfi } from "../../mb-efi.ts";

/** Milliseconds. */
export type Work = readonly [read: number, work: number, write: number];

function once(input: string, output: string): Work {
  fs.rmSync(output, { force: true });
  const times = [performance.now()];
  const bytes = readInput(input, realIo);
  times.push(performance.now());
  const result = mbEfi(bytes, { keep: false, stripSignature: false });
  times.push(performance.now());
  writeOutput(output, result, realIo);
  times.push(performance.now());
  const [start = 0, read = 0, worked = 0, written = 0] = times;
  return [read - start, worked - read, written - worked];
}

const [input = "", output = "", count = "1"] = process.argv.slice(2);
process.stdout.write(JSON.stringify(Array.from({ length: Number(count) }, () => once(input, output))));
