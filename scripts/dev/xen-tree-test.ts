// SPDX-License-Identifier: GPL-2.0-only
//
// The proof on real source: installs xen.mb.efi into trees of Xen's releases (install-xen.ts), builds them as anybody
// would, and looks at what came out and at how the build behaves. The sources are Debian's upstream tarballs, by the
// machine's own apt; one that lies in build/xen-tree or in XEN_DEBS is taken as it is. Writes below build/xen-tree only,
// where each build's whole log is.

import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { runIfMain, type Command, type Io } from "../cli/cli.ts";
import { ImageError, UsageError } from "../cli/errors.ts";
import { AptError, downloadSource } from "./apt.ts";
import { isThere } from "./boot/tools.ts";
import { showProgress } from "./progress.ts";
import { CASES, Skip, steps, type Case } from "./xen-tree/steps.ts";

const FOLDER = "build/xen-tree";
const TOOL = "build/xen-mb-efi.mjs";

const USAGE = `Usage: xen-tree-test.ts [--only TEXT]...

Adds xen.mb.efi to source trees of Xen, builds them and checks what came out, with a line for each check and one at the
end: "N passed, N failed, N skipped". Takes some minutes for each; CI=true in the environment makes a skip a failure.
Sources come from the machine's Debian archive; XEN_DEBS=DIR is looked in first.

  --only TEXT  only cases whose name contains the text; may be given again
  --help       print this text

Cases:
${CASES.map(({ name, says }) => `  ${name.padEnd(12)}${says}\n`).join("")}
Exit status: 0 nothing failed and something passed, 1 otherwise, 2 wrong usage.
`;

/** What a Xen build and install-xen run, and the Debian package of each. */
const TOOLS: readonly (readonly [string, string])[] = [
  ["make", "make"],
  ["gcc", "gcc"],
  ["ld", "binutils"],
  ["bison", "bison"],
  ["flex", "flex"],
  ["git", "git"],
  ["python3", "python3"],
  ["tar", "tar"],
  ["xz", "xz-utils"],
];

function missing({ compiler }: Case): string[] {
  const needed = compiler === "clang" ? [...TOOLS, ["clang", "clang"] as const] : TOOLS;
  return needed.filter(([tool]) => !isThere(tool)).map(([tool, name]) => `${tool} not found (package ${name})`);
}

async function tarball({ release, suites }: Case): Promise<string> {
  const isIt = (file: string): boolean => file.startsWith(`xen_${release}.`) && /\.orig\.tar\.\w+$/.test(file);
  for (const folder of [FOLDER, process.env.XEN_DEBS ?? ""]) {
    const cached = fs.existsSync(folder) ? fs.readdirSync(folder).find(isIt) : undefined;
    if (cached !== undefined) return path.join(folder, cached);
  }
  const file = await downloadSource("xen", suites, FOLDER);
  if (!isIt(path.basename(file))) {
    throw new AptError(`${suites.join(", ")}: has ${path.basename(file)}, needed Xen ${release}`);
  }
  return file;
}

type Verdict = "passed" | "FAILED" | "skipped";
/** Prints a line; with CI=true what is skipped has failed. */
type Tell = (verdict: Verdict, what: string) => void;

/** One case after the other, since each build keeps both cores busy; a step that fails ends its case. */
async function runCase(one: Case, tell: Tell, io: Io): Promise<void> {
  const lacking = missing(one);
  if (lacking.length > 0) return tell("skipped", `${one.name}: ${lacking.join(", ")}`);
  let source: string;
  showProgress(`${one.name}: getting the source`, io);
  try {
    source = await tarball(one);
  } catch (error) {
    if (!(error instanceof AptError)) throw error;
    return tell("skipped", `${one.name}: ${error.message}`);
  } finally {
    showProgress("", io);
  }
  const places = { folder: path.resolve(FOLDER), source: path.resolve(source), tool: path.resolve(TOOL) };
  for (const { name, run } of steps(one, places)) {
    const what = `${one.name}: ${name}`;
    showProgress(what, io);
    const error: unknown = await run().catch((thrown: unknown) => thrown);
    showProgress("", io);
    if (error === undefined) tell("passed", what);
    else if (error instanceof Skip) tell("skipped", `${what}: ${error.message}`);
    else if (error instanceof ImageError || typeof (error as NodeJS.ErrnoException).code === "string") {
      return tell("FAILED", `${what}: ${(error as Error).message}`);
    } else throw error;
  }
}

export const command: Command = {
  usage: USAGE,
  options: { only: { type: "string", multiple: true } },
  positionals: [],
  async run(_positionals, values, io) {
    const only = (values.only ?? []) as string[];
    const cases = CASES.filter(({ name }) => only.length === 0 || only.some((text) => name.includes(text)));
    if (cases.length === 0) throw new UsageError(`No case's name contains '${only.join("', '")}'`);
    if (!fs.existsSync(TOOL)) throw new ImageError(`Cannot test: ${TOOL} is missing, make dist makes it`);
    fs.mkdirSync(FOLDER, { recursive: true });
    const count = { passed: 0, FAILED: 0, skipped: 0 };
    const tell: Tell = (verdict, what) => {
      const fails = verdict === "skipped" && process.env.CI === "true";
      count[fails ? "FAILED" : verdict]++;
      io.stdout(fails ? `FAILED: ${what} (skipped, with CI=true)\n` : `${verdict}: ${what}\n`);
    };
    for (const one of cases) await runCase(one, tell, io);
    io.stdout(`${count.passed} passed, ${count.FAILED} failed, ${count.skipped} skipped\n`);
    return count.FAILED === 0 && count.passed > 0 ? 0 : 1;
  },
};

runIfMain(import.meta.url, command);
