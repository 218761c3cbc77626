// SPDX-License-Identifier: GPL-2.0-only
// Every rule of every loader profile trips when its one thing is wrong, and no other does that is not named in the
// trial: a good image, mini-xen after the three steps, is spoilt in one place at a time.

import * as fs from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { alignSections } from "../align-sections.ts";
import { MINI_XEN as MINI } from "../dev/places.ts";
import { Spoilt, type Spoil } from "../dev/spoilt.ts";
import { emitHeader } from "../emit-header.ts";
import { parseImage } from "../pe/parse.ts";
import { onBytes } from "../dev/on-bytes.ts";
import { relocateReloc } from "../relocate-reloc.ts";
import { examine } from "./facts.ts";
import { PROFILES } from "./profiles.ts";
import { askLoader, boots, reasonOf } from "./rules.ts";
import { PAYLOADS, efiTrials } from "./trials-efi.ts";
import { multibootTrials } from "./trials-multiboot.ts";
import { relocationTrials } from "./trials-relocations.ts";

const GOOD = onBytes((image) => emitHeader(alignSections(relocateReloc(image, false))))(
  new Uint8Array(fs.readFileSync(MINI)),
);

/** New findings over all profiles, by profile. */
function findings(edit: Spoil): Map<string, string[]> {
  const evidence = examine(edit(new Spoilt(GOOD)).bytes);
  return new Map(PROFILES.map((p) => [p.name, askLoader(p, evidence).findings.map((f) => f.rule)]));
}

const before = findings((s) => s);

const { sizeOfHeaders, sizeOfImage } = parseImage(GOOD).optional;
const TRIALS = [
  ...efiTrials(GOOD, sizeOfHeaders, sizeOfImage),
  ...relocationTrials(sizeOfImage),
  ...multibootTrials(GOOD),
];

/** What happens to any image, or to any that comes so far: nothing about it could be spoilt. */
const INHERENT = ["u-boot-observed", "grub-modules", "freebsd-mb1-elf", "freebsd-mb2-elf"];

const rules = suite("rules of the profiles");

rules("the good image is good", () => {
  const refused = PROFILES.filter((p) => p.needed && !boots(askLoader(p, examine(GOOD)))).map((p) => p.name);
  assert.equal(refused, []);
});

const words = (text: string): string[] => text.split(/\s+/).filter((word) => word !== "");

/** Rules that some trial has decide a profile's verdict, or go away. */
const decisive = new Set<string>();

for (const { what, edit, trips, cures = "" } of TRIALS) {
  rules(what, () => {
    const tripped = new Set<string>();
    const cured = new Set<string>();
    for (const [name, after] of findings(edit)) {
      const old = before.get(name) ?? [];
      const added = after.filter((id) => !old.includes(id));
      for (const id of added) tripped.add(id);
      for (const id of old.filter((was) => !after.includes(was))) cured.add(id);
      if (added[0] !== undefined) decisive.add(added[0]);
    }
    for (const id of cured) decisive.add(id);
    assert.equal([...tripped].sort(), words(trips).sort());
    assert.equal([...cured].sort(), words(cures).sort());
  });
}

rules("of sections that overlap, the one that a loader comes to last stays", () => {
  const evidence = examine(new Spoilt(GOOD).addSection(PAYLOADS[0]).addSection(PAYLOADS[1]).bytes);
  for (const { name, rules: table } of PROFILES) {
    const why = table.flatMap(({ id, check }) => (id.endsWith("-overlap") ? [reasonOf(check, evidence)] : []));
    const [ramdisk, ucode] = [".ramdisk at RVA [0x935000,0x935180)", ".ucode at RVA [0x935080,0x935180)"];
    const [kept, lost] = name === "u-boot-efi" ? [ramdisk, ucode] : [ucode, ramdisk];
    for (const text of why) assert.is(text, `section ${kept} is loaded over section ${lost}`, name);
  }
});

rules("each loader of PE images has a rule for sections that overlap", () => {
  const without = PROFILES.filter(({ rules: table }) => !table.some(({ id }) => id.endsWith("-overlap")));
  assert.equal(
    without.filter(({ way }) => !way.startsWith("multiboot")).map(({ name }) => name),
    ["xen"],
  );
});

rules("each rule has a trial of its own", () => {
  const all = new Set(PROFILES.flatMap((p) => p.rules.map((rule) => rule.id)));
  assert.equal([...all].filter((id) => !decisive.has(id)).sort(), [...INHERENT].sort());
});

rules("each rule names its source and says something of its own", () => {
  for (const { rules: table } of PROFILES) {
    for (const { id, source, says } of table) {
      assert.match(source, /\S+ \S+|observed/, id);
      assert.not.match(says, /\n|^\s/, id);
    }
  }
});

rules("rules of one id find the same in every image, whichever loader asks", () => {
  for (const { what, edit } of TRIALS) {
    const evidence = examine(edit(new Spoilt(GOOD)).bytes);
    const found = new Map<string, string>();
    for (const { way, rules: table } of PROFILES) {
      for (const { id, kind, check } of table) {
        // The two versions of Multiboot have a header each.
        const key = way.startsWith("multiboot") ? `${id} ${way}` : id;
        const answer = `${kind}: ${reasonOf(check, evidence) ?? "nothing"}`;
        assert.is(answer, found.get(key) ?? answer, `${what}: ${id}`);
        found.set(key, answer);
      }
    }
  }
});

rules.run();
