// SPDX-License-Identifier: GPL-2.0-only
//
// Shows the SHA-256 that an Authenticode signature of the file is about, as each signer and loader counts it, and which
// bytes of the file it covers. Where they do not agree, one takes a signature that another refuses.
//
// Changes: nothing. Signed and unsigned files alike; a signature itself is not checked.
// Refuses: what is not a PE image for x86-64.

import { aboutFile, displayName, readInput, runIfMain, type Command } from "./cli/cli.ts";
import { range } from "./cli/numbers.ts";
import { authenticode, authenticodeDigests } from "./judge/authenticode.ts";
import type { Authenticode, CountName, Place } from "./judge/authenticode.ts";
import type { FileRange } from "./judge/hashed.ts";

const USAGE = `Usage: authenticode.ts FILE [--json]

Shows the SHA-256 that a Secure Boot signature of FILE is about, by each way of counting, and the bytes it covers.
"-" is standard input.

  --json  the same for programs
  --help  print this text

Exit status: 0 all ways of counting agree and every byte is covered, 1 not so, or no PE image, 2 wrong usage.
`;

const LABEL_WIDTH = 16;

function textReport(name: string, found: Authenticode, digests: ReadonlyMap<CountName, string>): string {
  const byDigest = new Map<string, string[]>();
  for (const { name: count, also } of found.counts) {
    const digest = digests.get(count) ?? "";
    byDigest.set(digest, [...(byDigest.get(digest) ?? []), `${count} (${also.join(", ")})`]);
  }
  const [hashed] = found.counts;
  const lines = [
    `${name}: ${found.signed ? "signed" : "not signed"}`,
    ...[...byDigest].map(([digest, who]) => row("sha256", `${digest}  ${who.join(", ")}`)),
    ...(hashed?.ranges ?? []).map((r) => row("covered", range(r.start, r.end))),
    ...found.exempt.map((p) => row("exempt", place(p))),
    ...found.notCovered.map((p) => row("not covered", place(p))),
    ...found.twice.map((p) => row("covered twice", place(p))),
    ...(found.problems.length === 0 ? [row("agree", "all count the same bytes, each byte of the file once")] : []),
    ...found.problems.map(({ text }) => row("disagree", text)),
  ];
  return `${lines.join("\n")}\n`;
}

function row(label: string, text: string): string {
  return `  ${label.padEnd(LABEL_WIDTH)}${text}`;
}

function place({ start, end, what }: Place): string {
  return `${range(start, end)} ${what}`;
}

/** Numbers stay numbers; the order of the keys is this one. */
function jsonReport(found: Authenticode, digests: ReadonlyMap<CountName, string>): string {
  const bounds = ({ start, end }: FileRange): FileRange => ({ start, end });
  const report = {
    signed: found.signed,
    agree: found.problems.length === 0,
    counts: found.counts.map(({ name, also, ranges, padding }) => ({
      name,
      also,
      sha256: digests.get(name),
      ranges: ranges.map(bounds),
      padding,
    })),
    exempt: found.exempt,
    notCovered: found.notCovered,
    twice: found.twice,
    problems: found.problems.map(({ text }) => text),
  };
  return `${JSON.stringify(report, null, 2)}\n`;
}

export const command: Command = {
  usage: USAGE,
  options: { json: { type: "boolean" } },
  positionals: ["FILE"],
  run([file = ""], values, io) {
    const { found, digests } = aboutFile(file, () => {
      const bytes = readInput(file, io);
      const found = authenticode(bytes);
      return { found, digests: authenticodeDigests(bytes, found) };
    });
    io.stdout(values.json === true ? jsonReport(found, digests) : textReport(displayName(file), found, digests));
    return found.problems.length === 0 ? 0 : 1;
  },
};

runIfMain(import.meta.url, command);
