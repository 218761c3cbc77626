// SPDX-License-Identifier: GPL-2.0-only
//
// The Linux systems that the boot tests start, each a kernel package's vmlinuz and an initramfs: the dom0, which says
// from user space which Xen it runs on, whether that Xen still knows the firmware, and whether Secure Boot is on, and
// then powers off; and the one that kexec jumps from.

import { Buffer } from "node:buffer";
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import { GAVE_UP, KEXEC_JUMPS } from "./given.ts";

/** How the initramfs begins its one line. */
export const DOM0_MARKER = "BOOT-DOM0";

const INIT = `#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
version=none
if [ -d /sys/hypervisor/version ]; then
  cd /sys/hypervisor/version
  version=$($b cat major).$($b cat minor)$($b cat extra)
fi
efi=no
[ -d /sys/firmware/efi ] && efi=yes
# Debian's kernel locks itself down when it finds Secure Boot on; the file has "none [integrity] confidentiality".
lockdown=unknown
if $b mount -t securityfs securityfs /sys/kernel/security; then
  read -r levels < /sys/kernel/security/lockdown
  lockdown=\${levels#*[}
  lockdown=\${lockdown%%]*}
fi
echo "${DOM0_MARKER} xen=$version efi=$efi lockdown=$lockdown"
$b sync
$b poweroff -f
`;

/** dom0's initramfs. */
export function dom0Initrd(): Uint8Array {
  return initramfs(INIT);
}

/**
 * The initramfs of a system that loads Xen by kexec and jumps to it, and says so; or that kexec refuses or comes back.
 * @param options kexec's arguments behind `-l`, one word each
 * @param files what they name, by name without the leading slash
 */
export function kexecInitrd(
  kexec: string,
  options: readonly string[],
  files: Readonly<Record<string, string>>,
): Uint8Array {
  const words = options.map((word) => `'${word}'`).join(" ");
  const init = [
    "#!/bin/busybox sh",
    "/bin/busybox mount -t proc proc /proc",
    "/bin/busybox mount -t sysfs sysfs /sys",
    "echo", // ends the BIOS's last line
    `if ${kexec} -l ${words}; then`,
    `echo "${KEXEC_JUMPS}"`,
    `${kexec} -e`,
    "fi",
    `echo "${GAVE_UP}"`,
    "/bin/busybox poweroff -f",
    "",
  ].join("\n");
  const libraries = execFileSync("ldd", [kexec], { encoding: "utf8" }).matchAll(/(\/\S+) \(/g);
  const programs = [kexec, ...[...libraries].map(([, file = ""]) => file)].map((file) => [file.slice(1), file]);
  return initramfs(init, { ...Object.fromEntries(programs), ...files });
}

/**
 * An initramfs of busybox, which must be statically linked, and a script that it runs.
 * @param files copies of files by name without the leading slash; all are executable
 */
function initramfs(init: string, files: Readonly<Record<string, string>> = {}): Uint8Array {
  const folders = new Set(["bin", "dev", "proc", "sys"]);
  for (const name of Object.keys(files)) {
    for (let at = name.indexOf("/"); at >= 0; at = name.indexOf("/", at + 1)) folders.add(name.slice(0, at));
  }
  const programs = Object.entries({ "bin/busybox": "/bin/busybox", ...files });
  return cpio([
    ...[...folders].map((name): Entry => ({ name, mode: 0o040755 })),
    // Without it the kernel starts init with no standard output.
    { name: "dev/console", mode: 0o020600, device: [5, 1] },
    { name: "init", mode: 0o100755, data: Buffer.from(init) },
    ...programs.map(([name, file]): Entry => ({ name, mode: 0o100755, data: fs.readFileSync(file) })),
  ]);
}

interface Entry {
  readonly name: string;
  /** As in struct stat: type and permissions. */
  readonly mode: number;
  readonly data?: Uint8Array;
  /** Major and minor number of a device node. */
  readonly device?: readonly [number, number];
}

/** An archive in cpio's "newc" format, the one of Linux's initramfs (buffer-format.rst). Not compressed: unpacking takes
 * an emulated processor longer than reading. */
export function cpio(entries: readonly Entry[]): Uint8Array {
  const parts: Uint8Array[] = [];
  let inode = 0;
  for (const entry of [...entries, { name: "TRAILER!!!", mode: 0 }]) {
    const data = entry.data ?? new Uint8Array();
    const [major, minor] = entry.device ?? [0, 0];
    const name = Buffer.from(`${entry.name}\0`);
    // inode, mode, user, group, links, time, size, device's place (2), device (2), length of the name, checksum
    const fields = [++inode, entry.mode, 0, 0, 1, 0, data.length, 0, 0, major, minor, name.length, 0];
    const header = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}`);
    parts.push(pad4(Buffer.concat([header, name])), pad4(data));
  }
  return Buffer.concat(parts);
}

function pad4(bytes: Uint8Array): Uint8Array {
  return Buffer.concat([bytes, new Uint8Array(-bytes.length & 3)]);
}
