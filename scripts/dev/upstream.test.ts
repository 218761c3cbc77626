// SPDX-License-Identifier: GPL-2.0-only
// What we tell Xen's maintainers is true: the tables in scripts/tree/docs are what the tools say.

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { checkLoaders } from "../check-loaders.ts";
import { bundle } from "./dist.ts";
import { knownBuilds } from "./known-builds.ts";
import { TOP } from "./places.ts";
import { builds } from "./sample/run.ts";
import { explain } from "../explain.ts";
import { PROFILES } from "../loaders/profiles.ts";
import { mbEfi } from "../mb-efi.ts";

const DOCS = path.join(TOP, "scripts/tree/docs");
const read = (name: string): string => fs.readFileSync(path.join(DOCS, name), "utf8");
const GUIDE = read("how-xen-boots.rst");
const OBJECTIONS = read("objections.md");

const there = builds();
const move = (bytes: Uint8Array): Uint8Array => mbEfi(bytes, { keep: false, stripSignature: false });

const upstream = suite("text for upstream");

/** Rows of the list-table: loader, rules, before, after. */
const ROWS = [...GUIDE.matchAll(/^ {3}\* - (.*)\n {5}- (.*)\n {5}- (.*)\n {5}- (.*)$/gm)]
  .slice(1)
  .map(([, , rules = "", before = "", after = ""]) => [rules, before, after] as const);

upstream("the loader table has every loader whose rules are known, once", () => {
  // Two of the rules are not about a loader of its own: Xen itself, and firmware that checks signatures.
  const known = PROFILES.map(({ name }) => name).filter((name) => name !== "xen" && name !== "edk2-secure-boot");
  assert.equal(ROWS.map(([rules]) => rules).sort(), [...known].sort());
});

const debian12 = there.find(({ id }) => id === "4.17.7+13");
(debian12 === undefined ? upstream.skip : upstream)(
  "the loader table says what check-loaders says of Xen 4.17.7",
  () => {
    const original = debian12?.bytes ?? new Uint8Array();
    const outcome = (bytes: Uint8Array): Map<string, string> =>
      new Map(
        checkLoaders(bytes).verdicts.map((verdict) => [
          verdict.loader,
          verdict.outcome === "loads, but Xen then stops" ? "stops" : (verdict.outcome.split(",")[0] ?? ""),
        ]),
      );
    const [before, after] = [outcome(original), outcome(move(original))];
    for (const [rules, was, is] of ROWS) assert.equal([rules, was, is], [rules, before.get(rules), after.get(rules)]);
  },
);

for (const { id } of knownBuilds) {
  const bytes = there.find((build) => build.id === id)?.bytes;
  (bytes === undefined ? upstream.skip : upstream)(`${id}: sizes and changes`, () => {
    const original = bytes ?? new Uint8Array();
    const result = move(original);
    const { changed, places, moved } = explain(original, result).account.sums();
    assert.ok(
      OBJECTIONS.includes(`| ${[id, original.length, result.length, changed, places, moved].join(" | ")} |`),
      `${[id, original.length, result.length, changed, places, moved].join(" | ")}`,
    );
  });
}

upstream("the recipe for the first address of an added section gives one that is free", () => {
  const [, recipe = ""] = /^(objdump -h[\s\S]*?\})'\n```/m.exec(read("efi.pandoc")) ?? [];
  const mini = path.join(TOP, "samples/mini-xen/mini-xen.efi");
  const { stdout, stderr } = spawnSync("sh", ["-c", `${recipe.replace("xen.mb.efi", `'${mini}'`)}'`], {
    encoding: "utf8",
  });
  if (spawnSync("perl", ["-v"]).error !== undefined && process.env.CI !== "true")
    return void console.log("skipped: the recipe of efi.pandoc: perl is not there");
  assert.is(stderr, "", recipe);
  const address = BigInt(stdout.trim());
  const ends = [
    ...spawnSync("objdump", ["-h", mini], { encoding: "utf8" }).stdout.matchAll(
      /^ +\d+ \S+ +([0-9a-f]{8}) +([0-9a-f]{16})/gm,
    ),
  ].map(([, size, vma]) => BigInt(`0x${vma}`) + BigInt(`0x${size}`));
  assert.ok(ends.length > 10);
  const last = ends.reduce((a, b) => (a > b ? a : b));
  assert.ok(address >= last && address - last < 4096n && address % 4096n === 0n, stdout);
});

upstream("the tool is as large as we say, within a twentieth", async () => {
  const [, lines, kilobytes] = /one file of (\d+) lines and (\d+) KB/.exec(OBJECTIONS) ?? [];
  const text = await bundle();
  const found = [text.filter((byte) => byte === 0x0a).length, text.length / 1000];
  [lines, kilobytes].forEach((said, i) => {
    const size = found[i] ?? 0;
    assert.ok(Math.abs(Number(said) - size) <= size / 20, `${said} is said, it is ${size}`);
  });
});

upstream("the guide is reStructuredText", () => {
  const { error, stderr } = spawnSync(
    "rst2html",
    ["--halt=5", "--report=2", path.join(DOCS, "how-xen-boots.rst"), "/dev/null"],
    { encoding: "utf8" },
  );
  if (error !== undefined) {
    if (process.env.CI === "true") throw error;
    return void console.log("skipped: rst2html (python3-docutils) is not there, which would have judged the guide");
  }
  assert.is(stderr, "");
});

upstream.run();
