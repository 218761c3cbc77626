// SPDX-License-Identifier: GPL-2.0-only
//
// Makes a small PE image from a text that describes it: the odd and the broken images of the tests. samples/README.md
// explains the format. Same text, same bytes.

import { readFileSync } from "node:fs";
import * as path from "node:path";
import { aboutFile, displayName, readInput, refuseSameFile, runIfMain, writeOutput, type Command } from "../cli/cli.ts";
import { FileError } from "../cli/errors.ts";
import { makeSample } from "./sample/text.ts";

const USAGE = `Usage: make-sample.ts IN.pe.txt OUT

Makes the image that a text describes (samples/README.md); "-" is standard input, or standard output for OUT.
A "from" line names a text beside IN.

  --help  print this text

Exit status: 0 done, 1 text not understood, 2 wrong usage.
`;

export const command: Command = {
  usage: USAGE,
  options: {},
  positionals: ["IN.pe.txt", "OUT"],
  run([input = "", output = ""], _values, io) {
    refuseSameFile(input, output);
    const text = new TextDecoder().decode(readInput(input, io));
    const folder = input === "-" ? "." : path.dirname(input);
    const read = (name: string): string => {
      try {
        return readFileSync(path.join(folder, name), "utf8");
      } catch {
        throw new FileError(displayName(input), `Cannot make the sample: '${name}' of a from line cannot be read`);
      }
    };
    writeOutput(
      output,
      aboutFile(input, () => makeSample(text, read)),
      io,
    );
    return 0;
  },
};

runIfMain(import.meta.url, command);
