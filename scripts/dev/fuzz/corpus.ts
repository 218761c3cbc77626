// SPDX-License-Identifier: GPL-2.0-only
// The images that the fuzzer starts from: samples/fuzz/*.pe.txt, and what each step makes of them. They are a few
// kilobytes each, so that thousands can be tried in a second.

import * as fs from "node:fs";
import * as path from "node:path";
import { alignSections } from "../../align-sections.ts";
import { emitHeader } from "../../emit-header.ts";
import { onBytes } from "../on-bytes.ts";
import { stripSignature } from "../../pe/transform.ts";
import { relocateReloc } from "../../relocate-reloc.ts";
import { SAMPLES } from "../places.ts";
import { makeSample } from "../sample/text.ts";

const FOLDER = path.join(SAMPLES, "fuzz");

export interface Base {
  /** "micro", or "micro, aligned": the sample and the last step. */
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** All of them, always in the same order. */
export function corpus(): Base[] {
  const read = (name: string): string => fs.readFileSync(path.join(FOLDER, name), "utf8");
  const files = fs.readdirSync(FOLDER).filter((file) => file.endsWith(".pe.txt"));
  return files.sort().flatMap((file) => stages(path.basename(file, ".pe.txt"), makeSample(read(file), read)));
}

function stages(name: string, bytes: Uint8Array): Base[] {
  const unsigned = onBytes(stripSignature)(bytes);
  const relocated = onBytes((image) => relocateReloc(image, false))(unsigned);
  const aligned = onBytes((image) => alignSections(image))(relocated);
  return [
    { name, bytes },
    { name: `${name}, relocated`, bytes: relocated },
    { name: `${name}, kept`, bytes: onBytes((image) => relocateReloc(image, true))(unsigned) },
    { name: `${name}, aligned`, bytes: aligned },
    { name: `${name}, with headers`, bytes: onBytes((image) => emitHeader(image))(aligned) },
  ];
}
