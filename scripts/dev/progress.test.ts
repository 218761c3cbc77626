// SPDX-License-Identifier: GPL-2.0-only
// Long work shows how far it is on a terminal, and a pipe sees nothing of that. The terminal is script's (util-linux).

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { knownBuilds } from "./known-builds.ts";
import { TOP } from "./places.ts";

const CLEAR = "\r\x1b[K";
const folder = fs.mkdtempSync(path.join(os.tmpdir(), "progress-"));
const hasScript = spawnSync("script", ["--version"]).error === undefined;
const [build] = knownBuilds;

/** Each long work, as short as it can be had, and what its progress looks like. */
const WORK: readonly {
  readonly script: string;
  readonly args: readonly string[];
  readonly shows: RegExp;
  readonly needs?: string;
}[] = [
  {
    script: "fetch-xen.ts",
    args: ["--only", build?.id ?? "", "--dir", path.join(TOP, "samples/xen")],
    shows: /1\/1 4\.14\.6-1/,
    needs: path.join(TOP, "samples/xen", build?.id ?? "", "xen.efi"),
  },
  { script: "fuzz.ts", args: ["--count", "300", "--seed", "1"], shows: /image \d+, 0 findings/ },
  { script: "boot.ts", args: ["--only", "mini-xen-move qemu-mb1", "--jobs", "1"], shows: /0\/\d+ mini-xen/ },
];

const quote = (word: string): string => `'${word.replace(/'/g, "'\\''")}'`;

const progress = suite("progress");

for (const { script, args, shows, needs } of WORK) {
  const command = [process.execPath, ...process.execArgv, path.join(TOP, "scripts/dev", script), ...args];
  const why =
    needs !== undefined && !fs.existsSync(needs)
      ? `${path.relative(TOP, needs)} is not there (make fetch-xen)`
      : hasScript
        ? undefined
        : "script (util-linux) is not there";
  if (why !== undefined && process.env.CI !== "true") console.log(`skipped: progress of ${script}: ${why}`);
  const test = why === undefined || process.env.CI === "true" ? progress : progress.skip;

  test(`${script}: a terminal sees it, and it is gone at the end; a pipe sees none`, () => {
    // CI decides what a missing tool means, and none of it is about progress.
    const env = { ...process.env, CI: "" };
    const typescript = path.join(folder, "typescript");
    spawnSync("script", ["--quiet", "--return", "--command", command.map(quote).join(" "), typescript], {
      cwd: TOP,
      env,
    });
    const seen = fs.readFileSync(typescript, "utf8");
    assert.match(seen, shows);
    assert.ok(seen.includes(CLEAR), "it does not clear its line");
    const last = seen.split(CLEAR).at(-1) ?? "";
    assert.not.match(last, shows, "the last line of progress stays");
    const { stdout, stderr } = spawnSync(command[0] ?? "", command.slice(1), { cwd: TOP, env, encoding: "utf8" });
    for (const output of [stdout, stderr]) {
      assert.not.match(output, /[\r\x1b]/);
      assert.not.match(output, shows);
    }
  });
}

progress.run();
