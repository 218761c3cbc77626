// SPDX-License-Identifier: GPL-2.0-only
// Runs golden/cases/*.txt, one file per rule of DESIGN.md; samples/README.md explains them. CASE=name runs those whose
// names contain it; CASES_UPDATE=1 writes the status and standard error that were found into the case files.

import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { command as addSections } from "../add-sections.ts";
import { command as alignSections } from "../align-sections.ts";
import { runCommand } from "../cli/cli.ts";
import type { Command, Io } from "../cli/cli.ts";
import { TOP as ROOT } from "./places.ts";
import { alwaysTrue, lookUp, readFacts } from "./sample/facts.ts";
import { makeSample } from "./sample/text.ts";
import { command as emitHeader } from "../emit-header.ts";
import { command as relocateReloc } from "../relocate-reloc.ts";
import { command as stripDebug } from "../strip-debug.ts";

const CASES = path.join(ROOT, "golden", "cases");
const SAMPLES = path.join(ROOT, "samples");
const COMMANDS: Readonly<Record<string, Command>> = {
  "relocate-reloc": relocateReloc,
  "align-sections": alignSections,
  "emit-header": emitHeader,
  "add-sections": addSections,
  "strip-debug": stripDebug,
};
/** A file in the folder: IN, OUT, CFG in .config=CFG. */
const FILE_WORD = /(?<=^|=)[A-Z][A-Z0-9]*$/;

interface Case {
  readonly commands: string[][];
  readonly blocks: Map<string, string>;
}

function readCase(text: string): Case {
  const [head = "", ...rest] = text.split(/^-- (?=\w+ --$)/m);
  const blocks = new Map(
    rest.map((block) => [block.slice(0, block.indexOf(" --")), block.slice(block.indexOf("\n") + 1)]),
  );
  const commands = head
    .split("\n")
    .filter((line) => line.startsWith("$ "))
    .map((line) => line.slice(2).split(" "));
  return { commands, blocks };
}

interface Outcome {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the commands up to the first that fails; IN, OUT and other capital words are files in the folder. */
async function run(folder: string, commands: readonly string[][]): Promise<Outcome> {
  let [status, stdout, stderr] = [0, "", ""];
  const io: Io = {
    stdin: () => new Uint8Array(),
    stdout: (bytes) => (stdout += Buffer.from(bytes as Uint8Array).toString()),
    stderr: (text) => (stderr += text),
  };
  for (const [name = "", ...args] of commands) {
    const command = COMMANDS[name];
    if (command === undefined) throw new Error(`no command ${name}`);
    status = await runCommand(
      command,
      args.map((a) => a.replace(FILE_WORD, (word) => path.join(folder, word))),
      io,
    );
    if (status !== 0) break;
  }
  return { status, stdout, stderr: stderr.replaceAll(`${folder}/`, "") };
}

function checkFacts(facts: string, input: Uint8Array, output: Uint8Array, folder: string): void {
  const read = readFacts(output);
  const wrong = alwaysTrue(read);
  for (const line of facts.split("\n").map((l) => l.replace(/(^|\s)#.*/, "").trim())) {
    if (line === "") continue;
    if (line === "unchanged") {
      if (Buffer.compare(input, output) !== 0) wrong.push("OUT is not IN");
      continue;
    }
    const [, other] = /^same (\w+)$/.exec(line) ?? [];
    if (other !== undefined) {
      if (Buffer.compare(fs.readFileSync(path.join(folder, other)), output) !== 0) wrong.push(`OUT is not ${other}`);
      continue;
    }
    const [fact = "", expected = ""] = line.split(/\s*=\s*/);
    let found: string;
    try {
      found = lookUp(read, fact, expected);
    } catch (error) {
      found = (error as Error).message;
    }
    if (found !== expected) wrong.push(`${fact} = ${found}, expected ${expected}`);
  }
  if (wrong.length !== 0) assert.unreachable(wrong.join("\n"));
}

/** "…" in the expectation stands for anything within its line: for a message that is not written yet. */
function matches(found: string, expected: string): boolean {
  const pattern = expected.split("…").map((part) => part.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"));
  return new RegExp(`^${pattern.join(".*")}$`).test(found);
}

const OLD_OUTPUT = "an output that was there before";

async function checkCase(file: string, name: string): Promise<void> {
  const text = fs.readFileSync(file, "utf8");
  const { commands, blocks } = readCase(text);
  const [image, status, stderr, out] = ["image", "status", "stderr", "out"].map((block) => blocks.get(block));
  if (image === undefined || status === undefined || stderr === undefined || commands.length === 0)
    throw new Error("needs a $ line, image, status and stderr");
  const input = makeSample(image, (from) => fs.readFileSync(path.join(SAMPLES, from), "utf8"));
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "case-"));
  try {
    const [from, to] = [path.join(folder, "IN"), path.join(folder, "OUT")];
    fs.writeFileSync(from, input, { mode: 0o444 });
    const others = [...blocks].filter(([block]) => FILE_WORD.test(block));
    for (const [block, contents] of others) fs.writeFileSync(path.join(folder, block), contents);
    // A failure leaves an output that was there before as it was; cli.test.ts has the other combinations.
    if (status !== "0\n") fs.writeFileSync(to, OLD_OUTPUT);
    const result = await run(folder, commands);
    if (process.env["CASES_UPDATE"] === "1") update(file, text, name, { status, stderr }, result);
    else {
      if (!matches(result.stderr, stderr)) assert.is(result.stderr, stderr, "standard error");
      assert.is(`${result.status}\n`, status, "exit status");
    }
    assert.is(result.stdout, "", "standard output");
    assert.is(Buffer.compare(fs.readFileSync(from), input), 0, "IN was changed");
    const files = new Set(["IN", ...others.map(([block]) => block), ...commands.map(([, , output = ""]) => output)]);
    assert.is(fs.readdirSync(folder).sort().join(" "), [...files].sort().join(" "), "files left");
    if (result.status === 0) checkFacts(out ?? "", input, fs.readFileSync(to), folder);
    else if (out !== undefined) assert.unreachable("no OUT to have the expected facts");
    else assert.is(fs.readFileSync(to, "utf8"), OLD_OUTPUT, "OUT after a failure");
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

function update(
  file: string,
  text: string,
  name: string,
  old: { status: string; stderr: string },
  { status, stderr }: Outcome,
): void {
  if (old.status === `${status}\n` && matches(stderr, old.stderr)) return;
  const replaced = text
    .replace(/^(-- status --\n)[^]*?(?=^-- |(?![^]))/m, (_, head) => `${head}${status}\n`)
    .replace(/^(-- stderr --\n)[^]*?(?=^-- |(?![^]))/m, (_, head) => `${head}${stderr}`);
  fs.writeFileSync(file, replaced);
  console.log(`updated ${name}: status ${status}: ${stderr.trim()}`);
}

// ---

const cases = suite("golden/cases");
const names = fs.readdirSync(CASES).sort();
const wanted = names.filter((name) => name.includes(process.env["CASE"] ?? ""));

cases("there are cases, and all are .txt files named for a step", () => {
  assert.ok(wanted.length > 0, "no case");
  const odd = names.filter(
    (name) => !/\.txt$/.test(name) || !Object.keys(COMMANDS).some((step) => name.startsWith(`${step}-`)),
  );
  assert.is(odd.join(" "), "");
});

for (const name of wanted) cases(name, () => checkCase(path.join(CASES, name), name));

cases.run();
