// SPDX-License-Identifier: GPL-2.0-only
//
// Checks, rewrites and adds goldens (dev/golden/cases.ts says what they are). Test-side: it imports the steps.
//
// Changes: golden/ with `update` and `add`, and says what; `check` only leaves what differs in build/golden/.
// Refuses: to add a name that is taken, or an image that no variant takes; to check or update against another input
//   than the goldens were made from.

import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { displayName, readInput, runIfMain, type Command, type Io } from "../cli/cli.ts";
import { FileError, ImageError, UsageError } from "../cli/errors.ts";
import * as cases from "./golden/cases.ts";
import type { Build, Places } from "./golden/cases.ts";
import { sha256 } from "../show/inspect-facts.ts";

const USAGE = `Usage: golden.ts VERB [NAME] [XEN_EFI]

Compares what the steps write with the goldens in golden/, or changes those.

  check                 all goldens; builds whose xen.efi is not there are skipped, which is said
  check NAME [XEN_EFI]  those of one build; a build added from outside needs its XEN_EFI
  update [NAME]         writes what is written now as golden, says what changed, removes what nobody writes
  add NAME XEN_EFI      freezes a build of your own as goldens NAME-…, to be checked later
  --help                print this text

Exit status: 0 done, 1 something differs, is missing or cannot be read, 2 wrong usage.
`;

/** @param places where goldens and samples are; tests have their own */
export function goldenCommand(places: Places): Command {
  return {
    usage: USAGE,
    options: {},
    positionals: ["VERB", "[NAME]", "[XEN_EFI]"],
    run([verb, name, file], _values, io) {
      switch (verb) {
        case "check":
          return check(places, name, file, io);
        case "update":
          if (file !== undefined) throw new UsageError("update takes no XEN_EFI: to freeze another build, add it");
          return update(places, name, io);
        case "add":
          if (name === undefined || file === undefined)
            throw new UsageError(`${name === undefined ? "NAME" : "XEN_EFI"} is missing`);
          return add(places, name, file, io);
        default:
          throw new UsageError(`VERB is '${verb}', needed check, update or add`);
      }
    },
  };
}

function check(places: Places, name: string | undefined, file: string | undefined, io: Io): number {
  const count = { equal: 0, failed: 0, skipped: 0 };
  for (const build of chooseBuilds(places, name, file)) {
    const input = cases.readBuild(build);
    if (!("bytes" in input)) {
      // Somebody who asks for this build needs its file, as CI does.
      const skip = "missing" in input && name === undefined && !mustBeThere(build);
      count[skip ? "skipped" : "failed"] += cases.VARIANTS.length * build.steps.length;
      const reason = "missing" in input ? input.missing : input.wrong;
      io.stdout(`${skip ? "skipped: " : ""}golden ${build.name}: ${reason}\n`);
      continue;
    }
    for (const [variant, output] of outputsOf(build, input.bytes)) {
      const difference = cases.checkOutput(places, build, variant, output);
      count[difference === undefined ? "equal" : "failed"]++;
      if (difference !== undefined) io.stdout(`${difference}\n\n`);
    }
  }
  const left = name === undefined ? orphansOf(places) : [];
  for (const file of left)
    io.stdout(`golden/${file} is made by no build; make golden-update removes it if it is a golden\n`);
  count.failed += left.length;
  io.stdout(`${count.equal} goldens equal, ${count.failed} failed, ${count.skipped} skipped\n`);
  return count.failed === 0 && count.equal > 0 ? 0 : 1;
}

/** What the steps make of a build's input, one chain at a time: all of them would be gigabytes. */
function* outputsOf(build: Build, input: Uint8Array): Generator<readonly [cases.Variant, cases.Output]> {
  for (const variant of cases.VARIANTS)
    for (const output of cases.runChain(input, variant, build.steps)) yield [variant, output];
}

/** The sample always is; CI has the known builds too; a user's own build is not in the repository. */
export function mustBeThere(build: Build, ci = process.env.CI): boolean {
  return !build.added && (build.sha256 === undefined || ci === "true");
}

function update(places: Places, name: string | undefined, io: Io): number {
  let [changed, same] = [0, 0];
  for (const build of chooseBuilds(places, name, undefined)) {
    const input = cases.readBuild(build);
    if ("wrong" in input) throw new ImageError(`Cannot update golden ${build.name}: ${input.wrong}`);
    if ("missing" in input) {
      io.stdout(`skipped: golden ${build.name}: ${input.missing}\n`);
      continue;
    }
    for (const [variant, output] of outputsOf(build, input.bytes)) {
      // Only a user's own build may be frozen as refused: for the project's own it would hide a broken step.
      if (output.bytes === undefined && !build.added)
        throw new ImageError(`Cannot update golden ${build.name}: ${output.text.trimEnd()}`);
      const change = cases.updateOutput(places, build, variant, output);
      if (change === undefined) same++;
      else {
        changed++;
        io.stdout(`${change}\n`);
      }
    }
  }
  const left = name === undefined ? orphansOf(places) : [];
  // A file that looks like no golden was put there by somebody, who should say why.
  const gone = left.filter((file) => /-(move|keep)-\d-[a-z]+\.(txt|efi\.gz)$/.test(file));
  for (const file of gone) {
    fs.rmSync(path.join(places.golden, file));
    io.stdout(`${file}: removed\n`);
  }
  io.stdout(`${changed} goldens written, ${gone.length} files removed, ${same} goldens as they were\n`);
  return 0;
}

function add(places: Places, name: string, file: string, io: Io): number {
  const reason = cases.whyNotAName(name);
  if (reason !== undefined) throw new UsageError(`NAME is '${name}': ${reason}`);
  const taken = cases.addedBuilds(places).find((build) => build.name.toLowerCase() === name.toLowerCase())?.name;
  if (taken !== undefined)
    throw new UsageError(`NAME '${taken}' is taken; remove golden/${taken}.input.txt to give it to another build`);
  const input = readInput(file, io);
  const build = cases.addedBuild(places, name, sha256(input), file);
  const outputs = [...outputsOf(build, input)];
  const results = outputs.flatMap(([, output]) => (output.step === "3-headers" ? [output] : []));
  if (results.every(({ bytes }) => bytes === undefined))
    throw new FileError(displayName(file), (results[0]?.text ?? "").replace(/^refused: /, "").trimEnd());
  for (const [variant, output] of outputs) {
    cases.updateOutput(places, build, variant, output);
    const refusal = output.bytes === undefined ? `: ${output.text.trimEnd()}` : "";
    io.stdout(`golden/${name}-${variant}-${output.step}.txt${refusal}\n`);
  }
  cases.writeInputRecord(places, name, input);
  io.stdout(`golden/${name}.input.txt\n`);
  return 0;
}

/** Files that no build makes. */
function orphansOf(places: Places): string[] {
  return cases.orphans(places, allBuilds(places));
}

function allBuilds(places: Places): Build[] {
  return [...cases.builtInBuilds(places), ...cases.addedBuilds(places)];
}

function chooseBuilds(places: Places, name: string | undefined, file: string | undefined): Build[] {
  const builds = allBuilds(places);
  if (name === undefined) return builds;
  const build = builds.find((candidate) => candidate.name === name);
  if (build === undefined)
    throw new UsageError(`NAME is '${name}', needed one of ${builds.map((b) => b.name).join(", ")}`);
  return [file === undefined ? build : { ...build, file }];
}

export const command = goldenCommand(cases.PLACES);

runIfMain(import.meta.url, command);
