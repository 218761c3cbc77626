// SPDX-License-Identifier: GPL-2.0-only
// What tests of the steps share: samples by name, commands in this process with streams that are kept, the known builds.

import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import * as path from "node:path";
import { runCommand, type Command } from "../../cli/cli.ts";
import { knownBuilds } from "../known-builds.ts";
import { TOP } from "../places.ts";
import { makeSample } from "./text.ts";

/** A file of samples/, edited. */
export function sample(edits = "", base = "tiny"): Uint8Array {
  const image = makeSample(`from ${base}.pe.txt\n${edits}`, (name) =>
    fs.readFileSync(path.join(TOP, "samples", name), "utf8"),
  );
  return new Uint8Array(image);
}

export interface Result {
  readonly status: number;
  readonly stdout: Buffer;
  readonly stderr: string;
}

/** Runs a command in this process. */
export async function run(
  command: Command,
  args: readonly string[],
  stdin: Uint8Array = new Uint8Array(),
): Promise<Result> {
  const out: Uint8Array[] = [];
  let stderr = "";
  const status = await runCommand(command, args, {
    stdin: () => stdin,
    stdout: (bytes) => void out.push(Buffer.from(bytes as Uint8Array)),
    stderr: (text) => (stderr += text),
  });
  return { status, stdout: Buffer.concat(out), stderr };
}

/**
 * One known build of each kind: old without DWARF, .reloc at _end, 23 MB with DWARF. The goldens have all of them, so
 * that the properties need not.
 */
export const KINDS: readonly string[] = ["4.14.6-1", "4.17.7+13", "4.20.4+39"];

/** The real builds that are here, and a line for each that is not. */
export function builds(
  wanted: readonly string[] = knownBuilds.map(({ id }) => id),
): { id: string; bytes: Uint8Array }[] {
  return knownBuilds
    .filter(({ id }) => wanted.includes(id))
    .flatMap(({ id }) => {
      const file = path.join(TOP, "samples", "xen", id, "xen.efi");
      if (fs.existsSync(file)) return [{ id, bytes: new Uint8Array(fs.readFileSync(file)) }];
      console.log(`skipped: Xen ${id} is not in samples/xen (make fetch-xen)`);
      return [];
    });
}

/** Computes a value when it is first asked for, and once. */
export function once<T>(compute: () => T): () => T {
  let value: { it: T } | undefined;
  return () => (value ??= { it: compute() }).it;
}

/** The file ranges in which two files differ; a range ends when 16 bytes are equal. */
export function differences(a: Uint8Array, b: Uint8Array): [start: number, end: number][] {
  const ranges: [number, number][] = [];
  const length = Math.max(a.length, b.length);
  const block = 4096;
  for (let from = 0; from < length; from += block) {
    if (Buffer.compare(a.subarray(from, from + block), b.subarray(from, from + block)) === 0) continue;
    for (let i = from; i < Math.min(from + block, length); i++) {
      if (a[i] === b[i]) continue;
      const last = ranges.at(-1);
      if (last !== undefined && i - last[1] < 16) last[1] = i + 1;
      else ranges.push([i, i + 1]);
    }
  }
  return ranges;
}
