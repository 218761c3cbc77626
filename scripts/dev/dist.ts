// SPDX-License-Identifier: GPL-2.0-only
// Bundles mb-efi and everything it imports into one file that any node from 20 on runs: what a Xen tree gets, which can
// install no packages while it builds. Not minified: it is read by whoever is to trust it.

import * as fs from "node:fs";
import * as path from "node:path";
import { build, type Plugin } from "esbuild";
import { runIfMain, writeOutput, type Command } from "../cli/cli.ts";
import { SCRIPTS } from "./places.ts";

const USAGE = `Usage: dist.ts OUT

Bundles mb-efi.ts into the single file OUT (build/xen-mb-efi.mjs by "make dist").

  --help  print this text

Exit status: 0 done, 1 it cannot be made, 2 wrong usage.
`;

const ENTRY = path.join(SCRIPTS, "mb-efi.ts");

/**
 * A script's last line runs it as a program. In one file all of them would be the program: only the entry's stays, and the
 * others' command lines, which nobody can type then, are left out.
 */
const onlyEntryRuns: Plugin = {
  name: "only-entry-runs",
  setup({ initialOptions, onLoad }) {
    onLoad({ filter: /scripts[/\\][^/\\]*\.ts$/ }, ({ path: file }) => {
      if (file === initialOptions.entryPoints?.toString()) return undefined;
      const source = fs.readFileSync(file, "utf8");
      const contents = source.replace(/^runIfMain\(import\.meta\.url, command\);$/m, "");
      if (contents === source) throw new Error(`${path.basename(file)} does not end with the line that runs it`);
      return { contents: contents.replace("= transformCommand(", "= /* @__PURE__ */ transformCommand("), loader: "ts" };
    });
  },
};

/** The bundle's text. The same for everybody: no path and no date gets in. */
export async function bundle(entry = ENTRY): Promise<Uint8Array> {
  const { outputFiles } = await build({
    entryPoints: [entry],
    absWorkingDir: SCRIPTS,
    bundle: true,
    write: false,
    platform: "node",
    format: "esm",
    target: "node20",
    charset: "ascii",
    legalComments: "none",
    banner: {
      js: '#!/usr/bin/env node\n// SPDX-License-Identifier: GPL-2.0-only\n// xen-mb-efi: xen.efi in, xen.mb.efi out, in one file. Made by "make dist" from scripts/; not to be edited.',
    },
    plugins: [onlyEntryRuns],
  });
  const [file] = outputFiles;
  if (file === undefined) throw new Error("esbuild made nothing");
  return file.contents;
}

export const command: Command = {
  usage: USAGE,
  options: {},
  positionals: ["OUT"],
  async run([output = ""], _values, io) {
    writeOutput(output, await bundle(), io);
    return 0;
  },
};

runIfMain(import.meta.url, command);
