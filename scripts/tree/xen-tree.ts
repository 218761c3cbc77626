// SPDX-License-Identifier: GPL-2.0-only
// What xen.mb.efi needs in a Xen source tree: the files that are added, and the edits to Xen's own, each of which can
// be taken back exactly. Knows Xen 4.17 and newer, where the build has $(objtree). No files are touched here.

import * as path from "node:path";
import { ImageError } from "../cli/errors.ts";

/** Where the tool goes. Beside mkreloc.c, which also has to do with xen.efi only. */
export const TOOL = "xen/arch/x86/efi/xen-mb-efi.mjs";

/** Where our makefiles go. */
export const TEMPLATES: readonly { readonly source: string; readonly target: string }[] = [
  { source: "tree/mb-efi.mk", target: "xen/arch/x86/efi/mb-efi.mk" },
  { source: "tree/mb-efi-install.mk", target: "xen/arch/x86/efi/mb-efi-install.mk" },
];

/** What a build in the tree leaves, which nothing else cleans once our makefiles are gone. */
export const PRODUCTS: readonly string[] = ["xen/xen.mb.efi", "xen/xen.mb.efi.stripped"];

/** Both our makefiles and the tool say so in their first lines. */
export function isOurs(contents: string): boolean {
  const [head = ""] = contents.split("\n\n", 1);
  return head.includes("SPDX-License-Identifier: GPL-2.0-only") && /xen-mb-efi|xen\.mb\.efi/.test(head);
}

/** One edit of a file: the only place where `find` matches becomes what `put` makes of it. */
export interface Edit {
  readonly file: string;
  /** With the flag m; matches exactly once in a file that is as expected. */
  readonly find: RegExp;
  /** What is looked for, in words, for the refusal. */
  readonly expects: string;
  readonly put: (found: string) => string;
  /** Matches what `put` made; its group is what `find` had found. */
  readonly undo: RegExp;
  /** What the group lacks, at its end. */
  readonly lost?: string;
  /** For the report. */
  readonly says: string;
}

const EDITS: readonly Edit[] = [
  {
    file: "xen/arch/x86/Makefile",
    // Before it, the file says how xen.efi is built; what is added to clean-files must not be overwritten.
    find: /^clean-files := \\\n/m,
    expects: "'clean-files := \\'",
    put: (found) => `include $(srctree)/$(src)/efi/mb-efi.mk\n\n${found}    $(mb-efi-clean-files) \\\n`,
    undo: /^include \$\(srctree\)\/\$\(src\)\/efi\/mb-efi\.mk\n\n(clean-files := \\\n) {4}\$\(mb-efi-clean-files\) \\\n/m,
    says: "includes efi/mb-efi.mk, and cleans its files",
  },
  {
    file: "xen/Makefile",
    // Where targets are that need a configuration, behind all others.
    find: /^endif #config-build\n/m,
    expects: "'endif #config-build'",
    put: (found) => `include $(srctree)/arch/x86/efi/mb-efi-install.mk\n\n${found}`,
    undo: /^include \$\(srctree\)\/arch\/x86\/efi\/mb-efi-install\.mk\n\n(endif #config-build\n)/m,
    says: "includes arch/x86/efi/mb-efi-install.mk",
  },
];

const LINKER_SCRIPT = "xen/arch/x86/xen.lds.S";
/** Puts the early 32-bit C code into a section, in releases that have it. */
export const COMBINE_TOOL = "xen/tools/combine_two_binaries.py";

/** Whether the tree has that tool; in Xen 4.17 the code is a part of head.S. */
export function combinesBinaries(read: Files): boolean {
  return read("xen/arch/x86/boot/Makefile").includes(path.basename(COMBINE_TOOL));
}

const OPTION = `config EFI_MULTIBOOT
	bool "Multiboot entry points in xen.efi"
	default y
	help
	  Keep the Multiboot headers and entry code in xen.efi, where they are
	  unreachable, for xen.mb.efi to be made of it.  Their code lives in
	  the data part of .init: it never runs when the image is loaded as PE,
	  and Multiboot loaders know no page permissions.  Thus no executable
	  section of xen.mb.efi is writable or has base relocations (those of
	  the Multiboot2 header go with it), as strict W^X demands.

	  If unsure, say Y.

`;

/** For trees whose linker script discards the Multiboot code from xen.efi: an option that keeps it. */
const KEEPING: readonly Edit[] = [
  {
    file: "xen/arch/x86/Kconfig",
    find: /^config GUEST\n/m,
    expects: "'config GUEST'",
    put: (found) => OPTION + found,
    undo: /^config EFI_MULTIBOOT\n(?:.*\n)*?\t {2}If unsure, say Y\.\n\n(config GUEST\n)/m,
    says: "option EFI_MULTIBOOT",
  },
  {
    file: LINKER_SCRIPT,
    find: /^ *\/DISCARD\/ : \{\n(?: *\*\(.*\)\n)*? *\*\(\.text\.header\)\n(?: *\*\(.*\)\n)* *\}\n/m,
    expects: "'/DISCARD/ : {' with '*(.text.header)'",
    put: (found) => `#ifndef CONFIG_EFI_MULTIBOOT\n${found}#endif\n`,
    undo: /^#ifndef CONFIG_EFI_MULTIBOOT\n((?:.*\n)*?)#endif\n/m,
    says: "discards Multiboot code unless CONFIG_EFI_MULTIBOOT",
  },
  {
    file: LINKER_SCRIPT,
    find: /^ *\*\(\.init\.multiboot\)\n/m,
    expects: "'*(.init.multiboot)'",
    put: (found) => `#ifndef EFI /* With the data, see CONFIG_EFI_MULTIBOOT. */\n${found}#endif\n`,
    undo: /^#ifndef EFI \/\* With the data, see CONFIG_EFI_MULTIBOOT\. \*\/\n(.*\n)#endif\n/m,
    says: "Multiboot code is no text of the PE",
  },
  {
    file: LINKER_SCRIPT,
    find: /^ *\*\(\.init\.data\.multiboot\)\n/m,
    expects: "'*(.init.data.multiboot)'",
    put: (found) => `#ifdef EFI /* CONFIG_EFI_MULTIBOOT */\n       *(.init.multiboot)\n#endif\n${found}`,
    undo: /^#ifdef EFI \/\* CONFIG_EFI_MULTIBOOT \*\/\n.*\n#endif\n(.*\n)/m,
    says: "but init data",
  },
  // Executable input would make the whole of .init.data executable.
  ...["xen/arch/x86/boot/head.S", COMBINE_TOOL].map((file): Edit => ({
    file,
    find: /\.section \.init\.multiboot, "ax"/,
    expects: "'.section .init.multiboot, \"ax\"'",
    put: (found) => found.replace("ax", "aw"),
    undo: /(\.section \.init\.multiboot, "a)w"/,
    lost: 'x"',
    says: "no executable section for Multiboot code",
  })),
];

/** What else must be there for our makefiles to do their work. */
const REQUIRED: readonly { readonly file: string; readonly text: RegExp; readonly what: string }[] = [
  { file: "xen/Makefile", text: /^export XEN_VERSION\s*=\s*\d+$/m, what: "'export XEN_VERSION = …', as in Xen" },
  { file: "xen/Makefile", text: /^_install: T=\$\(notdir \$\(TARGET\)\)$/m, what: "'_install: T=$(notdir $(TARGET))'" },
  {
    file: "xen/arch/x86/Makefile",
    text: /^\$\(TARGET\)\.efi: \$\(objtree\)\/prelink\.o /m,
    what: "'$(TARGET).efi: $(objtree)/prelink.o …', as from Xen 4.17 on",
  },
  { file: "xen/arch/x86/Makefile", text: /^efi-y := /m, what: "'efi-y := …'" },
  { file: "xen/arch/x86/Makefile", text: /^ifeq \(\$\(XEN_BUILD_PE\),y\)$/m, what: "'ifeq ($(XEN_BUILD_PE),y)'" },
  { file: "xen/scripts/Kbuild.include", text: /^success = /m, what: "'success = …'" },
];

/** The tree's files by name. */
export type Files = (file: string) => string;

/** A file of the tree is not as expected; `message` begins with the file's name. */
export class TreeError extends ImageError {
  override name = "TreeError";
}

/**
 * The edits that a tree needs.
 * @throws TreeError when it is not a Xen tree that they are known to fit
 */
export function editsFor(read: Files): readonly Edit[] {
  for (const { file, text, what } of REQUIRED) {
    if (!text.test(read(file))) throw new TreeError(`${file}: Cannot add xen.mb.efi: no line ${what}`);
  }
  const discards = /\/DISCARD\/[^}]*\.text\.header/.test(read(LINKER_SCRIPT));
  if (!discards) return EDITS;
  const keeping = combinesBinaries(read) ? KEEPING : KEEPING.filter(({ file }) => file !== COMBINE_TOOL);
  return [...EDITS, ...keeping];
}

/** All edits that there may be, to undo them. */
export function allEdits(): readonly Edit[] {
  return [...EDITS, ...KEEPING];
}

/** "4.20". */
export function xenVersion(read: Files): string {
  const part = (name: string): string =>
    new RegExp(`^export ${name}\\s*=\\s*(\\d+)$`, "m").exec(read("xen/Makefile"))?.[1] ?? "?";
  return `${part("XEN_VERSION")}.${part("XEN_SUBVERSION")}`;
}

/**
 * A file with these edits made, and no others of ours.
 * @throws TreeError when a place is not there, or is there twice, or somebody has changed what we wrote
 */
export function edited(contents: string, file: string, edits: readonly Edit[]): string {
  let next = unedited(contents, file);
  for (const { find, expects, put } of edits.filter((edit) => edit.file === file)) {
    const { length } = [...next.matchAll(new RegExp(find, `${find.flags}g`))];
    if (length !== 1) {
      throw new TreeError(`${file}: Cannot add xen.mb.efi: there are ${length} places ${expects}, needed one`);
    }
    next = next.replace(find, (found) => put(found));
  }
  return next;
}

/**
 * A file as it was before we came; as it is, when we did not.
 * @throws TreeError when somebody has changed what we wrote
 */
export function unedited(contents: string, file: string): string {
  const edits = allEdits()
    .filter((edit) => edit.file === file)
    .reverse();
  const bare = edits.reduce(
    (text, { undo, lost = "" }) => text.replace(undo, (_all, found: string) => found + lost),
    contents,
  );
  const at = bare.split("\n").findIndex((line) => TRACES.test(line));
  if (at >= 0) {
    throw new TreeError(`${file}: Cannot change it: line ${at + 1} is of xen-mb-efi, but not as install-xen wrote it`);
  }
  return bare;
}

const TRACES = /mb-efi|EFI_MULTIBOOT/;
