// SPDX-License-Identifier: GPL-2.0-only
// What a loader profile is: a table of rules, each with the place in the loader's source that it was read from and the
// words that the loader itself prints. Asking a loader about an image is running its table.

import type { Evidence } from "./facts.ts";

/** What a broken rule means: the loader says no; it loads the image, which then cannot go on; it goes on anyway. */
export type Effect = "refuse" | "stops" | "warn";

/** Why a rule is broken; `args` are the numbers and names in the loader's message, in its order. */
export interface Trip {
  readonly why: string;
  readonly args?: readonly (number | string)[];
}

/** Looks for one thing in an image; what it finds breaks a rule, and false or undefined does not. */
export type Check = (evidence: Evidence) => Trip | string | false | undefined;

export interface Rule {
  /** Names it for tests and for JSON; the same rule of two loaders that share code has the same name. */
  readonly id: string;
  readonly kind: Effect;
  /** "repository file:function". */
  readonly source: string;
  /** What is printed, with %d and %x as in the source; empty when nothing is. */
  readonly says: string;
  readonly check: Check;
}

/** How it puts an image into memory. */
export type Way = "firmware" | "shim" | "multiboot1" | "multiboot2";

export type Profile = Readonly<ReturnType<typeof profile>>;

/** The rules of one function of a loader's source, as a table of its own. */
export function rulesOf(
  source: string,
  rows: readonly (readonly [id: string, kind: Effect, says: string, check: Check])[],
): Rule[] {
  return rows.map(([id, kind, says, check]) => ({ id, kind, source, says, check }));
}

/**
 * A profile by its columns.
 * @param loader the loader and the way into it, for people
 * @param needed whether an image that it does not take is a failure of what this project is for
 * @param rules tables, in the order of the loader's work
 * @param shows what its user sees, given the words for the reason
 */
export function profile(
  name: string,
  way: Way,
  loader: string,
  needed: boolean,
  rules: readonly (readonly Rule[])[],
  shows = (says: string): string => says,
) {
  return { name, way, loader, needed, rules: rules.flat(), shows };
}

/** Why a check found something, without the arguments of anybody's message. */
export function reasonOf(check: Check, evidence: Evidence): string | undefined {
  const trip = check(evidence) || undefined;
  return typeof trip === "object" ? trip.why : trip;
}

/** The gravest effect first. */
const OUTCOMES = {
  refuse: "refuses",
  stops: "loads, but Xen then stops",
  warn: "loads, with a warning",
} as const;

export type LoaderVerdict = Readonly<ReturnType<typeof askLoader>>;

/** What a loader makes of an image. */
export function askLoader(profile: Profile, evidence: Evidence) {
  const broken = profile.rules.flatMap((rule) => brokenRule(rule, evidence) ?? []);
  // Stable: within a kind the order of the loader's own checks stays, and the first of them is the one that it reports.
  const findings = Object.keys(OUTCOMES).flatMap((kind) => broken.filter((b) => b.kind === kind));
  const [first] = findings;
  // After Xen has been started it is Xen that speaks.
  const seen = first?.kind === "refuse" ? profile.shows(first.says) : first?.says;
  return {
    loader: profile.name,
    outcome: first === undefined ? ("loads" as const) : OUTCOMES[first.kind],
    /** What is seen on the screen; empty when nothing is, or when it loads. */
    shows: seen ?? "",
    /** The one that decides comes first, then the others in the order of the loader's work. */
    findings,
  };
}

/** A rule that an image breaks, with the loader's words for this reason. */
function brokenRule({ id, kind, source, says, check }: Rule, evidence: Evidence) {
  const trip = check(evidence);
  if (trip === undefined || trip === false) return undefined;
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

/** Whether the image boots through that loader, as far as can be told. */
export function boots({ outcome }: LoaderVerdict): boolean {
  return outcome === "loads" || outcome === "loads, with a warning";
}

/** One line: "grub-mb2: refuses: why: "its words" (source)". */
export function verdictLine({ loader, outcome, shows, findings }: LoaderVerdict): string {
  const [first] = findings;
  if (first === undefined) return `${loader}: ${outcome}`;
  const inside = shows.includes(first.says) ? "" : `, for it "${first.says}"`;
  return `${loader}: ${outcome}: ${first.why}${quoted(shows)} (${first.source}${inside})`;
}

/** The other findings, one line each. */
export function furtherLines({ findings }: LoaderVerdict): string[] {
  return findings
    .slice(1)
    .map(({ kind, why, says, source }) => `${kind === "warn" ? "warning" : "also"}: ${why}${quoted(says)} (${source})`);
}

function quoted(words: string): string {
  return words === "" ? "" : `: "${words}"`;
}
