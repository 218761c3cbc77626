// SPDX-License-Identifier: GPL-2.0-only
// The goldens' own machinery, in a folder of its own: what it says of a difference, and when it must fail.

import * as fs from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { runCommand } from "../../cli/cli.ts";
import type { Io } from "../../cli/cli.ts";
import { goldenCommand, mustBeThere } from "../golden.ts";
import {
  PLACES,
  builtInBuilds,
  checkOutput,
  orphans,
  readReferences,
  runChain,
  updateOutput,
  whyNotAName,
} from "./cases.ts";
import type { Build, Output, Places } from "./cases.ts";
import { byteDifference, textDifference } from "./report.ts";
import { sample } from "../sample/run.ts";
import { makeSample } from "../sample/text.ts";
import { inspectText } from "../../inspect.ts";
import { sha256 } from "../../show/inspect-facts.ts";

/** A known build whose images are small; what the steps make of the real mini-xen, golden.test.ts compares. */
const MINI = path.join(fs.mkdtempSync(path.join(tmpdir(), "golden-mini-")), "mini-xen.efi");
fs.writeFileSync(MINI, sample());

interface Context {
  root: string;
  places: Places;
}

/** A suite whose tests have a folder with no goldens, and MINI as mini-xen, the only build that is there. */
function suiteWithFolder(name: string) {
  const test = suite<Context>(name);
  test.before.each((context) => {
    const root = fs.mkdtempSync(path.join(tmpdir(), "golden-test-"));
    const places = {
      golden: path.join(root, "golden"),
      actual: path.join(root, "actual"),
      samples: path.join(root, "samples"),
    };
    fs.mkdirSync(path.join(places.samples, "mini-xen"), { recursive: true });
    fs.copyFileSync(MINI, path.join(places.samples, "mini-xen", "mini-xen.efi"));
    Object.assign(context, { root, places });
  });
  test.after.each(({ root }) => fs.rmSync(root, { recursive: true, force: true }));
  return test;
}

function mini(places: Places = PLACES): Build {
  return builtInBuilds(places).find(({ name }) => name === "mini-xen") ?? (assert.unreachable("no mini-xen") as never);
}

const chain = runChain(fs.readFileSync(MINI), "move");

function outputAt(index: number): Output & { bytes: Uint8Array } {
  const output = chain.at(index);
  if (output?.bytes === undefined) throw new Error(`no output ${index}: ${output?.text}`);
  return { ...output, bytes: output.bytes };
}

// ---- runChain()

const chains = suite("runChain()");

chains("leaves its input alone, also as a Buffer, whose slice() shares memory", () => {
  const bytes = fs.readFileSync(MINI);
  const before = sha256(bytes);
  runChain(bytes, "move");
  assert.is(sha256(bytes), before);
});

chains("returns the wanted steps only", () => {
  assert.equal(
    runChain(fs.readFileSync(MINI), "keep", ["3-headers"]).map(({ step }) => step),
    ["3-headers"],
  );
});

chains("carries a refusal to the end", () => {
  const outputs = runChain(Buffer.from("no image"), "move");
  assert.is(outputs.length, 3);
  for (const { bytes, text } of outputs) {
    assert.is(bytes, undefined);
    assert.match(text, /^refused: Cannot read the image: .*\n$/);
  }
});

chains.run();

// ---- checkOutput(), updateOutput()

const comparing = suiteWithFolder("checkOutput()");

comparing("says that a golden is missing", ({ places }) => {
  assert.match(
    checkOutput(places, mini(), "move", outputAt(2)) ?? "",
    /^golden mini-xen-move-3-headers: .*mini-xen-move-3-headers\.txt is missing; make golden-update writes it$/,
  );
});

comparing("says nothing of what update has written, and update writes it once", ({ places }) => {
  assert.match(updateOutput(places, mini(), "move", outputAt(2)) ?? "", /^mini-xen-move-3-headers: new, bytes new$/);
  assert.is(checkOutput(places, mini(), "move", outputAt(2)), undefined);
  assert.is(updateOutput(places, mini(), "move", outputAt(2)), undefined);
  assert.not.ok(fs.existsSync(places.actual));
});

comparing("compares bytes, not how they are compressed, and update leaves those alone", ({ places }) => {
  updateOutput(places, mini(), "move", outputAt(0));
  const packed = path.join(places.golden, "mini-xen-move-1-relocated.efi.gz");
  const other = gzipSync(gunzipSync(fs.readFileSync(packed)), { level: 1 });
  fs.writeFileSync(packed, other);
  assert.is(checkOutput(places, mini(), "move", outputAt(0)), undefined);
  assert.is(updateOutput(places, mini(), "move", outputAt(0)), undefined);
  assert.is(sha256(fs.readFileSync(packed)), sha256(other));
});

comparing("shows how text and bytes differ, and leaves what was written instead", ({ places }) => {
  const { step, bytes } = outputAt(2);
  updateOutput(places, mini(), "move", outputAt(2));
  const changed = Buffer.from(bytes);
  const at = 0x3010; // .init
  changed[at] = 0x5a;
  const output = { step, bytes: changed, text: inspectText(changed) };
  const report = checkOutput(places, mini(), "move", output) ?? "";
  assert.match(report, /^golden mini-xen-move-3-headers differs; what was written instead is /);
  assert.match(report, /^--- .*mini-xen-move-3-headers\.txt$/m);
  assert.match(report, new RegExp(`^-  SHA-256 +${sha256(bytes)}$`, "m"));
  assert.match(report, new RegExp(`^\\+  SHA-256 +${sha256(changed)}$`, "m"));
  assert.match(
    report,
    /^first difference at file offset 0x3010, in section \.init, RVA 0x202010; 1 bytes differ in all$/m,
  );
  assert.match(report, /^ {2}golden 0x3010: (?!5a)/m);
  assert.match(report, /^ {2}actual 0x3010: 5a /m);
  const actual = path.join(places.actual, "mini-xen-move-3-headers");
  assert.is(sha256(fs.readFileSync(`${actual}.efi`)), sha256(changed));
  assert.is(fs.readFileSync(`${actual}.txt`, "utf8") === output.text, true);
  assert.match(
    updateOutput(places, mini(), "move", output) ?? "",
    /^mini-xen-move-3-headers: 3 lines of \d+ changed to 3, bytes changed$/,
  );
  assert.is(checkOutput(places, mini(), "move", output), undefined);
  assert.not.ok(fs.existsSync(`${actual}.efi`), "an old difference is still there");
});

comparing("sees bytes that differ from an equal text", ({ places }) => {
  updateOutput(places, mini(), "move", outputAt(2));
  fs.writeFileSync(
    path.join(places.golden, "mini-xen-move-3-headers.efi.gz"),
    gzipSync(outputAt(2).bytes.subarray(0, 0x1234)),
  );
  assert.match(
    checkOutput(places, mini(), "move", outputAt(2)) ?? "",
    /first difference at file offset 0x1234, in section \.text, .*\n {2}golden 0x1230: .*\n {2}actual 0x1230: /,
  );
});

comparing.run();

// ---- what a difference looks like

const reports = suite("golden-report");

reports("byteDifference() names CheckSum only when nothing else differs", () => {
  const { bytes } = outputAt(2);
  const changed = Buffer.from(bytes);
  changed[0xd8] = (changed[0xd8] ?? 0) ^ 1;
  assert.match(byteDifference(bytes, changed), /^first difference at file offset 0xd8, in the header area; 1 bytes/);
  changed[0x1008] = 0;
  assert.match(
    byteDifference(bytes, changed),
    /^first difference at file offset 0x1008, in section \.text, RVA 0x200008; 2 bytes/,
  );
});

reports("byteDifference() tells where a shorter file ends", () => {
  assert.match(
    byteDifference(Buffer.from("abcd".repeat(4)), Buffer.from("abcd".repeat(5))),
    /^first difference at file offset 0x10, in no image; 4 bytes differ in all\n {2}golden 0x10: \(the file ends at 0x10\)\n {2}actual 0x10: 61 62 63 64 +abcd\n/,
  );
});

reports("textDifference() stops at some number of lines", () => {
  const lines = Array.from({ length: 1000 }, (_, i) => `${i}\n`);
  const shown = textDifference("a", "b", "", lines.join("")).split("\n");
  assert.is(shown[0], "--- a");
  assert.is(shown.at(-1), "… and 903 more lines");
  assert.is(shown.length, 101);
});

reports.run();

// ---- orphans(), names, references

const lists = suiteWithFolder("orphans(), whyNotAName(), readReferences()");

lists("finds what no build makes", ({ places }) => {
  fs.mkdirSync(path.join(places.golden, "cases"), { recursive: true });
  for (const file of [
    "mini-xen-move-1-relocated.txt",
    "reference-digests.txt",
    "gone-move-1-relocated.txt",
    "4.14.6-1-move-1-relocated.efi.gz",
    "README",
  ]) {
    fs.writeFileSync(path.join(places.golden, file), "");
  }
  assert.equal(orphans(places, builtInBuilds(places)), [
    "4.14.6-1-move-1-relocated.efi.gz",
    "README",
    "gone-move-1-relocated.txt",
  ]);
});

for (const name of ["xen", "4.19-mine", "a+b_c.d", "0"])
  lists(`takes the name '${name}'`, () => assert.is(whyNotAName(name), undefined));
for (const name of ["", ".", "..", "-x", "a/b", "a b", "mini-xen", "MINI-XEN", "4.14.6-1", "4.17.7+13-zeros", "ä"]) {
  lists(`refuses the name '${name}'`, () => assert.type(whyNotAName(name), "string"));
}

lists("reads the reference digests, and stops at a row that is none", ({ places }) => {
  assert.is(readReferences().length, 16);
  fs.mkdirSync(places.golden);
  fs.writeFileSync(path.join(places.golden, "reference-digests.txt"), "# comment\nxen move 12\n");
  assert.throws(() => readReferences(places), /Cannot read the row "xen move 12"/);
});

lists("knows what must be there", ({ places }) => {
  const known = { ...mini(places), name: "4.14.6-1", sha256: "0" };
  // Not undefined: that would ask this machine's own environment.
  assert.equal(
    ["", "true"].map((ci) => mustBeThere(mini(places), ci)),
    [true, true],
  );
  assert.equal(
    ["", "false", "true"].map((ci) => mustBeThere(known, ci)),
    [false, false, true],
  );
  assert.is(mustBeThere({ ...known, added: true }, "true"), false);
});

lists.run();

// ---- golden.ts

const cli = suiteWithFolder("golden.ts");

async function golden({ places }: Context, ...args: string[]): Promise<{ status: number; out: string; err: string }> {
  const printed = { out: "", err: "" };
  const io: Io = {
    stdin: () => new Uint8Array(),
    stdout: (text) => void (printed.out += String(text)),
    stderr: (text) => void (printed.err += text),
  };
  // What is said of a missing build is another thing in CI.
  const { CI } = process.env;
  delete process.env.CI;
  try {
    return { status: await runCommand(goldenCommand(places), args, io), ...printed };
  } finally {
    if (CI !== undefined) process.env.CI = CI;
  }
}

cli("check fails without goldens; update writes them; then check passes, and says what it skips", async (context) => {
  assert.is((await golden(context, "check")).status, 1);
  const update = await golden(context, "update");
  assert.match(update.out, /^mini-xen-move-1-relocated: new, bytes new$/m);
  assert.match(update.out, /^6 goldens written, 0 files removed, 0 goldens as they were$/m);
  const check = await golden(context, "check");
  assert.match(check.out, /^skipped: golden 4\.14\.6-1: .*4\.14\.6-1\/xen\.efi is not there \(make fetch-xen\)$/m);
  assert.match(check.out, /\n6 goldens equal, 0 failed, 40 skipped\n$/);
  assert.is(check.status, 0);
});

cli(
  "update changes nothing when nothing has changed, and removes goldens that no build makes, no other file",
  async (context) => {
    await golden(context, "update");
    const { golden: folder } = context.places;
    for (const file of ["gone-move-3-headers.txt", "note.txt"]) fs.writeFileSync(path.join(folder, file), "");
    assert.is((await golden(context, "check")).status, 1);
    assert.match(
      (await golden(context, "update")).out,
      /^gone-move-3-headers\.txt: removed\n0 goldens written, 1 files removed, 6 goldens as they were\n$/m,
    );
    assert.not.ok(fs.existsSync(path.join(folder, "gone-move-3-headers.txt")));
    assert.match((await golden(context, "check")).out, /^golden\/note\.txt is made by no build/m);
  },
);

cli("check fails on a known build that is another file", async (context) => {
  await golden(context, "update");
  const folder = path.join(context.places.samples, "xen", "4.14.6-1");
  fs.mkdirSync(folder, { recursive: true });
  fs.copyFileSync(MINI, path.join(folder, "xen.efi"));
  const check = await golden(context, "check");
  assert.is(check.status, 1);
  assert.match(
    check.out,
    /^golden 4\.14\.6-1: .* is not the file that the goldens were made from: its SHA-256 is [0-9a-f]{64}, needed 9fb48395/m,
  );
});

cli("add freezes a build, which check NAME then compares; another input is named as such", async (context) => {
  const add = await golden(context, "add", "mine", MINI);
  assert.is(add.status, 0);
  assert.match(add.out, /^golden\/mine-move-1-relocated\.txt\n[^]*golden\/mine\.input\.txt\n$/);
  assert.equal(await golden(context, "check", "mine", MINI), {
    status: 0,
    out: "6 goldens equal, 0 failed, 0 skipped\n",
    err: "",
  });
  const other = path.join(context.root, "other.efi");
  fs.writeFileSync(other, Buffer.concat([fs.readFileSync(MINI), Buffer.alloc(8)]));
  const changed = await golden(context, "check", "mine", other);
  assert.is(changed.status, 1);
  assert.match(
    changed.out,
    /^golden mine: .*other\.efi is not the file that the goldens were made from: its SHA-256 is/,
  );
  const without = await golden(context, "check", "mine");
  assert.is(without.status, 1);
  assert.match(without.out, /^golden mine: .* is not there \(make golden NAME=mine XEN_EFI=…\)$/m);
  await golden(context, "update");
  assert.match(
    (await golden(context, "check")).out,
    /^skipped: golden mine: [^]*\n6 goldens equal, 0 failed, 46 skipped\n$/m,
  );
});

cli("check NAME sees a step that writes something else", async (context) => {
  await golden(context, "add", "mine", MINI);
  fs.appendFileSync(path.join(context.places.golden, "mine-keep-2-aligned.txt"), "one line more\n");
  const check = await golden(context, "check", "mine", MINI);
  assert.is(check.status, 1);
  assert.match(
    check.out,
    /^golden mine-keep-2-aligned differs[^]*^-one line more$[^]*^5 goldens equal, 1 failed, 0 skipped$/m,
  );
});

cli("add freezes a refusal, of one variant", async (context) => {
  // Without the pair that computes the table's addresses nothing can be moved; keeping it needs no pair.
  const text = ["from tiny.pe.txt", "in .init 0x8c", "fill 0x90 7"].join("\n");
  const bytes = makeSample(text, (name) => fs.readFileSync(path.join(PLACES.samples, name), "utf8"));
  const file = path.join(context.root, "half.efi");
  fs.writeFileSync(file, bytes);
  const { out, status } = await golden(context, "add", "half", file);
  assert.is(status, 0);
  assert.match(out, /^golden\/half-move-3-headers\.txt: refused: Cannot move \.reloc: .*$/m);
  assert.match(out, /^golden\/half-keep-3-headers\.txt$/m);
  assert.is((await golden(context, "check", "half", file)).status, 0);
});

/** [what, arguments, status, standard error] */
const REFUSED: readonly (readonly [string, readonly string[], number, RegExp])[] = [
  ["no verb", [], 2, /^golden\.ts: VERB is missing; see golden\.ts --help\n$/],
  ["an unknown verb", ["frob"], 2, /^golden\.ts: VERB is 'frob', needed check, update or add; /],
  ["add without XEN_EFI", ["add", "x"], 2, /^golden\.ts: XEN_EFI is missing; /],
  ["add with a bad name", ["add", "../x", MINI], 2, /^golden\.ts: NAME is '\.\.\/x': needed letters/],
  [
    "add with a name of the project's",
    ["add", "mini-xen", MINI],
    2,
    /^golden\.ts: NAME is 'mini-xen': it is one of the project's own goldens; /,
  ],
  [
    "add of what is no image",
    ["add", "x", new URL(import.meta.url).pathname],
    1,
    /cases\.test\.ts: Cannot read the image: .*\n$/,
  ],
  [
    "add of a missing file",
    ["add", "x", "/nowhere/xen.efi"],
    1,
    /^\/nowhere\/xen\.efi: Cannot read: no such file or directory\n$/,
  ],
  ["an unknown name", ["check", "x"], 2, /^golden\.ts: NAME is 'x', needed one of mini-xen, 4\.14/],
  ["update of another file", ["update", "mini-xen", MINI], 2, /^golden\.ts: update takes no XEN_EFI/],
];

for (const [what, args, status, err] of REFUSED) {
  cli(`refuses ${what}, and writes nothing`, async (context) => {
    const found = await golden(context, ...args);
    assert.is(found.status, status);
    assert.match(found.err, err);
    assert.is(found.out, "");
    assert.not.ok(fs.existsSync(context.places.golden));
  });
}

cli("add refuses a name that is taken", async (context) => {
  await golden(context, "add", "mine", MINI);
  const again = await golden(context, "add", "Mine", MINI);
  assert.is(again.status, 2);
  assert.match(
    again.err,
    /^golden\.ts: NAME 'mine' is taken; remove golden\/mine\.input\.txt to give it to another build; /,
  );
});

cli.after(() => fs.rmSync(path.dirname(MINI), { recursive: true }));
cli.run();
