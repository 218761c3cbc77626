// SPDX-License-Identifier: GPL-2.0-only
// What every script of this folder has in common as a command: arguments, streams, exit status, files.
// Exit status: 0 done, 1 image or file unsuitable, 2 wrong usage. No format knowledge here.
// `process` is used as the global it is: importing node:process makes node open all three standard streams, which takes
// longer than most steps do.

import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs, type ParseArgsConfig } from "node:util";
import { FileError, ImageError, UsageError } from "./errors.ts";
import { visible } from "./numbers.ts";

/** The streams of one run; tests pass their own. */
export interface Io {
  stdin(): Uint8Array;
  stdout(bytes: Uint8Array | string): void;
  stderr(text: string): void;
}

export type Options = NonNullable<ParseArgsConfig["options"]>;
export type Values = Record<string, string | boolean | (string | boolean)[] | undefined>;

/** What a script declares of itself; its usage text is the only place that describes its arguments. */
export interface Command {
  /** The whole `--help` text; its first line is "Usage: …". */
  readonly usage: string;
  /** Long options, besides `--help`. */
  readonly options: Options;
  /** The names of the positional arguments, as in the usage line: one in square brackets, and those behind it, may be left out. */
  readonly positionals: readonly string[];
  /** Does the work; returns the exit status, 0 when it returns nothing. */
  run(positionals: readonly string[], values: Values, io: Io): number | undefined | Promise<number | undefined>;
}

const STDIN = 0;
const STDOUT = 1;
const STDERR = 2;
/** A read of a file whose size nobody knows begins with so many bytes. */
const CHUNK = 1 << 20;
/** Far more than Xen and dom0 in one file have, and little enough for what never ends (/dev/zero) to be refused soon. */
const MAX_FILE = 2 ** 30;

export const realIo: Io = {
  stdin: () => readAll(STDIN),
  stdout(bytes) {
    try {
      writeAll(STDOUT, typeof bytes === "string" ? Buffer.from(bytes) : bytes);
    } catch (error) {
      if (isSystemError(error) && error.code === "EPIPE") throw error; // the reader has gone, which is its business
      throw fileError("<stdout>", "write", error);
    }
  },
  stderr: (text) => writeAll(STDERR, Buffer.from(text)),
};

/**
 * Runs a command: arguments, help, errors to one line each on standard error.
 * @returns the exit status: what `run` returns, 1 after an ImageError or a failing system call, 2 after a UsageError
 * @throws whatever else `run` throws: a bug, which shows its stack
 */
export async function runCommand(command: Command, argv: readonly string[], io: Io = realIo): Promise<number> {
  const name = commandName(command);
  try {
    const { values, positionals } = parse(command, argv);
    if (values.help === true) {
      io.stdout(command.usage);
      return 0;
    }
    return (await command.run(positionals, values, io)) ?? 0;
  } catch (error) {
    if (error instanceof UsageError) {
      io.stderr(`${name}: ${visible(error.message)}; see ${name} --help\n`);
      return 2;
    }
    if (error instanceof ImageError) {
      io.stderr(visible(`${error instanceof FileError ? error.file : name}: ${error.message}`) + "\n");
      return 1;
    }
    if (isSystemError(error) && error.code === "EPIPE") return 1;
    if (error instanceof Error && error.name === "NotCapable") {
      io.stderr(visible(`${name}: ${error.message}: Deno's "run -A" gives a script all that it needs`) + "\n");
      return 1;
    }
    throw error;
  }
}

/**
 * Runs the command when its module is the program, and only then: tests and mb-efi import the same files.
 * Real paths are compared because the script may be started through a symbolic link or without its ".ts". Where Deno does
 * not let us ask for them, the names are, so that the command itself can say what it is not allowed to do.
 * In its usage text the command is called as its file is, which may be the one that dist.ts makes.
 * @param moduleUrl the module's `import.meta.url`
 */
export function runIfMain(moduleUrl: string, command: Command): void {
  const program = process.argv[1];
  if (program === undefined) return;
  const real = (file: string): string => ifThere(() => fs.realpathSync(file)) ?? file;
  const self = real(fileURLToPath(moduleUrl));
  if (![program, `${program}.ts`].some((candidate) => real(candidate) === self)) return;
  const usage = command.usage.replaceAll(commandName(command), path.basename(self));
  // A signal must not end the process between writing and renaming: the temporary file would stay. The work takes less
  // than a second, and then the process ends by itself with the status a shell expects of it.
  for (const [signal, status] of Object.entries({ SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }))
    process.once(signal, () => process.exit(status));
  runCommand({ ...command, usage }, process.argv.slice(2)).then((status) => {
    process.exitCode = status;
  });
}

/** The command's name as its usage line has it: "align-sections.ts". */
export function commandName(command: Command): string {
  return /^Usage: (\S+)/.exec(command.usage)?.[1] ?? "xen-mb-efi";
}

function parse(command: Command, argv: readonly string[]): { values: Values; positionals: string[] } {
  const options: Options = { ...command.options, help: { type: "boolean" } };
  let parsed: { values: Values; positionals: string[] };
  try {
    parsed = parseArgs({ args: [...argv], options, allowPositionals: true, strict: true });
  } catch (error) {
    // parseArgs explains over several sentences how to quote; the first one says what is wrong.
    throw new UsageError(String((error as Error).message).split(/\. |\n/)[0] ?? "wrong arguments");
  }
  if (parsed.values.help === true) return parsed;
  const { positionals } = parsed;
  const missing = command.positionals[positionals.length];
  if (missing !== undefined && !missing.startsWith("[")) throw new UsageError(`${missing} is missing`);
  const extra = positionals[command.positionals.length];
  if (extra !== undefined) throw new UsageError(`Unexpected argument '${extra}'`);
  return parsed;
}

/**
 * Reads a whole file.
 * @param file a path, or "-" for standard input
 * @throws FileError when it cannot be read or has more than 1 GiB
 */
export function readInput(file: string, io: Io): Uint8Array {
  try {
    if (file === "-") return io.stdin();
    return withFile(file, "r", (fd) => readAll(fd, fs.fstatSync(fd).size));
  } catch (error) {
    throw fileError(displayName(file), "read", error);
  }
}

/** How a file argument is called in messages. */
export function displayName(file: string): string {
  return file === "-" ? "<stdin>" : visible(file);
}

/** Runs `work`, naming the file in the ImageErrors that do not name one yet. */
export function aboutFile<T>(file: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (error instanceof ImageError && !(error instanceof FileError))
      throw new FileError(displayName(file), error.message);
    throw error;
  }
}

/** Where a command says what its user should know although it went well: one line, without the file's name. */
export type Say = (line: string) => void;

/** Says nothing: for callers that only want the result. */
export const silent: Say = () => {};

/** Says it on standard error, with the file's name in front: standard output may be the image. */
export function sayOn(io: Io, file: string): Say {
  return (line) => io.stderr(`${displayName(file)}: ${visible(line)}\n`);
}

export type Output = readonly [file: string, bytes: Uint8Array];

/** {@link writeOutputs} of one file. */
export function writeOutput(file: string, bytes: Uint8Array, io: Io): void {
  writeOutputs([[file, bytes]], io);
}

/**
 * Writes all of these files, each of them whole, or none: the bytes go to temporary files beside the targets, which then
 * take the targets' names. A target that is a symbolic link stays one, and the file it names is replaced or made; a
 * device or a pipe is written to as it is, before any file is replaced.
 * @param files paths, or "-" for standard output
 * @throws FileError when one cannot be written; files are then as they were, and no temporary file is left
 */
export function writeOutputs(files: readonly Output[], io: Io): void {
  const pending: Pending[] = [];
  try {
    for (const [file, bytes] of files) pending.push(begin(file, bytes, io));
    for (const { temporary, finish } of pending) if (temporary === undefined) finish();
    for (const { temporary, finish } of pending) if (temporary !== undefined) finish();
  } catch (error) {
    for (const { temporary } of pending) if (temporary !== undefined) fs.rmSync(temporary, { force: true });
    throw error;
  }
}

/** An output that needs only its last step: the target is as it was until then. */
interface Pending {
  /** The file that has the bytes; undefined where there can be none, and all is written at last. */
  readonly temporary?: string;
  finish(): void;
}

function begin(file: string, bytes: Uint8Array, io: Io): Pending {
  if (file === "-") return { finish: () => io.stdout(bytes) };
  return writing(file, () => {
    const target = targetOf(file);
    const old = fs.statSync(target, { throwIfNoEntry: false });
    if (old !== undefined && !old.isFile())
      return { finish: () => writing(file, () => withFile(target, "w", (fd) => writeAll(fd, bytes))) };
    // Not by process id: in containers all runs may have the same, and one that was killed has left its file behind. Not
    // by the target's name either, which may be as long as names can be.
    const temporary = path.join(path.dirname(target), `.xen-mb-efi.${Math.random().toString(36).slice(2)}.tmp`);
    try {
      withFile(temporary, "wx", (fd) => writeSparse(fd, bytes));
      if (old !== undefined) fs.chmodSync(temporary, old.mode);
    } catch (error) {
      fs.rmSync(temporary, { force: true });
      throw error;
    }
    return { temporary, finish: () => writing(file, () => fs.renameSync(temporary, target)) };
  });
}

function writing<T>(file: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw fileError(file, "write", error);
  }
}

/** The file that a name leads to, through links of files and folders, whether it is there or not. */
export function targetOf(file: string): string {
  try {
    return fs.realpathSync(file);
  } catch (error) {
    // What leads round in a circle, or through a file, stays as it is: writing will say why it cannot be.
    if (!isSystemError(error) || error.code !== "ENOENT" || file.endsWith("/")) return file;
  }
  const folder = ifThere(() => fs.realpathSync(path.dirname(file)));
  if (folder === undefined) return file;
  const name = path.join(folder, path.basename(file));
  return ifThere(() => targetOf(path.resolve(folder, fs.readlinkSync(name)))) ?? name;
}

/**
 * Refuses an output that is the input itself, or another name of it, so that no command ever changes its input.
 * @param what what the input is called in the message
 * @throws UsageError
 */
export function refuseSameFile(input: string, output: string, what = "IN"): void {
  if (input === "-" || output === "-") return;
  const [from, to] = [input, output].map((file) => ifThere(() => fs.statSync(file)));
  if (from === undefined || to === undefined || !to.isFile()) return;
  if (from.dev === to.dev && from.ino === to.ino)
    throw new UsageError(`OUT '${output}' is the same file as ${what} '${input}'`);
}

function withFile<T>(file: string, flags: string, work: (fd: number) => T): T {
  const fd = fs.openSync(file, flags);
  try {
    return work(fd);
  } finally {
    fs.closeSync(fd);
  }
}

const HOLE_UNIT = 4096;
const ZERO_PAGE = new Uint8Array(HOLE_UNIT);

/** Writes a new file, leaving out pages of zeros: a linear image is half zeros, which then take no space on the disk. */
function writeSparse(fd: number, bytes: Uint8Array): void {
  const isHole = (at: number): boolean => {
    if (bytes[at] !== 0) return false;
    const page = bytes.subarray(at, at + HOLE_UNIT);
    return Buffer.compare(page, ZERO_PAGE.subarray(0, page.length)) === 0;
  };
  for (let at = 0; at < bytes.length;) {
    const from = at;
    while (at < bytes.length && !isHole(at)) at += HOLE_UNIT;
    if (at > from) writeAll(fd, bytes.subarray(from, at), from);
    while (at < bytes.length && isHole(at)) at += HOLE_UNIT;
  }
  fs.ftruncateSync(fd, bytes.length);
}

/** @param expected how many bytes there will be, if that is known: then one piece has them all */
function readAll(fd: number, expected = 0): Uint8Array {
  const size = Math.max(Math.min(expected, MAX_FILE) + 1, CHUNK);
  const pieces: Buffer[] = [];
  for (let length = 0; length <= MAX_FILE;) {
    const piece = readPiece(fd, size);
    pieces.push(piece);
    length += piece.length;
    if (piece.length === size) continue;
    const { buffer, byteOffset } = length === piece.length ? piece : Buffer.concat(pieces);
    return new Uint8Array(buffer, byteOffset, length);
  }
  throw new ImageError("file too large, needed at most 1 GiB");
}

/** The next bytes of a file: fewer than `size` only where it ends. */
function readPiece(fd: number, size: number): Buffer {
  const bytes = Buffer.allocUnsafe(size);
  let length = 0;
  for (let count = -1; count !== 0 && length < size; length += count)
    count = retry(() => fs.readSync(fd, bytes, length, size - length, null));
  return bytes.subarray(0, length);
}

/** @param position where in the file to begin; without it, where the last write ended */
function writeAll(fd: number, bytes: Uint8Array, position?: number): void {
  for (let done = 0; done < bytes.length;) {
    const at = position === undefined ? null : position + done;
    done += retry(() => fs.writeSync(fd, bytes, done, bytes.length - done, at));
  }
}

/** A pipe may be non-blocking because its other end made it so: then wait and try again. */
function retry(call: () => number): number {
  for (;;) {
    try {
      return call();
    } catch (error) {
      if (!isSystemError(error)) throw error;
      if (error.code === "EOF") return 0;
      if (error.code !== "EAGAIN") throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
    }
  }
}

/** Undefined for a name that leads nowhere: reading or writing will say why. */
function ifThere<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch {
    return undefined;
  }
}

function isSystemError(error: unknown): error is Error & { readonly code: string } {
  return error instanceof Error && "code" in error && typeof error.code === "string";
}

function fileError(file: string, action: string, error: unknown): unknown {
  if (error instanceof ImageError) return new FileError(file, `Cannot ${action}: ${error.message}`);
  if (!isSystemError(error)) return error;
  // "ENOENT: no such file or directory, open 'x'": the words between code and call.
  const words = /^\w+: ([^,]+)/.exec(error.message)?.[1] ?? error.message;
  return new FileError(file, `Cannot ${action}: ${words}`);
}
