// SPDX-License-Identifier: GPL-2.0-only
// An explanation as text: a line for each run of the result, in its order, what moved as a whole in one line, reasons as
// notes at the end, and the sums.

import { hex, range } from "../cli/numbers.ts";
import type { Account, Change, Piece } from "./explain-account.ts";
import type { Steps } from "../judge/expected.ts";
import { WHY, type Reason } from "./explain-why.ts";

export function explanationText(account: Account, steps: Steps, original: string, result: string): string {
  const notes: Reason[] = [];
  const note = (why: Reason): string => {
    if (!notes.includes(why)) notes.push(why);
    return `${why === "order" ? firstStep(steps) : WHY[why].step} [${notes.indexOf(why) + 1}]`;
  };
  const lines = runs(account).flatMap((run) =>
    "changes" in run ? changeLines(run.changes, note) : [pieceLine(run, note)],
  );
  const dropped = droppedLines(account);
  const { changed, places, inSections, moved, stayed, added } = account.sums();
  return [
    `${original} to ${result}: ${stepNames(steps)}`,
    "",
    ...lines.map((line) => `  ${line}`),
    ...(dropped.length === 0
      ? []
      : ["", "  not in the result any more, by offsets of the original:", ...dropped.map((line) => `    ${line}`)]),
    ...(notes.length === 0 ? [] : ["", ...notes.map((why, i) => `  [${i + 1}] ${WHY[why].text}`)]),
    "",
    `${account.needed.length} bytes: ${changed} changed, ${moved} moved, ${stayed} as they were, ${added} zeros added`,
    `${changed} bytes changed in ${places} places (in sections ${inSections.changed} in ${inSections.places}), ${moved} moved unchanged, none unexplained`,
    "",
  ].join("\n");
}

function stepNames({ relocated, aligned, headers, signatureDropped }: Steps): string {
  const names = [
    ...(signatureDropped ? ["--strip-signature"] : []),
    ...(relocated === undefined ? [] : [relocated === "moved" ? "relocate-reloc" : "relocate-reloc --keep"]),
    ...(aligned ? ["align-sections"] : []),
    ...(headers ? ["emit-header"] : []),
  ];
  return names.length === 0 ? "no step" : names.join(", ");
}

/** The first step that writes the section table is the one that sorts it. */
function firstStep({ relocated, aligned }: Steps): string {
  return relocated !== undefined ? "relocate-reloc" : aligned ? "align-sections" : "emit-header";
}

// ---- in order

type Run = Moved | { readonly changes: readonly Change[]; readonly at: number };

/** A piece that is elsewhere or new, with the zeros that were added behind it. */
interface Moved extends Piece {
  readonly zeros: number;
}

/** Pieces with their zeros, and changes in one group where owner and reason are the same. */
function runs({ pieces, changes }: Account): Run[] {
  const shown: Moved[] = [];
  for (const piece of pieces) {
    const last = shown.at(-1);
    if (
      last !== undefined &&
      piece.from === undefined &&
      last.from !== undefined &&
      last.what === piece.what &&
      last.why === piece.why
    )
      shown[shown.length - 1] = { ...last, zeros: piece.size };
    else if (piece.from !== piece.at) shown.push({ ...piece, zeros: 0 });
  }
  const grouped: { at: number; changes: Change[] }[] = [];
  for (const change of [...changes].sort((a, b) => a.at - b.at)) {
    const last = grouped.at(-1)?.changes.at(-1);
    if (last !== undefined && last.owner === change.owner && last.why === change.why)
      grouped.at(-1)?.changes.push(change);
    else grouped.push({ at: change.at, changes: [change] });
  }
  return [...shown, ...grouped].sort((a, b) => a.at - b.at || ("changes" in a ? 1 : -1));
}

function pieceLine({ at, size, from, what, why, zeros }: Moved, note: (why: Reason) => string): string {
  const where = range(at, at + size + zeros);
  const reason = why === undefined ? "" : `  ${note(why)}`;
  if (from === undefined) return `${where} ${size} zeros added behind ${what}${reason}`;
  if (what === "headers") return `${where} section headers, ${size} bytes from ${hex(from)}${reason}`;
  return `${where} ${what}: ${size} bytes from ${hex(from)}${zeros === 0 ? "" : `, then ${zeros} zeros added`}${reason}`;
}

function changeLines(changes: readonly Change[], note: (why: Reason) => string): string[] {
  const [first] = changes;
  const last = changes.at(-1);
  if (first === undefined || last === undefined) return [];
  const times = new Map<string, number>();
  for (const { what, was, is } of changes) {
    const text = `${what === "" ? "" : `${what} `}${was} -> ${is}`;
    times.set(text, (times.get(text) ?? 0) + 1);
  }
  const said = [...times].map(([text, count]) => (count === 1 ? text : `${text} (${count} times)`)).join(", ");
  return [
    `${range(first.at, last.at + last.size)} ${first.owner}: ${said}  ${note(first.why)}`,
    ...changes.flatMap(({ details = [] }) => details.map((line) => `    ${line}`)),
  ];
}

/** Padding as linkers leave it is zeros, and then one line; what else there is has a line each. */
function droppedLines(account: Account): string[] {
  const dropped = account.dropped();
  const zeros = dropped.filter(({ content }) => content === 0);
  const bytes = zeros.reduce((sum, { start, end }) => sum + end - start, 0);
  return [
    ...(zeros.length === 0
      ? []
      : [`${bytes} zeros of padding in ${zeros.length} places, from ${hex(zeros[0]?.start ?? 0)} on`]),
    ...dropped
      .filter(({ content }) => content !== 0)
      .map(({ start, end, content }) => `${range(start, end)} ${end - start} bytes, ${content} of them not zero`),
  ];
}
