// SPDX-License-Identifier: GPL-2.0-only
//
// Measures mb-efi beside objcopy, llvm-objcopy and cp, on the same files, and prints what it found beside the targets.
// A measurement, not a test: it fails when something cannot be run, never because it was slow.
//
// Every command writes a file that is not there yet; what it reads is in memory already (page cache). Commands alternate,
// and medians are compared, so that other work on the machine hits all of them; it still makes all of them slower.
// Writes below build/bench only.

import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { readInput, runIfMain, writeOutput } from "../cli/cli.ts";
import type { Command, Io } from "../cli/cli.ts";
import { ImageError, UsageError } from "../cli/errors.ts";
import {
  alternate,
  diskUse,
  median,
  mib,
  ms,
  nodeName,
  peakMemory,
  programPath,
  runQuietly,
  strips,
  target,
} from "./bench/run.ts";
import type { Candidate, Times } from "./bench/run.ts";
import type { Work } from "./bench/work.ts";
import { bundle } from "./dist.ts";
import { SCRIPTS, TOP } from "./places.ts";
import { parseImage, roundUp, serializeImage, withHeader } from "../pe/image.ts";
import { layOutPacked } from "../xen/layout.ts";
import { loadSpan } from "../xen/xen.ts";

const USAGE = `Usage: bench.ts [--runs N]

Measures mb-efi beside objcopy, llvm-objcopy and cp on known Xen builds (make fetch-xen), and prints medians and ratios.

  --runs N  how often each command runs, 1 to 1000 (default: 15)
  --help    print this text

Exit status: 0 measured, 1 something is missing or fails, 2 wrong usage.
`;

const FOLDER = path.join(TOP, "build/bench");
const OUT = path.join(FOLDER, "out.efi");
const TOOL = path.join(TOP, "build/xen-mb-efi.mjs");
const LARGE = path.join(TOP, "samples/xen/4.20.4+63/xen.efi");
const SMALL = path.join(TOP, "samples/xen/4.17.7+13/xen.efi");
const IDLE = path.join(FOLDER, "idle.mjs");
const WORK = path.join(FOLDER, "work.mjs");
const CHAIN_OUT = path.join(FOLDER, "chain");
/** A node that reads files and writes the last of them to another: what any process between two files has to do. */
const COPY = path.join(FOLDER, "copy.mjs");
const COPY_TEXT = `import * as fs from "node:fs";
const [output, ...inputs] = process.argv.slice(2);
const bytes = inputs.map((input) => fs.readFileSync(input)).at(-1);
if (output !== "") fs.writeFileSync(output, bytes);
`;
const RESULT = path.join(FOLDER, "result.efi");

/** A node that runs the scripts as they are: this one, or one that "make runtimes" got. */
function strippingNode(): string | undefined {
  const others = ["node24", "node22"].map((name) => path.join(TOP, "build/runtimes/node_modules", name, "bin/node"));
  return [process.execPath, ...others].find((program) => fs.existsSync(program) && strips(program));
}

function freshOut(): void {
  fs.rmSync(OUT, { force: true });
  fs.rmSync(CHAIN_OUT, { recursive: true, force: true });
  fs.mkdirSync(CHAIN_OUT);
}

const DIST = "mb-efi, dist";
const IDLE_NODE = "idle node";
const OBJCOPY = "objcopy";
const CHAIN = "make, four processes";
const FLOOR = "files alone, four processes";

/** The chain's files without its work: two steps read what is as long as the input, one and verify what the result is. */
const FLOOR_SCRIPT =
  'set -e; "$0" "$1" "$2/1" "$3"; "$0" "$1" "$2/2" "$3"; "$0" "$1" "$2/3" "$4"; "$0" "$1" "" "$3" "$4"';

function candidates(input: string, stripping: string | undefined): Candidate[] {
  const node = process.execPath;
  const chain = ["make", "-s", "-C", TOP, `OUT=${CHAIN_OUT}`, `XEN_EFI=${input}`];
  const needed = "a node that strips types: make runtimes gets one";
  return [
    { name: `${IDLE_NODE} (${nodeName(node)})`, command: [node, IDLE] },
    { name: `${DIST} (${nodeName(node)})`, command: [node, TOOL, input, OUT] },
    ...(stripping === undefined
      ? ["mb-efi.ts", CHAIN].map((name) => ({ name, command: [""], missing: needed }))
      : [
          { name: `idle (${nodeName(stripping)})`, command: [stripping, IDLE] },
          { name: `${DIST} (${nodeName(stripping)})`, command: [stripping, TOOL, input, OUT] },
          {
            name: `mb-efi.ts (${nodeName(stripping)})`,
            command: [stripping, "--disable-warning=ExperimentalWarning", path.join(SCRIPTS, "mb-efi.ts"), input, OUT],
          },
          { name: `${CHAIN} (${nodeName(stripping)})`, command: [...chain, `NODE=${stripping}`] },
          {
            name: `${FLOOR} (${nodeName(stripping)})`,
            command: ["sh", "-c", FLOOR_SCRIPT, stripping, COPY, CHAIN_OUT, input, RESULT],
          },
        ]),
    { name: OBJCOPY, command: ["objcopy", input, OUT], missing: "package binutils" },
    { name: "llvm-objcopy", command: ["llvm-objcopy", input, OUT], missing: "package llvm" },
    { name: "cp", command: ["cp", input, OUT] },
  ];
}

/** Those that are there and can take the input; for the others a line that says why not. */
function usable(all: readonly Candidate[], io: Io): Candidate[] {
  return all.filter(({ name, command, missing }) => {
    const [program = ""] = command;
    if (programPath(program) === undefined) {
      io.stdout(`  skipped: ${name}: ${missing ?? `${program} not found`}\n`);
      return false;
    }
    try {
      freshOut();
      runQuietly(command);
      return true;
    } catch (error) {
      if (!(error instanceof ImageError) || missing === undefined) throw error;
      io.stdout(`  skipped: ${name}: ${error.message}\n`);
      return false;
    }
  });
}

/** The times of the first one whose name begins so. */
function timesOf(all: ReadonlyMap<Candidate, Times>, name: string): Times | undefined {
  return [...all].find(([candidate]) => candidate.name.startsWith(name))?.[1];
}

function table(all: ReadonlyMap<Candidate, Times>, io: Io): void {
  const unit = median(timesOf(all, OBJCOPY) ?? []);
  io.stdout(`  ${"".padEnd(44)}${"median".padStart(9)}${"least".padStart(9)}   median / objcopy's\n`);
  for (const [{ name }, times] of all) {
    const ratio = timesOf(all, OBJCOPY) === undefined ? "" : (median(times) / unit).toFixed(2);
    io.stdout(`  ${name.padEnd(44)}${ms(median(times)).padStart(9)}${ms(times[0] ?? 0).padStart(9)}   ${ratio}\n`);
  }
}

const ratio = (value: number): string => `${value.toFixed(2)}`;

function sideBySide(input: string, runs: number, io: Io): ReadonlyMap<Candidate, Times> {
  runQuietly([process.execPath, TOOL, input, RESULT]);
  const all = alternate(usable(candidates(input, strippingNode()), io), runs, freshOut);
  table(all, io);
  return all;
}

// ---- the work without process start

/** Runs bench-work in new processes. @returns for each, its times, the first ones being those of a new process */
function works(input: string, runs: number, again: number): Work[][] {
  const child = [process.execPath, WORK, input, OUT];
  return Array.from({ length: runs }, () => JSON.parse(runQuietly([...child, String(again)])) as Work[]);
}

function medians(works: readonly Work[]): Work {
  const of = (part: 0 | 1 | 2): number => median(works.map((work) => work[part]).sort((a, b) => a - b));
  return [of(0), of(1), of(2)];
}

/** @returns milliseconds of reading, working and writing in a new process */
function workAlone(input: string, runs: number, io: Io): number {
  const all = works(input, runs, 10);
  const kinds = [
    ["in a new process", all.flatMap((times) => times.slice(0, 1))],
    ["when warm", all.flatMap((times) => times.slice(-3))],
  ] as const;
  let total = 0;
  for (const [name, times] of kinds) {
    const [read, work, write] = medians(times);
    io.stdout(`  ${name.padEnd(18)}reading ${ms(read)}, steps and verify ${ms(work)}, writing ${ms(write)}\n`);
    io.stdout(
      target("steps and verify / reading and writing", work / (read + write), 2, ratio) +
        target("all of it / reading and writing", (read + work + write) / (read + write), 2, ratio),
    );
    if (total === 0) total = read + work + write;
  }
  return total;
}

// ---- more debug information

/** The build with its debug information repeated, as a larger program would have it. */
function withMoreDebug(input: string, times: number, io: Io): string {
  const image = parseImage(readInput(input, io));
  let end = 0;
  const sections = image.sections.map((section) => {
    const start = end === 0 ? section.header.virtualAddress : roundUp(end, 16);
    if (!section.name.startsWith(".debug_")) return section;
    const data = new Uint8Array(section.data.length * times);
    for (let at = 0; at < data.length; at += section.data.length) data.set(section.data, at);
    end = start + data.length;
    return withHeader(section, { virtualAddress: start, virtualSize: data.length }, data);
  });
  const sizeOfImage = roundUp(Math.max(end, image.optional.sizeOfImage), image.optional.sectionAlignment);
  const larger = { ...image, sections, optional: { ...image.optional, sizeOfImage } };
  const file = path.join(FOLDER, `debug-${times}.efi`);
  writeOutput(file, serializeImage(layOutPacked(larger, loadSpan(larger, "bench"), "bench")), io);
  return file;
}

function linear(runs: number, io: Io): void {
  const points = [1, 4, 16].map((times) => {
    const file = withMoreDebug(LARGE, times, io);
    const [read, work, write] = medians(works(file, runs, 1).flat());
    const megabytes = fs.statSync(file).size / 1e6;
    fs.rmSync(file);
    return { times, megabytes, read, work, write };
  });
  const [first] = points;
  for (const { times, megabytes, read, work, write } of points) {
    const step =
      first === undefined || times === 1
        ? ""
        : `, of the steps and verify ${ms((work - first.work) / (megabytes - first.megabytes))} for each further MB`;
    io.stdout(
      `  ${`${times}×`.padStart(3)}  ${megabytes.toFixed(0).padStart(4)} MB: reading ${ms(read)}, steps and verify ${ms(work)}, writing ${ms(write)}${step}\n`,
    );
  }
}

// ---- memory, disk

function memory(input: string, io: Io): void {
  const time = programPath("time");
  if (time === undefined) return void io.stdout("  skipped: time not found (package time)\n");
  const node = process.execPath;
  const own = peakMemory(time, [node, IDLE], freshOut) * 1024;
  const tools = [OBJCOPY, "llvm-objcopy"].filter((tool) => programPath(tool) !== undefined);
  for (const tool of tools) {
    io.stdout(`  ${tool.padEnd(18)}${mib(peakMemory(time, [tool, input, OUT], freshOut) * 1024).padStart(10)}\n`);
  }
  const peak = peakMemory(time, [node, TOOL, input, OUT], freshOut) * 1024;
  io.stdout(`  ${IDLE_NODE.padEnd(18)}${mib(own).padStart(10)}\n  ${DIST.padEnd(18)}${mib(peak).padStart(10)}\n`);
  const most = own + fs.statSync(input).size + 1.2 * fs.statSync(OUT).size;
  io.stdout(target("idle node + input + 1.2 × output", peak, most, mib));
}

function disk(input: string, io: Io): void {
  freshOut();
  runQuietly([process.execPath, TOOL, input, OUT]);
  const [size, used] = [fs.statSync(OUT).size, diskUse(OUT)];
  io.stdout(`  ${size} bytes, which take ${used} of the disk; xen.efi has ${fs.statSync(input).size} bytes\n`);
}

// ---- the command

function requireInputs(): void {
  if (!fs.existsSync(TOOL)) throw new ImageError(`Cannot measure: ${TOOL} is missing, make dist makes it`);
  for (const file of [LARGE, SMALL]) {
    if (!fs.existsSync(file)) throw new ImageError(`Cannot measure: ${file} is missing, make fetch-xen gets it`);
  }
}

function measure(runs: number, io: Io): void {
  const head = (text: string): void => io.stdout(`\n${text}\n`);
  const busy = os.loadavg()[0] ?? 0;
  io.stdout(`${os.cpus()[0]?.model.trim()}, ${os.cpus().length} cores; ${runs} runs of each, alternating\n`);
  if (busy > 0.5) {
    io.stdout(`warning: other programs keep ${busy.toFixed(1)} cores busy, which makes everything slower, node most\n`);
  }
  head("Xen 4.20.4+63, 29 MB");
  const large = sideBySide(LARGE, runs, io);
  const at = (all: ReadonlyMap<Candidate, Times>, name: string): number => median(timesOf(all, name) ?? []);
  if (timesOf(large, OBJCOPY) !== undefined) {
    io.stdout(target("dist / objcopy", at(large, DIST) / at(large, OBJCOPY), 0.75, ratio));
  }
  head("Xen 4.17.7+13, 2.8 MB");
  const small = sideBySide(SMALL, runs, io);
  io.stdout(target("dist - idle node", at(small, DIST) - at(small, IDLE_NODE), 60, ms));
  head("The work alone, without process start (4.20.4+63)");
  const work = workAlone(LARGE, Math.min(runs, 9), io);
  if (timesOf(large, CHAIN) !== undefined) {
    io.stdout(
      target("four-process chain: 5 × idle node + the work", at(large, CHAIN), 5 * at(large, "idle (") + work, ms),
    );
    io.stdout(`  reading and writing its files alone, in four processes, takes ${ms(at(large, FLOOR))}\n`);
  }
  head("Peak memory (4.20.4+63)");
  memory(LARGE, io);
  head("1×, 4× and 16× the debug information (4.20.4+63), in a new process, without its start");
  linear(Math.min(runs, 5), io);
  head("On disk (4.17.7+13)");
  disk(SMALL, io);
}

export const command: Command = {
  usage: USAGE,
  options: { runs: { type: "string" } },
  positionals: [],
  async run(_positionals, values, io) {
    const runs = Number(values.runs ?? 15);
    if (!Number.isInteger(runs) || runs < 1 || runs > 1000) {
      throw new UsageError(`--runs is '${values.runs}', needed a number from 1 to 1000`);
    }
    requireInputs();
    // The Makefile sets it, and will again for the chain; whoever runs mb-efi has none.
    delete process.env.NODE_COMPILE_CACHE;
    fs.mkdirSync(FOLDER, { recursive: true });
    fs.writeFileSync(IDLE, "");
    fs.writeFileSync(COPY, COPY_TEXT);
    fs.writeFileSync(WORK, await bundle(path.join(SCRIPTS, "dev/bench/work.ts")));
    try {
      measure(runs, io);
    } finally {
      fs.rmSync(FOLDER, { recursive: true, force: true });
    }
    return 0;
  },
};

runIfMain(import.meta.url, command);
