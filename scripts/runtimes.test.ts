// SPDX-License-Identifier: GPL-2.0-only
// Same input, same bytes: the scripts under other runtimes (other node majors with their own type stripping, Deno), as
// one bundled file, and in other surroundings (time zone, locale, umask, working directory).
// `make runtimes` gets the runtimes to build/runtimes; those that are not there are skipped, and said so.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { bundle } from "./dist.ts";
import { mbEfi } from "./mb-efi.ts";

const TOP = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const SAMPLE = path.join(TOP, "samples/mini-xen/mini-xen.efi");
const FOLDER = path.join(TOP, "build/runtimes/node_modules");
const work = fs.mkdtempSync(path.join(os.tmpdir(), "runtimes-"));

/** How each runs a script; the one that runs this test is always there. */
const RUNTIMES: readonly { readonly name: string; readonly program: string; readonly flags: readonly string[] }[] = [
  { name: "tsx", program: process.execPath, flags: process.execArgv },
  { name: "node 22", program: path.join(FOLDER, "node22/bin/node"), flags: [] },
  { name: "node 24", program: path.join(FOLDER, "node24/bin/node"), flags: [] },
  { name: "Deno", program: path.join(FOLDER, ".bin/deno"), flags: ["run", "-A", "--no-config"] },
];
const present = RUNTIMES.filter(({ program }) => fs.existsSync(program));

const digest = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
const expected = new Map([false, true].map((keep) => [keep, digest(mbEfi(fs.readFileSync(SAMPLE), { keep, stripSignature: false }))]));

/** One variant is enough where nothing of the image decides. */
const moved = new Map([...expected].filter(([keep]) => !keep));

interface Surroundings {
  readonly env?: Record<string, string>;
  readonly umask?: number;
}

/** Runs mb-efi or a bundle of it on mini-xen and compares what it wrote. */
function check(program: string, args: readonly string[], { env = {}, umask = 0o22 }: Surroundings = {}, variants = expected): void {
  for (const [keep, needed] of variants) {
    const out = path.join(work, "out.efi");
    fs.rmSync(out, { force: true });
    const before = process.umask(umask);
    try {
      execFileSync(program, [...args, SAMPLE, out, ...(keep ? ["--keep"] : [])], { cwd: work, env: { ...process.env, ...env }, stdio: ["ignore", "ignore", "pipe"] });
    } finally {
      process.umask(before);
    }
    assert.is(digest(fs.readFileSync(out)), needed, keep ? "with --keep" : "without --keep");
  }
}

const runtimes = suite("runtimes");

for (const { name, program, flags } of RUNTIMES) {
  const there = fs.existsSync(program);
  if (!there) console.log(`skipped: ${name}: ${path.relative(TOP, program)} is not there (make runtimes)`);
  const test = there ? runtimes : runtimes.skip;
  test(`${name}: mb-efi gives the same bytes`, () => check(program, [...flags, path.join(TOP, "scripts/mb-efi.ts")]));
}

runtimes("the bundled file gives the same bytes, under every node", async () => {
  const file = path.join(work, "xen-mb-efi.mjs");
  fs.writeFileSync(file, await bundle());
  for (const { name, program } of present) if (name !== "Deno") check(program, [file], {}, moved);
});

runtimes("the bundle is the same every time, and has no path of this machine in it", async () => {
  const [once, again] = [Buffer.from(await bundle()).toString(), Buffer.from(await bundle()).toString()];
  assert.ok(once === again, "two bundles differ");
  assert.not.ok(once.includes(TOP), "it names the checkout");
});

for (const [what, surroundings] of Object.entries<Surroundings>({
  "time zone": { env: { TZ: "Pacific/Kiritimati" } },
  locale: { env: { LC_ALL: "tr_TR.UTF-8", LANG: "tr_TR.UTF-8" } },
  "SOURCE_DATE_EPOCH": { env: { SOURCE_DATE_EPOCH: "1234567890" } },
  umask: { umask: 0o077 },
})) {
  runtimes(`another ${what} gives the same bytes`, () => {
    for (const { program, flags } of present.slice(0, 1)) check(program, [...flags, path.join(TOP, "scripts/mb-efi.ts")], surroundings, moved);
  });
}

runtimes.after(() => fs.rmSync(work, { recursive: true }));
runtimes.run();
