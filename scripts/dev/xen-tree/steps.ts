// SPDX-License-Identifier: GPL-2.0-only
// What xen-tree-test.ts does with each tree, in order. A step throws an ImageError that says what is not as it must be.

import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { AptError } from "../apt.ts";
import { dom0Initrd } from "../boot/dom0.ts";
import { LIMIT_SECONDS, expected, meets, pathNamed } from "../boot/plan.ts";
import { boot, inWorkFolder } from "../boot/qemu.ts";
import { foreign, missingTool } from "../boot/tools.ts";
import { SCRIPTS } from "../places.ts";
import {
  fail,
  listing,
  modified,
  pathWithoutNode,
  requireCount,
  requireFile,
  requireLine,
  requireSame,
  runLogged,
  touch,
} from "./run.ts";
import type { Finished } from "./run.ts";
import { split } from "./split.ts";
import { COMBINE_TOOL, combinesBinaries } from "../../tree/xen-tree.ts";

export interface Case {
  readonly name: string;
  readonly says: string;
  readonly release: string;
  readonly suites: readonly string[];
  readonly compiler: "gcc" | "clang";
  /** In a directory of its own (O=), not in the source tree. */
  readonly outOfTree: boolean;
  /** First changed to one that satisfies strict W^X, and drops the Multiboot code from xen.efi (xen-tree-split.ts). */
  readonly split?: boolean;
}

const BOOKWORM = { release: "4.17", suites: ["bookworm"] };
const TRIXIE = { release: "4.20", suites: ["trixie", "sid"] };

export const CASES: readonly Case[] = [
  {
    name: "4.17-gcc",
    says: "bookworm's Xen, in the source tree",
    ...BOOKWORM,
    compiler: "gcc",
    outOfTree: false,
  },
  {
    name: "4.17-clang",
    says: "the same with clang, out of tree (O=)",
    ...BOOKWORM,
    compiler: "clang",
    outOfTree: true,
  },
  {
    name: "4.17-split",
    says: "the same as upstream will have it: .init split, no Multiboot code in xen.efi",
    ...BOOKWORM,
    compiler: "gcc",
    outOfTree: true,
    split: true,
  },
  {
    name: "4.20-gcc",
    says: "trixie's Xen, out of tree (O=)",
    ...TRIXIE,
    compiler: "gcc",
    outOfTree: true,
  },
  {
    name: "4.20-clang",
    says: "the same with clang, in the source tree",
    ...TRIXIE,
    compiler: "clang",
    outOfTree: false,
  },
  {
    name: "4.20-split",
    says: "the same as upstream will have it",
    ...TRIXIE,
    compiler: "gcc",
    outOfTree: true,
    split: true,
  },
];

/** Why a step cannot be done here; the next ones can. */
export class Skip extends Error {}

export interface Step {
  readonly name: string;
  run(): void | Promise<void>;
}

interface Places {
  /** Absolute, all of them. */
  readonly folder: string;
  readonly source: string;
  readonly tool: string;
}

const NO_NODE_LINE = "xen.mb.efi generation disabled: no node >= 20 (node)";
const BOOT_PATHS = ["efi", "grub-bios-mb2"];
const VENDOR = "test";
const OPTION = "CONFIG_EFI_MULTIBOOT";
const KEEPING_FILES = ["xen/arch/x86/Kconfig", "xen/arch/x86/boot/head.S", "xen/arch/x86/xen.lds.S"];

/** The steps of a case; later ones build on earlier ones. */
export function steps(one: Case, { folder, source, tool }: Places): Step[] {
  const work = path.join(folder, one.name);
  const tree = path.join(work, "src");
  const output = one.outOfTree ? path.join(work, "out") : path.join(tree, "xen");
  const destination = path.join(work, "destination");
  const [efi, mbEfi] = [path.join(output, "xen.efi"), path.join(output, "xen.mb.efi")];
  const log = `${work}.log`;
  const withNoNode = path.join(folder, "no-node");
  let untouched = new Map<string, string>();

  const run = (command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Finished> =>
    runLogged(command, args, env, log);
  const script = (name: string, ...args: string[]): Promise<Finished> =>
    run(process.execPath, [...process.execArgv, path.join(SCRIPTS, name), ...args]);
  const make = async (args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<string> => {
    const done = await tryMake(args, env);
    if (done.status !== 0) fail(`make ${args.join(" ")} ends with status ${done.status}; whole log: ${log}`);
    return done.output;
  };
  const tryMake = async (args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Finished> => {
    const where = one.outOfTree ? [`O=${output}`] : [];
    const compiler = one.compiler === "clang" ? ["clang=y"] : [];
    return await run(
      "make",
      ["-C", path.join(tree, "xen"), "-j2", "XEN_TARGET_ARCH=x86_64", ...compiler, ...where, ...args],
      env,
    );
  };
  const install = async (...args: string[]): Promise<string> => {
    const done = await script("install-xen.ts", tree, "--tool", tool, ...args);
    if (done.status !== 0) fail(`install-xen ends with status ${done.status}: ${done.output.trim()}`);
    return done.output;
  };
  const judged = async (image: string, original: string): Promise<void> => {
    for (const args of [
      ["verify.ts", original, image],
      ["check-loaders.ts", image],
    ] as const) {
      const [name, ...rest] = args;
      const done = await script(name, ...rest);
      if (done.status !== 0) fail(`${name} ends with status ${done.status}; whole log: ${log}`);
    }
  };

  const traits = async (image: string): Promise<Traits> => {
    const done = await script("check-loaders.ts", image, "--json");
    return (JSON.parse(done.output) as { traits: Traits }).traits;
  };
  const withoutMultiboot: Step = {
    name: `without ${OPTION} the tool says that xen.efi was built without Multiboot`,
    async run() {
      const configuration = path.join(output, ".config");
      await make(["defconfig"]);
      const enabled = fs.readFileSync(configuration, "utf8");
      requireLine(enabled, new RegExp(`^${OPTION}=y$`));
      fs.writeFileSync(configuration, enabled.replace(`${OPTION}=y`, `# ${OPTION} is not set`));
      const done = await tryMake([]);
      if (done.status === 0) fail("make ends with status 0");
      requireLine(done.output, /^xen\.efi: Cannot .* this Xen was built without multiboot support in its PE/);
      requireFile(mbEfi, false);
      fs.writeFileSync(configuration, enabled);
    },
  };
  const strictly: Step = {
    name: "no executable section is writable or has base relocations, and without debug sections NX_COMPAT is kept",
    async run() {
      const stripped = path.join(work, "stripped.efi");
      const done = await run("strip", ["--strip-debug", "--keep-file-symbols", "-p", "-o", stripped, efi]);
      if (done.status !== 0) fail(`strip ends with status ${done.status}: ${done.output.trim()}`);
      const image = path.join(work, "stripped.mb.efi");
      await script("mb-efi.ts", stripped, image);
      await judged(image, stripped);
      for (const file of [mbEfi, image]) {
        const { relocations, nxCompat, unaligned } = await traits(file);
        const bad = Object.keys(relocations).filter((section) => /text$/.test(section));
        if (bad.length > 0) fail(`${path.basename(file)} has base relocations in ${bad.join(" ")}`);
        const others = unaligned.filter((section) => !section.startsWith(".debug_"));
        if (others.length > 0) {
          fail(`${path.basename(file)} has sections that are not page-aligned: ${others.join(" ")}`);
        }
        // Debug sections begin anywhere; what has none claims it.
        const claims = unaligned.length === 0;
        if (nxCompat !== claims || (file === image && !claims)) {
          fail(`${path.basename(file)} ${nxCompat ? "claims" : "does not claim"} NX_COMPAT`);
        }
      }
    },
  };

  return [
    {
      name: "install-xen changes nothing when run twice, and --remove gives the same tree back",
      async run() {
        fs.rmSync(work, { recursive: true, force: true });
        fs.rmSync(log, { force: true });
        fs.mkdirSync(tree, { recursive: true });
        const unpacked = await run("tar", ["-xf", source, "-C", tree, "--strip-components=1"]);
        if (unpacked.status !== 0) fail(`tar ends with status ${unpacked.status}: ${unpacked.output.trim()}`);
        const [read, write] = [
          (file: string) => fs.readFileSync(path.join(tree, file), "utf8"),
          (file: string, contents: string) => fs.writeFileSync(path.join(tree, file), contents),
        ];
        if (one.split === true) split(read, write);
        untouched = listing(tree);
        await install();
        const installed = listing(tree);
        requireSame(untouched, installed, [
          ...(one.split === true ? KEEPING_FILES : []),
          ...(one.split === true && combinesBinaries(read) ? [COMBINE_TOOL] : []),
          "xen/Makefile",
          "xen/arch/x86/Makefile",
          "xen/arch/x86/efi/mb-efi-install.mk",
          "xen/arch/x86/efi/mb-efi.mk",
          "xen/arch/x86/efi/xen-mb-efi.mjs",
        ]);
        requireLine(await install(), /nothing was changed$/);
        requireSame(installed, listing(tree), []);
        await install("--remove");
        requireSame(untouched, listing(tree), []);
        await install();
        requireSame(installed, listing(tree), []);
      },
    },
    ...(one.split === true ? [withoutMultiboot] : []),
    {
      name: "make builds xen.mb.efi, and says so in one short line",
      async run() {
        requireCount(await make([]), /^ {2}MBEFI {3}xen\.mb\.efi$/, 1);
        requireFile(mbEfi, true);
        requireFile(path.join(output, "xen.gz"), true);
      },
    },
    { name: "verify and check-loaders take it", run: () => judged(mbEfi, efi) },
    ...(one.split === true ? [strictly] : []),
    {
      name: "mb-efi.ts makes the same bytes",
      async run() {
        const again = path.join(work, "again.efi");
        const done = await script("mb-efi.ts", efi, again);
        if (done.status !== 0 || !fs.readFileSync(again).equals(fs.readFileSync(mbEfi))) fail("they differ");
      },
    },
    {
      name: "make again does nothing",
      async run() {
        const before = [efi, mbEfi].map(modified);
        requireCount(await make([]), /MBEFI|xen-mb-efi|objcopy|gzip/, 0);
        if ([efi, mbEfi].some((file, i) => modified(file) !== before[i])) fail("a file has another date");
      },
    },
    {
      name: "a newer tool makes xen.mb.efi anew, and nothing else of xen.efi; V=1 shows the command",
      async run() {
        const before = modified(efi);
        touch(path.join(tree, "xen/arch/x86/efi/xen-mb-efi.mjs"));
        const text = await make(["V=1"]);
        requireCount(text, /^ *node \S+\/arch\/x86\/efi\/xen-mb-efi\.mjs xen\.efi xen\.mb\.efi$/, 1);
        requireCount(text, /MBEFI/, 0);
        if (modified(efi) !== before) fail("xen.efi was linked again");
      },
    },
    {
      name: "without node the build goes on, with one line, and leaves no old xen.mb.efi",
      async run() {
        touch(efi);
        const text = await make([], { PATH: pathWithoutNode(withNoNode) });
        requireCount(text, /node/, 1);
        requireLine(text, new RegExp(`^${NO_NODE_LINE.replaceAll(/[().]/g, "\\$&")}$`));
        requireFile(mbEfi, false);
        requireFile(path.join(output, "xen.gz"), true);
        requireCount(await make([]), /^ {2}MBEFI {3}xen\.mb\.efi$/, 1);
      },
    },
    {
      name: "make install and uninstall treat it as xen.efi",
      async run() {
        const boot = path.join(destination, "boot/efi/efi", VENDOR);
        fs.mkdirSync(boot, { recursive: true });
        const args = [
          `DESTDIR=${destination}`,
          "EFI_MOUNTPOINT=/boot/efi",
          `EFI_VENDOR=${VENDOR}`,
          "INSTALL_EFI_STRIP=1",
        ];
        await make([...args, "install"]);
        const names = (ending: RegExp): string =>
          [...listing(destination).keys()]
            .filter((file) => ending.test(file))
            .map((file) => file.replace(ending, ""))
            .join(" ");
        // The names end in ".efi" too, and their debug information is in another place.
        const [found, needed] = [names(/\.mb\.efi$/), names(/(?<!\.mb)\.efi$/)];
        if (found !== needed || found.split(" ").length !== 5) fail(`installed are ${found}, needed ${needed}`);
        const stripped = fs
          .readdirSync(boot)
          .map((file) => path.join(boot, file))
          .sort();
        const [original = "", image = ""] = [
          stripped.find((file) => !file.endsWith(".mb.efi")),
          stripped.find((file) => file.endsWith(".mb.efi")),
        ];
        await judged(image, original);
        await make([...args, "uninstall"]);
        if (names(/\.mb\.efi$/) !== "") fail(`still there: ${names(/\.mb\.efi$/)}`);
      },
    },
    ...BOOT_PATHS.map((name): Step => ({
      name: `boots through ${name}, up to dom0`,
      run: () => boots(name, mbEfi, folder, `${work}-${name}.log`, one.release),
    })),
    {
      name: "make clean removes it, and --remove after a build all that came of it",
      async run() {
        await make(["clean"]);
        const rests = listing(output);
        const rest = [...rests.keys()].filter((file) => /mb\.efi/.test(file));
        if (rest.length > 0) fail(`still there: ${rest.join(" ")}`);
        await install("--remove");
        const left = listing(tree);
        for (const [file, digest] of untouched) if (left.get(file) !== digest) fail(`${file} is not as it was`);
        const ours = [...left.keys()].filter((file) => /mb-efi|mb\.efi/.test(file));
        if (ours.length > 0) fail(`still there: ${ours.join(" ")}`);
        fs.rmSync(work, { recursive: true, force: true });
      },
    },
  ];
}

/** Of check-loaders --json. */
interface Traits {
  readonly relocations: Readonly<Record<string, unknown>>;
  readonly nxCompat: boolean;
  readonly unaligned: readonly string[];
}

async function boots(name: string, image: string, folder: string, log: string, release: string): Promise<void> {
  const bootPath = pathNamed(name);
  if (bootPath === undefined) return fail(`there is no boot path ${name}`);
  const missing = [...bootPath.tools, "busybox" as const].flatMap((tool) => missingTool(tool) ?? []);
  if (missing.length > 0) throw new Skip(missing.join(", "));
  const initrd = path.join(folder, "dom0-initrd.cpio");
  fs.writeFileSync(initrd, dom0Initrd());
  const dom0 = { kernel: await kernel(), initrd };
  const { outcome } = await inWorkFolder(folder, (work) =>
    boot(bootPath, { image, dom0, work }, "dom0", LIMIT_SECONDS.dom0, log),
  );
  if (!meets(outcome, expected({ build: `${release}.`, variant: "move", goal: "dom0" }, bootPath))) {
    fail(`came to ${outcome.stage} ${outcome.detail} ${outcome.trouble ?? ""}; whole log: ${log}`);
  }
}

async function kernel(): Promise<string> {
  try {
    return await foreign("kernel");
  } catch (error) {
    throw error instanceof AptError ? new Skip(error.message) : error;
  }
}
