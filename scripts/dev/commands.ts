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
  /** "mb-efi.ts IN OUT [--keep]", of one line. */
  readonly synopsis: string;
  /** Other ways to call it. */
  readonly alternatives: readonly string[];
  readonly paragraphs: readonly string[];
  /** "--keep", "leave .reloc …" */
  readonly options: readonly (readonly [option: string, text: string])[];
}

/** Takes a usage text apart: the synopsis up to the first empty line, options by their indentation, paragraphs. */
export function parseUsage({ usage }: Command): Usage {
  const [first = "", ...blocks] = usage.trimEnd().split("\n\n");
  const name = /^Usage: (\S+)/.exec(first)?.[1] ?? "";
  // A line that goes on is indented; one that begins with the name is another way.
  const ways = first.replace(/^Usage: /, "").split(new RegExp(`\\n\\s*(?=${name})`));
  const [synopsis = "", ...alternatives] = ways.map((way) => way.replace(/\n\s+/g, " "));
  const paragraphs: string[] = [];
  const options: [string, string][] = [];
  for (const block of blocks) {
    if (!block.startsWith("  ")) {
      paragraphs.push(block.replace(/\n/g, " "));
      continue;
    }
    for (const line of block.split("\n")) {
      const [, option, text] = /^ {2}(\S(?:.*?\S)?)(?: {2,}(\S.*))?$/.exec(line) ?? [];
      const last = options.at(-1);
      if (option !== undefined) options.push([option, text ?? ""]);
      else if (last !== undefined) last[1] = `${last[1]} ${line.trim()}`.trim();
    }
  }
  return { synopsis, alternatives, paragraphs, options };
}
