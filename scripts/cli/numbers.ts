// SPDX-License-Identifier: GPL-2.0-only
// How numbers and names are shown in messages and reports.

/** A number as addresses and sizes are shown everywhere: lower-case hexadecimal. */
export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}

/** A half-open range, "[0x200000,0x400000)". */
export function range(start: number, end: number): string {
  return `[${hex(start)},${hex(end)})`;
}

/** Texts in one line of a message: ten of them, and how many more there are. */
export function some(texts: readonly string[]): string {
  const most = 10;
  const rest = texts.length > most ? ` and ${texts.length - most} more` : "";
  return `${texts.slice(0, most).join(" ")}${rest}`;
}

/** A name as messages can show it: any byte may be in it, and a message is one line. */
export function printable(name: string): string {
  return name.replace(/[^ -~]/g, (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`);
}

/** A file's name, or a line with one, as terminals can show it: letters of any script, but nothing that moves the cursor. */
export function visible(text: string): string {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (character) => {
    const code = (character.codePointAt(0) ?? 0).toString(16);
    return code.length <= 2 ? `\\x${code.padStart(2, "0")}` : `\\u{${code}}`;
  });
}
