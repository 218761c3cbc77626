// SPDX-License-Identifier: GPL-2.0-only
//
// Writes the manual page xen-mb-efi(1): the scripts from their usage texts, the make targets from the Makefile.
//
// Changes nothing else. The same sources give the same page.

import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import * as path from "node:path";
import { runIfMain, writeOutput, type Command } from "../cli/cli.ts";
import { loadCommands, optionsOf, parseUsage, type Usage } from "./commands.ts";
import { TOP } from "./places.ts";

const USAGE = `Usage: man.ts OUT

Writes the manual page xen-mb-efi(1), made of the scripts' usage texts and the Makefile.
OUT may be "-", standard output.

  --help  print this text

Exit status: 0 done, 1 a file cannot be read or written, 2 wrong usage.
`;

/** When what this file says itself was last changed; everything else is as new as its source. */
const DATE = "2026-11-25";

/** The page, in roff with the man macros. */
export async function manualPage(): Promise<string> {
  const usages = (await loadCommands()).map(parseUsage);
  const { version } = JSON.parse(fs.readFileSync(path.join(TOP, "package.json"), "utf8")) as { version: string };
  return `${[
    '.\\" SPDX-License-Identifier: GPL-2.0-only',
    `.TH XEN\\-MB\\-EFI 1 ${DATE} "xen\\-mb\\-efi ${version}" "User Commands"`,
    // Names of files and options are not to be broken.
    ".nh",
    ".ad l",
    ".SH NAME",
    "xen\\-mb\\-efi \\- turn Xen's xen.efi into one file that UEFI firmware and Multiboot loaders take",
    ".SH SYNOPSIS",
    ".B make",
    "XEN_EFI=\\fIxen.efi\\fR [OUT=\\fIdirectory\\fR] [RELOC=move|keep] [\\fItarget\\fR ...]",
    ...usages.flatMap(({ synopses }) => synopses.flatMap((way) => [".br", synopsisLine(way)])),
    ".SH DESCRIPTION",
    roff(
      "xen.mb.efi is xen.efi as UEFI firmware and systemd-boot boot it, and besides it is what shim, GRUB's multiboot2, multiboot and chainloader on BIOS and EFI, syslinux, iPXE and QEMU take. check-loaders lists every loader that it knows, and marks these.",
    ),
    ".PP",
    roff(
      'make runs the steps one after the other and verifies the result. Each script is one of them, or looks at an image; they run by node 22.18 or newer as they are, by tsx, and by Deno. A file named "-" is standard input or standard output. A run that fails leaves no output, and no input is ever changed.',
    ),
    ".SH SCRIPTS",
    ...usages.flatMap(section),
    ".SH MAKE TARGETS",
    ...targets().flatMap(tagged),
    ".SH EXIT STATUS",
    ...tagged(["0", "Done."]),
    ...tagged([
      "1",
      "The image is unsuitable, or a file cannot be read or written. Standard error has a line for each reason: FILE: Cannot ...: where, found, needed.",
    ]),
    ...tagged(["2", "Wrong usage. Make's own status is 2 whatever has failed."]),
    ".SH SEE ALSO",
    ".BR grub\\-file (1),",
    ".BR objdump (1),",
    ".BR qemu\\-system\\-x86_64 (1),",
    ".BR sbsign (1)",
  ].join("\n")}\n`;
}

/** Text as roff takes it: no backslash, no control line, hyphens that can be copied, ASCII. */
function roff(text: string): string {
  return text
    .replace(/\\/g, "\\e")
    .replace(/-/g, "\\-")
    .replace(/…/g, "...")
    .replace(/^([.'])/, "\\&$1");
}

function synopsisLine(synopsis: string): string {
  const [name = "", ...rest] = synopsis.split(" ");
  return `.B ${roff(name)}\n${roff(rest.join(" "))}`;
}

/** What nearly every script says is said once, under EXIT STATUS. */
const SAID_ONCE = /\s?Exit status: 0 done, 1 [^.]*, 2 wrong usage\.$/;

function section({ synopses, blocks }: Usage): string[] {
  const [synopsis = ""] = synopses;
  return [
    `.SS ${roff(synopsis.split(" ")[0] ?? "")}`,
    ...blocks
      .map((block) => blockLines(block.replace(SAID_ONCE, "")))
      .filter((lines) => lines.join("") !== "")
      .flatMap((lines, i) => (i === 0 || lines[0] === ".TP" ? lines : [".PP", ...lines])),
  ];
}

/** Options, a heading with a table, whose lines stay as they are, or a paragraph. */
function blockLines(block: string): string[] {
  const options = optionsOf(block);
  if (options.length !== 0) return options.filter(([option]) => option !== "--help").flatMap(tagged);
  const [heading = "", ...lines] = block.split("\n");
  if (lines.some((line) => line.startsWith("  "))) return [roff(heading), ".nf", ...lines.map(roff), ".fi"];
  return [roff([heading, ...lines].join(" "))];
}

function tagged([tag, text]: readonly [tag: string, text: string]): string[] {
  return [".TP", `.B ${roff(tag)}`, roff(text)];
}

/** As `make help` lists them. */
function targets(): [name: string, text: string][] {
  const makefile = fs.readFileSync(path.join(TOP, "Makefile"), "utf8");
  const lines = [...makefile.matchAll(/^([a-z-]+):.*?## (.*)$/gm)];
  return lines.map(([, name = "", text = ""]) => [name, text.replace(/\$\(OUT\)/g, "OUT")]);
}

export const command: Command = {
  usage: USAGE,
  options: {},
  positionals: ["OUT"],
  async run([output = ""], _values, io) {
    writeOutput(output, Buffer.from(await manualPage()), io);
    return 0;
  },
};

runIfMain(import.meta.url, command);
