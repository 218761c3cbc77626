// SPDX-License-Identifier: GPL-2.0-only
// inspect on good and odd images, its JSON against its text, and both against objdump, which is not our code.

import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { runCommand } from "./cli/cli.ts";
import type { Io } from "./cli/cli.ts";
import { hex } from "./cli/numbers.ts";
import { PLACES, STEPS, VARIANTS, goldenName, runChain } from "./dev/golden/cases.ts";
import { knownBuilds } from "./dev/known-builds.ts";
import { MINI_XEN as MINI, TOP } from "./dev/places.ts";
import { makeSample } from "./dev/sample/text.ts";
import { command, inspectText } from "./inspect.ts";
import { inspectFacts } from "./show/inspect-facts.ts";

/** The small sample, with lines of samples/README.md's format that change it. */
function sample(...lines: string[]): Uint8Array {
  return makeSample(["from tiny.pe.txt", ...lines].join("\n"), (name) =>
    fs.readFileSync(path.join(TOP, "samples", name), "utf8"),
  );
}

/** Lines that put another base relocation table in the place of the generated one. */
function relocations(line: string, size = 12): string[] {
  return [
    "in .reloc",
    "clear",
    line,
    "set directory.relocation.virtualAddress 0x20c000",
    `set directory.relocation.size ${size}`,
  ];
}

/** Columns are as wide as their widest cell, which is not what these tests are about. */
function squeezed(text: string): string {
  return text.replace(/ +/g, " ");
}

// ---- inspectText()

const text = suite("inspectText()");

/** [what, lines that change tiny.pe.txt, what the text must have, what it must not have] */
const ODD: readonly (readonly [
  what: string,
  lines: readonly string[],
  present: readonly string[],
  absent?: readonly string[],
])[] = [
  [
    "a good image",
    [],
    [
      "linear no: section .text's raw data is at",
      "load span [0x200000,0x208234), .bss at 0x209000, zeroed up to 0x400000",
      ".data.read_mostly (/4)",
      "signed no",
      "Machine 0x8664 x86-64",
      "DllCharacteristics 0x100 NX_COMPAT",
      "ImageBase 0xffff82d040000000",
      "5 Base Relocation Table [0x20c000,",
      "0x20c000 .reloc external __base_relocs_start",
    ],
    ["problem", "wrong", "at file offset none"],
  ],
  [
    "references to the table: the pair, and _end elsewhere",
    [],
    ["lea of its start 0x200110 0x202001 0x202082", "lea of its end 0x20208c"],
  ],
  ["a wrong CheckSum", ["patch 0x200: ff"], ["CheckSum 0x", ", wrong: 0x"]],
  [
    "a signature",
    ["certificate 0x100"],
    ["signed yes", "4 Certificate Table [0x", "certificate table", "problem the image is signed"],
  ],
  [
    "no .bss",
    ["set section .bss.name .bsz", "in .data", "clear", "symbol counter", "fill 0 0x20"],
    ["load span none: there is no section .bss"],
    ["linear"],
  ],
  [
    "sections that overlap in memory",
    ["set section .rodata.virtualSize 0x2000"],
    ["problem section .rodata in memory", "overlap"],
  ],
  ["sections that overlap in the file", ["set section .rodata.pointerToRawData 0x400"], [".rodata, overlapping"]],
  [
    "a section beyond SizeOfImage",
    ["set section .debug_info.virtualAddress 0xc0000000"],
    ["problem section .debug_info ends at 0xc0000033, beyond SizeOfImage 0x20e000"],
  ],
  [
    "a relocation block that is too small",
    relocations("hex 00002000 04000000", 8),
    [
      "problem block at RVA 0x20c000 is SizeOfBlock 0x4",
      "load span none: Cannot read the base relocation table: block at",
    ],
  ],
  ["an unknown relocation type", relocations("block 0x200000 5:0x10 0:0"), ["ABSOLUTE 1, type 5 1", "has type 5"]],
  [
    "a relocation table that is longer than its section",
    ["set directory.relocation.size 0x2000"],
    ["problem of the table's 0x2000 bytes, 0x"],
  ],
  [
    "a relocation table that claims 4 GiB",
    ["set directory.relocation.size 0xfffffff0", "set section .reloc.virtualSize 0xf0000000"],
    ["problem of the table's 0xfffffff0 bytes, 0x"],
  ],
  [
    "base relocations that come twice",
    relocations("block 0x200000 10:0x18 10:0x10 10:0x10 10:0x18", 16),
    ["repeated 2 base relocations come twice, the first for RVA 0x200010: a PE loader relocates that twice"],
  ],
  ["no relocation table", ["set directory.relocation.size 0"], ["entries 0", "problem data directory 5 is empty"]],
  ["a relocation outside of all sections", relocations("block 0x9000000 10:0 0:0"), ["targets no section 1"]],
  [
    "no Multiboot headers",
    ["in .text 0x8", "fill 0x90 to 0xa0"],
    ["Multiboot1 header: none\n", "Multiboot2 header: none\n"],
  ],
  ["Multiboot2 tags that do not add up", ["in .text 0x2c", "hex ff ff"], ["problem: the tag at file offset 0x"]],
  [
    "Multiboot headers too far into the file",
    ["linear 0x9000"],
    [
      "RVA 0x200008 in .text: too far, loaders look at the first 8 KiB of the file",
      "too far, loaders look at the first 32 KiB of the file",
    ],
  ],
  [
    "a Multiboot1 header with addresses and a video mode",
    ["in .text 0x8", "mb1 0x10004 1 2 3 4 5 0 80 25 0", "fill 0x90 to 0xa0"],
    [
      "flags 0x10004 VIDEO_MODE AOUT_KLUDGE",
      "header_addr 0x1\n",
      "load_addr 0x2\n",
      "load_end_addr 0x3\n",
      "bss_end_addr 0x4\n",
      "entry_addr 0x5\n",
      "mode_type 0x0\n",
      "width 0x50\n",
      "height 0x19\n",
      "depth 0x0\n",
    ],
  ],
  [
    "every Multiboot2 tag, field by field",
    [],
    [
      "INFORMATION_REQUEST BASIC_MEMINFO MMAP",
      "MODULE_ALIGN",
      "RELOCATABLE min_addr=0x200000 max_addr=0xffffffff align=0x200000 preference=0x2",
      "4 0x1 OPTIONAL 0xc CONSOLE_FLAGS console_flags=0x3",
      "FRAMEBUFFER width=0x0 height=0x0 depth=0x0",
      "EFI_BS",
      "ENTRY_ADDRESS_EFI64 entry_addr=0x200110",
      "0 0x0 0x8 END",
      "behind it at RVA 0x2000a0: 0x60 bytes of padding, 0x90",
    ],
  ],
  [
    "no padding behind the Multiboot2 header",
    ["in .text 0xa0", "hex 0f"],
    ["behind it at RVA 0x2000a0: no padding, 0xf"],
  ],
  [
    "a debug entry and its build-id",
    [],
    ["Debug directory entry 1: CODEVIEW", "build-id 000102030405060708090a0b0c0d0e0f"],
    ["wrong"],
  ],
  [
    "a debug entry that points elsewhere",
    ["set directory.debug.size 0x1c", "in .buildid 0x24", "debug 2 codeview 0x18 0x123"],
    ["PointerToRawData 0x123 wrong: AddressOfRawData is at 0x"],
  ],
  ["no debug directory", ["set directory.debug.size 0"], ["Debug directory: none\n"]],
  ["no symbols", ["remove symbols"], ["Symbols: none\n"]],
  ["bytes behind everything", ["append 01 02"], ["trailing\n"], ["zeros"]],
  ["zeros behind everything", ["append 00 00"], ["0x2 zeros trailing\n"]],
  ["COFF relocations of a section", ["set section .text.pointerToRelocations 0x123"], ["pointerToRelocations=0x123"]],
  ["a name with an escape sequence", ["set section .debug_info.name .a\x1b[2J"], [".a\\x1b[2J"], ["\x1b"]],
];

for (const [what, lines, present, absent = []] of ODD) {
  text(`shows ${what}`, () => {
    const shown = squeezed(inspectText(sample(...lines)));
    for (const part of present) assert.ok(shown.includes(part), `${what}: '${part}' is not in the text`);
    for (const part of absent) assert.not.ok(shown.includes(part), `${what}: '${part}' is in the text`);
  });
}

text("is the same for the same bytes, and fits a file: no carriage return, no blank at a line's end", () => {
  const bytes = fs.readFileSync(MINI);
  const shown = inspectText(bytes);
  assert.is(inspectText(new Uint8Array(bytes)), shown);
  assert.not.match(shown, /\r| \n|\t/);
  assert.match(shown, /^File\n/);
  assert.match(shown, /[^\n]\n$/);
});

text.run();

// ---- inspectFacts()

const facts = suite("inspectFacts()");

facts("JSON gives the same facts, with 64-bit fields as strings", async () => {
  const { out } = await run([MINI, "--json"]);
  const parsed = JSON.parse(out) as ReturnType<typeof inspectFacts>;
  assert.equal(parsed, inspectFacts(fs.readFileSync(MINI)));
  assert.is(parsed.optional.imageBase, "0xffff82d040000000");
});

facts("text and JSON say the same", () => {
  const bytes = sample("certificate 0x100");
  const { file, sections, optional, symbols, regions, relocations, multiboot2, debug } = inspectFacts(bytes);
  const shown = squeezed(inspectText(bytes));
  const parts = [
    file.sha256,
    `CheckSum ${hex(Number(optional.checkSum))}\n`,
    ...sections.map((s) => `[${hex(s.memory.start)},${hex(s.memory.end)}) ${hex(s.memory.end - s.memory.start)}`),
    ...symbols.map((s) => `${hex(s.rva)} ${s.section} ${s.external ? "external" : "static"} ${s.name}\n`),
    ...regions.map(
      (r) => `[${hex(r.start)},${hex(r.end)}) ${hex(r.end - r.start)} ${r.zeros ? "zeros" : r.sha256} ${r.what}\n`,
    ),
    ...relocations.blocks.map((b) => `${hex(b.page)} ${hex(b.size)} `),
    ...(multiboot2?.tags ?? []).map((t) => `+${hex(t.offset)} ${t.type} `),
    ...debug.map((d) => `PointerToRawData ${hex(d.pointerToRawData)}`),
  ];
  assert.ok(parts.length > 40, "too few facts to compare");
  for (const part of parts) assert.ok(shown.includes(part), `'${part}' is not in the text`);
});

for (const lines of [[], ["append 01 02 03"], ["certificate 0x40"], ["remove symbols"], ["linear 0x1000"]]) {
  facts(`the parts cover the file: ${lines.join() || "as linked"}`, () => {
    const bytes = sample(...lines);
    let end = 0;
    for (const region of inspectFacts(bytes).regions) {
      assert.is(region.start, end, `before ${region.what}`);
      end = region.end;
    }
    assert.is(end, bytes.length);
  });
}

facts.run();

// ---- the command

interface Run {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

async function run(args: readonly string[], stdin: Uint8Array = new Uint8Array()): Promise<Run> {
  const printed = { out: "", err: "" };
  const io: Io = {
    stdin: () => stdin,
    stdout: (bytes) => void (printed.out += typeof bytes === "string" ? bytes : Buffer.from(bytes).toString()),
    stderr: (line) => void (printed.err += line),
  };
  return { status: await runCommand(command, args, io), ...printed };
}

const cli = suite("inspect.ts");

cli("reads a file or standard input", async () => {
  const bytes = fs.readFileSync(MINI);
  assert.equal(await run([MINI]), { status: 0, out: inspectText(bytes), err: "" });
  assert.equal(await run(["-"], bytes), { status: 0, out: inspectText(bytes), err: "" });
});

/** [what, arguments, standard input, status, standard error] */
const REFUSED: readonly (readonly [string, readonly string[], Uint8Array, number, RegExp])[] = [
  [
    "what is no PE",
    ["-"],
    Buffer.from("\x7fELF"),
    1,
    /^<stdin>: Cannot read the image: offset 0 is 7f454c46 \(hex\), needed "MZ": not a PE image, but ELF, [^\n]+\n$/,
  ],
  ["nothing", ["-"], Buffer.alloc(0), 1, /^<stdin>: Cannot read the image: offset 0 is empty, .*\n$/],
  [
    "a section outside the file",
    ["-"],
    sample("truncate 0x400"),
    1,
    /^<stdin>: Cannot read the image: .* the file ends at 0x400\n$/,
  ],
  ["the same as JSON", ["-", "--json"], Buffer.from("MZ"), 1, /^<stdin>: Cannot read the image: .*\n$/],
  [
    "a missing file",
    ["/nowhere/xen.efi"],
    Buffer.alloc(0),
    1,
    /^\/nowhere\/xen\.efi: Cannot read: no such file or directory\n$/,
  ],
  ["no argument", [], Buffer.alloc(0), 2, /^inspect\.ts: FILE is missing; see inspect\.ts --help\n$/],
];

for (const [what, args, stdin, status, err] of REFUSED) {
  cli(`refuses ${what} in one line`, async () => {
    const found = await run(args, stdin);
    assert.is(found.status, status);
    assert.is(found.out, "");
    assert.match(found.err, err);
  });
}

cli.run();

// ---- objdump

/** What both say of an image. */
interface Judged {
  readonly sections: readonly string[];
  readonly fields: Readonly<Record<string, string>>;
  readonly directories: readonly string[];
  readonly relocations: readonly string[];
  readonly debug: readonly string[];
}

/** objdump's labels for the header fields, where they differ from the specification's. */
const LABELS: Readonly<Record<string, string>> = {
  MajorOSystemVersion: "MajorOperatingSystemVersion",
  MinorOSystemVersion: "MinorOperatingSystemVersion",
  Win32Version: "Win32VersionValue",
};
/** GNU objdump prints these in decimal, all others in hexadecimal. */
const DECIMAL = /^M(ajor|inor)/;

function objdump(...args: string[]): string {
  return execFileSync("objdump", args, { encoding: "utf8", maxBuffer: 1 << 28, env: { ...process.env, LC_ALL: "C" } });
}

function objdumpSays(file: string): Judged {
  const headers = objdump("-h", file).matchAll(
    /^ +\d+ (\S+) +([0-9a-f]{8}) +([0-9a-f]{16}) +[0-9a-f]{16} +([0-9a-f]{8}) /gm,
  );
  const all = objdump("-p", file);
  const number = (digits: string | undefined, base = 16): string =>
    BigInt(base === 16 ? `0x${digits}` : `${digits}`).toString();
  const fields = [...all.matchAll(/^([A-Z]\w+)\t+([0-9a-f]+)(?:\t|$)/gm)].map(([, label = "", value]) => [
    LABELS[label] ?? label,
    number(value, DECIMAL.test(label) ? 10 : 16),
  ]);
  return {
    sections: [...headers].map(
      ([, name, size, vma, offset]) => `${name} ${number(size)} ${number(vma)} ${number(offset)}`,
    ),
    fields: Object.fromEntries([
      ["Characteristics", number(/^Characteristics 0x([0-9a-f]+)$/m.exec(all)?.[1])],
      ...fields,
    ]),
    directories: [...all.matchAll(/^Entry [0-9a-f] ([0-9a-f]{16}) ([0-9a-f]{8}) /gm)].map(
      ([, address, size]) => `${number(address)} ${number(size)}`,
    ),
    relocations: all
      .split(/^(?=Virtual Address: )/m)
      .slice(1)
      .map((block) => {
        const [, page, size] = /^Virtual Address: ([0-9a-f]+) Chunk size (\d+)/.exec(block) ?? [];
        const types = ["ABSOLUTE", "HIGHLOW", "DIR64"].map(
          (type) => [...block.matchAll(new RegExp(` ${type}$`, "gm"))].length,
        );
        return `${number(page)} ${size} ${types.join(" ")}`;
      }),
    debug: [...all.matchAll(/^ +(\d+) +\w+ ([0-9a-f]{8}) ([0-9a-f]{8}) ([0-9a-f]{8})$/gm)].map(([, type, ...rest]) =>
      [type, ...rest.map((digits) => number(digits))].join(" "),
    ),
  };
}

/** The same from inspect, in objdump's terms: it adds ImageBase to addresses, and shows of a section what is data. */
function inspectSays(bytes: Uint8Array): Judged {
  const { sections, coff, optional, directories, relocations, debug } = inspectFacts(bytes);
  const fields = Object.entries({ characteristics: coff.characteristics ?? 0, ...optional });
  return {
    sections: sections.map(({ name, header, memory, file }) => {
      const size = Math.min(
        Number(header.virtualSize),
        file === null ? Number(header.virtualSize) : file.end - file.start,
      );
      return `${name} ${size} ${BigInt(optional.imageBase ?? 0) + BigInt(memory.start)} ${file?.start ?? 0}`;
    }),
    fields: Object.fromEntries(
      fields.map(([name, value]) => [name.charAt(0).toUpperCase() + name.slice(1), BigInt(value).toString()]),
    ),
    directories: directories.map(({ virtualAddress, size }) => `${virtualAddress} ${size}`),
    relocations: relocations.blocks.map(
      ({ page, size, types }) => `${page} ${size} ${types.ABSOLUTE ?? 0} ${types.HIGHLOW ?? 0} ${types.DIR64 ?? 0}`,
    ),
    debug: debug.map((d) => `${d.type} ${d.sizeOfData} ${d.addressOfRawData} ${d.pointerToRawData}`),
  };
}

const judge = suite("inspect and objdump agree");
const installed =
  fs.existsSync("/usr/bin/objdump") ||
  (process.env.PATH ?? "").split(path.delimiter).some((directory) => fs.existsSync(path.join(directory, "objdump")));
if (!installed) console.log("skipped: no objdump (package binutils)");
const judged: (name: string, work: () => void) => void = installed ? judge : judge.skip;

function compare(file: string): void {
  const [theirs, ours] = [objdumpSays(file), inspectSays(fs.readFileSync(file))];
  assert.ok(
    theirs.sections.length > 5 && theirs.relocations.length > 3 && Object.keys(theirs.fields).length >= 28,
    "objdump's output was not understood",
  );
  assert.equal(ours.sections, theirs.sections);
  assert.equal(ours.fields, theirs.fields);
  assert.equal(ours.directories, theirs.directories);
  assert.equal(ours.relocations, theirs.relocations);
  assert.equal(ours.debug, theirs.debug);
}

judged("on mini-xen", () => compare(MINI));

for (const variant of VARIANTS) {
  judged(`on what the steps make of mini-xen, RELOC=${variant}`, () => {
    fs.mkdirSync(PLACES.actual, { recursive: true });
    for (const { step, bytes } of runChain(fs.readFileSync(MINI), variant)) {
      const file = path.join(PLACES.actual, `${goldenName({ name: "objdump" }, variant, step)}.efi`);
      fs.writeFileSync(file, bytes ?? assert.unreachable(`${step} refused`) ?? "");
      compare(file);
      fs.rmSync(file);
    }
    assert.is(STEPS.length, 3);
  });
}

for (const { id } of knownBuilds) {
  const file = path.join(PLACES.samples, "xen", id, "xen.efi");
  const there = fs.existsSync(file);
  if (!there) console.log(`skipped: objdump on ${id}: samples/xen/${id}/xen.efi is not there (make fetch-xen)`);
  (there ? judged : judge.skip)(`on Xen ${id}`, () => compare(file));
}

judge.run();
