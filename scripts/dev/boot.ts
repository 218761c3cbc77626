// SPDX-License-Identifier: GPL-2.0-only
//
// The proof by booting: takes images through real boot loaders on real firmware, in QEMU, and says how far each came.
// What is booted how, and what must be seen, is in dev/boot/plan.ts; the paths are in dev/boot/paths.ts. Reads the
// images, writes below build/ only.

import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { runIfMain, type Command, type Io, type Values } from "../cli/cli.ts";
import { ImageError, UsageError } from "../cli/errors.ts";
import { AptError } from "./apt.ts";
import { dom0Initrd } from "./boot/dom0.ts";
import type { Load } from "./boot/given.ts";
import { PATHS, type BootPath } from "./boot/paths.ts";
import * as plan from "./boot/plan.ts";
import { boot } from "./boot/qemu.ts";
import { closingLine, failures, skips, table, type Result } from "./boot/report.ts";
import { inWorkFolder, runScript } from "./boot/run.ts";
import { describe, succeeded } from "./boot/verdict.ts";
import { foreign, missingTool, packagesToInstall, toolVersions } from "./boot/tools.ts";
import { showProgress } from "./progress.ts";

const FOLDER = "build/boot";

const usage = `Usage: boot.ts [--matrix] [--only TEXT]... [--jobs 1|2]
       boot.ts [--image FILE] --boot PATH [--bare]
       boot.ts --packages

Boots images through real boot loaders in QEMU and prints a table of what was seen: mini-xen and one Xen build, or
with --matrix all known builds. Logs are left in ${FOLDER}/. A path whose tools are missing is skipped and says so;
with CI=true in the environment that is a failure.

  --matrix        all known builds instead of one
  --only TEXT     only images and paths of which "IMAGE PATH" contains the text; given twice: one of the texts
  --jobs 1|2      how many at once, default 2: each keeps one core busy
  --image FILE    boot this one, with the serial line on the terminal (Ctrl-A X ends it), and say how far it came
  --boot PATH     through this path; without --image, only look whether that can be done: ${wrap(PATHS.map(({ name }) => name))}
  --bare          without a dom0
  --packages      print the Debian packages that the paths need
  --help          print this text

Exit status: 0 every boot went as it must, 1 one did not or all were skipped, 2 wrong usage.
`;

function wrap(names: readonly string[]): string {
  return names.join(", ").replace(/(.{60,80}), /g, `$1,\n${" ".repeat(18)}`);
}

const command: Command = {
  usage,
  options: {
    matrix: { type: "boolean" },
    only: { type: "string", multiple: true },
    jobs: { type: "string" },
    image: { type: "string" },
    boot: { type: "string" },
    bare: { type: "boolean" },
    packages: { type: "boolean" },
  },
  positionals: [],
  run: (_positionals, values, io) => {
    if (values.packages === true) {
      io.stdout(`${packagesToInstall().join("\n")}\n`);
      return 0;
    }
    return values.image === undefined && values.boot === undefined ? bootAll(values, io) : bootOne(values, io);
  },
};

async function bootOne({ image, boot: name, bare }: Values, io: Io): Promise<number> {
  if (typeof name !== "string") throw new UsageError("--image needs --boot");
  const bootPath = plan.pathNamed(name);
  if (bootPath === undefined) throw new UsageError(`No path is called '${name}'`);
  if (typeof image === "string" && !fs.existsSync(image)) throw new ImageError(`Cannot read ${image}: no such file`);
  const missing = await missingFor(bootPath);
  if (missing !== undefined) throw new ImageError(`Cannot boot through ${name}: ${missing}`);
  const dom0 = bare === true ? undefined : await prepareDom0(bootPath).catch(noDom0);
  if (typeof image !== "string") return 0;
  const goal = plan.goalThrough(bootPath, dom0 === undefined ? "xen" : "dom0");
  const log = path.join(FOLDER, `${name}.log`);
  const { outcome } = await inWorkFolder(FOLDER, (work) =>
    boot(bootPath, { image, dom0, work }, goal, plan.LIMIT_SECONDS[goal], log, true),
  );
  io.stdout(`\n${image} through ${name}: ${describe(outcome)}\n`);
  return succeeded(outcome, goal) ? 0 : 1;
}

function noDom0(error: unknown): never {
  throw error instanceof AptError ? new ImageError(`${error.message}; --bare boots without a dom0`) : error;
}

interface Job {
  readonly subject: plan.Subject;
  readonly bootPath: BootPath;
}

async function bootAll(values: Values, io: Io): Promise<number> {
  const only = (values.only ?? []) as string[];
  const jobs = (values.matrix === true ? plan.MATRIX : plan.TEST).flatMap((subject) =>
    PATHS.map((bootPath): Job => ({ subject, bootPath })).filter(({ bootPath }) => {
      if (!plan.goesThrough(subject, bootPath)) return false;
      const words = `${plan.subjectName(subject)} ${bootPath.name}`;
      return only.length === 0 || only.some((text) => words.includes(text));
    }),
  );
  if (jobs.length === 0) throw new UsageError("Nothing of that name is booted");
  const workers = values.jobs ?? "2";
  if (workers !== "1" && workers !== "2") throw new UsageError("--jobs takes 1 or 2");
  const results = new Map<Job, Result>();
  const prepared = new Map<string, Promise<string>>();
  const queue = [...jobs];
  const work = async () => {
    for (let job = queue.shift(); job !== undefined; job = queue.shift()) {
      const { subject } = job;
      const name = plan.subjectName(subject);
      if (!prepared.has(name)) prepared.set(name, prepareImage(subject));
      showProgress(`${results.size}/${jobs.length} ${name} ${job.bootPath.name}`, io);
      results.set(job, inCi(await bootJob(job, prepared.get(name) as Promise<string>)));
    }
  };
  await Promise.all(Array.from({ length: Number(workers) }, work));
  showProgress("", io);
  const ordered = jobs.flatMap((job) => results.get(job) ?? []);
  const parts = [table(ordered), `Seen on ${new Date().toISOString().slice(0, 10)} with ${toolVersions().join(", ")}`];
  io.stdout([...parts, ...skips(ordered), failures(ordered), closingLine(ordered), ""].join("\n"));
  // A run in which everything was skipped has shown nothing.
  const passed = ordered.some(({ verdict }) => verdict === "passed");
  return passed && !ordered.some(({ verdict }) => verdict === "failed") ? 0 : 1;
}

async function bootJob({ subject, bootPath }: Job, prepared: Promise<string>): Promise<Result> {
  const about = { image: plan.subjectName(subject), path: bootPath.name };
  const log = path.join(FOLDER, `${about.image}-${about.path}.log`);
  try {
    const image = await prepared;
    if (image === "")
      return { ...about, verdict: "skipped", reason: `${about.image}: ${sourceOf(subject)} is not there` };
    const missing = await missingFor(bootPath);
    if (missing !== undefined) return { ...about, verdict: "skipped", reason: `${about.path}: ${missing}` };
    const dom0 = subject.build === "mini-xen" ? undefined : await prepareDom0(bootPath);
    const wanted = plan.expected(subject, bootPath);
    const goal = wanted.goal ?? subject.goal;
    const limit = wanted.limitSeconds ?? plan.LIMIT_SECONDS[goal];
    const booted = await inWorkFolder(FOLDER, (work) => boot(bootPath, { image, dom0, work }, goal, limit, log));
    const verdict = plan.meets(booted.outcome, wanted) ? "passed" : "failed";
    const words = [wanted.stage, wanted.troubles?.join(" or "), wanted.detail].filter(Boolean).join(" ");
    return { ...about, ...booted, verdict, reason: `expected ${words}; whole log: ${log}` };
  } catch (error) {
    if (error instanceof AptError) return { ...about, verdict: "skipped", reason: `${about.image}: ${error.message}` };
    // A full disk, a file that went away: this boot's failure, and no reason to lose the others' results.
    const expectable = error instanceof ImageError || typeof (error as NodeJS.ErrnoException).code === "string";
    if (!expectable) throw error;
    return { ...about, verdict: "failed", reason: (error as Error).message };
  }
}

function inCi(result: Result): Result {
  return process.env.CI === "true" && result.verdict === "skipped" ? { ...result, verdict: "failed" } : result;
}

async function missingFor(bootPath: BootPath): Promise<string | undefined> {
  const missing = bootPath.tools.flatMap((tool) => missingTool(tool) ?? []);
  if (missing.length > 0) return missing.join(", ");
  for (const name of bootPath.foreign ?? []) {
    try {
      await foreign(name);
    } catch (error) {
      if (!(error instanceof AptError)) throw error;
      return error.message;
    }
  }
  return undefined;
}

let initrd: string | undefined;

async function prepareDom0({ secureBoot }: BootPath): Promise<NonNullable<Load["dom0"]>> {
  const missing = missingTool("busybox");
  if (missing !== undefined) throw new AptError(missing);
  if (initrd === undefined) {
    initrd = path.join(FOLDER, "dom0-initrd.cpio");
    fs.mkdirSync(FOLDER, { recursive: true });
    fs.writeFileSync(initrd, dom0Initrd());
  }
  return { kernel: await foreign(secureBoot === undefined ? "kernel" : "newerKernel"), initrd };
}

function sourceOf({ build }: plan.Subject): string {
  return build === "mini-xen" ? "samples/mini-xen/mini-xen.efi" : `samples/xen/${build}/xen.efi`;
}

/** The file to boot, transformed anew; "" when the build is not there. */
async function prepareImage(subject: plan.Subject): Promise<string> {
  const source = sourceOf(subject);
  if (!fs.existsSync(source)) return "";
  if (subject.variant === "untouched") return source;
  const image = path.join(FOLDER, `${plan.subjectName(subject)}.efi`);
  fs.mkdirSync(FOLDER, { recursive: true });
  await runScript(FOLDER, "mb-efi", [source, image, ...(subject.variant === "keep" ? ["--keep"] : [])]);
  return image;
}

runIfMain(import.meta.url, command);
