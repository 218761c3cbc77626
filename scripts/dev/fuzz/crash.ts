// SPDX-License-Identifier: GPL-2.0-only
// Inputs that once failed, as text: every byte that is not zero, 32 to a line. Such a file depends on nothing but
// itself, so that it stays the same input whatever becomes of the samples that it was made from.

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";

const LINE = 32;

/** "crash-0123456789ab.txt", by the SHA-256 of the input. */
export function crashName(bytes: Uint8Array): string {
  return `crash-${createHash("sha256").update(bytes).digest("hex").slice(0, 12)}.txt`;
}

/** The text for an input; `why` says, in a line or more, what it did. */
export function crashText(bytes: Uint8Array, why: string): string {
  const lines = [
    "# SPDX-License-Identifier: GPL-2.0-only",
    ...why
      .trimEnd()
      .split("\n")
      .map((line) => `# ${line}`.trimEnd()),
    `size ${bytes.length}`,
  ];
  for (let at = 0; at < bytes.length; at += LINE) {
    const part = bytes.subarray(at, at + LINE);
    const end = part.findLastIndex((byte) => byte !== 0) + 1;
    if (end > 0) lines.push(`${at.toString(16)}: ${Buffer.from(part.subarray(0, end)).toString("hex")}`);
  }
  return `${lines.join("\n")}\n`;
}

/** The input of such a text. */
export function crashBytes(text: string): Uint8Array {
  let bytes: Uint8Array | undefined;
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const size = /^size (\d+)$/.exec(line)?.[1];
    const [, at, hex] = /^([0-9a-f]+): ((?:[0-9a-f]{2})+)$/.exec(line) ?? [];
    if (size !== undefined && bytes === undefined) bytes = new Uint8Array(Number(size));
    else if (at !== undefined && hex !== undefined && bytes !== undefined)
      bytes.set(Buffer.from(hex, "hex"), Number.parseInt(at, 16));
    else throw new Error(`Cannot read the input: '${line}', needed 'size BYTES', then lines 'OFFSET: BYTES'`);
  }
  if (bytes === undefined) throw new Error("Cannot read the input: it has no line 'size BYTES'");
  return bytes;
}
