// SPDX-License-Identifier: GPL-2.0-only
//
// Adds xen.mb.efi to a Xen source tree's own build, or takes it out again: `make -C xen` then makes it beside xen.efi.
//
// Adds three files to xen/arch/x86/efi: the tool as "make dist" makes it, and two makefiles from scripts/tree/. Patches
//   xen/Makefile and xen/arch/x86/Makefile to include them, and, where the linker script has sections for the Multiboot
//   code, adds an option EFI_MULTIBOOT that keeps it in xen.efi: scripts/tree/*.patch, applied by git. Prints what it
//   changed.
// Leaves everything else as it is, and after --remove the tree byte for byte as it was. Twice is the same as once.
// Refuses: a tree that is not Xen's, or that a patch does not apply to, and names the place; then nothing is changed.

import { fileURLToPath } from "node:url";
import { readInput, runIfMain, type Command, type Io } from "./cli/cli.ts";
import { FileError, ImageError, UsageError } from "./cli/errors.ts";
import { XenTree, isOurs } from "./tree/xen-tree.ts";

const DEFAULT_TOOL = fileURLToPath(new URL("../build/xen-mb-efi.mjs", import.meta.url));

const USAGE = `Usage: install-xen.ts XEN [--remove] [--tool FILE]

Makes the build of the Xen source tree XEN produce xen.mb.efi beside xen.efi, and prints what it changed in the tree.

  --remove     take it out again: the tree is as it was, byte for byte
  --tool FILE  the tool as a single file (default: build/xen-mb-efi.mjs of this checkout, which "make dist" makes)
  --help       print this text

Exit status: 0 done, or done before; 1 XEN is not a tree that this fits, and nothing was changed; 2 wrong usage.
`;

export const command: Command = {
  usage: USAGE,
  options: { remove: { type: "boolean" }, tool: { type: "string" } },
  positionals: ["XEN"],
  run([root = ""], values, io) {
    if (root === "") throw new UsageError("XEN is empty, needed the top of a Xen source tree");
    const tree = new XenTree(root, io);
    const removing = values.remove === true;
    try {
      if (removing) tree.remove();
      else tree.add(readTool(typeof values.tool === "string" ? values.tool : DEFAULT_TOOL, io));
    } catch (error) {
      if (error instanceof ImageError && !(error instanceof FileError)) throw new FileError(root, error.message);
      throw error;
    }
    const { changes, version } = tree;
    tree.commit();
    for (const { says } of changes) io.stdout(`${says}\n`);
    const [changed, unchanged] = removing
      ? [`Xen ${version} is as it was`, `Xen ${version} has no xen.mb.efi to remove`]
      : [`make -C xen builds xen.mb.efi now (Xen ${version})`, `Xen ${version} has it all, nothing was changed`];
    io.stdout(`${root}: ${changes.length > 0 ? changed : unchanged}\n`);
    return 0;
  },
};

function readTool(file: string, io: Io): Uint8Array {
  const tool = readInput(file, io);
  if (!isOurs(new TextDecoder("latin1").decode(tool))) {
    throw new FileError(file, 'Cannot install: it is not what "make dist" makes');
  }
  return tool;
}

runIfMain(import.meta.url, command);
