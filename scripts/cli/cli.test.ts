// SPDX-License-Identifier: GPL-2.0-only
// Every script as a command: arguments, streams, exit status, files. Most of it in this process; a few start the script.

import { Buffer } from "node:buffer";
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { command as addSections } from "../add-sections.ts";
import { alignSections, command as align } from "../align-sections.ts";
import { commandName, realIo, writeOutput, type Command } from "./cli.ts";
import { command as makeSample } from "../dev/make-sample.ts";
import { TOP } from "../dev/places.ts";
import { run, sample } from "../dev/sample/run.ts";
import { command as emit, emitHeader } from "../emit-header.ts";
import { command as inspect } from "../inspect.ts";
import { command as mbEfi } from "../mb-efi.ts";
import { parseImage } from "../pe/parse.ts";
import { serializeImage } from "../pe/serialize.ts";
import { command as relocate, relocateReloc } from "../relocate-reloc.ts";
import { command as verify } from "../verify.ts";

const ORIGINAL = sample();
const RELOCATED = serializeImage(relocateReloc(parseImage(ORIGINAL), false));
const ALIGNED = serializeImage(alignSections(parseImage(RELOCATED)));
const RESULT = serializeImage(emitHeader(parseImage(ALIGNED)));

/** The scripts IN to OUT, with an IN that each takes, and what it makes of it. */
const TRANSFORMS: readonly (readonly [Command, Uint8Array, Uint8Array])[] = [
  [relocate, ORIGINAL, RELOCATED],
  [align, RELOCATED, ALIGNED],
  [emit, ALIGNED, RESULT],
  [mbEfi, ORIGINAL, RESULT],
];
const ALL: readonly Command[] = [relocate, align, emit, mbEfi, inspect, verify, makeSample];
const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** A folder of its own, which a test must leave with these files and no others. */
async function inFolder(
  files: Record<string, Uint8Array | string>,
  left: readonly string[],
  work: (file: (name: string) => string) => Promise<void>,
): Promise<void> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "cli-"));
  const file = (name: string): string => path.join(folder, name);
  try {
    for (const [name, content] of Object.entries(files)) fs.writeFileSync(file(name), content);
    await work(file);
    assert.is(fs.readdirSync(folder).sort().join(" "), [...left].sort().join(" "), "files left");
    if (files["IN"] !== undefined)
      assert.ok(same(fs.readFileSync(file("IN")), Buffer.from(files["IN"] as Uint8Array)), "IN was changed");
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

/** Exit status, and exactly this on standard error; nothing on standard output. */
async function fails(
  command: Command,
  args: readonly string[],
  status: number,
  stderr: string | RegExp,
): Promise<void> {
  const result = await run(command, args);
  if (typeof stderr === "string") assert.is(result.stderr, stderr);
  else assert.match(result.stderr, stderr);
  assert.is(result.status, status);
  assert.is(result.stdout.length, 0, "standard output");
}

// ---

const usage = suite("usage");

for (const command of ALL) {
  const name = commandName(command);

  usage(`${name} --help: on standard output, status 0, names every option`, async () => {
    const { status, stdout, stderr } = await run(command, ["--help"]);
    assert.is(status, 0);
    assert.is(stderr, "");
    assert.ok(stdout.toString().startsWith(`Usage: ${name} `));
    assert.match(stdout.toString(), /Exit status: 0 /);
    for (const option of ["help", ...Object.keys(command.options)])
      assert.ok(stdout.includes(`  --${option} `), option);
    assert.is(
      stdout
        .toString()
        .split("\n")
        .filter((line) => line.length > 120)
        .join("\n"),
      "",
      "long lines",
    );
    assert.is((await run(command, ["--help", "IN"])).status, 0, "with arguments");
  });

  usage(`${name}: wrong usage is one line and status 2`, async () => {
    const enough = command.positionals.map(() => "/nowhere");
    await fails(command, enough.slice(1), 2, `${name}: ${command.positionals.at(-1)} is missing; see ${name} --help\n`);
    await fails(command, [...enough, "more"], 2, `${name}: Unexpected argument 'more'; see ${name} --help\n`);
    await fails(command, [...enough, "--wrong"], 2, `${name}: Unknown option '--wrong'; see ${name} --help\n`);
    await fails(command, [...enough, "-x"], 2, `${name}: Unknown option '-x'; see ${name} --help\n`);
    await fails(
      command,
      [...enough, "--help=yes"],
      2,
      new RegExp(`^${name}: [^\n]*'--help'[^\n]*; see ${name} --help\n$`),
    );
  });
}

usage("an option's argument is refused", async () => {
  await fails(
    relocate,
    ["a", "b", "--keep=yes"],
    2,
    /^relocate-reloc\.ts: [^\n]*'--keep'[^\n]*; see relocate-reloc\.ts --help\n$/,
  );
});

usage("'--' ends the options", async () => {
  await fails(relocate, ["--", "--keep", "b"], 1, "--keep: Cannot read: no such file or directory\n");
});

usage.run();

// ---

const files = suite("files");

for (const [command, input, expected] of TRANSFORMS) {
  const name = commandName(command);

  files(`${name}: OUT appears, IN stays`, () =>
    inFolder({ IN: input }, ["IN", "OUT"], async (file) => {
      const before = fs.statSync(file("IN"));
      assert.is((await run(command, [file("IN"), file("OUT")])).status, 0);
      assert.ok(same(fs.readFileSync(file("OUT")), expected));
      assert.is(fs.statSync(file("IN")).mtimeMs, before.mtimeMs);
    }),
  );

  files(`${name}: an OUT that is there is replaced and keeps its mode`, () =>
    inFolder({ IN: input, OUT: "old" }, ["IN", "OUT"], async (file) => {
      fs.chmodSync(file("OUT"), 0o640);
      const { ino } = fs.statSync(file("OUT"));
      assert.is((await run(command, [file("IN"), file("OUT")])).status, 0);
      assert.ok(same(fs.readFileSync(file("OUT")), expected));
      assert.is(fs.statSync(file("OUT")).mode & 0o777, 0o640);
      assert.is.not(fs.statSync(file("OUT")).ino, ino, "written in place");
    }),
  );

  files(`${name}: a failure leaves no OUT, or the one that was there`, async () => {
    await inFolder({ IN: "no image" }, ["IN"], (file) =>
      fails(
        command,
        [file("IN"), file("OUT")],
        1,
        `${file("IN")}: Cannot read the image: offset 0 is 6e6f2069 (hex), needed "MZ": not a PE image\n`,
      ),
    );
    await inFolder({ IN: "no image", OUT: "old" }, ["IN", "OUT"], async (file) => {
      assert.is((await run(command, [file("IN"), file("OUT")])).status, 1);
      assert.is(fs.readFileSync(file("OUT"), "utf8"), "old");
    });
  });

  files(`${name}: "-" is standard input and standard output`, async () => {
    const { status, stdout, stderr } = await run(command, ["-", "-"], input);
    assert.is(status, 0, stderr);
    assert.ok(same(stdout, expected));
    const bad = await run(command, ["-", "-"], new Uint8Array());
    assert.is(bad.stderr, '<stdin>: Cannot read the image: offset 0 is empty, needed "MZ": not a PE image\n');
    assert.is(bad.status, 1);
  });

  files(`${name}: IN missing, IN a directory`, () =>
    inFolder({}, [], async (file) => {
      await fails(command, [file("IN"), file("OUT")], 1, `${file("IN")}: Cannot read: no such file or directory\n`);
      await fails(
        command,
        [os.tmpdir(), file("OUT")],
        1,
        `${os.tmpdir()}: Cannot read: illegal operation on a directory\n`,
      );
      await fails(command, [file("IN/x"), file("OUT")], 1, `${file("IN/x")}: Cannot read: no such file or directory\n`);
      await fails(command, ["", file("OUT")], 1, /^[^\n]*: Cannot read: no such file or directory\n$/);
    }),
  );

  files(`${name}: OUT in a missing folder, OUT a directory`, () =>
    inFolder({ IN: input }, ["IN"], async (file) => {
      const notes = new RegExp(`^(${file("IN")}: (note|warning): [^\n]+\n)*${file("")}`);
      for (const [out, words] of [
        ["no/OUT", "no such file or directory"],
        [".", "illegal operation on a directory"],
      ] as const) {
        const { status, stderr } = await run(command, [file("IN"), file(out)]);
        assert.is(status, 1);
        assert.match(stderr, notes);
        assert.is(stderr.trimEnd().split("\n").at(-1), `${file(out)}: Cannot write: ${words}`);
      }
    }),
  );

  files(`${name}: names that lead nowhere: through a file, in a circle, too long`, () =>
    inFolder({ IN: input }, ["CIRCLE", "IN"], async (file) => {
      fs.symlinkSync("CIRCLE", file("CIRCLE"));
      const long = file("x".repeat(300));
      for (const [nowhere, words] of [
        [file("IN/x"), "not a directory"],
        [file("CIRCLE"), "too many symbolic links encountered"],
        [long, "name too long"],
      ] as const) {
        await fails(command, [nowhere, file("OUT")], 1, `${nowhere}: Cannot read: ${words}\n`);
        const { status, stderr } = await run(command, [file("IN"), nowhere]);
        assert.is(status, 1);
        assert.is(stderr.trimEnd().split("\n").at(-1), `${nowhere}: Cannot write: ${words}`);
      }
    }),
  );

  files(`${name}: OUT that is IN, by any name, is wrong usage and stays`, () =>
    inFolder({ IN: input }, ["HARD", "IN", "SOFT"], async (file) => {
      fs.linkSync(file("IN"), file("HARD"));
      fs.symlinkSync("IN", file("SOFT"));
      const relative = path.relative(process.cwd(), file("IN"));
      for (const [from, to] of [
        ["IN", "IN"],
        ["IN", "HARD"],
        ["HARD", "IN"],
        ["IN", "SOFT"],
        ["SOFT", "IN"],
        ["SOFT", "HARD"],
      ] as const) {
        await fails(
          command,
          [file(from), file(to)],
          2,
          `${name}: OUT '${file(to)}' is the same file as IN '${file(from)}'; see ${name} --help\n`,
        );
      }
      await fails(
        command,
        [file("IN"), relative],
        2,
        `${name}: OUT '${relative}' is the same file as IN '${file("IN")}'; see ${name} --help\n`,
      );
      assert.ok(fs.lstatSync(file("SOFT")).isSymbolicLink());
    }),
  );

  files(`${name}: OUT that is a symbolic link stays one`, () =>
    inFolder({ IN: input, TARGET: "old" }, ["DANGLING", "IN", "NEW", "OUT", "TARGET", "TO-NEW"], async (file) => {
      fs.symlinkSync("TARGET", file("OUT"));
      fs.symlinkSync("NEW", file("TO-NEW"));
      fs.symlinkSync("nowhere/at-all", file("DANGLING"));
      for (const [link, target] of [
        ["OUT", "TARGET"],
        ["TO-NEW", "NEW"],
      ] as const) {
        assert.is((await run(command, [file("IN"), file(link)])).status, 0);
        assert.ok(fs.lstatSync(file(link)).isSymbolicLink());
        assert.ok(same(fs.readFileSync(file(target)), expected));
      }
      const { status, stderr } = await run(command, [file("IN"), file("DANGLING")]);
      assert.is(status, 1);
      assert.match(stderr, /DANGLING: Cannot write: no such file or directory\n$/);
    }),
  );

  files(`${name}: /dev/null survives as a device, /dev/full is a full disk`, () =>
    inFolder({ IN: input }, ["IN"], async (file) => {
      assert.is((await run(command, [file("IN"), "/dev/null"])).status, 0);
      assert.ok(fs.statSync("/dev/null").isCharacterDevice());
      const { status, stderr } = await run(command, [file("IN"), "/dev/full"]);
      assert.is(status, 1);
      assert.is(stderr.trimEnd().split("\n").at(-1), "/dev/full: Cannot write: no space left on device");
    }),
  );
}

files("a folder that may not be written to", () =>
  inFolder({ IN: ORIGINAL }, ["IN", "OUT"], async (file) => {
    fs.mkdirSync(file("OUT"), 0o755);
    fs.chmodSync(path.dirname(file("IN")), 0o755);
    // Root may write everywhere: be somebody else for a moment.
    const { geteuid, seteuid } = process;
    const root = geteuid?.() === 0;
    if (!root) fs.chmodSync(file("OUT"), 0o555);
    if (root) seteuid?.(65534);
    try {
      await run(relocate, [file("IN"), file("OUT/x")]).then(({ status, stderr }) => {
        assert.is(status, 1);
        assert.is(stderr.split("\n").at(-2), `${file("OUT/x")}: Cannot write: permission denied`);
      });
    } finally {
      if (root) seteuid?.(0);
    }
  }),
);

files("a name that a terminal would not show as it is: escaped, a line stays a line; letters of any script stay", () =>
  inFolder({ IN: ORIGINAL }, ["IN"], async (file) => {
    const [name, shown] = ["\x1b[2Jé\n\u202ex", "\\x1b[2Jé\\x0a\\u{202e}x"];
    await fails(relocate, [file(name), file("OUT")], 1, `${file(shown)}: Cannot read: no such file or directory\n`);
    const usage = `Unexpected argument '${shown}'; see relocate-reloc.ts --help\n`;
    await fails(relocate, ["a", "b", name], 2, `relocate-reloc.ts: ${usage}`);
    fs.mkdirSync(path.join(file("IN"), "..", name));
    fs.copyFileSync(file("IN"), file(`${name}/IN`));
    const good = await run(relocate, [file(`${name}/IN`), file(`${name}/OUT`)]);
    assert.match(good.stderr, /^[ -~é]+: note: [^\n]+\n$/);
    const bad = await run(relocate, [file(`${name}/IN`), file(`${name}/no/OUT`)]);
    assert.match(bad.stderr, /^[ -~é]+: Cannot write: no such file or directory\n$/);
    fs.rmSync(file(name), { recursive: true });
  }),
);

/** A file system of 16 KiB, where that is allowed. */
function mountSmall(folder: string): boolean {
  return spawnSync("mount", ["-t", "tmpfs", "-o", "size=16k", "none", folder]).status === 0;
}

files("a disk that fills up while OUT is written: no OUT, no temporary file, the old OUT", () =>
  inFolder({ IN: RELOCATED }, ["IN", "disk"], async (file) => {
    fs.mkdirSync(file("disk"));
    if (!mountSmall(file("disk"))) {
      console.log("skipped: no right to mount a small file system; /dev/full was tried instead");
      return;
    }
    try {
      // 38 KiB do not fit into 16.
      for (const old of [undefined, "old"]) {
        if (old !== undefined) fs.writeFileSync(file("disk/OUT"), old);
        const { status, stderr } = await run(align, [file("IN"), file("disk/OUT")]);
        assert.is(status, 1);
        assert.is(stderr, `${file("disk/OUT")}: Cannot write: no space left on device\n`);
        assert.is(fs.readdirSync(file("disk")).join(" "), old === undefined ? "" : "OUT");
      }
      assert.is(fs.readFileSync(file("disk/OUT"), "utf8"), "old");
    } finally {
      spawnSync("umount", [file("disk")]);
    }
  }),
);

files("a file that never ends is refused, an image as well as what goes into one", () =>
  inFolder({ IN: ORIGINAL }, ["IN"], async (file) => {
    const line = "/dev/zero: Cannot read: file too large, needed at most 1 GiB\n";
    await fails(relocate, ["/dev/zero", file("OUT")], 1, line);
    await fails(addSections, [file("IN"), file("OUT"), "--section", ".kernel=/dev/zero"], 1, line);
  }),
);

for (const [name, edits] of [
  ["empty", "truncate 0"],
  ["cut", "truncate 0x200"],
  ["PE32", "set optional.magic 0x10b"],
] as const) {
  files(`verify.ts and inspect.ts: ${name} is one line, status 1`, () =>
    inFolder({ IN: sample(edits), GOOD: ORIGINAL }, ["GOOD", "IN"], async (file) => {
      // The file that is bad is the one that is named.
      const line = new RegExp(`^${file("IN")}: Cannot [^\n]+\n$`);
      await fails(inspect, [file("IN")], 1, line);
      await fails(inspect, [file("IN"), "--json"], 1, line);
      await fails(verify, [file("IN"), file("GOOD")], 1, line);
      await fails(verify, [file("GOOD"), file("IN")], 1, line);
    }),
  );
}

files("verify.ts and inspect.ts: a missing file", () =>
  inFolder({ GOOD: ORIGINAL }, ["GOOD"], async (file) => {
    const line = `${file("IN")}: Cannot read: no such file or directory\n`;
    await fails(inspect, [file("IN")], 1, line);
    await fails(verify, [file("IN"), file("GOOD")], 1, line);
    await fails(verify, [file("GOOD"), file("IN")], 1, line);
  }),
);

files("verify.ts and inspect.ts: a truncated image never ends in a stack", async () => {
  for (let end = 1; end < ORIGINAL.length; end += end < 0x300 ? 5 : 97) {
    for (const [command, args] of [
      [inspect, ["-"]],
      [inspect, ["-", "--json"]],
      [verify, ["-", "/dev/null"]],
    ] as const) {
      const { status, stderr } = await run(command, args, ORIGINAL.slice(0, end));
      assert.ok(status === 1 || (command === inspect && status === 0), `status ${status} at ${end}`);
      if (status === 1 && command === inspect) assert.match(stderr, /^<stdin>: Cannot [^\n]+\n$/);
    }
  }
});

files("make-sample.ts: a text that cannot be understood is one line", () =>
  inFolder(
    {
      IN: "section .text rva=0x1000\n  hex zz\n",
      MISSING: "from nowhere.pe.txt\n",
      WORD: "sektion\n",
      FIELD: "set optional.sizeOfImages 1\nsection .text rva=0x1000\n",
    },
    ["FIELD", "IN", "MISSING", "WORD"],
    async (file) => {
      await fails(
        makeSample,
        [file("IN"), file("OUT")],
        1,
        `${file("IN")}: Cannot make the sample: line 2 'hex zz': 'zz' is not hexadecimal bytes\n`,
      );
      await fails(
        makeSample,
        [file("MISSING"), file("OUT")],
        1,
        `${file("MISSING")}: Cannot make the sample: 'nowhere.pe.txt' of a from line cannot be read\n`,
      );
      await fails(
        makeSample,
        [file("WORD"), file("OUT")],
        1,
        `${file("WORD")}: Cannot make the sample: line 1 'sektion': unknown word 'sektion'\n`,
      );
      await fails(
        makeSample,
        [file("FIELD"), file("OUT")],
        1,
        `${file("FIELD")}: Cannot make the sample: nothing is called 'optional.sizeOfImages'\n`,
      );
    },
  ),
);

files("make-sample.ts: same text, same bytes", () =>
  inFolder({}, ["OUT"], async (file) => {
    assert.is((await run(makeSample, [path.join(TOP, "samples", "tiny.pe.txt"), file("OUT")])).status, 0);
    assert.ok(same(fs.readFileSync(file("OUT")), ORIGINAL));
  }),
);

files("zeros that are not written take nothing of the disk", () =>
  inFolder({}, ["ZEROS", "ONES"], async (file) => {
    const onDisk = (name: string, fill: number): number => {
      writeOutput(file(name), new Uint8Array(1 << 20).fill(fill), realIo);
      // Some file systems count blocks when they write them.
      const fd = fs.openSync(file(name), "r+");
      fs.fsyncSync(fd);
      fs.closeSync(fd);
      return 512 * fs.statSync(file(name)).blocks;
    };
    assert.ok(onDisk("ZEROS", 0) <= 4096);
    assert.ok(onDisk("ONES", 1) >= 1 << 20);
  }),
);

files.run();

// ---

const programs = suite("programs");

const TSX = [path.join(TOP, "node_modules", ".bin", "tsx")];
const script = (name: string): string => path.join(TOP, "scripts", name);

function spawn(
  [program = "", ...args]: readonly string[],
  input?: Uint8Array,
): { status: number | null; stdout: Buffer; stderr: string } {
  const { status, stdout, stderr } = spawnSync(program, args, input === undefined ? {} : { input });
  return { status, stdout, stderr: stderr.toString() };
}

programs("started through a symbolic link", () =>
  inFolder({ IN: ORIGINAL }, ["IN", "OUT", "link.ts"], async (file) => {
    fs.symlinkSync(script("relocate-reloc.ts"), file("link.ts"));
    const { status, stderr } = spawn([...TSX, file("link.ts"), file("IN"), file("OUT")]);
    assert.is(status, 0, stderr);
    assert.ok(same(fs.readFileSync(file("OUT")), RELOCATED));
  }),
);

programs("started without \".ts\"; a failure's status and streams are the process's", () =>
  inFolder({ IN: "no image" }, ["IN"], async (file) => {
    const { status, stdout, stderr } = spawn([...TSX, script("align-sections"), file("IN"), file("OUT")]);
    assert.is(
      stderr,
      `${file("IN")}: Cannot read the image: offset 0 is 6e6f2069 (hex), needed "MZ": not a PE image\n`,
    );
    assert.is(status, 1);
    assert.is(stdout.length, 0);
  }),
);

programs("the chain through pipes", () => {
  const node = [process.execPath, ...process.execArgv];
  const step = (name: string): string => `'${[...node, script(`${name}.ts`)].join("' '")}' - -`;
  const { status, stdout, stderr } = spawn(
    ["sh", "-c", `${step("relocate-reloc")} | ${step("align-sections")} | ${step("emit-header")}`],
    ORIGINAL,
  );
  assert.is(status, 0, stderr);
  assert.ok(same(stdout, RESULT));
  assert.is(
    stderr
      .split("\n")
      .filter((line) => line !== "" && !/^<stdin>: (note|warning): /.test(line))
      .join("\n"),
    "",
  );
});

programs.run();
