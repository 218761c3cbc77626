// SPDX-License-Identifier: GPL-2.0-only
//
// Draws where everything is: the file on one side, memory on the other, what Multiboot loads, and what is in its way.
//
// Changes nothing. One image, or two side by side, before and after; as SVG, as an HTML file, or as text.
// Refuses: what is not a PE image for x86-64, or has more sections than a picture can show. Everything else is drawn,
//   also what no loader takes: the reason stands below.

import { Buffer } from "node:buffer";
import * as path from "node:path";
import { aboutFile, displayName, readInput, refuseSameFile, runIfMain, writeOutput } from "./cli/cli.ts";
import type { Command, Io, Values } from "./cli/cli.ts";
import { UsageError } from "./cli/errors.ts";
import { pictureFacts, type PictureFacts } from "./show/picture-facts.ts";
import { htmlPicture } from "./show/picture-html.ts";
import { svgPicture } from "./show/picture-svg.ts";
import { textPicture } from "./show/picture-text.ts";

const USAGE = `Usage: layout.ts FILE [FILE2] [--svg OUT | --html OUT | --text]

Draws the layout of an image, or of two side by side: file, memory, what Multiboot loads, gaps.
FILE may be any step's input or output. "-" is standard input, for one of them, or standard output for OUT.

  --svg OUT   a picture, for documents: legible in black and white, and in a dark reader
  --html OUT  a page by itself, with details for what the mouse points at, and the text
  --text      text on standard output; so it is without any of these
  --help      print this text

Exit status: 0 done, 1 not a PE image for x86-64, 2 wrong usage.
`;

const WRITERS = { svg: svgPicture, html: htmlPicture, text: textPicture };
type Form = keyof typeof WRITERS;

/** The picture of some images, each with its name. @throws ImageError */
export function drawLayout(images: readonly (readonly [name: string, bytes: Uint8Array])[], form: Form): string {
  return WRITERS[form](images.map(([name, bytes]) => pictureFacts(bytes, name)));
}

function chosen(values: Values): { form: Form; output: string } {
  const forms = Object.keys(WRITERS) as Form[];
  const [form = "text", second] = forms.filter((option) => values[option] !== undefined);
  if (second !== undefined) throw new UsageError(`--${form} and --${second} are both given, needed one`);
  const output = values[form];
  return { form, output: typeof output === "string" ? output : "-" };
}

function readPicture(file: string, io: Io): PictureFacts {
  const name = displayName(file === "-" ? file : path.basename(file));
  return aboutFile(file, () => pictureFacts(readInput(file, io), name));
}

export const command: Command = {
  usage: USAGE,
  options: { svg: { type: "string" }, html: { type: "string" }, text: { type: "boolean" } },
  positionals: ["FILE", "[FILE2]"],
  run([file = "", second], values, io) {
    const { form, output } = chosen(values);
    const files = second === undefined ? [file] : [file, second];
    if (files.length === 2 && files.every((name) => name === "-")) throw new UsageError("FILE and FILE2 are both '-'");
    for (const name of files) refuseSameFile(name, output);
    const text = WRITERS[form](files.map((name) => readPicture(name, io)));
    writeOutput(output, Buffer.from(text), io);
    return 0;
  },
};

runIfMain(import.meta.url, command);
