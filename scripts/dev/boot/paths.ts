// SPDX-License-Identifier: GPL-2.0-only
//
// The boot paths: from power-on through a real boot loader to the image. One entry each: which firmware, what it needs,
// how the image finds itself entered, and the medium with the loader's configuration. All of them give Xen the same
// command line and, where there is a dom0, the same kernel and initramfs.

import * as fs from "node:fs";
import * as path from "node:path";
import { kexecInitrd } from "./dom0.ts";
import { sign, signForeign, strip, tamper, unify, unifyByObjcopy } from "./image.ts";
import type { Sections, Signature } from "./image.ts";
import { fatDisk, grubCd, grubProgram, isolinuxCd, tftpNetwork } from "./media.ts";
import type { Files } from "./media.ts";
import { TOOLS, foreign } from "./tools.ts";
import type { ForeignName, ToolName } from "./tools.ts";

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
  /** Present with firmware that has Secure Boot on. */
  readonly secureBoot?: Signature;
  readonly entry: Entry;
  readonly tools: readonly ToolName[];
  readonly foreign?: readonly ForeignName[];
  /** Makes the media in the work folder and returns QEMU's arguments for them. */
  media(load: Load): Promise<string[]> | string[];
}

/** How a loader's configuration, which is ours, begins what it prints; verdict.ts shows the last of it. */
export const OUR_WORD = "BOOT-TEST";
/** Printed when the loader has given up. */
export const GAVE_UP = `${OUR_WORD} the loader gave up`;
/** Printed before kexec leaves its Linux for good. */
export const KEXEC_JUMPS = `${OUR_WORD} kexec jumps`;

const XEN_OPTIONS = "console=com1 com1=115200,8n1 loglvl=all noreboot";
const DOM0_OPTIONS = "console=hvc0 panic=-1";

const onDisk: readonly ToolName[] = ["qemu", "ovmf", "mkfs", "mtools"];
const grubBehindShim: readonly ToolName[] = ["shim", "grubMkstandalone", "grubEfi"];
const GRUB_EFI_MODULES = path.dirname(TOOLS.grubEfi.is);
const PROGRAM = "EFI/BOOT/BOOTX64.EFI";

/** A way in which GRUB loads an image. */
interface GrubsWay {
  readonly says: string;
  /** Those that it needs, besides what every way needs. */
  readonly modules: string;
  readonly entryOnEfi: Entry;
  /** GRUB's configuration. */
  script(load: Load): string;
}

const CHAINLOADER: GrubsWay = {
  says: "chainloader",
  modules: "chain",
  entryOnEfi: "efi",
  script: () => grubScript("chainloader /xen.efi"),
};
const PEIMAGE: GrubsWay = { ...CHAINLOADER, says: "chainloader, its own PE loader", modules: "chain peimage" };
const MULTIBOOT2: GrubsWay = {
  says: "multiboot2",
  modules: "multiboot2",
  entryOnEfi: "mb2-efi",
  script: (load) => grubScript(`multiboot2 /xen.efi ${XEN_OPTIONS}`, ...grubModules("module2", load)),
};
const MULTIBOOT1: GrubsWay = {
  says: "multiboot",
  modules: "multiboot",
  entryOnEfi: "mb1",
  script: (load) => grubScript(`multiboot /xen.efi ${XEN_OPTIONS}`, ...grubModules("module", load)),
};

/** Boots when all commands succeed. The empty line at the end: a halt may come before the last characters are out. */
function grubScript(...commands: readonly string[]): string {
  const boot = commands.reduceRight((rest, one) => `if ${one}; then\n${rest}fi\n`, "boot\n");
  return `search --no-floppy --file --set=root /xen.efi\n${boot}echo "${GAVE_UP}"\necho\nhalt\n`;
}

function grubModules(command: string, { dom0 }: Load): string[] {
  return dom0 === undefined ? [] : [`${command} /vmlinuz ${DOM0_OPTIONS}`, `${command} /initrd`];
}

export const PATHS: readonly BootPath[] = [
  {
    name: "efi",
    loader: "the firmware itself",
    firmware: "OVMF",
    entry: "efi",
    tools: onDisk,
    // Xen reads the .cfg that is called as it was itself.
    media: (load) =>
      fatDisk(load.work, { [PROGRAM]: { file: load.image }, ...xenCfg(load, "EFI/BOOT/", "BOOTX64.CFG") }),
  },
  grubOnEfi("grub-efi-chain", "2.06", CHAINLOADER),
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
  grubOnEfi("grub-efi-mb2", "2.06", MULTIBOOT2),
  grubOnBios("grub-bios-mb2", MULTIBOOT2, "mb2-bios"),
  grubOnBios("grub-bios-mb1", MULTIBOOT1, "mb1"),
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
      return tftpNetwork(
        load.work,
        ipxeScript(`kernel xen.efi ${XEN_OPTIONS}`, ...modules),
        bootFiles(load),
        TOOLS.ipxeRom.is,
      );
    },
  },
  {
    name: "ipxe-efi",
    loader: "iPXE, an EFI program",
    firmware: "OVMF",
    entry: "efi",
    tools: [...onDisk, "ipxeEfi"],
    media: async (load) => [
      ...(await fatDisk(load.work, { [PROGRAM]: { file: TOOLS.ipxeEfi.is } })),
      ...tftpNetwork(path.join(load.work, "net"), ipxeScript("kernel xen.efi"), {
        "xen.efi": { file: await unified(load) },
      }),
    ],
  },
  grubOnEfi("grub212-efi-mb2", "2.12", MULTIBOOT2, "grub212"),
  grubOnEfi("grub212-peimage", "2.12", PEIMAGE, "grub212"),
  grubOnEfi("grub214-efi-mb2", "2.14", MULTIBOOT2, "grub214"),
  grubOnEfi("grub214-peimage", "2.14", PEIMAGE, "grub214"),
  {
    name: "kexec",
    loader: "kexec-tools' Multiboot1, from a running Linux",
    firmware: "SeaBIOS",
    entry: "mb1",
    tools: ["qemu", "seabios", "kexec", "busybox"],
    foreign: ["kernel"],
    media: async (load) => {
      const files = new Map(
        Object.entries(bootFiles(load)).map(([name, { file }]) => [name, fs.readFileSync(file)] as const),
      );
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
    tools: ["qemu", "uBoot", "mkfs", "mtools"],
    media: async (load) => fatDisk(load.work, { [PROGRAM]: { file: await unified(load) } }),
  },
  ...secured({
    name: "sb-efi",
    loader: "the firmware itself",
    entry: "efi",
    tools: [],
    media: ({ work, image }) => fatDisk(work, { [PROGRAM]: { file: image } }),
  }),
  ...secured({
    name: "sb-shim",
    loader: "shim, as its second stage",
    entry: "efi",
    tools: ["shim"],
    media: ({ work, image }) => shimDisk(work, image),
  }),
  {
    ...withSecureBoot(["shim", "objcopy"]),
    name: "sb-shim-objcopy",
    loader: "shim, as its second stage, unified by objcopy",
    secureBoot: "signed",
    entry: "efi",
    media: async (load) => {
      const image = await unifyByObjcopy(load.work, load.image, { ...dom0Sections(load), ...sbatSection(load) });
      return shimDisk(load.work, await signForeign(load.work, image));
    },
  },
  ...secured({
    name: "sb-grub-chain",
    loader: "shim, GRUB 2.06 chainloader",
    entry: "efi",
    tools: grubBehindShim,
    media: (load) => securedGrubDisk(load, CHAINLOADER),
  }),
  ...secured({
    name: "sb-grub-mb2",
    loader: "shim, GRUB 2.06 multiboot2",
    entry: "mb2-efi",
    tools: grubBehindShim,
    bare: true,
    media: (load) => securedGrubDisk(load, MULTIBOOT2),
  }),
  {
    ...withSecureBoot(grubBehindShim),
    name: "sb-grub-mb2-module2",
    loader: "shim, GRUB 2.06 multiboot2 and module2",
    secureBoot: "signed",
    entry: "mb2-efi",
    media: async (load) => {
      const image = await securedImage({ ...load, dom0: undefined }, "signed");
      return securedGrubDisk({ ...load, image }, MULTIBOOT2);
    },
  },
];

function withSecureBoot(tools: readonly ToolName[]): Pick<BootPath, "firmware" | "tools"> {
  const ours: readonly ToolName[] = ["ovmfSecure", "testKey", "testCertificate", "testVariables", "openssl", "sbsign"];
  return { firmware: "OVMF", tools: [...onDisk, ...ours, ...tools] };
}

interface Secured extends Pick<BootPath, "name" | "loader" | "entry" | "tools"> {
  /** The loader gives no dom0, neither inside the image nor besides. */
  readonly bare?: boolean;
  /** The image is signed, or what is to be refused instead. */
  media(load: Load): Promise<string[]>;
}

/** A path under Secure Boot, and the two that must be refused: with one bit changed behind the signature, and without one. */
function secured({ name, loader, entry, tools, bare, media }: Secured): BootPath[] {
  const said: Readonly<Record<Signature, string>> = {
    signed: "",
    tampered: ", one bit changed",
    unsigned: ", not signed",
  };
  return (["signed", "tampered", "unsigned"] as const).map((secureBoot) => ({
    ...withSecureBoot(tools),
    name: secureBoot === "signed" ? name : `${name}-${secureBoot}`,
    loader: `${loader}${said[secureBoot]}`,
    secureBoot,
    entry,
    media: async (load) => {
      const reduced = bare === true ? { ...load, dom0: undefined } : load;
      return media({ ...reduced, image: await securedImage(reduced, secureBoot) });
    },
  }));
}

/** The image as `make strip unify sign` makes it; one bit changed after that, or the last step left out. */
async function securedImage(load: Load, signature: Signature): Promise<string> {
  const { work } = load;
  const image = await unify(work, await strip(work, load.image), { ...dom0Sections(load), ...sbatSection(load) });
  if (signature === "unsigned") return image;
  const signed = await sign(work, image);
  return signature === "signed" ? signed : tamper(work, signed);
}

async function shimDisk(work: string, secondStage: string, files: Files = {}): Promise<string[]> {
  const shim = await signForeign(work, TOOLS.shim.is);
  return fatDisk(work, { [PROGRAM]: { file: shim }, "EFI/BOOT/GRUBX64.EFI": { file: secondStage }, ...files });
}

async function securedGrubDisk(load: Load, way: GrubsWay): Promise<string[]> {
  const sbat = sbatFile(load.work, "grub,5,Free Software Foundation,grub,2.06,https://www.gnu.org/software/grub/");
  const program = await grubProgram(load.work, GRUB_EFI_MODULES, way.modules, way.script(load), ["--sbat", sbat]);
  return shimDisk(load.work, await signForeign(load.work, program), bootFiles(load));
}

/** @param suite where it is not the installed GRUB; other suites' module folders work with its grub-mkstandalone */
function grubOnEfi(name: string, version: string, way: GrubsWay, suite?: "grub212" | "grub214"): BootPath {
  return {
    name,
    loader: `GRUB ${version} ${way.says}`,
    firmware: "OVMF",
    entry: way.entryOnEfi,
    tools: [...onDisk, "grubMkstandalone", "grubEfi"],
    foreign: suite === undefined ? [] : [suite],
    media: async (load) => {
      const modulesFolder = suite === undefined ? GRUB_EFI_MODULES : await foreign(suite);
      const program = await grubProgram(load.work, modulesFolder, way.modules, way.script(load));
      return fatDisk(load.work, { [PROGRAM]: { file: program }, ...bootFiles(load), ...xenCfg(load, "", "xen.cfg") });
    },
  };
}

function grubOnBios(name: string, way: GrubsWay, entry: Entry): BootPath {
  return {
    name,
    loader: `GRUB 2.06 ${way.says}`,
    firmware: "SeaBIOS",
    entry,
    tools: ["qemu", "seabios", "grubMkrescue", "grubPc", "xorriso", "mtools"],
    media: (load) => grubCd(load.work, way.script(load), bootFiles(load)),
  };
}

function ipxeScript(...commands: readonly string[]): string {
  return [
    "#!ipxe",
    ...[...commands, "boot"].map((command) => `${command} || goto failed`),
    ":failed",
    `echo ${GAVE_UP}`,
    "poweroff",
    "",
  ].join("\n");
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
async function unified(load: Load): Promise<string> {
  return load.dom0 === undefined ? load.image : await unify(load.work, load.image, dom0Sections(load));
}

/** What a unified Xen has inside; an image that needs no dom0 has nothing. */
function dom0Sections({ dom0, work }: Load): Sections {
  if (dom0 === undefined) return {};
  const configuration = path.join(work, "unified.cfg");
  fs.writeFileSync(configuration, cfgText("vmlinuz", "initrd"));
  return { ".config": configuration, ".kernel": dom0.kernel, ".ramdisk": dom0.initrd };
}

/** Without one shim starts nothing that it finds by itself. */
function sbatSection({ work }: Load): Sections {
  return { ".sbat": sbatFile(work, "xen.test,1,Boot test,xen,1,https://xenproject.org/") };
}

function sbatFile(work: string, component: string): string {
  const file = path.join(work, `${component.split(",")[0]}.sbat.csv`);
  fs.writeFileSync(file, `sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n${component}\n`);
  return file;
}
