// SPDX-License-Identifier: GPL-2.0-only
//
// Runs one boot in QEMU, emulated: its serial line goes to the judge and to a log. No port of this machine is used, and
// nothing outlives this process: QEMU is killed and the work folder removed however it ends.

import { Buffer } from "node:buffer";
import { spawn } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { ImageError } from "../../cli/errors.ts";
import { children, option } from "./media.ts";
import type { BootPath, Load } from "./paths.ts";
import { TOOLS } from "./tools.ts";
import { Judge, plainText } from "./verdict.ts";
import type { End, Goal, Outcome } from "./verdict.ts";

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

const folders = new Set<string>();
process.on("exit", () => {
  for (const child of children) child.kill("SIGKILL");
  for (const folder of folders) fs.rmSync(folder, { recursive: true, force: true });
});

/** Gives `use` a work folder, which is gone afterwards. */
export async function inWorkFolder<T>(parent: string, use: (work: string) => Promise<T>): Promise<T> {
  fs.mkdirSync(parent, { recursive: true });
  const work = fs.mkdtempSync(path.join(parent, "work-"));
  folders.add(work);
  try {
    return await use(work);
  } finally {
    fs.rmSync(work, { recursive: true, force: true });
    folders.delete(work);
  }
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
  // A file, since QEMU drops characters when nobody takes them: of single ones a socket, which is what node's pipes are,
  // holds some 280, and on a busy machine that is soon full.
  const serial = path.join(load.work, "serial.log");
  const shown = ["-chardev", `stdio,id=terminal,mux=on,signal=off,logfile=${option(serial)}`, "-mon", "terminal"];
  const watch = onTerminal
    ? [...shown, "-serial", "chardev:terminal"]
    : ["-serial", `file:${serial}`, "-monitor", "none"];
  const args = [...(await machine(bootPath, load)), ...watch, "-d", "cpu_reset", "-D", resets];
  const judge = new Judge(goal);
  const lines: string[] = [];
  const started = Date.now();
  fs.writeFileSync(serial, "");
  const end = await new Promise<End | undefined>((settle, fail) => {
    const ours = onTerminal ? "inherit" : "ignore";
    const qemu = spawn(TOOLS.qemu.is, args, { stdio: [ours, ours, "pipe"] });
    if (onTerminal) qemu.stderr.pipe(process.stderr);
    const stop = () => {
      qemu.stderr.unpipe(process.stderr); // it would say which signal has ended it
      qemu.kill(onTerminal ? "SIGTERM" : "SIGKILL"); // the first lets it put the terminal's settings back
    };
    children.add(qemu);
    let over = false;
    let timedOut = false;
    const timer = setTimeout(() => {
      timedOut = true;
      stop();
    }, limitSeconds * 1000);
    const take = (line: string) => {
      lines.push(line);
      if (lines.length > LINES_KEPT) lines.splice(LINES_KEPT / 4, LINES_KEPT / 2, "[… lines left out …]");
      if (over || !judge.line(line)) return;
      over = true;
      stop();
    };
    const complaints = lineSplitter(take);
    qemu.stderr.setEncoding("latin1").on("data", complaints.push).on("end", complaints.end);
    const stopReading = follow(serial, lineSplitter(take));
    qemu.on("error", (error) => {
      clearTimeout(timer);
      children.delete(qemu);
      fail(new ImageError(`Cannot run ${TOOLS.qemu.is}: ${error.message}`));
    });
    qemu.on("close", () => {
      clearTimeout(timer);
      stopReading();
      children.delete(qemu);
      if (over) settle(undefined);
      else if (timedOut) settle("timeout");
      else
        settle(
          fs.existsSync(resets) && fs.readFileSync(resets, "latin1").includes("Triple fault") ? "triple fault" : "exit",
        );
    });
  });
  const seconds = (Date.now() - started) / 1000;
  writeLog(log, `${TOOLS.qemu.is} ${args.join(" ")}\n${lines.join("\n")}\n`);
  return { outcome: judge.outcome(end), seconds, lastLines: lines.filter((line) => line.trim() !== "").slice(-15) };
}

interface LineSplitter {
  push(chunk: string): void;
  end(): void;
}

/** Calls `take` with each line, plain; the last one also when it is not ended, as a prompt, once nothing follows. */
function lineSplitter(take: (line: string) => void): LineSplitter {
  let rest = "";
  return {
    push: (chunk) => {
      // Firmware moves the cursor to the first column instead of ending lines.
      const parts = (rest + chunk).replace(/\u001b\[\d+;0*1H/g, "\n").split(/\r*\n/);
      rest = parts.pop() ?? "";
      for (const part of parts) take(plainText(part));
    },
    end: () => take(plainText(rest)),
  };
}

/** Reads a file while it grows. @returns what reads it to its end and stops */
function follow(file: string, { push, end }: LineSplitter): () => void {
  const from = fs.openSync(file, "r");
  const chunk = Buffer.alloc(1 << 16);
  const read = () => {
    for (let length = fs.readSync(from, chunk); length > 0; length = fs.readSync(from, chunk))
      push(chunk.toString("latin1", 0, length));
  };
  const timer = setInterval(read, POLL_MILLISECONDS);
  return () => {
    clearInterval(timer);
    read();
    fs.closeSync(from);
    end();
  };
}

function writeLog(file: string, text: string): void {
  fs.mkdirSync(path.dirname(file), { recursive: true });
  const cut = text.length - 2 * LOG_HALF;
  const whole =
    cut <= 0 ? text : `${text.slice(0, LOG_HALF)}\n[… ${cut} characters left out …]\n${text.slice(-LOG_HALF)}`;
  fs.writeFileSync(file, whole);
}
