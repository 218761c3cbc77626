// SPDX-License-Identifier: GPL-2.0-only
// What xen-tree-test.ts does with each tree, in order. A step throws an ImageError that says what is not as it must be.

import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { patched } from "../../tree/patch.ts";
import { AptError } from "../apt.ts";
import { dom0Initrd } from "../boot/dom0.ts";
import { LIMIT_SECONDS, expected, meets, pathNamed } from "../boot/plan.ts";
import { boot } from "../boot/qemu.ts";
import { inWorkFolder } from "../boot/run.ts";
import { foreign, missingTool } from "../boot/tools.ts";
import { SCRIPTS } from "../places.ts";
import * as run from "./run.ts";
import { fail } from "./run.ts";

export interface Case {
  readonly name: string;
  readonly says: string;
  readonly release: "4.17" | "4.20";
  readonly suites: readonly string[];
  readonly compiler: "gcc" | "clang";
  /** In a directory of its own (O=), not in the source tree. */
  readonly outOfTree: boolean;
  /** First changed, by split-*.patch, to one that satisfies strict W^X, and drops the Multiboot code from xen.efi. */
  readonly split: boolean;
}

function caseOf(
  release: Case["release"],
  kind: "gcc" | "clang" | "split",
  where: "in the tree" | "O=",
  says: string,
): Case {
  const suites = release === "4.17" ? ["bookworm"] : ["trixie", "sid"];
  const compiler = kind === "clang" ? "clang" : "gcc";
  return {
    name: `${release}-${kind}`,
    says,
    release,
    suites,
    compiler,
    outOfTree: where === "O=",
    split: kind === "split",
  };
}

export const CASES: readonly Case[] = [
  caseOf("4.17", "gcc", "in the tree", "bookworm's Xen, in the source tree"),
  caseOf("4.17", "clang", "O=", "the same with clang, out of tree (O=)"),
  caseOf("4.17", "split", "O=", "the same as upstream will have it: .init split, no Multiboot code in xen.efi"),
  caseOf("4.20", "gcc", "O=", "trixie's Xen, out of tree (O=)"),
  caseOf("4.20", "clang", "in the tree", "the same with clang, in the source tree"),
  caseOf("4.20", "split", "O=", "the same as upstream will have it"),
];

/** Why a step cannot be done here; the next ones can. */
export class Skip extends Error {}

/** What a step checks, how, and whether only a split tree can. */
type Step = readonly [name: string, run: (tree: TestedTree) => Promise<void>, onlySplit?: "split"];

export interface Places {
  /** Absolute, all of them. */
  readonly folder: string;
  readonly source: string;
  readonly tool: string;
}

const OPTION = "CONFIG_EFI_MULTIBOOT";
const VENDOR = "test";
const MBEFI = /^ {2}MBEFI {3}xen\.mb\.efi$/;
/** What install-xen adds or changes in every tree, in a split one besides, and from 4.20 on in a split one. */
const INSTALLED = [
  "xen/Makefile",
  "xen/arch/x86/Makefile",
  "xen/arch/x86/efi/mb-efi-install.mk",
  "xen/arch/x86/efi/mb-efi.mk",
  "xen/arch/x86/efi/xen-mb-efi.mjs",
];
const INSTALLED_IN_SPLIT = ["xen/arch/x86/Kconfig", "xen/arch/x86/boot/head.S", "xen/arch/x86/xen.lds.S"];
const INSTALLED_IN_SPLIT_4_20 = [...INSTALLED_IN_SPLIT, "xen/tools/combine_two_binaries.py"];

/** In this order: later ones build on earlier ones. */
const STEPS: readonly Step[] = [
  ["install-xen changes nothing when run twice, and --remove gives the same tree back", (tree) => tree.installs()],
  [
    `without ${OPTION} one line says that xen.efi was built without Multiboot, and the build goes on`,
    (tree) => tree.buildsWithoutMultiboot(),
    "split",
  ],
  ["make builds xen.mb.efi, and says so in one short line", (tree) => tree.builds()],
  ["verify and check-loaders take it", (tree) => tree.judged(tree.mbEfi, tree.efi)],
  [
    "no executable section is writable or has base relocations, and without debug sections NX_COMPAT is kept",
    (tree) => tree.isStrict(),
    "split",
  ],
  ["mb-efi.ts makes the same bytes", (tree) => tree.isWhatMbEfiMakes()],
  ["make again does nothing", (tree) => tree.buildsNothingAgain()],
  [
    "a newer tool or another node makes xen.mb.efi anew, and nothing else of xen.efi; V=1 shows the command",
    (tree) => tree.buildsOnlyWhatChanged(),
  ],
  ["without node the build goes on, with one line, and leaves no old xen.mb.efi", (tree) => tree.buildsWithoutNode()],
  ["without xen.efi there is no old xen.mb.efi either", (tree) => tree.buildsWithoutPe()],
  ["make install and uninstall treat it as xen.efi", (tree) => tree.isInstalled()],
  ...["efi", "grub-bios-mb2"].map((name): Step => [`boots through ${name}, up to dom0`, (tree) => tree.boots(name)]),
  ["make clean removes it, and --remove after a build all that came of it", (tree) => tree.cleans()],
];

/** The steps of a case. */
export function steps(one: Case, places: Places): { name: string; run: () => Promise<void> }[] {
  const tree = new TestedTree(one, places);
  return STEPS.filter(([, , only]) => only === undefined || one.split).map(([name, run]) => ({
    name,
    run: () => run(tree),
  }));
}

class TestedTree {
  readonly #one: Case;
  readonly #places: Places;
  readonly #work: string;
  readonly #tree: string;
  readonly #output: string;
  readonly #log: string;
  readonly efi: string;
  readonly mbEfi: string;
  #untouched = new Map<string, string>();

  constructor(one: Case, places: Places) {
    this.#one = one;
    this.#places = places;
    this.#work = path.join(places.folder, one.name);
    this.#tree = path.join(this.#work, "src");
    this.#output = one.outOfTree ? path.join(this.#work, "out") : path.join(this.#tree, "xen");
    this.#log = `${this.#work}.log`;
    this.efi = path.join(this.#output, "xen.efi");
    this.mbEfi = path.join(this.#output, "xen.mb.efi");
  }

  // What the steps do.

  /** @throws ImageError unless it ends with status 0 */
  async #run(command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<string> {
    const { status, output } = await run.runLogged(command, args, env, this.#log);
    if (status !== 0) {
      const last = output.trim().split("\n").at(-1) ?? "";
      fail(`${command} ${args.join(" ")} ends with status ${status}: ${last}; whole log: ${this.#log}`);
    }
    return output;
  }

  #script(name: string, ...args: readonly string[]): Promise<string> {
    return this.#run(process.execPath, [...process.execArgv, path.join(SCRIPTS, name), ...args]);
  }

  #makeArguments(args: readonly string[]): string[] {
    const where = this.#one.outOfTree ? [`O=${this.#output}`] : [];
    const compiler = this.#one.compiler === "clang" ? ["clang=y"] : [];
    return ["-C", path.join(this.#tree, "xen"), "-j2", "XEN_TARGET_ARCH=x86_64", ...compiler, ...where, ...args];
  }

  #make(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<string> {
    return this.#run("make", this.#makeArguments(args), env);
  }

  #install(...args: readonly string[]): Promise<string> {
    return this.#script("install-xen.ts", this.#tree, "--tool", this.#places.tool, ...args);
  }

  async judged(image: string, original: string): Promise<void> {
    await this.#script("verify.ts", original, image);
    await this.#script("check-loaders.ts", image);
  }

  // The steps.

  async installs(): Promise<void> {
    const { release, split } = this.#one;
    fs.rmSync(this.#work, { recursive: true, force: true });
    fs.rmSync(this.#log, { force: true });
    fs.mkdirSync(this.#tree, { recursive: true });
    await this.#run("tar", ["-xf", this.#places.source, "-C", this.#tree, "--strip-components=1"]);
    if (split) this.#split();
    this.#untouched = run.listing(this.#tree);
    await this.#install();
    const installed = run.listing(this.#tree);
    const keeping = release === "4.17" ? INSTALLED_IN_SPLIT : INSTALLED_IN_SPLIT_4_20;
    run.requireSame(this.#untouched, installed, [...INSTALLED, ...(split ? keeping : [])]);
    run.requireCount(await this.#install(), /nothing was changed$/, 1);
    run.requireSame(installed, run.listing(this.#tree), []);
    await this.#install("--remove");
    run.requireSame(this.#untouched, run.listing(this.#tree), []);
    await this.#install();
    run.requireSame(installed, run.listing(this.#tree), []);
  }

  #split(): void {
    const patch = `dev/xen-tree/split-${this.#one.release}.patch`;
    const split = patched(path.join(SCRIPTS, patch), (file) => fs.readFileSync(path.join(this.#tree, file)));
    if (typeof split === "string") return fail(`${patch} does not apply: ${split}`);
    for (const [file, contents] of split) fs.writeFileSync(path.join(this.#tree, file), contents);
  }

  async buildsWithoutMultiboot(): Promise<void> {
    const configuration = path.join(this.#output, ".config");
    await this.#make(["defconfig"]);
    const enabled = fs.readFileSync(configuration, "utf8");
    run.requireCount(enabled, new RegExp(`^${OPTION}=y$`), 1);
    fs.writeFileSync(configuration, enabled.replace(`${OPTION}=y`, `# ${OPTION} is not set`));
    const said = await this.#make([]);
    const reason = "this Xen was built without multiboot support in its PE";
    run.requireCount(said, new RegExp(`^xen\\.mb\\.efi generation disabled: xen\\.efi: Cannot .*: ${reason}`), 1);
    run.requireCount(said, /generation disabled|Cannot/, 1);
    run.requireFile(this.mbEfi, false);
    run.requireFile(path.join(this.#output, "xen.gz"), true);
    fs.writeFileSync(configuration, enabled);
  }

  async builds(): Promise<void> {
    run.requireCount(await this.#make([]), MBEFI, 1);
    run.requireFile(this.mbEfi, true);
    run.requireFile(path.join(this.#output, "xen.gz"), true);
  }

  async isStrict(): Promise<void> {
    const stripped = path.join(this.#work, "stripped.efi");
    await this.#run("strip", ["--strip-debug", "--keep-file-symbols", "-p", "-o", stripped, this.efi]);
    const image = path.join(this.#work, "stripped.mb.efi");
    await this.#script("mb-efi.ts", stripped, image);
    await this.judged(image, stripped);
    for (const file of [this.mbEfi, image]) {
      const { relocations, nxCompat, unaligned } = await this.#traits(file);
      const name = path.basename(file);
      const bad = Object.keys(relocations).filter((section) => /text$/.test(section));
      if (bad.length > 0) fail(`${name} has base relocations in ${bad.join(" ")}`);
      const others = unaligned.filter((section) => !section.startsWith(".debug_"));
      if (others.length > 0) fail(`${name} has sections that are not page-aligned: ${others.join(" ")}`);
      // Debug sections begin anywhere; what has none claims it.
      const claims = unaligned.length === 0;
      if (nxCompat !== claims || (file === image && !claims)) {
        fail(`${name} ${nxCompat ? "claims" : "does not claim"} NX_COMPAT`);
      }
    }
  }

  async #traits(image: string): Promise<Traits> {
    const report = JSON.parse(await this.#script("check-loaders.ts", image, "--json")) as { traits: Traits };
    return report.traits;
  }

  async isWhatMbEfiMakes(): Promise<void> {
    const again = path.join(this.#work, "again.efi");
    await this.#script("mb-efi.ts", this.efi, again);
    if (!fs.readFileSync(again).equals(fs.readFileSync(this.mbEfi))) fail("they differ");
  }

  async buildsNothingAgain(): Promise<void> {
    const before = [this.efi, this.mbEfi].map(run.modified);
    run.requireCount(await this.#make([]), /MBEFI|xen-mb-efi|objcopy|gzip/, 0);
    if ([this.efi, this.mbEfi].some((file, i) => run.modified(file) !== before[i])) fail("a file has another date");
  }

  async buildsOnlyWhatChanged(): Promise<void> {
    const before = run.modified(this.efi);
    run.touch(path.join(this.#tree, "xen/arch/x86/efi/xen-mb-efi.mjs"));
    const text = await this.#make(["V=1"]);
    run.requireCount(text, /^ *node \S+\/arch\/x86\/efi\/xen-mb-efi\.mjs xen\.efi xen\.mb\.efi$/, 1);
    run.requireCount(text, /MBEFI/, 0);
    run.requireCount(await this.#make([`NODE=${process.execPath}`]), MBEFI, 1);
    run.requireCount(await this.#make([]), MBEFI, 1);
    if (run.modified(this.efi) !== before) fail("xen.efi was linked again");
  }

  async buildsWithoutNode(): Promise<void> {
    run.touch(this.efi);
    const PATH = run.pathWithoutNode(path.join(this.#places.folder, "no-node"));
    const text = await this.#make([], { PATH });
    run.requireCount(text, /node/, 1);
    run.requireCount(text, /^xen\.mb\.efi generation disabled: no node >= 20 \(node\)$/, 1);
    run.requireFile(this.mbEfi, false);
    run.requireFile(path.join(this.#output, "xen.gz"), true);
    run.requireCount(await this.#make([]), MBEFI, 1);
  }

  async buildsWithoutPe(): Promise<void> {
    run.requireCount(await this.#make(["XEN_BUILD_PE=n"]), /MBEFI/, 0);
    run.requireFile(this.mbEfi, false);
    run.requireCount(await this.#make([]), MBEFI, 1);
  }

  async isInstalled(): Promise<void> {
    const destination = path.join(this.#work, "destination");
    const partition = path.join(destination, "boot/efi/efi", VENDOR);
    const args = [`DESTDIR=${destination}`, "EFI_MOUNTPOINT=/boot/efi", `EFI_VENDOR=${VENDOR}`, "INSTALL_EFI_STRIP=1"];
    // Without a folder on the EFI partition Xen's own rule fails for xen.efi, when all the rest is there.
    const { status } = await run.runLogged("make", this.#makeArguments([...args, "install"]), {}, this.#log);
    if (status === 0) fail("make install ends with status 0 without a folder to install to");
    run.requireFile(path.join(destination, "boot/xen.gz"), true);
    fs.mkdirSync(partition, { recursive: true });
    await this.#make([...args, "install"]);
    const names = (ending: RegExp): string =>
      [...run.listing(destination).keys()]
        .filter((file) => ending.test(file))
        .map((file) => file.replace(ending, ""))
        .sort()
        .join(" ");
    // The names end in ".efi" too, and their debug information is in another place.
    const [found, needed] = [names(/\.mb\.efi$/), names(/(?<!\.mb)\.efi$/)];
    if (found !== needed || found.split(" ").length !== 5) fail(`installed are ${found}, needed ${needed}`);
    const [original = "", image = ""] = fs.readdirSync(partition).sort((a, b) => a.length - b.length);
    await this.judged(path.join(partition, image), path.join(partition, original));
    await this.#make([...args, "uninstall"]);
    if (names(/\.mb\.efi$/) !== "") fail(`still there: ${names(/\.mb\.efi$/)}`);
  }

  async boots(name: string): Promise<void> {
    const bootPath = pathNamed(name);
    if (bootPath === undefined) return fail(`there is no boot path ${name}`);
    const missing = [...bootPath.tools, "busybox" as const].flatMap((tool) => missingTool(tool) ?? []);
    if (missing.length > 0) throw new Skip(missing.join(", "));
    const { folder } = this.#places;
    const initrd = path.join(folder, "dom0-initrd.cpio");
    fs.writeFileSync(initrd, dom0Initrd());
    const dom0 = { kernel: await kernel(), initrd };
    const log = `${this.#work}-${name}.log`;
    const { outcome } = await inWorkFolder(folder, (work) =>
      boot(bootPath, { image: this.mbEfi, dom0, work }, "dom0", LIMIT_SECONDS.dom0, log),
    );
    if (!meets(outcome, expected({ build: `${this.#one.release}.`, variant: "move", goal: "dom0" }, bootPath))) {
      fail(`came to ${outcome.stage} ${outcome.detail} ${outcome.trouble ?? ""}; whole log: ${log}`);
    }
  }

  async cleans(): Promise<void> {
    await this.#make(["clean"]);
    const rest = [...run.listing(this.#output).keys()].filter((file) => /mb\.efi/.test(file));
    if (rest.length > 0) fail(`still there: ${rest.join(" ")}`);
    await this.#install("--remove");
    const left = run.listing(this.#tree);
    for (const [file, is] of this.#untouched) if (left.get(file) !== is) fail(`${file} is not as it was`);
    const ours = [...left.keys()].filter((file) => /mb-efi|mb\.efi/.test(file));
    if (ours.length > 0) fail(`still there: ${ours.join(" ")}`);
    fs.rmSync(this.#work, { recursive: true, force: true });
  }
}

/** Of check-loaders --json. */
interface Traits {
  readonly relocations: Readonly<Record<string, unknown>>;
  readonly nxCompat: boolean;
  readonly unaligned: readonly string[];
}

async function kernel(): Promise<string> {
  try {
    return await foreign("kernel");
  } catch (error) {
    throw error instanceof AptError ? new Skip(error.message) : error;
  }
}
