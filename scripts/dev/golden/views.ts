// SPDX-License-Identifier: GPL-2.0-only
// Goldens of what people look at: pictures and explanations of known builds, as text in golden/views. What they show of
// an image is in the other goldens already; these show a change in the showing. Test-side.
//
// VIEWS_UPDATE=1 (make golden-update) writes them; read the difference before you commit it.

import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { PLACES, builtInBuilds, type Variant } from "./cases.ts";
import { textDifference } from "./report.ts";
import { mbEfi } from "../../mb-efi.ts";

const FOLDER = path.join(PLACES.golden, "views");

export interface BeforeAndAfter {
  readonly original: Uint8Array;
  readonly result: Uint8Array;
}

const made = new Map<string, BeforeAndAfter>();

/** A known build and what the whole chain makes of it; undefined, which is said, where the build is not there. */
export function beforeAndAfter(name: string, variant: Variant): BeforeAndAfter | undefined {
  const build = builtInBuilds().find((candidate) => candidate.name === name);
  if (build === undefined) throw new Error(`no build ${name}`);
  if (!fs.existsSync(build.file) && process.env.CI !== "true") {
    console.log(
      `skipped: views of ${name}: ${path.relative(path.dirname(PLACES.samples), build.file)} is not there (${build.hint})`,
    );
    return undefined;
  }
  const key = `${name} ${variant}`;
  const original = new Uint8Array(fs.readFileSync(build.file));
  const pair = made.get(key) ?? {
    original,
    result: mbEfi(original, { keep: variant === "keep", stripSignature: false }),
  };
  made.clear();
  made.set(key, pair);
  return pair;
}

/** Fails, with a unified diff, unless a view is what golden/views has of it. */
export function matchView(file: string, text: string): void {
  const golden = path.join(FOLDER, file);
  if (process.env["VIEWS_UPDATE"] === "1") {
    fs.mkdirSync(FOLDER, { recursive: true });
    if (!fs.existsSync(golden) || fs.readFileSync(golden, "utf8") !== text)
      console.log(`golden/views/${file}: written`);
    fs.writeFileSync(golden, text);
    return;
  }
  const expected = fs.existsSync(golden) ? fs.readFileSync(golden, "utf8") : "";
  if (expected === text) return;
  const error = new Error(
    `golden/views/${file} differs (make golden-update writes it):\n${textDifference(`golden/views/${file}`, "what is shown now", expected, text)}`,
  );
  error.stack = "";
  throw error;
}
