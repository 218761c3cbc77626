// SPDX-License-Identifier: GPL-2.0-only
// One description of everything: usage texts, `make help`, README and manual page say the same.

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { COMMAND_NAMES, loadCommands, parseUsage } from "./commands.ts";
import { PROFILES } from "../loaders/profiles.ts";
import { command as man, manualPage } from "./man.ts";
import { TOP } from "./places.ts";

const README = fs.readFileSync(path.join(TOP, "README.md"), "utf8");
const MAKEFILE = fs.readFileSync(path.join(TOP, "Makefile"), "utf8");
const scriptsIn = (folder: string): string[] =>
  fs.readdirSync(path.join(TOP, folder)).filter((file) => file.endsWith(".ts") && !file.endsWith(".test.ts"));
const COMMANDS = await loadCommands();
const PAGE = await manualPage();

/** "| `scripts/NAME.ts ARGUMENTS` | what |", of the README's table. */
const TABLE = [...README.matchAll(/^\| `scripts\/((?:[^`|\\]|\\\|)+)` \| (.+) \|$/gm)].map(([, synopsis = ""]) =>
  synopsis.replace(/\\\|/g, "|"),
);

/** Scripts for working on the project; each has a make target instead of a row. */
const DEVELOPMENT: Readonly<Record<string, string>> = {
  "bench.ts": "bench",
  "boot.ts": "boot-test",
  "dist.ts": "dist",
  "fetch-xen.ts": "fetch-xen",
  "fuzz.ts": "fuzz",
  "golden.ts": "golden",
  "make-sample.ts": "",
  "man.ts": "man",
  "mutants.ts": "mutants",
  "run-tests.ts": "test",
  "xen-tree-test.ts": "xen-tree-test",
};

/** Targets as `make help` prints them. */
const help = spawnSync("make", ["-s", "--no-print-directory", "help"], { cwd: TOP, encoding: "utf8" });
const TARGETS = [...help.stdout.matchAll(/^ {2}([a-z-]+) +\S/gm)].map(([, name = ""]) => name);

const agree = suite("descriptions");

agree("README's table has every script that users run, in the usage text's words", () => {
  assert.equal(
    TABLE,
    COMMANDS.map((command) => parseUsage(command).synopses[0]),
  );
});

/** What a text calls the loader of a profile; several profiles are one. */
const CALLED: Readonly<Record<string, RegExp>> = {
  "edk2|xen": /UEFI firmware/,
  "systemd-boot": /systemd-boot/,
  shim: /shim/,
  "grub-chain": /GRUB.*chainloader/s,
  "grub-peimage": /GRUB.*chainloader/s,
  "grub-mb2": /GRUB.*multiboot2/s,
  "grub-mb1": /GRUB.*multiboot\b/s,
  qemu: /QEMU/,
  syslinux: /syslinux/,
  ipxe: /iPXE/,
  limine: /Limine/,
  kexec: /kexec/,
  freebsd: /FreeBSD/,
  "u-boot": /U-Boot/,
};

agree("README, manual page and mb-efi name the loaders that xen.mb.efi is for, and no other", () => {
  const between = (text: string, start: RegExp, end: RegExp): string =>
    text.split(start)[1]?.split(end)[0] ?? assert.unreachable(`nothing behind ${start}`) ?? "";
  const texts = {
    README: between(README, /^# xen-mb-efi$/m, /^```/m),
    "manual page": between(PAGE, /^\.SH DESCRIPTION$/m, /^\.PP$/m).replace(/\\-/g, "-"),
    "mb-efi.ts": between(COMMANDS.find((c) => c.usage.includes("mb-efi.ts"))?.usage ?? "", /\n\n/, /\n\n/),
  };
  for (const [loader, called] of Object.entries(CALLED)) {
    const profiles = PROFILES.filter(({ name }) => new RegExp(`^(${loader})`).test(name));
    assert.ok(profiles.length !== 0, loader);
    for (const [where, text] of Object.entries(texts))
      assert.is(
        called.test(text),
        profiles.some(({ needed }) => needed),
        `${loader} in ${where}`,
      );
  }
  const unknown = PROFILES.filter(({ name }) => !Object.keys(CALLED).some((one) => new RegExp(`^(${one})`).test(name)));
  assert.equal(unknown, []);
});

agree("every other script is for working on the project, and a make target runs it", () => {
  const names = scriptsIn("scripts").map((file) => file.replace(/\.ts$/, ""));
  assert.equal(names, [...COMMAND_NAMES].sort());
  const programs = scriptsIn("scripts/dev").filter((file) =>
    fs.readFileSync(path.join(TOP, "scripts/dev", file), "utf8").includes("runIfMain("),
  );
  assert.equal(programs, Object.keys(DEVELOPMENT));
  for (const [file, target] of Object.entries(DEVELOPMENT)) {
    if (target === "")
      assert.ok(fs.readFileSync(path.join(TOP, "samples/README.md"), "utf8").includes(`scripts/dev/${file}`), file);
    else assert.ok(TARGETS.includes(target) && MAKEFILE.includes(`scripts/dev/${file}`), file);
  }
});

agree("a usage text names every option that the script takes, and no other", () => {
  for (const command of COMMANDS) {
    const { options, synopses } = parseUsage(command);
    const [synopsis = ""] = synopses;
    const described = options.map(([option]) => /^--([a-z-]+)/.exec(option)?.[1]).filter((name) => name !== undefined);
    assert.equal([...described].sort(), [...Object.keys(command.options), "help"].sort(), synopsis);
    const inSynopsis = [...synopsis.matchAll(/--([a-z-]+)/g)].map(([, name = ""]) => name);
    for (const name of inSynopsis) assert.ok(described.includes(name), `${synopsis}: --${name} is not described`);
  }
});

agree("a script's --help is its usage text, and starts with its name", () => {
  for (const name of COMMAND_NAMES.slice(0, 2)) {
    const { stdout, status } = spawnSync(
      process.execPath,
      [...process.execArgv, path.join(TOP, "scripts", `${name}.ts`), "--help"],
      { encoding: "utf8" },
    );
    assert.is(status, 0);
    assert.is(stdout, COMMANDS[COMMAND_NAMES.indexOf(name)]?.usage);
  }
  COMMANDS.forEach((command, i) =>
    assert.ok(command.usage.startsWith(`Usage: ${COMMAND_NAMES[i]}.ts `), command.usage),
  );
});

agree("make help has every target with a description, and every target that the README names is there", () => {
  assert.is(help.status, 0, help.stderr);
  const described = [...MAKEFILE.matchAll(/^([a-z-]+):.*## /gm)].map(([, name = ""]) => name);
  assert.equal(TARGETS, described);
  const phony = [...MAKEFILE.matchAll(/^\.PHONY: (.*)$/gm)]
    .flatMap(([, names = ""]) => names.split(" "))
    .filter((name) => name !== "FORCE");
  assert.equal(
    phony.filter((name) => !described.includes(name)),
    [],
    "targets that make help does not list",
  );
  const code = [...README.matchAll(/`([^`\n]+)`|^(make .*)$/gm)]
    .map(([, inline, line]) => inline ?? line ?? "")
    .filter((text) => /^make( |$)/.test(text));
  const named = code.flatMap(
    (text) =>
      text
        .split(" #")[0]
        ?.split(" ")
        .slice(1)
        .filter((word) => /^[a-z][a-z-]*$/.test(word)) ?? [],
  );
  assert.ok(named.length > 10, named.join(" "));
  assert.equal(
    [...new Set(named)].filter((name) => !described.includes(name)),
    [],
  );
});

agree.run();

// ---

const manual = suite("manual page");

/** What a program says of the page; undefined where it is not there, which CI does not have. */
function judged(program: string, args: readonly string[], page = PAGE): string | undefined {
  const file = path.join(folder, "xen-mb-efi.1");
  fs.writeFileSync(file, page);
  const { error, stdout, stderr } = spawnSync(program, [...args, file], {
    encoding: "utf8",
    env: { ...process.env, LC_ALL: "C.UTF-8", MANPAGER: "cat", MANWIDTH: "120" },
  });
  if (error === undefined) return `${stderr}${program === "mandoc" && args.includes("lint") ? stdout : ""}`;
  if (process.env.CI === "true") throw error;
  console.log(`skipped: ${program} is not there, which would have judged the manual page`);
  return undefined;
}

const folder = fs.mkdtempSync(path.join(os.tmpdir(), "help-"));

manual("man and mandoc have nothing to say against it", () => {
  const groff = judged("man", ["--warnings", "-E", "UTF-8", "-l"]);
  assert.ok(groff === undefined || groff === "", groff);
  const lint = judged("mandoc", ["-T", "lint", "-W", "warning"]);
  assert.ok(lint === undefined || lint === "", lint);
  if (lint !== undefined)
    assert.match(
      judged("mandoc", ["-T", "lint", "-W", "warning"], PAGE.replace(".SH SCRIPTS", ".XX SCRIPTS")) ?? "",
      /XX/,
      "the judge judges",
    );
});

manual("it has every script with every option, and every make target", () => {
  for (const command of COMMANDS) {
    const { options, synopses } = parseUsage(command);
    const [synopsis = ""] = synopses;
    const plain = PAGE.replace(/\\-/g, "-").replace(/\\&/g, "");
    assert.ok(plain.includes(`.SS ${synopsis.split(" ")[0]}\n`), synopsis);
    for (const [option] of options)
      if (option !== "--help") assert.ok(plain.includes(`.B ${option}\n`), `${synopsis}: ${option}`);
  }
  for (const name of TARGETS) assert.ok(PAGE.includes(`.B ${name.replace(/-/g, "\\-")}\n`), name);
});

manual("a table of a usage text is a table", () => {
  const table = /\n\.nf\n([^]*?)\n\.fi\n/.exec(PAGE)?.[1] ?? "";
  assert.ok(table.split("\n").length > 20, table);
  assert.match(table, /^ {2}\* edk2 {2,}UEFI firmware, LoadImage$/m);
});

manual("man.ts writes it, in ASCII, the same every time", async () => {
  assert.match(man.usage, /^Usage: man\.ts OUT\n/);
  assert.is(await manualPage(), PAGE);
  assert.not.match(PAGE, /[^\n -~]/);
  assert.not.match(PAGE, /^\.(?!\\"|TH|SH|SS|PP|TP|B|BR|br|nh|ad|nf|fi)/m);
});

manual.after(() => fs.rmSync(folder, { recursive: true }));
manual.run();
