// SPDX-License-Identifier: GPL-2.0-only
// The images that the fuzzer starts from: samples/fuzz/*.pe.txt, and what each step makes of them. They are a few
// kilobytes each, so that thousands can be tried in a second.

import * as fs from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { alignSections } from "../../align-sections.ts";
import { makeSample } from "../sample/text.ts";
import { emitHeader } from "../../emit-header.ts";
import { parseImage, serializeImage } from "../../pe/image.ts";
import { stripSignature } from "../../pe/transform.ts";
import { relocateReloc } from "../../relocate-reloc.ts";

const SAMPLES = fileURLToPath(new URL("../../../samples/fuzz/", import.meta.url));

export interface Base {
  /** "micro", or "micro, aligned": the sample and the last step. */
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** All of them, always in the same order. */
export function corpus(): Base[] {
  const files = fs
    .readdirSync(SAMPLES)
    .filter((file) => file.endsWith(".pe.txt"))
    .sort();
  if (files.length === 0) throw new Error(`no samples in ${SAMPLES}`);
  return files.flatMap((file) => stages(path.basename(file, ".pe.txt"), sample(file)));
}

function sample(file: string): Uint8Array {
  const read = (name: string): string => fs.readFileSync(path.join(SAMPLES, name), "utf8");
  return makeSample(read(file), read);
}

function stages(name: string, bytes: Uint8Array): Base[] {
  const unsigned = stripSignature(bytes);
  const relocated = serializeImage(relocateReloc(parseImage(unsigned), false));
  const kept = serializeImage(relocateReloc(parseImage(unsigned), true));
  const aligned = serializeImage(alignSections(parseImage(relocated)));
  const withHeaders = serializeImage(emitHeader(parseImage(aligned)));
  return [
    { name, bytes },
    { name: `${name}, relocated`, bytes: relocated },
    { name: `${name}, kept`, bytes: kept },
    { name: `${name}, aligned`, bytes: aligned },
    { name: `${name}, with headers`, bytes: withHeaders },
  ];
}
