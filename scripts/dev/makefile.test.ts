// SPDX-License-Identifier: GPL-2.0-only
// The Makefile as its users know it: what is made, what is made anew and what is not, and what is left when it fails.

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { MINI_XEN as MINI, TOP } from "./places.ts";
import { mbEfi } from "../mb-efi.ts";

const STEPS = ["1-relocated.efi", "2-aligned.efi", "3-headers.efi", "verified.txt", "loaders.txt", "xen.mb.efi"];

interface Made {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function make(...args: readonly string[]): Made {
  // What the make that runs this test says to the makes below it would add its own flags and variables.
  const { MAKEFLAGS: _flags, MFLAGS: _old, MAKELEVEL: _level, XEN_EFI: _input, OUT: _out, ...env } = process.env;
  return spawnSync("make", ["-C", TOP, "--no-print-directory", `NODE=${process.execPath}`, ...args], {
    encoding: "utf8",
    env,
  });
}

/** As make, but scripts are started as this test was, where the Makefile's own way takes longer. */
function quickly(...args: readonly string[]): Made {
  const words = [process.execPath, ...process.execArgv].map((word) => `'${forMake(word)}'`);
  return make(`--eval=override TS := ${words.join(" ")}`, ...args);
}

/** For dry runs, in which it is asked for nothing but its kind. */
const NO_NODE = path.join(fs.mkdtempSync(path.join(os.tmpdir(), "makefile-node-")), "node");
fs.writeFileSync(NO_NODE, "#!/bin/sh\necho tsx\n", { mode: 0o755 });

/** What make would run, in which a line for each command. */
function planned(...args: readonly string[]): string {
  const { status, stdout, stderr } = make("-n", `NODE=${NO_NODE}`, ...args);
  assert.is(status, 0, stderr);
  return stdout;
}

/** Checks that make refuses, before it runs anything, in one line. */
function refuses(args: readonly string[], words: RegExp): void {
  const { status, stdout, stderr } = make("-n", `NODE=${NO_NODE}`, ...args);
  assert.is(status, 2, args.join(" "));
  assert.is(stdout, "");
  assert.match(stderr, words);
  assert.match(stderr, /^[^\n]+\n$/);
}

interface Context {
  folder: string;
  input: string;
  /** A payload, under a name that the shell, make and programs might take for something else. */
  config: string;
  out: string;
}

/** A file name as make's command line takes it. */
function forMake(name: string): string {
  return name.replaceAll("$", "$$$$");
}

const makefile = suite<Context>("Makefile");

makefile.before((context) => {
  context.folder = fs.mkdtempSync(path.join(os.tmpdir(), "makefile-"));
  context.input = path.join(context.folder, "it's a xen.efi");
  context.out = path.join(context.folder, "out");
  fs.copyFileSync(MINI, context.input);
  context.config = path.join(context.folder, "it's a $#.cfg");
  fs.writeFileSync(context.config, "[global]\n");
});

makefile.after(({ folder }) => {
  for (const each of [folder, path.dirname(NO_NODE)]) fs.rmSync(each, { recursive: true });
});

/** When each of the files was written, in the order of the steps. */
function written({ out }: Context): number[] {
  return STEPS.map((name) => fs.statSync(path.join(out, name)).mtimeMs);
}

function expected(input: string, keep: boolean): Buffer {
  return Buffer.from(mbEfi(fs.readFileSync(input), { keep, stripSignature: false }));
}

function result({ out }: Context): Buffer {
  return fs.readFileSync(path.join(out, "xen.mb.efi"));
}

makefile("makes all steps with -j, of files with any name, and the same bytes as mb-efi", (context) => {
  const { input, config, out } = context;
  const { status, stderr, stdout } = quickly(
    "-j4",
    "all",
    "strip",
    `XEN_EFI=${input}`,
    `CONFIG=${forMake(config)}`,
    `OUT=${out}`,
  );
  assert.is(status, 0, stderr);
  assert.ok(result(context).equals(expected(input, false)));
  assert.match(stdout, /\n\S+xen\.mb\.efi: \d+ bytes, from .*it's a xen\.efi with RELOC=move\n/);
  assert.ok(fs.existsSync(path.join(out, "xen.unified.efi")));
});

makefile("signs what was stripped and unified last, until XEN_EFI= begins anew", ({ input, config, out }) => {
  const sign = ["sign", `KEY=${forMake(config)}`, `CERT=${forMake(config)}`, `OUT=${out}`];
  const plan = planned(...sign);
  assert.match(
    plan,
    /strip-debug\.ts .*\n[^]*--section \.config='[^]*it'\\''s a \$#\.cfg'\n[^]*sign\.ts \S+\/xen\.unified\.efi /,
  );
  assert.match(planned(...sign, `XEN_EFI=${input}`), /sign\.ts \S+\/xen\.mb\.efi /);
  assert.match(planned(...sign, "NO_SBAT=1"), /sign\.ts .* --no-sbat\n/);
});

makefile("makes nothing anew when nothing has changed, nor when only the date has", (context) => {
  const before = written(context);
  fs.utimesSync(context.input, new Date(), new Date());
  const { status } = quickly(`XEN_EFI=${context.input}`, `OUT=${context.out}`);
  assert.is(status, 0);
  assert.equal(written(context), before);
});

makefile("makes all anew for another RELOC, and for other contents under the same name and an old date", (context) => {
  const before = written(context);
  assert.is(quickly(`XEN_EFI=${context.input}`, `OUT=${context.out}`, "RELOC=keep").status, 0);
  assert.ok(written(context).every((time, i) => time !== before[i]));
  assert.ok(result(context).equals(expected(context.input, true)));
  const other = fs.readFileSync(MINI);
  other[0x30] = 1; // in the MS-DOS header, where nobody looks
  fs.writeFileSync(context.input, other);
  fs.utimesSync(context.input, new Date(0), new Date(0));
  const first = path.join(context.out, "1-relocated.efi");
  assert.is(quickly(`XEN_EFI=${context.input}`, `OUT=${context.out}`, "RELOC=keep", first).status, 0);
  assert.is(fs.readFileSync(first)[0x30], 1);
});

makefile("acts on what was made last, without being told again what that was", ({ out, input }) => {
  for (const goal of [
    ["layout"],
    ["explain"],
    ["inspect"],
    ["boot", "BOOT=efi"],
    ["sign", `KEY=${MINI}`, `CERT=${MINI}`],
  ]) {
    const plan = planned(...goal, `OUT=${out}`);
    assert.ok(
      plan.includes(`relocate-reloc.ts '${input.replace("'", "'\\''")}' ${out}/1-relocated.efi --keep\n`),
      plan,
    );
  }
});

makefile("touches nothing where what was made last cannot be read any more", ({ out, input }) => {
  fs.renameSync(input, `${input}.away`);
  refuses(["layout", `OUT=${out}`], /XEN_EFI='[^\n]*it's a xen\.efi': Cannot read/);
  fs.renameSync(`${input}.away`, input);
});

makefile("removes what was made of what is made anew", ({ out, input }) => {
  const strip = planned("strip", `XEN_EFI=${input}`, "SBAT=package.json", `OUT=${out}`);
  assert.match(strip, /rm -f \S+\.stripped\.efi \S+\.unified\.efi \S+\.signed\.efi\n[^\n]*strip-debug/);
  assert.match(strip, /rm -f \S+\.unified\.efi \S+\.signed\.efi\n[^\n]*add-sections/);
});

makefile("says that nothing was made yet", ({ folder }) => {
  refuses(["layout", `OUT=${folder}/none`], /none: Nothing was made there yet: needed XEN_EFI=FILE\./);
  refuses([`OUT=${folder}/none`, "RELOC=keep"], /none: Nothing was made there yet: needed XEN_EFI=FILE\./);
});

makefile("makes the sample where nothing at all is said, in a place of its own", () => {
  const plan = planned();
  assert.match(plan, /relocate-reloc\.ts 'samples\/mini-xen\/mini-xen\.efi' build\/sample\/1-relocated\.efi/);
  assert.not.match(plan, /build\/(?!sample\b)/);
});

makefile("removes what was made of an older input, so that no failure leaves it", ({ input, out }) => {
  const made = ["xen.stripped.efi", "xen.unified.efi", "xen.signed.efi", "xen.debug", "layout.svg", "layout.html"];
  for (const name of made) fs.writeFileSync(path.join(out, name), "");
  fs.writeFileSync(path.join(out, "mine"), "");
  fs.writeFileSync(input, "no image");
  const { status, stderr } = quickly(`XEN_EFI=${input}`, `OUT=${out}`);
  assert.is(status, 2);
  assert.match(stderr, /^\S.*it's a xen\.efi: Cannot read the image: [^\n]*\nmake: \*\*\* \[/);
  assert.equal(fs.readdirSync(out).sort(), [".made-of", "mine"]);
  fs.copyFileSync(MINI, input);
});

makefile("fails and names the loader where one that is meant to take the image would not", (context) => {
  const input = path.join(context.folder, "asks-too-much.efi");
  const out = path.join(context.folder, "refused");
  const bytes = fs.readFileSync(MINI);
  // The information that the Multiboot2 header's first tag requests: a type that nobody gives.
  bytes.writeUInt32LE(99, bytes.indexOf("d65052e8", 0, "hex") + 24);
  fs.writeFileSync(input, bytes);
  const { status, stderr } = quickly(`XEN_EFI=${input}`, `OUT=${out}`);
  assert.is(status, 2);
  assert.match(stderr, /^\S*3-headers\.efi: Cannot be booted by grub-mb2: refuses: [^\n]* requests information /m);
  assert.not.match(stderr, /Cannot be booted by (edk2|shim)/);
  assert.ok(fs.existsSync(path.join(out, "verified.txt")));
  assert.not.ok(fs.existsSync(path.join(out, "loaders.txt")));
  assert.not.ok(fs.existsSync(path.join(out, "xen.mb.efi")));
});

makefile("stops after any step that is asked for", (context) => {
  const out = path.join(context.folder, "partly");
  assert.is(make(`XEN_EFI=${MINI}`, `OUT=${out}`, `${out}/2-aligned.efi`).status, 0);
  assert.equal(fs.readdirSync(out).sort(), [".made-of", "1-relocated.efi", "2-aligned.efi"]);
});

makefile("boots the image that is named, and makes one only where none is", ({ out, input }) => {
  const boot = ["boot", "BOOT=efi", `OUT=${out}`, `XEN_EFI=${input}`];
  assert.match(planned(...boot), /relocate-reloc/);
  assert.match(planned(...boot, `IMAGE=${out}/xen.mb.efi`), /boot\.ts --image '[^\n]*\/xen\.mb\.efi'/);
  assert.not.match(planned(...boot, `IMAGE=${out}/xen.mb.efi`), /relocate-reloc/);
});

makefile("looks for the path to boot through before it builds", ({ folder, input }) => {
  const { status, stderr } = make("boot", "BOOT=nowhere", `OUT=${folder}/unbuilt`, `XEN_EFI=${input}`);
  assert.is(status, 2);
  assert.match(stderr, /^boot\.ts: No path is called 'nowhere'/);
  assert.not.ok(fs.existsSync(path.join(folder, "unbuilt")));
});

makefile("refuses what it cannot do, in a line that says what is needed", ({ folder, input }) => {
  const [xen, none] = [`XEN_EFI=${input}`, path.join(folder, "none")];
  for (const [args, words] of [
    [[xen, "RELOC=maybe"], /RELOC='maybe': Cannot build so: needed 'move'/],
    [[xen, "OUT=a b"], /OUT='a b': Cannot build there/],
    [[xen, "OUT=/x/a&b"], /OUT='\/x\/a&b': Cannot build there/],
    [[xen, "OUT=a$$b"], /OUT='a\$b': Cannot build there/],
    [["clean", "OUT="], /OUT='': Cannot build there/],
    [[xen, "OUT=-x"], /OUT='-x': Cannot build there/],
    [["NODE=/none"], /\/none: Cannot run the scripts: not found, needed node 20 or newer/],
    [["XENEFI=xen.efi"], /XENEFI='xen\.efi': Unknown variable: did you mean XEN_EFI\?/],
    [["sign", xen, "kernal=x"], /kernal='x': Unknown variable: did you mean KERNEL\?/],
    [["sign", xen, `KEY=${none}`], /make sign: Cannot sign: needed KEY=key\.pem CERT=cert\.pem/],
    [["sign", xen, `KEY=${none}`, `CERT=${input}`], /KEY='[^\n]*none': Cannot read/],
    [["unify", xen], /make unify: Cannot add sections: none given, needed CONFIG=/],
    [[xen, `CONFIG=${none}`], /CONFIG='[^\n]*none': Cannot read/],
    [["golden-add", "NAME=mine"], /make golden-add: Cannot freeze a build: needed NAME=NAME XEN_EFI=FILE/],
    [["boot", xen], /make boot: Cannot boot: needed BOOT=PATH/],
    [
      [`XEN_EFI=${folder}/partly/2-aligned.efi`, `OUT=${folder}/partly`],
      /2-aligned\.efi': Cannot build from what is built in/,
    ],
  ] as const)
    refuses(args, words);
});

makefile("takes every variable that its help and the README name", () => {
  const text =
    make("-s", "help").stdout +
    fs
      .readFileSync(path.join(TOP, "README.md"), "utf8")
      .match(/^make .*$/gm)
      ?.join("\n");
  const names = [...new Set([...text.matchAll(/\b([A-Z][A-Z_]+)=/g)].map(([, name]) => name))];
  assert.ok(names.length > 15, names.join(" "));
  planned(
    "help",
    ...names.filter((name) => name !== "OUT" && name !== "RELOC" && name !== "NODE").map((name) => `${name}=x`),
    "V=1",
  );
});

makefile("takes no file's name for an option, and no value for a command", () => {
  const plan = planned("unify", "XEN_EFI=-dash.efi", "SBAT=package.json", "OUT=elsewhere");
  assert.match(plan, /relocate-reloc\.ts '\.\/-dash\.efi' /);
  assert.match(plan, /verify\.ts '\.\/-dash\.efi' /);
  assert.match(planned("fuzz", "SEED=1;x", "COUNT=2;x"), / --count '2;x' --seed '1;x'\n/);
});

makefile("removes what it has built in OUT, and there only", ({ folder }) => {
  const out = path.join(folder, "partly");
  fs.writeFileSync(path.join(out, "mine"), "");
  const { status, stdout } = make("clean", `OUT=${out}`);
  assert.is(status, 0);
  assert.not.match(stdout, / build/);
  assert.equal(fs.readdirSync(out), ["mine"]);
  assert.not.match(planned("clean"), /runtimes|boot-tools|rm -rf build( |$)/m);
});

makefile.run();
