// SPDX-License-Identifier: GPL-2.0-only
//
// Adds xen.mb.efi to a Xen source tree's own build, or takes it out again: `make -C xen` then makes it beside xen.efi.
//
// Adds three files to xen/arch/x86/efi: the tool as "make dist" makes it, and two makefiles from scripts/tree/; to
//   xen/Makefile and xen/arch/x86/Makefile the lines that include them; and, where the linker script discards the
//   Multiboot code from xen.efi, the option EFI_MULTIBOOT that keeps it. Prints what it changed.
// Leaves everything else as it is, and after --remove the tree byte for byte as it was. Twice is the same as once.
// Refuses: a tree that is not Xen's, or whose files read differently from what is expected; then nothing is changed.

import * as fs from "node:fs";
import * as path from "node:path";
import { TextDecoder } from "node:util";
import { fileURLToPath } from "node:url";
import { readInput, runIfMain, writeOutput } from "./cli/cli.ts";
import type { Command, Io } from "./cli/cli.ts";
import { FileError, UsageError } from "./cli/errors.ts";
import {
  PRODUCTS,
  TEMPLATES,
  TOOL,
  TreeError,
  allEdits,
  edited,
  editsFor,
  isOurs,
  unedited,
  xenVersion,
} from "./tree/xen-tree.ts";
import type { Edit } from "./tree/xen-tree.ts";

const SCRIPTS = path.dirname(fileURLToPath(import.meta.url));
const DEFAULT_TOOL = path.join(SCRIPTS, "..", "build", "xen-mb-efi.mjs");

const USAGE = `Usage: install-xen.ts XEN [--remove] [--tool FILE]

Makes the build of the Xen source tree XEN produce xen.mb.efi beside xen.efi, and prints what it changed in the tree.

  --remove     take it out again: the tree is as it was, byte for byte
  --tool FILE  the tool as a single file (default: build/xen-mb-efi.mjs of this checkout, which "make dist" makes)
  --help       print this text

Exit status: 0 done, or done before; 1 XEN is not a tree that this fits, and nothing was changed; 2 wrong usage.
`;

/** One file of the tree, with its new contents, or none when it goes. */
interface Change {
  readonly file: string;
  readonly contents: string | undefined;
  /** What is printed. */
  readonly says: string;
}

/** The tree as it is; files are read once. */
class Tree {
  readonly root: string;
  readonly #io: Io;
  readonly #contents = new Map<string, string>();

  constructor(root: string, io: Io) {
    this.root = root;
    this.#io = io;
  }

  has(file: string): boolean {
    return fs.existsSync(path.join(this.root, file));
  }

  /** @throws FileError */
  read(file: string): string {
    let contents = this.#contents.get(file);
    if (contents === undefined) {
      contents = readText(path.join(this.root, file), this.#io);
      this.#contents.set(file, contents);
    }
    return contents;
  }
}

/** A text whose bytes survive reading and writing. */
function readText(file: string, io: Io): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(readInput(file, io));
  } catch (error) {
    if (error instanceof TypeError) throw new FileError(file, "Cannot read: it is not UTF-8 text");
    throw error;
  }
}

function installation(tree: Tree, tool: string, io: Io): Change[] {
  const edits = editsFor((file) => tree.read(file));
  const changed = filesOf(edits).flatMap((file): Change[] => {
    const contents = edited(tree.read(file), file, edits);
    const says = edits
      .filter((edit) => edit.file === file)
      .map((edit) => edit.says)
      .join(", ");
    return contents === tree.read(file) ? [] : [{ file, contents, says: `changed ${file}: ${says}` }];
  });
  const files = [
    [TOOL, tool] as const,
    ...TEMPLATES.map(({ source, target }) => [target, readText(path.join(SCRIPTS, source), io)] as const),
  ];
  const added = files.flatMap(([file, contents]): Change[] => {
    if (!tree.has(file)) return [{ file, contents, says: `added ${file}` }];
    const old = tree.read(file);
    if (!isOurs(old)) {
      throw new TreeError(`${file}: Cannot add it: there is a file of this name that is not of xen-mb-efi`);
    }
    return old === contents ? [] : [{ file, contents, says: `updated ${file}` }];
  });
  return [...added, ...changed];
}

function removal(tree: Tree): Change[] {
  const restored = filesOf(allEdits())
    .filter((file) => tree.has(file))
    .flatMap((file): Change[] => {
      const contents = unedited(tree.read(file), file);
      return contents === tree.read(file) ? [] : [{ file, contents, says: `restored ${file}` }];
    });
  const ours = [TOOL, ...TEMPLATES.map(({ target }) => target)].filter((file) => tree.has(file));
  for (const file of ours) {
    if (!isOurs(tree.read(file))) throw new TreeError(`${file}: Cannot remove it: it is not of xen-mb-efi`);
  }
  const gone = [...ours, ...PRODUCTS.filter((file) => tree.has(file))];
  return [...restored, ...gone.map((file) => ({ file, contents: undefined, says: `removed ${file}` }))];
}

function filesOf(edits: readonly Edit[]): string[] {
  return [...new Set(edits.map(({ file }) => file))];
}

function apply(tree: Tree, changes: readonly Change[], io: Io): void {
  for (const { file, contents, says } of changes) {
    const target = path.join(tree.root, file);
    if (contents === undefined) fs.rmSync(target);
    else writeOutput(target, new TextEncoder().encode(contents), io);
    io.stdout(`${says}\n`);
  }
}

export const command: Command = {
  usage: USAGE,
  options: { remove: { type: "boolean" }, tool: { type: "string" } },
  positionals: ["XEN"],
  run([root = ""], values, io) {
    if (root === "") throw new UsageError("XEN is empty, needed the top of a Xen source tree");
    const tree = new Tree(root, io);
    if (!tree.has("xen/Makefile") || !tree.has("xen/arch/x86/Makefile")) {
      throw new FileError(
        root,
        "Cannot change: not a Xen source tree, which has xen/Makefile and xen/arch/x86/Makefile",
      );
    }
    try {
      if (values.remove === true) {
        const changes = removal(tree);
        apply(tree, changes, io);
        io.stdout(
          `${root}: Xen ${xenVersion((file) => tree.read(file))} ${
            changes.length === 0 ? "has no xen.mb.efi to remove" : "is as it was"
          }\n`,
        );
        return 0;
      }
      const file = typeof values.tool === "string" ? values.tool : DEFAULT_TOOL;
      const tool = readText(file, io);
      if (!isOurs(tool)) throw new FileError(file, 'Cannot install: it is not what "make dist" makes');
      const changes = installation(tree, tool, io);
      apply(tree, changes, io);
      const version = `Xen ${xenVersion((name) => tree.read(name))}`;
      io.stdout(
        changes.length === 0
          ? `${root}: ${version} has it all, nothing was changed\n`
          : `${root}: make -C xen builds xen.mb.efi now (${version})\n`,
      );
      return 0;
    } catch (error) {
      if (error instanceof TreeError) throw new FileError(root, error.message);
      throw error;
    }
  },
};

runIfMain(import.meta.url, command);
