// SPDX-License-Identifier: GPL-2.0-only
// Gets the known Xen builds (dev/known-builds.ts) to samples/xen/<id>/xen.efi: from the .deb files in the directory
// that XEN_DEBS names, else from the Debian archive that this machine's apt uses. What is installed there has the
// SHA-256 of the table, whatever it came from. A build that cannot be had is reported and skipped: archives drop old
// versions. The rest of the work is possible without any of them.

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import process from "node:process";
import { readInput, realIo, runIfMain, writeOutput, type Command, type Io } from "../cli/cli.ts";
import { FileError, ImageError, UsageError } from "../cli/errors.ts";
import { AptError, downloadPackage, readPackageFile, scratchFolder, type PackageWanted } from "./apt.ts";
import { knownBuilds, type KnownBuild } from "./known-builds.ts";
import { TOP as checkout } from "./places.ts";
import { showProgress } from "./progress.ts";

const USAGE = `Usage: fetch-xen.ts [--dir DIR] [--only ID]...

Gets the xen.efi of each known Debian build to DIR/<ID>/xen.efi (DIR: samples/xen of this checkout) and checks its
SHA-256. Prints one line for each build: present, got, skipped or failed.

  --dir DIR   where to put them
  --only ID   this build only; can be given several times
  --help      this text

Environment:
  XEN_DEBS    directory of .deb files that is looked in before the archive
  CI          if "true", a skipped build is a failure

Known builds:
${knownBuilds.map((build) => `  ${build.id.padEnd(12)}${build.package} ${build.version}\n`).join("")}
Exit status: 0 done, though builds may have been skipped; 1 a file is not what it should be, or there is no build at
all; 2 wrong usage.
`;

export interface Sources {
  /** Where the builds go, one directory for each. */
  readonly dir: string;
  /** Directory of .deb files to look in first. */
  readonly debs?: string | undefined;
  /** Whether a skipped build is a failure. */
  readonly strict: boolean;
  /** As {@link downloadPackage}, which tests stand in for. */
  readonly download: (wanted: PackageWanted, destinationDir: string) => Promise<string>;
}

interface Outcome {
  readonly kind: "present" | "got" | "skipped" | "failed";
  readonly detail: string;
}

/**
 * Gets the builds one after the other and prints a line for each.
 * @returns the exit status
 */
export async function fetchBuilds(builds: readonly KnownBuild[], sources: Sources, io: Io): Promise<number> {
  if (sources.debs !== undefined && !existsSync(sources.debs)) {
    io.stderr(`${sources.debs}: Cannot look for .deb files: XEN_DEBS names no directory; trying the archive\n`);
  }
  const count = { present: 0, got: 0, skipped: 0, failed: 0 };
  for (const [i, build] of builds.entries()) {
    showProgress(`${i + 1}/${builds.length} ${build.id}`, io);
    const { kind, detail } = await fetchBuild(build, sources, io);
    showProgress("", io);
    count[kind]++;
    const line = `${kind}: ${build.id}: ${detail}\n`;
    if (kind === "skipped" || kind === "failed") io.stderr(line);
    else io.stdout(line);
  }
  const had = count.present + count.got;
  const rest = `${count.skipped} skipped, ${count.failed} failed`;
  io.stdout(`fetch-xen: ${had} of ${builds.length} known builds in ${sources.dir}, ${rest}\n`);
  if (count.failed > 0 || had === 0) return 1;
  return sources.strict && count.skipped > 0 ? 1 : 0;
}

async function fetchBuild(build: KnownBuild, sources: Sources, io: Io): Promise<Outcome> {
  const target = join(sources.dir, build.id, "xen.efi");
  let replaces = false;
  try {
    if (existsSync(target)) {
      const found = sha256(readInput(target, io));
      if (found === build.sha256) return { kind: "present", detail: target };
      replaces = true;
      io.stderr(`${target}: Cannot use it: SHA-256 found ${found}, needed ${build.sha256}; getting it anew\n`);
    }
    const { deb, origin } = await findPackage(build, sources);
    const image = await readPackageFile(deb, build.path);
    const found = sha256(image);
    if (found !== build.sha256) {
      throw new FileError(deb, `Cannot take ${build.path}: SHA-256 found ${found}, needed ${build.sha256}`);
    }
    makeDirectory(dirname(target));
    writeOutput(target, image, io);
    return { kind: "got", detail: `${target} from ${origin}` };
  } catch (error) {
    if (error instanceof FileError) return { kind: "failed", detail: `${error.file}: ${error.message}` };
    // The wrong file is still there, and what reads it would blame itself: that is more than a build missing.
    if (error instanceof AptError) return { kind: replaces ? "failed" : "skipped", detail: error.message };
    if (error instanceof ImageError) return { kind: "failed", detail: error.message };
    throw error;
  }
}

async function findPackage(build: KnownBuild, sources: Sources): Promise<{ deb: string; origin: string }> {
  if (sources.debs !== undefined && existsSync(sources.debs)) {
    const name = readDirectory(sources.debs).find((file) => isPackageFile(file, build));
    if (name !== undefined) return { deb: join(sources.debs, name), origin: join(sources.debs, name) };
  }
  const deb = await sources.download(build, scratchFolder("xen"));
  return { deb, origin: "the archive" };
}

/** Whether a file is named as apt names the build's package; browsers leave "+" and ":" percent-encoded. */
export function isPackageFile(file: string, build: Pick<KnownBuild, "package" | "version">): boolean {
  const plain = file.replace(/%2b/gi, "+").replace(/%3a/gi, ":");
  const stem = `${build.package}_${build.version}`;
  return plain === `${stem}.deb` || (plain.startsWith(`${stem}_`) && plain.endsWith(".deb"));
}

function readDirectory(directory: string): string[] {
  try {
    return readdirSync(directory).sort();
  } catch (error) {
    throw new FileError(directory, `Cannot look for .deb files: ${(error as Error).message}`);
  }
}

function makeDirectory(directory: string): void {
  try {
    mkdirSync(directory, { recursive: true });
  } catch (error) {
    throw new FileError(directory, `Cannot create: ${(error as Error).message}`);
  }
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** The builds of these ids, all of them for none. */
export function chooseBuilds(ids: readonly string[]): readonly KnownBuild[] {
  for (const id of ids) {
    if (!knownBuilds.some((build) => build.id === id)) {
      throw new UsageError(`Unknown build '${id}', known are ${knownBuilds.map((build) => build.id).join(", ")}`);
    }
  }
  return ids.length === 0 ? knownBuilds : knownBuilds.filter((build) => ids.includes(build.id));
}

export const command: Command = {
  usage: USAGE,
  options: { dir: { type: "string" }, only: { type: "string", multiple: true } },
  positionals: [],
  run: (_positionals, values, io = realIo) => {
    const ids = Array.isArray(values.only) ? values.only.map(String) : [];
    const sources: Sources = {
      dir: typeof values.dir === "string" ? values.dir : defaultDirectory(),
      debs: process.env.XEN_DEBS || undefined,
      strict: process.env.CI === "true",
      download: downloadPackage,
    };
    return fetchBuilds(chooseBuilds(ids), sources, io);
  },
};

function defaultDirectory(): string {
  // Short where it can be: the lines are read by people, who stand in the checkout.
  return process.cwd() === checkout ? join("samples", "xen") : join(checkout, "samples", "xen");
}

runIfMain(import.meta.url, command);
