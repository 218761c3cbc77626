// SPDX-License-Identifier: GPL-2.0-only
// What must hold for any bytes whatever, by all scripts' pure functions: the fuzzer's judgement, and the replay's of
// what it found before.

import { Buffer } from "node:buffer";
import { performance } from "node:perf_hooks";
import { addSections, removeSections, type Payload } from "../../add-sections.ts";
import { alignSections } from "../../align-sections.ts";
import { checkLoaders, reportText } from "../../check-loaders.ts";
import { ImageError } from "../../cli/errors.ts";
import { emitHeader } from "../../emit-header.ts";
import { inspectText } from "../../inspect.ts";
import { PROFILES } from "../../loaders/profiles.ts";
import { boots, verdictLine } from "../../loaders/rules.ts";
import { authenticode, authenticodeDigests } from "../../judge/authenticode.ts";
import { parseImage } from "../../pe/parse.ts";
import { serializeImage } from "../../pe/serialize.ts";
import { baseRelocations, type BaseRelocation } from "../../xen/relocations.ts";
import { checkSumAt, type Image } from "../../pe/image.ts";
import { onBytes } from "../on-bytes.ts";
import { stripSignature } from "../../pe/transform.ts";
import { relocateReloc } from "../../relocate-reloc.ts";
import { debugFile, stripDebug } from "../../strip-debug.ts";
import { readStructure } from "../../tables/fields.ts";
import { MB2_HEADER } from "../../tables/multiboot.ts";
import { DIRECTORY_DEBUG } from "../../tables/pe.ts";
import { verify } from "../../verify.ts";
import { findMultiboot1, findMultiboot2 } from "../../xen/multiboot.ts";

/** Something that must not happen. `kind` says what, without the numbers of this image: two of a kind are one bug. */
export class Finding extends Error {
  readonly kind: string;
  constructor(kind: string, details: string, cause?: unknown) {
    super(`${kind}: ${details}`, { cause });
    this.kind = kind;
  }
}

/** How far a chain of all steps came, for statistics. */
export interface Outcome {
  /** Steps that took the image, of all variants. */
  readonly steps: number;
  /** Chains that came to their end, and verify accepted. */
  readonly verified: number;
}

/** No output, and nothing allocated on the way, may be larger: align-sections fills gaps of up to 64 MiB. */
const MOST_BYTES = 72 << 20;
/** For one image, by all functions together. */
const MOST_MILLISECONDS = 2000;
/** What a text for people must not have in it: control characters, and what JavaScript makes of a mistake. */
const ODD_TEXT = /[^\n -~…]|undefined|NaN|Infinity|\[object|0x-/;
/** Two per line of a section table is plenty; the longest texts are lists of fix-ups. */
const MOST_TEXT = 4 << 20;

/**
 * How much of everything is run on an image: "all"; or only what finds most for its time, the whole chain and verify,
 * with .reloc moved or kept.
 */
export type Scope = "all" | "move" | "keep";

/**
 * Runs the scripts' pure functions on an image.
 * @throws Finding
 */
export function judge(bytes: Uint8Array, scope: Scope): Outcome {
  return guarded(bytes, () => judgeAll(bytes, scope));
}

/**
 * Runs `work`, which must not change these bytes, take long, or allocate much.
 * @throws Finding
 */
export function guarded<T>(bytes: Uint8Array, work: () => T): T {
  const before = new Uint8Array(bytes);
  const [result, first] = timed(() => withoutLargeArrays(work));
  if (Buffer.compare(before, bytes) !== 0) throw new Finding("input changed", "a function wrote to its input");
  // On a busy machine anything takes long once.
  const [, second] = first > MOST_MILLISECONDS ? timed(() => withoutLargeArrays(work)) : [undefined, 0];
  if (second > MOST_MILLISECONDS) throw new Finding("slow", `${Math.round(first)} ms, then ${Math.round(second)} ms`);
  return result;
}

function timed<T>(work: () => T): [T, milliseconds: number] {
  const start = performance.now();
  const result = work();
  return [result, performance.now() - start];
}

function judgeAll(bytes: Uint8Array, scope: Scope): Outcome {
  if (scope === "all") judgeReaders(bytes);
  const unsigned = attempt("stripSignature", () => onBytes(stripSignature)(bytes)) ?? bytes;
  const image = attempt("parseImage", () => parseImage(unsigned));
  if (image === undefined) return { steps: 0, verified: 0 };
  judgeRoundTrip(image, unsigned);
  if (scope !== "all") return judgeChain(image, scope === "keep", false);
  let [steps, verified] = [judgeOutOfOrder(image), 0];
  for (const keep of [false, true]) {
    const chain = judgeChain(image, keep, true);
    steps += chain.steps;
    verified += chain.verified;
    judgeSideSteps(image, chain.result, keep);
    if (chain.result === undefined) continue;
    const again = allSteps(parseImage(new Uint8Array(unsigned)), keep);
    same("not repeatable: the same input gave another output", again, chain.result);
  }
  return { steps, verified };
}

// ---- verify's verdict

/**
 * Violations that the image brings along, and that no step looks for: it would not boot as it was either, and mb-efi
 * refuses it because verify does. Anything else that verify finds in a step's output is a finding.
 */
const EXCUSED: readonly (readonly [violation: RegExp, why: string])[] = [
  [/^Cannot verify: the original: /, "loaders refuse what came in"],
  [/ is not loaded by shim, with flags /, "a section that nobody may read, or discardable"],
  [/: shim finds no readable section /, "the same for .reloc"],
  [/ is not the same when loaded by shim, /, "a section with data that says it has none"],
  [/ RELOCATABLE tag is |: _start, when loaded at /, "a tag that leaves no address to load at"],
  [/^Cannot verify: the EFI entry address in /, "a tag that leads out of the image"],
  [/: the Multiboot2 header at .* has two tags /, "of which each loader takes another one"],
  [/ comes behind a magic with a wrong checksum at /, "half a Multiboot header in front of the real one"],
];
/** A section without data: the design wants its file offset 0, where the headers are. */
const EXCUSED_RULES: readonly string[] = ["shim-section-headers", "red-hat-section-headers"];

function isExcused(line: string): boolean {
  return EXCUSED.some(([pattern]) => pattern.test(line));
}

function judgeVerdict(original: Image, result: Uint8Array, keep: boolean): number {
  const verdict = attempt("verify", () => verify(original.background, result));
  if (verdict === undefined) throw new Finding("verify", "refuses to look at what the steps made");
  oneLineEach(verdict.violations);
  // What is said of the original, too, came in.
  const said = new Set(verdict.violations.map(withoutNumbers));
  const ofBoth = (line: string): boolean =>
    line.includes("the result") && said.has(withoutNumbers(line.replace("the result", "the original")));
  const { sizeOfHeaders } = parseImage(result).optional;
  // A Multiboot header in the stub or behind the section table: nobody but a fuzzer has one there.
  const ofStub = (line: string): boolean =>
    Number(/ the Multiboot[12] header at offset (0x[0-9a-f]+) /.exec(line)?.[1]) < sizeOfHeaders;
  const unexcused = verdict.violations.filter((line) => !ofBoth(line) && !ofStub(line) && !isExcused(line));
  // The symbol `start` in a section that Multiboot does not load: both headers' entry addresses differ then, too.
  if (verdict.violations.some((line) => line.startsWith("Cannot verify: the entry address is "))) return 0;
  const [first] = unexcused;
  if (first === undefined) return verdict.violations.length === 0 ? 1 : 0;
  if (
    unexcused.every((line) => line.startsWith("Cannot verify: memory at RVA")) &&
    fixesUpChanges(original, parseImage(result))
  )
    return 0;
  throw new Finding(`verify rejects: ${withoutNumbers(first)}`, `${keep ? "keep" : "move"}: ${unexcused.join("; ")}`);
}

/**
 * Whether base relocations are for bytes that the steps have to change, the debug directory, or half of one for the
 * Multiboot header and half for what is behind it: then no result is right.
 */
function fixesUpChanges(original: Image, result: Image): boolean {
  const fixups = baseRelocations(original).filter(({ size }) => size !== 0);
  const debug = original.directories[DIRECTORY_DEBUG] ?? { virtualAddress: 0, size: 0 };
  const hitsDebug = ({ target, size }: BaseRelocation): boolean =>
    target < debug.virtualAddress + debug.size && target + size > debug.virtualAddress;
  const header = headerRange(original, result);
  const half = ({ target, size }: BaseRelocation): boolean =>
    header.some((edge) => target < edge && target + size > edge);
  if (fixups.some((fixup) => hitsDebug(fixup) || half(fixup))) return true;
  return original.sections.some((section) => {
    const after = result.sections.find(
      (s) => s.name === section.name && s.header.virtualAddress === section.header.virtualAddress,
    );
    if (after === undefined) return false;
    const start = section.header.virtualAddress;
    return fixups.some(({ target, size }) => {
      for (let at = target - start; at < target - start + size; at++)
        if ((section.data[at] ?? 0) !== (after.data[at] ?? 0)) return true;
      return false;
    });
  });
}

/** Where the rewritten range may begin and end: all RVAs at which one of the headers does. */
function headerRange(original: Image, result: Image): number[] {
  return [original, result].flatMap((image) => {
    const [section] = [...image.sections].sort((a, b) => a.header.virtualAddress - b.header.virtualAddress);
    const data = section?.data ?? new Uint8Array(0);
    const [one, two] = [findMultiboot1(data), findMultiboot2(data)];
    const end = two === undefined ? undefined : two + readStructure(MB2_HEADER, data, two).headerLength;
    return [one, two, end].flatMap((at) => (at === undefined ? [] : [(section?.header.virtualAddress ?? 0) + at]));
  });
}

const EFI_PROFILES = PROFILES.filter(({ needed, way }) => needed && (way === "firmware" || way === "shim"));

/** An EFI loader that took the image takes what became of it. */
function judgeLoaders(original: Uint8Array, result: Uint8Array): void {
  const checked = attempt("check-loaders", () => [
    checkLoaders(original, EFI_PROFILES),
    checkLoaders(result, EFI_PROFILES),
  ]);
  const [before, after] = checked ?? [];
  if (before === undefined || after === undefined) throw new Finding("check-loaders", "refuses what the steps take");
  before.verdicts.forEach((verdict, i) => {
    const now = after.verdicts[i];
    if (now === undefined || !boots(verdict) || boots(now) || EXCUSED_RULES.includes(now.findings[0]?.rule ?? ""))
      return;
    throw new Finding(`${now.loader} does not boot it any more: ${withoutNumbers(verdictLine(now))}`, verdictLine(now));
  });
}

// ---- the functions that only look

function judgeReaders(bytes: Uint8Array): void {
  attempt("authenticode", () => authenticodeDigests(bytes, authenticode(bytes)));
  readable("inspect's text", attempt("inspect", () => inspectText(bytes)) ?? "");
  readable("check-loaders's text", attempt("check-loaders", () => reportText(checkLoaders(bytes))) ?? "");
  attempt("verify with itself", () => oneLineEach(verify(bytes, bytes).violations));
}

function readable(what: string, text: string): void {
  if (text.length > MOST_TEXT) throw new Finding(what, `${text.length} characters`);
  const odd = text.split("\n").find((line) => ODD_TEXT.test(line));
  if (odd !== undefined) throw new Finding(what, JSON.stringify(odd));
}

/** Reading and writing changes the checksum, if anything. */
function judgeRoundTrip(image: Image, bytes: Uint8Array): void {
  const written = must("what was read cannot be written", () => serializeImage(image));
  const again = serializeImage(parseImage(written));
  same("written twice, it differs", written, again);
  const at = checkSumAt(image);
  again.set(bytes.subarray(at, at + 4), at);
  same("round trip", bytes, again);
}

// ---- the steps

interface Chain extends Outcome {
  /** The finished image. */
  readonly result?: Uint8Array;
}

/** The three steps, as mb-efi runs them, and verify. @param thorough whether each step's own output is looked at */
function judgeChain(original: Image, keep: boolean, thorough: boolean): Chain {
  const steps = [
    ["relocate-reloc", (image: Image) => relocateReloc(image, keep)],
    ["align-sections", (image: Image) => alignSections(image)],
  ] as const;
  let image = original;
  for (const [i, [name, step]] of steps.entries()) {
    const next = attempt(name, () => step(image));
    if (next === undefined) return { steps: i, verified: 0 };
    if (thorough) judgeStep(name, step, image, next);
    image = next;
  }
  const finished = attempt("emit-header", () => emitHeader(image));
  if (finished === undefined) return { steps: steps.length, verified: 0 };
  if (thorough) judgeStep("emit-header", emitHeader, image, finished);
  const result = written("emit-header", finished);
  if (thorough) judgeFinished(result, keep);
  if (thorough) judgeLoaders(original.background, result);
  return { steps: steps.length + 1, verified: judgeVerdict(original, result, keep), result };
}

function allSteps(image: Image, keep: boolean): Uint8Array {
  return serializeImage(emitHeader(alignSections(relocateReloc(image, keep))));
}

/** A step's output is an image, of which the step makes the same; and of bytes it makes what it makes of an Image. */
function judgeStep(name: string, step: (image: Image) => Image, input: Image, output: Image): void {
  const bytes = written(name, output);
  if (name === "relocate-reloc" && output.fileSize !== input.fileSize)
    throw new Finding("relocate-reloc's size", `${input.fileSize} bytes became ${output.fileSize}`);
  const fromBytes = must(`${name} refuses the bytes of what it took as an image`, () =>
    step(parseImage(serializeImage(input))),
  );
  same(`${name} differs between image and bytes`, bytes, serializeImage(fromBytes));
  // emit-header refuses its own output, which judgeFinished() looks at.
  if (name !== "emit-header") judgeAgain(name, step, bytes);
}

/** A step leaves its own output as it is. */
function judgeAgain(name: string, step: (image: Image) => Image, bytes: Uint8Array): void {
  const again = must(`${name} refuses its own output`, () => serializeImage(step(parseImage(bytes))));
  same(`${name} changes its own output`, bytes, again);
}

/** The bytes of a step's output, which can be written and read. */
function written(name: string, image: Image): Uint8Array {
  if (image.fileSize > MOST_BYTES) throw new Finding(`${name}'s output is too large`, `${image.fileSize} bytes`);
  const bytes = must(`${name}'s output cannot be written`, () => serializeImage(image));
  must(`${name}'s output cannot be read`, () => parseImage(bytes));
  return bytes;
}

/** The finished image is refused, or left as it is, by every step. */
function judgeFinished(result: Uint8Array, keep: boolean): void {
  for (const step of [(image: Image) => relocateReloc(image, keep), (image: Image) => alignSections(image)]) {
    const bytes = attempt("a step on the result", () => serializeImage(step(parseImage(result))));
    if (bytes !== undefined) same("a step changes the finished image", result, bytes);
  }
  const refusal = outcomeOf("emit-header on its own output", () => emitHeader(parseImage(result)));
  if (!(refusal instanceof ImageError) || !/emit-header has run already/.test(refusal.message))
    throw new Finding("emit-header on its own output", "is not refused by name", refusal);
}

/** Steps that do not get what they expect. @returns how many went well nonetheless */
function judgeOutOfOrder(image: Image): number {
  const aligned = attempt("align-sections", () => alignSections(image));
  if (aligned !== undefined) {
    const bytes = written("align-sections", aligned);
    judgeAgain("align-sections", (again) => alignSections(again), bytes);
    for (const keep of [false, true]) {
      const relocated = attempt("relocate-reloc after align-sections", () => relocateReloc(parseImage(bytes), keep));
      if (relocated !== undefined) same("relocate-reloc changes an aligned image", bytes, serializeImage(relocated));
    }
  }
  const withHeaders = attempt("emit-header", () => emitHeader(image));
  if (withHeaders !== undefined) written("emit-header", withHeaders);
  return [aligned, withHeaders].filter((output) => output !== undefined).length;
}

// ---- what may be done besides

const PAYLOAD: readonly Payload[] = [{ name: ".ucode", data: Uint8Array.from({ length: 0x123 }, (_, i) => i) }];
const SIDE_STEPS: readonly (readonly [name: string, step: (image: Image) => Image])[] = [
  ["strip-debug", (image) => stripDebug(image)],
  ["add-sections", (image) => addSections(image, PAYLOAD)],
];

/**
 * strip-debug and add-sections by themselves: as a step, and on the result of the whole chain, which then has to be
 * what the chain makes of their result.
 */
function judgeSideSteps(image: Image, finished: Uint8Array | undefined, keep: boolean): void {
  attempt("debugFile", () => written("debugFile", debugFile(image)));
  attempt("removeSections", () => written("removeSections", removeSections(image, [".config"])));
  for (const [name, step] of SIDE_STEPS) {
    const changed = attempt(name, () => step(image));
    if (changed !== undefined) judgeAgain(name, step, written(name, changed));
    const after = finished === undefined ? undefined : attempt(name, () => serializeImage(step(parseImage(finished))));
    if (changed === undefined || after === undefined) continue;
    const before = attempt(`the chain after ${name}`, () => allSteps(changed, keep));
    if (before !== undefined) same(`${name} before and after the chain differ`, before, after);
  }
}

// ---- what may be thrown

/** What `work` returns; or the ImageError, of one line, with which it refuses. Anything else thrown is a finding. */
function outcomeOf<T>(what: string, work: () => T): T | ImageError {
  try {
    return work();
  } catch (error) {
    if (error instanceof Finding) throw error;
    if (!(error instanceof Error)) throw new Finding(`${what} throws no Error`, String(error), error);
    const { name, message, stack = message } = error;
    if (!(error instanceof ImageError))
      throw new Finding(`${what} throws ${name}, ${withoutNumbers(message)}`, stack, error);
    if (ODD_TEXT.test(message)) throw new Finding(`${what}'s message`, message, error);
    return error;
  }
}

/** What `work` returns; undefined when it refuses. */
export function attempt<T>(what: string, work: () => T): T | undefined {
  const outcome = outcomeOf(what, work);
  return outcome instanceof ImageError ? undefined : outcome;
}

/** What `work` returns; that it refuses, too, is a finding. */
function must<T>(kind: string, work: () => T): T {
  const outcome = outcomeOf(kind, work);
  if (!(outcome instanceof ImageError)) return outcome;
  throw new Finding(`${kind}: ${withoutNumbers(outcome.message)}`, outcome.message, outcome);
}

/** @param kind what is wrong if the bytes are not the same */
function same(kind: string, a: Uint8Array, b: Uint8Array): void {
  if (Buffer.compare(a, b) === 0) return;
  const at = a.findIndex((byte, i) => byte !== b[i]);
  const first = at < 0 ? Math.min(a.length, b.length) : at;
  throw new Finding(kind, `${a.length} and ${b.length} bytes, the first difference at ${first}`);
}

function oneLineEach(lines: readonly string[]): void {
  const odd = lines.find((line) => line.includes("\n") || ODD_TEXT.test(line));
  if (odd !== undefined) throw new Finding("verify's violation", JSON.stringify(odd));
}

function withoutNumbers(message: string): string {
  return message.replace(/section \S+/g, "section S").replace(/0x[0-9a-f]+|\d+/g, "N");
}

// ---- guards

const plainArray = globalThis.Uint8Array;
/**
 * An Uint8Array that does not get large: the system gives out zeros for nothing, so that memory in use would not tell.
 */
const guardedArray = new Proxy(plainArray, {
  construct(target, args: unknown[], newTarget): object {
    const [size] = args;
    if (typeof size === "number" && size > MOST_BYTES) throw new Error(`allocates ${size} bytes, as a header claims`);
    return Reflect.construct(target, args, newTarget === guardedArray ? target : newTarget) as object;
  },
});

/** Runs `work` where nothing large can be allocated; and without stacks, which most of the time would go into. */
function withoutLargeArrays<T>(work: () => T): T {
  const { stackTraceLimit } = Error;
  globalThis.Uint8Array = guardedArray;
  Error.stackTraceLimit = 3;
  try {
    return work();
  } finally {
    globalThis.Uint8Array = plainArray;
    Error.stackTraceLimit = stackTraceLimit;
  }
}
