// SPDX-License-Identifier: GPL-2.0-only
// What the tests of check-loaders look at: mini-xen and the known builds, before and after the steps.

import * as fs from "node:fs";
import * as path from "node:path";
import { alignSections } from "../../align-sections.ts";
import { emitHeader } from "../../emit-header.ts";
import { onBytes } from "../on-bytes.ts";
import { relocateReloc } from "../../relocate-reloc.ts";
import { knownBuilds } from "../known-builds.ts";
import { MINI_XEN, SAMPLES } from "../places.ts";

export type Variant = "untouched" | "move" | "keep";
export const VARIANTS: readonly Variant[] = ["untouched", "move", "keep"];

export function fileOf(build: string): string {
  return build === "mini-xen" ? MINI_XEN : path.join(SAMPLES, "xen", build, "xen.efi");
}

export const PRESENT = ["mini-xen", ...knownBuilds.map(({ id }) => id)].filter((build) => fs.existsSync(fileOf(build)));
export const ABSENT = knownBuilds.map(({ id }) => id).filter((id) => !PRESENT.includes(id));

/** The file after no step, or after all of them. */
export function load(build: string, variant: Variant): Uint8Array {
  const original = new Uint8Array(fs.readFileSync(fileOf(build)));
  if (variant === "untouched") return original;
  return onBytes((image) => emitHeader(alignSections(relocateReloc(image, variant === "keep"))))(original);
}

/** For a test whose needs are not there, to say so. */
export function skipped(what: string): void {
  console.log(`skipped: ${what}`);
}
