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

/** Both streams in one, as a user sees them; kept in the log as well. */
export function runLogged(
  command: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  log: string,
): Promise<Finished> {
  // This is run by make itself, whose variables must not reach the make that is tested. Fixed build dates: Xen's
  // version string has the time in it, and each build would be another one.
  const { MAKEFLAGS, MFLAGS, MAKELEVEL, MAKEOVERRIDES, NODE, ...mine } = process.env;
  void [MAKEFLAGS, MFLAGS, MAKELEVEL, MAKEOVERRIDES, NODE];
  // Xen's makefiles take python3 with the path it has in PATH, and make anew what was made with another.
  const python = searchPath()
    .map((folder) => path.join(folder, "python3"))
    .find((file) => fs.existsSync(file));
  const fixed = {
    LC_ALL: "C",
    PYTHON: python,
    XEN_BUILD_DATE: "a-day",
    XEN_BUILD_TIME: "a-time",
    XEN_BUILD_HOST: "host",
    XEN_DOMAIN: "domain",
  };
  fs.appendFileSync(log, `$ ${command} ${args.join(" ")}\n`);
  return new Promise((settle, reject) => {
    const child = spawn(command, args, { env: { ...mine, ...fixed, ...env }, stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => (output += text));
    }
    child.on("error", reject);
    child.on("close", (status) => {
      fs.appendFileSync(log, output);
      settle({ status: status ?? 1, output });
    });
  });
}

/** Digest or link target of every file, by path. */
export function listing(root: string): Map<string, string> {
  const found = new Map<string, string>();
  const walk = (folder: string): void => {
    for (const entry of fs
      .readdirSync(path.join(root, folder), { withFileTypes: true })
      .sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const file = path.join(folder, entry.name);
      if (entry.isDirectory()) walk(file);
      else if (entry.isSymbolicLink()) found.set(file, `-> ${fs.readlinkSync(path.join(root, file))}`);
      else {
        found.set(
          file,
          `${fs.statSync(path.join(root, file)).mode} ${createHash("sha256")
            .update(fs.readFileSync(path.join(root, file)))
            .digest("hex")}`,
        );
      }
    }
  };
  walk("");
  return found;
}

/** Both listings are the same but for just these files. */
export function requireSame(
  before: ReadonlyMap<string, string>,
  after: ReadonlyMap<string, string>,
  but: readonly string[],
): void {
  const differ = [...new Set([...before.keys(), ...after.keys()])]
    .filter((file) => before.get(file) !== after.get(file))
    .sort();
  if (differ.join() !== [...but].sort().join()) {
    fail(`other files than before: ${differ.join(" ") || "none"}, needed ${but.join(" ") || "none"}`);
  }
}

export function requireCount(text: string, line: RegExp, count: number): void {
  const found = text.split("\n").filter((each) => line.test(each)).length;
  if (found !== count) fail(`${found} lines of output are like ${line}, needed ${count}`);
}

export function requireLine(text: string, line: RegExp): void {
  requireCount(text.trimEnd(), line, 1);
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
      if (!/^node(js)?$/.test(name) && !fs.existsSync(link)) {
        (fs.rmSync(link, { force: true }), fs.symlinkSync(path.join(from, name), link));
      }
    }
  }
  return folder;
}
