// SPDX-License-Identifier: GPL-2.0-only
//
// Reads the lines of a serial console and tells how far a boot came. No I/O.

import { DOM0_MARKER } from "./dom0.ts";
import { GAVE_UP, OUR_WORD } from "./given.ts";

/** Where a boot may stop with success. */
export type Goal = "mini-xen" | "xen-efi" | "xen" | "dom0";

export interface Outcome {
  /**
   * The farthest point that was seen: nothing but firmware and loader; the loader (or, on its behalf, the image's own
   * EFI loader part) said no; that part has begun; Xen's first line; dom0's user space; mini-xen's verdict on itself.
   */
  readonly stage: "loader" | "refused" | "xen-efi" | "xen" | "dom0" | "pass" | "fail";
  /** What was said there: the loader's message, Xen's version, mini-xen's entry. */
  readonly detail: string;
  /** Why it got no further, where that was no refusal. */
  readonly trouble?: "panic" | "triple fault" | "reset" | "hang" | "gave up";
}

/** How QEMU came to its end, when it was not us who stopped it. */
export type End = "triple fault" | "exit" | "timeout";

/** A loader's last words; the first group is what to show. */
const REFUSALS: readonly RegExp[] = [
  /(Unsupported relocation type)/, // Xen's EFI loader part: it has read memory that shim did not fill
  /(Invalid Multiboot image.*)/, // syslinux
  /(Verification failed: \(\w+\) [A-Z][A-Za-z ]*[a-z])/, // shim, which then waits for a key
  /(Failed to (?:load|start) .*image.*)/i, // shim, systemd-boot
  /(start_image\(\) returned .*)/, // shim
  /(BdsDxe: failed to (?:load|start) Boot\w+ "UEFI (?:Misc|Non-Block Boot) Device".*)/, // the firmware, on our disk
  /(EFI LOAD FAILED.*|EFI boot failed.*)/, // U-Boot
  /(No bootable device)/, // SeaBIOS
  /(UEFI Interactive Shell.*)/, // the firmware, after everything else
];

/** Not an end yet: kept as the reason for it. */
const COMPLAINTS: readonly RegExp[] = [
  /^error: (.*?)\.?$/, // GRUB
  /^(Could not \w+: .*?) \(/, // iPXE
  /^(Cannot determine the file type)/, // kexec
  /^qemu-system-x86_64: (?!warning)(.*)/,
];

/** Last words of Xen's EFI loader part that are no loader's fault: what it was to boot is not there. */
const GIVES_UP = /^(No configuration file found|No initial domain kernel specified)\.$/;

const PANIC =
  /\(XEN\) Panic on CPU \d+:|\(XEN\) FATAL|Kernel panic - not syncing: .*|\(XEN\) Hardware Dom0 (?:crashed|shutdown)|\(XEN\) Domain 0 crashed/;

export class Judge {
  readonly #goal: Goal;
  #stage: Outcome["stage"] = "loader";
  #detail = "";
  #complaint = "";
  #gaveUp = false;
  #panic: string | undefined;
  #panicLines = 0;

  constructor(goal: Goal) {
    this.#goal = goal;
  }

  /** Takes the next line; true when nothing that follows could change the outcome. */
  line(line: string): boolean {
    if (this.#panic !== undefined) {
      // The reason is on the line behind "Panic on CPU 0:".
      const words = line
        .replace(/^\(XEN\) /, "")
        .replace(/\*+/g, "")
        .trim();
      if (words !== "") this.#panic = `${this.#panic} ${words}`.trim();
      return words !== "" || ++this.#panicLines > 5;
    }
    const mini = /MINI-XEN (?:(\S+) PASS|.*FAIL.*)/.exec(line);
    if (mini !== null) return this.#reach(mini[1] === undefined ? "fail" : "pass", mini[1] ?? mini[0]);
    const dom0 = line.indexOf(`${DOM0_MARKER} `);
    if (dom0 >= 0) return this.#reach("dom0", line.slice(dom0 + DOM0_MARKER.length + 1).trim());
    // Debian's version says more: its builds come from between two releases.
    const version = /\(XEN\) Xen version (\S+)(?: \(Debian ([^\s)]+)\))?/.exec(line);
    if (version !== null) return this.#reach("xen", version[2] ?? version[1] ?? "");
    const panic = PANIC.exec(line);
    if (panic !== null) {
      this.#panic = /^\(XEN\) Panic/.test(panic[0]) ? "" : panic[0];
      return this.#panic !== "";
    }
    if (this.#stage === "loader" && line.startsWith(OUR_WORD)) this.#detail = line.slice(OUR_WORD.length + 1);
    const banner = /^Xen (\S+) .*EFI loader/.exec(line);
    if (banner !== null && this.#reach("xen-efi", banner[1] ?? "")) return true;
    for (const complaint of COMPLAINTS) this.#complaint = complaint.exec(line)?.[1]?.trim() ?? this.#complaint;
    if (this.#stage !== "loader" && this.#stage !== "xen-efi") return false;
    const last = GIVES_UP.exec(line)?.[1];
    if (last !== undefined) {
      this.#detail = last;
      this.#gaveUp = true;
      return true;
    }
    const refusal = line.includes(GAVE_UP)
      ? this.#complaint || line
      : REFUSALS.map((known) => known.exec(line)?.[1]).find(Boolean);
    if (refusal === undefined) return false;
    this.#stage = "refused";
    this.#detail = refusal.trim();
    return true;
  }

  /** The outcome: when the boot was stopped because `line` said so, or because of `end`. */
  outcome(end?: End): Outcome {
    const so = { stage: this.#stage, detail: this.#detail };
    if (this.#panic !== undefined) return { ...so, detail: this.#panic, trouble: "panic" };
    if (this.#gaveUp) return { ...so, trouble: "gave up" };
    if (end === undefined || so.stage === this.#goal || so.stage === "refused") return so;
    if (so.stage === "dom0" || so.stage === "pass" || so.stage === "fail") return so;
    if (end === "triple fault") return { ...so, trouble: "triple fault" };
    if (end === "timeout") return { ...so, trouble: "hang" };
    // QEMU itself refuses a kernel so, on standard error; otherwise the guest switched off or restarted the machine.
    if (so.stage === "loader" && this.#complaint !== "") return { stage: "refused", detail: this.#complaint };
    return { ...so, trouble: "reset" };
  }

  #reach(stage: Outcome["stage"], detail: string): boolean {
    this.#stage = stage;
    this.#detail = detail;
    return stage === this.#goal || (stage !== "xen-efi" && stage !== "xen");
  }
}

/** Text without what terminals take as commands; OVMF positions each of its lines. */
export function plainText(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/\u001b\[[0-9;?=]*[A-Za-z]|\u001bc/g, "").replace(/[\u0000-\u0008\u000b-\u001f]/g, "");
}

/** Whether a boot of an image of which nothing is known came to its goal; mini-xen, which has no dom0, passes for it. */
export function succeeded({ stage, trouble }: Outcome, goal: Goal): boolean {
  return trouble === undefined && (stage === goal || stage === "pass");
}

/** One cell of the table. */
export function describe({ stage, detail, trouble }: Outcome): string {
  const where = {
    loader: "in or right behind the loader",
    "xen-efi": "in Xen's EFI loader part",
    xen: "after Xen's first line",
  };
  if (trouble === "panic") return `panic: ${detail}`;
  if (trouble !== undefined)
    return `${trouble} ${where[stage as keyof typeof where] ?? ""}${detail === "" ? "" : `: ${detail}`}`;
  if (stage === "refused") return `refused: ${detail}`;
  return `${stage === "pass" ? "PASS as" : stage} ${detail}`;
}
