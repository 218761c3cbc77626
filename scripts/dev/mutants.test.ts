// SPDX-License-Identifier: GPL-2.0-only
// That `make mutants` examines what it says: each fault of the table has its place, and what is planted nowhere, crashes
// or is accepted counts as failed.

import * as fs from "node:fs";
import * as path from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { MUTANTS, plant, readTable, verdictOf } from "./mutants.ts";
import { SCRIPTS } from "./places.ts";

const mutants = suite("mutants");

mutants("every fault of the table has one place, and changes its file", () => {
  assert.ok(MUTANTS.length >= 40, `only ${MUTANTS.length}`);
  for (const mutant of MUTANTS) {
    const source = fs.readFileSync(path.join(SCRIPTS, mutant.file), "utf8");
    assert.ok(plant(source, mutant) !== source, mutant.what);
  }
  assert.is(new Set(MUTANTS.map(({ file, what }) => `${file}: ${what}`)).size, MUTANTS.length, "one is there twice");
});

mutants("what has no place, or two, cannot be planted", () => {
  const mutant = { file: "a.ts", what: "a fault", find: "x + 1", put: "x" };
  assert.is(plant("return x + 1;", mutant), "return x;");
  assert.throws(
    () => plant("return x;", mutant),
    /^Cannot plant 'a fault': its line is in a\.ts 0 times, needed once$/,
  );
  assert.throws(() => plant("x + 1; x + 1;", mutant), /in a\.ts 2 times/);
});

mutants("a table that is not one is not read", () => {
  const table = "# comment\n\n== a.ts\n\nwhat it is\n- old\n+ new\n\nwithout it\n- old\n+\n";
  assert.equal(
    readTable(table).map(({ put }) => put),
    ["new", ""],
  );
  assert.throws(
    () => readTable("# comment\n\n== a.ts\n\nwhat it is\n- old\n"),
    /Cannot read the table of faults at 'wh/,
  );
  assert.throws(() => readTable("# comment\n\nwhat it is\n- old\n+ new\n"), /Cannot read the table of faults/);
});

mutants("a fault is killed, equivalent or has survived by all of its chains", () => {
  const right = [{ digest: "1" }, { digest: "2" }];
  const refused = { refused: "verify: Cannot verify: it" };
  for (const [fates, kind] of [
    [[{ digest: "1" }, refused], "killed"],
    [[refused, refused], "killed"],
    [right, "equivalent"],
    [[refused, { digest: "3" }], "SURVIVED"],
    [[{ digest: "1" }, { digest: "1" }], "SURVIVED"],
    ["ReferenceError: x is not defined", "FAILED"],
  ] as const)
    assert.is(verdictOf(fates, right).kind, kind, JSON.stringify(fates));
});

mutants.run();
