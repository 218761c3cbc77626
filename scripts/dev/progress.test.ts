// SPDX-License-Identifier: GPL-2.0-only
// Long work shows how far it is on a terminal, and a pipe sees nothing of that. The terminal is script's (util-linux).

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { SCRIPTS, TOP } from "./places.ts";

const CLEAR = "\r\x1b[K";
const PROGRAM = `
  import { realIo } from ${JSON.stringify(new URL("../cli/cli.ts", import.meta.url).href)};
  import { showProgress } from ${JSON.stringify(new URL("progress.ts", import.meta.url).href)};
  showProgress("1/2 first", realIo);
  showProgress("2/2 second", realIo);
  showProgress("", realIo);
  console.log("done");
`;
const WORK = [path.join(TOP, "node_modules/.bin/tsx"), "--input-type=module", "--eval", PROGRAM];

const quote = (word: string): string => `'${word.replace(/'/g, "'\\''")}'`;
const hasScript = spawnSync("script", ["--version"]).error === undefined;
if (!hasScript) console.log("skipped: progress on a terminal: script (util-linux) is not there");

const progress = suite("progress");

(hasScript || process.env.CI === "true" ? progress : progress.skip)(
  "a terminal sees each line in the place of the last, and none stays",
  () => {
    const args = ["--quiet", "--return", "--command", WORK.map(quote).join(" "), "/dev/null"];
    const { stdout, status } = spawnSync("script", args, { encoding: "utf8" });
    assert.is(stdout, `${CLEAR}1/2 first${CLEAR}2/2 second${CLEAR}done\r\n`);
    assert.is(status, 0);
  },
);

progress("a pipe sees none of it", () => {
  const [program = "", ...args] = WORK;
  const { stdout, stderr } = spawnSync(program, args, { encoding: "utf8" });
  assert.is(stdout, "done\n");
  assert.is(stderr, "");
});

progress("every script that shows progress takes it away at the end", () => {
  const files = fs.readdirSync(path.join(SCRIPTS, "dev")).filter((file) => /^[\w-]+\.ts$/.test(file));
  const showing = files
    .map((file) => fs.readFileSync(path.join(SCRIPTS, "dev", file), "utf8"))
    .filter((text) => /^ .*showProgress\(/m.test(text));
  assert.ok(showing.length >= 4, String(showing.length));
  for (const text of showing) assert.ok(text.includes('showProgress("", '), text.slice(0, 200));
});

progress.run();
