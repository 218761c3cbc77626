// SPDX-License-Identifier: GPL-2.0-only
//
// What the boot tests need from Debian, and where it is found. Everything installed comes from the packages of TOOLS;
// what belongs to another suite, or should not be installed (another GRUB's modules, dom0's kernel), is in FOREIGN:
// downloaded, unpacked under build/boot-tools/ and kept there.

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import process from "node:process";
import { AptError, downloadPackage, unpackPackage } from "../apt.ts";
import { capture, inFolder } from "../process.ts";

interface Tool {
  readonly package: string;
  /** A command on the PATH, or the absolute name of a file. */
  readonly is: string;
}

/** Installed packages: the ones `make boot-packages` lists and CI installs. */
export const TOOLS = {
  qemu: { package: "qemu-system-x86", is: "qemu-system-x86_64" },
  ovmf: { package: "ovmf", is: "/usr/share/OVMF/OVMF_CODE_4M.fd" },
  ovmfSecure: { package: "ovmf", is: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd" },
  // For tests: the only key that the variable store beside it trusts, and which everybody has.
  testKey: { package: "ovmf", is: "/usr/share/ovmf/PkKek-1-snakeoil.key" },
  testCertificate: { package: "ovmf", is: "/usr/share/ovmf/PkKek-1-snakeoil.pem" },
  testVariables: { package: "ovmf", is: "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd" },
  seabios: { package: "seabios", is: "/usr/share/seabios/bios-256k.bin" },
  mkfs: { package: "dosfstools", is: "mkfs.vfat" },
  mtools: { package: "mtools", is: "mcopy" },
  xorriso: { package: "xorriso", is: "xorriso" },
  grubMkstandalone: { package: "grub-common", is: "grub-mkstandalone" },
  grubMkrescue: { package: "grub-common", is: "grub-mkrescue" },
  grubPc: { package: "grub-pc-bin", is: "/usr/lib/grub/i386-pc/multiboot2.mod" },
  grubEfi: { package: "grub-efi-amd64-bin", is: "/usr/lib/grub/x86_64-efi/multiboot2.mod" },
  shim: { package: "shim-unsigned", is: "/usr/lib/shim/shimx64.efi" },
  systemdBoot: { package: "systemd-boot-efi", is: "/usr/lib/systemd/boot/efi/systemd-bootx64.efi" },
  isolinux: { package: "isolinux", is: "/usr/lib/ISOLINUX/isolinux.bin" },
  syslinux: { package: "syslinux-common", is: "/usr/lib/syslinux/modules/bios/mboot.c32" },
  ipxeRom: { package: "ipxe-qemu", is: "/usr/lib/ipxe/qemu/pxe-e1000.rom" },
  ipxeEfi: { package: "ipxe", is: "/usr/lib/ipxe/ipxe.efi" },
  uBoot: { package: "u-boot-qemu", is: "/usr/lib/u-boot/qemu-x86_64/u-boot.rom" },
  kexec: { package: "kexec-tools", is: "/sbin/kexec" },
  objcopy: { package: "binutils", is: "objcopy" },
  openssl: { package: "openssl", is: "openssl" },
  sbsign: { package: "sbsigntool", is: "sbsign" },
  busybox: { package: "busybox-static", is: "/bin/busybox" },
} as const satisfies Record<string, Tool>;

export type ToolName = keyof typeof TOOLS;

/** The packages that CI installs, each once. */
export function packagesToInstall(): string[] {
  return [...new Set(Object.values(TOOLS).map((tool) => tool.package))].sort();
}

interface ForeignPackage {
  readonly suites: readonly string[];
  readonly package: string;
  /** The file or folder that is wanted, inside the package; a pattern, for a name with a version in it. */
  readonly wanted: RegExp;
}

/** Packages that are unpacked, not installed. */
export const FOREIGN = {
  grub212: { suites: ["trixie"], package: "grub-efi-amd64-bin", wanted: /^usr\/lib\/grub\/x86_64-efi$/ },
  grub214: { suites: ["sid"], package: "grub-efi-amd64-bin", wanted: /^usr\/lib\/grub\/x86_64-efi$/ },
  // Not the cloud flavour, which lacks CONFIG_XEN_DOM0. The meta package names the kernel of the day.
  kernel: { suites: ["bookworm"], package: "linux-image-amd64", wanted: /^boot\/vmlinuz-/ },
  // Under the Secure Boot build of OVMF Debian 12's kernel dies as dom0 of "memory conflicts with E820 map".
  newerKernel: { suites: ["trixie"], package: "linux-image-amd64", wanted: /^boot\/vmlinuz-/ },
} as const satisfies Record<string, ForeignPackage>;

export type ForeignName = keyof typeof FOREIGN;

/** Why the tool cannot be used, in words that name its package; undefined when it is there. */
export function missingTool(name: ToolName): string | undefined {
  const tool: Tool = TOOLS[name];
  return isThere(tool.is) ? undefined : `${tool.is} not found (package ${tool.package})`;
}

/** Whether there is this command, or this file when the name is absolute. */
export function isThere(name: string): boolean {
  return path.isAbsolute(name)
    ? fs.existsSync(name)
    : searchPath().some((folder) => fs.existsSync(path.join(folder, name)));
}

/** PATH, and where mkfs.vfat lies, which a user's PATH may lack. */
export function searchPath(): string[] {
  return [...(process.env.PATH ?? "").split(path.delimiter), "/usr/sbin", "/sbin"];
}

const FOREIGN_FOLDER = "build/boot-tools";

// Boots run side by side and ask for the same packages: each is fetched once. A failure is kept too.
const fetched = new Map<ForeignName, Promise<string>>();

/**
 * The wanted file or folder of a foreign package, downloaded unless it is there already.
 * @throws AptError when it cannot be had
 */
export function foreign(name: ForeignName): Promise<string> {
  const known = fetched.get(name) ?? findOrFetch(name);
  fetched.set(name, known);
  return known;
}

async function findOrFetch(name: ForeignName): Promise<string> {
  const folder = path.join(FOREIGN_FOLDER, name);
  if (!fs.existsSync(folder)) await fetchForeign(name, folder);
  const { wanted } = FOREIGN[name];
  const found = fs.readdirSync(folder, { recursive: true, encoding: "utf8" }).find((file) => wanted.test(file));
  if (found === undefined) throw new AptError(`Cannot find ${wanted} in ${folder}: remove the folder and try again`);
  return path.join(folder, found);
}

function fetchForeign(name: ForeignName, folder: string): Promise<void> {
  return inFolder(path.join(FOREIGN_FOLDER, ".new-"), async (temporary) => {
    let deb = await downloadPackage(FOREIGN[name], temporary);
    if (FOREIGN[name].package === "linux-image-amd64") {
      const { stdout } = await capture("dpkg-deb", ["-f", deb, "Depends"]);
      const image = /linux-image-[\w.+-]+/.exec(stdout)?.[0] ?? "";
      deb = await downloadPackage({ ...FOREIGN[name], package: image }, temporary);
    }
    const unpacked = path.join(temporary, "unpacked");
    await unpackPackage(deb, unpacked);
    fs.rmSync(path.join(unpacked, "lib"), { recursive: true, force: true }); // 300 MB of kernel modules
    const [packageName, version] = path.basename(deb).split("_");
    fs.writeFileSync(path.join(unpacked, "VERSION"), `${packageName} ${version}\n`);
    fs.renameSync(unpacked, folder);
  });
}

/** The packages behind a table, with their versions, as far as they are there. */
export function toolVersions(): string[] {
  // It fails when one is not installed, and lists the others.
  const query = ["-W", "-f", "${db:Status-Status} ${Package} ${Version}\n", ...packagesToInstall()];
  const { stdout } = spawnSync("dpkg-query", query, { encoding: "utf8" });
  const installed = [...(stdout ?? "").matchAll(/^installed (.*)$/gm)].map(([, found = ""]) => found);
  const unpacked = Object.keys(FOREIGN)
    .map((name) => path.join(FOREIGN_FOLDER, name, "VERSION"))
    .filter((file) => fs.existsSync(file));
  return [...installed, ...unpacked.map((file) => fs.readFileSync(file, "utf8").trim())];
}
