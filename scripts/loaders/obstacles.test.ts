// SPDX-License-Identifier: GPL-2.0-only
// What stands in the way: what is found in the known builds, untouched and after each step, and in spoilt images; and
// what other programs say.

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { addSections } from "../add-sections.ts";
import { alignSections } from "../align-sections.ts";
import { checkLoaders, reportText } from "../check-loaders.ts";
import { ImageError } from "../cli/errors.ts";
import { KINDS } from "../dev/sample/run.ts";
import { PRESENT, VARIANTS, fileOf, load, skipped } from "../dev/sample/variants.ts";
import { Spoilt, type Spoil } from "../dev/spoilt.ts";
import { emitHeader } from "../emit-header.ts";
import { parseImage } from "../pe/parse.ts";
import { serializeImage } from "../pe/serialize.ts";
import { relocateReloc } from "../relocate-reloc.ts";
import { examine } from "./facts.ts";
import { OBSTACLES, obstacles } from "./obstacles.ts";
import { profileNamed } from "./profiles.ts";
import { askLoader } from "./rules.ts";

const MAIN_BUILD = "4.17.7+13";

// ---- our own

const found = suite("what stands in the way");

const idsOf = (bytes: Uint8Array): string[] => obstacles(examine(bytes)).map((o) => `${o.id} ${o.remedy}`);

found("knows what is wrong with an untouched xen.efi, and which step mends it", () => {
  if (!PRESENT.includes(MAIN_BUILD)) return skipped(`${MAIN_BUILD} is not there`);
  assert.equal(idsOf(load(MAIN_BUILD, "untouched")), [
    "reloc-discardable relocate-reloc",
    "not-linear align-sections",
    "header-slack align-sections",
    "size-8 align-sections",
    "no-address-tags emit-header",
    "no-addresses emit-header",
    "nx-claim emit-header",
    "nx-claim-place emit-header",
    "no-sbat add-sections",
    "write-execute null",
  ]);
  const text = reportText(checkLoaders(load(MAIN_BUILD, "untouched")));
  for (const words of [
    "Unsupported relocation type",
    "invalid arch-dependent ELF magic",
    "Not enough header space to add section",
  ]) {
    assert.ok(text.includes(words), words);
  }
  assert.match(text, /linked by GNU ld 2\.40, NX_COMPAT is claimed/);
  assert.match(text, /16 bytes free behind the section table: 0 more section headers fit/);
  assert.match(text, /base relocations in \.init: 60 HIGHLOW, 1641 DIR64/);
});

for (const build of PRESENT.filter((id) => id === "mini-xen" || KINDS.includes(id))) {
  found(`finds ${build} better after each step`, () => {
    const original = parseImage(load(build, "untouched"));
    const relocated = relocateReloc(original, false);
    const aligned = alignSections(relocated);
    const left = (image: typeof original): string[] => idsOf(serializeImage(image)).map((o) => o.replace(/^\S+ /, ""));
    assert.ok(left(original).includes("relocate-reloc"));
    assert.not.ok(left(relocated).includes("relocate-reloc"));
    assert.ok(left(relocated).includes("align-sections"));
    assert.not.ok(left(aligned).includes("align-sections"));
    assert.ok(left(aligned).includes("emit-header"));
    const finished = emitHeader(aligned);
    assert.equal([...new Set(left(finished))], ["add-sections", "null"]);
    const sbat = { name: ".sbat", data: Buffer.from("sbat,1,SBAT Version,sbat,1,-\nxen.test,1,Test,xen,1,-\n") };
    assert.equal([...new Set(left(addSections(finished, [sbat])))], ["null"]);
  });
}

const GOOD = load("mini-xen", "move");

/** What is wrong with mini-xen after the three steps, which no step can mend without a vendor's file or another Xen. */
const INHERENT = ["no-sbat add-sections", "write-execute null"];

/** One thing spoilt, and what then stands in the way. */
const SIGNS: readonly (readonly [id: string, edit: Spoil])[] = [
  ["signed --strip-signature", (s) => s.setDirectory(4, { virtualAddress: s.bytes.length - 8, size: 8 })],
  ["reloc-discardable relocate-reloc", (s) => s.setSection(".reloc", { characteristics: 0x42000040 })],
  ["stray-debug align-sections", (s) => s.setSection(".debug_info", { virtualAddress: 0xc0000000 })],
  ["not-linear align-sections", (s) => s.setSection(".rodata", { pointerToRawData: 0x202000 })],
  ["gaps align-sections", (s) => s.setSection(".debug_line", { sizeOfRawData: 0x100 })],
  ["raw-larger align-sections", (s) => s.setSection(".data", { virtualSize: 0x67, sizeOfRawData: 0x1200 })],
  ["header-slack align-sections", (s) => s.setText(s.tableEnd + 30, "!")],
  ["size-of-image align-sections", (s) => s.setOptional({ sizeOfImage: 0xa01000 })],
  ["size-8 align-sections", (s) => s.resize(s.bytes.length + 1)],
  ["no-address-tags emit-header", (s) => s.dropTag(2)],
  ["no-addresses emit-header", (s) => s.setMb1({ flags: 3 })],
  ["nx-claim emit-header", (s) => s.setOptional({ dllCharacteristics: 0x100 })],
  ["nx-claim-place emit-header", (s) => s.setOptional({ dllCharacteristics: 0x100 })],
  ["reloc-read-only emit-header", (s) => s.set32(s.data(".reloc"), 0x200010).setRelocationType(10)],
  ["checksum any step", (s) => s.setOptional({ checkSum: 1 })],
  ["no-multiboot2 null", (s) => s.set32(s.mb2(), 0)],
  ["no-multiboot1 null", (s) => s.setMb1({ magic: 0 })],
  ["sections null", (s) => s.setSection(".rodata", { virtualAddress: 0x3ff000 })],
  ["beyond-image null", (s) => s.setOptional({ sizeOfImage: 0x900000 })],
  ["alignment null", (s) => s.setOptional({ sectionAlignment: 0x1000 })],
  ["debug-directory null", (s) => s.setDirectory(6, { size: 0x300000 })],
  ["relocations null", (s) => s.setDirectory(5, { size: 0 })],
  ["reloc-read-only-code null", (s) => s.set32(s.data(".reloc"), 0x210000).setRelocationType(10)],
];

found("finds nothing in the way of mini-xen but what no step of ours can mend", () => {
  assert.equal(idsOf(GOOD), INHERENT);
});

for (const [id, edit] of SIGNS) {
  found(`sees ${id.replace(/ .*/, "")}`, () => {
    const ids = idsOf(edit(new Spoilt(GOOD)).bytes);
    assert.ok(ids.includes(id), ids.join(", "));
  });
}

found("sees each obstacle somewhere, in the order in which the steps remove them", () => {
  const seen = [...SIGNS.map(([id]) => id), ...INHERENT];
  assert.equal(OBSTACLES.map(([id, remedy]) => `${id} ${remedy}`).sort(), seen.sort());
  const order = OBSTACLES.map(([, remedy]) => remedy);
  assert.equal(
    order.filter((remedy, i) => remedy !== order[i - 1]),
    [...new Set(order)],
  );
});

found("sees a debug section that the linker put far out, for which firmware refuses the image", () => {
  const orphan = new Spoilt(GOOD).setSection(".debug_info", { virtualAddress: 0xc0000000 }).bytes;
  assert.ok(idsOf(orphan).includes("stray-debug align-sections"));
  const edk2 = askLoader(profileNamed("edk2") ?? (assert.unreachable() as never), examine(orphan));
  assert.equal([edk2.outcome, edk2.shows], ["refuses", "Load Error"]);
});

found("sees a Xen that was built without multiboot", () => {
  const bytes = load("mini-xen", "untouched");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at < 32768; at += 4) {
    if ([0x1badb002, 0xe85250d6].includes(view.getUint32(at, true))) view.setUint32(at, 0, true);
  }
  assert.ok(idsOf(bytes).includes("no-multiboot2 null"));
  assert.match(reportText(checkLoaders(bytes)), /discard multiboot and PVH support for PE binary/);
});

found("throws nothing but ImageErrors, whatever it is given", () => {
  const good = load("mini-xen", "untouched");
  let seed = 4711;
  const random = (limit: number): number => (seed = (seed * 1103515245 + 12345) % 2 ** 31) % limit;
  let judged = 0;
  for (let i = 0; i < 600; i++) {
    const bytes = good.slice();
    for (let n = 0; n <= random(3); n++) bytes[random(0x500)] = random(256);
    try {
      const report = checkLoaders(bytes);
      judged++;
      if (i % 50 === 0) reportText(report);
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
    }
  }
  assert.ok(judged > 150, `only ${judged} could be judged`);
});

found.run();

// ---- others

const judges = suite("other programs");

function installed(name: string): boolean {
  return spawnSync(name, ["--version"]).error === undefined;
}

judges("grub-file finds the headers that the profiles find", () => {
  if (!installed("grub-file")) return skipped("no grub-file");
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), "check-loaders-test-"));
  try {
    for (const [option, loader, rule] of [
      ["--is-x86-multiboot2", "grub-mb2", "grub-mb2-header"],
      ["--is-x86-multiboot", "grub-mb1", "grub-mb1-header"],
    ]) {
      for (const variant of [...VARIANTS, "no headers"] as const) {
        const bytes =
          variant === "no headers" ? load("mini-xen", "untouched").fill(0, 0x480, 0x600) : load("mini-xen", variant);
        const file = path.join(directory, "xen.efi");
        fs.writeFileSync(file, bytes);
        const found = checkLoaders(bytes)
          .verdicts.find((v) => v.loader === loader)
          ?.findings.every((f) => f.rule !== rule);
        assert.is(spawnSync("grub-file", [option ?? "", file]).status === 0, found, `${option} ${variant}`);
      }
    }
  } finally {
    fs.rmSync(directory, { recursive: true, force: true });
  }
});

judges("objdump counts the same base relocations", () => {
  if (!installed("objdump")) return skipped("no objdump");
  for (const build of PRESENT) {
    const { stdout, status } = spawnSync("objdump", ["-p", fileOf(build)], { encoding: "utf8", maxBuffer: 1 << 26 });
    assert.is(status, 0, build);
    const counted = (type: string): number => stdout.split("\n").filter((line) => line.endsWith(` ${type}`)).length;
    const { traits } = checkLoaders(load(build, "untouched"));
    const ours = Object.values(traits?.relocations ?? {});
    for (const type of ["DIR64", "HIGHLOW"]) {
      assert.is(
        ours.reduce((sum, types) => sum + (types[type] ?? 0), 0),
        counted(type),
        `${build} ${type}`,
      );
    }
    const { linker, nxCompat } = traits ?? (assert.unreachable() as never);
    const [, major, minor] = [/^MajorLinkerVersion\s+(\d+)/m, /^MinorLinkerVersion\s+(\d+)/m].reduce<string[]>(
      (all, p) => [...all, p.exec(stdout)?.[1] ?? ""],
      [""],
    );
    assert.is(linker, `${major}.${minor}`);
    assert.is(nxCompat, (Number(`0x${/^DllCharacteristics\s+([0-9a-f]+)/m.exec(stdout)?.[1]}`) & 0x100) !== 0);
  }
});

judges.run();
