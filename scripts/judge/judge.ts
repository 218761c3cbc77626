// SPDX-License-Identifier: GPL-2.0-only
// The judgement: what verify reports and mb-efi acts on.

import { expectedFile, expectedMemory, type Steps } from "./expected.ts";
import { checkFile, checkHeaderArea, pairSections } from "./file.ts";
import { Findings } from "./findings.ts";
import { checkBases, checkFixups, checkMultiboot1, checkMultiboot2, checkShim, type Loaded } from "./loaded.ts";
import { loadByFirmware, loadMultiboot1, loadMultiboot2, relocationTable } from "./loads.ts";
import { readFixups } from "./memory.ts";
import { readPe, type Pe } from "./read.ts";

export interface Judgement {
  /** One line each, "Cannot verify: where, found, needed", without the file's name. None: the result is right. */
  readonly violations: string[];
  /** What was compared; undefined where a violation has left nothing to compare. */
  readonly loaded: Loaded | undefined;
}

/** Judges a result by its original. Neither is changed; any bytes may be given. */
export function judge(originalBytes: Uint8Array, resultBytes: Uint8Array): Judgement {
  const findings = new Findings();
  const original = findings.attempt("the original", () => readPe(originalBytes));
  const result = findings.attempt("the result", () => readPe(resultBytes));
  const loaded = original && result && compareImages(original, result, findings);
  return { violations: findings.lines(), loaded };
}

/** What the result must have gone through; where .reloc is says which way its table went. */
function stepsTo(original: Pe, result: Pe): Steps {
  const [before, after] = [original, result].map(({ sections }) => sections.find((s) => s.name === ".reloc")?.header);
  const isMoved = after !== undefined && after.virtualAddress !== before?.virtualAddress;
  return { relocated: isMoved ? "moved" : "kept", aligned: true, headers: true, signatureDropped: true };
}

function compareImages(original: Pe, result: Pe, findings: Findings): Loaded | undefined {
  // First, because it is what an image lacks that has not gone through all the steps.
  const multiboot2 = findings.attempt("the result", () => loadMultiboot2(result.bytes));
  const multiboot1 = findings.attempt("the result", () => loadMultiboot1(result.bytes));
  const file = findings.attempt("the original", () => expectedFile(original, stepsTo(original, result)));
  const pairs = file && pairSections(file, result, findings);
  if (file === undefined || pairs === undefined) return undefined;
  checkFile(file, result, pairs, findings);
  const needed = findings.attempt("the original", () => expectedMemory(file));
  const memory = findings.attempt("the result", () => loadByFirmware(result));
  const fixups = memory && findings.attempt("the result", () => readFixups(relocationTable(result, memory)));
  if (needed === undefined || memory === undefined || fixups === undefined) return undefined;
  checkHeaderArea(file, result, needed.entry, findings);
  const loaded = { file, needed, result, pairs, memory, fixups, multiboot1, multiboot2, findings };
  checkBases(loaded);
  checkFixups(loaded);
  findings.attempt("the result", () => checkShim(loaded));
  if (multiboot2 !== undefined) checkMultiboot2(loaded, multiboot2);
  if (multiboot1 !== undefined) checkMultiboot1(loaded, multiboot1);
  return loaded;
}
