// SPDX-License-Identifier: GPL-2.0-only
// The scripts that users run, in the order in which README and manual page have them. Their usage texts are the source of
// both; what is only for working on the project is not among them and has a make target.

import type { Command } from "../cli/cli.ts";

export const COMMAND_NAMES: readonly string[] = [
  "relocate-reloc",
  "align-sections",
  "emit-header",
  "verify",
  "inspect",
  "layout",
  "explain",
  "check-loaders",
  "authenticode",
  "add-sections",
  "strip-debug",
  "sign",
  "mb-efi",
  "install-xen",
];

/** All of them; loading them runs none. */
export async function loadCommands(): Promise<Command[]> {
  const modules = await Promise.all(
    COMMAND_NAMES.map((name): Promise<unknown> => import(new URL(`../${name}.ts`, import.meta.url).href)),
  );
  return modules.map((module) => (module as { command: Command }).command);
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
