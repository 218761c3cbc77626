// SPDX-License-Identifier: GPL-2.0-only
// Gets single Debian packages and upstream sources, also of suites that this machine is not set up for, without
// changing the machine:
//
//   const deb = await downloadPackage({ package: "grub-efi-amd64-bin", suites: ["sid"] }, "build/debs");
//   const efi = await readPackageFile(deb, "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi");
//
// The mirror is the one in the machine's own apt sources, so that no host name is written down here and a local or a
// dated mirror is honoured. Sources, state and cache lie in directories of their own that go when the process ends;
// root is not needed. Signatures are always checked. Whatever cannot be had throws an AptError of one line.

import type { Buffer } from "node:buffer";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { FileError, ImageError } from "../cli/errors.ts";
import { capture, inFolder, newFolder, type Finished } from "./process.ts";

/** A package that cannot be had here, for the reason that `message` gives. */
export class AptError extends ImageError {
  override name = "AptError";
}

/** No suite will do any better: the tool itself is missing. */
class NoDebianError extends AptError {}

export interface PackageWanted {
  readonly package: string;
  /** Exact version; left out, the newest that the suite has. */
  readonly version?: string;
  /** Codenames such as "sid" or "trixie-security", looked through in this order. */
  readonly suites: readonly string[];
}

/** As in a sources list. */
type Kind = "deb" | "deb-src";

/**
 * Downloads a package for amd64 into a directory, which is created if need be; a file of that name is replaced.
 * @returns the path of the .deb
 * @throws AptError when no suite has it, a signature cannot be checked, or this machine has no apt
 */
export function downloadPackage(wanted: PackageWanted, destinationDir: string): Promise<string> {
  return download("deb", wanted, destinationDir);
}

/**
 * Downloads the upstream tarball of a source package, without Debian's changes and without the .dsc, which mirrors
 * sometimes lack.
 * @returns the path of the .orig.tar.*
 * @throws AptError as {@link downloadPackage}
 */
export function downloadSource(source: string, suites: readonly string[], destinationDir: string): Promise<string> {
  return download("deb-src", { package: source, suites }, destinationDir);
}

async function download(kind: Kind, wanted: PackageWanted, destinationDir: string): Promise<string> {
  const misses: string[] = [];
  for (const suite of wanted.suites) {
    try {
      return await downloadFrom(await suiteConfiguration(kind, suite), kind, wanted, destinationDir);
    } catch (error) {
      if (error instanceof NoDebianError) throw error;
      if (!(error instanceof AptError) && !isSystemError(error)) throw error;
      misses.push(`${suite}: ${error.message}`);
    }
  }
  throw new AptError(`Cannot get ${aptName(wanted)}: ${misses.join("; ") || "no suite named"}`);
}

function aptName({ package: name, version }: PackageWanted): string {
  return version === undefined ? name : `${name}=${version}`;
}

function downloadFrom(
  configuration: string,
  kind: Kind,
  wanted: PackageWanted,
  destinationDir: string,
): Promise<string> {
  // apt-get names the file itself, and in the current directory: an empty one tells which it was.
  return inFolder(join(destinationDir, ".apt-"), async (empty) => {
    const command = kind === "deb" ? ["download"] : ["source", "--download-only", "--tar-only"];
    const done = await run("apt-get", ["-c", configuration, "-q", ...command, aptName(wanted)], empty);
    const file = fs.readdirSync(empty).find((name) => /\.deb$|\.orig\.tar\.\w+$/.test(name));
    if (done.status === 0 && file !== undefined) {
      fs.renameSync(join(empty, file), join(destinationDir, file));
      return join(destinationDir, file);
    }
    const versions = await versionsIn(configuration, wanted.package);
    if (versions.length === 0) throw new AptError("has no such package");
    if (wanted.version !== undefined && !versions.includes(wanted.version)) {
      throw new AptError(`has only version ${versions.join(", ")}`);
    }
    throw new AptError(errorLine(done));
  });
}

async function versionsIn(configuration: string, packageName: string): Promise<string[]> {
  const { stdout } = await run("apt-cache", ["-c", configuration, "madison", packageName]);
  return [...new Set(stdout.split("\n").flatMap((line) => line.split("|")[1]?.trim() ?? []))];
}

// One apt set-up per suite, so that a suite which is gone from the mirror or whose key is unknown spoils no other.
// The promise is kept, a failed one too: each suite's lists are asked for once per process.
const configurations = new Map<string, Promise<string>>();

function suiteConfiguration(kind: Kind, suite: string): Promise<string> {
  const key = `${kind} ${suite}`;
  const known = configurations.get(key) ?? prepareSuite(kind, suite);
  configurations.set(key, known);
  return known;
}

async function prepareSuite(kind: Kind, suite: string): Promise<string> {
  // It ends up in a sources list, where a space or a bracket would mean something.
  if (!/^[a-z0-9][a-z0-9.-]*$/.test(suite)) throw new AptError(`"${suite}" is no name of a suite`);
  const bases = await mirrorBases(suite);
  if (bases.length === 0) throw new AptError("this machine's apt sources name no Debian archive that could hold it");
  const failures = new Set<string>();
  for (const base of bases) {
    const configuration = writeConfiguration(scratchFolder(suite), kind, base, suite);
    const update = await run("apt-get", ["-c", configuration, "-q", "update"]);
    if (update.status === 0) return configuration;
    failures.add(updateFailure(update));
  }
  throw new AptError([...failures].join("; "));
}

async function mirrorBases(suite: string): Promise<string[]> {
  const format = ["REPO_URI", "RELEASE", "ORIGIN", "LABEL"].map((field) => `$(${field})`).join("|");
  const list = ["indextargets", "--format", format, "Created-By: Packages"];
  let targets = await run("apt-get", list);
  if (targets.status === 0 && targets.stdout.trim() === "") {
    // Nothing is listed where `apt-get update` never ran (a fresh container). Without the release information apt
    // lists what the sources name; who publishes it is then unknown.
    targets = await run("apt-get", ["--no-release-info", ...list]);
  }
  if (targets.status !== 0) throw new AptError(errorLine(targets));
  return chooseBases(targets.stdout, suite);
}

/**
 * The mirror's base addresses that may hold a suite.
 * @param targets lines `base|release|origin|label` of the machine's own sources; unexpanded `$(ORIGIN)` is unknown
 */
export function chooseBases(targets: string, suite: string): string[] {
  const wantsSecurity = isSecurity(suite);
  const archives = targets.split("\n").flatMap((line) => {
    const [base = "", release = "", origin = "", label = ""] = line.split("|");
    const unknown = origin === "" || origin.startsWith("$(");
    if (base === "" || base.startsWith("cdrom:") || (!unknown && origin !== "Debian")) return [];
    return [{ base, hasSecurity: unknown ? isSecurity(release) : label === "Debian-Security" }];
  });
  const named = archives.filter(({ hasSecurity }) => hasSecurity === wantsSecurity).map(({ base }) => base);
  if (named.length > 0) return [...new Set(named)];
  // Mirrors keep the two archives side by side, and a machine's sources may name only one of them.
  const [ends, instead] = wantsSecurity ? [/\/debian\/?$/, "/debian-security/"] : [/\/debian-security\/?$/, "/debian/"];
  return [...new Set(archives.filter(({ base }) => ends.test(base)).map(({ base }) => base.replace(ends, instead)))];
}

function isSecurity(suite: string): boolean {
  return suite.endsWith("-security");
}

function writeConfiguration(directory: string, kind: Kind, base: string, suite: string): string {
  const keyring = KEYRINGS.find((path) => fs.existsSync(path));
  // Without Debian's keyring apt takes the keys that the machine trusts in general; unsigned is refused either way.
  const signedBy = keyring === undefined ? "" : ` signed-by=${keyring}`;
  // target=: where apt-file, appstream and their like are installed, each update would fetch their indexes too.
  const options = kind === "deb" ? "arch=amd64 target=Packages" : "target=Sources";
  fs.writeFileSync(join(directory, "sources.list"), `${kind} [${options}${signedBy}] ${base} ${suite} main\n`);
  fs.writeFileSync(join(directory, "status"), "");
  fs.mkdirSync(join(directory, "lists", "partial"), { recursive: true });
  fs.mkdirSync(join(directory, "cache", "archives", "partial"), { recursive: true });
  const configuration = join(directory, "apt.conf");
  // For -c, which is read last: the machine's proxy, credentials and date checks stay in force; what would touch the
  // machine (its hooks and its state) or choose for it (its pins) does not.
  fs.writeFileSync(
    configuration,
    `#clear APT::Architectures;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Update::Error-Mode "any";
// Root's apt would download as a user of its own, who has no access to this directory.
APT::Sandbox::User "root";
Acquire::Languages "none";
// apt waits longer before each: three would make a machine without network wait for a minute.
Acquire::Retries "1";
Dir::Etc::SourceList "${directory}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "${directory}";
Dir::State::Lists "${directory}/lists";
Dir::State::Status "${directory}/status";
Dir::Cache "${directory}/cache";
Dir::Cache::Archives "${directory}/cache/archives";
`,
  );
  return configuration;
}

const KEYRINGS = ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

function updateFailure(update: Finished): string {
  if (/NO_PUBKEY|Missing key/.test(update.stderr)) {
    return "its signing key is not on this machine: install a newer debian-archive-keyring";
  }
  // Said of a suite that never was as of one that moved to the archive of old releases.
  if (/does not have a Release file|no longer has a Release file/.test(update.stderr)) return "not on the mirror";
  return errorLine(update);
}

/**
 * Contents of one file of a .deb.
 * @param path as in the package, without the leading slash
 * @throws FileError when the .deb is damaged or has no such file
 */
export async function readPackageFile(deb: string, path: string): Promise<Buffer> {
  const directory = scratchFolder("deb");
  try {
    await unpackPackage(deb, directory);
    const file = join(directory, path);
    if (!fs.existsSync(file)) throw new FileError(deb, `Cannot unpack ${path}: the package has no such file`);
    return fs.readFileSync(file);
  } finally {
    fs.rmSync(directory, { recursive: true, force: true });
  }
}

/**
 * Unpacks all files of a .deb into a directory, which is created if need be; no script of the package runs.
 * @throws FileError when the .deb is damaged
 */
export async function unpackPackage(deb: string, directory: string): Promise<void> {
  fs.mkdirSync(directory, { recursive: true });
  const unpacked = await run("dpkg-deb", ["-x", resolve(deb), directory]);
  if (unpacked.status === 0) return;
  const reason = errorLine(unpacked)
    .replace(/^dpkg-deb: error: /, "")
    .replace(`'${resolve(deb)}' is `, "it is ");
  throw new FileError(deb, `Cannot unpack: ${reason}`);
}

/** A new empty folder that is removed when the process ends. */
export function scratchFolder(name: string): string {
  try {
    return newFolder(join(tmpdir(), `xen-mb-efi-${name}-`));
  } catch (error) {
    if (!isSystemError(error)) throw error;
    throw new AptError(`Cannot create a temporary directory: ${error.message}`);
  }
}

async function run(command: string, args: readonly string[], cwd?: string): Promise<Finished> {
  try {
    return await capture(command, args, { cwd });
  } catch (error) {
    const { code, signal, message } = error as NodeJS.ErrnoException & { signal?: string };
    if (code === "ENOENT")
      throw new NoDebianError(`Cannot run ${command}: not installed, as on systems other than Debian`);
    throw new AptError(`Cannot run ${command}: ${signal ?? message}`);
  }
}

/** apt's own words for what went wrong, without its "E: ". */
function errorLine({ status, stderr }: Finished): string {
  const lines = stderr.split("\n").filter((line) => line.trim() !== "");
  const line = lines.find((candidate) => /^E: |error: /.test(candidate)) ?? lines.at(-1) ?? `exit status ${status}`;
  return line.replace(/^[EW]: /, "").trim();
}

function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && typeof (error as NodeJS.ErrnoException).code === "string";
}
