// SPDX-License-Identifier: GPL-2.0-only
// fetch-xen.ts and dev/apt.ts on packages built here: no network.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { runCommand } from "../cli/cli.ts";
import type { Io } from "../cli/cli.ts";
import { FileError, UsageError } from "../cli/errors.ts";
import { AptError, chooseBases, downloadPackage, readPackageFile } from "./apt.ts";
import { chooseBuilds, command, fetchBuilds, isPackageFile } from "./fetch-xen.ts";
import type { Sources } from "./fetch-xen.ts";
import { knownBuilds } from "./known-builds.ts";
import type { KnownBuild } from "./known-builds.ts";

const IMAGE = "MZ, and as good as a Xen here\n";

interface Place {
  readonly root: string;
  readonly dir: string;
  readonly debs: string;
}

const build: KnownBuild = {
  id: "1.0+1",
  suites: ["sid"],
  package: "xen-hypervisor-test",
  version: "1.0+1-g0123456789-1",
  path: "boot/xen-test.efi",
  sha256: createHash("sha256").update(IMAGE).digest("hex"),
};
const debName = `${build.package}_${build.version}_amd64.deb`;

const place = suite<Place>("fetchBuilds()");

place.before.each((context) => {
  const root = fs.mkdtempSync(join(tmpdir(), "fetch-xen-test-"));
  Object.assign(context, { root, dir: join(root, "xen"), debs: join(root, "debs") });
  fs.mkdirSync(context.debs);
});
place.after.each(({ root }) => fs.rmSync(root, { recursive: true, force: true }));

/** What a run printed and returned; the archive has nothing unless a test gives it something. */
async function fetched({ dir, debs }: Place, change: Partial<Sources> = {}, builds: readonly KnownBuild[] = [build]) {
  const printed = { out: "", err: "" };
  const io: Io = {
    stdin: () => assert.unreachable("reads standard input") as never,
    stdout: (text) => void (printed.out += String(text)),
    stderr: (text) => void (printed.err += text),
  };
  const download = () => Promise.reject(new AptError("Cannot get it: sid: has only version 2.0-1"));
  const status = await fetchBuilds(builds, { dir, debs, strict: false, download, ...change }, io);
  return { ...printed, status };
}

function makeDeb(directory: string, name: string, content: string, path = build.path): string {
  const tree = fs.mkdtempSync(join(directory, "tree-"));
  fs.mkdirSync(join(tree, "DEBIAN"));
  fs.mkdirSync(join(tree, "boot"));
  fs.writeFileSync(
    join(tree, "DEBIAN", "control"),
    `Package: ${build.package}\nVersion: ${build.version}\nArchitecture: amd64\nMaintainer: t <t>\nDescription: t\n`,
  );
  fs.writeFileSync(join(tree, path), content);
  const deb = join(directory, name);
  execFileSync("dpkg-deb", ["--root-owner-group", "-b", tree, deb], { stdio: "pipe" });
  fs.rmSync(tree, { recursive: true });
  return deb;
}

function hasDpkgDeb(): boolean {
  try {
    execFileSync("dpkg-deb", ["--version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

// uvu counts a skipped case but does not say why.
const dpkgDeb = hasDpkgDeb();
if (!dpkgDeb) console.log("skipped: the cases that build a package: dpkg-deb is not installed");
const withDeb = dpkgDeb ? place : place.skip;

withDeb("installs from XEN_DEBS, and then finds it present without any source", async (context) => {
  const deb = makeDeb(context.debs, debName, IMAGE);
  const target = join(context.dir, build.id, "xen.efi");
  const first = await fetched(context);
  assert.is(first.err, "");
  assert.is(
    first.out,
    `got: 1.0+1: ${target} from ${deb}\nfetch-xen: 1 of 1 known builds in ${context.dir}, 0 skipped, 0 failed\n`,
  );
  assert.is(first.status, 0);
  assert.is(fs.readFileSync(target, "utf8"), IMAGE);
  assert.equal(fs.readdirSync(join(context.dir, build.id)), ["xen.efi"]);

  fs.rmSync(context.debs, { recursive: true });
  const second = await fetched(context, { debs: undefined });
  assert.match(second.out, `present: 1.0+1: ${target}\n`);
  assert.is(second.status, 0);
});

withDeb("installs what the archive gives when XEN_DEBS has another version only", async (context) => {
  makeDeb(context.debs, `${build.package}_1.0+10-1_amd64.deb`, "another");
  const archive: Sources["download"] = async (wanted, directory) => {
    assert.is(wanted.version, build.version);
    return makeDeb(directory, debName, IMAGE);
  };
  const { out, err, status } = await fetched(context, { download: archive });
  assert.is(err, "");
  assert.match(out, "xen.efi from the archive\n");
  assert.is(status, 0);
});

withDeb("refuses an image of another digest by file, found and needed", async (context) => {
  const deb = makeDeb(context.debs, debName, "something else");
  const found = createHash("sha256").update("something else").digest("hex");
  const { err, status } = await fetched(context);
  assert.is(
    err,
    `failed: 1.0+1: ${deb}: Cannot take boot/xen-test.efi: SHA-256 found ${found}, needed ${build.sha256}\n`,
  );
  assert.is(status, 1);
  assert.not(fs.existsSync(context.dir));
});

withDeb("refuses a package without the file", async (context) => {
  const deb = makeDeb(context.debs, debName, IMAGE, "boot/xen-other.efi");
  const { err, status } = await fetched(context);
  assert.is(err, `failed: 1.0+1: ${deb}: Cannot unpack boot/xen-test.efi: the package has no such file\n`);
  assert.is(status, 1);
});

withDeb("refuses a damaged package in one line, wherever it is cut", async (context) => {
  const deb = makeDeb(context.debs, debName, IMAGE);
  const whole = fs.readFileSync(deb);
  for (const length of [0, 4, 100, whole.length >> 1, whole.length - 40]) {
    fs.writeFileSync(deb, whole.subarray(0, length));
    const { err, status } = await fetched(context);
    assert.match(err, /^failed: 1\.0\+1: [^\n]*_amd64\.deb: Cannot unpack: [^\n]+\n$/, `cut at ${length}`);
    assert.is(status, 1);
    assert.not(fs.existsSync(context.dir));
  }
});

withDeb("replaces a file that is not the build, and says so", async (context) => {
  const target = join(context.dir, build.id, "xen.efi");
  fs.mkdirSync(join(context.dir, build.id), { recursive: true });
  fs.writeFileSync(target, "MZ old");
  makeDeb(context.debs, debName, IMAGE);
  const { err, status } = await fetched(context);
  assert.match(err, /^\S+xen\.efi: Cannot use it: SHA-256 found \w{64}, needed \w{64}; getting it anew\n$/);
  assert.is(status, 0);
  assert.is(fs.readFileSync(target, "utf8"), IMAGE);
});

place("fails when a file that is not the build cannot be replaced", async (context) => {
  const target = join(context.dir, build.id, "xen.efi");
  fs.mkdirSync(join(context.dir, build.id), { recursive: true });
  fs.writeFileSync(target, "MZ old");
  const { err, status } = await fetched(context);
  assert.match(err, "failed: 1.0+1: Cannot get it: sid: has only version 2.0-1\n");
  assert.is(status, 1);
  assert.is(fs.readFileSync(target, "utf8"), "MZ old");
});

withDeb("skips a build that cannot be had with exit 0, with 1 in CI", async (context) => {
  makeDeb(context.debs, debName, IMAGE);
  const gone = { ...build, id: "0.9", version: "0.9-1" };
  const run = await fetched(context, {}, [gone, build]);
  assert.is(run.err, "skipped: 0.9: Cannot get it: sid: has only version 2.0-1\n");
  assert.match(run.out, "fetch-xen: 1 of 2 known builds");
  assert.match(run.out, "1 skipped, 0 failed\n");
  assert.is(run.status, 0);
  assert.is((await fetched(context, { strict: true }, [gone, build])).status, 1);
});

place("fails when no build can be had", async (context) => {
  const { err, status } = await fetched(context);
  assert.match(err, /^skipped: 1\.0\+1: /);
  assert.is(status, 1);
});

place("names an XEN_DEBS that is not there, and goes on to the archive", async (context) => {
  const { err } = await fetched(context, { debs: join(context.root, "nowhere") });
  assert.match(err, /nowhere: Cannot look for \.deb files: [^\n]+\nskipped: 1\.0\+1: /);
});

withDeb("fails in one line where the build's directory cannot be made", async (context) => {
  makeDeb(context.debs, debName, IMAGE);
  fs.writeFileSync(context.dir, "a file in the way");
  const { err, status } = await fetched(context);
  assert.match(err, /^failed: 1\.0\+1: [^\n]+: Cannot create: [^\n]+\n$/);
  assert.is(status, 1);
});

place.run();

// ---

const program = suite("fetch-xen.ts");

/** The command's exit status and standard error. */
async function ran(argv: readonly string[]) {
  let err = "";
  const io: Io = { stdin: () => new Uint8Array(), stdout: () => {}, stderr: (text) => void (err += text) };
  return { status: await runCommand(command, argv, io), err };
}

program("refuses an unknown build with exit 2 and names the known ones", async () => {
  const { status, err } = await ran(["--only", "4.99"]);
  assert.is(status, 2);
  assert.match(err, /^fetch-xen\.ts: Unknown build '4\.99', known are 4\.14\.6-1, .+\n$/);
});

program("refuses positional arguments with exit 2", async () => {
  assert.is((await ran(["4.14.6-1"])).status, 2);
});

program("chooseBuilds() keeps the table's order", () => {
  assert.equal(
    chooseBuilds(["4.20.4+39", "4.14.6-1"]).map((chosen) => chosen.id),
    ["4.14.6-1", "4.20.4+39"],
  );
  assert.is(chooseBuilds([]), knownBuilds);
  assert.throws(
    () => chooseBuilds(["4.14"]),
    (error: unknown) => error instanceof UsageError,
  );
});

program("isPackageFile() takes the exact version, as apt or a browser writes it", () => {
  const cases: [string, boolean][] = [
    [debName, true],
    [debName.replaceAll("+", "%2B"), true],
    [debName.replace("_amd64", ""), true],
    [debName.replace("-1_", "-10_"), false],
    [debName.replace("test_", "test-dbg_"), false],
    [`${debName}.part`, false],
  ];
  for (const [file, expected] of cases) assert.is(isPackageFile(file, build), expected, file);
});

program("the table of known builds has each id once and digests of the right length", () => {
  assert.is(new Set(knownBuilds.map((known) => known.id)).size, knownBuilds.length);
  for (const known of knownBuilds) assert.match(known.sha256, /^[0-9a-f]{64}$/, known.id);
});

program.run();

// ---

const apt = suite("dev/apt.ts");

const MACHINE = `file:/mirror/debian/|bookworm|Debian|Debian
file:/mirror/debian/|bookworm-updates|Debian|Debian
file:/security/debian-security/|bookworm-security|Debian|Debian-Security
file:/vendor/debian/|bookworm|Vendor|Vendor Packages
cdrom:[disc]/|bookworm|Debian|Debian
`;

apt("chooseBases() keeps Debian's two archives apart and leaves out other publishers", () => {
  assert.equal(chooseBases(MACHINE, "sid"), ["file:/mirror/debian/"]);
  assert.equal(chooseBases(MACHINE, "trixie-security"), ["file:/security/debian-security/"]);
});

apt("chooseBases() goes by the suite's name where the publisher is not known yet", () => {
  const fresh = MACHINE.replace(/\|(Debian|Vendor)\|.*/g, "|$(ORIGIN)|$(LABEL)");
  assert.equal(chooseBases(fresh, "sid"), ["file:/mirror/debian/", "file:/vendor/debian/"]);
  assert.equal(chooseBases(fresh, "trixie-security"), ["file:/security/debian-security/"]);
});

apt("chooseBases() looks beside the one archive that the sources name", () => {
  assert.equal(chooseBases("file:/m/debian/|sid|Debian|Debian\n", "trixie-security"), ["file:/m/debian-security/"]);
  assert.equal(chooseBases("file:/m/dated/20260101/|sid|Debian|Debian\n", "trixie-security"), []);
  assert.equal(chooseBases("", "sid"), []);
});

apt("downloadPackage() refuses a suite that would be more than a word in the sources list", async () => {
  const message = await downloadPackage({ package: "xen", suites: ["sid main", "[trusted=yes]"] }, tmpdir()).catch(
    String,
  );
  assert.is(
    message,
    'AptError: Cannot get xen: sid main: "sid main" is no name of a suite; ' +
      '[trusted=yes]: "[trusted=yes]" is no name of a suite',
  );
});

apt("readPackageFile() and downloadPackage() name the tool that is missing", async () => {
  const path = process.env.PATH;
  process.env.PATH = "/nonexistent";
  try {
    const contents = readPackageFile("x.deb", "y");
    assert.match(String(await contents.catch(String)), /^AptError: Cannot run dpkg-deb: not installed/);
    const download = downloadPackage({ package: "xen", suites: ["sid"] }, tmpdir());
    assert.match(await download.catch(String), /^AptError: Cannot run apt-get: not installed/);
  } finally {
    process.env.PATH = path;
  }
});

(dpkgDeb ? apt : apt.skip)("readPackageFile() names the file that is no package", async () => {
  const error: unknown = await readPackageFile(process.execPath, "boot/x").catch((thrown: unknown) => thrown);
  assert.instance(error, FileError);
  assert.is((error as FileError).file, process.execPath);
  assert.is((error as FileError).message, "Cannot unpack: it is not a Debian format archive");
});

apt.run();
