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
import { runIfMain } from "../cli/cli.ts";
import type { Command } from "../cli/cli.ts";
import { ImageError } from "../cli/errors.ts";
import type { Fate } from "./mutants/chain.ts";
import { MINI_XEN, SAMPLES, SCRIPTS } from "./places.ts";

const USAGE = `Usage: mutants.ts [--only PATTERN]

Plants faults into the steps, one at a time, and says which of them a step or verify refuses.

  --only PATTERN  only faults whose file or description contains this
  --help          print this text

Exit status: 0 every fault is refused or changes nothing, 1 one survives or cannot be planted, 2 wrong usage.
`;

const TABLE = path.join(SCRIPTS, "dev/mutants/table.txt");
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

/**
 * The file's text with the fault in it.
 * @throws Error unless there is exactly one place for it
 */
export function plant(source: string, { file, what, find, put }: Mutant): string {
  const places = source.split(find).length - 1;
  if (places !== 1) throw new Error(`Cannot plant '${what}': its line is in ${file} ${places} times, needed once`);
  return source.replace(find, () => put);
}

/** The chain as a program in a file, with a fault or without. */
async function bundleChain(outfile: string, mutant?: Mutant): Promise<void> {
  const faulty = mutant === undefined ? "" : path.join(SCRIPTS, mutant.file);
  let planted = mutant === undefined;
  await build({
    entryPoints: [path.join(SCRIPTS, "dev/mutants/chain.ts")],
    outfile,
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
            // In one file every script would be the program that runs: only the chain is.
            const source = fs.readFileSync(file, "utf8").replace(/^runIfMain\(import\.meta\.url, .*$/m, "");
            if (mutant === undefined || file !== faulty) return { contents: source, loader: "ts" };
            planted = true;
            return { contents: plant(source, mutant), loader: "ts" };
          }),
      },
    ],
  });
  if (!planted) throw new Error(`Cannot plant '${mutant?.what}': the chain does not use ${mutant?.file}`);
}

/** Two fates of each image, with .reloc moved and kept; what is wrong where the program does not get so far. */
export async function run(images: readonly string[], mutant?: Mutant): Promise<Fate[] | string> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "mutants-"));
  try {
    const program = path.join(folder, "chain.mjs");
    await bundleChain(program, mutant);
    const { stdout } = await promisify(execFile)(process.execPath, [program, folder, ...images], {
      timeout: MOST_MILLISECONDS,
    });
    return JSON.parse(stdout) as Fate[];
  } catch (error) {
    const lines = String((error as { stderr?: string }).stderr ?? "").split("\n");
    return lines.find((line) => /^\w*Error/.test(line)) ?? String(error).split("\n").slice(0, 2).join(" ");
  } finally {
    fs.rmSync(folder, { recursive: true });
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
    const mutants = readTable(fs.readFileSync(TABLE, "utf8")).filter(({ file, what }) =>
      `${file}: ${what}`.includes(String(only)),
    );
    const images = [MINI_XEN, REAL_XEN].filter((file) => fs.existsSync(file) || process.env.CI === "true");
    if (images.length < 2) io.stdout("skipped: Xen 4.17.7+13 is not in samples/xen (make fetch-xen)\n");
    const right = await run(images);
    if (typeof right === "string" || right.some(({ digest }) => digest === undefined))
      throw new ImageError(`Cannot examine verify: without a fault, the chain ends with ${JSON.stringify(right)}`);
    const count = { killed: 0, equivalent: 0, SURVIVED: 0, FAILED: 0 };
    const queue = [...mutants];
    const worker = async (): Promise<void> => {
      for (let mutant = queue.shift(); mutant !== undefined; mutant = queue.shift()) {
        const { kind, why } = verdictOf(await run(images, mutant), right);
        count[kind]++;
        io.stdout(`${kind.padEnd(10)} ${mutant.file}: ${mutant.what}\n${" ".repeat(11)}${why}\n`);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
    const { killed, equivalent, SURVIVED, FAILED } = count;
    io.stdout(
      `${mutants.length} faults: ${killed} killed, ${equivalent} equivalent, ${SURVIVED} survived, ${FAILED} not planted\n` +
        `${killed + equivalent} passed, ${SURVIVED + FAILED} failed, ${2 - images.length} skipped\n`,
    );
    return SURVIVED + FAILED === 0 && mutants.length > 0 ? 0 : 1;
  },
};

runIfMain(import.meta.url, command);
