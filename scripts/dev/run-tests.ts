// SPDX-License-Identifier: GPL-2.0-only
// Runs test files, each in a process of its own and two at a time, and ends with one line "N passed, N failed, N skipped".
// A file that runs no test fails, as uvu would let it pass; what a test says of a skip is shown.
//
// Changes: build/compiled, a copy of scripts/ in JavaScript, which node starts several times as fast as tsx does the
// original; a third of the tests' time would go into that.

import { spawn } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { build } from "esbuild";
import { runIfMain, type Command, type Io } from "../cli/cli.ts";
import { UsageError } from "../cli/errors.ts";
import { COMPILED, SCRIPTS } from "./places.ts";

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

const FILES = (fs.readdirSync(SCRIPTS, { recursive: true }) as string[])
  .filter((file) => file.endsWith(".ts"))
  .map((file) => path.join(SCRIPTS, file))
  .sort();

/** Compiles each script to a file of its own, which takes itself to be where the script is. */
async function compile(): Promise<void> {
  await build({
    entryPoints: FILES,
    outdir: COMPILED,
    outbase: SCRIPTS,
    outExtension: { ".js": ".mjs" },
    bundle: true,
    packages: "external",
    platform: "node",
    format: "esm",
    target: "node20",
    sourcemap: "inline",
    plugins: [
      {
        name: "one-by-one",
        setup({ onLoad, onResolve }) {
          onResolve({ filter: /^\..*\.ts$/ }, ({ path: file }) => ({
            path: file.replace(/ts$/, "mjs"),
            external: true,
          }));
          onLoad({ filter: /\.ts$/ }, ({ path: file }) => {
            const url = JSON.stringify(pathToFileURL(file).href);
            return { contents: fs.readFileSync(file, "utf8").replace(/\bimport\.meta\.url\b/g, url), loader: "ts" };
          });
        },
      },
    ],
  });
}

function runFile(file: string): Promise<Outcome> {
  const start = Date.now();
  return new Promise((resolve) => {
    const launcher = path.join(COMPILED, "dev/run-compiled.mjs");
    const child = spawn(process.execPath, ["--enable-source-maps", launcher, file], {
      stdio: ["ignore", "pipe", "pipe"],
    });
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
    const queue = FILES.filter((file) => file.endsWith(".test.ts") && path.basename(file).includes(only)).sort(
      (a, b) => fs.statSync(b).size - fs.statSync(a).size,
    );
    if (queue.length === 0) throw new UsageError(`No test file's name contains '${only}'`);
    await compile();
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
