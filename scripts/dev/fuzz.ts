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
import { fileURLToPath } from "node:url";
import { runIfMain, showProgress } from "../cli/cli.ts";
import type { Command, Io, Values } from "../cli/cli.ts";
import { UsageError } from "../cli/errors.ts";
import { crashName, crashText } from "./fuzz/crash.ts";
import { Fuzzer } from "./fuzz/run.ts";
import type { Found, Totals } from "./fuzz/run.ts";
import type { Message } from "./fuzz/worker.ts";

const USAGE = `Usage: fuzz.ts [--seconds N] [--count N] [--seed N] [--from N]

Runs all scripts' functions on images that are broken at random, until time or number is up.

  --seconds N  for so long; 60 unless there is a --count
  --count N    so many images
  --seed N     the same images as with this seed before
  --from N     begin with image number N
  --help       print this text

Exit status: 0 nothing found, 1 something found and kept in samples/crash, 2 wrong usage.
`;

const CRASHES = fileURLToPath(new URL("../../samples/crash/", import.meta.url));
const WORKER = fileURLToPath(new URL("./fuzz/worker.ts", import.meta.url));
const DEFAULT_SECONDS = 60;
/** Images that the worker judges before it says how far it is; and before the user is told. */
const BLOCK = 32;
const PROGRESS = 64 * BLOCK;
/** A block that takes so long hangs; what is only slow, the worker finds by itself. */
const HANG_MILLISECONDS = 60_000;
/** Different findings after which a run ends: there is enough to do then. */
const MOST_FINDINGS = 20;

interface Run {
  readonly seed: number;
  readonly to: number;
  readonly deadline: number;
  readonly io: Io;
  readonly totals: Totals;
  /** Image numbers by kind of finding. */
  readonly kinds: Map<string, number>;
}

/**
 * A process that judges images; it is killed when it hangs.
 * @param every images per line of progress: with 1, the one that hangs is known
 * @returns the number to go on with: `to` unless it hung
 */
async function runWorker(run: Run, from: number, every: number): Promise<number> {
  const args = [run.seed, from, run.to, run.deadline, every].map(String);
  const worker = spawn(process.execPath, [...process.execArgv, WORKER, ...args], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = new Promise<number | null>((resolve) => worker.once("close", resolve));
  let [at, complete, hangs] = [from, false, false];
  const kill = (): void => {
    hangs = true;
    worker.kill("SIGKILL");
  };
  let timer = setTimeout(kill, HANG_MILLISECONDS);
  for await (const line of readline.createInterface({ input: worker.stdout })) {
    const message = JSON.parse(line) as Message;
    if ("at" in message) {
      at = message.at;
      clearTimeout(timer);
      timer = setTimeout(kill, HANG_MILLISECONDS);
      if ((at - from) % PROGRESS === 0) showProgress(`image ${at}, ${run.kinds.size} findings`, run.io);
    } else if ("found" in message) {
      const { hex, ...rest } = message.found;
      keep(run, { ...rest, bytes: Buffer.from(hex, "hex") });
      if (run.kinds.size >= MOST_FINDINGS) worker.kill("SIGKILL");
    } else {
      complete = true;
      for (const key of ["images", "steps", "verified"] as const) run.totals[key] += message.totals[key];
    }
  }
  clearTimeout(timer);
  const status = await ended;
  if (complete || run.kinds.size >= MOST_FINDINGS) return run.to;
  if (!hangs) throw new Error(`the worker ended with status ${status} behind image ${at}`);
  if (every !== 1) return await runWorker(run, at, 1);
  const { base, bytes } = new Fuzzer(run.seed).image(at);
  keep(run, { index: at, base, kind: "hang", message: `hangs for more than ${HANG_MILLISECONDS} ms`, bytes });
  run.totals.images += at + 1 - from;
  return at + 1;
}

/** The first of each kind is shown and kept. */
function keep(run: Run, found: Found): void {
  if (run.kinds.has(found.kind)) return;
  run.kinds.set(found.kind, found.index);
  const name = crashName(found.bytes);
  const how = `fuzz.ts --seed ${run.seed} --from ${found.index} --count 1, from ${found.base}`;
  const why = `${found.message}\nFound by ${how}.`;
  fs.mkdirSync(CRASHES, { recursive: true });
  fs.writeFileSync(path.join(CRASHES, name), crashText(found.bytes, oneLineEach(why)));
  showProgress("", run.io);
  run.io.stdout(`image ${found.index}, from ${found.base}: ${found.message}\n  kept as samples/crash/${name}\n`);
}

function oneLineEach(text: string): string {
  return text
    .split("\n")
    .map((line) => line.replace(/[^ -~]/g, "?").slice(0, 300))
    .join("\n");
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
      kinds: new Map(),
    };
    io.stdout(`seed ${seed}\n`);
    while (from < to && Date.now() < run.deadline) from = await runWorker(run, from, BLOCK);
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
