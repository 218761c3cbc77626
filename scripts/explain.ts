// SPDX-License-Identifier: GPL-2.0-only
//
// Explains a result by its original: every run of bytes that is other than it was, or elsewhere, in words.
//
// Changes nothing. What a change must be is worked out from the original by the rules, as verify does it and with the same
//   functions; a byte that is anything else is unexplained, and then there is no explanation but a line for each.
// Takes: the result of the whole chain, or of any step; ORIGINAL may be a step's output too.
// Not: what add-sections, strip-debug and sign make; explain the image that they were given.

import { aboutFile, displayName, readInput, runIfMain, type Command } from "./cli/cli.ts";
import { ImageError, UsageError } from "./cli/errors.ts";
import { range } from "./cli/numbers.ts";
import type { Steps } from "./judge/expected.ts";
import { readPe, type Pe } from "./judge/read.ts";
import type { Account } from "./show/explain-account.ts";
import { hasAddresses, neededAccount, stepsBetween } from "./show/explain-needed.ts";
import { placeName } from "./show/explain-places.ts";
import { explanationText } from "./show/explain-text.ts";

const USAGE = `Usage: explain.ts ORIGINAL RESULT

Explains RESULT, an xen.mb.efi or what one of the steps has made, by the xen.efi ORIGINAL: every byte range that is
different or elsewhere, with old and new value, the step that did it, and the loader that asks for it.
"-" is standard input, for one of them.

  --help  print this text

An explanation on standard output, or a line for each range that cannot be explained on standard error.
Exit status: 0 everything is explained, 1 something is not, or unsuitable files, 2 wrong usage.
`;

export interface Explanation {
  readonly steps: Steps;
  readonly account: Account;
  /** One line each, without the file's name. None: everything is explained. */
  readonly unexplained: readonly string[];
}

/** Ranges that are named; the rest is counted. */
const MOST = 20;

/**
 * Explains a result. Neither is changed.
 * @throws ImageError when one of them is no image, or the original does not tell what must have become of it
 */
export function explain(originalBytes: Uint8Array, resultBytes: Uint8Array): Explanation {
  const original = readPe(originalBytes);
  const result = readPe(resultBytes);
  refuseOtherWork(original, result);
  const steps = stepsBetween(original, result);
  const explained = explainBy(steps, original, resultBytes);
  // align-sections leaves the sections of a linear file where they are, but what is wrong in it becomes right.
  if (explained.unexplained.length === 0 || steps.aligned) return explained;
  const aligned = explainBy({ ...steps, aligned: true }, original, resultBytes);
  return aligned.unexplained.length === 0 ? aligned : explained;
}

/** What no step does is said in a line, where it would be thousands of bytes. */
function refuseOtherWork(original: Pe, result: Pe): void {
  if (hasAddresses(original) && !hasAddresses(result))
    throw new ImageError(
      "Cannot explain: the original has Multiboot headers with addresses and the result has none: they seem to be exchanged",
    );
  if (original.sections.length === result.sections.length) return;
  const names = (image: Pe): string[] => image.sections.map(({ name }) => name);
  const [gone, added] = [
    names(original).filter((name) => !names(result).includes(name)),
    names(result).filter((name) => !names(original).includes(name)),
  ];
  const what = [
    ...(gone.length === 0 ? [] : [`${gone.join(" ")} missing`]),
    ...(added.length === 0 ? [] : [`${added.join(" ")} new`]),
  ].join(", ");
  throw new ImageError(
    `Cannot explain: the sections are ${what === "" ? `${result.sections.length}` : what}, needed the original's ${original.sections.length}: explain the image that add-sections or strip-debug was given`,
  );
}

function explainBy(steps: Steps, original: Pe, resultBytes: Uint8Array): Explanation {
  const account = neededAccount(original, steps);
  return { steps, account, unexplained: unexplainedLines(account, original, resultBytes) };
}

function unexplainedLines(account: Account, original: Pe, result: Uint8Array): string[] {
  const runs = account.unexplained(result);
  if (runs.length === 0) return [];
  const bytes = runs.reduce((sum, [, , count]) => sum + count, 0);
  const show = (file: Uint8Array, start: number, end: number): string => {
    const shown = [...file.subarray(start, Math.min(end, start + 8))].map((byte) => byte.toString(16).padStart(2, "0"));
    return shown.length === 0 ? "behind the end of the file" : `${shown.join(" ")}${end - start > 8 ? " …" : ""}`;
  };
  const lines = runs
    .slice(0, MOST)
    .map(
      ([start, end]) =>
        `Cannot explain: ${range(start, end)}, ${placeName(account, original, start)}, is ${show(result, start, end)}, needed ${show(account.needed, start, end)}`,
    );
  const more = runs.length > MOST ? `, ${runs.length - MOST} of them not listed` : "";
  return [...lines, `Cannot explain: ${bytes} bytes in ${runs.length} places are unexplained${more}`];
}

export const command: Command = {
  usage: USAGE,
  options: {},
  positionals: ["ORIGINAL", "RESULT"],
  run([original = "", result = ""], _values, io) {
    if (original === "-" && result === "-") throw new UsageError("ORIGINAL and RESULT are both '-'");
    const originalBytes = readInput(original, io);
    aboutFile(original, () => readPe(originalBytes));
    const { steps, account, unexplained } = aboutFile(result, () => {
      try {
        return explain(originalBytes, readInput(result, io));
      } catch (error) {
        if (!(error instanceof ImageError) || error.message.startsWith("Cannot ")) throw error;
        throw new ImageError(`Cannot explain: ${error.message}`);
      }
    });
    for (const line of unexplained) io.stderr(`${displayName(result)}: ${line}\n`);
    if (unexplained.length !== 0) return 1;
    io.stdout(explanationText(account, steps, displayName(original), displayName(result)));
    return 0;
  },
};

runIfMain(import.meta.url, command);
