// SPDX-License-Identifier: GPL-2.0-only
// What bench.ts says, not how fast anything is: its arguments, and how it judges numbers and commands.

import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { realIo, writeOutput } from "../cli/cli.ts";
import { ImageError } from "../cli/errors.ts";
import { command } from "./bench.ts";
import { alternate, diskUse, median, runQuietly, target } from "./bench/run.ts";
import { run } from "./sample/run.ts";

const bench = suite("bench");

for (const runs of ["0", "-1", "1.5", "many", "1001"]) {
  bench(`refuses --runs=${runs}`, async () => {
    const { status, stderr, stdout } = await run(command, [`--runs=${runs}`]);
    assert.is(status, 2);
    assert.is(stderr, `bench.ts: --runs is '${runs}', needed a number from 1 to 1000; see bench.ts --help\n`);
    assert.is(stdout.length, 0);
  });
}

bench("takes the middle, and says by how much a target is missed", () => {
  assert.is(median([1, 2, 9]), 2);
  assert.is(median([1, 2, 4, 9]), 3);
  assert.match(target("x", 0.75, 0.75, String), /measured 0\.75, met\n$/);
  assert.match(target("x", 1.5, 0.75, String), /missed by 100 %\n$/);
});

bench("runs commands in turn, and stops at one that fails, with its words", () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "bench-"));
  try {
    const log = path.join(folder, "log");
    const candidate = (name: string) => ({
      name,
      command: [process.execPath, "-e", `fs.appendFileSync(${JSON.stringify(log)}, "${name}")`],
    });
    const times = alternate([candidate("a"), candidate("b")], 2, () => {});
    assert.is(fs.readFileSync(log, "utf8"), "abab");
    for (const list of times.values()) assert.is(list.length, 2);
    assert.throws(
      () => runQuietly(["sh", "-c", "echo 'no room' >&2; exit 3"]),
      (error: unknown) => error instanceof ImageError && error.message === "Cannot run sh: status 3, no room",
    );
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
});

bench("sees holes: zeros that are not written take nothing of the disk", () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "bench-"));
  try {
    const [zeros, ones] = [path.join(folder, "zeros"), path.join(folder, "ones")];
    writeOutput(zeros, new Uint8Array(1 << 20), realIo);
    writeOutput(ones, new Uint8Array(1 << 20).fill(1), realIo);
    assert.ok(diskUse(zeros) <= 4096, `${diskUse(zeros)} bytes`);
    assert.ok(diskUse(ones) >= 1 << 20, `${diskUse(ones)} bytes`);
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
});

bench.run();
