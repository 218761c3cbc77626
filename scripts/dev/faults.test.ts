// SPDX-License-Identifier: GPL-2.0-only
// What becomes of OUT when a run is killed, has no room, may not write, or is not alone: it is the file that was there
// or the whole new one. A run that ends by itself, or by a signal that it can catch, leaves no temporary file; after
// SIGKILL one may be left beside OUT, which nobody takes for OUT: its name begins with a dot and ends in ".tmp".

import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { realIo, writeOutput } from "../cli/cli.ts";
import { bundle } from "./dist.ts";
import { Random } from "./fuzz/random.ts";
import { MINI_XEN, SCRIPTS } from "./places.ts";
import { alignSections } from "../align-sections.ts";
import { onBytes } from "./on-bytes.ts";

const OLD = "the old file\n";
const KILLS = 32;
const AT_ONCE = 4;

interface Place {
  readonly root: string;
  readonly oldDigest: string;
  readonly newDigest: string;
}

const sha256 = (bytes: Uint8Array | string): string => createHash("sha256").update(bytes).digest("hex");
const digestOf = (file: string): string => sha256(fs.readFileSync(file));

/** A directory with an OUT in it. */
function target(root: string, name: string): string {
  const directory = path.join(root, name);
  fs.mkdirSync(directory, { recursive: true });
  const out = path.join(directory, "xen.mb.efi");
  fs.writeFileSync(out, OLD);
  return out;
}

/** A step as one file of JavaScript, which starts ten times as fast as by tsx. All write by the same function; this one is the shortest. */
const PROGRAM = path.join(fs.mkdtempSync(path.join(tmpdir(), "faults-program-")), "align-sections.mjs");

interface Ended {
  readonly status: number | null;
  readonly signal: string | null;
  readonly err: string;
}

function start(out: string): { child: ReturnType<typeof spawn>; ended: Promise<Ended> } {
  const child = spawn(process.execPath, [PROGRAM, MINI_XEN, out], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let err = "";
  child.stderr?.setEncoding("utf8").on("data", (text: string) => (err += text));
  const ended = new Promise<Ended>((resolve) => {
    child.once("close", (status, signal) => resolve({ status, signal, err }));
  });
  return { child, ended };
}

function leftovers(out: string): string[] {
  return fs.readdirSync(path.dirname(out)).filter((name) => name !== path.basename(out));
}

async function inParallel(count: number, work: (index: number) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < count) await work(next++);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

/** Resolves when a file appears in a directory, or when `ended` does. */
async function appearance(directory: string, ended: Promise<unknown>): Promise<void> {
  const watcher = fs.watch(directory);
  const seen = new Promise((resolve) => watcher.once("change", resolve));
  await Promise.race([seen, ended]);
  watcher.close();
}

const faults = suite<Place>("faults");

faults.before(async (context) => {
  const root = fs.mkdtempSync(path.join(tmpdir(), "faults-test-"));
  fs.writeFileSync(PROGRAM, await bundle(path.join(SCRIPTS, "align-sections.ts")));
  const bytes = onBytes(alignSections)(fs.readFileSync(MINI_XEN));
  Object.assign(context, { root, oldDigest: sha256(OLD), newDigest: sha256(bytes) });
});
faults.after(({ root }) => {
  for (const directory of [root, path.dirname(PROGRAM)]) fs.rmSync(directory, { recursive: true, force: true });
});

faults(
  `killed by SIGKILL at ${KILLS} moments: OUT is the old file or the whole new one`,
  async ({ root, oldDigest, newDigest }) => {
    const random = new Random(20260818);
    const seen = { killed: 0, old: 0, new: 0, left: 0 };
    // How long a run takes on this machine, now; the first one is not killed.
    const begin = Date.now();
    await start(target(root, "kill-warm-up")).ended;
    const duration = Date.now() - begin;
    await inParallel(KILLS, async (index) => {
      const out = target(root, `kill-${index}`);
      const { child, ended } = start(out);
      // Half of them at any moment, half while the file is being written, or renamed.
      if (index % 2 === 0) await sleep(random.below(2 * duration));
      else {
        await appearance(path.dirname(out), ended);
        await sleep(random.below(4));
      }
      child.kill("SIGKILL");
      if ((await ended).signal === "SIGKILL") seen.killed++;
      const digest = digestOf(out);
      if (digest !== oldDigest && digest !== newDigest)
        throw new Error(`${out} is neither the old nor the new file: ${fs.statSync(out).size} bytes`);
      seen[digest === oldDigest ? "old" : "new"]++;
      const left = leftovers(out);
      seen.left += left.length;
      assert.not(
        left.some((name) => !/^\..*\.tmp$/.test(name)),
        left.join(),
      );
    });
    assert.ok(seen.killed >= KILLS / 4, `only ${seen.killed} of ${KILLS} were killed`);
    assert.ok(seen.old > 0 && seen.old + seen.new === KILLS, JSON.stringify(seen));
  },
);

for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  faults(`ended by ${signal}: no temporary file is left either`, async ({ root, oldDigest, newDigest }) => {
    await inParallel(AT_ONCE, async (index) => {
      const out = target(root, `${signal}-${index}`);
      const { child, ended } = start(out);
      await appearance(path.dirname(out), ended);
      await sleep(index);
      child.kill(signal);
      await ended;
      assert.ok([oldDigest, newDigest].includes(digestOf(out)), "OUT is neither the old nor the new file");
      assert.equal(leftovers(out), []);
    });
  });
}

faults("eight runs into the same OUT at once: all succeed, and it is whole", async ({ root, newDigest }) => {
  const out = target(root, "concurrent");
  const runs = await Promise.all(Array.from({ length: 8 }, () => start(out).ended));
  for (const { status, err } of runs) assert.is(status, 0, err);
  assert.is(digestOf(out), newDigest);
  assert.equal(leftovers(out), []);
});

faults("a temporary file of a killed run is in nobody's way", async ({ root }) => {
  const out = target(root, "leftover");
  const directory = path.dirname(out);
  const seen = new Set<string>();
  const watcher = fs.watch(directory, (_event, name) => void seen.add(name ?? ""));
  writeOutput(out, new Uint8Array([1]), realIo);
  await sleep(100);
  watcher.close();
  seen.delete(path.basename(out));
  assert.ok(seen.size > 0, "no temporary file was seen");
  // In a container the next run may have the same process id.
  for (const name of seen) fs.writeFileSync(path.join(directory, name), "half a file");
  writeOutput(out, new Uint8Array([1, 2, 3]), realIo);
  assert.equal([...fs.readFileSync(out)], [1, 2, 3]);
});

// ---- file systems of our own

/** Undefined where nobody may mount; says so once. */
function mountTmpfs(directory: string, options: string): boolean {
  fs.mkdirSync(directory, { recursive: true });
  return spawnSync("mount", ["-t", "tmpfs", "-o", options, "tmpfs", directory], { stdio: "ignore" }).status === 0;
}

/** A test on a file system that holds little; skipped, visibly, where mounting is not permitted. */
function mountTest(name: string, test: (context: Place, directory: string) => Promise<void>): void {
  const probe = fs.mkdtempSync(path.join(tmpdir(), "faults-mount-"));
  const permitted = mountTmpfs(probe, "size=64k");
  if (permitted) spawnSync("umount", [probe]);
  fs.rmSync(probe, { recursive: true, force: true });
  if (!permitted) {
    console.log(`skipped: ${name}: mounting a tmpfs is not permitted here`);
    return void faults.skip(name);
  }
  faults(name, async (context) => {
    const directory = path.join(context.root, name.replace(/\W+/g, "-"));
    assert.ok(mountTmpfs(directory, "size=32k"));
    try {
      await test(context, directory);
    } finally {
      spawnSync("umount", [directory]);
    }
  });
}

mountTest("full disk: OUT stays as it was, one line says why", async ({ oldDigest }, directory) => {
  const out = target(directory, ".");
  const { status, err } = await start(out).ended;
  assert.is(status, 1);
  assert.match(err, /xen\.mb\.efi: Cannot write: no space left on device\n$/);
  assert.is(digestOf(out), oldDigest);
  assert.equal(leftovers(out), []);
});

mountTest("read-only directory: OUT stays as it was, one line says why", async ({ oldDigest }, directory) => {
  const out = target(directory, ".");
  assert.is(spawnSync("mount", ["-o", "remount,ro", directory]).status, 0);
  const { status, err } = await start(out).ended;
  assert.is(status, 1);
  assert.match(err, /xen\.mb\.efi: Cannot write: read-only file system\n$/);
  assert.is(digestOf(out), oldDigest);
});

faults.run();
