// SPDX-License-Identifier: GPL-2.0-only
//
// Whatever the boot tests start or write: nothing outlives this process, however it ends.

import { execFile, type ChildProcess } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { ImageError } from "../../cli/errors.ts";
import { SCRIPTS } from "../places.ts";
import { searchPath } from "./tools.ts";

const children = new Set<ChildProcess>();
const folders = new Set<string>();

process.on("exit", () => {
  for (const child of children) child.kill("SIGKILL");
  for (const folder of folders) fs.rmSync(folder, { recursive: true, force: true });
});

/** Has the process killed when this one ends. */
export function watched(child: ChildProcess): ChildProcess {
  children.add(child);
  return child.on("close", () => children.delete(child));
}

/** Gives `use` a work folder, which is gone afterwards. */
export async function inWorkFolder<T>(parent: string, use: (work: string) => Promise<T>): Promise<T> {
  fs.mkdirSync(parent, { recursive: true });
  const work = fs.mkdtempSync(path.join(parent, "work-"));
  folders.add(work);
  try {
    return await use(work);
  } finally {
    fs.rmSync(work, { recursive: true, force: true });
    folders.delete(work);
  }
}

/**
 * Runs a tool to its end, with its temporary files in the work folder.
 * @returns what it said on standard error
 * @throws ImageError with what it said, when it fails
 */
export function run(work: string, command: string, args: readonly string[]): Promise<string> {
  const env = { ...process.env, PATH: searchPath().join(path.delimiter), LC_ALL: "C", TMPDIR: path.resolve(work) };
  return new Promise((settle, fail) => {
    const child = execFile(command, args, { env, maxBuffer: 1 << 26 }, (error, stdout, stderr) => {
      if (error === null) return settle(stderr);
      const lines = `${stdout}${stderr}`.trim().split("\n");
      const said = lines.find((line) => /Cannot|Error/.test(line)) || lines.at(-1) || error.message;
      fail(new ImageError(`Cannot run ${path.basename(command)}: ${said}`));
    });
    watched(child);
  });
}

/** Runs a script of the project as {@link run} does, by whatever runs this one (tsx or node's own type stripping). */
export function runScript(work: string, name: string, args: readonly string[]): Promise<string> {
  return run(work, process.execPath, [...process.execArgv, path.join(SCRIPTS, `${name}.ts`), ...args]);
}
