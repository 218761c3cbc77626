// SPDX-License-Identifier: GPL-2.0-only
//
// All steps and verify in one process: xen.efi to xen.mb.efi. The same bytes as the chain of the Makefile gives.
// This is the one script that imports its siblings; each of them is a command of its own as well.
//
// Changes and refuses: what relocate-reloc, align-sections and emit-header do, in this order. OUT is written only when
//   verify has no objection. Its own output, signed or unified since or not, is refused by name, or with --if-needed
//   written as it is: a package's hook need not know which of the two it has.
// Order: instead of the three steps.

import { alignSections } from "./align-sections.ts";
import { runIfMain, silent, type Say } from "./cli/cli.ts";
import { ImageError } from "./cli/errors.ts";
import { emitHeader } from "./emit-header.ts";
import { judge } from "./judge/judge.ts";
import { parseImage } from "./pe/parse.ts";
import { serializeImage } from "./pe/serialize.ts";
import { fileCommand, stripSignature } from "./pe/transform.ts";
import { relocateReloc } from "./relocate-reloc.ts";
import { hasNewHeaders } from "./xen/multiboot.ts";

const USAGE = `Usage: mb-efi.ts IN OUT [--keep] [--strip-signature] [--if-needed]

Turns Xen's xen.efi into xen.mb.efi, which UEFI firmware, systemd-boot, shim, GRUB (multiboot2, multiboot,
chainloader), syslinux, iPXE and QEMU take, and verifies it before it is written.
IN is xen.efi as linked; "-" is standard input, or standard output for OUT.

  --keep             leave .reloc behind .bss, where Multiboot does not load it; only make it not discardable
  --strip-signature  drop IN's signature, which no change would survive; without it a signed IN is refused
  --if-needed        take an IN that is converted already, signed or not, as it is: OUT = IN, without verifying it;
                     without it such an IN is refused
  --help             print this text

Exit status: 0 done, 1 image unsuitable, 2 wrong usage.
`;

export interface MbEfiOptions {
  /** Leave .reloc behind .bss. */
  readonly keep?: boolean | undefined;
  readonly stripSignature?: boolean | undefined;
  /** Take an image that is converted already as it is. */
  readonly ifNeeded?: boolean | undefined;
}

/**
 * The whole chain. The bytes become an Image once and the Image becomes bytes once; in between, only sections that
 * change are copied.
 * @param bytes xen.efi, which is not changed
 * @returns xen.mb.efi
 * @throws ImageError when a step refuses the image, or verify the result
 */
export function mbEfi(bytes: Uint8Array, options: MbEfiOptions, say: Say = silent): Uint8Array {
  const original = parseImage(bytes);
  if (hasNewHeaders(original)) {
    const what = "the image is converted already: it has a Multiboot1 header in its header area";
    if (options.ifNeeded !== true) throw new ImageError(`Cannot convert: ${what}; --if-needed copies it`);
    say(`note: ${what}; copied as it is`);
    return bytes;
  }
  const image = options.stripSignature === true ? stripSignature(original) : original;
  const relocated = relocateReloc(image, options.keep === true, say);
  const result = serializeImage(emitHeader(alignSections(relocated, say), say));
  const { violations } = judge(bytes, result);
  if (violations.length !== 0) {
    const objections = violations.length === 1 ? "one objection" : `${violations.length} objections`;
    throw new ImageError(`Cannot make an image that verify accepts, it has ${objections}: ${violations[0]}`);
  }
  return result;
}

export const command = fileCommand(
  USAGE,
  { keep: { type: "boolean" }, "strip-signature": { type: "boolean" }, "if-needed": { type: "boolean" } },
  (bytes, values, say) => {
    const [keep, stripSignature, ifNeeded] = ["keep", "strip-signature", "if-needed"].map((o) => values[o] === true);
    return mbEfi(bytes, { keep, stripSignature, ifNeeded }, say);
  },
);

runIfMain(import.meta.url, command);
