// SPDX-License-Identifier: GPL-2.0-only
//
// The boot paths: from power-on through a real boot loader to the image. One entry each: which firmware, what it needs,
// how the image finds itself entered, and the medium. What all of them are given is in given.ts.

import * as fs from "node:fs";
import * as path from "node:path";
import { kexecInitrd } from "./dom0.ts";
import * as given from "./given.ts";
import { DOM0_OPTIONS, XEN_OPTIONS, bootFiles, xenCfg, type Load } from "./given.ts";
import { sign, signForeign, strip, tamper, unify, unifyByObjcopy, type Signature } from "./image.ts";
import { fatDisk, grubCd, grubProgram, isolinuxCd, tftpNetwork, type Files } from "./media.ts";
import { TOOLS, foreign, type ForeignName, type ToolName } from "./tools.ts";

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

const ON_DISK: readonly ToolName[] = ["qemu", "ovmf", "mkfs", "mtools"];
const GRUB_BEHIND_SHIM: readonly ToolName[] = ["shim", "grubMkstandalone", "grubEfi"];
const GRUB_EFI_MODULES = path.dirname(TOOLS.grubEfi.is);
const PROGRAM = "EFI/BOOT/BOOTX64.EFI";

/** A way in which GRUB loads an image. */
interface GrubsWay {
  readonly says: string;
  /** Those that it needs, besides what every way needs. */
  readonly modules: string;
  /** GRUB's configuration. */
  script(load: Load): string;
}

const CHAINLOADER: GrubsWay = {
  says: "chainloader",
  modules: "chain",
  script: () => given.grubScript("chainloader /xen.efi"),
};
const PEIMAGE: GrubsWay = { ...CHAINLOADER, says: "chainloader, its own PE loader", modules: "chain peimage" };
const MULTIBOOT2 = multiboot("multiboot2", "module2");
const MULTIBOOT1 = multiboot("multiboot", "module");

function multiboot(command: string, moduleCommand: string): GrubsWay {
  return {
    says: command,
    modules: command,
    script: ({ dom0 }) => {
      const modules = [`${moduleCommand} /vmlinuz ${DOM0_OPTIONS}`, `${moduleCommand} /initrd`];
      return given.grubScript(`${command} /xen.efi ${XEN_OPTIONS}`, ...(dom0 === undefined ? [] : modules));
    },
  };
}

export const PATHS: readonly BootPath[] = [
  onEfi("efi", "the firmware itself", [], (load) =>
    // Xen reads the .cfg that is called as it was itself.
    fatDisk(load.work, { [PROGRAM]: load.image, ...xenCfg(load, "EFI/BOOT/", "BOOTX64.CFG") }),
  ),
  grubOnEfi("grub-efi-chain", "2.06", CHAINLOADER, "efi"),
  onEfi("shim", "shim, as its second stage", ["shim"], (load) =>
    // Shim starts the grubx64.efi beside it, and leaves its own name in the loaded image's path: both names get a .cfg.
    fatDisk(load.work, {
      [PROGRAM]: TOOLS.shim.is,
      "EFI/BOOT/GRUBX64.EFI": load.image,
      ...xenCfg(load, "EFI/BOOT/", "BOOTX64.CFG"),
      ...xenCfg(load, "EFI/BOOT/", "GRUBX64.CFG"),
    }),
  ),
  onEfi("systemd-boot", "systemd-boot, an efi entry", ["systemdBoot"], (load) =>
    fatDisk(load.work, {
      [PROGRAM]: TOOLS.systemdBoot.is,
      "loader/loader.conf": { text: "timeout 0\ndefault xen.conf\n" },
      "loader/entries/xen.conf": { text: "title Xen\nefi /xen.efi\n" },
      "xen.efi": load.image,
      ...xenCfg(load, "", "xen.cfg"),
    }),
  ),
  grubOnEfi("grub-efi-mb2", "2.06", MULTIBOOT2, "mb2-efi"),
  grubOnBios("grub-bios-mb2", MULTIBOOT2, "mb2-bios"),
  grubOnBios("grub-bios-mb1", MULTIBOOT1, "mb1"),
  onBios("qemu-mb1", "QEMU -kernel", [], ({ image, dom0 }) => [
    ...["-kernel", image, "-append", XEN_OPTIONS],
    // -initrd takes a list: here too a comma inside an entry is doubled, and there is none.
    ...(dom0 === undefined ? [] : ["-initrd", `${dom0.kernel} ${DOM0_OPTIONS},${dom0.initrd}`]),
  ]),
  onBios("mboot-c32", "isolinux mboot.c32", ["isolinux", "syslinux", "xorriso"], (load) => {
    const modules = load.dom0 === undefined ? "" : ` --- vmlinuz ${DOM0_OPTIONS} --- initrd`;
    const configuration = `DEFAULT xen\nLABEL xen\nKERNEL mboot.c32\nAPPEND xen.efi ${XEN_OPTIONS}${modules}\n`;
    return isolinuxCd(load.work, configuration, bootFiles(load));
  }),
  onBios("ipxe-mb1", "iPXE, a network card's ROM", ["ipxeRom"], (load) => {
    const modules = load.dom0 === undefined ? [] : [`module vmlinuz ${DOM0_OPTIONS}`, "module initrd"];
    const script = given.ipxeScript(`kernel xen.efi ${XEN_OPTIONS}`, ...modules);
    return tftpNetwork(load.work, script, bootFiles(load), TOOLS.ipxeRom.is);
  }),
  onEfi("ipxe-efi", "iPXE, an EFI program", ["ipxeEfi"], async (load) => [
    ...(await fatDisk(load.work, { [PROGRAM]: TOOLS.ipxeEfi.is })),
    ...tftpNetwork(path.join(load.work, "net"), given.ipxeScript("kernel xen.efi"), {
      "xen.efi": await given.unified(load),
    }),
  ]),
  grubOnEfi("grub212-efi-mb2", "2.12", MULTIBOOT2, "mb2-efi", "grub212"),
  grubOnEfi("grub212-peimage", "2.12", PEIMAGE, "efi", "grub212"),
  grubOnEfi("grub214-efi-mb2", "2.14", MULTIBOOT2, "mb2-efi", "grub214"),
  grubOnEfi("grub214-peimage", "2.14", PEIMAGE, "efi", "grub214"),
  {
    ...onBios("kexec", "kexec-tools' Multiboot1, from a running Linux", ["kexec", "busybox"], async (load) => {
      const modules = load.dom0 === undefined ? [] : [`--module=/vmlinuz ${DOM0_OPTIONS}`, "--module=/initrd"];
      const options = ["/xen.efi", `--command-line=${XEN_OPTIONS}`, ...modules];
      const initrd = path.join(load.work, "kexec.cpio");
      fs.writeFileSync(initrd, kexecInitrd(TOOLS.kexec.is, options, bootFiles(load)));
      return ["-kernel", await foreign("kernel"), "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1"];
    }),
    foreign: ["kernel"],
  },
  {
    name: "u-boot",
    loader: "U-Boot bootefi",
    firmware: "U-Boot",
    entry: "efi",
    tools: ["qemu", "uBoot", "mkfs", "mtools"],
    media: async (load) => fatDisk(load.work, { [PROGRAM]: await given.unified(load) }),
  },
  ...secured({
    name: "sb-efi",
    loader: "the firmware itself",
    entry: "efi",
    tools: [],
    media: ({ work, image }) => fatDisk(work, { [PROGRAM]: image }),
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
      const image = await unifyByObjcopy(load.work, load.image, {
        ...given.dom0Sections(load),
        ...given.sbatSection(load),
      });
      return shimDisk(load.work, await signForeign(load.work, image));
    },
  },
  ...secured({
    name: "sb-grub-chain",
    loader: "shim, GRUB 2.06 chainloader",
    entry: "efi",
    tools: GRUB_BEHIND_SHIM,
    media: (load) => securedGrubDisk(load, CHAINLOADER),
  }),
  ...secured({
    name: "sb-grub-mb2",
    loader: "shim, GRUB 2.06 multiboot2",
    entry: "mb2-efi",
    tools: GRUB_BEHIND_SHIM,
    bare: true,
    media: (load) => securedGrubDisk(load, MULTIBOOT2),
  }),
  {
    ...withSecureBoot(GRUB_BEHIND_SHIM),
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

type Media = BootPath["media"];

/** A path on which the image finds itself entered as an EFI program. */
function onEfi(name: string, loader: string, tools: readonly ToolName[], media: Media): BootPath {
  return { name, loader, firmware: "OVMF", entry: "efi", tools: [...ON_DISK, ...tools], media };
}

/** A path on which the image finds itself entered by Multiboot1. */
function onBios(name: string, loader: string, tools: readonly ToolName[], media: Media): BootPath {
  return { name, loader, firmware: "SeaBIOS", entry: "mb1", tools: ["qemu", "seabios", ...tools], media };
}

function withSecureBoot(tools: readonly ToolName[]): Pick<BootPath, "firmware" | "tools"> {
  const ours: readonly ToolName[] = ["ovmfSecure", "testKey", "testCertificate", "testVariables", "openssl", "sbsign"];
  return { firmware: "OVMF", tools: [...ON_DISK, ...ours, ...tools] };
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
  const image = await unify(work, await strip(work, load.image), {
    ...given.dom0Sections(load),
    ...given.sbatSection(load),
  });
  if (signature === "unsigned") return image;
  const signed = await sign(work, image);
  return signature === "signed" ? signed : tamper(work, signed);
}

async function shimDisk(work: string, secondStage: string, files: Files = {}): Promise<string[]> {
  const shim = await signForeign(work, TOOLS.shim.is);
  return fatDisk(work, { [PROGRAM]: shim, "EFI/BOOT/GRUBX64.EFI": secondStage, ...files });
}

async function securedGrubDisk(load: Load, way: GrubsWay): Promise<string[]> {
  const sbat = given.sbatFile(
    load.work,
    "grub,5,Free Software Foundation,grub,2.06,https://www.gnu.org/software/grub/",
  );
  const program = await grubProgram(load.work, GRUB_EFI_MODULES, way.modules, way.script(load), ["--sbat", sbat]);
  return shimDisk(load.work, await signForeign(load.work, program), bootFiles(load));
}

/** @param suite where it is not the installed GRUB; other suites' module folders work with its grub-mkstandalone */
function grubOnEfi(
  name: string,
  version: string,
  way: GrubsWay,
  entry: Entry,
  suite?: "grub212" | "grub214",
): BootPath {
  const media: Media = async (load) => {
    const modulesFolder = suite === undefined ? GRUB_EFI_MODULES : await foreign(suite);
    const program = await grubProgram(load.work, modulesFolder, way.modules, way.script(load));
    return fatDisk(load.work, { [PROGRAM]: program, ...bootFiles(load), ...xenCfg(load, "", "xen.cfg") });
  };
  const path = onEfi(name, `GRUB ${version} ${way.says}`, ["grubMkstandalone", "grubEfi"], media);
  return { ...path, entry, foreign: suite === undefined ? [] : [suite] };
}

function grubOnBios(name: string, way: GrubsWay, entry: Entry): BootPath {
  const tools: readonly ToolName[] = ["grubMkrescue", "grubPc", "xorriso", "mtools"];
  const media: Media = (load) => grubCd(load.work, way.script(load), bootFiles(load));
  return { ...onBios(name, `GRUB 2.06 ${way.says}`, tools, media), entry };
}
