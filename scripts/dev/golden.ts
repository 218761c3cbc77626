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
import {
  PLACES,
  VARIANTS,
  addedBuild,
  addedBuilds,
  builtInBuilds,
  checkOutput,
  orphans,
  readBuild,
  runChain,
  updateOutput,
  whyNotAName,
  writeInputRecord,
} from "./golden/cases.ts";
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

interface Tally {
  equal: number;
  failed: number;
  skipped: number;
}

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
  const tally: Tally = { equal: 0, failed: 0, skipped: 0 };
  for (const build of chooseBuilds(places, name, file)) checkBuild(places, build, name !== undefined, tally, io);
  if (name === undefined) {
    for (const orphan of orphans(places, allBuilds(places))) {
      tally.failed++;
      io.stdout(`golden/${orphan} is made by no build; make golden-update removes it if it is a golden\n`);
    }
  }
  io.stdout(`${tally.equal} goldens equal, ${tally.failed} failed, ${tally.skipped} skipped\n`);
  return tally.failed === 0 && tally.equal > 0 ? 0 : 1;
}

/** @param wanted somebody asked for this build: then a missing file is a failure, as it is in CI */
function checkBuild(places: Places, build: Build, wanted: boolean, tally: Tally, io: Io): void {
  const count = VARIANTS.length * build.steps.length;
  const input = readBuild(build);
  if (!("bytes" in input)) {
    const skip = "missing" in input && !wanted && !mustBeThere(build);
    tally[skip ? "skipped" : "failed"] += count;
    io.stdout(`${skip ? "skipped: " : ""}golden ${build.name}: ${"missing" in input ? input.missing : input.wrong}\n`);
    return;
  }
  for (const variant of VARIANTS) {
    for (const output of runChain(input.bytes, variant, build.steps)) {
      const difference = checkOutput(places, build, variant, output);
      tally[difference === undefined ? "equal" : "failed"]++;
      if (difference !== undefined) io.stdout(`${difference}\n\n`);
    }
  }
}

/** The sample always is; CI has the known builds too; a user's own build is not in the repository. */
export function mustBeThere(build: Build, ci = process.env.CI): boolean {
  return !build.added && (build.sha256 === undefined || ci === "true");
}

function update(places: Places, name: string | undefined, io: Io): number {
  let [changed, same] = [0, 0];
  for (const build of chooseBuilds(places, name, undefined)) {
    const input = readBuild(build);
    if ("wrong" in input) throw new ImageError(`Cannot update golden ${build.name}: ${input.wrong}`);
    if ("missing" in input) {
      io.stdout(`skipped: golden ${build.name}: ${input.missing}\n`);
      continue;
    }
    for (const variant of VARIANTS) {
      for (const output of runChain(input.bytes, variant, build.steps)) {
        // Only a user's own build may be frozen as refused: for the project's own it would hide a broken step.
        if (output.bytes === undefined && !build.added)
          throw new ImageError(`Cannot update golden ${build.name}: ${output.text.trimEnd()}`);
        const change = updateOutput(places, build, variant, output);
        if (change === undefined) same++;
        else {
          changed++;
          io.stdout(`${change}\n`);
        }
      }
    }
  }
  const removed = name === undefined ? removeOrphans(places, io) : 0;
  io.stdout(`${changed} goldens written, ${removed} files removed, ${same} goldens as they were\n`);
  return 0;
}

/** Removes what looks like a golden; a file that is something else was put there by somebody, who should say why. */
function removeOrphans(places: Places, io: Io): number {
  const gone = orphans(places, allBuilds(places)).filter((file) => /-(move|keep)-\d-[a-z]+\.(txt|efi\.gz)$/.test(file));
  for (const file of gone) {
    fs.rmSync(path.join(places.golden, file));
    io.stdout(`${file}: removed\n`);
  }
  return gone.length;
}

function add(places: Places, name: string, file: string, io: Io): number {
  const reason = whyNotAName(name);
  if (reason !== undefined) throw new UsageError(`NAME is '${name}': ${reason}`);
  const taken = addedBuilds(places).find((build) => build.name.toLowerCase() === name.toLowerCase());
  if (taken !== undefined)
    throw new UsageError(
      `NAME '${taken.name}' is taken; remove golden/${taken.name}.input.txt to give it to another build`,
    );
  const input = readInput(file, io);
  const outputs = VARIANTS.map((variant) => ({ variant, chain: runChain(input, variant) }));
  if (outputs.every(({ chain }) => chain.at(-1)?.bytes === undefined)) {
    const text = outputs[0]?.chain.at(-1)?.text ?? "";
    throw new FileError(displayName(file), text.replace(/^refused: /, "").trimEnd());
  }
  const build = addedBuild(places, name, sha256(input), file);
  for (const { variant, chain } of outputs) {
    for (const output of chain) {
      updateOutput(places, build, variant, output);
      io.stdout(
        `golden/${name}-${variant}-${output.step}.txt${output.bytes === undefined ? `: ${output.text.trimEnd()}` : ""}\n`,
      );
    }
  }
  writeInputRecord(places, name, input);
  io.stdout(`golden/${name}.input.txt\n`);
  return 0;
}

function allBuilds(places: Places): Build[] {
  return [...builtInBuilds(places), ...addedBuilds(places)];
}

function chooseBuilds(places: Places, name: string | undefined, file: string | undefined): Build[] {
  const builds = allBuilds(places);
  if (name === undefined) return builds;
  const build = builds.find((candidate) => candidate.name === name);
  if (build === undefined)
    throw new UsageError(`NAME is '${name}', needed one of ${builds.map((b) => b.name).join(", ")}`);
  return [file === undefined ? build : { ...build, file }];
}

export const command = goldenCommand(PLACES);

runIfMain(import.meta.url, command);
