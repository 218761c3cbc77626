// SPDX-License-Identifier: GPL-2.0-only
// The whole chain as the Makefile runs it, as one program: the three steps through files, then verify. `make mutants`
// bundles it anew for every fault. It prints how each image of its arguments fared, as JSON.
//
// Arguments: an empty directory to work in, then the xen.efi files.

import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { command as alignSections } from "../../align-sections.ts";
import { runCommand } from "../../cli/cli.ts";
import { command as emitHeader } from "../../emit-header.ts";
import { command as relocateReloc } from "../../relocate-reloc.ts";
import { command as verify } from "../../verify.ts";

/** What became of one image with one value of RELOC. */
export interface Fate {
  /** SHA-256 of the result that verify accepted; undefined where a step or verify refused. */
  readonly digest?: string;
  /** Who refused, and its first line. */
  readonly refused?: string;
}

async function chain(input: string, folder: string, keep: boolean): Promise<Fate> {
  const [one, two, three] = ["1", "2", "3"].map((name) => path.join(folder, name)) as [string, string, string];
  for (const [name, command, args] of [
    ["relocate-reloc", relocateReloc, [input, one, ...(keep ? ["--keep"] : [])]],
    ["align-sections", alignSections, [one, two]],
    ["emit-header", emitHeader, [two, three]],
    ["verify", verify, [input, three]],
  ] as const) {
    let said = "";
    const io = { stdin: () => new Uint8Array(), stdout: () => {}, stderr: (text: string) => void (said += text) };
    const status = await runCommand(command, args, io);
    // What a step says in front of its refusal are notes.
    const line = said.split("\n").find((text) => !/: (note|warning): /.test(text)) ?? "";
    if (status !== 0) return { refused: `${name}: ${line.slice(line.indexOf("Cannot "))}` };
  }
  return { digest: createHash("sha256").update(fs.readFileSync(three)).digest("hex") };
}

const [folder = "", ...inputs] = process.argv.slice(2);
const fates: Fate[] = [];
for (const input of inputs) for (const keep of [false, true]) fates.push(await chain(input, folder, keep));
process.stdout.write(JSON.stringify(fates));
