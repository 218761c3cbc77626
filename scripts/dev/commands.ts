// SPDX-License-Identifier: GPL-2.0-only
// The scripts that users run, in the order in which README and manual page have them. Their usage texts are the source of
// both; what is only for working on the project is not among them and has a make target.

import type { Command } from "../cli/cli.ts";

/** Loading them runs none. */
const MODULES = {
  "relocate-reloc": import("../relocate-reloc.ts"),
  "align-sections": import("../align-sections.ts"),
  "emit-header": import("../emit-header.ts"),
  verify: import("../verify.ts"),
  inspect: import("../inspect.ts"),
  layout: import("../layout.ts"),
  explain: import("../explain.ts"),
  "check-loaders": import("../check-loaders.ts"),
  authenticode: import("../authenticode.ts"),
  "add-sections": import("../add-sections.ts"),
  "strip-debug": import("../strip-debug.ts"),
  sign: import("../sign.ts"),
  "mb-efi": import("../mb-efi.ts"),
  "install-xen": import("../install-xen.ts"),
};

export const COMMAND_NAMES: readonly string[] = Object.keys(MODULES);

export async function loadCommands(): Promise<Command[]> {
  return (await Promise.all(Object.values(MODULES))).map(({ command }) => command);
}

/** A usage text in its parts. */
export interface Usage {
  /** "mb-efi.ts IN OUT [--keep]", and other ways to call it, of one line each. */
  readonly synopses: readonly string[];
  /** What follows, parted by empty lines. */
  readonly blocks: readonly string[];
  /** "--keep", "leave .reloc …" */
  readonly options: readonly Option[];
}

export type Option = readonly [option: string, text: string];

export function parseUsage({ usage }: Command): Usage {
  const [first = "", ...blocks] = usage.trimEnd().split("\n\n");
  const name = /^Usage: (\S+)/.exec(first)?.[1] ?? "";
  // A line that goes on is indented; one that begins with the name is another way.
  const ways = first.replace(/^Usage: /, "").split(new RegExp(`\\n\\s*(?=${name})`));
  return {
    synopses: ways.map((way) => way.replace(/\n\s+/g, " ")),
    blocks,
    options: blocks.flatMap(optionsOf),
  };
}

/** The options that a block describes, each with its text in one line; none where it describes something else. */
export function optionsOf(block: string): Option[] {
  const entries = block.split(/\n(?= {2}-)/).map((entry) => entry.replace(/\n\s+/g, " "));
  return block.startsWith("  -")
    ? entries.map((entry) => {
        const [option = "", ...text] = entry.trim().split(/ {2,}/);
        return [option, text.join(" ")];
      })
    : [];
}
