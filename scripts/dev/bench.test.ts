// SPDX-License-Identifier: GPL-2.0-only
// What bench.ts says, not how fast anything is: its arguments, how it judges numbers, and that it stops at a failure.

import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ImageError } from "../cli/errors.ts";
import { command, medianTimes, runQuietly, verdict } from "./bench.ts";
import { searchPath } from "./boot/tools.ts";
import { run } from "./sample/run.ts";

const bench = suite("bench");

for (const runs of ["0", "-1", "1", "2.5", "many", "1001"]) {
  bench(`refuses --runs=${runs}`, async () => {
    const { status, stderr, stdout } = await run(command, [`--runs=${runs}`]);
    assert.is(status, 2);
    assert.is(stderr, `bench.ts: --runs is '${runs}', needed a number from 2 to 1000; see bench.ts --help\n`);
    assert.is(stdout.length, 0);
  });
}

bench("says what was found, what was needed, and whether that is met", () => {
  assert.is(verdict("x", 0.6, 0.6), "  met: x: 0.60, needed at most 0.60\n");
  assert.is(verdict("x", 1.5, 0.6, String), "  missed: x: 1.5, needed at most 0.6\n");
});

bench("a program that fails or is not there ends it, with the program's words", () => {
  const failure = (words: readonly string[]): string => {
    try {
      return runQuietly(words);
    } catch (error) {
      if (error instanceof ImageError) return error.message;
      throw error;
    }
  };
  assert.is(failure(["echo", "done"]), "done");
  assert.is(failure(["sh", "-c", "echo 'no room' >&2; exit 3"]), "Cannot run sh: status 3, no room");
  assert.match(failure(["no-such-program"]), /^Cannot run no-such-program: .*ENOENT/);
});

const hasHyperfine = searchPath().some((folder) => fs.existsSync(path.join(folder, "hyperfine")));
if (!hasHyperfine) console.log("skipped: hyperfine is not there, which measures for bench");

(hasHyperfine || process.env.CI === "true" ? bench : bench.skip)(
  "hyperfine times each command, and no failures",
  () => {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), "bench it's "));
    try {
      const file = path.join(folder, "made");
      const times = medianTimes([["touch", file], ["true"]], 2, folder);
      assert.is(times.length, 2);
      assert.ok(
        times.every((time) => time > 0 && time < 60_000),
        String(times),
      );
      assert.ok(fs.existsSync(file), "a word with blanks and quotes in it arrives as it is");
      assert.throws(() => medianTimes([["false"]], 2, folder), /^Cannot run hyperfine: status 1, /);
    } finally {
      fs.rmSync(folder, { recursive: true });
    }
  },
);

bench.run();
