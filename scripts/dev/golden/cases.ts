// SPDX-License-Identifier: GPL-2.0-only
// The goldens: for each build, each value of RELOC and each step, inspect's text of what the step writes, which has the
// whole file's SHA-256 in it; so an equal text means equal bytes. This file says which there are, makes and compares
// them; golden.test.ts (make test) and golden.ts (make golden, golden-update, golden-add) are its two users.
//
// golden/<build>-<move|keep>-<step>.txt   the text; "refused: …" where a step of a user's own build cannot be done
// golden/mini-xen-….efi.gz                the bytes, of the small sample only
// golden/<name>.input.txt                 what a user's own build was made from: it is not in the repository
// golden/reference-digests.txt            what an independent implementation writes

import * as fs from "node:fs";
import * as path from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";
import { alignSections } from "../../align-sections.ts";
import { ImageError } from "../../cli/errors.ts";
import { hex } from "../../cli/numbers.ts";
import { byteDifference, changedLines, textDifference } from "./report.ts";
import { knownBuilds } from "../known-builds.ts";
import { TOP } from "../places.ts";
import { emitHeader } from "../../emit-header.ts";
import { inspectText } from "../../inspect.ts";
import type { Image } from "../../pe/image.ts";
import { onBytes } from "../on-bytes.ts";
import { relocateReloc } from "../../relocate-reloc.ts";
import { sha256 } from "../../show/inspect-facts.ts";

export const VARIANTS = ["move", "keep"] as const;
export type Variant = (typeof VARIANTS)[number];

/** As the Makefile names what it leaves of each. */
export const STEPS = ["1-relocated", "2-aligned", "3-headers"] as const;
export type Step = (typeof STEPS)[number];

/** Where goldens are read and written; tests have their own. */
export interface Places {
  /** The goldens. */
  readonly golden: string;
  /** What was written instead of what a golden says. */
  readonly actual: string;
  readonly samples: string;
}

export const PLACES: Places = {
  golden: path.join(TOP, "golden"),
  actual: path.join(TOP, "build", "golden"),
  samples: path.join(TOP, "samples"),
};

export interface Build {
  readonly name: string;
  /** Its xen.efi. */
  readonly file: string;
  /** Of that file; undefined for the sample in the repository, of whose outputs the bytes are kept besides the text. */
  readonly sha256: string | undefined;
  /** Makes the input from the file, where it is not the file itself. */
  readonly change?: (bytes: Uint8Array) => Uint8Array;
  readonly steps: readonly Step[];
  /** Whether a user has added it. */
  readonly added: boolean;
  /** What to do when the file is not there. */
  readonly hint: string;
}

// ---- which goldens there are

/** Known builds changed by hand, for what no known build has. */
const DERIVED: readonly { from: string; name: string; change: (bytes: Uint8Array) => Uint8Array }[] = [
  {
    // A debug section beyond SizeOfImage, as clang builds up to Xen 4.17 have one.
    from: "4.20.4+63",
    name: "4.20.4+63-orphan",
    change(bytes) {
      const changed = Buffer.from(bytes);
      changed.writeUInt32LE(0xc0000000, 0x414);
      return changed;
    },
  },
  {
    // Zeros behind the Multiboot2 header are content, not padding: no room there.
    from: "4.17.7+13",
    name: "4.17.7+13-zeros",
    change: (bytes) => Buffer.from(bytes).fill(0, 0x3a0, 0x1300),
  },
];

/** The builds whose goldens belong to the project. */
export function builtInBuilds({ samples }: Places = PLACES): Build[] {
  const common = { steps: STEPS, added: false };
  const mini = {
    ...common,
    name: "mini-xen",
    file: path.join(samples, "mini-xen", "mini-xen.efi"),
    sha256: undefined,
    hint: "make samples",
  };
  const known = knownBuilds.map(({ id, sha256 }) => ({
    ...common,
    name: id,
    file: path.join(samples, "xen", id, "xen.efi"),
    sha256,
    hint: "make fetch-xen",
  }));
  const derived = DERIVED.flatMap(({ from, name, change }) =>
    known.filter((build) => build.name === from).map((build) => ({ ...build, name, change, steps: STEPS.slice(2) })),
  );
  return [mini, ...known, ...derived];
}

/** The builds that users have added, by the record of their input. */
export function addedBuilds(places: Places = PLACES): Build[] {
  const records = listGoldens(places).filter((file) => file.endsWith(INPUT_SUFFIX));
  return records.map((file) => {
    const digest = /^SHA-256 +([0-9a-f]{64})$/m.exec(read(places, file))?.[1] ?? "unreadable";
    return addedBuild(places, file.slice(0, -INPUT_SUFFIX.length), digest);
  });
}

/** A user's own build. Without a file of its own it is looked for where the known builds are. */
export function addedBuild(
  { samples }: Places,
  name: string,
  sha256: string | undefined,
  file = path.join(samples, "xen", name, "xen.efi"),
): Build {
  return { name, file, sha256, steps: STEPS, added: true, hint: `make golden NAME=${name} XEN_EFI=…` };
}

const INPUT_SUFFIX = ".input.txt";
const REFERENCE = "reference-digests.txt";
const NAME = /^[A-Za-z0-9][A-Za-z0-9._+-]*$/;

/** Why a name cannot be given to a user's own build; undefined when it can. */
export function whyNotAName(name: string): string | undefined {
  if (!NAME.test(name)) return `needed letters, digits and "._+-", a letter or a digit first`;
  if (builtInBuilds().some((build) => build.name.toLowerCase() === name.toLowerCase()))
    return "it is one of the project's own goldens";
  return undefined;
}

export function goldenName(build: Pick<Build, "name">, variant: Variant, step: Step): string {
  return `${build.name}-${variant}-${step}`;
}

/** Files only: golden/cases has its own driver. */
function listGoldens({ golden }: Places): string[] {
  if (!fs.existsSync(golden)) return [];
  return fs
    .readdirSync(golden, { withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ name }) => name)
    .sort();
}

function read({ golden }: Places, file: string): string {
  return fs.readFileSync(path.join(golden, file), "utf8");
}

/** Files among the goldens that no build makes: left behind by one that is gone, or put there by mistake. */
export function orphans(places: Places, builds: readonly Build[]): string[] {
  const expected = builds.flatMap((build) => [
    ...(build.added ? [build.name + INPUT_SUFFIX] : []),
    ...VARIANTS.flatMap((variant) => build.steps.map((step) => goldenName(build, variant, step))).flatMap((name) =>
      build.sha256 === undefined ? [`${name}.txt`, `${name}.efi.gz`] : [`${name}.txt`],
    ),
  ]);
  return listGoldens(places).filter((file) => file !== REFERENCE && !expected.includes(file));
}

// ---- what they are made from

export type Input = { readonly bytes: Uint8Array } | { readonly missing: string } | { readonly wrong: string };

/** A build's xen.efi: its bytes; or that it is not there; or that it is another file than the goldens were made from. */
export function readBuild({ file, sha256: needed, hint, change }: Build): Input {
  const shown = file.startsWith(TOP + path.sep) ? path.relative(TOP, file) : file;
  if (!fs.existsSync(file)) return { missing: `${shown} is not there (${hint})` };
  const bytes = fs.readFileSync(file);
  const found = sha256(bytes);
  if (needed !== undefined && found !== needed) {
    return {
      wrong: `${shown} is not the file that the goldens were made from: its SHA-256 is ${found}, needed ${needed}`,
    };
  }
  return { bytes: change === undefined ? bytes : change(bytes) };
}

// ---- making

export interface Output {
  readonly step: Step;
  readonly text: string;
  /** undefined where the step, or one before it, refused. */
  readonly bytes: Uint8Array | undefined;
}

const RUN: Readonly<Record<Step, (image: Image, keep: boolean) => Image>> = {
  "1-relocated": relocateReloc,
  "2-aligned": (image) => alignSections(image),
  "3-headers": (image) => emitHeader(image),
};

/**
 * The chain as the Makefile runs it, through files: every step reads the bytes that the one before wrote.
 * @param wanted the steps whose outputs are returned
 */
export function runChain(input: Uint8Array, variant: Variant, wanted: readonly Step[] = STEPS): Output[] {
  return chainOf(input, variant)
    .filter(({ step }) => wanted.includes(step))
    .map(({ step, bytes, refusal }) => ({
      step,
      bytes,
      text: bytes === undefined ? `refused: ${refusal}\n` : inspectText(bytes),
    }));
}

/** Every step's output, or why there is none: a step behind one that refuses has the same reason. */
export function chainOf(
  input: Uint8Array,
  variant: Variant,
): { readonly step: Step; readonly bytes: Uint8Array | undefined; readonly refusal: string | undefined }[] {
  let bytes: Uint8Array | undefined = input;
  let refusal: string | undefined;
  return STEPS.map((step) => {
    try {
      bytes &&= onBytes((image) => RUN[step](image, variant === "keep"))(bytes);
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
      [bytes, refusal] = [undefined, error.message];
    }
    return { step, bytes, refusal };
  });
}

// ---- comparing

/**
 * Compares one output with its golden.
 * @returns undefined when they are equal; else what differs, over several lines, and the actual output is left on disk
 */
export function checkOutput(
  places: Places,
  build: Build,
  variant: Variant,
  { step, text, bytes }: Output,
): string | undefined {
  const name = goldenName(build, variant, step);
  const goldenText = path.join(places.golden, `${name}.txt`);
  const goldenBytes = path.join(places.golden, `${name}.efi.gz`);
  const actual = path.join(places.actual, name);
  for (const suffix of [".txt", ".efi"]) fs.rmSync(actual + suffix, { force: true });
  for (const file of [goldenText, ...(build.sha256 === undefined ? [goldenBytes] : [])]) {
    if (!fs.existsSync(file))
      return `golden ${name}: ${path.relative(TOP, file)} is missing; make golden-update writes it`;
  }
  const expectedText = fs.readFileSync(goldenText, "utf8");
  const expectedBytes = build.sha256 === undefined ? gunzipSync(fs.readFileSync(goldenBytes)) : undefined;
  const sameBytes = expectedBytes === undefined || (bytes !== undefined && Buffer.compare(expectedBytes, bytes) === 0);
  if (expectedText === text && sameBytes) return undefined;
  fs.mkdirSync(places.actual, { recursive: true });
  fs.writeFileSync(`${actual}.txt`, text);
  if (bytes !== undefined) fs.writeFileSync(`${actual}.efi`, bytes);
  return [
    `golden ${name} differs; what was written instead is ${path.relative(TOP, actual)}.efi, its text is beside it`,
    ...(expectedText === text
      ? []
      : [textDifference(path.relative(TOP, goldenText), `${path.relative(TOP, actual)}.txt`, expectedText, text)]),
    ...(sameBytes || expectedBytes === undefined || bytes === undefined ? [] : [byteDifference(expectedBytes, bytes)]),
  ].join("\n");
}

// ---- writing, on request only

/** Writes an output as golden. @returns what changed, undefined when nothing did */
export function updateOutput(
  places: Places,
  build: Build,
  variant: Variant,
  { step, text, bytes }: Output,
): string | undefined {
  fs.mkdirSync(places.golden, { recursive: true });
  const name = goldenName(build, variant, step);
  const changes: string[] = [];
  const file = path.join(places.golden, `${name}.txt`);
  const old = fs.existsSync(file) ? fs.readFileSync(file, "utf8") : undefined;
  if (old !== text) {
    fs.writeFileSync(file, text);
    changes.push(old === undefined ? "new" : changedLines(old, text));
  }
  if (build.sha256 === undefined && bytes !== undefined) {
    // Compressed bytes depend on the version of zlib: they stay as they are while they stand for the same image.
    const packed = path.join(places.golden, `${name}.efi.gz`);
    const before = fs.existsSync(packed) ? gunzipSync(fs.readFileSync(packed)) : undefined;
    if (before === undefined || Buffer.compare(before, bytes) !== 0) {
      fs.writeFileSync(packed, gzipSync(bytes, { level: 9 }));
      changes.push(before === undefined ? "bytes new" : "bytes changed");
    }
  }
  return changes.length === 0 ? undefined : `${name}: ${changes.join(", ")}`;
}

/** Records what a user's own build was made from. */
export function writeInputRecord({ golden }: Places, name: string, input: Uint8Array): void {
  fs.mkdirSync(golden, { recursive: true });
  fs.writeFileSync(
    path.join(golden, name + INPUT_SUFFIX),
    `size     ${hex(input.length)}, ${input.length} bytes\nSHA-256  ${sha256(input)}\n`,
  );
}

// ---- the independent implementation

export interface Reference {
  readonly build: string;
  readonly variant: Variant;
  readonly size: number;
  readonly sha256: string;
}

export function readReferences(places: Places = PLACES): Reference[] {
  const rows = read(places, REFERENCE)
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("#"));
  return rows.map((line) => {
    const [build = "", variant = "", size = "", digest = ""] = line.split(/ +/);
    const known = VARIANTS.find((v) => v === variant);
    if (known === undefined || !/^\d+$/.test(size) || !/^[0-9a-f]{64}$/.test(digest))
      throw new Error(`${REFERENCE}: Cannot read the row "${line}"`);
    return { build, variant: known, size: Number(size), sha256: digest };
  });
}
