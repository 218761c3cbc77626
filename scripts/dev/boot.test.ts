// SPDX-License-Identifier: GPL-2.0-only
// The parts of the boot tests that need no QEMU: reading a serial console, expectations, table, initramfs, tampering.

import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import * as os from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { cpio } from "./boot/dom0.ts";
import { GAVE_UP, KEXEC_JUMPS } from "./boot/given.ts";
import { tamper } from "./boot/image.ts";
import { PATHS } from "./boot/paths.ts";
import { MATRIX, TEST, expected, goalThrough, goesThrough, meets, pathNamed, subjectName } from "./boot/plan.ts";
import type { Subject } from "./boot/plan.ts";
import { closingLine, columns, failures, skips, table } from "./boot/report.ts";
import type { Result } from "./boot/report.ts";
import { packagesToInstall } from "./boot/tools.ts";
import { Judge, describe, plainText, succeeded } from "./boot/verdict.ts";
import type { End, Goal, Outcome } from "./boot/verdict.ts";

const VERSION = "(XEN) Xen version 4.17.7 (Debian 4.17.7+13) (gcc) debug=n";

/** The outcome of these lines, fed until the judge has heard enough. */
function judged(goal: Goal, lines: readonly string[], end?: End): Outcome {
  const judge = new Judge(goal);
  const over = lines.some((line) => judge.line(line));
  return judge.outcome(over ? undefined : end);
}

const judge = suite("Judge");

const CASES: readonly { name: string; goal: Goal; lines: readonly string[]; end?: End; is: Outcome }[] = [
  { name: "mini-xen passes", goal: "mini-xen", lines: ["MINI-XEN mb1 PASS"], is: { stage: "pass", detail: "mb1" } },
  {
    name: "mini-xen fails",
    goal: "mini-xen",
    lines: ["MINI-XEN efi FAIL: .bss at 0x10 is not zero"],
    is: { stage: "fail", detail: "MINI-XEN efi FAIL: .bss at 0x10 is not zero" },
  },
  { name: "Xen is enough", goal: "xen", lines: ["noise", VERSION], is: { stage: "xen", detail: "4.17.7+13" } },
  {
    name: "dom0 is farther",
    goal: "dom0",
    lines: [VERSION, "BOOT-DOM0 xen=4.17.7 efi=yes lockdown=none"],
    end: "timeout",
    is: { stage: "dom0", detail: "xen=4.17.7 efi=yes lockdown=none" },
  },
  {
    name: "GRUB refuses, with its last error",
    goal: "xen",
    lines: ["error: no such file.", "error: invalid arch-dependent ELF magic.", GAVE_UP],
    is: { stage: "refused", detail: "invalid arch-dependent ELF magic" },
  },
  {
    name: "GRUB complains and boots",
    goal: "xen",
    lines: ["error: no suitable video mode found.", "(XEN) Xen version 4.21-unstable (me@here) (gcc)"],
    is: { stage: "xen", detail: "4.21-unstable" },
  },
  {
    name: "QEMU refuses and ends",
    goal: "xen",
    lines: ["qemu-system-x86_64: warning: something", "qemu-system-x86_64: Error while loading elf kernel"],
    end: "exit",
    is: { stage: "refused", detail: "Error while loading elf kernel" },
  },
  {
    name: "Xen panics, for the reason on the next line",
    goal: "dom0",
    lines: [VERSION, "(XEN) ****************", "(XEN) Panic on CPU 0:", "(XEN) Could not construct d0", "(XEN) ****"],
    is: { stage: "xen", detail: "Could not construct d0", trouble: "panic" },
  },
  {
    name: "dom0's kernel panics",
    goal: "dom0",
    lines: [VERSION, "[    1.0] Kernel panic - not syncing: no init"],
    is: { stage: "xen", detail: "Kernel panic - not syncing: no init", trouble: "panic" },
  },
  {
    name: "Xen's EFI loader part stops",
    goal: "xen",
    lines: ["Xen 4.17.7 (c/s ) EFI loader", "Using builtin config file"],
    end: "exit",
    is: { stage: "xen-efi", detail: "4.17.7", trouble: "reset" },
  },
  {
    name: "Xen's EFI loader part gives up",
    goal: "xen",
    lines: ["Xen 4.17.7 (c/s ) EFI loader", "No configuration file found."],
    is: { stage: "xen-efi", detail: "No configuration file found", trouble: "gave up" },
  },
  {
    name: "Xen's EFI loader part is enough",
    goal: "xen-efi",
    lines: ["Xen 4.14.6 (c/s ) EFI loader", "No configuration file found."],
    is: { stage: "xen-efi", detail: "4.14.6" },
  },
  {
    name: "Xen's EFI loader part cannot work under shim",
    goal: "xen",
    lines: ["Xen 4.17.7 (c/s ) EFI loader", "Unsupported relocation type"],
    is: { stage: "refused", detail: "Unsupported relocation type" },
  },
  {
    name: "shim does not trust the image, and says so in a box",
    goal: "xen",
    lines: ["\u00b3         ERROR         \u00b3", "\u00b3   Verification failed: (0x1A) Security Violation   \u00b3"],
    is: { stage: "refused", detail: "Verification failed: (0x1A) Security Violation" },
  },
  {
    name: "firmware does not trust the image",
    goal: "xen",
    lines: [
      'BdsDxe: failed to load Boot0001 "UEFI QEMU DVD-ROM QM00005 " from PciRoot(0x0)/Pci(0x1F,0x2)/Sata(0x2,0xFFFF,0x0): Not Found',
      'BdsDxe: failed to load Boot0002 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x2,0x0): Access Denied',
    ],
    is: {
      stage: "refused",
      detail: 'BdsDxe: failed to load Boot0002 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x2,0x0): Access Denied',
    },
  },
  {
    name: "kexec jumps, and that is the last that is heard",
    goal: "xen",
    lines: [KEXEC_JUMPS],
    end: "timeout",
    is: { stage: "loader", detail: "kexec jumps", trouble: "hang" },
  },
  {
    name: "a triple fault",
    goal: "xen",
    lines: [],
    end: "triple fault",
    is: { stage: "loader", detail: "", trouble: "triple fault" },
  },
  {
    name: "a hang",
    goal: "dom0",
    lines: [VERSION],
    end: "timeout",
    is: { stage: "xen", detail: "4.17.7+13", trouble: "hang" },
  },
  {
    name: "a reset",
    goal: "dom0",
    lines: [VERSION],
    end: "exit",
    is: { stage: "xen", detail: "4.17.7+13", trouble: "reset" },
  },
];

for (const { name, goal, lines, end, is } of CASES) {
  judge(name, () => assert.equal(judged(goal, lines, end), is));
}

judge("is told nothing but text", () => {
  assert.is(plainText("\u001b[2J\u001b[01;01H\u001b[=3hXen\r\u0000 4"), "Xen 4");
});

judge("describes an outcome in one line", () => {
  assert.is(
    describe({ stage: "loader", detail: "", trouble: "triple fault" }),
    "triple fault in or right behind the loader",
  );
  assert.is(describe({ stage: "refused", detail: "no" }), "refused: no");
});

judge("calls it a success when an image of which nothing is known comes to its goal, and nothing less", () => {
  const [dom0, refused] = ["BOOT-DOM0 xen=4.17.7 efi=yes lockdown=none", "error: invalid arch-dependent ELF magic."];
  const verdict = (goal: Goal, lines: readonly string[], end?: End): boolean =>
    succeeded(judged(goal, lines, end), goal);
  assert.ok(verdict("dom0", [VERSION, dom0]));
  assert.ok(verdict("dom0", ["MINI-XEN mb1 PASS"], "exit"));
  assert.ok(verdict("xen", [VERSION]));
  assert.not.ok(verdict("dom0", [VERSION], "timeout"));
  assert.not.ok(verdict("dom0", [refused, GAVE_UP]));
  assert.not.ok(verdict("xen", [], "exit"));
  const named = (name: string): Goal =>
    goalThrough(PATHS.find((one) => one.name === name) as (typeof PATHS)[number], "dom0");
  assert.equal(["efi", "sb-grub-mb2"].map(named), ["dom0", "xen"]);
});

judge.run();

// ---

const plan = suite("expected");

const MOVED: Subject = { build: "4.17.7+13", variant: "move", goal: "dom0" };
const UNTOUCHED: Subject = { build: "4.17.7+13", variant: "untouched", goal: "xen" };

function path(name: string) {
  const found = pathNamed(name);
  assert.ok(found, name);
  return found as NonNullable<typeof found>;
}

plan("asks for the version, and for EFI where there is EFI", () => {
  const onEfi = expected(MOVED, path("grub-efi-mb2"));
  assert.ok(meets({ stage: "dom0", detail: "xen=4.17.7 efi=yes lockdown=none" }, onEfi));
  assert.not(meets({ stage: "dom0", detail: "xen=4.17.7 efi=no lockdown=none" }, onEfi));
  assert.not(meets({ stage: "dom0", detail: "xen=4.20.4 efi=yes lockdown=none" }, onEfi));
  assert.not(meets({ stage: "xen", detail: "4.17.7" }, onEfi));
  assert.ok(meets({ stage: "dom0", detail: "xen=4.17.7 efi=no lockdown=none" }, expected(MOVED, path("qemu-mb1"))));
});

plan("asks dom0 whether Secure Boot is on, where it must be, and where it must not", () => {
  for (const name of ["sb-efi", "sb-shim", "sb-grub-chain"]) {
    const wanted = expected(MOVED, path(name));
    assert.ok(meets({ stage: "dom0", detail: "xen=4.17.7 efi=yes lockdown=integrity" }, wanted), name);
    assert.not(meets({ stage: "dom0", detail: "xen=4.17.7 efi=yes lockdown=none" }, wanted), name);
  }
  assert.not(meets({ stage: "dom0", detail: "xen=4.17.7 efi=yes lockdown=integrity" }, expected(MOVED, path("efi"))));
  assert.equal([expected(MOVED, path("sb-grub-mb2")).stage, expected(MOVED, path("sb-grub-mb2")).goal], ["xen", "xen"]);
});

plan("has each path under Secure Boot refuse what was changed or never signed, in words of its own", () => {
  const signed = PATHS.filter(({ name, secureBoot }) => secureBoot === "signed" && !/-(objcopy|module2)$/.test(name));
  assert.equal(
    signed.map(({ name }) => name),
    ["sb-efi", "sb-shim", "sb-grub-chain", "sb-grub-mb2"],
  );
  for (const { name } of signed) {
    for (const signature of ["tampered", "unsigned"] as const) {
      const bootPath = path(`${name}-${signature}`);
      assert.is(bootPath.secureBoot, signature);
      for (const subject of TEST) {
        assert.is(goesThrough(subject, bootPath), subject.variant === "move", subjectName(subject));
        const wanted = expected(subject, bootPath);
        assert.is(wanted.stage, "refused");
        for (const detail of [
          "invalid arch-dependent ELF magic",
          "Unsupported relocation type",
          "start_image() returned Not Found",
        ]) {
          assert.not(meets({ stage: "refused", detail }, wanted), detail);
        }
      }
    }
  }
  assert.ok(
    PATHS.filter(({ secureBoot }) => secureBoot === "signed").every((bootPath) =>
      TEST.some((subject) => goesThrough(subject, bootPath)),
    ),
  );
  assert.ok(
    PATHS.filter(({ secureBoot }) => secureBoot === undefined).every((bootPath) =>
      TEST.every((subject) => goesThrough(subject, bootPath)),
    ),
  );
});

plan("has the untouched image fail under Secure Boot for its own reasons, signed as it is", () => {
  assert.ok(
    meets({ stage: "refused", detail: "Unsupported relocation type" }, expected(UNTOUCHED, path("sb-shim-objcopy"))),
  );
  assert.ok(
    meets({ stage: "refused", detail: "invalid arch-dependent ELF magic" }, expected(UNTOUCHED, path("sb-grub-mb2"))),
  );
  assert.is(expected(UNTOUCHED, path("sb-efi")).stage, "xen");
  assert.is(
    expected({ build: "mini-xen", variant: "untouched", goal: "mini-xen" }, path("sb-shim-objcopy")).stage,
    "fail",
  );
  assert.ok(
    meets(
      { stage: "refused", detail: "prohibited by secure boot policy" },
      expected(MOVED, path("sb-grub-mb2-module2")),
    ),
  );
});

plan("asks mini-xen for the way it was entered", () => {
  const wanted = expected({ build: "mini-xen", variant: "keep", goal: "mini-xen" }, path("grub-bios-mb2"));
  assert.ok(meets({ stage: "pass", detail: "mb2-bios" }, wanted));
  assert.not(meets({ stage: "pass", detail: "mb1" }, wanted));
});

plan("asks the controls to fail for the reason known", () => {
  const wanted = expected(UNTOUCHED, path("shim"));
  assert.ok(meets({ stage: "refused", detail: "Unsupported relocation type" }, wanted));
  assert.not(meets({ stage: "refused", detail: "out of memory" }, wanted));
  assert.not(meets({ stage: "xen", detail: "4.17.7" }, wanted));
  assert.is(expected(UNTOUCHED, path("efi")).stage, "xen");
});

plan("knows the builds by Debian's version, and what Xen 4.14 cannot", () => {
  const odd = expected({ build: "4.20.4+39", variant: "move", goal: "xen" }, path("efi"));
  assert.ok(meets({ stage: "xen", detail: "4.20.4+39-gf1e1321c87-1" }, odd));
  assert.not(meets({ stage: "xen", detail: "4.20.4+390-1" }, odd));
  const old: Subject = { build: "4.14.6-1", variant: "move", goal: "dom0" };
  assert.is(expected(old, path("ipxe-efi")).stage, "xen-efi");
  assert.equal(expected(old, path("u-boot")).troubles, ["gave up"]);
  assert.is(expected({ ...old, build: "4.17.5+72" }, path("ipxe-efi")).stage, "dom0");
  assert.is(expected(old, path("efi")).stage, "dom0");
});

plan("asks for the known stop, and for no other", () => {
  const wanted = expected(MOVED, path("kexec"));
  assert.ok(meets({ stage: "loader", detail: "kexec jumps", trouble: "hang" }, wanted));
  assert.not(meets({ stage: "loader", detail: "", trouble: "hang" }, wanted));
  assert.ok(meets({ stage: "loader", detail: "kexec jumps", trouble: "triple fault" }, wanted));
  assert.not(meets({ stage: "loader", detail: "", trouble: "triple fault" }, wanted));
  assert.not(meets({ stage: "loader", detail: "kexec jumps", trouble: "reset" }, wanted));
  assert.not(meets({ stage: "loader", detail: "kexec jumps" }, wanted));
});

plan("never takes trouble for success", () => {
  assert.not(meets({ stage: "xen", detail: "4.17.7", trouble: "panic" }, expected(UNTOUCHED, path("efi"))));
});

plan("covers both variants of mini-xen and the controls, each name once", () => {
  for (const subjects of [TEST, MATRIX]) {
    const names = subjects.map(subjectName);
    assert.is(new Set(names).size, names.length);
    for (const name of [
      "mini-xen-untouched",
      "mini-xen-move",
      "mini-xen-keep",
      "xen-4.17.7+13-untouched",
      "xen-4.17.7+13-move",
    ]) {
      assert.ok(names.includes(name), name);
    }
  }
  assert.is(new Set(PATHS.map(({ name }) => name)).size, PATHS.length);
});

plan.run();

// ---

const report = suite("report");

const RESULTS: readonly Result[] = [
  { image: "a", path: "efi", verdict: "passed", outcome: { stage: "xen", detail: "4" }, seconds: 4.4 },
  { image: "a", path: "shim", verdict: "passed", outcome: { stage: "refused", detail: "because" }, seconds: 1 },
  {
    image: "b",
    path: "efi",
    verdict: "failed",
    outcome: { stage: "loader", detail: "", trouble: "hang" },
    seconds: 60,
    reason: "expected xen",
    lastLines: ["x"],
  },
  { image: "b", path: "shim", verdict: "skipped", reason: "shim: mcopy not found (package mtools)" },
];

report("has a row for each path and a column for each image", () => {
  const lines = table(RESULTS).split("\n");
  assert.match(lines[0] ?? "", /^\| path +\| firmware, loader +\| a +\| b +\|$/);
  assert.match(lines[2] ?? "", /\| `efi` +\| OVMF, the firmware itself +\| xen 4 s +\| \*\*FAIL\*\* hang 60 s \|/);
  assert.match(lines[3] ?? "", /\| refused 1 s \[1\] \| SKIP +\|/);
  assert.ok(lines.includes("[1] because"));
});

report("says what failed and what was skipped", () => {
  assert.is(failures(RESULTS), "FAIL b on efi: hang in or right behind the loader; expected xen\n    x\n");
  assert.equal(skips(RESULTS), ["SKIP shim: mcopy not found (package mtools)"]);
  assert.is(closingLine(RESULTS), "2 passed, 1 failed, 1 skipped");
});

report("lines columns up", () => {
  assert.equal(
    columns([
      ["a", "b"],
      ["long", ""],
    ]),
    ["| a    | b |", "| ---- | - |", "| long |   |"],
  );
});

report("names each package once", () => {
  const names = packagesToInstall();
  assert.is(new Set(names).size, names.length);
  assert.ok(names.includes("qemu-system-x86"));
});

report.run();

// ---

const files = suite("files");

files("cpio() writes newc headers, names and data in multiples of 4", () => {
  const archive = Buffer.from(
    cpio([
      { name: "dev/console", mode: 0o020600, device: [5, 1] },
      { name: "init", mode: 0o100755, data: Buffer.from("hello") },
    ]),
  );
  assert.is(archive.length % 4, 0);
  assert.is(archive.toString("latin1", 0, 6), "070701");
  assert.is(archive.toString("latin1", 14, 22), "00002180");
  assert.is(archive.toString("latin1", 78, 94), "0000000500000001");
  const second = archive.indexOf("070701", 6);
  assert.is(archive.toString("latin1", second + 110, second + 114), "init");
  assert.is(archive.toString("latin1", second + 54, second + 62), "00000005");
  assert.ok(archive.includes("TRAILER!!!"));
});

files("tamper() changes one bit of the file", () => {
  const folder = fs.mkdtempSync(join(os.tmpdir(), "boot-test-"));
  try {
    const file = join(folder, "image.efi");
    fs.writeFileSync(file, Buffer.alloc(5, 0x61));
    assert.is(fs.readFileSync(tamper(folder, file), "latin1"), "aa`aa");
    assert.is(fs.readFileSync(file, "latin1"), "aaaaa");
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
});

files.run();
