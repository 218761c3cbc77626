// SPDX-License-Identifier: GPL-2.0-only
//
// Proves that xen.mb.efi is xen.efi with nothing but the announced changes: loads both the way firmware, shim and the two
// kinds of Multiboot loaders do, at several bases, and accounts for every differing byte of memory and of the file.
//
// Changes: nothing. Prints a short report and exits 0, or a line per violation on standard error and exits 1.
// Proves: obligations 1, 2, 3 and 5 of the design; check-loaders has the fourth, every loader's rules. (1) Loaded as a PE,
//   the same memory at every base, but for the header area, the Multiboot2 header, the base relocation table's place and
//   the references to it, and the debug directory's file offsets; by shim as by firmware. (2) Loaded by Multiboot, what a
//   PE loader has at the link address. (3) The same base relocations but those of the rewritten header. (5) Every byte of
//   the file is one that a signature covers.
// Independent: of the steps it shares the tables of fields and constants, which a test pins, and nothing else: it reads
//   the raw bytes itself. What has to be different is computed anew from the original, by the rules; then the rest must
//   be equal.
// Order: after emit-header. For the steps before it, it says what is missing.

import { aboutFile, displayName, readInput, runIfMain, type Command } from "./cli/cli.ts";
import { judge } from "./judge/judge.ts";
import { readPe } from "./judge/read.ts";
import { reportLines } from "./judge/report.ts";

const USAGE = `Usage: verify.ts ORIGINAL RESULT

Proves that RESULT, an xen.mb.efi, is the xen.efi ORIGINAL with nothing but the announced changes.
"-" is standard input, for one of them.

  --help  print this text

A report on standard output, or a line per violation on standard error.
Exit status: 0 verified, 1 violations or unsuitable files, 2 wrong usage.
`;

export interface Verdict {
  /** One line each, "Cannot verify: where, found, needed", without the file's name. None: RESULT is right. */
  readonly violations: string[];
  /** What was compared, and what is different, in a few lines. */
  readonly report: string[];
}

/** Judges a result by its original. Neither is changed; any bytes may be given. */
export function verify(original: Uint8Array, result: Uint8Array): Verdict {
  const { violations, loaded } = judge(original, result);
  return { violations, report: loaded === undefined || violations.length !== 0 ? [] : reportLines(loaded) };
}

// ---- the command

export const command: Command = {
  usage: USAGE,
  options: {},
  positionals: ["ORIGINAL", "RESULT"],
  run([original = "", result = ""], _values, io) {
    const originalBytes = readInput(original, io);
    // An original that cannot be read is no fault of the result.
    aboutFile(original, () => readPe(originalBytes));
    const { violations, report } = verify(originalBytes, readInput(result, io));
    for (const line of violations) io.stderr(`${displayName(result)}: ${line}\n`);
    if (violations.length !== 0) return 1;
    io.stdout(
      `${displayName(result)}: verified against ${displayName(original)}\n${report.map((line) => `  ${line}\n`).join("")}`,
    );
    return 0;
  },
};

runIfMain(import.meta.url, command);
