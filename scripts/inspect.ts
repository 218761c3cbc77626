// SPDX-License-Identifier: GPL-2.0-only
//
// Shows what is in a PE image for x86-64: headers, sections, base relocations, Multiboot headers, symbols, digests.
//
// Changes nothing. Prints text by default, for people and for goldens (no path, no date: the same file gives the same
//   text), or with --json the same facts as one JSON object.
// Refuses: what is not such an image, or points outside the file. Everything else is shown, also what no transform takes
//   (overlapping sections, a corrupt relocation table, …): the reason stands where the facts would.

import { aboutFile, readInput, runIfMain, type Command } from "./cli/cli.ts";
import { inspectFacts } from "./show/inspect-facts.ts";
import { factsText } from "./show/inspect-text.ts";

const USAGE = `Usage: inspect.ts FILE [--json]

Shows headers, sections, base relocations, Multiboot headers, symbols and digests of a PE image.
FILE may be any step's input or output; "-" is standard input.

  --json  print one JSON object instead of text; 64-bit fields are hexadecimal strings
  --help  print this text

Exit status: 0 done, 1 not a PE image for x86-64, 2 wrong usage.
`;

/** The text that a golden holds. @throws ImageError when there is no image to show */
export function inspectText(bytes: Uint8Array): string {
  return factsText(inspectFacts(bytes));
}

export const command: Command = {
  usage: USAGE,
  options: { json: { type: "boolean" } },
  positionals: ["FILE"],
  run([file = ""], values, io) {
    const facts = aboutFile(file, () => inspectFacts(readInput(file, io)));
    io.stdout(values.json === true ? `${JSON.stringify(facts, null, 2)}\n` : factsText(facts));
    return 0;
  },
};

runIfMain(import.meta.url, command);
