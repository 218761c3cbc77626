// SPDX-License-Identifier: GPL-2.0-only
// The shape that the transforms share as commands: IN and OUT, read, change, write.

import { aboutFile, displayName, readInput, refuseSameFile, writeOutput } from "../cli/cli.ts";
import type { Command, Io, Options, Values } from "../cli/cli.ts";
import { ImageError } from "../cli/errors.ts";
import { hex, range } from "../cli/numbers.ts";
import { parseImage, serializeImage } from "./image.ts";
import type { Image } from "./image.ts";
import { DIRECTORY_CERTIFICATE } from "../tables/pe.ts";

/** Where a transform says what its user should know although it went well: one line, without the file's name. */
export type Say = (line: string) => void;

/** Says nothing: for callers that only want the image. */
export const silent: Say = () => {};

/**
 * A command `IN OUT [options]` around a pure function from file to file.
 * @param change takes IN's bytes, which it must not change, and returns OUT's; the ImageErrors it throws are about IN
 */
export function transformCommand(
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
      const result = aboutFile(input, () => change(readInput(input, io), values, sayOn(io, input)));
      writeOutput(output, result, io);
      return 0;
    },
  };
}

/** The transform of an Image as one of bytes. */
export function onBytes(transform: (image: Image) => Image): (bytes: Uint8Array) => Uint8Array {
  return (bytes) => serializeImage(transform(parseImage(bytes)));
}

/** Notes go to standard error: standard output may be the image. */
export function sayOn(io: Io, file: string): Say {
  return (line) => io.stderr(`${displayName(file)}: ${line}\n`);
}

/**
 * The file without its certificate table: what a signer appended, no more. Any change makes a signature worthless.
 * @returns the same bytes when the image is not signed
 * @throws ImageError when the table is not the last thing in the file, as the PE specification wants it ("Attribute
 *   Certificate Table") and firmware checks it (SecurityPkg/Library/DxeImageVerificationLib)
 */
export function stripSignature(bytes: Uint8Array): Uint8Array {
  const image = parseImage(bytes);
  const table = image.directories[DIRECTORY_CERTIFICATE];
  if (table === undefined || (table.virtualAddress === 0 && table.size === 0)) return bytes;
  const end = table.virtualAddress + table.size;
  if (end !== bytes.length) {
    throw new ImageError(
      `Cannot strip the signature: the certificate table is at ${range(table.virtualAddress, end)}, needed at the end of the file, ${hex(bytes.length)}`,
    );
  }
  // Read anew: what the image itself points to must lie in front of the table.
  const unsigned = parseImage(bytes.subarray(0, table.virtualAddress));
  const directories = unsigned.directories.map((d, i) =>
    i === DIRECTORY_CERTIFICATE ? { virtualAddress: 0, size: 0 } : d,
  );
  return serializeImage({ ...unsigned, directories });
}
