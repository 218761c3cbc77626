// SPDX-License-Identifier: GPL-2.0-only
// add-sections on the known builds: the same bytes ahead of the steps and behind them, judged by verify and by what
// loaders hash, and compared with objcopy's documented recipe; golden/cases/add-sections-*.txt has the rules.

import { Buffer } from "node:buffer";
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import * as fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { addSections, command, payloadSections, removeSections } from "./add-sections.ts";
import type { Payload } from "./add-sections.ts";
import { alignSections } from "./align-sections.ts";
import { checkLoaders } from "./check-loaders.ts";
import { KINDS, builds, differences, once, run, sample } from "./dev/sample/run.ts";
import { emitHeader } from "./emit-header.ts";
import { boots } from "./loaders/rules.ts";
import { authenticode } from "./judge/authenticode.ts";
import { loadByFirmware } from "./judge/loads.ts";
import { bytesIn } from "./judge/memory.ts";
import { readPe } from "./judge/read.ts";
import { parseImage } from "./pe/parse.ts";
import { serializeImage } from "./pe/serialize.ts";
import { loadSpan, whyNotLinear } from "./xen/span.ts";
import { sectionEnd } from "./pe/image.ts";
import type { Image } from "./pe/image.ts";
import { relocateReloc } from "./relocate-reloc.ts";
import { verify } from "./verify.ts";

const bytesOf = (length: number, seed: number): Uint8Array => new Uint8Array(length).map((_, i) => i * seed + (i >> 7));
const SBAT = `sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md
xen.example,1,Example,xen,4.17,https://example.com
`;
/** Lengths around what layout rounds to: one byte, exactly 512, beyond SectionAlignment. */
const PAYLOADS: readonly Payload[] = [
  { name: ".config", data: Buffer.from("[global]\ndefault=xen\n\n[xen]\nkernel=vmlinuz\n") },
  { name: ".kernel", data: bytesOf(0x200001, 7) },
  { name: ".ramdisk", data: bytesOf(512, 11) },
  { name: ".ucode", data: bytesOf(1, 13) },
  { name: ".sbat", data: Buffer.from(SBAT) },
];
const differ = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) !== 0;
const steps = (image: Image, keep: boolean): Image => emitHeader(alignSections(relocateReloc(image, keep)));
const parsed = (image: Image): Image => parseImage(serializeImage(image));

const known = suite("addSections() on known builds");

for (const { id, bytes } of [{ id: "unified.pe.txt", bytes: sample("", "unified") }, ...builds()]) {
  const unified = once(() => serializeImage(addSections(parseImage(bytes), PAYLOADS)));
  // One look at each real build.
  const isSample = id === "unified.pe.txt";

  for (const keep of isSample ? [false, true] : [false]) {
    const title = `${id}, ${keep ? "kept" : "moved"}`;
    const ahead = once(() => serializeImage(steps(parseImage(unified()), keep)));

    known(`${title}: ahead of the steps and behind them, the same bytes`, () => {
      const behind = serializeImage(addSections(parsed(steps(parseImage(bytes), keep)), PAYLOADS));
      assert.is(differences(ahead(), behind).length, 0);
    });

    known(`${title}: verify has no objection, it is linear, every signer hashes the same`, () => {
      assert.equal(verify(unified(), ahead()).violations, []);
      const image = parseImage(ahead());
      assert.is(whyNotLinear(image, loadSpan(image, "test")), undefined);
      assert.equal(authenticode(ahead()).problems, []);
    });
  }

  known(`${id}: contents, exact lengths, order; nothing else changes; twice is once`, () => {
    const [before, after] = [parseImage(bytes), parseImage(unified())];
    const found = payloadSections(after);
    assert.equal(
      found.map(({ name, header }) => [name, header.virtualSize]),
      PAYLOADS.map(({ name, data }) => [name, data.length]),
    );
    found.forEach(({ data }, i) => assert.is(Buffer.compare(data, PAYLOADS[i]?.data ?? Buffer.of()), 0));
    const { sectionAlignment, sizeOfImage } = after.optional;
    assert.ok(
      found.every(
        ({ header }) =>
          header.virtualAddress % sectionAlignment === 0 && header.virtualAddress >= before.optional.sizeOfImage,
      ),
    );
    assert.is(sizeOfImage % sectionAlignment, 0);
    assert.ok(after.sections.every((s) => sectionEnd(s) <= sizeOfImage));
    assert.is(after.coff.timeDateStamp, before.coff.timeDateStamp);
    assert.equal(after.directories, before.directories);
    before.sections.forEach((section, i) => {
      const same = after.sections[i];
      assert.is(same?.name, section.name);
      assert.is(same?.header.virtualAddress, section.header.virtualAddress);
      assert.is(same?.header.virtualSize, section.header.virtualSize);
      // The debug directory's file offset follows; cases have its value.
      const changed = differences(section.data, (same?.data ?? Buffer.of()).subarray(0, section.data.length));
      assert.ok(
        changed.every(([from, to]) => section.name === ".buildid" && to - from <= 4),
        section.name,
      );
    });
    assert.equal(authenticode(unified()).problems, []);
    assert.is(differences(unified(), serializeImage(addSections(after, PAYLOADS))).length, 0, "twice");
  });

  if (!isSample) continue;
  known(`${id}: all of them removed again, or added one by one, in several runs`, () => {
    const bare = serializeImage(addSections(parseImage(bytes), []));
    const image = parseImage(unified());
    assert.is(
      differences(
        serializeImage(
          removeSections(
            image,
            PAYLOADS.map(({ name }) => name),
          ),
        ),
        bare,
      ).length,
      0,
    );
    const one = PAYLOADS.reduce((so, payload) => parsed(addSections(so, [payload])), parseImage(bytes));
    assert.is(differences(serializeImage(one), unified()).length, 0);
  });
}

known("every loader takes the unified xen.mb.efi that takes it without", () => {
  for (const { bytes } of builds(KINDS)) {
    const plain = serializeImage(steps(parseImage(bytes), false));
    const refusing = (image: Uint8Array): string[] =>
      checkLoaders(image)
        .verdicts.filter((verdict) => !boots(verdict))
        .map(({ loader }) => loader);
    const [before, after] = [refusing(plain), refusing(serializeImage(addSections(parseImage(plain), PAYLOADS)))];
    assert.equal(
      after.filter((loader) => !before.includes(loader)),
      [],
    );
  }
});

known.run();

// ---

/** One call of the command: what it takes out, and what it adds or replaces, in this order. */
interface Call {
  readonly remove: readonly string[];
  readonly add: readonly { readonly name: string; readonly size: number }[];
}

const names = fc.constantFrom(...PAYLOADS.map(({ name }) => name).filter((name) => name !== ".sbat"));
/** The sample's SectionAlignment is 2 MiB. */
const sizes = fc.constantFrom(1, 0x1fffff, 0x200000, 0x200001, 0x400001);
const calls: fc.Arbitrary<Call[]> = fc.array(
  fc.record({
    remove: fc.uniqueArray(names, { maxLength: 2 }),
    add: fc.uniqueArray(fc.record({ name: names, size: sizes }), { selector: ({ name }) => name, maxLength: 4 }),
  }),
  { minLength: 1, maxLength: 4 },
);

/** Bytes of which no part is another. */
const NOISE = bytesOf(0x400100, 7).map((byte, at) => byte ^ Math.imul(at, 0x9e3779b1));

const sequences = suite("addSections() and removeSections() in any order");

sequences(
  "firmware finds every payload whole, and Xen as it was; several in one call are as good as one by one",
  () => {
    const untouched = parseImage(sample("", "unified"));
    const bases = [untouched, steps(untouched, false), steps(untouched, true)].map((b) => parsed(addSections(b, [])));
    fc.assert(
      fc.property(fc.nat(2), calls, (which, sequence) => {
        const base = bases[which] ?? untouched;
        const own = loadByFirmware(readPe(serializeImage(base)));
        const wanted = new Map<string, Uint8Array>();
        let [image, oneByOne] = [base, base];
        for (const [i, { remove, add }] of sequence.entries()) {
          const gone = remove.filter((name) => wanted.delete(name));
          const payloads = add.map(({ name, size }, j) => ({
            name,
            data: NOISE.subarray(8 * i + j, 8 * i + j + size),
          }));
          for (const { name, data } of payloads) wanted.set(name, data);
          image = parsed(addSections(removeSections(image, gone), payloads));
          oneByOne = gone.reduce((so, name) => parsed(removeSections(so, [name])), oneByOne);
          oneByOne = payloads.reduce((so, payload) => parsed(addSections(so, [payload])), oneByOne);
        }
        const bytes = serializeImage(image);
        if (differ(bytes, serializeImage(oneByOne))) throw new Error("one by one, the bytes are others");
        // It throws where sections overlap.
        const [loaded, memory] = [readPe(bytes), loadByFirmware(readPe(bytes))];
        for (const { name, start, bytes: data } of own.slice(1))
          if (differ(bytesIn(memory, start, start + data.length, name), data)) throw new Error(`${name} changed`);
        assert.equal(
          payloadSections(image)
            .map(({ name }) => name)
            .sort(),
          [...wanted.keys()].sort(),
        );
        for (const [name, data] of wanted) {
          const header = loaded.sections.find((section) => section.name === name)?.header;
          const { virtualAddress: start = 0, virtualSize = 0 } = header ?? {};
          assert.is(virtualSize, data.length, name);
          if (differ(bytesIn(memory, start, start + data.length, name), data)) throw new Error(`${name} is spoilt`);
          assert.ok(start + data.length <= loaded.optional.sizeOfImage, name);
        }
      }),
      { seed: 20260818, numRuns: 30 },
    );
  },
);

sequences.run();

// ---

const OBJCOPY = "objcopy";
const hasObjcopy = /pei-x86-64/.test(spawnSync(OBJCOPY, ["--info"], { encoding: "utf8" }).stdout ?? "");
if (!hasObjcopy) console.log("skipped: no objcopy for pei-x86-64 (package binutils)");
const against = suite("addSections() and objcopy");

function inFolder<T>(work: (folder: string) => T): T {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "add-sections-"));
  try {
    return work(folder);
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

/** docs/misc/efi.pandoc: --add-section and --change-section-vma for each, from where .pad ends in Xen up to 4.19. */
function objcopied(bytes: Uint8Array, first: number): Uint8Array {
  return inFolder((folder) => {
    const file = (name: string): string => path.join(folder, name);
    fs.writeFileSync(file("xen.efi"), bytes);
    const { imageBase } = parseImage(bytes).optional;
    let rva = first;
    const args = PAYLOADS.flatMap(({ name, data }) => {
      fs.writeFileSync(file(name), data);
      const vma = `${name}=0x${(imageBase + BigInt(rva)).toString(16)}`;
      rva += Math.ceil(data.length / 0x200000) * 0x200000;
      return ["--add-section", `${name}=${file(name)}`, "--change-section-vma", vma];
    });
    const { status, stderr } = spawnSync(OBJCOPY, [...args, file("xen.efi"), file("unified.efi")], {
      encoding: "utf8",
    });
    assert.is(status, 0, stderr);
    return new Uint8Array(fs.readFileSync(file("unified.efi")));
  });
}

if (hasObjcopy) {
  for (const { id, bytes } of builds(["4.14.6-1", "4.17.5+72", "4.17.7+13"])) {
    against(
      `${id}: where the recipe works, the same sections: names, contents, lengths, addresses, flags, order`,
      () => {
        const pad = parseImage(bytes).sections.find((s) => s.name === ".pad");
        const [theirs, ours] = [
          objcopied(bytes, pad === undefined ? 0 : sectionEnd(pad)),
          serializeImage(addSections(parseImage(bytes), PAYLOADS)),
        ].map((b) => parseImage(b));
        const described = (image: Image | undefined): unknown[] =>
          (image?.sections ?? []).map(({ name, header: { virtualAddress, virtualSize, characteristics }, data }) => {
            // BFD writes what it knows about Xen's own sections (alignment bits are dropped); the rest is as it was.
            const own = PAYLOADS.some((p) => p.name === name);
            return {
              name,
              virtualAddress,
              virtualSize,
              flags: own ? characteristics : 0,
              data: own ? Buffer.from(data).toString("base64") : "",
            };
          });
        assert.ok(JSON.stringify(described(ours)) === JSON.stringify(described(theirs)), "sections differ");
        assert.is(ours?.coff.timeDateStamp, parseImage(bytes).coff.timeDateStamp);
      },
    );
  }

  for (const { id, bytes } of builds(["4.20.4+63"])) {
    against(
      `${id}: there is no .pad for the recipe; its sample addresses lie inside DWARF, objcopy exits 0, we refuse that`,
      () => {
        const image = parseImage(bytes);
        assert.is(
          image.sections.some((s) => s.name === ".pad"),
          false,
        );
        const broken = parseImage(objcopied(bytes, 0x1000000));
        const config = broken.sections.find((s) => s.name === ".config");
        const dwarf = broken.sections.find((s) => s.name === ".debug_info");
        const at = config?.header.virtualAddress ?? 0;
        assert.ok(dwarf !== undefined && at >= dwarf.header.virtualAddress && at < sectionEnd(dwarf));
        assert.ok(broken.coff.timeDateStamp !== 0, "and the time of day is in it");
        assert.throws(
          () => addSections(broken, [{ name: ".xsm", data: Buffer.of(1) }]),
          /\.debug_info in memory .* and section \.config in memory .* overlap/,
        );
      },
    );
  }
}

against("objcopy is there, where nothing may be left out", () => {
  assert.ok(hasObjcopy || process.env["CI"] !== "true", "no objcopy for pei-x86-64 (package binutils)");
});

against.run();

// ---

const shell = suite("add-sections.ts");

shell("--list shows names, addresses, lengths and digests, and changes nothing", async () => {
  const image = serializeImage(addSections(parseImage(sample("", "unified")), PAYLOADS.slice(0, 1)));
  const { status, stdout, stderr } = await run(command, ["-", "--list"], image);
  assert.is(status, 0);
  assert.is(stderr, "");
  const length = PAYLOADS[0]?.data.length ?? 0;
  const range = `\\[0x400000,0x${(0x400000 + length).toString(16)}\\)`;
  assert.match(
    String(stdout),
    new RegExp(`^<stdin>: 1 added section\n {2}\\.config +${range} {2}${length} bytes {2}sha256 [0-9a-f]{64}\n$`),
  );
  const none = await run(command, ["-", "--list"], sample());
  assert.is(String(none.stdout), "<stdin>: no added sections\n");
});

const WRONG_USAGE: readonly [args: string[], message: RegExp][] = [
  [["-", "-"], /^add-sections\.ts: --section or --remove is missing; see/],
  [["-", "--section", ".config=x"], /OUT is missing/],
  [["-", "-", "--section", ".config"], /--section '\.config' is not NAME=FILE/],
  [["-", "-", "--section", "=x"], /--section '=x' is not NAME=FILE/],
  [["-", "-", "--section", ".config="], /--section '\.config=' is not NAME=FILE/],
  [["-", "-", "--list"], /--list takes nothing but IN/],
  [["-", "--list", "--remove", ".config"], /--list takes nothing but IN/],
  [["-", "-", "--section", ".config=-"], /'-' is given twice, there is one standard input/],
  [["x", "-", "--section", ".config=-", "--section", ".ucode=-"], /'-' is given twice, there is one standard input/],
];

for (const [args, message] of WRONG_USAGE) {
  shell(`wrong usage: ${args.join(" ")}`, async () => {
    const { status, stderr } = await run(command, args, sample());
    assert.is(status, 2);
    assert.match(stderr, message);
    assert.is(stderr.split("\n").length, 2);
  });
}

shell("--section NAME=- is standard input; OUT is no file that goes in", async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "add-sections-"));
  try {
    const [image, config] = ["xen.efi", "xen.cfg"].map((name) => path.join(folder, name)) as [string, string];
    fs.writeFileSync(image, sample("", "unified"));
    fs.writeFileSync(config, "[global]\n");
    const { status, stdout } = await run(command, [image, "-", "--section", ".config=-"], Buffer.from("[xen]\n"));
    assert.is(status, 0);
    assert.is(Buffer.from(payloadSections(parseImage(stdout))[0]?.data ?? []).toString(), "[xen]\n");
    const { stderr } = await run(command, [image, config, "--section", `.config=${config}`]);
    assert.match(stderr, /OUT '[^']*xen\.cfg' is the same file as --section '[^']*xen\.cfg'/);
    assert.is(fs.readFileSync(config, "utf8"), "[global]\n");
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
});

shell("warns of a .kernel that no dom0 starts from, and of no other", () => {
  const bzImage = Buffer.alloc(0x400);
  bzImage.write("HdrS", 0x202);
  for (const [data, warned] of [
    [bzImage, false],
    [Buffer.from("\x7fELF\x02\x01\x01"), false],
    [Buffer.from("\x1f\x8b\x08 an initramfs"), true],
    [Buffer.from("H"), true],
  ] as const) {
    const said: string[] = [];
    addSections(parseImage(sample("", "unified")), [{ name: ".kernel", data }], (line) => said.push(line));
    assert.is(said.length, warned ? 1 : 0);
    if (warned) assert.match(said[0] ?? "", /^warning: section \.kernel is neither a bzImage nor an ELF file/);
  }
});

shell("a payload of several MiB that is no image is read to its end", async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "add-sections-"));
  try {
    const file = path.join(folder, "ramdisk");
    fs.writeFileSync(file, bytesOf(3000001, 3));
    const { status, stdout } = await run(command, ["-", "-", "--section", `.ramdisk=${file}`], sample("", "unified"));
    assert.is(status, 0);
    assert.is(payloadSections(parseImage(stdout))[0]?.header.virtualSize, 3000001);
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
});

shell("files of 2 GiB are refused before they are put together", () => {
  const huge = new Uint8Array(2 ** 30);
  const two = [
    { name: ".kernel", data: huge },
    { name: ".ramdisk", data: huge },
  ];
  assert.throws(
    () => addSections(parseImage(sample("", "unified")), two),
    /the file would have 0x8000\w+ bytes, needed at most 0x7fffffff: shim/,
  );
});

shell.run();
