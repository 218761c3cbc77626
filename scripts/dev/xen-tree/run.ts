// SPDX-License-Identifier: GPL-2.0-only
// What the steps of xen-tree-test.ts do and ask: run a command and keep its log, list a tree, and say what is not as it
// must be.

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { ImageError } from "../../cli/errors.ts";
import { searchPath } from "../boot/tools.ts";

export function fail(reason: string): never {
  throw new ImageError(reason);
}

export interface Finished {
  readonly status: number;
  readonly output: string;
}

/** What a Xen build takes from the environment, and must not take from this one. */
function environment(): NodeJS.ProcessEnv {
  // This is run by make itself, whose variables must not reach the make that is tested.
  const { MAKEFLAGS, MFLAGS, MAKELEVEL, MAKEOVERRIDES, NODE, ...mine } = process.env;
  void [MAKEFLAGS, MFLAGS, MAKELEVEL, MAKEOVERRIDES, NODE];
  return {
    ...mine,
    LC_ALL: "C",
    // Xen's makefiles take python3 with the path it has in PATH, and make anew what was made with another.
    PYTHON: searchPath()
      .map((folder) => path.join(folder, "python3"))
      .find((file) => fs.existsSync(file)),
    // Xen's version string has the time in it, and each build would be another one.
    XEN_BUILD_DATE: "a-day",
    XEN_BUILD_TIME: "a-time",
    XEN_BUILD_HOST: "host",
    XEN_DOMAIN: "domain",
  };
}

/** Runs a command; the log gets its standard output and error as a user sees them, in one. */
export function runLogged(
  command: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  log: string,
): Promise<Finished> {
  fs.appendFileSync(log, `$ ${command} ${args.join(" ")}\n`);
  const start = fs.statSync(log).size;
  const end = fs.openSync(log, "a");
  return new Promise((settle, reject) => {
    const child = spawn(command, args, { env: { ...environment(), ...env }, stdio: ["ignore", end, end] });
    fs.closeSync(end);
    child.on("error", reject);
    child.on("close", (status) => {
      settle({ status: status ?? 1, output: fs.readFileSync(log).toString("utf8", start) });
    });
  });
}

/** Mode and digest, or link target, of every file, by path. */
export function listing(root: string): Map<string, string> {
  const entries = fs.readdirSync(root, { recursive: true, withFileTypes: true }).filter((one) => !one.isDirectory());
  return new Map(
    entries.map((entry) => {
      const file = path.join(entry.parentPath, entry.name);
      const digest = () => createHash("sha256").update(fs.readFileSync(file)).digest("hex");
      const is = entry.isSymbolicLink() ? `-> ${fs.readlinkSync(file)}` : `${fs.statSync(file).mode} ${digest()}`;
      return [path.relative(root, file), is];
    }),
  );
}

/** Both listings are the same but for just these files. */
export function requireSame(
  before: ReadonlyMap<string, string>,
  after: ReadonlyMap<string, string>,
  but: readonly string[],
): void {
  const all = new Set([...before.keys(), ...after.keys()]);
  const differ = [...all].filter((file) => before.get(file) !== after.get(file)).sort();
  if (differ.join() !== [...but].sort().join()) {
    fail(`other files than before: ${differ.join(" ") || "none"}, needed ${but.join(" ") || "none"}`);
  }
}

export function requireCount(text: string, line: RegExp, count: number): void {
  const found = text.split("\n").filter((each) => line.test(each)).length;
  if (found !== count) fail(`${found} lines of output are like ${line}, needed ${count}`);
}

export function requireFile(file: string, there: boolean): void {
  if (fs.existsSync(file) !== there) fail(`${path.basename(file)} is ${there ? "missing" : "still there"}`);
}

export function modified(file: string): number {
  return fs.statSync(file).mtimeMs;
}

export function touch(file: string): void {
  const now = new Date();
  fs.utimesSync(file, now, now);
}

/** One folder with links to all that PATH has, but for node. */
export function pathWithoutNode(folder: string): string {
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(folder, { recursive: true });
  for (const from of searchPath().filter((each) => fs.existsSync(each))) {
    for (const name of fs.readdirSync(from)) {
      const link = path.join(folder, name);
      if (/^node(js)?$/.test(name) || fs.existsSync(link)) continue;
      fs.rmSync(link, { force: true }); // one that leads nowhere
      fs.symlinkSync(path.join(from, name), link);
    }
  }
  return folder;
}
