// SPDX-License-Identifier: GPL-2.0-only
// Same input, same bytes: the scripts under other runtimes (other node majors with their own type stripping, Deno), as
// one bundled file, and in other surroundings (time zone, locale, umask, file system, working directory).
// `make runtimes` gets the runtimes to build/runtimes; those that are not there are skipped, and said so.

import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { bundle } from "./dist.ts";
import { TOP } from "./places.ts";
import { mbEfi } from "../mb-efi.ts";

const SAMPLE = path.join(TOP, "samples/mini-xen/mini-xen.efi");
const FOLDER = path.join(TOP, "build/runtimes/node_modules");
const work = fs.mkdtempSync(path.join(os.tmpdir(), "runtimes-"));

/** How each runs a script; the one that runs this test is always there. */
const RUNTIMES: readonly { readonly name: string; readonly program: string; readonly flags: readonly string[] }[] = [
  { name: "tsx", program: process.execPath, flags: ["--import", import.meta.resolve("tsx")] },
  { name: "node 22", program: path.join(FOLDER, "node22/bin/node"), flags: [] },
  { name: "node 24", program: path.join(FOLDER, "node24/bin/node"), flags: [] },
  { name: "Deno", program: path.join(FOLDER, ".bin/deno"), flags: ["run", "-A", "--no-config"] },
];
const present = RUNTIMES.filter(({ program }) => fs.existsSync(program));

const digest = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
const expected = new Map(
  [false, true].map((keep) => [keep, digest(mbEfi(fs.readFileSync(SAMPLE), { keep, stripSignature: false }))]),
);

/** One variant is enough where nothing of the image decides. */
const moved = new Map([...expected].filter(([keep]) => !keep));

interface Surroundings {
  readonly env?: Record<string, string>;
  readonly umask?: number;
  /** Where input and output are. */
  readonly folder?: string;
}

/** Runs mb-efi or a bundle of it on mini-xen and compares what it wrote. */
function check(
  program: string,
  args: readonly string[],
  { env = {}, umask = 0o22, folder = work }: Surroundings = {},
  variants = expected,
): void {
  const input = path.join(folder, "in.efi");
  fs.copyFileSync(SAMPLE, input);
  for (const [keep, needed] of variants) {
    const out = path.join(folder, "out.efi");
    fs.rmSync(out, { force: true });
    const before = process.umask(umask);
    try {
      execFileSync(program, [...args, input, out, ...(keep ? ["--keep"] : [])], {
        cwd: work,
        env: { ...process.env, ...env },
        stdio: ["ignore", "ignore", "pipe"],
      });
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

const printing: readonly (readonly string[])[] = [
  ["layout.ts", SAMPLE, path.join(work, "result.efi"), "--svg", "-"],
  ["layout.ts", SAMPLE, "--html", "-"],
  ["explain.ts", SAMPLE, path.join(work, "result.efi")],
  ["dev/man.ts", "-"],
];

/** What each of these scripts prints, by the runtime. */
function printed(program: string, flags: readonly string[]): string[] {
  return printing.map(([script = "", ...args]) =>
    execFileSync(program, [...flags, path.join(TOP, "scripts", script), ...args], {
      cwd: work,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    }),
  );
}

runtimes("layout, explain and man print the same, under every runtime", () => {
  fs.writeFileSync(
    path.join(work, "result.efi"),
    mbEfi(fs.readFileSync(SAMPLE), { keep: false, stripSignature: false }),
  );
  const wanted = printed(process.execPath, process.execArgv);
  assert.ok(wanted.every((text) => text.length > 1000));
  for (const { name, program, flags } of present.filter(({ name }) => name !== "tsx")) {
    for (const [i, text] of printed(program, flags).entries())
      assert.is(text, wanted[i], `${name}: ${printing[i]?.[0]}`);
  }
});

runtimes("the bundled file gives the same bytes, under every node", async () => {
  const file = path.join(work, "xen-mb-efi.mjs");
  fs.writeFileSync(file, await bundle());
  for (const { name, program } of present) if (name !== "Deno") check(program, [file], {}, moved);
});

runtimes("the bundled file is called as its file is, in its help and its messages", async () => {
  const file = path.join(work, "xen-mb-efi-of-mine.mjs");
  fs.writeFileSync(file, await bundle());
  const help = execFileSync(process.execPath, [file, "--help"], { encoding: "utf8" });
  assert.match(help, /^Usage: xen-mb-efi-of-mine\.mjs IN OUT /);
  assert.not.match(help, /mb-efi\.ts/);
  const { status, stderr } = spawnSync(process.execPath, [file], { encoding: "utf8" });
  assert.equal([status, stderr], [2, "xen-mb-efi-of-mine.mjs: IN is missing; see xen-mb-efi-of-mine.mjs --help\n"]);
});

const deno = present.find(({ name }) => name === "Deno");
(deno === undefined ? runtimes.skip : runtimes)("Deno without permissions: one line says what is missing", () => {
  const script = path.join(TOP, "scripts/mb-efi.ts");
  for (const flags of [[], ["--allow-read"]]) {
    const args = ["run", "--no-prompt", "--no-config", ...flags, script, SAMPLE, path.join(work, "denied.efi")];
    const { status, stderr } = spawnSync(deno?.program ?? "", args, { encoding: "utf8" });
    const last = stderr.split("\n").filter((line) => !/: note: /.test(line));
    assert.is(status, 1);
    assert.is(last.length, 2, stderr);
    assert.match(last[0] ?? "", /^mb-efi\.ts: Requires (read|write) access to .*--allow-\1 flag.*"run -A"/);
  }
});

runtimes("the bundle is the same every time, and has no path of this machine in it", async () => {
  const [once, again] = [Buffer.from(await bundle()).toString(), Buffer.from(await bundle()).toString()];
  assert.ok(once === again, "two bundles differ");
  assert.not.ok(once.includes(TOP), "it names the checkout");
});

/** In memory, without a disk; holes and blocks are other ones there. */
const MEMORY_FILES = "/dev/shm";
const elsewhere =
  fs.existsSync(MEMORY_FILES) && fs.statfsSync(MEMORY_FILES).type !== fs.statfsSync(work).type
    ? fs.mkdtempSync(path.join(MEMORY_FILES, "runtimes-"))
    : undefined;
if (elsewhere === undefined) console.log(`skipped: another file system: ${MEMORY_FILES} is none`);

const SURROUNDINGS: Readonly<Record<string, Surroundings>> = {
  "time zone": { env: { TZ: "Pacific/Kiritimati" } },
  locale: { env: { LC_ALL: "tr_TR.UTF-8", LANG: "tr_TR.UTF-8" } },
  SOURCE_DATE_EPOCH: { env: { SOURCE_DATE_EPOCH: "1234567890" } },
  umask: { umask: 0o077 },
  ...(elsewhere === undefined ? {} : { "file system": { folder: elsewhere } }),
};

runtimes(`another ${Object.keys(SURROUNDINGS).join(", ")}, all at once: the same bytes, under every runtime`, () => {
  const together = Object.values(SURROUNDINGS).reduce(
    (all, one) => ({ ...all, ...one, env: { ...all.env, ...one.env } }),
    {},
  );
  for (const { program, flags } of present)
    check(program, [...flags, path.join(TOP, "scripts/mb-efi.ts")], together, moved);
});

const REAL = path.join(TOP, "samples/xen/4.20.4+63/xen.efi");
if (!fs.existsSync(REAL))
  console.log(`skipped: a real build: ${path.relative(TOP, REAL)} is not there (make fetch-xen)`);
(fs.existsSync(REAL) ? runtimes : runtimes.skip)(
  "the bundled file makes the golden's bytes of a real build, under every node",
  async () => {
    const golden = fs.readFileSync(path.join(TOP, "golden/4.20.4+63-move-3-headers.txt"), "utf8");
    const needed = /^ *SHA-256 +([0-9a-f]{64})$/m.exec(golden)?.[1];
    const [file, out] = [path.join(work, "xen-mb-efi.mjs"), path.join(work, "real.efi")];
    fs.writeFileSync(file, await bundle());
    for (const { name, program } of present.filter(({ name }) => name !== "Deno")) {
      execFileSync(program, [file, REAL, out], { stdio: ["ignore", "ignore", "pipe"] });
      assert.is(digest(fs.readFileSync(out)), needed, name);
    }
  },
);

runtimes.after(() => {
  for (const folder of [work, elsewhere]) if (folder !== undefined) fs.rmSync(folder, { recursive: true });
});
runtimes.run();
