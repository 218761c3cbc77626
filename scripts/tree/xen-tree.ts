// SPDX-License-Identifier: GPL-2.0-only
// What xen.mb.efi needs in a Xen source tree: files that are added, and patches of Xen's own, all of them in this folder
// (but the tool, which "make dist" makes). Changes are collected first; they are made all or none.

import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { readInput, writeOutput, type Io } from "../cli/cli.ts";
import { FileError, ImageError } from "../cli/errors.ts";
import { filesOf, patched } from "./patch.ts";

const HERE = fileURLToPath(new URL(".", import.meta.url));

/** Where our files go: beside mkreloc.c, which also has to do with xen.efi only. */
const ADDED_TO = "xen/arch/x86/efi";
const MAKEFILES = ["mb-efi.mk", "mb-efi-install.mk"];
const TOOL = `${ADDED_TO}/xen-mb-efi.mjs`;
const OURS = [TOOL, ...MAKEFILES.map((name) => `${ADDED_TO}/${name}`)];

/** What a build in the tree leaves, which nothing else cleans once our makefiles are gone. */
const PRODUCTS = ["xen/xen.mb.efi", "xen/xen.mb.efi.stripped", "xen/.xen.mb.efi.cmd"];

/** Both our makefiles and the tool say so in their first lines. */
export function isOurs(contents: string): boolean {
  const [head = ""] = contents.split("\n\n", 1);
  return head.includes("SPDX-License-Identifier: GPL-2.0-only") && /xen-mb-efi|xen\.mb\.efi/.test(head);
}

/** One thing that is patched, in the order of their application. */
interface Part {
  /** Files of this folder; where releases differ there are several, and the first one that applies is taken. */
  readonly patches: readonly string[];
  /** Only for a tree where this file contains this text; left out, for every tree. */
  readonly where?: { readonly file: string; readonly text: string };
}

const MULTIBOOT_SECTION = ".init.multiboot";
const PARTS: readonly Part[] = [
  { patches: ["build.patch"] },
  { patches: ["efi-multiboot.patch"], where: { file: "xen/arch/x86/xen.lds.S", text: MULTIBOOT_SECTION } },
  {
    patches: ["efi-multiboot-combine.patch"],
    where: { file: "xen/tools/combine_two_binaries.py", text: MULTIBOOT_SECTION },
  },
];

/** What only we write; in a file without our patches it is somebody else's, or has been edited. */
const TRACES = /mb-efi|EFI_MULTIBOOT/;

/** One file of the tree with its new contents, or none when it goes. */
export interface Change {
  readonly file: string;
  readonly contents: Uint8Array | undefined;
  /** What is printed. */
  readonly says: string;
}

/** A Xen source tree, and what is to be changed in it. */
export class XenTree {
  readonly #root: string;
  readonly #io: Io;
  /** Files that are not to stay as they are, with what they will be; undefined for one that goes. */
  readonly #next = new Map<string, Uint8Array | undefined>();
  /** The patch that a file is changed by. */
  readonly #by = new Map<string, string>();

  /** @throws FileError when `root` is not the top of a Xen source tree */
  constructor(root: string, io: Io) {
    this.#root = root;
    this.#io = io;
    if (this.#read("xen/Makefile") === undefined || this.#read("xen/arch/x86/Makefile") === undefined) {
      throw new FileError(
        root,
        "Cannot change: not a Xen source tree, which has xen/Makefile and xen/arch/x86/Makefile",
      );
    }
  }

  /** "4.20". */
  get version(): string {
    const part = (name: string): string =>
      new RegExp(`^export ${name}\\s*=\\s*(\\d+)$`, "m").exec(this.#text("xen/Makefile"))?.[1] ?? "?";
    return `${part("XEN_VERSION")}.${part("XEN_SUBVERSION")}`;
  }

  /**
   * Adds xen.mb.efi to the build, in place of what an earlier run may have added.
   * @param tool the bundled tool's bytes
   * @throws ImageError when this is not a tree that the patches fit
   */
  add(tool: Uint8Array): void {
    this.#takeBack();
    for (const part of PARTS) this.#apply(part);
    this.#next.set(TOOL, tool);
    for (const name of MAKEFILES) this.#next.set(`${ADDED_TO}/${name}`, readInput(path.join(HERE, name), this.#io));
  }

  /**
   * Takes everything out again, with what was built.
   * @throws ImageError when somebody has edited what we added
   */
  remove(): void {
    this.#takeBack();
    for (const file of PRODUCTS) this.#next.set(file, undefined);
  }

  /** What is different from the tree as it is. */
  get changes(): Change[] {
    return [...this.#next].flatMap(([file, contents]): Change[] => {
      const old = this.#onDisk(file);
      if (old === undefined && contents === undefined) return [];
      if (old === undefined) return [{ file, contents, says: `added ${file}` }];
      if (contents === undefined) return [{ file, contents, says: `removed ${file}` }];
      if (Buffer.compare(old, contents) === 0) return [];
      const patch = this.#by.get(file);
      if (patch !== undefined) return [{ file, contents, says: `changed ${file}: scripts/tree/${patch}` }];
      return [{ file, contents, says: OURS.includes(file) ? `updated ${file}` : `restored ${file}` }];
    });
  }

  /**
   * Makes the changes.
   * @throws FileError when one cannot be made; then those before it are taken back
   */
  commit(): void {
    const done: (readonly [string, Uint8Array | undefined])[] = [];
    try {
      for (const { file, contents } of this.changes) {
        const old = this.#onDisk(file);
        this.#write(file, contents);
        done.unshift([file, old]);
      }
    } catch (error) {
      for (const [file, old] of done) this.#write(file, old);
      throw error;
    }
  }

  #takeBack(): void {
    for (const { patches } of [...PARTS].reverse()) {
      for (const patch of patches) {
        const before = patched(path.join(HERE, patch), (file) => this.#read(file), ["-R"]);
        if (typeof before === "string") continue;
        for (const [file, contents] of before) this.#next.set(file, contents);
        break;
      }
    }
    const named = PARTS.flatMap(({ patches }) => patches).flatMap((patch) => filesOf(path.join(HERE, patch)));
    for (const file of new Set(named)) {
      const line = this.#text(file)
        .split("\n")
        .findIndex((each) => TRACES.test(each));
      if (line >= 0) {
        throw new ImageError(
          `${file}: Cannot change it: line ${line + 1} is of xen-mb-efi, but not as install-xen wrote it`,
        );
      }
    }
    for (const file of OURS) {
      if (this.#read(file) === undefined) continue;
      if (!isOurs(this.#text(file))) {
        throw new ImageError(`${file}: Cannot replace or remove it: it is not of xen-mb-efi`);
      }
      this.#next.set(file, undefined);
    }
  }

  #apply({ patches, where }: Part): void {
    if (where !== undefined && !this.#text(where.file).includes(where.text)) return;
    const rejected: string[] = [];
    for (const patch of patches) {
      const after = patched(path.join(HERE, patch), (file) => this.#read(file));
      if (typeof after === "string") {
        rejected.push(`scripts/tree/${patch} does not apply: ${after}`);
        continue;
      }
      for (const [file, contents] of after) {
        this.#next.set(file, contents);
        this.#by.set(file, patch);
      }
      return;
    }
    throw new ImageError(`Cannot add xen.mb.efi: ${rejected.join("; ")}`);
  }

  /** As it will be. */
  #read(file: string): Uint8Array | undefined {
    return this.#next.has(file) ? this.#next.get(file) : this.#onDisk(file);
  }

  #text(file: string): string {
    return new TextDecoder("latin1").decode(this.#read(file));
  }

  #onDisk(file: string): Uint8Array | undefined {
    const full = path.join(this.#root, file);
    return fs.existsSync(full) ? readInput(full, this.#io) : undefined;
  }

  #write(file: string, contents: Uint8Array | undefined): void {
    const full = path.join(this.#root, file);
    if (contents !== undefined) return writeOutput(full, contents, this.#io);
    try {
      fs.rmSync(full);
    } catch (error) {
      throw new FileError(full, `Cannot remove: ${(error as Error).message}`);
    }
  }
}
