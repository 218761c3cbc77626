// SPDX-License-Identifier: GPL-2.0-only
// What holds for every file of the project, each rule with the reason why a breach would hurt somebody.

import * as fs from "node:fs";
import * as path from "node:path";
import { suite } from "uvu";
import { TOP } from "./places.ts";

const SKIPPED = new Set(["node_modules", ".git", "build", "xen"]);

function files(directory = TOP): string[] {
  return fs.readdirSync(directory, { withFileTypes: true }).flatMap((entry) => {
    if (SKIPPED.has(entry.name)) return [];
    const full = path.join(directory, entry.name);
    return entry.isDirectory() ? files(full) : [path.relative(TOP, full)];
  });
}

const ALL = files();
const SCRIPTS = ALL.filter((file) => /^scripts\/.*\.ts$/.test(file));
const read = (file: string): string => fs.readFileSync(path.join(TOP, file), "utf8");
const isText = (file: string): boolean => !/\.(efi|gz)$/.test(file);

/** Fails with every breach, one per line, and the reason. */
function none(breaches: readonly string[], reason: string): void {
  if (breaches.length !== 0) throw new Error(`${reason}:\n${breaches.map((b) => `  ${b}`).join("\n")}`);
}

function linesMatching(candidates: readonly string[], pattern: RegExp): string[] {
  return candidates.flatMap((file) =>
    read(file)
      .split("\n")
      .flatMap((line, i) => (pattern.test(line) ? [`${file}:${i + 1}: ${line.trim()}`] : [])),
  );
}

const rules = suite("house rules");

rules("the top level holds what the project declares, no more", () => {
  const expected = [
    ".ci",
    ".git",
    ".gitignore",
    "LICENSE",
    "Makefile",
    "README.md",
    "build",
    "golden",
    "node_modules",
    "package-lock.json",
    "package.json",
    "samples",
    "scripts",
    "tsconfig.json",
  ];
  none(
    fs.readdirSync(TOP).filter((name) => !expected.includes(name)),
    "unexpected at the top level",
  );
});

/** The files that a file imports, and what it imports besides. */
function imports(file: string): { files: string[]; others: string[] } {
  const named = [...read(file).matchAll(/^(?:import|export) (?:type )?(?:[\w*{][^"';=()]* from )?"([^"]+)";$/gm)].map(
    ([, name = ""]) => name,
  );
  const [files, others] = [/^\./, /^[^.]/].map((kind) => named.filter((name) => kind.test(name))) as [
    string[],
    string[],
  ];
  return { files: files.map((name) => path.normalize(path.join(path.dirname(file), name))), others };
}

/** Everything that a file imports, and what that imports. */
function closure(file: string, seen = new Set<string>()): Set<string> {
  for (const next of imports(file).files) {
    if (seen.has(next)) continue;
    seen.add(next);
    closure(next, seen);
  }
  return seen;
}

const isTestSide = (file: string): boolean =>
  file.endsWith(".test.ts") || file.startsWith("scripts/dev/") || /loaders\/trials-/.test(file);
/** "judge" of scripts/judge/file.ts, "" of scripts/verify.ts. */
const roomOf = (file: string): string => /^scripts\/(\w+)\//.exec(file)?.[1] ?? "";

/** Who may import whom, directly or not; each room may import itself. scripts/README.md says what is in them. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  cli: [],
  tables: [],
  pe: ["cli", "tables"],
  xen: ["cli", "tables", "pe"],
  judge: ["cli", "tables"],
  loaders: ["cli", "tables", "judge"],
  show: ["cli", "tables", "pe", "xen", "judge", "loaders"],
  tree: ["cli"],
};

rules("a room imports only what it may, directly or not", () => {
  const inRooms = SCRIPTS.filter((file) => roomOf(file) in MAY_IMPORT && !isTestSide(file));
  if (inRooms.length < 20) throw new Error(`only ${inRooms.length} files found`);
  const breaches = inRooms.flatMap((file) =>
    [...closure(file)]
      .filter((other) => roomOf(other) !== roomOf(file) && !MAY_IMPORT[roomOf(file)]?.includes(roomOf(other)))
      .map((other) => `${file} reaches ${other}`),
  );
  none(
    breaches,
    "a judge that shares the steps' code shares its mistakes, and a room that reaches all cannot be read alone",
  );
});

rules("verify reaches the judges, the tables and the command line, and nothing else", () => {
  const reached = [...closure("scripts/verify.ts")];
  if (!reached.includes("scripts/judge/read.ts")) throw new Error("it does not reach its own reader");
  none(
    reached.filter((file) => !["judge", "tables", "cli"].includes(roomOf(file))),
    "a fault in code that the steps use as well would hide itself",
  );
});

const MAP = read("scripts/README.md");

rules("scripts/README.md says of each room what it may import", () => {
  const said = [...MAP.matchAll(/^\| `(\w+)\/` \|.*\| ?(.*) \|$/gm)].map(
    ([, room = "", imports = ""]) => `${room}: ${imports}`,
  );
  const table = Object.entries(MAY_IMPORT).map(([room, others]) => `${room}: ${others.join(", ")}`);
  none(
    [
      ...said.filter((row) => !table.includes(row) && row !== "dev: anything"),
      ...table.filter((row) => !said.includes(row)),
    ],
    "two descriptions of the rooms",
  );
});

rules("what scripts/README.md names is there", () => {
  const exists = (file: string): boolean =>
    [TOP, path.join(TOP, "scripts")].some((place) => fs.existsSync(path.join(place, file)));
  const files = [...MAP.matchAll(/`([\w./-]+(?:\.(?:ts|txt|md)|\/))`/g)].map(([, file = ""]) => file);
  const names = [...MAP.matchAll(/`([\w/-]+\.ts)`:\s((?:`\w+`(?:, )?)+)/g)].flatMap(([, file = "", list = ""]) =>
    [...list.matchAll(/\w+/g)].map(([name]) => [file, name] as const),
  );
  if (files.length < 20 || names.length < 15)
    throw new Error(`only ${files.length} files and ${names.length} names found`);
  const declares = (file: string, name: string): boolean =>
    new RegExp(`^(export )?(async )?(function|const|class|interface) ${name}\\b`, "m").test(read(`scripts/${file}`));
  none(
    [
      ...files.filter((file) => !exists(file)),
      ...names.filter(([file, name]) => !exists(file) || !declares(file, name)).map((pair) => pair.join(": ")),
    ],
    "who looks there finds nothing",
  );
});

rules("a script that users run imports only node: modules and this project's files", () => {
  const runtime = SCRIPTS.filter((file) => !isTestSide(file));
  if (runtime.length < 10) throw new Error(`only ${runtime.length} scripts found`);
  const foreign = runtime.flatMap((file) =>
    imports(file)
      .others.filter((name) => !name.startsWith("node:"))
      .map((name) => `${file}: ${name}`),
  );
  none(foreign, "it must run with no package installed, under tsx, node and Deno");
});

rules("only mb-efi imports another script", () => {
  const scripts = SCRIPTS.filter((file) => roomOf(file) === "" && !isTestSide(file));
  const breaches = SCRIPTS.filter((file) => !isTestSide(file) && file !== "scripts/mb-efi.ts").flatMap((file) =>
    imports(file)
      .files.filter((other) => scripts.includes(other))
      .map((other) => `${file} imports ${other}`),
  );
  none(breaches, "the Makefile is the description of the pipeline");
});

rules("every file says its licence at the top", () => {
  const marked = ALL.filter((file) => /\.(ts|S|c|h|lds)$|Makefile$|^\.ci\/|\.pe\.txt$/.test(file));
  none(
    marked.filter(
      (file) =>
        !read(file)
          .split("\n")
          .slice(0, 2)
          .some((line) => line.includes("SPDX-License-Identifier: GPL-2.0-only")),
    ),
    "no SPDX line",
  );
});

rules("every test file runs its tests", () => {
  none(
    SCRIPTS.filter((file) => file.endsWith(".test.ts") && !/^\s*\S*\.run\(\);?$/m.test(read(file))),
    "uvu passes a file without .run()",
  );
});

rules("no test is left out or singled out", () => {
  none(
    linesMatching(
      SCRIPTS.filter((file) => file !== "scripts/dev/house-rules.test.ts"),
      /\.only\(|@ts-(ignore|nocheck|expect-error)|\bas any\b/,
    ),
    "it would hide failures",
  );
});

rules("the lock file names no download address", () => {
  none(linesMatching(["package-lock.json"], /"resolved"|registry|\.tgz/), "everybody's registry is another");
});

rules("no file names a mirror or a registry", () => {
  const own = ALL.filter((file) => isText(file) && file !== "LICENSE" && file !== "scripts/dev/house-rules.test.ts");
  none(
    linesMatching(own, /deb\.debian\.org|registry\.npmjs|snapshot\.debian|security\.debian\.org/),
    "addresses come from the machine's own set-up",
  );
});

rules("development tools have exact versions", () => {
  const { devDependencies, dependencies } = JSON.parse(read("package.json")) as Record<
    string,
    Record<string, string> | undefined
  >;
  none(Object.keys(dependencies ?? {}), "there are no run-time dependencies");
  none(
    Object.entries(devDependencies ?? {})
      .filter(([, version]) => !/^\d+\.\d+\.\d+$/.test(version))
      .map(String),
    "same tools for everybody",
  );
});

rules.run();
