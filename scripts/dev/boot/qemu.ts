// SPDX-License-Identifier: GPL-2.0-only
//
// Runs one boot in QEMU, emulated: its serial line goes to the judge and to a log. No port of this machine is used, and
// nothing outlives this process: QEMU is killed and the work folder removed however it ends.

import { Buffer } from "node:buffer";
import { spawn } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { setTimeout } from "node:timers/promises";
import { watched } from "../process.ts";
import { option } from "./media.ts";
import type { Load } from "./given.ts";
import type { BootPath } from "./paths.ts";
import { TOOLS } from "./tools.ts";
import { Judge, plainText, type End, type Goal, type Outcome } from "./verdict.ts";

const OVMF_VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/** Of a longer log the middle goes: what matters is how it began and how it ended. */
const LOG_HALF = 100_000;
const LINES_KEPT = 20_000;
const POLL_MILLISECONDS = 50;

export interface Booted {
  readonly outcome: Outcome;
  readonly seconds: number;
  /** The last lines of the serial console. */
  readonly lastLines: readonly string[];
}

/** QEMU's arguments for one path; makes the media. */
async function machine(bootPath: BootPath, load: Load): Promise<string[]> {
  const media = await bootPath.media(load);
  const type = bootPath.firmware === "U-Boot" ? "pc" : "q35"; // the one U-Boot is built for
  const secure = bootPath.secureBoot !== undefined;
  // With more than the plainest CPU dom0's kernel, which is paravirtual, crashes in emulation.
  const base = ["-machine", `${type},accel=tcg`, "-cpu", "qemu64", "-m", "1024", "-no-reboot", "-display", "none"];
  // graphics=off makes SeaBIOS, and what prints through it, use the serial line. mini-xen ends QEMU through the device.
  const common = [...base, "-machine", "graphics=off", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"];
  const network = media.includes("-netdev") ? [] : ["-nic", "none"];
  if (bootPath.firmware === "U-Boot") return [...common, ...network, "-bios", TOOLS.uBoot.is, ...media];
  if (bootPath.firmware === "SeaBIOS") return [...common, ...network, ...media];
  const variables = path.join(load.work, "variables.fd");
  fs.copyFileSync(secure ? TOOLS.testVariables.is : OVMF_VARIABLES, variables);
  fs.chmodSync(variables, 0o600);
  const flash = [`readonly=on,file=${secure ? TOOLS.ovmfSecure.is : TOOLS.ovmf.is}`, `file=${option(variables)}`];
  const firmware = flash.flatMap((part, unit) => ["-drive", `if=pflash,format=raw,unit=${unit},${part}`]);
  // This build of OVMF keeps its variables where only system management mode can write.
  const locked = secure ? ["-machine", "smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"] : [];
  return [...common, ...locked, ...firmware, ...network, ...media];
}

/**
 * Boots until the goal is reached, or nothing more can come of it, or the time is over.
 * @param onTerminal with the serial line on this terminal as well, where Ctrl-A X ends it
 */
export async function boot(
  bootPath: BootPath,
  load: Load,
  goal: Goal,
  limitSeconds: number,
  log: string,
  onTerminal = false,
): Promise<Booted> {
  const resets = path.join(load.work, "resets.log");
  // The serial line, and what QEMU itself says. A file, since QEMU drops characters when nobody takes them: of single
  // ones a socket, which is what node's pipes are, holds some 280, and on a busy machine that is soon full.
  const said = path.join(load.work, "said.log");
  const device = onTerminal
    ? ["-chardev", `stdio,id=line,mux=on,signal=off,logfile=${option(said)},logappend=on`, "-mon", "line"]
    : ["-chardev", `file,id=line,path=${option(said)},append=on`, "-monitor", "none"];
  const watch = [...device, "-serial", "chardev:line", "-d", "cpu_reset", "-D", resets];
  const args = [...(await machine(bootPath, load)), ...watch];
  fs.writeFileSync(said, "");
  const started = Date.now();
  const ours = onTerminal ? "inherit" : "ignore";
  const qemu = spawn(TOOLS.qemu.is, args, { stdio: [ours, ours, "pipe"] });
  watched(qemu);
  qemu.stderr.on("data", (chunk: Buffer) => fs.appendFileSync(said, chunk));
  if (onTerminal) qemu.stderr.pipe(process.stderr);
  let running = true;
  const closed = once(qemu, "close").finally(() => (running = false));

  const judge = new Judge(goal);
  const reader = new LineReader(said);
  const lines: string[] = [];
  let over = false;
  const hear = (newLines: readonly string[]) => {
    for (const line of newLines) {
      lines.push(line);
      if (lines.length > LINES_KEPT) lines.splice(LINES_KEPT / 4, LINES_KEPT / 2, "[… lines left out …]");
      over ||= judge.line(line);
    }
  };
  let end: End | undefined;
  while (!over && end === undefined) {
    if (!running) end = hasTripleFault(resets) ? "triple fault" : "exit";
    else if (Date.now() - started > limitSeconds * 1000) end = "timeout";
    else await Promise.race([closed, setTimeout(POLL_MILLISECONDS)]);
    hear(reader.ended());
  }
  qemu.stderr.unpipe(process.stderr); // it would say which signal has ended it
  qemu.kill(onTerminal ? "SIGTERM" : "SIGKILL"); // the first lets it put the terminal's settings back
  await closed;
  hear(reader.rest());
  const seconds = (Date.now() - started) / 1000;
  writeLog(log, `${TOOLS.qemu.is} ${args.join(" ")}\n${lines.join("\n")}\n`);
  const outcome = judge.outcome(over ? undefined : end);
  return { outcome, seconds, lastLines: lines.filter((line) => line.trim() !== "").slice(-15) };
}

function hasTripleFault(resets: string): boolean {
  return fs.existsSync(resets) && fs.readFileSync(resets, "latin1").includes("Triple fault");
}

/** Reads a file while it grows, in lines of plain text. */
class LineReader {
  readonly #file: number;
  readonly #chunk = Buffer.alloc(1 << 16);
  #rest = "";

  constructor(file: string) {
    this.#file = fs.openSync(file, "r");
  }

  /** The lines that were ended since the last call. */
  ended(): string[] {
    let text = this.#rest;
    const read = () => fs.readSync(this.#file, this.#chunk);
    for (let length = read(); length > 0; length = read()) text += this.#chunk.toString("latin1", 0, length);
    // Firmware moves the cursor to the first column instead of ending lines.
    const lines = text.replace(/\u001b\[\d+;0*1H/g, "\n").split(/\r*\n/);
    this.#rest = lines.pop() ?? "";
    return lines.map(plainText);
  }

  /** What there is besides, when nothing follows: also a line that is not ended, as a prompt. */
  rest(): string[] {
    const lines = [...this.ended(), plainText(this.#rest)];
    fs.closeSync(this.#file);
    return lines;
  }
}

function writeLog(file: string, text: string): void {
  fs.mkdirSync(path.dirname(file), { recursive: true });
  const cut = text.length - 2 * LOG_HALF;
  const whole =
    cut <= 0 ? text : `${text.slice(0, LOG_HALF)}\n[… ${cut} characters left out …]\n${text.slice(-LOG_HALF)}`;
  fs.writeFileSync(file, whole);
}
