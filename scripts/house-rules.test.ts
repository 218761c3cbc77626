// SPDX-License-Identifier: GPL-2.0-only
// What holds for every file of the project, each rule with the reason why a breach would hurt somebody.

import * as fs from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";

const TOP = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
/** Test-side libraries: they may use development packages. */
const TEST_SIDE = /(\.test\.ts|lib\/(golden|sample|fuzz)[a-z-]*\.ts|scripts\/(golden|run-tests|make-sample|dist|fuzz)\.ts)$/;
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
    read(file).split("\n").flatMap((line, i) => (pattern.test(line) ? [`${file}:${i + 1}: ${line.trim()}`] : [])),
  );
}

const rules = suite("house rules");

rules("the top level holds what the project declares, no more", () => {
  const expected = [".ci", ".git", ".gitignore", "LICENSE", "Makefile", "README.md", "build", "golden", "node_modules", "package-lock.json", "package.json", "samples", "scripts", "tsconfig.json"];
  none(fs.readdirSync(TOP).filter((name) => !expected.includes(name)), "unexpected at the top level");
});

rules("a script that users run imports only node: modules and its siblings", () => {
  const runtime = SCRIPTS.filter((file) => !TEST_SIDE.test(file));
  if (runtime.length < 10) throw new Error(`only ${runtime.length} scripts found`);
  const foreign = linesMatching(runtime, /(^import|^} from|^export .* from|import\() ?.*["']/).filter((line) => !/["'](node:[a-z_/]+|\.\.?\/[\w./-]+\.ts)["']/.test(line));
  none(foreign, "it must run with no package installed, under tsx, node and Deno");
});

rules("only mb-efi imports the steps", () => {
  const steps = /from "\.\.?\/(relocate-reloc|align-sections|emit-header|verify|inspect|add-sections|strip-debug|sign)\.ts"/;
  none(linesMatching(SCRIPTS.filter((file) => !TEST_SIDE.test(file) && file !== "scripts/mb-efi.ts"), steps), "the Makefile is the description of the pipeline");
});

rules("verify does not use what it judges", () => {
  const judges = SCRIPTS.filter((file) => /scripts\/(verify|explain|lib\/(verify-[a-z]+|explain-[a-z]+|loaders|findings))\.ts$/.test(file));
  if (judges.length < 10) throw new Error(`only ${judges.length} files found`);
  none(
    linesMatching(judges, /serializeImage|sortSectionTable|\/layout\.ts|\/xen\.ts|onBytes/),
    "a judge that shares the steps' code shares its mistakes",
  );
});

rules("every file says its licence at the top", () => {
  const marked = ALL.filter((file) => /\.(ts|S|c|h|lds)$|Makefile$|^\.ci\/|\.pe\.txt$/.test(file));
  none(marked.filter((file) => !read(file).split("\n").slice(0, 2).some((line) => line.includes("SPDX-License-Identifier: GPL-2.0-only"))), "no SPDX line");
});

rules("every test file runs its tests", () => {
  none(SCRIPTS.filter((file) => file.endsWith(".test.ts") && !/^\s*\S*\.run\(\);?$/m.test(read(file))), "uvu passes a file without .run()");
});

rules("no test is left out or singled out", () => {
  none(linesMatching(SCRIPTS.filter((file) => file !== "scripts/house-rules.test.ts"), /\.only\(|@ts-(ignore|nocheck|expect-error)|\bas any\b/), "it would hide failures");
});

rules("the lock file names no download address", () => {
  none(linesMatching(["package-lock.json"], /"resolved"|registry|\.tgz/), "everybody's registry is another");
});

rules("no file names a mirror or a registry", () => {
  const own = ALL.filter((file) => isText(file) && file !== "LICENSE" && file !== "scripts/house-rules.test.ts");
  none(linesMatching(own, /deb\.debian\.org|registry\.npmjs|snapshot\.debian|security\.debian\.org/), "addresses come from the machine's own set-up");
});

rules("development tools have exact versions", () => {
  const { devDependencies, dependencies } = JSON.parse(read("package.json")) as Record<string, Record<string, string> | undefined>;
  none(Object.keys(dependencies ?? {}), "there are no run-time dependencies");
  none(Object.entries(devDependencies ?? {}).filter(([, version]) => !/^\d+\.\d+\.\d+$/.test(version)).map(String), "same tools for everybody");
});

rules.run();
