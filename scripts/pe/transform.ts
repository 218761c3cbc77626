// SPDX-License-Identifier: GPL-2.0-only
// The shape that the transforms share as commands: IN and OUT, read, change, write.

import { aboutFile, readInput, refuseSameFile, sayOn, writeOutput } from "../cli/cli.ts";
import type { Command, Options, Say, Values } from "../cli/cli.ts";
import { ImageError } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import type { Image } from "./image.ts";
import { parseImage } from "./parse.ts";
import { serializeImage } from "./serialize.ts";
import { DIRECTORY_CERTIFICATE } from "../tables/pe.ts";

/**
 * A command `IN OUT [options]` around a pure function from image to image.
 * @param change the ImageErrors it throws are about IN
 */
export function transformCommand(
  usage: string,
  options: Options,
  change: (image: Image, values: Values, say: Say) => Image,
): Command {
  return fileCommand(usage, options, (bytes, values, say) =>
    serializeImage(change(unsigned(parseImage(bytes), values), values, say)),
  );
}

/** {@link transformCommand} of a function from file to file. @param change must not change the bytes it gets */
export function fileCommand(
  usage: string,
  options: Options,
  change: (bytes: Uint8Array, values: Values, say: Say) => Uint8Array,
): Command {
  return {
    usage,
    options,
    positionals: ["IN", "OUT"],
    run([input = "", output = ""], values, io) {
      refuseSameFile(input, output);
      const said: string[] = [];
      const result = aboutFile(input, () => change(readInput(input, io), values, (line) => said.push(line)));
      writeOutput(output, result, io);
      // Not before: of a run that fails there is one line, which says why.
      said.forEach(sayOn(io, input));
      return 0;
    },
  };
}

/** The image as the option --strip-signature wants it. */
export function unsigned(image: Image, values: Values): Image {
  return values["strip-signature"] === true ? stripSignature(image) : image;
}

/**
 * The image as it was read, without the certificate table: what a signer appended, no more. Any change makes a signature
 * worthless.
 * @returns the same image when it is not signed
 * @throws ImageError when the table is not the last thing in the file, as the PE specification wants it ("Attribute
 *   Certificate Table") and firmware checks it (SecurityPkg/Library/DxeImageVerificationLib)
 */
export function stripSignature(image: Image): Image {
  const { virtualAddress = 0, size = 0 } = image.directories[DIRECTORY_CERTIFICATE] ?? {};
  if (virtualAddress === 0 && size === 0) return image;
  const end = virtualAddress + size;
  if (end !== image.fileSize) {
    const needed = `needed at the end of the file, ${hex(image.fileSize)}`;
    throw new ImageError(
      `Cannot strip the signature: the certificate table is at ${range(virtualAddress, end)}, ${needed}`,
    );
  }
  // Read anew: what the image itself points to must lie in front of the table.
  const rest = parseImage(image.background.subarray(0, virtualAddress));
  const directories = rest.directories.map((d, i) =>
    i === DIRECTORY_CERTIFICATE ? { virtualAddress: 0, size: 0 } : d,
  );
  return { ...rest, directories };
}
