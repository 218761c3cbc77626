// SPDX-License-Identifier: GPL-2.0-only
// Applies the patches of this folder, by git: who has this checkout has git, while patch(1) needs not be there. git works
// on copies, so that the tree need not be a repository, and that one in which a patch does not apply is not touched.

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import process from "node:process";
import { ImageError } from "../cli/errors.ts";

/** The files that a patch changes; it adds and removes none. */
export function filesOf(patch: string): string[] {
  return [...fs.readFileSync(patch, "latin1").matchAll(/^--- a\/(.*)$/gm)].map(([, name = ""]) => name);
}

/**
 * What a patch makes of the files that it names.
 * @param patch the patch's own file
 * @param read a file of the tree; undefined when the tree has none of that name
 * @param options ["-R"] takes the patch back
 * @returns the new contents by name; or, where it does not apply, which places git rejects: "xen/Makefile:525"
 * @throws ImageError when git cannot be run
 */
export function patched(
  patch: string,
  read: (file: string) => Uint8Array | undefined,
  options: readonly "-R"[] = [],
): ReadonlyMap<string, Uint8Array> | string {
  const names = filesOf(patch);
  const work = fs.mkdtempSync(path.join(fs.realpathSync(tmpdir()), "xen-mb-efi-"));
  try {
    for (const name of names) {
      const contents = read(name);
      if (contents === undefined) continue;
      fs.mkdirSync(path.dirname(path.join(work, name)), { recursive: true });
      fs.writeFileSync(path.join(work, name), contents);
    }
    const rejects = gitApply([...options, path.resolve(patch)], work);
    if (rejects !== "") return rejects;
    return new Map(names.map((name) => [name, new Uint8Array(fs.readFileSync(path.join(work, name)))]));
  } finally {
    fs.rmSync(work, { recursive: true, force: true });
  }
}

/** @returns what is rejected, on one line; "" when nothing is, and only then any file is changed */
function gitApply(args: readonly string[], work: string): string {
  // Neither a repository around the folder nor anybody's settings (line ends, white space) may play a part.
  const env = {
    PATH: process.env.PATH,
    LC_ALL: "C",
    GIT_CEILING_DIRECTORIES: path.dirname(work),
    GIT_CONFIG_GLOBAL: "/dev/null",
    GIT_CONFIG_NOSYSTEM: "1",
  };
  const { error, status, stderr } = spawnSync("git", ["apply", "--whitespace=nowarn", ...args], {
    cwd: work,
    env,
    encoding: "utf8",
  });
  if (error !== undefined) throw new ImageError(`Cannot run git: ${error.message}`);
  if (status === 0) return "";
  const lines = stderr.split("\n").filter((line) => line.startsWith("error: ") && !line.endsWith("does not apply"));
  return lines.map((line) => line.replace(/^error: (patch failed: )?/, "")).join(", ");
}
