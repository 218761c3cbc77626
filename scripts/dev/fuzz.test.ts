// SPDX-License-Identifier: GPL-2.0-only
// The fuzzer's own parts, every input that once failed, and a short run with a fixed seed. The long runs are `make
// fuzz`.

import * as fs from "node:fs";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { runCommand } from "../cli/cli.ts";
import type { Io } from "../cli/cli.ts";
import { ImageError } from "../cli/errors.ts";
import { command } from "./fuzz.ts";
import { corpus } from "./fuzz/corpus.ts";
import { crashBytes, crashName, crashText } from "./fuzz/crash.ts";
import { Finding, attempt, guarded, judge } from "./fuzz/oracle.ts";
import { Random } from "./fuzz/random.ts";
import { Fuzzer } from "./fuzz/run.ts";

const CRASHES = fileURLToPath(new URL("../../samples/crash/", import.meta.url));
const SEED = 20260818;
const IMAGES = 2000;

const fuzz = suite("fuzzer");

fuzz("the images that it starts from are taken by everything", () => {
  const bases = corpus();
  assert.ok(bases.length >= 15, `only ${bases.length}`);
  for (const { name, bytes } of bases) {
    const { steps, verified } = judge(bytes, "all");
    // What emit-header has written is refused by emit-header.
    const least = name.endsWith("with headers") ? 2 : 6;
    assert.ok(steps >= least, `${name}: ${steps} steps took it`);
    if (least === 6) assert.ok(verified >= 1, `${name}: not verified`);
  }
});

fuzz("the same seed and number give the same image", () => {
  const [one, two] = [new Fuzzer(7), new Fuzzer(7)];
  for (const index of [0, 1, 99, 100000])
    assert.is(crashName(one.image(index).bytes), crashName(two.image(index).bytes));
  assert.is.not(crashName(new Fuzzer(8).image(0).bytes), crashName(one.image(0).bytes));
});

fuzz("images differ, and from what they are made of", () => {
  const fuzzer = new Fuzzer(SEED);
  const images = Array.from({ length: 500 }, (_, i) => fuzzer.image(i));
  const names = new Set(images.map(({ bytes }) => crashName(bytes)));
  assert.ok(names.size > 450, `${names.size} different ones of 500`);
});

fuzz("random numbers are the ones that they have always been", () => {
  const random = new Random(1, 2);
  assert.equal([random.word(), random.word(), random.below(1000)], FIRST_NUMBERS);
});
/** If these change, every seed that anybody has written down is worthless. */
const FIRST_NUMBERS = [124326284, 1222730616, 377];

fuzz("an input comes back from its text as it was", () => {
  const random = new Random(3);
  for (const size of [0, 1, 31, 32, 33, 500]) {
    const bytes = Uint8Array.from({ length: size }, () => (random.oneIn(2) ? 0 : random.below(256)));
    assert.equal([...crashBytes(crashText(bytes, "why\nand how"))], [...bytes]);
  }
  assert.throws(() => crashBytes("0: 00\n"), /needed 'size BYTES'/);
  assert.throws(() => crashBytes("size 4\nx: 00\n"), /Cannot read the input: 'x: 00'/);
});

fuzz("what must not happen is a finding", () => {
  const bytes = new Uint8Array([1, 2, 3]);
  const kindOf = (work: () => void): string => {
    try {
      guarded(bytes, () => attempt("it", work));
      return "nothing";
    } catch (error) {
      if (!(error instanceof Finding)) throw error;
      return error.kind;
    }
  };
  assert.is(
    kindOf(() => {}),
    "nothing",
  );
  assert.is(
    kindOf(() => void bytes.fill(0)),
    "input changed",
  );
  assert.is(
    kindOf(() => void new Uint8Array(2 ** 31)),
    "it throws Error, allocates N bytes, as a header claims",
  );
  assert.is(
    kindOf(() => void ([] as string[])[0]!.valueOf()),
    "it throws TypeError, Cannot read properties of undefined (reading 'valueOf')",
  );
  assert.is(
    kindOf(() => fail("Cannot do it: the size is NaN, needed 1")),
    "it's message",
  );
  assert.is(
    kindOf(() => fail("Cannot do it: the size is 0x1, needed 0x2")),
    "nothing",
  );
  assert.ok(
    new Uint8Array(1) instanceof Uint8Array && Object.getPrototypeOf(Uint8Array.prototype) !== null,
    "the guard is gone",
  );
});

function fail(message: string): never {
  throw new ImageError(message);
}

const files = fs.existsSync(CRASHES)
  ? fs
      .readdirSync(CRASHES)
      .filter((name) => name.endsWith(".txt"))
      .sort()
  : [];
for (const name of files) {
  fuzz(`replays ${name}`, () => {
    const bytes = crashBytes(fs.readFileSync(`${CRASHES}${name}`, "utf8"));
    assert.is(crashName(bytes), name, "its name is not its digest");
    judge(bytes, "all");
  });
}

fuzz(`${IMAGES} images of seed ${SEED} without a finding`, () => {
  const fuzzer = new Fuzzer(SEED);
  const totals = { images: 0, steps: 0, verified: 0 };
  for (let index = 0; index < IMAGES; index++) {
    const found = fuzzer.run(index, totals);
    if (found !== undefined)
      throw new Error(
        `image ${index}, from ${found.base}: ${found.message}; ` +
          `fuzz.ts --seed ${SEED} --from ${index} --count 1 keeps it`,
      );
  }
  // A fuzzer whose images are all refused at once finds nothing.
  assert.ok(totals.steps > IMAGES / 2 && totals.verified > IMAGES / 10, JSON.stringify(totals));
});

fuzz("the command says seed, number and findings", async () => {
  const printed = { out: "", err: "" };
  const io: Io = {
    stdin: () => assert.unreachable("reads standard input") as never,
    stdout: (text) => void (printed.out += String(text)),
    stderr: (text) => void (printed.err += text),
  };
  assert.is(await runCommand(command, ["--seed", "5", "--count", "40"], io), 0);
  assert.match(
    printed.out,
    /^seed 5\n40 images in \d+ s: \d+ times a step took one, \d+ results verified, 0 findings\n$/,
  );
  assert.is(await runCommand(command, ["--seed", "x"], io), 2);
  assert.match(printed.err, /fuzz\.ts: --seed 'x' is not a number below 1000000000; see fuzz\.ts --help\n$/);
});

fuzz.run();
