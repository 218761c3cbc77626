// SPDX-License-Identifier: GPL-2.0-only
// The errors that a user may cause: each becomes one line on standard error. Anything else that is thrown is a bug.

/** An image or a file that the command cannot take. `message` reads "Cannot …: where, found, needed", without the file's name. */
export class ImageError extends Error {
  override name = "ImageError";
}

/** An {@link ImageError} that already knows which file it is about. */
export class FileError extends ImageError {
  override name = "FileError";
  readonly file: string;
  constructor(file: string, message: string) {
    super(message);
    this.file = file;
  }
}

/** The command line is wrong; `message` is one line for standard error. */
export class UsageError extends Error {
  override name = "UsageError";
}

/** Ends the work with an {@link ImageError} that says why something cannot be done. */
export type Fail = (reason: string) => never;

/** @param action what cannot be done, as in "align sections" */
export function failing(action: string): Fail {
  return (reason) => {
    throw new ImageError(`Cannot ${action}: ${reason}`);
  };
}
