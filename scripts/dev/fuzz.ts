// SPDX-License-Identifier: GPL-2.0-only
//
// Changes small images, field by field and byte by byte, and runs all scripts' pure functions on them: they may refuse
// with an ImageError and in no other way, not hang, not allocate what a header claims, not change their input; and what
// one step makes, the next step, verify and the step itself must take.
//
// Changes: nothing but samples/crash/, where it keeps the input of each new finding, which `make test` then replays.
// Repeatable: image N of a seed is always the same. Without --seed it chooses one, and says which.

import { Buffer } from "node:buffer";
import { spawn } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import * as readline from "node:readline";
import { runIfMain, type Command, type Io, type Values } from "../cli/cli.ts";
import { UsageError } from "../cli/errors.ts";
import { crashName, crashText } from "./fuzz/crash.ts";
import { Fuzzer, type Found, type Totals } from "./fuzz/run.ts";
import type { Message } from "./fuzz/worker.ts";
import { SAMPLES, SCRIPTS } from "./places.ts";
import { showProgress } from "./progress.ts";

const USAGE = `Usage: fuzz.ts [--seconds N] [--count N] [--seed N] [--from N]

Runs all scripts' functions on images that are broken at random, until time or number is up.

  --seconds N  for so long; 60 unless there is a --count
  --count N    so many images
  --seed N     the same images as with this seed before
  --from N     begin with image number N
  --help       print this text

Exit status: 0 nothing found, 1 something found and kept in samples/crash, 2 wrong usage.
`;

const CRASHES = path.join(SAMPLES, "crash");
const WORKER = path.join(SCRIPTS, "dev/fuzz/worker.ts");
const DEFAULT_SECONDS = 60;
/** Images between two words to the user. */
const PROGRESS = 2048;
/** An image that takes so long hangs; one that is only slow, the worker finds by itself. */
const HANG_MILLISECONDS = 60_000;
/** Different findings after which a run ends: there is enough to do then. */
const MOST_FINDINGS = 20;

interface Run {
  readonly seed: number;
  readonly to: number;
  readonly deadline: number;
  readonly io: Io;
  readonly totals: Totals;
  readonly kinds: Set<string>;
}

/** A process judges images, and is killed when it hangs. @returns the image number to go on with */
async function runWorker(run: Run, from: number): Promise<number> {
  const args = [run.seed, from, run.to, run.deadline].map(String);
  const worker = spawn(process.execPath, [...process.execArgv, WORKER, ...args], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = new Promise<number | null>((resolve) => worker.once("close", resolve));
  let totals: Totals = { images: 0, steps: 0, verified: 0 };
  let hangs = false;
  const timer = setTimeout(() => {
    hangs = true;
    worker.kill("SIGKILL");
  }, HANG_MILLISECONDS);
  for await (const line of readline.createInterface({ input: worker.stdout })) {
    timer.refresh();
    const message = JSON.parse(line) as Message;
    if ("found" in message) {
      const { hex, ...rest } = message.found;
      keep(run, { ...rest, bytes: Buffer.from(hex, "hex") });
      if (run.kinds.size >= MOST_FINDINGS) worker.kill("SIGKILL");
    } else {
      totals = message.totals;
      if (totals.images % PROGRESS === 0)
        showProgress(`image ${from + totals.images}, ${run.kinds.size} findings`, run.io);
    }
  }
  clearTimeout(timer);
  const status = await ended;
  for (const key of ["images", "steps", "verified"] as const) run.totals[key] += totals[key];
  const at = from + totals.images;
  if (status === 0 || run.kinds.size >= MOST_FINDINGS) return run.to;
  if (!hangs) throw new Error(`the worker ended with status ${status} at image ${at}`);
  const { base, bytes } = new Fuzzer(run.seed).image(at);
  keep(run, { index: at, base, kind: "hang", message: `hangs for more than ${HANG_MILLISECONDS} ms`, bytes });
  run.totals.images++;
  return at + 1;
}

/** The first of each kind is shown and kept. */
function keep(run: Run, { kind, index, base, message, bytes }: Found): void {
  if (run.kinds.has(kind)) return;
  run.kinds.add(kind);
  const name = crashName(bytes);
  const why = `${message}\nFound by fuzz.ts --seed ${run.seed} --from ${index} --count 1, from ${base}.`;
  const lines = why.split("\n").map((line) => line.replace(/[^ -~]/g, "?").slice(0, 300));
  fs.mkdirSync(CRASHES, { recursive: true });
  fs.writeFileSync(path.join(CRASHES, name), crashText(bytes, lines.join("\n")));
  showProgress("", run.io);
  run.io.stdout(`image ${index}, from ${base}: ${message}\n  kept as samples/crash/${name}\n`);
}

function numberOption(values: Values, name: string): number | undefined {
  const value = values[name];
  if (value === undefined) return undefined;
  if (typeof value !== "string" || !/^\d{1,9}$/.test(value))
    throw new UsageError(`--${name} '${String(value)}' is not a number below 1000000000`);
  return Number(value);
}

export const command: Command = {
  usage: USAGE,
  options: {
    seconds: { type: "string" },
    count: { type: "string" },
    seed: { type: "string" },
    from: { type: "string" },
  },
  positionals: [],
  async run(_positionals, values, io) {
    const count = numberOption(values, "count");
    const seconds = numberOption(values, "seconds") ?? (count === undefined ? DEFAULT_SECONDS : Infinity);
    const seed = numberOption(values, "seed") ?? Date.now() % 1_000_000_000;
    let from = numberOption(values, "from") ?? 0;
    const start = Date.now();
    const to = from + (count ?? 2 ** 31 - 1 - from);
    const run: Run = {
      seed,
      to,
      deadline: Math.min(start + 1000 * seconds, Number.MAX_SAFE_INTEGER),
      io,
      totals: { images: 0, steps: 0, verified: 0 },
      kinds: new Set(),
    };
    io.stdout(`seed ${seed}\n`);
    while (from < to && Date.now() < run.deadline) from = await runWorker(run, from);
    showProgress("", io);
    const { images, steps, verified } = run.totals;
    const took = Math.round((Date.now() - start) / 1000);
    io.stdout(
      `${images} images in ${took} s: ${steps} times a step took one, ` +
        `${verified} results verified, ${run.kinds.size} findings\n`,
    );
    return run.kinds.size === 0 ? 0 : 1;
  },
};

runIfMain(import.meta.url, command);
