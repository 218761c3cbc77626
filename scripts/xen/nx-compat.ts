// SPDX-License-Identifier: GPL-2.0-only
// NX_COMPAT, by which an image says that all its pages may be either writable or executable. GNU ld set it by default for
// a while, on images that are not so, and loaders that believe it refuse them (GRUB 2.14, peimage.c; shim's NX policy).

import type { Say } from "../cli/cli.ts";
import { hex } from "../cli/numbers.ts";
import { hasFlags, type Image } from "../pe/image.ts";
import * as pe from "../tables/pe.ts";

/**
 * The image with NX_COMPAT cleared where it is not true, and set again where sections that have gone since made
 * emit-header clear it. It cannot be told from a flag that the linker had left clear on such an image; one that is clear
 * although it would be true always was, and stays so.
 * @param before the image with the sections that it had
 */
export function withTruthfulNxCompat(image: Image, before: Image, say: Say): Image {
  const { dllCharacteristics } = image.optional;
  const isSet = (dllCharacteristics & pe.NX_COMPAT) !== 0;
  const reasons = whyNotNx(image);
  const isTrue = reasons.length === 0;
  if (isSet === isTrue || (!isSet && whyNotNx(before).length === 0)) return image;
  say(isTrue ? "note: NX_COMPAT is set again" : `note: NX_COMPAT is cleared, the image is not: ${reasons.join(", ")}`);
  return { ...image, optional: { ...image.optional, dllCharacteristics: dllCharacteristics ^ pe.NX_COMPAT } };
}

function whyNotNx({ sections }: Image): string[] {
  const reasons: string[] = [];
  const writable = sections.find((s) => hasFlags(s, pe.MEM_WRITE) && hasFlags(s, pe.MEM_EXECUTE));
  if (writable !== undefined) reasons.push(`section ${writable.name} is writable and executable`);
  const unaligned = sections.find((s) => s.header.virtualAddress % pe.PAGE_SIZE !== 0);
  if (unaligned !== undefined) {
    const where = `at RVA ${hex(unaligned.header.virtualAddress)}`;
    reasons.push(`section ${unaligned.name} ${where} is not page-aligned`);
  }
  return reasons;
}
