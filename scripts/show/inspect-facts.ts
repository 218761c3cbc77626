// SPDX-License-Identifier: GPL-2.0-only
// Everything inspect knows about an image, as one plain object: what JSON can hold and nothing else. 64-bit fields are
// strings of hexadecimal digits. The text is made from these facts, so the two cannot disagree; their types are inferred,
// so that each fact is described once, where it is found.

import { createHash } from "node:crypto";
import { attempt } from "../cli/attempt.ts";
import { hex } from "../cli/numbers.ts";
import { imageCheckSum } from "../pe/checksum.ts";
import { requireMovable } from "../pe/movable.ts";
import { parseImage } from "../pe/parse.ts";
import { loadSpan, whyNotLinear } from "../xen/span.ts";
import { sectionAt, sectionEnd, type Image, type Section } from "../pe/image.ts";
import { offsetOf } from "../tables/fields.ts";
import * as pe from "../tables/pe.ts";
import * as boot from "./inspect-boot.ts";
import * as names from "./inspect-names.ts";

export type Facts = ReturnType<typeof inspectFacts>;

/**
 * Looks at an image.
 * @throws ImageError when it is not a PE32+ image for x86-64, or points outside the file; anything else is shown
 */
export function inspectFacts(bytes: Uint8Array) {
  const image = parseImage(bytes);
  const { coff, optional } = image;
  const certificates = boot.directory(image, pe.DIRECTORY_CERTIFICATE);
  return {
    /** Counts up when a field changes its meaning or goes. */
    format: 1,
    file: { size: bytes.length, sha256: sha256(bytes) },
    checkSum: checkSumFacts(image, bytes),
    signed: certificates.virtualAddress !== 0 || certificates.size !== 0,
    /** Why no transform takes the image; empty when nothing is wrong with its sections. */
    problems: problems(image),
    ...loadSpanFacts(image),
    lfanew: image.lfanew,
    coff: plain(coff),
    coffFlagNames: names.flagNames(coff.characteristics, names.FILE_FLAGS),
    optional: plain(optional),
    subsystemName: names.SUBSYSTEMS[optional.subsystem] ?? "unknown",
    dllFlagNames: names.flagNames(optional.dllCharacteristics, names.DLL_FLAGS),
    directories: directoryFacts(image),
    sections: image.sections.map(sectionFacts),
    relocations: boot.relocationFacts(image),
    multiboot1: boot.multiboot1Facts(image, bytes),
    multiboot2: boot.multiboot2Facts(image, bytes),
    debug: boot.debugFacts(image),
    symbols: boot.symbolFacts(image),
    regions: regionFacts(image, bytes, certificates),
  };
}

export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** A structure's fields as JSON can hold them. */
export type Plain = Record<string, number | string>;

function plain(fields: Record<string, number | bigint | string>): Plain {
  return Object.fromEntries(
    Object.entries(fields).map(([name, value]) => [name, typeof value === "bigint" ? hex(value) : value]),
  );
}

function checkSumFacts(image: Image, bytes: Uint8Array) {
  const at = image.lfanew + pe.SIGNATURE_SIZE + pe.COFF_HEADER.size + offsetOf(pe.OPTIONAL_HEADER, "checkSum");
  const found = image.optional.checkSum;
  const computed = imageCheckSum(bytes, at);
  return { found, computed, right: found === computed };
}

function problems(image: Image): string[] {
  const { reason } = attempt("transform", () => requireMovable(image, "transform"));
  const { sizeOfImage } = image.optional;
  // EDK2 refuses the whole image when a section ends where it does not look.
  const beyond = image.sections.filter((section) => sectionEnd(section) > sizeOfImage);
  return [
    ...(reason === undefined ? [] : [reason]),
    ...beyond.map((s) => `section ${s.name} ends at ${hex(sectionEnd(s))}, beyond SizeOfImage ${hex(sizeOfImage)}`),
  ];
}

function loadSpanFacts(image: Image) {
  const action = "find the load span";
  const { value: span, reason = null } = attempt(action, () => loadSpan(image, action));
  if (span === undefined) return { loadSpan: null, /** Why there is none. */ noLoadSpan: reason };
  const { first, dataEnd, bssStart, bssEnd } = span;
  const notLinear = whyNotLinear(image, span) ?? null;
  const delta = notLinear === null ? first - image.optional.sizeOfHeaders : null;
  return { loadSpan: { first, dataEnd, bssStart, bssEnd, delta, notLinear }, noLoadSpan: null };
}

function directoryFacts(image: Image) {
  return image.directories.map(({ virtualAddress, size }, i) => {
    // The certificate table's address is a file offset.
    const section = i === pe.DIRECTORY_CERTIFICATE || size === 0 ? undefined : sectionAt(image, virtualAddress);
    return { name: names.DIRECTORY_NAMES[i] ?? `Directory ${i}`, virtualAddress, size, section: section?.name ?? null };
  });
}

function sectionFacts(section: Section) {
  const { name, header } = section;
  const { virtualAddress, pointerToRawData, sizeOfRawData } = header;
  const empty = sizeOfRawData === 0;
  return {
    name,
    /** As stored: "/4" where `name` comes from the string table. */
    storedName: header.name.replace(/\0.*$/s, ""),
    header: plain(header),
    /** Half-open; null where there is no raw data. */
    file: empty ? null : { start: pointerToRawData, end: pointerToRawData + sizeOfRawData },
    memory: { start: virtualAddress, end: sectionEnd(section) },
    /** RVA - file offset: the same for every section of the load span in a linear file. */
    delta: empty ? null : virtualAddress - pointerToRawData,
    rwx: names.permissions(section),
    flagNames: [...names.sectionFlagNames(section), ...names.alignmentNames(section)],
  };
}

// ---- the file, part by part

/** Parts that cover all of the file; one overlaps that begins before another has ended. */
function regionFacts(image: Image, bytes: Uint8Array, certificates: pe.DataDirectory) {
  const { coff, symbols, strings } = image;
  const part = (what: string, start: number, size: number) => ({
    what,
    start,
    end: Math.min(start + size, bytes.length),
  });
  const parts = [
    part("headers", 0, image.optional.sizeOfHeaders),
    ...image.sections.map(({ name, header }) => part(name, header.pointerToRawData, header.sizeOfRawData)),
    part("COFF symbols", coff.pointerToSymbolTable, symbols.length),
    part("COFF strings", coff.pointerToSymbolTable + symbols.length, strings.length),
    part("certificate table", certificates.virtualAddress, certificates.size),
  ].filter(({ start, end }) => end > start);
  /** @param mine whether it belongs to something: of what does not, it is told whether it is zeros */
  const described = (what: string, start: number, end: number, mine: boolean, overlaps = false) => {
    const data = bytes.subarray(start, end);
    return { what, start, end, sha256: sha256(data), zeros: !mine && data.every((byte) => byte === 0), overlaps };
  };
  let covered = 0;
  const all = parts
    .sort((a, b) => a.start - b.start || a.end - b.end)
    .flatMap(({ what, start, end }) => {
      const gap = start > covered ? [described("gap", covered, start, false)] : [];
      const overlaps = start < covered;
      covered = Math.max(covered, end);
      return [...gap, described(what, start, end, true, overlaps)];
    });
  return covered < bytes.length ? [...all, described("trailing", covered, bytes.length, false)] : all;
}
