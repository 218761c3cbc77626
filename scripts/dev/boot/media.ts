// SPDX-License-Identifier: GPL-2.0-only
//
// The media that boot loaders read from: a FAT disk, CDs, a TFTP folder; and GRUB with its configuration built in.
// Each function makes what it returns inside the given work folder, and returns QEMU's arguments for it.

import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import * as path from "node:path";
import { run } from "./run.ts";

/** What is on a medium, by path: a copy of the file of this name, or a text. */
export type Files = Readonly<Record<string, string | { readonly text: string }>>;

const SECTOR = 512;
/** Where the partition of a disk begins. */
const MEBIBYTE = 1 << 20;

/** A disk with one partition, an EFI system partition. */
export async function fatDisk(work: string, files: Files): Promise<string[]> {
  const tree = stage(work, files);
  const disk = path.join(work, "disk.img");
  const mebibytes = Math.ceil((treeSize(tree) * 1.1) / MEBIBYTE) + 8;
  fs.writeFileSync(disk, partitionTable((mebibytes * MEBIBYTE) / SECTOR));
  fs.truncateSync(disk, (mebibytes + 1) * MEBIBYTE);
  await run(work, "mkfs.vfat", ["--offset", String(MEBIBYTE / SECTOR), disk, String(mebibytes * 1024)]);
  const names = fs.readdirSync(tree).map((name) => path.join(tree, name));
  await run(work, "mcopy", ["-s", "-i", `${disk}@@1M`, ...names, "::/"]);
  return ["-drive", `file=${option(disk)},format=raw,if=virtio`];
}

/** A master boot record; the UEFI specification, "Legacy Master Boot Record", has the fields. */
function partitionTable(sectors: number): Uint8Array {
  const record = Buffer.alloc(SECTOR);
  const entry = 446;
  record.writeUInt8(0x80, entry); // active, for U-Boot
  record.writeUInt8(0xef, entry + 4); // EFI system partition
  record.writeUInt32LE(MEBIBYTE / SECTOR, entry + 8);
  record.writeUInt32LE(sectors, entry + 12);
  record.writeUInt16LE(0xaa55, 510);
  return record;
}

/** A CD that GRUB boots from on a BIOS. */
export async function grubCd(work: string, configuration: string, files: Files): Promise<string[]> {
  const tree = stage(work, { ...files, "boot/grub/grub.cfg": { text: configuration } });
  const cd = path.join(work, "grub.iso");
  // The module folder is named so that the CD gets no second, EFI GRUB where that package is installed too.
  const modules = "normal iso9660 biosdisk search multiboot multiboot2 echo test halt";
  const slim = ["--locales=", "--fonts=", "--themes=", `--install-modules=${modules}`];
  await run(work, "grub-mkrescue", ["-d", "/usr/lib/grub/i386-pc", ...slim, "-o", cd, tree]);
  return ["-cdrom", cd];
}

/** A CD that isolinux boots from. */
export async function isolinuxCd(work: string, configuration: string, files: Files): Promise<string[]> {
  const modules = ["ldlinux", "libcom32", "mboot"].map((name) => `${name}.c32`);
  const programs = modules.map((name) => [name, `/usr/lib/syslinux/modules/bios/${name}`] as const);
  const tree = stage(work, {
    ...files,
    ...Object.fromEntries(programs),
    "isolinux.bin": "/usr/lib/ISOLINUX/isolinux.bin",
    "isolinux.cfg": { text: configuration },
  });
  const cd = path.join(work, "isolinux.iso");
  const elTorito = "-b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table".split(" ");
  await run(work, "xorriso", ["-as", "mkisofs", "-quiet", "-r", "-J", "-o", cd, ...elTorito, tree]);
  return ["-cdrom", cd];
}

/** A network with QEMU's own DHCP and TFTP servers, which use no port of this machine; iPXE runs `script`. */
export function tftpNetwork(work: string, script: string, files: Files, rom?: string): string[] {
  const tree = stage(work, { ...files, "boot.ipxe": { text: script } });
  const card = rom === undefined ? "e1000,romfile=" : `e1000,romfile=${option(rom)},bootindex=0`;
  return ["-netdev", `user,id=net,tftp=${option(tree)},bootfile=boot.ipxe`, "-device", `${card},netdev=net`];
}

/** GRUB as one EFI program, which runs `configuration`; its modules are built in, so that one signature is for them all. */
export async function grubProgram(
  work: string,
  modulesFolder: string,
  modules: string,
  configuration: string,
  options: readonly string[] = [],
): Promise<string> {
  const source = path.join(work, "grub.cfg");
  const program = path.join(work, "grub.efi");
  fs.writeFileSync(source, configuration);
  const all = `normal part_msdos fat search echo test halt memdisk tar ${modules}`;
  const slim = ["--locales=", "--fonts=", "--themes=", `--install-modules=${all}`, `--modules=${all}`];
  const files = ["-o", program, `boot/grub/grub.cfg=${source}`];
  await run(work, "grub-mkstandalone", ["-O", "x86_64-efi", "-d", modulesFolder, ...slim, ...options, ...files]);
  return program;
}

/** Escapes a file name for QEMU's lists of options. */
export function option(file: string): string {
  return file.replaceAll(",", ",,");
}

function stage(work: string, files: Files): string {
  const tree = path.join(work, "tree");
  for (const [name, source] of Object.entries(files)) {
    const target = path.join(tree, name);
    fs.mkdirSync(path.dirname(target), { recursive: true });
    if (typeof source === "string") fs.copyFileSync(source, target, fs.constants.COPYFILE_FICLONE);
    else fs.writeFileSync(target, source.text);
  }
  return tree;
}

function treeSize(tree: string): number {
  const names = fs.readdirSync(tree, { recursive: true, encoding: "utf8" });
  // Each file takes whole clusters.
  return names.reduce((sum, name) => sum + fs.statSync(path.join(tree, name)).size + 4096, 0);
}
