// SPDX-License-Identifier: GPL-2.0-only
//
// verify's exam: plants faults into the steps and their libraries, one at a time (dev/mutants/table.txt), and runs the
// chain of the Makefile on mini-xen and on a real Xen. Each fault must be refused, by a step or by verify, or change no
// byte of any result; what survives is a hole in verify.
//
// Changes: nothing; the scripts with a fault in them exist as bundles in a temporary directory only.

import { execFile } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { build } from "esbuild";
import { runIfMain, type Command } from "../cli/cli.ts";
import { ImageError } from "../cli/errors.ts";
import type { Fate } from "./mutants/chain.ts";
import { MINI_XEN, SAMPLES, SCRIPTS } from "./places.ts";

const USAGE = `Usage: mutants.ts [--only PATTERN]

Plants faults into the steps, one at a time, and says which of them a step or verify refuses.

  --only PATTERN  only faults whose file or description contains this
  --help          print this text

Exit status: 0 every fault is refused or changes nothing, 1 one survives or cannot be planted, 2 wrong usage.
`;

const REAL_XEN = path.join(SAMPLES, "xen/4.17.7+13/xen.efi");
const AT_ONCE = 2;
/** A fault may make a step run for ever; the chain of four takes a second or two. */
const MOST_MILLISECONDS = 60_000;

export interface Mutant {
  /** In scripts/. */
  readonly file: string;
  readonly what: string;
  readonly find: string;
  readonly put: string;
}

/** The faults of the table's text; its first lines say how it is written. */
export function readTable(text: string): Mutant[] {
  let file = "";
  const mutants: Mutant[] = [];
  for (const block of text.split(/\n\n+/).slice(1)) {
    const [, name, what, find, put] = /^(?:== (.+)|(.+)\n- +(.+)\n\+ *(.*))\n?$/.exec(block) ?? [];
    if (name !== undefined) file = name;
    else if (file !== "" && what !== undefined && find !== undefined)
      mutants.push({ file, what, find, put: put ?? "" });
    else throw new Error(`Cannot read the table of faults at '${block}'`);
  }
  return mutants;
}

export const MUTANTS: readonly Mutant[] = readTable(
  fs.readFileSync(path.join(SCRIPTS, "dev/mutants/table.txt"), "utf8"),
);

/**
 * The file's text with the fault in it.
 * @throws Error unless there is exactly one place for it
 */
export function plant(source: string, { file, what, find, put }: Mutant): string {
  const places = source.split(find).length - 1;
  if (places !== 1) throw new Error(`Cannot plant '${what}': its line is in ${file} ${places} times, needed once`);
  return source.replace(find, () => put);
}

/** Runs a script of this folder, bundled with a fault or without. @returns what it prints @throws what it ends with */
async function runBundled(entry: string, folder: string, args: readonly string[], mutant?: Mutant): Promise<string> {
  const faulty = mutant === undefined ? "" : path.join(SCRIPTS, mutant.file);
  let planted = mutant === undefined;
  const program = path.join(folder, "program.mjs");
  await build({
    entryPoints: [path.join(SCRIPTS, entry)],
    outfile: program,
    bundle: true,
    platform: "node",
    format: "esm",
    target: "node20",
    logLevel: "silent",
    plugins: [
      {
        name: "one-fault",
        setup: ({ onLoad }) =>
          onLoad({ filter: /\.ts$/ }, ({ path: file }) => {
            // In one file every script would be the program that runs: only the entry is.
            const source = fs.readFileSync(file, "utf8").replace(/^runIfMain\(import\.meta\.url, .*$/m, "");
            if (mutant === undefined || file !== faulty) return { contents: source, loader: "ts" };
            planted = true;
            return { contents: plant(source, mutant), loader: "ts" };
          }),
      },
    ],
  });
  if (!planted) throw new Error(`Cannot plant '${mutant?.what}': ${entry} does not use ${mutant?.file}`);
  const { stdout } = await promisify(execFile)(process.execPath, [program, ...args], { timeout: MOST_MILLISECONDS });
  return stdout;
}

/** Two fates of each image, with .reloc moved and kept; what is wrong where the chain does not get so far. */
async function fatesOf(images: readonly string[], folder: string, mutant?: Mutant): Promise<Fate[] | string> {
  try {
    return JSON.parse(await runBundled("dev/mutants/chain.ts", folder, [folder, ...images], mutant)) as Fate[];
  } catch (error) {
    const lines = String((error as { stderr?: string }).stderr ?? "").split("\n");
    return lines.find((line) => /^\w*Error/.test(line)) ?? String(error).split("\n").slice(0, 2).join(" ");
  }
}

/** verify shares the tables with the steps, and sees no fault in them: a test has their numbers as literals. */
async function isPinned(folder: string, mutant: Mutant): Promise<boolean> {
  if (!mutant.file.startsWith("tables/")) return false;
  try {
    await runBundled("tables/tables.test.ts", folder, [], mutant);
    return false;
  } catch (error) {
    // A test that fails, not one that does not run.
    return /^ *Passed: /m.test((error as { stdout?: string }).stdout ?? "");
  }
}

export interface Verdict {
  readonly kind: "killed" | "equivalent" | "SURVIVED" | "FAILED";
  readonly why: string;
}

/** @param right how the images fare without a fault */
export function verdictOf(fates: readonly Fate[] | string, right: readonly Fate[]): Verdict {
  // A crash is no refusal: it may be that the fault only uses a name that its file has not got.
  if (typeof fates === "string") return { kind: "FAILED", why: fates };
  const survivor = fates.findIndex(({ digest }, i) => digest !== undefined && digest !== right[i]?.digest);
  if (survivor >= 0) return { kind: "SURVIVED", why: `verify accepts other bytes, in chain ${survivor + 1}` };
  const refused = fates.find((fate) => fate.refused !== undefined)?.refused;
  return refused === undefined
    ? { kind: "equivalent", why: "no byte of any result is different" }
    : { kind: "killed", why: refused };
}

export const command: Command = {
  usage: USAGE,
  options: { only: { type: "string" } },
  positionals: [],
  async run(_positionals, { only = "" }, io) {
    const mutants = MUTANTS.filter(({ file, what }) => `${file}: ${what}`.includes(String(only)));
    const images = [MINI_XEN, REAL_XEN].filter((file) => fs.existsSync(file) || process.env.CI === "true");
    if (images.length < 2) io.stdout("skipped: Xen 4.17.7+13 is not in samples/xen (make fetch-xen)\n");
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), "mutants-"));
    const right = await fatesOf(images, folder);
    if (typeof right === "string" || right.some(({ digest }) => digest === undefined))
      throw new ImageError(`Cannot examine verify: without a fault, the chain ends with ${JSON.stringify(right)}`);
    const count = { killed: 0, equivalent: 0, SURVIVED: 0, FAILED: 0 };
    const queue = [...mutants];
    const worker = async (_: unknown, i: number): Promise<void> => {
      const own = path.join(folder, `worker-${i}`);
      fs.mkdirSync(own);
      for (let mutant = queue.shift(); mutant !== undefined; mutant = queue.shift()) {
        let { kind, why } = verdictOf(await fatesOf(images, own, mutant), right);
        if (kind === "SURVIVED" && (await isPinned(own, mutant)))
          [kind, why] = ["killed", "tables.test: the specification has another number"];
        count[kind]++;
        io.stdout(`${kind.padEnd(10)} ${mutant.file}: ${mutant.what}\n${" ".repeat(11)}${why}\n`);
      }
    };
    try {
      await Promise.all(Array.from({ length: AT_ONCE }).map(worker));
    } finally {
      fs.rmSync(folder, { recursive: true });
    }
    const { killed, equivalent, SURVIVED, FAILED } = count;
    io.stdout(
      `${mutants.length} faults: ${killed} killed, ${equivalent} equivalent, ${SURVIVED} survived, ${FAILED} not planted\n` +
        `${killed + equivalent} passed, ${SURVIVED + FAILED} failed, ${2 - images.length} skipped\n`,
    );
    return SURVIVED + FAILED === 0 && mutants.length > 0 ? 0 : 1;
  },
};

runIfMain(import.meta.url, command);
