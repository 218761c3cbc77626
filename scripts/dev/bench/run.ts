// SPDX-License-Identifier: GPL-2.0-only
// Runs commands side by side for bench.ts, and puts what it measured into lines.

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { ImageError } from "../../cli/errors.ts";
import { searchPath } from "../boot/tools.ts";

/** A command to be measured, or why it cannot be. */
export interface Candidate {
  readonly name: string;
  readonly command: readonly string[];
  /** What to install when the program is not there. */
  readonly missing?: string;
}

/** Milliseconds, in ascending order. */
export type Times = readonly number[];

export function median(times: Times): number {
  const middle = times.length >> 1;
  const [low = 0, high = 0] = [times[times.length % 2 === 0 ? middle - 1 : middle], times[middle]];
  return (low + high) / 2;
}

/** The program's path; undefined when it is nowhere in PATH. */
export function programPath(name: string): string | undefined {
  if (name.includes("/")) return fs.existsSync(name) ? name : undefined;
  return searchPath()
    .map((folder) => path.join(folder, name))
    .find((file) => fs.existsSync(file));
}

/** @throws ImageError with the command's own words when it fails: times of failures say nothing */
export function runQuietly(command: readonly string[]): string {
  const [program = "", ...args] = command;
  const { status, error, stdout, stderr } = spawnSync(program, args, { encoding: "utf8", maxBuffer: 2 ** 28 });
  if (error !== undefined || status !== 0) {
    const words = `${stderr ?? ""}`.trim().split("\n").at(-1) ?? "";
    throw new ImageError(`Cannot run ${program}: ${error?.message ?? `status ${status}, ${words}`}`);
  }
  return `${stdout}${stderr}`;
}

/**
 * Runs every candidate `runs` times, one after the other and again: what else the machine does hits all alike.
 * @param before is done ahead of each run, outside the time
 */
export function alternate(candidates: readonly Candidate[], runs: number, before: () => void): Map<Candidate, Times> {
  const times = new Map<Candidate, number[]>(candidates.map((candidate) => [candidate, []]));
  for (let i = 0; i < runs; i++) {
    for (const [{ command }, list] of times) {
      before();
      const start = performance.now();
      runQuietly(command);
      list.push(performance.now() - start);
    }
  }
  for (const list of times.values()) list.sort((a, b) => a - b);
  return times;
}

/**
 * The most memory that a command has had at once, resident, in KiB; the least of some runs, for it varies by chance.
 * @param time GNU time
 */
export function peakMemory(time: string, command: readonly string[], before: () => void, runs = 3): number {
  const peaks = Array.from({ length: runs }, () => {
    before();
    const lines = runQuietly([time, "-f", "%M", ...command])
      .trim()
      .split("\n");
    return Number(lines.at(-1));
  });
  return Math.min(...peaks);
}

/** Bytes on the disk: a hole takes none. */
export function diskUse(file: string): number {
  const fd = fs.openSync(file, "r+");
  fs.fsyncSync(fd);
  fs.closeSync(fd);
  return fs.statSync(file).blocks * 512;
}

export function ms(time: number): string {
  return `${time.toFixed(time < 10 ? 1 : 0)} ms`;
}

export function mib(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

/** "node 20.20.2" */
export function nodeName(program: string): string {
  return `node ${runQuietly([program, "-p", "process.versions.node"]).trim()}`;
}

/** Whether this node runs TypeScript as it is. */
export function strips(program: string): boolean {
  return runQuietly([program, "-p", "Boolean(process.features.typescript)"]).trim() === "true";
}

/** Where a target is met or not. */
export function target(what: string, measured: number, most: number, show: (value: number) => string): string {
  const verdict = measured <= most ? "met" : `missed by ${(100 * (measured / most - 1)).toFixed(0)} %`;
  return `  target: ${what} ≤ ${show(most)}; measured ${show(measured)}, ${verdict}\n`;
}
