// SPDX-License-Identifier: GPL-2.0-only
//
// Says of an image what each boot loader will do with it, before anybody has to reboot: whether it loads it, and if
// not, in the words that the loader itself would print. Then, for packagers, what stands in the way and which step
// removes it.
//
// Changes nothing. The rules are tables (loaders/*.ts), each rule with the loader's source it was read from. What
//   depends on the machine (free memory, keys, whether a file is signed) is no verdict: it is said as a warning.
// Refuses: what is not a PE image for x86-64, or points outside the file.

import { aboutFile, displayName, readInput, runIfMain, type Command } from "./cli/cli.ts";
import { UsageError } from "./cli/errors.ts";
import { obstacles, traits, type Obstacle, type Traits } from "./loaders/obstacles.ts";
import { examine } from "./loaders/facts.ts";
import { PROFILES, profileNamed } from "./loaders/profiles.ts";
import { askLoader, boots, furtherLines, verdictLine, type Profile } from "./loaders/rules.ts";

const USAGE = `Usage: check-loaders.ts FILE [--loader NAME]... [--json]

Says which boot loaders will load FILE, a xen.efi or xen.mb.efi, and what they will say if they do not.
"-" is standard input.

  --loader NAME  ask about this loader only, or those whose names begin so (grub-peimage); may be given again
  --json         print one JSON object instead of text
  --help         print this text

Loaders, * those that xen.mb.efi is for:
${PROFILES.map((p) => `  ${p.needed ? "*" : " "} ${p.name.padEnd(20)} ${p.loader}\n`).join("")}
Exit status: 0 all of the loaders asked about boot it, or without --loader all that are marked *; 1 one of them does
not, or FILE is not a PE image for x86-64; 2 wrong usage. Loading with a warning is loading. Without --loader, standard
error names each of those marked * that do not boot it.
`;

/** Section names that are shown of many. */
const MOST_NAMES = 20;

export type Report = Readonly<ReturnType<typeof checkLoaders>>;

/**
 * Asks the profiles about an image.
 * @param asked only these; all of them, and what stands in the way, when left out
 * @throws ImageError when it is not a PE image for x86-64, or points outside the file
 */
export function checkLoaders(bytes: Uint8Array, asked?: readonly Profile[]) {
  const evidence = examine(bytes);
  const verdicts = (asked ?? PROFILES).map((profile) => ({ profile, verdict: askLoader(profile, evidence) }));
  return {
    /** Counts up when a field changes its meaning or goes. */
    format: 1,
    /** Whether all that were asked about boot it. */
    boots: verdicts.every(({ profile, verdict }) => boots(verdict) || (asked === undefined && !profile.needed)),
    verdicts: verdicts.map(({ verdict }) => verdict),
    ...(asked === undefined ? { obstacles: obstacles(evidence), traits: traits(evidence) } : {}),
  };
}

/** The report for people. */
export function reportText({ verdicts, obstacles: found, traits: t }: Report): string {
  const lines = verdicts.flatMap((v) => [verdictLine(v), ...furtherLines(v).map((line) => `    ${line}`)]);
  if (found !== undefined && t !== undefined) lines.push("", ...packagerLines(found, t));
  return `${lines.join("\n")}\n`;
}

function packagerLines(found: readonly Obstacle[], t: Traits): string[] {
  const relocations = Object.entries(t.relocations).map(([section, types]) => {
    const counts = Object.entries(types).map(([type, count]) => `${count} ${type}`);
    return `  base relocations in ${section}: ${counts.join(", ")}`;
  });
  return [
    found.length === 0 ? "What stands in the way: nothing" : "What stands in the way:",
    ...found.flatMap(({ what, remedy, advice }) => {
      const removed = remedy === null ? "no step of ours removes it" : `${remedy} removes it`;
      return [`- ${what}`, `    ${removed}${advice === "" ? "" : `; ${advice}`}`];
    }),
    "",
    "What it is like:",
    `  linked by GNU ld ${t.linker}, NX_COMPAT ${t.nxCompat ? "is" : "is not"} claimed`,
    `  ${t.headerSlack.bytes} bytes free behind the section table: ${t.headerSlack.headers} more section headers fit`,
    ...(relocations.length === 0 ? ["  no base relocations"] : relocations),
    `  sections that are not page-aligned: ${some(t.unaligned)}`,
  ];
}

/** A list of names that does not grow without end. */
function some(names: readonly string[]): string {
  const more = names.length - MOST_NAMES;
  if (names.length === 0) return "none";
  return names.slice(0, MOST_NAMES).join(" ") + (more > 0 ? ` and ${more} more` : "");
}

export const command: Command = {
  usage: USAGE,
  options: { loader: { type: "string", multiple: true }, json: { type: "boolean" } },
  positionals: ["FILE"],
  run([file = ""], values, io) {
    const asked = values.loader === undefined ? undefined : profiles(values.loader);
    const report = aboutFile(file, () => checkLoaders(readInput(file, io), asked));
    io.stdout(values.json === true ? `${JSON.stringify(report, null, 2)}\n` : reportText(report));
    const failing = asked === undefined ? failures(report) : [];
    for (const line of failing) io.stderr(`${displayName(file)}: ${line}\n`);
    return report.boots ? 0 : 1;
  },
};

/** A line for each loader that is meant to boot the image and does not. */
function failures({ verdicts }: Report): string[] {
  return verdicts
    .filter((verdict) => !boots(verdict) && profileNamed(verdict.loader)?.needed === true)
    .map((verdict) => `Cannot be booted by ${verdictLine(verdict)}`);
}

function profiles(names: string | boolean | (string | boolean)[]): Profile[] {
  return [names].flat().flatMap((name) => {
    const one = profileNamed(String(name));
    const asked = one === undefined ? PROFILES.filter((p) => p.name.startsWith(`${name}-`)) : [one];
    if (asked.length === 0) {
      throw new UsageError(`--loader '${name}' is none of ${PROFILES.map((p) => p.name).join(", ")}`);
    }
    return asked;
  });
}

runIfMain(import.meta.url, command);
