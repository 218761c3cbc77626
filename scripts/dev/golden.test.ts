// SPDX-License-Identifier: GPL-2.0-only
// What the steps write, compared with golden/: one test a golden. dev/golden/cases.ts says what the goldens are; make
// golden-update rewrites them.

import * as fs from "node:fs";
import { suite } from "uvu";
import { mustBeThere } from "./golden.ts";
import {
  PLACES,
  VARIANTS,
  addedBuilds,
  builtInBuilds,
  checkOutput,
  goldenName,
  orphans,
  readBuild,
  readReferences,
  runChain,
} from "./golden/cases.ts";
import type { Build, Output, Variant } from "./golden/cases.ts";
import { sha256 } from "../show/inspect-facts.ts";

/** Fails with a report of several lines. uvu would print it a second time, as part of the stack. */
function fail(report: string): never {
  const error = new Error(report);
  error.stack = "";
  throw error;
}

/** One chain's outputs at a time: those of all builds would be gigabytes. */
let current: { key: string; outputs: readonly Output[] } | undefined;

function outputsOf(build: Build, variant: Variant): readonly Output[] {
  const key = `${build.name} ${variant}`;
  if (current?.key === key) return current.outputs;
  const input = readBuild(build);
  if (!("bytes" in input)) fail(`golden ${build.name}: ${"missing" in input ? input.missing : input.wrong}`);
  current = { key, outputs: runChain(input.bytes, variant, build.steps) };
  return current.outputs;
}

const goldens = suite("goldens");
const references = readReferences();
const builtIn = builtInBuilds();
const builds = [...builtIn, ...addedBuilds()];

for (const build of builds) {
  const skipped = !fs.existsSync(build.file) && !mustBeThere(build);
  if (skipped) {
    const input = readBuild(build);
    console.log(`skipped: golden ${build.name}: ${"missing" in input ? input.missing : ""}`);
  }
  const test: (name: string, run: () => void) => void = skipped ? goldens.skip : goldens;
  for (const variant of VARIANTS) {
    for (const step of build.steps) {
      test(goldenName(build, variant, step), () => {
        const output = outputsOf(build, variant).find((o) => o.step === step);
        const difference = output === undefined ? "nothing was written" : checkOutput(PLACES, build, variant, output);
        if (difference !== undefined) fail(difference);
      });
    }
    for (const reference of references.filter((r) => r.build === build.name && r.variant === variant)) {
      test(`${build.name} ${variant}: xen.mb.efi is what an independent implementation writes`, () => {
        const bytes = outputsOf(build, variant).at(-1)?.bytes;
        const found = bytes === undefined ? "nothing" : `${bytes.length} bytes, SHA-256 ${sha256(bytes)}`;
        const needed = `${reference.size} bytes, SHA-256 ${reference.sha256}`;
        if (found !== needed)
          fail(`${build.name} ${variant}: found ${found}, needed ${needed} (golden/reference-digests.txt)`);
      });
    }
  }
}

goldens("every known build is compared with the independent implementation", () => {
  const needed = builtIn
    .filter(({ sha256 }) => sha256 !== undefined)
    .flatMap(({ name }) => VARIANTS.map((variant) => `${name} ${variant}`));
  const found = references.map(({ build, variant }) => `${build} ${variant}`);
  const odd = [...needed.filter((row) => !found.includes(row)), ...found.filter((row) => !needed.includes(row))];
  if (odd.length !== 0 || found.length === 0)
    fail(`golden/reference-digests.txt has not one row for each of: ${odd.join(", ")}`);
});

goldens("no golden is left behind by a build that is gone", () => {
  const left = orphans(PLACES, builds);
  if (left.length !== 0)
    fail(`nothing writes these: ${left.map((file) => `golden/${file}`).join(", ")}; make golden-update removes them`);
});

goldens.run();
