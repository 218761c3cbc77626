// SPDX-License-Identifier: GPL-2.0-only
//
// The boot paths: from power-on through a real boot loader to the image. One entry each: which firmware, what it needs,
// how the image finds itself entered, and the medium with the loader's configuration. All of them give Xen the same
// command line and, where there is a dom0, the same kernel and initramfs.

import * as fs from "node:fs";
import * as path from "node:path";
import { kexecInitrd } from "./boot-dom0.ts";
import { fatDisk, grubCd, grubProgram, isolinuxCd, tftpNetwork } from "./boot-media.ts";
import type { Files } from "./boot-media.ts";
import { TOOLS, foreign } from "./boot-tools.ts";
import type { ForeignName, ToolName } from "./boot-tools.ts";
import { unifyFile } from "./boot-unify.ts";

/** What is booted, and where the path may make its media. */
export interface Load {
  readonly image: string;
  /** Left out for an image that needs none, as mini-xen. */
  readonly dom0: { readonly kernel: string; readonly initrd: string } | undefined;
  readonly work: string;
}

/** How an image finds itself entered, in mini-xen's words. */
export type Entry = "efi" | "mb1" | "mb2-bios" | "mb2-efi";

export interface BootPath {
  readonly name: string;
  readonly loader: string;
  readonly firmware: "OVMF" | "SeaBIOS" | "U-Boot";
  readonly entry: Entry;
  readonly tools: readonly ToolName[];
  readonly foreign?: readonly ForeignName[];
  /** Makes the media in the work folder and returns QEMU's arguments for them. */
  media(load: Load): Promise<string[]> | string[];
}

/** How a loader's configuration, which is ours, begins what it prints; boot-verdict.ts shows the last of it. */
export const OUR_WORD = "BOOT-TEST";
/** Printed when the loader has given up. */
export const GAVE_UP = `${OUR_WORD} the loader gave up`;
/** Printed before kexec leaves its Linux for good. */
export const KEXEC_JUMPS = `${OUR_WORD} kexec jumps`;

const XEN_OPTIONS = "console=com1 com1=115200,8n1 loglvl=all noreboot";
const DOM0_OPTIONS = "console=hvc0 panic=-1";

const onDisk: readonly ToolName[] = ["qemu", "ovmf", "mkfs", "mtools"];
const grubOnDisk: readonly ToolName[] = [...onDisk, "grubMkstandalone", "grubEfi"];
const grubOnCd: readonly ToolName[] = ["qemu", "seabios", "grubMkrescue", "grubPc", "xorriso", "mtools"];
const GRUB_EFI_MODULES = path.dirname(TOOLS.grubEfi.is);
const PROGRAM = "EFI/BOOT/BOOTX64.EFI";

export const PATHS: readonly BootPath[] = [
  {
    name: "efi",
    loader: "the firmware itself",
    firmware: "OVMF",
    entry: "efi",
    tools: onDisk,
    // Xen reads the .cfg that is called as it was itself.
    media: (load) => fatDisk(load.work, { [PROGRAM]: { file: load.image }, ...xenCfg(load, "EFI/BOOT/", "BOOTX64.CFG") }),
  },
  {
    name: "grub-efi-chain",
    loader: "GRUB 2.06 chainloader",
    firmware: "OVMF",
    entry: "efi",
    tools: grubOnDisk,
    media: (load) => grubDisk(load, GRUB_EFI_MODULES, "chain", chainload),
  },
  {
    name: "shim",
    loader: "shim, as its second stage",
    firmware: "OVMF",
    entry: "efi",
    tools: [...onDisk, "shim"],
    // Shim starts the grubx64.efi beside it, and leaves its own name in the loaded image's path: both names get a .cfg.
    media: (load) =>
      fatDisk(load.work, {
        [PROGRAM]: { file: TOOLS.shim.is },
        "EFI/BOOT/GRUBX64.EFI": { file: load.image },
        ...xenCfg(load, "EFI/BOOT/", "BOOTX64.CFG"),
        ...xenCfg(load, "EFI/BOOT/", "GRUBX64.CFG"),
      }),
  },
  {
    name: "systemd-boot",
    loader: "systemd-boot, an efi entry",
    firmware: "OVMF",
    entry: "efi",
    tools: [...onDisk, "systemdBoot"],
    media: (load) =>
      fatDisk(load.work, {
        [PROGRAM]: { file: TOOLS.systemdBoot.is },
        "loader/loader.conf": { text: "timeout 0\ndefault xen.conf\n" },
        "loader/entries/xen.conf": { text: "title Xen\nefi /xen.efi\n" },
        "xen.efi": { file: load.image },
        ...xenCfg(load, "", "xen.cfg"),
      }),
  },
  {
    name: "grub-efi-mb2",
    loader: "GRUB 2.06 multiboot2",
    firmware: "OVMF",
    entry: "mb2-efi",
    tools: grubOnDisk,
    media: (load) => grubDisk(load, GRUB_EFI_MODULES, "multiboot2", multiboot("multiboot2", "module2")),
  },
  {
    name: "grub-bios-mb2",
    loader: "GRUB 2.06 multiboot2",
    firmware: "SeaBIOS",
    entry: "mb2-bios",
    tools: grubOnCd,
    media: (load) => grubCd(load.work, multiboot("multiboot2", "module2")(load), bootFiles(load)),
  },
  {
    name: "grub-bios-mb1",
    loader: "GRUB 2.06 multiboot",
    firmware: "SeaBIOS",
    entry: "mb1",
    tools: grubOnCd,
    media: (load) => grubCd(load.work, multiboot("multiboot", "module")(load), bootFiles(load)),
  },
  {
    name: "qemu-mb1",
    loader: "QEMU -kernel",
    firmware: "SeaBIOS",
    entry: "mb1",
    tools: ["qemu", "seabios"],
    // -initrd takes a list: here too a comma inside an entry is doubled, and there is none.
    media: ({ image, dom0 }) => [
      ...["-kernel", image, "-append", XEN_OPTIONS],
      ...(dom0 === undefined ? [] : ["-initrd", `${dom0.kernel} ${DOM0_OPTIONS},${dom0.initrd}`]),
    ],
  },
  {
    name: "mboot-c32",
    loader: "isolinux mboot.c32",
    firmware: "SeaBIOS",
    entry: "mb1",
    tools: ["qemu", "seabios", "isolinux", "syslinux", "xorriso"],
    media: (load) => {
      const modules = load.dom0 === undefined ? "" : ` --- vmlinuz ${DOM0_OPTIONS} --- initrd`;
      const configuration = `DEFAULT xen\nLABEL xen\nKERNEL mboot.c32\nAPPEND xen.efi ${XEN_OPTIONS}${modules}\n`;
      return isolinuxCd(load.work, configuration, bootFiles(load));
    },
  },
  {
    name: "ipxe-mb1",
    loader: "iPXE, a network card's ROM",
    firmware: "SeaBIOS",
    entry: "mb1",
    tools: ["qemu", "seabios", "ipxeRom"],
    media: (load) => {
      const modules = load.dom0 === undefined ? [] : [`module vmlinuz ${DOM0_OPTIONS}`, "module initrd"];
      return tftpNetwork(load.work, ipxeScript(`kernel xen.efi ${XEN_OPTIONS}`, ...modules), bootFiles(load), TOOLS.ipxeRom.is);
    },
  },
  {
    name: "ipxe-efi",
    loader: "iPXE, an EFI program",
    firmware: "OVMF",
    entry: "efi",
    tools: [...onDisk, "ipxeEfi", "objcopy"],
    media: async (load) => [
      ...(await fatDisk(load.work, { [PROGRAM]: { file: TOOLS.ipxeEfi.is } })),
      ...tftpNetwork(path.join(load.work, "net"), ipxeScript("kernel xen.efi"), { "xen.efi": { file: await unified(load) } }),
    ],
  },
  ...(["2.12", "2.14"] as const).flatMap((version) => otherGrub(version)),
  {
    name: "kexec",
    loader: "kexec-tools' Multiboot1, from a running Linux",
    firmware: "SeaBIOS",
    entry: "mb1",
    tools: ["qemu", "seabios", "kexec", "busybox"],
    foreign: ["kernel"],
    media: async (load) => {
      const files = new Map(Object.entries(bootFiles(load)).map(([name, { file }]) => [name, fs.readFileSync(file)] as const));
      const modules = load.dom0 === undefined ? [] : [`--module=/vmlinuz ${DOM0_OPTIONS}`, "--module=/initrd"];
      const options = ["/xen.efi", `--command-line=${XEN_OPTIONS}`, ...modules];
      const initrd = path.join(load.work, "kexec.cpio");
      fs.writeFileSync(initrd, kexecInitrd(TOOLS.kexec.is, options, files, KEXEC_JUMPS, GAVE_UP));
      return ["-kernel", await foreign("kernel"), "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1"];
    },
  },
  {
    name: "u-boot",
    loader: "U-Boot bootefi",
    firmware: "U-Boot",
    entry: "efi",
    tools: ["qemu", "uBoot", "mkfs", "mtools", "objcopy"],
    media: async (load) => fatDisk(load.work, { [PROGRAM]: { file: await unified(load) } }),
  },
];

/** GRUB of other suites: their module folders work with the installed grub-mkstandalone. */
function otherGrub(version: "2.12" | "2.14"): BootPath[] {
  const name = version === "2.12" ? "grub212" : "grub214";
  const common = { firmware: "OVMF", tools: grubOnDisk, foreign: [name] } as const;
  return [
    {
      ...common,
      name: `${name}-efi-mb2`,
      loader: `GRUB ${version} multiboot2`,
      entry: "mb2-efi",
      media: async (load) => grubDisk(load, await foreign(name), "multiboot2", multiboot("multiboot2", "module2")),
    },
    {
      ...common,
      name: `${name}-peimage`,
      loader: `GRUB ${version} chainloader, its own PE loader`,
      entry: "efi",
      media: async (load) => grubDisk(load, await foreign(name), "chain peimage", chainload),
    },
  ];
}

async function grubDisk(load: Load, modulesFolder: string, modules: string, configuration: (load: Load) => string): Promise<string[]> {
  const locate = "search --no-floppy --file --set=root /xen.efi\n";
  const program = await grubProgram(load.work, modulesFolder, modules, locate + configuration(load));
  return fatDisk(load.work, { [PROGRAM]: { file: program }, ...bootFiles(load), ...xenCfg(load, "", "xen.cfg") });
}

function chainload(): string {
  return `if chainloader /xen.efi; then boot; fi\n${giveUp}`;
}

function multiboot(command: string, moduleCommand: string): (load: Load) => string {
  return ({ dom0 }) => {
    const modules = dom0 === undefined ? "" : `${moduleCommand} /vmlinuz ${DOM0_OPTIONS}\n${moduleCommand} /initrd\n`;
    return `if ${command} /xen.efi ${XEN_OPTIONS}; then\n${modules}boot\nfi\n${giveUp}`;
  };
}

// The empty line behind it: a halt may come before the last characters are out.
const giveUp = `echo "${GAVE_UP}"\necho\nhalt\n`;

function ipxeScript(...commands: readonly string[]): string {
  return ["#!ipxe", ...[...commands, "boot"].map((command) => `${command} || goto failed`), ":failed", `echo ${GAVE_UP}`, "poweroff", ""].join("\n");
}

function bootFiles({ image, dom0 }: Load): Record<string, { readonly file: string }> {
  const modules = dom0 === undefined ? {} : { vmlinuz: { file: dom0.kernel }, initrd: { file: dom0.initrd } };
  return { "xen.efi": { file: image }, ...modules };
}

/** The configuration of Xen's own EFI loader, and what it names. */
function xenCfg({ dom0 }: Load, folder: string, name: string): Files {
  if (dom0 === undefined) return {};
  return {
    [folder + name]: { text: cfgText("vmlinuz", "initrd") },
    [`${folder}vmlinuz`]: { file: dom0.kernel },
    [`${folder}initrd`]: { file: dom0.initrd },
  };
}

function cfgText(kernel: string, initrd: string): string {
  return `[global]\ndefault=xen\n[xen]\noptions=${XEN_OPTIONS}\nkernel=${kernel} ${DOM0_OPTIONS}\nramdisk=${initrd}\n`;
}

/** The image with configuration, kernel and initramfs inside: over the network Xen has no file system to read. */
async function unified({ image, dom0, work }: Load): Promise<string> {
  if (dom0 === undefined) return image;
  const configuration = path.join(work, "unified.cfg");
  fs.writeFileSync(configuration, cfgText("vmlinuz", "initrd"));
  const file = path.join(work, "unified.efi");
  await unifyFile(image, file, { ".config": configuration, ".kernel": dom0.kernel, ".ramdisk": dom0.initrd });
  return file;
}
