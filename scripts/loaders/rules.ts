// SPDX-License-Identifier: GPL-2.0-only
// What a loader profile is: a table of rules, each with the place in the loader's source that it was read from and the
// words that the loader itself prints. Judging an image is running the table.

import type { Evidence } from "./facts.ts";

/** What a broken rule means: the loader says no; it loads the image, which then cannot go on; it goes on anyway. */
export type Kind = "refuse" | "stops" | "warn";

/** Why a rule is broken; `args` are the numbers and names in the loader's message, in its order. */
export interface Trip {
  readonly why: string;
  readonly args?: readonly (number | string)[];
}

/** Looks for one thing in an image; what it finds breaks a rule. */
export type Check = (evidence: Evidence) => Trip | string | undefined;

export interface Rule {
  /** Names it for tests and for JSON; the same rule of two loaders that share code has the same name. */
  readonly id: string;
  readonly kind: Kind;
  /** "repository file:function". */
  readonly source: string;
  /** What is printed, with %d and %x as in the source; empty when nothing is. */
  readonly says: string;
  readonly check: Check;
}

/** How it puts an image into memory, and where it starts it: see loaders.ts. */
export type Way = "firmware" | "shim" | "multiboot1" | "multiboot2";

export interface Profile {
  readonly name: string;
  readonly way: Way;
  /** The loader and the way into it, for people. */
  readonly loader: string;
  /** Whether an image that it does not take is a failure of what this project is for. */
  readonly needed: boolean;
  /** What its user sees, where that is not the reason's own words. */
  readonly shows?: (says: string) => string;
  readonly rules: readonly Rule[];
}

export interface Finding {
  readonly rule: string;
  readonly kind: Kind;
  readonly why: string;
  /** The loader's words for this reason; empty when it has none. */
  readonly says: string;
  readonly source: string;
}

export type Outcome = "loads" | "loads, with a warning" | "loads, but Xen then stops" | "refuses";

export interface Verdict {
  readonly loader: string;
  readonly outcome: Outcome;
  /** What is seen on the screen; empty when nothing is, or when it loads. */
  readonly shows: string;
  /** The one that decides comes first, then the others in the order of the loader's work. */
  readonly findings: readonly Finding[];
}

const OUTCOMES: Readonly<Record<Kind, Outcome>> = {
  refuse: "refuses",
  stops: "loads, but Xen then stops",
  warn: "loads, with a warning",
};
const GRAVEST_FIRST: readonly Kind[] = ["refuse", "stops", "warn"];

/** Whether the image boots through that loader, as far as can be told. */
export function boots({ outcome }: Verdict): boolean {
  return outcome === "loads" || outcome === "loads, with a warning";
}

/** What a loader makes of an image. */
export function judge(profile: Profile, evidence: Evidence): Verdict {
  const found = profile.rules.flatMap((rule) => findingOf(rule, evidence) ?? []);
  // Stable: within a kind the order of the loader's own checks stays, and the first of them is the one that it reports.
  const findings = GRAVEST_FIRST.flatMap((kind) => found.filter((f) => f.kind === kind));
  const [first] = findings;
  if (first === undefined) return { loader: profile.name, outcome: "loads", shows: "", findings };
  // After Xen has been started it is Xen that speaks.
  const shows = first.kind === "refuse" ? (profile.shows?.(first.says) ?? first.says) : first.says;
  return { loader: profile.name, outcome: OUTCOMES[first.kind], shows, findings };
}

function findingOf({ id, kind, source, says, check }: Rule, evidence: Evidence): Finding | undefined {
  const trip = check(evidence);
  if (trip === undefined) return undefined;
  const { why, args = [] } = typeof trip === "string" ? { why: trip } : trip;
  return { rule: id, kind, why, says: fillIn(says, args), source };
}

/** Puts arguments into a message as printf would; what only the loader can know becomes an ellipsis. */
function fillIn(says: string, args: readonly (number | string)[]): string {
  let next = 0;
  return says.replace(/%(#?)(0\d)?l*([dusx])/g, (_place, prefix: string, width: string | undefined, form: string) => {
    const arg = args[next++];
    if (arg === undefined) return "...";
    if (typeof arg === "string" || form !== "x") return String(arg);
    return (prefix === "" ? "" : "0x") + arg.toString(16).padStart(Number(width ?? 0), "0");
  });
}

/** One line: "grub-mb2: refuses: why: "its words" (source)". */
export function verdictLine({ loader, outcome, shows, findings }: Verdict): string {
  const [first] = findings;
  if (first === undefined) return `${loader}: ${outcome}`;
  const words = shows === "" ? "" : `: "${shows}"`;
  const inside =
    first.says === "" || first.says === shows || shows.includes(first.says) ? "" : `, for it "${first.says}"`;
  return `${loader}: ${outcome}: ${first.why}${words} (${first.source}${inside})`;
}

/** The other findings, one line each. */
export function furtherLines({ findings }: Verdict): string[] {
  return findings.slice(1).map(({ kind, why, says, source }) => {
    const words = says === "" ? "" : `: "${says}"`;
    return `${kind === "warn" ? "warning" : "also"}: ${why}${words} (${source})`;
  });
}

/** The rules of one function of a loader's source, as a table of its own. */
export function rulesOf(
  source: string,
  rows: readonly (readonly [id: string, kind: Kind, says: string, check: Check])[],
): Rule[] {
  return rows.map(([id, kind, says, check]) => ({ id, kind, source, says, check }));
}
