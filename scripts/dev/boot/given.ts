// SPDX-License-Identifier: GPL-2.0-only
//
// What a loader is given to boot, and its configuration. All of them get the same: the image, and where there is a dom0 its
// kernel and initramfs, with the same command lines.

import * as fs from "node:fs";
import * as path from "node:path";
import { unify, type Sections } from "./image.ts";
import type { Files } from "./media.ts";

/** What is booted, and where the path may make its media. */
export interface Load {
  readonly image: string;
  /** Left out for an image that needs none, as mini-xen. */
  readonly dom0: { readonly kernel: string; readonly initrd: string } | undefined;
  readonly work: string;
}

/** How a loader's configuration, which is ours, begins what it prints; verdict.ts shows the last of it. */
export const OUR_WORD = "BOOT-TEST";
/** Printed when the loader has given up. */
export const GAVE_UP = `${OUR_WORD} the loader gave up`;
/** Printed before kexec leaves its Linux for good. */
export const KEXEC_JUMPS = `${OUR_WORD} kexec jumps`;

export const XEN_OPTIONS = "console=com1 com1=115200,8n1 loglvl=all noreboot";
export const DOM0_OPTIONS = "console=hvc0 panic=-1";

/** Boots when all commands succeed. The empty line at the end: a halt may come before the last characters are out. */
export function grubScript(...commands: readonly string[]): string {
  const boot = commands.reduceRight((rest, one) => `if ${one}; then\n${rest}fi\n`, "boot\n");
  return `search --no-floppy --file --set=root /xen.efi\n${boot}echo "${GAVE_UP}"\necho\nhalt\n`;
}

export function ipxeScript(...commands: readonly string[]): string {
  return [
    "#!ipxe",
    ...[...commands, "boot"].map((command) => `${command} || goto failed`),
    ":failed",
    `echo ${GAVE_UP}`,
    "poweroff",
    "",
  ].join("\n");
}

export function bootFiles({ image, dom0 }: Load): Record<string, string> {
  const modules = dom0 === undefined ? {} : { vmlinuz: dom0.kernel, initrd: dom0.initrd };
  return { "xen.efi": image, ...modules };
}

/** The configuration of Xen's own EFI loader, and what it names. */
export function xenCfg({ dom0 }: Load, folder: string, name: string): Files {
  if (dom0 === undefined) return {};
  return {
    [folder + name]: { text: cfgText("vmlinuz", "initrd") },
    [`${folder}vmlinuz`]: dom0.kernel,
    [`${folder}initrd`]: dom0.initrd,
  };
}

function cfgText(kernel: string, initrd: string): string {
  return `[global]\ndefault=xen\n[xen]\noptions=${XEN_OPTIONS}\nkernel=${kernel} ${DOM0_OPTIONS}\nramdisk=${initrd}\n`;
}

/** The image with configuration, kernel and initramfs inside: over the network Xen has no file system to read. */
export async function unified(load: Load): Promise<string> {
  return load.dom0 === undefined ? load.image : await unify(load.work, load.image, dom0Sections(load));
}

/** What a unified Xen has inside; an image that needs no dom0 has nothing. */
export function dom0Sections({ dom0, work }: Load): Sections {
  if (dom0 === undefined) return {};
  const configuration = path.join(work, "unified.cfg");
  fs.writeFileSync(configuration, cfgText("vmlinuz", "initrd"));
  return { ".config": configuration, ".kernel": dom0.kernel, ".ramdisk": dom0.initrd };
}

/** Without one shim starts nothing that it finds by itself. */
export function sbatSection({ work }: Load): Sections {
  return { ".sbat": sbatFile(work, "xen.test,1,Boot test,xen,1,https://xenproject.org/") };
}

export function sbatFile(work: string, component: string): string {
  const file = path.join(work, `${component.split(",")[0]}.sbat.csv`);
  fs.writeFileSync(file, `sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n${component}\n`);
  return file;
}
