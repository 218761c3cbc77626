// SPDX-License-Identifier: GPL-2.0-only
// All loader profiles, and which of them the boot tests put to the test.

import { loadByFirmware, loadByShim, loadMultiboot1, loadMultiboot2 } from "../judge/loads.ts";
import type { Memory } from "../judge/memory.ts";
import { readPe } from "../judge/read.ts";
import { EFI_PROFILES } from "./efi.ts";
import type { Evidence } from "./facts.ts";
import { MULTIBOOT_PROFILES } from "./multiboot.ts";
import type { Profile } from "./rules.ts";
import { SHIM_PROFILES } from "./shim.ts";

/** In the order in which verdicts are shown. */
export const PROFILES: readonly Profile[] = [...EFI_PROFILES, ...SHIM_PROFILES, ...MULTIBOOT_PROFILES];

/**
 * The profile of each path of the boot tests (boot-paths.ts): what it says must be what is seen there. Whether a signature
 * is good depends on the machine's keys and is no verdict: the paths of tampered and unsigned images have none.
 */
export const PROFILE_OF_PATH: Readonly<Record<string, string>> = {
  efi: "edk2",
  "grub-efi-chain": "grub-chainloader",
  shim: "shim",
  "systemd-boot": "systemd-boot",
  "grub-efi-mb2": "grub-mb2",
  "grub-bios-mb2": "grub-mb2",
  "grub-bios-mb1": "grub-mb1",
  "qemu-mb1": "qemu-mb1",
  "mboot-c32": "syslinux-mb1",
  "ipxe-mb1": "ipxe-mb1",
  "ipxe-efi": "ipxe-efi",
  "grub212-efi-mb2": "grub-mb2",
  "grub212-peimage": "grub-peimage-2.12",
  "grub214-efi-mb2": "grub-mb2",
  "grub214-peimage": "grub-peimage-2.14",
  kexec: "kexec",
  "u-boot": "u-boot-efi",
  "sb-efi": "edk2-secure-boot",
  "sb-shim": "shim-secure-boot",
  "sb-shim-objcopy": "shim-secure-boot",
  "sb-grub-chain": "shim",
  "sb-grub-mb2": "grub-mb2",
  "sb-grub-mb2-module2": "grub-mb2-secure-boot",
};

export function profileNamed(name: string): Profile | undefined {
  return PROFILES.find((profile) => profile.name === name);
}

/**
 * The memory that a loader makes of an image, before base relocations, and the address that it then calls: RVAs, or
 * link addresses, which for Xen are the same. On EFI GRUB calls another entry of a Multiboot2 image, the EFI64 tag's.
 * @throws ImageError when it cannot be loaded so
 */
export function loadAs({ way }: Profile, { image, bytes }: Evidence): { memory: Memory; entry: number } {
  const entry = image.optional.addressOfEntryPoint;
  if (way === "firmware") return { memory: loadByFirmware(readPe(bytes)), entry };
  if (way === "shim") return { memory: loadByShim(readPe(bytes)).memory, entry };
  const { segment, entryAddr } = way === "multiboot1" ? loadMultiboot1(bytes) : loadMultiboot2(bytes);
  return { memory: [segment], entry: entryAddr };
}
