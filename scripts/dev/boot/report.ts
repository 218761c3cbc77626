// SPDX-License-Identifier: GPL-2.0-only
//
// The boot tests' table, in Markdown so that it can go into the README as it is: paths down, images across.

import { PATHS } from "./paths.ts";
import { describe, type Outcome } from "./verdict.ts";

/** One image on one path. */
export interface Result {
  readonly image: string;
  readonly path: string;
  readonly verdict: "passed" | "failed" | "skipped";
  /** Absent when nothing was booted. */
  readonly outcome?: Outcome;
  readonly seconds?: number;
  /** For what failed: what was expected, and the serial console's last lines; for what was skipped: "WHAT: why". */
  readonly reason?: string;
  readonly lastLines?: readonly string[];
}

export function table(results: readonly Result[]): string {
  const images = [...new Set(results.map((result) => result.image))];
  const tried = PATHS.filter((bootPath) => results.some((result) => result.path === bootPath.name));
  const notes: string[] = [];
  const rows = tried.map(({ name, firmware, secureBoot, loader }) => [
    `\`${name}\``,
    `${firmware}${secureBoot === undefined ? "" : " with Secure Boot"}, ${loader}`,
    ...images.map((image) => {
      const result = results.find((candidate) => candidate.image === image && candidate.path === name);
      return result === undefined ? "" : cell(result, notes);
    }),
  ]);
  const lines = columns([["path", "firmware, loader", ...images], ...rows]);
  const legend = notes.map((note, index) => `[${index + 1}] ${note}`);
  return [...lines, "", ...legend].join("\n");
}

function cell({ verdict, outcome, seconds }: Result, notes: string[]): string {
  if (verdict === "skipped" || outcome === undefined) return verdict === "skipped" ? "SKIP" : "**FAIL**";
  const time = `${Math.round(seconds ?? 0)} s`;
  if (verdict === "failed") return `**FAIL** ${outcome.trouble ?? outcome.stage} ${time}`;
  const asKnown = outcome.trouble !== undefined || outcome.stage === "refused" || outcome.stage === "fail";
  if (!asKnown) return `${outcome.stage} ${time}`;
  const note = outcome.trouble === undefined ? outcome.detail : `known to stop here: ${describe(outcome)}`;
  if (!notes.includes(note)) notes.push(note);
  return `${outcome.trouble ?? outcome.stage} ${time} [${notes.indexOf(note) + 1}]`;
}

/** A Markdown table whose columns line up as text too; the first row is its head. */
export function columns(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, index) => Math.max(...rows.map((row) => row[index]?.length ?? 0)));
  const lines = rows.map((row) => `| ${widths.map((width, index) => (row[index] ?? "").padEnd(width)).join(" | ")} |`);
  lines.splice(1, 0, `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`);
  return lines;
}

/** What is said of each that did not pass. */
export function failures(results: readonly Result[]): string {
  const failed = results.filter((result) => result.verdict === "failed");
  return failed
    .map(({ image, path, outcome, reason, lastLines }) => {
      const got = outcome === undefined ? "" : `: ${describe(outcome)}`;
      return [`FAIL ${image} on ${path}${got}; ${reason}`, ...(lastLines ?? []).map((line) => `    ${line}`), ""].join(
        "\n",
      );
    })
    .join("\n");
}

/** One line for each reason that something was skipped for. */
export function skips(results: readonly Result[]): string[] {
  const skipped = results.filter(({ verdict }) => verdict === "skipped");
  return [...new Set(skipped.map(({ reason }) => `SKIP ${reason}`))];
}

export function closingLine(results: readonly Result[]): string {
  const count = (verdict: Result["verdict"]) => results.filter((result) => result.verdict === verdict).length;
  return `${count("passed")} passed, ${count("failed")} failed, ${count("skipped")} skipped`;
}
