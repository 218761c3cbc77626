// SPDX-License-Identifier: GPL-2.0-only
//
// What the boot tests make of an image before a loader gets it, by the project's own scripts, each run as a user runs
// it: transformed, stripped, unified, signed; and the controls: unified by objcopy, changed behind the signature.

import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import * as path from "node:path";
import { ImageError } from "../../cli/errors.ts";
import { run, runScript } from "./run.ts";
import { TOOLS } from "./tools.ts";
import { parseImage } from "../../pe/parse.ts";
import { roundUp } from "../../pe/image.ts";

/** How a path for Secure Boot has its image: as signed, with one bit changed after that, or never signed. */
export type Signature = "signed" | "tampered" | "unsigned";

/** The sections to add, name to file, in this order. */
export type Sections = Readonly<Record<string, string>>;

/** Writes the image with these sections to the work folder. @returns the file */
export async function unify(work: string, image: string, sections: Sections): Promise<string> {
  const file = path.join(work, "unified.efi");
  const options = Object.entries(sections).flatMap(([name, from]) => ["--section", `${name}=${from}`]);
  await runScript(work, "add-sections", [image, file, ...options]);
  return file;
}

/** Writes the image without DWARF and symbols to the work folder. @returns the file */
export async function strip(work: string, image: string): Promise<string> {
  const file = path.join(work, "stripped.efi");
  await runScript(work, "strip-debug", [image, file]);
  return file;
}

/**
 * The same as unify, as Xen's documentation has it done (docs/misc/efi.pandoc): by objcopy, with addresses that are
 * worked out by hand.
 */
export async function unifyByObjcopy(work: string, image: string, sections: Sections): Promise<string> {
  const file = path.join(work, "objcopied.efi");
  const { imageBase, sizeOfImage, sectionAlignment } = parseImage(new Uint8Array(fs.readFileSync(image))).optional;
  let rva = sizeOfImage;
  const options = Object.entries(sections).flatMap(([name, from]) => {
    const address = `0x${(imageBase + BigInt(rva)).toString(16)}`;
    rva = roundUp(rva + fs.statSync(from).size, sectionAlignment);
    return ["--add-section", `${name}=${from}`, "--change-section-vma", `${name}=${address}`];
  });
  await run(work, TOOLS.objcopy.is, [...options, image, file]);
  return file;
}

/**
 * Signs one of our images with the test key of Debian's ovmf, by sign.ts.
 * @throws ImageError also when there was a warning: a stripped image has to be signed without
 */
export async function sign(work: string, image: string): Promise<string> {
  const file = path.join(work, "signed.efi");
  const options = ["--key", await testKey(work), "--cert", TOOLS.testCertificate.is];
  const said = await runScript(work, "sign", [image, file, ...options]);
  if (said !== "")
    throw new ImageError(`Cannot sign ${image} without a warning: ${said.trim().split("\n").join(" / ")}`);
  return file;
}

/** Signs somebody else's program, a loader or what objcopy made, with the same key. */
export async function signForeign(work: string, program: string): Promise<string> {
  const file = path.join(work, `${path.basename(program, ".efi")}-signed.efi`);
  const key = await testKey(work);
  await run(work, TOOLS.sbsign.is, ["--key", key, "--cert", TOOLS.testCertificate.is, "--output", file, program]);
  return file;
}

/** The key without its passphrase, which Debian has published: sbsign would ask on the terminal. */
async function testKey(work: string): Promise<string> {
  const file = path.join(work, "test-key.pem");
  if (!fs.existsSync(file))
    await run(work, TOOLS.openssl.is, ["rsa", "-passin", "pass:snakeoil", "-in", TOOLS.testKey.is, "-out", file]);
  return file;
}

/**
 * Changes one bit in the middle of the file, which is dom0's kernel or initramfs in a unified Xen. Nothing but the
 * signature can find that out.
 */
export function tamper(work: string, image: string): string {
  const file = path.join(work, "tampered.efi");
  const bytes = Buffer.from(fs.readFileSync(image));
  const middle = bytes.length >> 1;
  bytes.writeUInt8(bytes.readUInt8(middle) ^ 1, middle);
  fs.writeFileSync(file, bytes);
  return file;
}
