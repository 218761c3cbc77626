// SPDX-License-Identifier: GPL-2.0-only
// install-xen.ts on small trees with just the lines that it looks for; xen-tree-test.ts has the real ones.

import { execFileSync, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { runCommand } from "../cli/cli.ts";
import type { Io } from "../cli/cli.ts";
import { command } from "../install-xen.ts";

const TOOL_TEXT =
  "#!/usr/bin/env node\n// SPDX-License-Identifier: GPL-2.0-only\n// xen-mb-efi: as good as the tool here\n\n";

const MAKEFILE = `export XEN_VERSION       = 4
export XEN_SUBVERSION    = 20
_install:
\tif true; then \\
\t\ttrue; \\
\tfi

.PHONY: tests
tests:

endif #config-build
endif # need-sub-make
`;

const X86 = `efi-y := $(space)

clean-files := \\
    include/asm/asm-macros.* \\
    efi/*.efi
`;

/** As in Xen up to 4.21. */
const LINKER_SCRIPT = "  . = __image_base__;\n  _sinittext = .;\n  *(.init.text)\n";

/** As upstream's series has it. */
const DISCARDING: Files = {
  "xen/arch/x86/Kconfig": "endchoice\n\nconfig GUEST\n\tbool\n",
  "xen/arch/x86/xen.lds.S":
    "#else\n  . = __image_base__;\n  /DISCARD/ : {\n    *(.text.header)\n    *(.init.*multiboot)\n  }\n#endif\n\n" +
    "       _sinittext = .;\n       *(.init.multiboot)\n       *(.init.text)\n\n" +
    "       *(.init.data.multiboot)\n       *(.init.data)\n",
  "xen/arch/x86/boot/head.S": '\n        .section .init.multiboot, "ax", @progbits\n\n',
  "xen/tools/combine_two_binaries.py":
    "parser.add_argument('--section-header', dest='section_header',\n" +
    "                    default='.section .init.multiboot, \"ax\", @progbits',\n" +
    "                    help='Section header declaration')\n",
};

/** Contents by name; undefined for a file that is not to be there. */
type Files = Record<string, string | undefined>;

const TREE: Files = {
  "xen/Makefile": MAKEFILE,
  "xen/arch/x86/Makefile": X86,
  "xen/arch/x86/xen.lds.S": LINKER_SCRIPT,
  "xen/arch/x86/efi/mkreloc.c": "int main(void);\n",
};

interface Place {
  root: string;
  tree: string;
  tool: string;
}

const tests = suite<Place>("install-xen");

// uvu counts a skipped case but does not say why.
const hasGit = spawnSync("git", ["--version"]).error === undefined;
if (!hasGit) console.log("skipped: the cases that patch a tree: git is not installed");
const withGit = hasGit ? tests : tests.skip;

tests.before.each((context) => {
  const root = fs.mkdtempSync(path.join(tmpdir(), "install-xen-test-"));
  Object.assign(context, { root, tree: path.join(root, "xen-src"), tool: path.join(root, "tool.mjs") });
  fs.writeFileSync(context.tool, TOOL_TEXT);
  write(context, TREE);
});
tests.after.each(({ root }) => fs.rmSync(root, { recursive: true, force: true }));

function write({ tree }: Place, files: Files): void {
  for (const [file, contents] of Object.entries(files)) {
    fs.mkdirSync(path.dirname(path.join(tree, file)), { recursive: true });
    if (contents === undefined) fs.rmSync(path.join(tree, file), { force: true });
    else fs.writeFileSync(path.join(tree, file), contents);
  }
}

function listing({ tree }: Place): Files {
  const files = fs.readdirSync(tree, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const names = files.map((entry) => path.relative(tree, path.join(entry.parentPath, entry.name))).sort();
  return Object.fromEntries(names.map((name) => [name, fs.readFileSync(path.join(tree, name), "latin1")]));
}

async function run({ tree, tool }: Place, ...args: string[]): Promise<{ status: number; out: string; err: string }> {
  const printed = { out: "", err: "" };
  const io: Io = {
    stdin: () => assert.unreachable("reads standard input") as never,
    stdout: (text) => void (printed.out += String(text)),
    stderr: (text) => void (printed.err += text),
  };
  const status = await runCommand(command, [tree, "--tool", tool, ...args], io);
  return { status, ...printed };
}

for (const [kind, more] of [
  ["as Xen is", {}],
  ["that discards the Multiboot code", DISCARDING],
] as const) {
  withGit(`installs, twice the same, and removes without a trace, in a tree ${kind}`, async (place) => {
    write(place, more);
    const before = listing(place);
    const first = await run(place);
    assert.is(first.err, "");
    assert.is(first.status, 0);
    const after = listing(place);
    const changed = Object.keys(after).filter((file) => after[file] !== before[file]);
    // It prints just what it changed.
    assert.equal(
      [...first.out.matchAll(/^(?:added|changed) ([^:\n]+)/gm)].map((match) => match[1]).sort(),
      changed.sort(),
    );
    const second = await run(place);
    assert.match(second.out, /Xen 4\.20 has it all, nothing was changed\n$/);
    assert.ok(same(listing(place), after));
    const removed = await run(place, "--remove");
    assert.is(removed.status, 0);
    assert.ok(same(listing(place), before));
    assert.match((await run(place, "--remove")).out, /has no xen\.mb\.efi to remove\n$/);
  });
}

function same(one: Files, other: Files): boolean {
  return JSON.stringify(one) === JSON.stringify(other);
}

withGit("a discarding tree keeps the Multiboot code by an option, in no executable section", async (place) => {
  write(place, DISCARDING);
  await run(place);
  const files = listing(place);
  assert.match(files["xen/arch/x86/Kconfig"] ?? "", /^config EFI_MULTIBOOT\n\tbool ".*"\n\tdefault y\n/m);
  assert.match(
    files["xen/arch/x86/xen.lds.S"] ?? "",
    /#ifndef CONFIG_EFI_MULTIBOOT\n {2}\/DISCARD\/ : \{\n(.*\n){2} {2}\}\n#endif\n/,
  );
  assert.match(files["xen/arch/x86/boot/head.S"] ?? "", /\.init\.multiboot, "aw"/);
});

withGit("an older tree, whose early C code is a part of head.S, gets the same option", async (place) => {
  const { "xen/tools/combine_two_binaries.py": _tool, ...files } = DISCARDING;
  write(place, files);
  const before = listing(place);
  assert.is((await run(place)).status, 0);
  assert.match(listing(place)["xen/arch/x86/boot/head.S"] ?? "", /\.init\.multiboot, "aw"/);
  await run(place, "--remove");
  assert.ok(same(listing(place), before));
});

withGit("updates an older tool, and takes away what was built with it", async (place) => {
  const before = listing(place);
  await run(place);
  fs.appendFileSync(place.tool, "// newer\n");
  const again = await run(place);
  assert.match(again.out, /^updated xen\/arch\/x86\/efi\/xen-mb-efi\.mjs\n[^\n]*make -C xen builds xen\.mb\.efi now/);
  write(place, { "xen/xen.mb.efi": "MZ" });
  assert.match((await run(place, "--remove")).out, /^removed xen\/xen\.mb\.efi$/m);
  assert.ok(same(listing(place), before));
});

const REFUSALS: readonly (readonly [string, Files, RegExp])[] = [
  [
    "a build before 4.17",
    { "xen/arch/x86/Makefile": X86.replace("clean-files := \\\n", "") },
    /: Cannot add xen\.mb\.efi: scripts\/tree\/build\.patch does not apply: xen\/arch\/x86\/Makefile:\d+$/m,
  ],
  [
    "a place that is missing",
    { "xen/Makefile": MAKEFILE.replace("endif #config-build\n", "endif\n") },
    /scripts\/tree\/build\.patch does not apply: xen\/Makefile:\d+$/m,
  ],
  [
    "another way to discard, when the rest would fit",
    { ...DISCARDING, "xen/arch/x86/xen.lds.S": "  /DISCARD/ : { *(.text.header) *(.init.multiboot) }\n" },
    /scripts\/tree\/efi-multiboot\.patch does not apply: xen\/arch\/x86\/xen\.lds\.S:\d+$/m,
  ],
  [
    "a tree that lacks a file",
    { ...DISCARDING, "xen/arch/x86/Kconfig": undefined },
    /efi-multiboot\.patch does not apply: xen\/arch\/x86\/Kconfig: No such file or directory$/m,
  ],
  [
    "traces of another hand",
    { "xen/Makefile": `${MAKEFILE}include mb-efi.mk\n` },
    /xen\/Makefile: Cannot change it: line 13 is of xen-mb-efi, but not as install-xen wrote it/,
  ],
  [
    "somebody else's file",
    { "xen/arch/x86/efi/mb-efi.mk": "all:\n" },
    /efi\/mb-efi\.mk: Cannot replace or remove it: it is not of xen-mb-efi/,
  ],
];

for (const [what, files, message] of REFUSALS) {
  withGit(`refuses ${what}, and changes nothing`, async (place) => {
    write(place, files);
    const before = listing(place);
    const { status, out, err } = await run(place);
    assert.match(err, message);
    assert.ok(err.startsWith(`${place.tree}: `));
    assert.is(err.trimEnd().split("\n").length, 1);
    assert.equal([status, out], [1, ""]);
    assert.ok(same(listing(place), before));
  });
}

withGit("refuses to remove what was edited since, and changes nothing", async (place) => {
  await run(place);
  const makefile = path.join(place.tree, "xen/Makefile");
  fs.writeFileSync(makefile, fs.readFileSync(makefile, "utf8").replace("include $(srctree)", "-include $(srctree)"));
  const before = listing(place);
  const { status, err } = await run(place, "--remove");
  assert.match(err, /xen\/Makefile: Cannot change it: line 7 is of xen-mb-efi/);
  assert.is(status, 1);
  assert.ok(same(listing(place), before));
});

withGit("takes back what it changed when the rest cannot be written", async (place) => {
  const folder = path.join(place.tree, "xen/arch/x86/efi");
  fs.rmSync(folder, { recursive: true });
  const before = listing(place);
  const { status, out, err } = await run(place);
  assert.match(err, /efi\/xen-mb-efi\.mjs: Cannot write: no such file or directory/);
  assert.equal([status, out], [1, ""]);
  assert.ok(same(listing(place), before));
});

withGit("leaves the mode of a file as it is, and needs no repository around the tree", async (place) => {
  const makefile = path.join(place.tree, "xen/Makefile");
  fs.chmodSync(makefile, 0o640);
  execFileSync("git", ["init", "-q", place.root]);
  assert.is((await run(place)).status, 0);
  assert.is(fs.statSync(makefile).mode & 0o777, 0o640);
  assert.match(fs.readFileSync(makefile, "utf8"), /^\t\$\(install-mb-efi\)$/m);
});

withGit("refuses a directory without Xen, and a tool that make dist did not make", async (place) => {
  assert.match((await run({ ...place, tree: place.root })).err, /Cannot change: not a Xen source tree/);
  assert.match(
    (await run({ ...place, tool: path.join(place.root, "none.mjs") })).err,
    /none\.mjs: Cannot read: no such file/,
  );
  fs.writeFileSync(place.tool, "console.log(1);\n");
  assert.match((await run(place)).err, /tool\.mjs: Cannot install: it is not what "make dist" makes/);
  assert.equal(listing(place), TREE);
});

tests.run();
