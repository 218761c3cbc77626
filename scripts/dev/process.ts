// SPDX-License-Identifier: GPL-2.0-only
// Programs that this room's tools run, and folders for what they write: nothing outlives this process, however it ends.

import { execFile, type ChildProcess } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";

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

/** A new folder, which is gone when this process ends. @param prefix how its path begins, up to the random part */
export function newFolder(prefix: string): string {
  fs.mkdirSync(path.dirname(prefix), { recursive: true });
  const folder = fs.mkdtempSync(prefix);
  folders.add(folder);
  return folder;
}

/** Gives `use` a folder as {@link newFolder} makes it, which is gone afterwards. */
export async function inFolder<T>(prefix: string, use: (folder: string) => Promise<T>): Promise<T> {
  const folder = newFolder(prefix);
  try {
    return await use(folder);
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
    folders.delete(folder);
  }
}

export interface Finished {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Runs a program to its end.
 * @throws Error when it cannot be run or a signal ends it; an exit status is no error
 */
export function capture(
  program: string,
  args: readonly string[],
  { cwd, env = {} }: { readonly cwd?: string | undefined; readonly env?: NodeJS.ProcessEnv } = {},
): Promise<Finished> {
  const options = { cwd, env: { ...process.env, LC_ALL: "C", ...env }, maxBuffer: 1 << 26 };
  return new Promise((settle, fail) => {
    const child = execFile(program, args, options, (error, stdout, stderr) => {
      if (error === null) settle({ status: 0, stdout, stderr });
      else if (typeof error.code === "number") settle({ status: error.code, stdout, stderr });
      else fail(error);
    });
    watched(child);
  });
}
