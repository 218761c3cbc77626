// SPDX-License-Identifier: GPL-2.0-only
//
// Which images are booted through which paths, and what must be seen. The untouched images are the controls: a path
// that they pass as well proves nothing about the transformation, and that they fail on the others shows that the
// loader under test really is the one that reads the image.

import { PATHS, type BootPath } from "./paths.ts";
import type { Goal, Outcome } from "./verdict.ts";
import { knownBuilds } from "../known-builds.ts";

export interface Subject {
  /** "mini-xen", or a known build's id */
  readonly build: string;
  readonly variant: "untouched" | "move" | "keep";
  readonly goal: Goal;
}

export interface Expected {
  readonly stage: Outcome["stage"];
  readonly detail: RegExp;
  /** One of these must be seen; left out: none may be. */
  readonly troubles?: readonly Outcome["trouble"][];
  /** Instead of the subject's own. */
  readonly goal?: Goal;
  /** Instead of the goal's limit: a hang that is expected need not be waited for as long. */
  readonly limitSeconds?: number;
}

/** Generous: a boot takes 1 to 30 seconds on a slow machine, emulated. */
export const LIMIT_SECONDS: Readonly<Record<Goal, number>> = { "mini-xen": 90, "xen-efi": 150, xen: 150, dom0: 300 };

/** The build of `make boot-test`, which also goes through all paths untouched. */
const MAIN_BUILD = "4.17.7+13";
/** The builds that go on to dom0 in `make boot-matrix`: one per Xen release. */
const RELEASES = ["4.14.6-1", MAIN_BUILD, "4.20.4+63"];

const MINI_XEN: readonly Subject[] = (["untouched", "move", "keep"] as const).map((variant) => ({
  build: "mini-xen",
  variant,
  goal: "mini-xen",
}));

const CONTROL: Subject = { build: MAIN_BUILD, variant: "untouched", goal: "xen" };

export const TEST: readonly Subject[] = [...MINI_XEN, CONTROL, { build: MAIN_BUILD, variant: "move", goal: "dom0" }];

export const MATRIX: readonly Subject[] = [
  ...MINI_XEN,
  CONTROL,
  ...knownBuilds.map((known): Subject => ({
    build: known.id,
    variant: "move",
    goal: RELEASES.includes(known.id) ? "dom0" : "xen",
  })),
  { build: MAIN_BUILD, variant: "keep", goal: "dom0" },
];

const NOT_ELF = /^invalid arch-dependent ELF magic$/;
const NOT_RELOCATED = /^Unsupported relocation type$/;

/** What the untouched images are refused with, by path; through the paths not named here they boot. */
const REFUSALS: Readonly<Record<string, RegExp>> = {
  shim: NOT_RELOCATED,
  "grub-efi-mb2": NOT_ELF,
  "grub-bios-mb2": NOT_ELF,
  "grub-bios-mb1": NOT_ELF,
  "qemu-mb1": /^Error while loading elf kernel$/,
  "mboot-c32": /^Invalid Multiboot image: neither ELF header nor a.out kludge found$/,
  "ipxe-mb1": /^Could not boot: Invalid argument$/,
  "grub212-efi-mb2": NOT_ELF,
  "grub214-efi-mb2": NOT_ELF,
  "grub214-peimage": /^cannot load image$/,
  kexec: /^Cannot determine the file type$/,
  // The signature is good; it is the image that shim and GRUB cannot do with.
  "sb-shim": NOT_RELOCATED,
  "sb-shim-objcopy": NOT_RELOCATED,
  "sb-grub-chain": NOT_RELOCATED,
  "sb-grub-mb2": NOT_ELF,
};

const NOT_TRUSTED = {
  firmware: /^BdsDxe: failed to load Boot\w+ "UEFI (Misc|Non-Block Boot) Device" .*: Access Denied$/,
  shim: /^Verification failed: \(0x1A\) Security Violation$/,
  grub: /^bad shim signature$/,
};

/** What Secure Boot refuses whatever the image: what is not as it was signed, and modules in stock GRUB. */
const FORBIDDEN: Readonly<Record<string, RegExp>> = {
  "sb-efi-tampered": NOT_TRUSTED.firmware,
  "sb-efi-unsigned": NOT_TRUSTED.firmware,
  "sb-shim-tampered": NOT_TRUSTED.shim,
  "sb-shim-unsigned": NOT_TRUSTED.shim,
  "sb-grub-chain-tampered": NOT_TRUSTED.grub,
  "sb-grub-chain-unsigned": NOT_TRUSTED.grub,
  "sb-grub-mb2-tampered": NOT_TRUSTED.grub,
  "sb-grub-mb2-unsigned": NOT_TRUSTED.grub,
  "sb-grub-mb2-module2": /^prohibited by secure boot policy$/,
};

/** Where the loader gives no dom0, Xen's first line is the goal. */
const WITHOUT_DOM0 = new Set(["sb-grub-mb2"]);

/**
 * Where Xen stops behind the loader, which has done its part (mini-xen passes there), whatever the image: xen.gz's ELF
 * hangs in the same way when kexec takes it by Multiboot1, and under U-Boot an untouched unified image stops as ours
 * does. Seen with kexec-tools 2.0.25 and U-Boot 2023.01. What kexec leaves behind hangs for most of a minute before the
 * processor gives up: which of the two is seen is a matter of the machine's speed.
 */
const KNOWN_STOPS: Readonly<Record<string, Expected>> = {
  kexec: { stage: "loader", detail: /^kexec jumps$/, troubles: ["hang", "triple fault"], limitSeconds: 60 },
  "u-boot": { stage: "xen-efi", detail: /^\d/, troubles: ["reset"] },
};

/**
 * Before 4.15 Xen does not look for configuration, kernel and initramfs in itself. Where these paths have nothing else to
 * offer, its EFI loader part begins, which is all that can be asked for, and gives up.
 */
const NO_UNIFIED = /^4\.14\./;
const BEGINS_4_14: Expected = { stage: "xen-efi", detail: /^4\.14\./, goal: "xen-efi" };
const UNIFIED_ONLY: Readonly<Record<string, Expected>> = {
  "ipxe-efi": BEGINS_4_14,
  "u-boot": { stage: "xen-efi", detail: /^No configuration file found$/, troubles: ["gave up"] },
  ...Object.fromEntries(["sb-efi", "sb-shim", "sb-grub-chain"].map((name) => [name, BEGINS_4_14])),
};

/**
 * Whether the subject is taken through the path at all. What is forbidden does not depend on the build, nor does
 * objcopy's unified image show anything but with the untouched ones, whose control it is.
 */
export function goesThrough({ build, variant }: Subject, { name }: BootPath): boolean {
  if (name === "sb-shim-objcopy") return variant === "untouched";
  if (FORBIDDEN[name] === undefined) return true;
  const hasModules = build !== "mini-xen" || name !== "sb-grub-mb2-module2";
  return variant === "move" && hasModules && ["mini-xen", MAIN_BUILD].includes(build);
}

/** How far an image may be asked to come through the path. */
export function goalThrough({ name }: BootPath, wanted: Goal): Goal {
  return WITHOUT_DOM0.has(name) ? "xen" : wanted;
}

/** What must be seen when the subject goes through the path. */
export function expected({ build, variant, goal }: Subject, { name, entry, firmware, secureBoot }: BootPath): Expected {
  const refusal = FORBIDDEN[name] ?? (variant === "untouched" ? REFUSALS[name] : undefined);
  // mini-xen finds out the same as Xen's EFI loader part does: shim has not loaded the relocation table.
  if (goal === "mini-xen" && refusal === NOT_RELOCATED) return { stage: "fail", detail: /unsupported base relocation/ };
  if (refusal !== undefined) return { stage: "refused", detail: refusal };
  if (goal === "mini-xen") return { stage: "pass", detail: new RegExp(`^${entry}$`) };
  const stop = (NO_UNIFIED.test(build) ? UNIFIED_ONLY[name] : undefined) ?? KNOWN_STOPS[name];
  if (stop !== undefined) return stop;
  const version = { stage: "xen", detail: new RegExp(`^${build.replaceAll(/[.+]/g, "\\$&")}(-|$)`) } as const;
  if (WITHOUT_DOM0.has(name)) return { ...version, goal: "xen" };
  if (goal === "xen") return version;
  // Debian's 4.20.4+63 calls itself 4.20.5-pre: here only the release is certain.
  const release = /^\d+\.\d+\./.exec(build)?.[0].replaceAll(".", "\\.");
  // Xen hands on to dom0 that there is EFI firmware with Secure Boot, or the boot was not what it seemed.
  const [efi, lockdown] = [firmware === "OVMF" ? "yes" : "no", secureBoot === undefined ? "none" : "integrity"];
  return { stage: "dom0", detail: new RegExp(`^xen=${release}\\S* efi=${efi} lockdown=${lockdown}$`) };
}

/** Whether it came as it must. */
export function meets(outcome: Outcome, wanted: Expected): boolean {
  const { troubles = [undefined] } = wanted;
  return troubles.includes(outcome.trouble) && outcome.stage === wanted.stage && wanted.detail.test(outcome.detail);
}

/** How a subject is called in tables and file names. */
export function subjectName({ build, variant }: Subject): string {
  return `${build === "mini-xen" ? build : `xen-${build}`}-${variant}`;
}

/** Every path that a test must know of. */
export function pathNamed(name: string): BootPath | undefined {
  return PATHS.find((bootPath) => bootPath.name === name);
}
