// SPDX-License-Identifier: GPL-2.0-only
//
// Measures mb-efi beside objcopy, llvm-objcopy and cp on the same files: time by hyperfine, memory by GNU time.
// A measurement, not a test: it fails when something cannot be run, never because it was slow.
//
// Every command writes a file that is not there yet, and reads one that is in memory already (page cache).
// Writes below build/bench only.

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { addSections } from "../add-sections.ts";
import { runIfMain, type Command, type Io } from "../cli/cli.ts";
import { ImageError, UsageError } from "../cli/errors.ts";
import { parseImage } from "../pe/parse.ts";
import { serializeImage } from "../pe/serialize.ts";
import { TOP } from "./places.ts";

const USAGE = `Usage: bench.ts [--runs N]

Measures mb-efi beside objcopy, llvm-objcopy and cp on known Xen builds (make fetch-xen): median times, ratios, memory.

  --runs N  how often each command runs in each of three rounds, 2 to 1000 (default: 5)
  --help    print this text

Exit status: 0 measured, 1 something is missing or fails, 2 wrong usage.
`;

const FOLDER = path.join(TOP, "build/bench");
const OUT = path.join(FOLDER, "out.efi");
const IDLE = path.join(FOLDER, "idle.mjs");
const TOOL = path.join(TOP, "build/xen-mb-efi.mjs");
const LARGE = path.join(TOP, "samples/xen/4.20.4+63/xen.efi");
const SMALL = path.join(TOP, "samples/xen/4.17.7+13/xen.efi");

/** The most that mb-efi may take of objcopy's time for 4.20.4+63, by node's major version. */
const MOST_TIME: Readonly<Record<string, number>> = { "20": 0.8, "24": 0.6 };
/** The memory that mb-efi may take beside an idle node's and the input's size, in sizes of the output. */
const MOST_OUTPUTS = 2.2;
/** How much larger the file is of which the time must have grown no more than its size. */
const LARGER = 4;

type Words = readonly string[];

/** @throws ImageError with the program's own words when it fails: times of failures say nothing */
export function runQuietly([program = "", ...args]: Words): string {
  // The Makefile sets NODE_COMPILE_CACHE; whoever runs mb-efi has none.
  const env = { ...process.env, NODE_COMPILE_CACHE: undefined };
  const { status, error, stdout, stderr } = spawnSync(program, args, { encoding: "utf8", env });
  if (error === undefined && status === 0) return stdout.trim();
  const words = error?.message ?? `status ${status}, ${stderr.trim().split("\n").at(-1)}`;
  throw new ImageError(`Cannot run ${program}: ${words}`);
}

const quote = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`;

/** hyperfine runs one command after the other: in rounds, what else the machine does hits all of them alike. */
const ROUNDS = 3;

/** The median time of each command in its best round, in milliseconds. @param folder for hyperfine's report */
export function medianTimes(commands: readonly Words[], runs: number, folder = FOLDER): number[] {
  const report = path.join(folder, "times.json");
  const lines = commands.map((words) => words.map(quote).join(" "));
  runQuietly([
    ...["hyperfine", "--shell=none", "--style=none", "--warmup=1", `--runs=${runs}`],
    ...[`--prepare=rm -f ${quote(OUT)}`, `--export-json=${report}`],
    ...Array.from({ length: ROUNDS }, () => lines).flat(),
  ]);
  const { results } = JSON.parse(fs.readFileSync(report, "utf8")) as { results: { median: number }[] };
  return lines.map((_, i) => 1000 * Math.min(...results.filter((_, n) => n % lines.length === i).map((r) => r.median)));
}

interface Measured {
  /** Milliseconds. */
  readonly time: number;
  /** Bytes, of memory and of the file that it wrote. */
  readonly memory: number;
  readonly output: number;
}

/** The most memory that a command has had at once, resident: the least of three runs, for it varies by chance. */
function memoryAndOutput(command: Words): Omit<Measured, "time"> {
  const report = path.join(FOLDER, "memory");
  const peaks = [1, 2, 3].map(() => {
    fs.rmSync(OUT, { force: true });
    runQuietly(["time", "-f", "%M", "-o", report, ...command]);
    return 1024 * Number(fs.readFileSync(report, "utf8"));
  });
  return { memory: Math.min(...peaks), output: fs.statSync(OUT, { throwIfNoEntry: false })?.size ?? 0 };
}

interface Node {
  /** "node 20.20.2" */
  readonly name: string;
  readonly program: string;
}

/** This node, and node 24 where "make runtimes" has got it. */
function nodes(): Node[] {
  const other = path.join(TOP, "build/runtimes/node_modules/node24/bin/node");
  return [process.execPath, other]
    .filter((program) => fs.existsSync(program))
    .map((program) => ({ name: `node ${runQuietly([program, "-p", "process.versions.node"])}`, program }));
}

const idle = ({ program }: Node): Words => [program, IDLE];
const mbEfi = ({ program }: Node, input: string): Words => [program, TOOL, input, OUT];

/** Prints a table of everything that takes this file. @returns what it found, by the names in the table */
function sideBySide(input: string, runs: number, io: Io): Map<string, Measured> {
  const all: [string, Words][] = [
    ["objcopy", ["objcopy", input, OUT]],
    ...nodes().flatMap((node): [string, Words][] => [
      [`mb-efi, ${node.name}`, mbEfi(node, input)],
      [`idle ${node.name}`, idle(node)],
    ]),
    ["llvm-objcopy", ["llvm-objcopy", input, OUT]],
    ["cp", ["cp", input, OUT]],
  ];
  const usable = all.filter(([name, command]) => name !== "llvm-objcopy" || takes(command, io));
  const times = medianTimes(
    usable.map(([, command]) => command),
    runs,
  );
  const [unit = 0] = times;
  io.stdout(`  ${"".padEnd(24)}${"median".padStart(9)}${"of objcopy's".padStart(15)}${"memory".padStart(13)}\n`);
  return new Map(
    usable.map(([name, command], i) => {
      const found = { time: times[i] ?? 0, ...memoryAndOutput(command) };
      const shares = `${(found.time / unit).toFixed(2).padStart(15)}${mib(found.memory).padStart(13)}`;
      io.stdout(`  ${name.padEnd(24)}${ms(found.time).padStart(9)}${shares}\n`);
      return [name, found];
    }),
  );
}

/** llvm-objcopy may be missing, and refuses some of Debian's images. */
function takes(command: Words, io: Io): boolean {
  try {
    runQuietly(command);
    return true;
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    io.stdout(`  skipped: ${error.message}\n`);
    return false;
  }
}

/** The large build with so many more bytes behind it that the file is LARGER times as long. */
function largerFile(): string {
  const input = fs.readFileSync(LARGE);
  const data = Buffer.concat(Array.from({ length: LARGER - 1 }, () => input));
  const file = path.join(FOLDER, "larger.efi");
  fs.writeFileSync(file, serializeImage(addSections(parseImage(input), [{ name: ".more", data }])));
  return file;
}

const ms = (time: number): string => `${time.toFixed(0)} ms`;
const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/** Where a target is met or not. */
export function verdict(what: string, found: number, most: number, show = (n: number) => n.toFixed(2)): string {
  const word = found <= most ? "met" : "missed";
  return `  ${word}: ${what}: ${show(found)}, needed at most ${show(most)}\n`;
}

function judge(node: Node, all: ReadonlyMap<string, Measured>, larger: number, io: Io): void {
  const of = (name: string): Measured => all.get(name) ?? { time: 0, memory: 0, output: 0 };
  const [own, tool] = [of(`idle ${node.name}`), of(`mb-efi, ${node.name}`)];
  const most = MOST_TIME[/\d+/.exec(node.name)?.[0] ?? ""];
  if (most !== undefined) io.stdout(verdict(`${node.name}: time / objcopy's`, tool.time / of("objcopy").time, most));
  const room = own.memory + fs.statSync(LARGE).size + MOST_OUTPUTS * tool.output;
  io.stdout(verdict(`${node.name}: memory, idle node + input + ${MOST_OUTPUTS} × output`, tool.memory, room, mib));
  const growth = (larger - own.time) / (tool.time - own.time);
  io.stdout(verdict(`${node.name}: time for ${LARGER} times the bytes / time, without node's start`, growth, LARGER));
}

function measure(runs: number, io: Io): void {
  const cores = os.cpus();
  const load = (os.loadavg()[0] ?? 0).toFixed(1);
  io.stdout(`${cores[0]?.model.trim()}, ${cores.length} cores, load ${load}; ${ROUNDS} times ${runs} runs of each\n`);
  io.stdout("\nXen 4.17.7+13, 2.8 MB\n");
  sideBySide(SMALL, runs, io);
  io.stdout("\nXen 4.20.4+63, 29 MB\n");
  const large = sideBySide(LARGE, runs, io);
  const file = largerFile();
  const times = medianTimes(
    nodes().map((node) => mbEfi(node, file)),
    runs,
  );
  io.stdout("\nTargets, for 4.20.4+63\n");
  for (const [i, node] of nodes().entries()) judge(node, large, times[i] ?? 0, io);
}

export const command: Command = {
  usage: USAGE,
  options: { runs: { type: "string" } },
  positionals: [],
  run(_positionals, values, io) {
    const runs = Number(values.runs ?? 5);
    if (!Number.isInteger(runs) || runs < 2 || runs > 1000)
      throw new UsageError(`--runs is '${values.runs}', needed a number from 2 to 1000`);
    for (const [file, target] of [
      [TOOL, "dist"],
      [LARGE, "fetch-xen"],
      [SMALL, "fetch-xen"],
    ] as const)
      if (!fs.existsSync(file)) throw new ImageError(`Cannot measure: ${file} is missing, make ${target} gets it`);
    fs.mkdirSync(FOLDER, { recursive: true });
    fs.writeFileSync(IDLE, "");
    try {
      measure(runs, io);
    } finally {
      fs.rmSync(FOLDER, { recursive: true, force: true });
    }
    return 0;
  },
};

runIfMain(import.meta.url, command);
