// SPDX-License-Identifier: GPL-2.0-only
// Runs test files, each in a process of its own and two at a time, and ends with one line "N passed, N failed, N skipped".
// A file that runs no test fails, as uvu would let it pass; what a test says of a skip is shown.

import { spawn } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { runIfMain } from "../cli/cli.ts";
import type { Command, Io } from "../cli/cli.ts";
import { UsageError } from "../cli/errors.ts";
import { SCRIPTS } from "./places.ts";

const AT_ONCE = 2;

const USAGE = `Usage: run-tests.ts [--only PATTERN]

Runs scripts/**/*.test.ts and prints the output of those that fail, and what was skipped.

  --only PATTERN  only files whose name contains this
  --help          print this text

Exit status: 0 all passed, 1 a test failed or none ran, 2 wrong usage.
`;

interface Outcome {
  readonly file: string;
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
  readonly output: string;
  readonly seconds: number;
}

function testFiles(directory: string): string[] {
  return fs
    .readdirSync(directory, { withFileTypes: true })
    .flatMap((entry) =>
      entry.isDirectory() ? testFiles(path.join(directory, entry.name)) : [path.join(directory, entry.name)],
    )
    .filter((file) => file.endsWith(".test.ts"))
    .sort();
}

/** The same node, with the same loader, runs the test file as it runs this one. */
function runFile(file: string): Promise<Outcome> {
  const start = Date.now();
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [...process.execArgv, file], { stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding("utf8").on("data", (text: string) => (output += text));
    child.on("error", (error) => (output += `${error.message}\n`));
    child.on("close", (status) =>
      resolve({ file, output, seconds: (Date.now() - start) / 1000, ...counts(output, status) }),
    );
  });
}

/** uvu's closing lines: "Total:", "Passed:", "Skipped:". */
function counts(output: string, status: number | null): { passed: number; failed: number; skipped: number } {
  const number = (label: string): number => Number(new RegExp(`^\\s*${label}:\\s+(\\d+)`, "m").exec(output)?.[1] ?? 0);
  const [total, passed, skipped] = [number("Total"), number("Passed"), number("Skipped")];
  // A file that dies halfway, or that runs nothing, has failed at least once.
  const failed = Math.max(total - passed, status === 0 && total + skipped > 0 ? 0 : 1);
  return { passed, failed, skipped };
}

function report({ file, passed, failed, skipped, output, seconds }: Outcome, io: Io): void {
  const name = path.relative(path.dirname(SCRIPTS), file);
  io.stdout(
    `${failed === 0 ? "ok  " : "FAIL"} ${name}: ${passed} passed, ${failed} failed, ${skipped} skipped (${seconds.toFixed(1)} s)\n`,
  );
  if (failed !== 0) io.stdout(output);
  else for (const line of output.split("\n").filter((l) => /^skipped: /.test(l))) io.stdout(`     ${line}\n`);
}

export const command: Command = {
  usage: USAGE,
  options: { only: { type: "string" } },
  positionals: [],
  async run(_positionals, values, io) {
    const only = typeof values.only === "string" ? values.only : "";
    // The largest first, which mostly take longest: none of them should run alone at the end.
    const queue = testFiles(SCRIPTS)
      .filter((file) => path.basename(file).includes(only))
      .sort((a, b) => fs.statSync(b).size - fs.statSync(a).size);
    if (queue.length === 0) throw new UsageError(`No test file's name contains '${only}'`);
    const total = { passed: 0, failed: 0, skipped: 0 };
    const worker = async (): Promise<void> => {
      for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
        const outcome = await runFile(file);
        report(outcome, io);
        total.passed += outcome.passed;
        total.failed += outcome.failed;
        total.skipped += outcome.skipped;
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
    io.stdout(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped\n`);
    return total.failed === 0 && total.passed > 0 ? 0 : 1;
  },
};

runIfMain(import.meta.url, command);
