// SPDX-License-Identifier: GPL-2.0-only
// What must hold for any bytes whatever, by all scripts' pure functions: the fuzzer's judgement, and the replay's of
// what it found before.

import { Buffer } from "node:buffer";
import { performance } from "node:perf_hooks";
import { addSections, removeSections } from "../../add-sections.ts";
import type { Payload } from "../../add-sections.ts";
import { alignSections } from "../../align-sections.ts";
import { checkLoaders, reportText } from "../../check-loaders.ts";
import { ImageError } from "../../cli/errors.ts";
import { emitHeader } from "../../emit-header.ts";
import { inspectText } from "../../inspect.ts";
import { PROFILES } from "../../loaders/profiles.ts";
import { boots, verdictLine } from "../../loaders/rules.ts";
import { authenticode, authenticodeDigests } from "../../judge/authenticode.ts";
import { parseImage, serializeImage } from "../../pe/image.ts";
import type { Image } from "../../pe/image.ts";
import { stripSignature } from "../../pe/transform.ts";
import { relocateReloc } from "../../relocate-reloc.ts";
import { debugFile, stripDebug } from "../../strip-debug.ts";
import { offsetOf, readStructure } from "../../tables/fields.ts";
import { MB2_HEADER } from "../../tables/multiboot.ts";
import { COFF_HEADER, DIRECTORY_DEBUG, OPTIONAL_HEADER, SIGNATURE_SIZE } from "../../tables/pe.ts";
import { verify } from "../../verify.ts";
import { findMultiboot1, findMultiboot2 } from "../../xen/multiboot.ts";
import { baseRelocations } from "../../xen/xen.ts";
import type { BaseRelocation } from "../../xen/xen.ts";

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
const ODD_TEXT = /[^\n -~…]|undefined|NaN|\[object|0x-/;
/** Two per line of a section table is plenty; the longest texts are lists of fix-ups. */
const MOST_TEXT = 4 << 20;

/**
 * How much of everything is run on an image: "all"; or only what finds most for its time, the whole chain and verify,
 * with .reloc moved or kept.
 */
export type Extent = "all" | "move" | "keep";

/**
 * Runs the scripts' pure functions on an image.
 * @throws Finding
 */
export function judge(bytes: Uint8Array, extent: Extent): Outcome {
  return guarded(bytes, () => judgeAll(bytes, extent));
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

function judgeAll(bytes: Uint8Array, extent: Extent): Outcome {
  if (extent === "all") judgeReaders(bytes);
  const unsigned = attempt("stripSignature", () => stripSignature(bytes)) ?? bytes;
  const image = attempt("parseImage", () => parseImage(unsigned));
  if (image === undefined) return { steps: 0, verified: 0 };
  judgeRoundTrip(image, unsigned);
  if (extent !== "all") return judgeChain(image, extent === "keep", false);
  let [steps, verified] = [judgeOutOfOrder(image), 0];
  for (const keep of [false, true]) {
    const chain = judgeChain(image, keep, true);
    steps += chain.steps;
    verified += chain.verified;
    judgeSideSteps(image, chain.result, keep);
    if (chain.result === undefined) continue;
    const again = judgeChain(parseImage(new Uint8Array(unsigned)), keep, true).result;
    if (again === undefined || Buffer.compare(again, chain.result) !== 0)
      throw new Finding("not repeatable", "the same input gave another output");
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
  [
    / RELOCATABLE tag is |: _start, when loaded at |: the relocatable tag has |needed _start on a multiple of /,
    "a tag that leaves no address to load at",
  ],
  [/ and offset 0x0, needed both from SizeOfHeaders /, "a section without data: the design wants its file offset 0"],
  [/: the Multiboot2 header at .* has two tags /, "of which each loader takes another one"],
  [/^Cannot verify: the EFI entry address in /, "a tag that leads out of the image"],
  [/ comes behind a magic with a wrong checksum at /, "half a Multiboot header in front of the real one"],
];

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
    if (now === undefined || !boots(verdict) || boots(now) || isExcused(verdictLine(now))) return;
    throw new Finding(`${now.loader} does not boot it any more: ${withoutNumbers(verdictLine(now))}`, verdictLine(now));
  });
}

// ---- the functions that only look

function judgeReaders(bytes: Uint8Array): void {
  attempt("authenticode", () => authenticodeDigests(bytes, authenticode(bytes)));
  const text = attempt("inspect", () => inspectText(bytes));
  if (text !== undefined && (text.length > MOST_TEXT || /[^\n -~]|undefined|NaN|\[object/.test(text))) {
    const odd = text.split("\n").find((line) => /[^ -~]|undefined|NaN|\[object/.test(line));
    throw new Finding("inspect's text", `${text.length} characters, or ${JSON.stringify(odd)}`);
  }
  const report = attempt("check-loaders", () => reportText(checkLoaders(bytes)));
  if (report !== undefined && ODD_TEXT.test(report)) {
    throw new Finding("check-loaders's text", JSON.stringify(report.split("\n").find((line) => ODD_TEXT.test(line))));
  }
  attempt("verify with itself", () => oneLineEach(verify(bytes, bytes).violations));
}

/** Reading and writing changes the checksum, if anything. */
function judgeRoundTrip(image: Image, bytes: Uint8Array): void {
  const written = attempt("serializeImage", () => serializeImage(image));
  if (written === undefined) throw new Finding("round trip", "what was read cannot be written");
  const again = serializeImage(parseImage(written));
  if (Buffer.compare(written, again) !== 0) throw new Finding("round trip", "written twice, it differs");
  if (written.length !== bytes.length)
    throw new Finding("round trip", `${bytes.length} bytes became ${written.length}`);
  const checkSumAt = image.lfanew + SIGNATURE_SIZE + COFF_HEADER.size + offsetOf(OPTIONAL_HEADER, "checkSum");
  again.set(bytes.subarray(checkSumAt, checkSumAt + 4), checkSumAt);
  if (Buffer.compare(again, bytes) !== 0) throw new Finding("round trip", firstDifference(bytes, again));
}

// ---- the steps

interface Chain {
  readonly steps: number;
  readonly verified: number;
  readonly result: Uint8Array | undefined;
}

/** @param thorough also each step by itself, on its own output and on the finished image */
function judgeChain(original: Image, keep: boolean, thorough: boolean): Chain {
  const relocated = attempt("relocate-reloc", () => relocateReloc(original, keep));
  if (relocated === undefined) return { steps: 0, verified: 0, result: undefined };
  const first = thorough ? output("relocate-reloc", relocated, (again) => relocateReloc(again, keep)) : undefined;
  if (relocated.fileSize !== original.fileSize)
    throw new Finding("relocate-reloc's size", `${original.fileSize} bytes became ${relocated.fileSize}`);
  const aligned = attempt("align-sections", () => alignSections(relocated));
  if (aligned === undefined) return { steps: 1, verified: 0, result: undefined };
  if (aligned.fileSize > MOST_BYTES)
    throw new Finding("align-sections's output is too large", `${aligned.fileSize} bytes`);
  const second = thorough ? output("align-sections", aligned, (again) => alignSections(again)) : undefined;
  const withHeaders = attempt("emit-header", () => emitHeader(aligned));
  if (withHeaders === undefined) return { steps: 2, verified: 0, result: undefined };
  const result = output("emit-header", withHeaders, undefined);
  if (first !== undefined) sameFromBytes("align-sections", first, alignSections, second);
  if (second !== undefined) sameFromBytes("emit-header", second, emitHeader, result);
  if (thorough) {
    judgeFinished(result, keep);
    judgeLoaders(original.background, result);
  }
  return { steps: 3, verified: judgeVerdict(original, result, keep), result };
}

/** A step's output is an image, and the step leaves it as it is. */
function output(step: string, image: Image, again: ((image: Image) => Image) | undefined): Uint8Array {
  const bytes = withFinding(`${step}'s output cannot be written`, () => serializeImage(image));
  if (bytes.length > MOST_BYTES) throw new Finding(`${step}'s output is too large`, `${bytes.length} bytes`);
  const read = withFinding(`${step}'s output cannot be read`, () => parseImage(bytes));
  if (again === undefined) return bytes;
  const second = withFinding(`${step} refuses its own output`, () => serializeImage(again(read)));
  if (Buffer.compare(bytes, second) !== 0)
    throw new Finding(`${step} changes its own output`, firstDifference(bytes, second));
  return bytes;
}

/** One process for all steps, or one for each: the same bytes. */
function sameFromBytes(
  step: string,
  input: Uint8Array,
  transform: (image: Image) => Image,
  expected: Uint8Array | undefined,
): void {
  const bytes = withFinding(`${step} refuses the bytes of what it took as an image`, () =>
    serializeImage(transform(parseImage(input))),
  );
  if (expected !== undefined && Buffer.compare(bytes, expected) !== 0)
    throw new Finding(`${step} differs between image and bytes`, firstDifference(bytes, expected));
}

/** The finished image is refused, or left as it is, by every step. */
function judgeFinished(result: Uint8Array, keep: boolean): void {
  const relocated = attempt("relocate-reloc on the result", () =>
    serializeImage(relocateReloc(parseImage(result), keep)),
  );
  const aligned = attempt("align-sections on the result", () => serializeImage(alignSections(parseImage(result))));
  for (const bytes of [relocated, aligned]) {
    if (bytes !== undefined && Buffer.compare(bytes, result) !== 0)
      throw new Finding("a step changes the finished image", firstDifference(result, bytes));
  }
  try {
    emitHeader(parseImage(result));
  } catch (error) {
    if (error instanceof ImageError && /emit-header has run already/.test(error.message)) return;
    throw new Finding("emit-header on its own output", String(error), error);
  }
  throw new Finding("emit-header on its own output", "is not refused");
}

/** Steps that do not get what they expect. @returns how many went well nonetheless */
function judgeOutOfOrder(image: Image): number {
  let steps = 0;
  const aligned = attempt("align-sections", () => alignSections(image));
  if (aligned !== undefined) {
    steps++;
    const bytes = output("align-sections", aligned, (again) => alignSections(again));
    for (const keep of [false, true]) {
      const relocated = attempt("relocate-reloc after align-sections", () => relocateReloc(parseImage(bytes), keep));
      if (relocated !== undefined && Buffer.compare(serializeImage(relocated), bytes) !== 0) {
        throw new Finding("relocate-reloc changes an aligned image", firstDifference(bytes, serializeImage(relocated)));
      }
    }
  }
  const withHeaders = attempt("emit-header", () => emitHeader(image));
  if (withHeaders !== undefined) {
    steps++;
    output("emit-header", withHeaders, undefined);
  }
  return steps;
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
  attempt("debugFile", () => output("debugFile", debugFile(image), undefined));
  attempt("removeSections", () => output("removeSections", removeSections(image, [".config"]), undefined));
  for (const [name, step] of SIDE_STEPS) {
    const changed = attempt(name, () => step(image));
    if (changed !== undefined) output(name, changed, step);
    const after = finished === undefined ? undefined : attempt(name, () => serializeImage(step(parseImage(finished))));
    if (changed === undefined || after === undefined) continue;
    const before = attempt(`the chain after ${name}`, () =>
      serializeImage(emitHeader(alignSections(relocateReloc(changed, keep)))),
    );
    if (before === undefined || Buffer.compare(before, after) === 0) continue;
    throw new Finding(`${name} before and after the chain differ`, firstDifference(before, after));
  }
}

// ---- what may be thrown

/** What `work` returns; undefined when it refuses, in one line, with an ImageError. */
export function attempt<T>(what: string, work: () => T): T | undefined {
  try {
    return work();
  } catch (error) {
    if (error instanceof Finding) throw error;
    if (!(error instanceof ImageError)) throw new Finding(`${what} throws ${errorKind(error)}`, stackOf(error), error);
    if (/undefined|NaN|Infinity|\[object|0x-/.test(error.message))
      throw new Finding(`${what}'s message`, error.message, error);
    return undefined;
  }
}

/** What `work` returns; that it refuses, too, is a finding. */
function withFinding<T>(kind: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (error instanceof Finding) throw error;
    if (!(error instanceof ImageError)) throw new Finding(`${kind}: throws ${errorKind(error)}`, stackOf(error), error);
    throw new Finding(`${kind}: ${withoutNumbers(error.message)}`, error.message, error);
  }
}

function oneLineEach(lines: readonly string[]): void {
  const odd = lines.find((line) => /\n|undefined|NaN|\[object|0x-/.test(line));
  if (odd !== undefined) throw new Finding("verify's violation", JSON.stringify(odd));
}

function errorKind(error: unknown): string {
  return error instanceof Error ? `${error.name}, ${withoutNumbers(error.message)}` : String(error);
}

function stackOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

function withoutNumbers(message: string): string {
  return message.replace(/section \S+/g, "section S").replace(/0x[0-9a-f]+|\d+/g, "N");
}

function firstDifference(a: Uint8Array, b: Uint8Array): string {
  const at = a.findIndex((byte, i) => byte !== b[i]);
  return `${a.length} and ${b.length} bytes, the first difference at ${at < 0 ? Math.min(a.length, b.length) : at}`;
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
