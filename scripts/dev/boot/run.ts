// SPDX-License-Identifier: GPL-2.0-only
//
// The tools and scripts that the boot tests run.

import * as path from "node:path";
import process from "node:process";
import { ImageError } from "../../cli/errors.ts";
import { SCRIPTS } from "../places.ts";
import { capture, inFolder } from "../process.ts";
import { searchPath } from "./tools.ts";

/** Gives `use` a work folder, which is gone afterwards. */
export function inWorkFolder<T>(parent: string, use: (work: string) => Promise<T>): Promise<T> {
  return inFolder(path.join(parent, "work-"), use);
}

/**
 * Runs a tool to its end, with its temporary files in the work folder.
 * @returns what it said on standard error
 * @throws ImageError with what it said, when it fails
 */
export async function run(work: string, command: string, args: readonly string[]): Promise<string> {
  const cannot = (why: string): never => {
    throw new ImageError(`Cannot run ${path.basename(command)}: ${why}`);
  };
  const env = { PATH: searchPath().join(path.delimiter), TMPDIR: path.resolve(work) };
  const { status, stdout, stderr } = await capture(command, args, { env }).catch((error: Error) =>
    cannot(error.message),
  );
  if (status === 0) return stderr;
  const lines = `${stdout}${stderr}`.trim().split("\n");
  return cannot(lines.find((line) => /Cannot|Error/.test(line)) || lines.at(-1) || `exit status ${status}`);
}

/** Runs a script of the project as {@link run} does, by whatever runs this one (tsx or node's own type stripping). */
export function runScript(work: string, name: string, args: readonly string[]): Promise<string> {
  return run(work, process.execPath, [...process.execArgv, path.join(SCRIPTS, `${name}.ts`), ...args]);
}
