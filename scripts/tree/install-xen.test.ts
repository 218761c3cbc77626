// SPDX-License-Identifier: GPL-2.0-only
// install-xen.ts on small trees with just the lines that it looks for; xen-tree-test.ts has the real ones.

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
_install: T=$(notdir $(TARGET))
endif #config-build
endif # need-sub-make
`;

const X86 = `efi-y := $(space)
ifeq ($(XEN_BUILD_PE),y)
$(TARGET).efi: $(objtree)/prelink.o $(obj)/efi.lds
endif
clean-files := \\
    efi/*.efi
`;

/** As in Xen up to 4.21. */
const LINKER_SCRIPT = "  . = __image_base__;\n  _sinittext = .;\n  *(.init.text)\n";

/** As upstream's series has it. */
const DISCARDING: Files = {
  "xen/arch/x86/Kconfig": "endchoice\n\nconfig GUEST\n\tbool\n",
  "xen/arch/x86/xen.lds.S":
    "#else\n  . = __image_base__;\n  /DISCARD/ : {\n    *(.text.header)\n    *(.init.*multiboot)\n  }\n#endif\n" +
    "  _sinittext = .;\n       *(.init.multiboot)\n       *(.init.text)\n" +
    "       *(.init.data.multiboot)\n       *(.init.data)\n",
  "xen/arch/x86/boot/head.S": '        .section .init.multiboot, "ax", @progbits\n',
  "xen/arch/x86/boot/Makefile": "$(obj)/built-in-32.S: $(srctree)/tools/combine_two_binaries.py\n",
  "xen/tools/combine_two_binaries.py": "default='.section .init.multiboot, \"ax\", @progbits',\n",
};

type Files = Record<string, string>;

const TREE: Files = {
  "xen/Makefile": MAKEFILE,
  "xen/arch/x86/Makefile": X86,
  "xen/arch/x86/xen.lds.S": LINKER_SCRIPT,
  "xen/arch/x86/efi/mkreloc.c": "int main(void);\n",
  "xen/scripts/Kbuild.include": "success = $(call if-success,$(1),y,n)\n",
};

interface Place {
  root: string;
  tree: string;
  tool: string;
}

const tests = suite<Place>("install-xen");

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
    fs.writeFileSync(path.join(tree, file), contents);
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
  tests(`installs, twice the same, and removes without a trace, in a tree ${kind}`, async (place) => {
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

tests("a discarding tree keeps the Multiboot code by an option, in no executable section", async (place) => {
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

tests("an older tree, whose early C code is a part of head.S, gets the same option", async (place) => {
  const { "xen/tools/combine_two_binaries.py": _tool, ...files } = DISCARDING;
  write(place, { ...files, "xen/arch/x86/boot/Makefile": "head-objs := cmdline.S reloc.S\n" });
  const before = listing(place);
  assert.is((await run(place)).status, 0);
  assert.match(listing(place)["xen/arch/x86/boot/head.S"] ?? "", /\.init\.multiboot, "aw"/);
  await run(place, "--remove");
  assert.ok(same(listing(place), before));
});

tests("updates an older tool, and takes away what was built with it", async (place) => {
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
    "no tree of Xen's",
    { "xen/Makefile": "all:\n" },
    /xen\/Makefile: Cannot add xen\.mb\.efi: no line 'export XEN_VERSION/,
  ],
  [
    "a build before 4.17",
    { "xen/arch/x86/Makefile": X86.replace("$(objtree)/prelink.o", "prelink.o") },
    /xen\/arch\/x86\/Makefile: .* no line '\$\(TARGET\)\.efi: \$\(objtree\)\/prelink\.o …', as from Xen 4\.17 on/,
  ],
  [
    "a place that is missing",
    { "xen/arch/x86/Makefile": X86.replace("clean-files :=", "clean-files +=") },
    /xen\/arch\/x86\/Makefile: .* there are 0 places 'clean-files := \\', needed one/,
  ],
  [
    "a place that is there twice",
    { "xen/Makefile": `${MAKEFILE}endif #config-build\n` },
    /xen\/Makefile: .* there are 2 places 'endif #config-build', needed one/,
  ],
  [
    "traces of another hand",
    { "xen/Makefile": `${MAKEFILE}include mb-efi.mk\n` },
    /xen\/Makefile: Cannot change it: line 6 is of xen-mb-efi, but not as install-xen wrote it/,
  ],
  [
    "somebody else's file",
    { "xen/arch/x86/efi/mb-efi.mk": "all:\n" },
    /efi\/mb-efi\.mk: Cannot add it: there is a file of this name/,
  ],
];

for (const [what, files, message] of REFUSALS) {
  tests(`refuses ${what}, and changes nothing`, async (place) => {
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

tests("refuses to remove what was edited since, and changes nothing", async (place) => {
  await run(place);
  const makefile = path.join(place.tree, "xen/Makefile");
  fs.writeFileSync(makefile, fs.readFileSync(makefile, "utf8").replace("include $(srctree)", "-include $(srctree)"));
  const before = listing(place);
  const { status, err } = await run(place, "--remove");
  assert.match(err, /xen\/Makefile: Cannot change it: line 4 is of xen-mb-efi/);
  assert.is(status, 1);
  assert.ok(same(listing(place), before));
});

tests("refuses a directory without Xen, and a tool that make dist did not make", async (place) => {
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
