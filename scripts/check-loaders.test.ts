// SPDX-License-Identifier: GPL-2.0-only
// check-loaders on the known builds: every verdict, the words, and what the boot tests have seen of the real loaders;
// and as a command. The single rules are tested in loaders/rules.test.ts, what stands in the way in
// loaders/obstacles.test.ts.

import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { addSections } from "./add-sections.ts";
import { checkLoaders, command, reportText } from "./check-loaders.ts";
import type { Report } from "./check-loaders.ts";
import { runCommand } from "./cli/cli.ts";
import { PATHS } from "./dev/boot/paths.ts";
import { MATRIX, expected, goesThrough, subjectName } from "./dev/boot/plan.ts";
import { ABSENT, PRESENT, VARIANTS, fileOf, load, skipped } from "./dev/sample/variants.ts";
import type { Variant } from "./dev/sample/variants.ts";
import { PROFILES, profileNamed } from "./loaders/profiles.ts";
import { boots, verdictLine } from "./loaders/rules.ts";
import type { LoaderVerdict } from "./loaders/rules.ts";
import { parseImage } from "./pe/parse.ts";
import { serializeImage } from "./pe/serialize.ts";
import { stripDebug } from "./strip-debug.ts";

const MAIN_BUILD = "4.17.7+13";

/** Made once; the files themselves are not kept. */
const reports = new Map<string, Report>();
function reportOf(build: string, variant: Variant): Report {
  const key = `${build} ${variant}`;
  const report = reports.get(key) ?? checkLoaders(load(build, variant));
  reports.set(key, report);
  return report;
}

function verdictOf(build: string, variant: Variant, loader: string): LoaderVerdict {
  const verdict = reportOf(build, variant).verdicts.find((v) => v.loader === loader);
  if (verdict === undefined) throw new Error(`no verdict of ${loader}`);
  return verdict;
}

/** Of the image as the boot tests have it under Secure Boot, stripped and with SBAT; all that is left out is to sign it. */
function securedVerdict(build: string, variant: Variant, loader: string): LoaderVerdict {
  const sbat = "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n";
  const key = `${build} ${variant} secured`;
  const secured = (): Uint8Array => {
    const small = serializeImage(stripDebug(parseImage(load(build, variant))));
    return serializeImage(addSections(parseImage(small), [{ name: ".sbat", data: Buffer.from(sbat) }]));
  };
  const report = reports.get(key) ?? checkLoaders(secured());
  reports.set(key, report);
  return report.verdicts.find((v) => v.loader === loader) ?? (assert.unreachable(loader) as never);
}

// ---- the verdicts

const LETTERS: Readonly<Record<string, LoaderVerdict["outcome"]>> = {
  ".": "loads",
  w: "loads, with a warning",
  X: "loads, but Xen then stops",
  R: "refuses",
};

/** Columns: untouched, transformed with RELOC=move, with RELOC=keep. */
const TABLE = `
  xen                   .  .  .
  edk2                  .  .  .
  edk2-secure-boot      w  w  w
  systemd-boot          .  .  .
  grub-chainloader      .  .  .
  ipxe-efi              .  .  .
  u-boot-efi            X  X  X
  shim                  X  w  w
  shim-secure-boot      R  R  R
  shim-nx               R  R  R
  grub-chain-redhat     X  .  .
  grub-peimage-2.12     .  .  .
  grub-peimage-2.14     R  .  .
  grub-mb2              R  .  .
  grub-mb2-secure-boot  R  R  R
  grub-mb1              R  .  .
  qemu-mb1              R  .  .
  syslinux-mb1          R  .  .
  ipxe-mb1              R  .  .
  limine-mb1            R  .  .
  limine-mb2            R  .  .
  limine-mb2-efi        R  X  X
  kexec                 R  X  X
  freebsd-mb1           R  R  R
  freebsd-mb2           R  R  R
`;

/** Where a build differs: this one was linked without NX_COMPAT, and no padding is larger than its section. */
const EXCEPTIONS: Readonly<Record<string, string>> = { "4.20.4+39 untouched grub-peimage-2.14": "." };

const table = suite("verdicts");

for (const id of ABSENT) table(`${id}: not there`, () => skipped(`samples/xen/${id} is not there, see make fetch-xen`));

for (const build of PRESENT) {
  table(`of ${build}`, () => {
    const rows = TABLE.trim()
      .split("\n")
      .map((line) => line.trim().split(/\s+/));
    assert.equal(
      rows.map(([name]) => name),
      PROFILES.map((p) => p.name),
    );
    for (const [name = "", ...letters] of rows) {
      VARIANTS.forEach((variant, i) => {
        const letter = EXCEPTIONS[`${build} ${variant} ${name}`] ?? letters[i] ?? "";
        const verdict = verdictOf(build, variant, name);
        assert.is(verdict.outcome, LETTERS[letter], `${build}, ${variant}: ${verdictLine(verdict)}`);
      });
    }
    assert.is(reportOf(build, "untouched").boots, false);
    assert.is(reportOf(build, "move").boots, true);
    assert.is(reportOf(build, "keep").boots, true);
  });
}

/** What is seen of an untouched xen.efi: the controls' words. */
const WORDS: Readonly<Record<string, string>> = {
  shim: "Unsupported relocation type",
  "shim-secure-boot": "Verification failed",
  "shim-nx": "Section 0 is writable and executable",
  "grub-chain-redhat": "Unsupported relocation type",
  "grub-peimage-2.14": "cannot load image",
  "grub-mb2": "invalid arch-dependent ELF magic",
  "grub-mb1": "invalid arch-dependent ELF magic",
  "qemu-mb1": "Error while loading elf kernel",
  "syslinux-mb1": "Invalid Multiboot image: neither ELF header nor a.out kludge found",
  "ipxe-mb1": "Could not boot: Invalid argument",
  "limine-mb1": "multiboot1: Invalid ELF file bitness",
  "limine-mb2": "multiboot2: required EFI AMD64 entry tag is unsupported and no alternative entry was found",
  kexec: "Cannot determine the file type of ...",
  "freebsd-mb2": "elf32_loadfile_raw failed: 79 unable to load multiboot kernel",
};

table("come in the loader's own words", () => {
  if (!PRESENT.includes(MAIN_BUILD)) return skipped(`${MAIN_BUILD} is not there`);
  for (const [loader, words] of Object.entries(WORDS)) {
    assert.is(verdictOf(MAIN_BUILD, "untouched", loader).shows, words);
  }
  assert.is(
    verdictLine(verdictOf(MAIN_BUILD, "untouched", "grub-mb2")),
    `grub-mb2: refuses: no Multiboot2 address tag and no ELF: "invalid arch-dependent ELF magic" ` +
      `(GRUB grub-core/loader/multiboot.c:grub_multiboot2_load_elf)`,
  );
  assert.match(verdictLine(verdictOf(MAIN_BUILD, "move", "freebsd-mb2")), /"Unknown header tag 0x2 not optional"/);
  assert.match(
    verdictLine(verdictOf(MAIN_BUILD, "move", "freebsd-mb1")),
    /"Unsupported multiboot flags found: 0x10003"/,
  );
  assert.match(
    verdictLine(verdictOf(MAIN_BUILD, "move", "shim-nx")),
    /"Policy requires NX, but image does not support NX"/,
  );
  assert.match(
    verdictLine(verdictOf(MAIN_BUILD, "move", "grub-mb2-secure-boot")),
    /"prohibited by secure boot policy"/,
  );
});

/**
 * The profile of each path of the boot tests (boot-paths.ts): what it says must be what is seen there. Whether a signature
 * is good depends on the machine's keys and is no verdict: the paths of tampered and unsigned images have none.
 */
const PROFILE_OF_PATH: Readonly<Record<string, string>> = {
  efi: "edk2",
  "grub-efi-chain": "grub-chainloader",
  shim: "shim",
  "systemd-boot": "systemd-boot",
  "grub-efi-mb2": "grub-mb2",
  "grub-bios-mb2": "grub-mb2",
  "grub-bios-mb1": "grub-mb1",
  "qemu-mb1": "qemu-mb1",
  "mboot-c32": "syslinux-mb1",
  "ipxe-mb1": "ipxe-mb1",
  "ipxe-efi": "ipxe-efi",
  "grub212-efi-mb2": "grub-mb2",
  "grub212-peimage": "grub-peimage-2.12",
  "grub214-efi-mb2": "grub-mb2",
  "grub214-peimage": "grub-peimage-2.14",
  kexec: "kexec",
  "u-boot": "u-boot-efi",
  "sb-efi": "edk2-secure-boot",
  "sb-shim": "shim-secure-boot",
  "sb-shim-objcopy": "shim-secure-boot",
  "sb-grub-chain": "shim",
  "sb-grub-mb2": "grub-mb2",
  "sb-grub-mb2-module2": "grub-mb2-secure-boot",
};

/** What the outcome that the boot tests expect is called here. */
function seenAs({ stage, troubles }: ReturnType<typeof expected>): "boots" | LoaderVerdict["outcome"] {
  if (stage === "refused") return "refuses";
  return stage === "fail" || troubles !== undefined ? "loads, but Xen then stops" : "boots";
}

table("agree with what the loaders were seen to do in the boot tests", () => {
  const paths = PATHS.filter(({ secureBoot }) => secureBoot === undefined || secureBoot === "signed");
  assert.equal(Object.keys(PROFILE_OF_PATH).sort(), paths.map((p) => p.name).sort());
  for (const subject of MATRIX.filter(({ build }) => PRESENT.includes(build))) {
    for (const bootPath of paths.filter((candidate) => goesThrough(subject, candidate))) {
      const wanted = expected(subject, bootPath);
      const profile = PROFILE_OF_PATH[bootPath.name] ?? "";
      const verdict =
        bootPath.secureBoot === undefined
          ? verdictOf(subject.build, subject.variant, profile)
          : securedVerdict(subject.build, subject.variant, profile);
      const where = `${subjectName(subject)} through ${bootPath.name}: ${verdictLine(verdict)}`;
      let said = boots(verdict) ? "boots" : verdict.outcome;
      // mini-xen gets through where Xen was observed to stop for reasons of its own.
      if (subject.build === "mini-xen" && verdict.findings[0]?.rule.endsWith("-observed")) said = "boots";
      // A refusal that Xen's EFI loader part speaks is one to the boot tests, for nothing else is seen.
      const spoken = said === "loads, but Xen then stops" && seenAs(wanted) === "refuses";
      assert.is(spoken ? "refuses" : said, seenAs(wanted), where);
      // What only the loader knows, a file's name, is cut off there.
      if (wanted.stage === "refused") assert.match(verdict.shows.replace(/ of \.\.\.$/, ""), wanted.detail, where);
    }
  }
});

table.run();

// ---- the command

interface Run {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

async function run(...args: string[]): Promise<Run> {
  const printed = { out: "", err: "" };
  const status = await runCommand(command, args, {
    stdin: () => new Uint8Array(fs.readFileSync(fileOf("mini-xen"))),
    stdout: (text) => void (printed.out += typeof text === "string" ? text : Buffer.from(text).toString()),
    stderr: (text) => void (printed.err += text),
  });
  return { status, ...printed };
}

const program = suite("check-loaders.ts");

program(
  "prints all verdicts and what stands in the way, and fails for an image that a loader does not take",
  async () => {
    const { status, out } = await run(fileOf("mini-xen"));
    assert.is(status, 1);
    assert.match(out, /^edk2: loads$/m);
    assert.match(out, /^What stands in the way:$/m);
    assert.match(out, /^    relocate-reloc removes it/m);
    assert.not.match(out, /undefined|NaN|\[object/);
    assert.is(out, reportText(checkLoaders(load("mini-xen", "untouched"))));
  },
);

program("names on standard error each loader that is meant to take the image and does not, and no other", async () => {
  const named = (err: string): string[] =>
    [...err.matchAll(/^<stdin>: Cannot be booted by (\S+): .*\n/gm)].map(([, loader = ""]) => loader);
  const { err } = await run("-");
  const failing = reportOf("mini-xen", "untouched").verdicts.filter((verdict) => !boots(verdict));
  const meant = failing.map((v) => v.loader).filter((loader) => profileNamed(loader)?.needed);
  assert.equal(named(err), meant);
  assert.is(err.split("\n").length, meant.length + 1);
  assert.ok(meant.includes("grub-mb2") && meant.length < failing.length);
});

program("answers for the loaders that are asked about, and only for them", async () => {
  const takes = await run("-", "--loader", "edk2", "--loader", "xen");
  assert.equal(takes, { status: 0, out: "edk2: loads\nxen: loads\n", err: "" });
  const refuses = await run("-", "--loader", "grub-mb2");
  assert.is(refuses.status, 1);
  assert.match(refuses.out, /^grub-mb2: refuses: [^\n]+\n$/);
  assert.is((await run("-", "--loader", "shim")).status, 1);
  assert.match(
    (await run("-", "--loader", "shim")).out,
    /^shim: loads, but Xen then stops: .*"Unsupported relocation type"/,
  );
});

program("prints JSON", async () => {
  const { status, out } = await run("-", "--json");
  assert.is(status, 1);
  const report = JSON.parse(out) as Report;
  assert.equal(report, JSON.parse(JSON.stringify(checkLoaders(load("mini-xen", "untouched")))));
  const shim = report.verdicts.find((v) => v.loader === "shim");
  assert.is(shim?.outcome, "loads, but Xen then stops");
  assert.is(shim?.findings[0]?.rule, "xen-reloc-discardable");
  assert.is(report.traits?.linker.split(".").length, 2);
});

program("takes the beginning of several loaders' names for all of them, a whole name for one", async () => {
  const asked = async (name: string): Promise<string[]> => {
    const { out } = await run("-", "--json", "--loader", name);
    return (JSON.parse(out) as Report).verdicts.map((v) => v.loader);
  };
  assert.equal(await asked("grub-peimage"), ["grub-peimage-2.12", "grub-peimage-2.14"]);
  assert.equal(await asked("shim"), ["shim"]);
});

program("tells wrong usage and wrong files in one line", async () => {
  const unknown = await run("-", "--loader", "lilo");
  assert.equal([unknown.status, unknown.out], [2, ""]);
  assert.match(unknown.err, /^check-loaders\.ts: --loader 'lilo' is none of xen, edk2, [^\n]+\n$/);
  assert.is((await run()).status, 2);
  const missing = await run("/nonexistent/xen.efi");
  assert.equal(missing, { status: 1, out: "", err: "/nonexistent/xen.efi: Cannot read: no such file or directory\n" });
  const noImage = await run(fileURLToPath(import.meta.url));
  assert.is(noImage.status, 1);
  assert.match(noImage.err, /: Cannot read the image: offset 0 is [^\n]+\n$/);
});

program("lists every loader in its help", async () => {
  const { status, out } = await run("--help");
  assert.is(status, 0);
  for (const { name } of PROFILES) assert.match(out, new RegExp(`^  [ *] ${name} `, "m"));
});

program.run();
