// SPDX-License-Identifier: GPL-2.0-only
// strip-debug on the known builds: the same bytes ahead of the steps and behind them, small, nothing lost that loaders
// need, and a debug file that addr2line and gdb read; golden/cases/strip-debug-*.txt has its rules one by one.

import { Buffer } from "node:buffer";
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { addSections } from "./add-sections.ts";
import { alignSections } from "./align-sections.ts";
import { checkLoaders } from "./check-loaders.ts";
import { KINDS, builds, differences, once, run, sample } from "./dev/sample/run.ts";
import { emitHeader } from "./emit-header.ts";
import { boots } from "./loaders/rules.ts";
import { authenticode } from "./judge/authenticode.ts";
import { definedSymbols } from "./pe/symbols.ts";
import { parseImage } from "./pe/parse.ts";
import { serializeImage } from "./pe/serialize.ts";
import { loadSpan } from "./xen/span.ts";
import type { Image } from "./pe/image.ts";
import { relocateReloc } from "./relocate-reloc.ts";
import { command, debugFile, stripDebug } from "./strip-debug.ts";
import { verify } from "./verify.ts";

const MIB = 2 ** 20;
const steps = (image: Image, keep: boolean): Image => emitHeader(alignSections(relocateReloc(image, keep)));
const parsed = (image: Image): Image => parseImage(serializeImage(image));
/** One look at each real build, where the two largest of the three with DWARF are alike. */
const BUILDS = builds(["4.14.6-1", "4.17.5+72", "4.17.7+13", "4.20.4+39", "4.20.4+63"]);
const IMAGES = [{ id: "tiny.pe.txt", bytes: sample() }, ...BUILDS];

const known = suite("stripDebug() on known builds");

for (const { id, bytes } of IMAGES) {
  const stripped = once(() => serializeImage(stripDebug(parseImage(bytes))));

  for (const keep of id === "tiny.pe.txt" ? [false, true] : [false]) {
    known(
      `${id}, ${keep ? "kept" : "moved"}: ahead of the steps and behind them, the same bytes, below 7 MB; verified`,
      () => {
        const ahead = serializeImage(steps(parseImage(stripped()), keep));
        const behind = serializeImage(stripDebug(parsed(steps(parseImage(bytes), keep))));
        assert.is(differences(ahead, behind).length, 0);
        assert.ok(ahead.length < 7_000_000, `${ahead.length} bytes`);
        assert.equal(verify(stripped(), ahead).violations, []);
        assert.equal(authenticode(ahead).problems, []);
      },
    );
  }

  known(
    `${id}: only debug sections go, all else has the same data, SizeOfImage covers .bss; nothing trails; twice is once`,
    () => {
      const [before, after] = [parseImage(bytes), parseImage(stripped())];
      const kept = before.sections.filter((s) => !s.name.startsWith(".debug_"));
      assert.equal(
        after.sections.map((s) => s.name),
        kept.map((s) => s.name.slice(0, 8)),
      );
      kept.forEach((section, i) => {
        const same = after.sections[i];
        assert.is(same?.header.virtualAddress, section.header.virtualAddress);
        assert.is(same?.header.virtualSize, section.header.virtualSize);
        // The debug directory's file offset follows.
        const changed = differences(section.data, (same?.data ?? Buffer.of()).subarray(0, section.data.length));
        assert.ok(
          changed.every(([from, to]) => section.name === ".buildid" && to - from <= 4),
          section.name,
        );
      });
      assert.equal(after.directories, before.directories);
      assert.is(after.coff.timeDateStamp, before.coff.timeDateStamp);
      const { sizeOfImage, sectionAlignment } = after.optional;
      assert.ok(
        sizeOfImage <= Math.ceil(before.optional.sizeOfImage / 0x200000) * 0x200000 &&
          sizeOfImage >= loadSpan(after, "test").bssEnd,
      );
      assert.is(sizeOfImage % sectionAlignment, 0);
      const end = Math.max(...after.sections.map(({ header }) => header.pointerToRawData + header.sizeOfRawData));
      assert.is(stripped().length, end);
      assert.is(differences(stripped(), serializeImage(stripDebug(after))).length, 0, "twice");
      assert.equal(authenticode(stripped()).problems, []);
    },
  );
}

known("29 MB with DWARF become 2.6 MB, and SizeOfImage 10 MiB", () => {
  for (const { bytes } of builds(["4.20.4+63"])) {
    const stripped = stripDebug(parseImage(bytes));
    assert.ok(bytes.length > 29_000_000 && stripped.fileSize < 2.7 * MIB);
    assert.is(stripped.optional.sizeOfImage, 10 * MIB);
  }
});

known("every loader takes the stripped xen.mb.efi that takes it unstripped", () => {
  for (const { bytes } of builds(KINDS)) {
    const full = steps(parseImage(bytes), false);
    const refusing = (image: Image): string[] =>
      checkLoaders(serializeImage(image))
        .verdicts.filter((verdict) => !boots(verdict))
        .map(({ loader }) => loader);
    assert.equal(refusing(stripDebug(parsed(full))), refusing(full));
  }
});

known("stripped, then unified: sections go where DWARF was", () => {
  for (const { bytes } of builds(["4.20.4+39"])) {
    const unified = addSections(parsed(stripDebug(parseImage(bytes))), [{ name: ".config", data: Buffer.from("x") }]);
    assert.is(unified.sections.at(-1)?.header.virtualAddress, 0xa00000);
    assert.is(unified.optional.sizeOfImage, 0xc00000);
  }
});

known.run();

// ---

function has(tool: string, name: string): boolean {
  if (spawnSync(tool, ["--version"]).status === 0) return true;
  console.log(`skipped: no ${tool} (package ${name})`);
  return false;
}

const [addr2line, gdb] = [has("addr2line", "binutils"), has("gdb", "gdb")];
/** Functions of Xen in C, in .text and in .init; each is in a source file of its own. */
const FUNCTIONS = ["context_switch", "do_softirq", "efi_start", "printk"];

const debuggers = suite("debugFile() for debuggers");

function inFolder<T>(work: (file: (name: string) => string) => T): T {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "strip-debug-"));
  try {
    return work((name) => path.join(folder, name));
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

for (const { id, bytes } of builds(["4.17.7+13", "4.20.4+63"])) {
  const original = parseImage(bytes);
  const functions = [...definedSymbols(original)].filter(({ name }) => FUNCTIONS.includes(name));
  const addresses = functions.map(({ rva }) => `0x${(original.optional.imageBase + BigInt(rva)).toString(16)}`);
  const variants = (): Map<string, Uint8Array> =>
    new Map([
      ["original", bytes],
      ["debug", serializeImage(debugFile(original))],
      ["debug-of-mb", serializeImage(debugFile(parsed(steps(original, false))))],
    ]);

  if (addr2line) {
    debuggers(`${id}: addr2line names the same functions and lines as on the original`, () =>
      inFolder((file) => {
        assert.is(functions.length, FUNCTIONS.length);
        const answers = [...variants()].map(([name, contents]) => {
          fs.writeFileSync(file(name), contents);
          return spawnSync("addr2line", ["-f", "-e", file(name), ...addresses], { encoding: "utf8" }).stdout;
        });
        const [first = "", ...others] = answers;
        // Without DWARF addr2line knows nothing of a PE, the original included.
        const lines = first.split("\n");
        const named = lines.filter((_, i) => i % 2 === 0).slice(0, -1);
        if (original.sections.some((s) => s.name === ".debug_info")) {
          assert.equal(
            named,
            functions.map(({ name }) => name),
          );
          assert.match(lines[1] ?? "", /\.c:\d+$/);
        }
        for (const other of others) assert.is(other, first);
      }),
    );
  }

  if (gdb) {
    debuggers(`${id}: gdb too`, () =>
      inFolder((file) => {
        const commands = addresses.flatMap((address) => [
          "-ex",
          `info symbol ${address}`,
          "-ex",
          `info line *${address}`,
        ]);
        const answers = [...variants()].map(([name, contents]) => {
          fs.writeFileSync(file(name), contents);
          const { stdout } = spawnSync("gdb", ["-batch", "-nx", ...commands, file(name)], { encoding: "utf8" });
          return stdout;
        });
        const [first = "", ...others] = answers;
        for (const { name } of functions) assert.match(first, new RegExp(`^${name} in section `, "m"));
        for (const other of others) assert.is(other, first);
      }),
    );
  }
}

debuggers("addr2line and gdb are there, where nothing may be left out", () => {
  assert.ok((addr2line && gdb) || process.env["CI"] !== "true", "skipped above");
});

debuggers("it has the build-id, DWARF and symbols; nothing of Xen, and no Multiboot header", () => {
  for (const { bytes } of builds(["4.20.4+39"])) {
    const full = parsed(steps(parseImage(bytes), false));
    const debug = parsed(debugFile(full));
    assert.equal(
      debug.sections.filter((s) => s.data.length !== 0 && !s.name.startsWith(".debug_")).map((s) => s.name),
      [".buildid"],
    );
    for (const [i, section] of full.sections.entries()) {
      const same = debug.sections[i];
      assert.is(same?.name, section.name);
      assert.is(same?.header.virtualAddress, section.header.virtualAddress);
      assert.is(same?.header.virtualSize, section.header.virtualSize);
      const data = same?.data ?? Buffer.of();
      if (section.name.startsWith(".debug_")) assert.is(Buffer.compare(data, section.data), 0, section.name);
    }
    assert.is(Buffer.compare(debug.symbols, full.symbols), 0);
    assert.is(debug.sections.find((s) => s.name === ".buildid")?.data.length, 0x200);
    const loads = checkLoaders(serializeImage(debug)).verdicts.filter(
      (v) => /mb[12]|multiboot/.test(v.loader) && boots(v),
    );
    assert.equal(loads, []);
  }
});

debuggers.run();

// ---

const shell = suite("strip-debug.ts");

shell("writes both files or none", async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "strip-debug-"));
  try {
    const [from, to, debug] = ["in", "out", "debug"].map((name) => path.join(folder, name)) as [string, string, string];
    fs.writeFileSync(from, sample());
    assert.is((await run(command, [from, to, "--debug-file", debug])).status, 0);
    assert.is(Buffer.compare(fs.readFileSync(debug), serializeImage(debugFile(parseImage(sample())))), 0);
    fs.writeFileSync(debug, "of an older build");
    fs.mkdirSync(path.join(folder, "out is a folder"));
    for (const nowhere of ["no/out", "out is a folder"]) {
      const failed = await run(command, [from, path.join(folder, nowhere), "--debug-file", debug]);
      assert.is(failed.status, 1);
      assert.is(fs.readFileSync(debug, "utf8"), "of an older build");
      assert.is((await run(command, [from, path.join(folder, nowhere), "--debug-file", `${debug}.new`])).status, 1);
    }
    // What cannot be taken back is written first.
    await run(command, [from, "/dev/full", "--debug-file", debug]);
    assert.is(fs.readFileSync(debug, "utf8"), "of an older build");
    assert.equal(fs.readdirSync(folder).sort(), ["debug", "in", "out", "out is a folder"]);
    fs.symlinkSync(".", path.join(folder, "link"));
    fs.symlinkSync("not yet", path.join(folder, "link to out"));
    for (const args of [
      [from, to, "--debug-file", to],
      [from, to, "--debug-file", from],
      [from, path.join(folder, "new"), "--debug-file", path.join(folder, "link", "new")],
      [from, path.join(folder, "not yet"), "--debug-file", path.join(folder, "link to out")],
      ["-", "-", "--debug-file", "-"],
    ]) {
      assert.is((await run(command, args, sample())).status, 2, args.join(" "));
    }
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
});

shell.run();
