// SPDX-License-Identifier: GPL-2.0-only
//
// Puts files into an image as sections: Xen's configuration, dom0's kernel and initramfs, microcode and XSM policy for
// a unified image, and SBAT for shim. Nobody has to work out addresses: objcopy wants them given, takes those that lie
// inside another section, and writes the time of day into the header.
//
// Changes: adds sections behind everything else, each at the next multiple of SectionAlignment, in the order given; one
//   of the same name is replaced, in its place if the new contents fit there. VirtualSize is the exact length of the
//   file: Xen takes it as such. SizeOfImage, CheckSum, file offsets and sizes follow (xen/layout.ts); the header area
//   grows if needed. A linear image stays linear, any other is laid out packed, on multiples of 512.
// Leaves: everything else, TimeDateStamp, every other section's data and RVA, both Multiboot headers.
// Refuses: what Xen or shim would not find or not take (names over 8 characters, empty files, an SBAT table that is not
//   one), a name of Xen's own sections, overlapping sections, more than 4 GiB of memory or 2 GiB of file, a signature.
// Order: before the three steps or after any of them; the bytes come out the same. After strip-debug, because
//   sections do not come down when DWARF below them goes; before sign.

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { aboutFile, displayName, readInput, refuseSameFile, runIfMain, sayOn, silent, writeOutput } from "./cli/cli.ts";
import type { Command, Say } from "./cli/cli.ts";
import { UsageError, failing, type Fail } from "./cli/errors.ts";
import { hex, printable, range } from "./cli/numbers.ts";
import { byAddress, hasFlags, roundUp, sectionEnd, withHeader, type Image, type Section } from "./pe/image.ts";
import { parseImage } from "./pe/parse.ts";
import { hasSbatComponent, sbatFault } from "./pe/sbat.ts";
import { serializeImage, sortSectionTable } from "./pe/serialize.ts";
import { definedSymbols } from "./pe/symbols.ts";
import { unsigned } from "./pe/transform.ts";
import * as pe from "./tables/pe.ts";
import { layOut, layoutOf } from "./xen/layout.ts";
import { hasNewHeaders } from "./xen/multiboot.ts";
import { withTruthfulNxCompat } from "./xen/nx-compat.ts";
import { readyForLayout, withSections } from "./xen/sections.ts";
import { loadSpan, type LoadSpan } from "./xen/span.ts";

const USAGE = `Usage: add-sections.ts IN OUT [--section NAME=FILE]... [--remove NAME]... [--strip-signature]
       add-sections.ts IN --list

Puts files into a xen.efi or xen.mb.efi as sections, for a unified image; "-" is standard input (once) or output.

  --section NAME=FILE  .config .kernel .ramdisk .ucode .xsm for Xen, .sbat for shim; replaces one of that name
  --remove NAME        take such a section out
  --list               show these sections, change nothing
  --strip-signature    drop IN's signature, which no change would survive; without it a signed IN is refused
  --help               print this text

Exit status: 0 done, 1 image or file unsuitable, 2 wrong usage.
`;

const ACTION = "add sections";
/** What Xen looks for in itself (xen/common/efi/boot.c: read_section), as wide strings without the dot. */
const XEN_NAMES: readonly string[] = [".config", ".kernel", ".ramdisk", ".ucode", ".xsm"];
const SBAT = ".sbat";
/** Linux' boot protocol, Documentation/arch/x86/boot.rst. */
const BZIMAGE_MAGIC_AT = 0x202;
/** Xen compares all eight characters of a section header's name, and follows no "/N" (xen/common/efi/pe.c). */
const MOST_NAME = 8;
/** Names that mean something to the steps, to firmware or to Xen's build: as a payload's they would mislead. */
const RESERVED_NAME = /^\.(text|rodata|buildid|init|data|bss|reloc|pad|z?debug_)/;
const PAYLOAD_FLAGS = pe.CNT_INITIALIZED_DATA | pe.MEM_READ;

const fail: Fail = failing(ACTION);

export interface Payload {
  readonly name: string;
  readonly data: Uint8Array;
}

/**
 * The image with these sections, the rest in its place.
 * @param payloads their data is not copied; two of the same name are refused
 * @throws ImageError when Xen would not find them, or when the image cannot be changed so
 */
export function addSections(input: Image, payloads: readonly Payload[], say: Say = silent): Image {
  const { image, span } = readyForLayout(input, ACTION, say);
  checkPayloads(image, span, payloads, say);
  const changed = payloads.reduce((so, payload) => withPayload(so, span, payload), image);
  return finished(image, changed, span, say);
}

/** The image without these sections. @throws ImageError when there is none of a name, or when it is one of Xen's own */
export function removeSections(input: Image, names: readonly string[], say: Say = silent): Image {
  const { image, span } = readyForLayout(input, ACTION, say);
  const gone = names.map((name) => {
    const section = image.sections.find((s) => s.name === name);
    if (section === undefined) return fail(`there is no section ${name} to remove`);
    if (!isPayload(image, section, span)) fail(`section ${name} is one of Xen's own, needed one that was added`);
    return section;
  });
  const lowest = Math.min(...gone.map((s) => image.sections.indexOf(s)));
  for (const symbol of definedSymbols(image)) {
    if (symbol.section < lowest) continue;
    const what = `COFF symbol ${printable(symbol.name)} is in section ${image.sections[symbol.section]?.name}`;
    fail(`${what}, needed none in a removed section or behind it`);
  }
  const left = image.sections.filter((s) => !gone.includes(s));
  return finished(image, withSections(image, left, ACTION), span, say);
}

/** The sections that are not Xen's own: what a unified image has besides. In RVA order. */
export function payloadSections(image: Image): Section[] {
  const span = loadSpan(image, "list sections");
  return byAddress(image.sections).filter((s) => isPayload(image, s, span));
}

// ---- what is there

/** Data behind everything that Xen and the loaders know: no DWARF, and nothing that the headers point to. */
function isPayload(image: Image, section: Section, span: LoadSpan): boolean {
  const { virtualAddress } = section.header;
  if (
    virtualAddress < span.bssStart ||
    hasFlags(section, pe.CNT_UNINITIALIZED_DATA) ||
    RESERVED_NAME.test(section.name)
  )
    return false;
  return !image.directories.some(
    (d, i) =>
      i !== pe.DIRECTORY_CERTIFICATE &&
      d.size !== 0 &&
      d.virtualAddress >= virtualAddress &&
      d.virtualAddress < sectionEnd(section),
  );
}

// ---- what is refused or warned of

function checkPayloads(image: Image, span: LoadSpan, payloads: readonly Payload[], say: Say): void {
  const seen = new Set<string>();
  for (const { name, data } of payloads) {
    const shown = printable(name);
    const meant = `.${name.toLowerCase()}`;
    if ([...XEN_NAMES, SBAT].includes(meant)) fail(`section name ${shown} means nothing to Xen, needed ${meant}`);
    if (seen.has(name)) fail(`section ${shown} is given twice, needed once`);
    seen.add(name);
    if (name.length > MOST_NAME) {
      const why = "Xen and shim find no longer one";
      fail(`section name ${shown} has ${name.length} characters, needed at most ${MOST_NAME}: ${why}`);
    }
    if (!/^[!-.0-~][!-~]*$/.test(name))
      fail(`section name '${shown}' is no name, needed printable characters, the first not a slash`);
    const [old, second] = image.sections.filter((s) => s.name === name);
    if (second !== undefined) fail(`there are two sections ${name} already, needed at most one`);
    if (old === undefined ? RESERVED_NAME.test(name) : !isPayload(image, old, span)) {
      fail(`section ${name} has a name that stands for one of Xen's own, needed another`);
    }
    if (data.length === 0)
      fail(`section ${name} would be empty, needed at least a byte: shim takes no image with such a section`);
    if (name === SBAT) checkSbat(data, say);
    if (name === ".kernel" && !isKernel(data))
      say(
        "warning: section .kernel is neither a bzImage nor an ELF file: Xen starts dom0 from these, perhaps compressed",
      );
  }
  warnOfUnknown(image, [...seen], say);
}

function checkSbat(data: Uint8Array, say: Say): void {
  const fault = sbatFault(data);
  if (fault !== undefined) fail(`${SBAT} is no SBAT table: ${fault}`);
  if (!hasSbatComponent(data))
    say(`warning: section ${SBAT} names no component but itself: shim can revoke nothing by it`);
}

/** What Xen tells dom0's kernel by (xen/arch/x86/bzimage.c, xen/common/libelf): the setup header's magic, or ELF's. */
function isKernel(data: Uint8Array): boolean {
  const text = (at: number): string => Buffer.from(data.subarray(at, at + 4)).toString("latin1");
  return text(BZIMAGE_MAGIC_AT) === "HdrS" || text(0) === "\x7fELF";
}

/** Whether a Xen takes a section shows in its data: the names it looks for are in there as wide strings. */
function warnOfUnknown(image: Image, names: readonly string[], say: Say): void {
  const own = names.filter((name) => XEN_NAMES.includes(name));
  const missing = own.filter((name) => !hasWideString(image, name.slice(1)));
  if (missing.length !== 0) {
    const hint = XEN_NAMES.some((name) => hasWideString(image, name.slice(1)))
      ? ""
      : ", nor for any other: Xen does from 4.15 on";
    say(`warning: this Xen does not look for section ${missing.join(" ")}${hint}`);
  }
  const other = names.filter((name) => name !== SBAT && !own.includes(name));
  if (other.length !== 0)
    say(`warning: nobody looks for section ${other.join(" ")}: Xen knows ${XEN_NAMES.join(" ")}, shim ${SBAT}`);
}

function hasWideString(image: Image, text: string): boolean {
  const wanted = Buffer.from(`${text}\0`, "utf16le");
  return image.sections.some(({ data }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength).includes(wanted));
}

// ---- where it goes

function newSection({ name, data }: Payload, virtualAddress: number): Section {
  const header = {
    name: name.padEnd(MOST_NAME, "\0"),
    virtualSize: data.length,
    virtualAddress,
    sizeOfRawData: 0,
    pointerToRawData: 0,
    pointerToRelocations: 0,
    pointerToLinenumbers: 0,
    numberOfRelocations: 0,
    numberOfLinenumbers: 0,
    characteristics: PAYLOAD_FLAGS,
  };
  return { name, header, data };
}

/** The image with one more payload. Each sees what the ones before it have taken: one call is as good as several. */
function withPayload(image: Image, span: LoadSpan, payload: Payload): Image {
  const { sections, optional } = image;
  const old = sections.find((s) => s.name === payload.name);
  // Above SizeOfImage, too: whoever linked the image may have asked for the room.
  const end = Math.max(optional.sizeOfImage, span.bssEnd);
  const section = inPlaceOf(sections, old, payload) ?? newSection(payload, roundUp(end, optional.sectionAlignment));
  const where = range(section.header.virtualAddress, sectionEnd(section));
  if (sectionEnd(section) > pe.ADDRESS_SPACE) fail(`section ${payload.name} would be at ${where}, needed below 4 GiB`);
  // A data directory that led nowhere must not lead into the payload.
  if (!isPayload(image, section, span))
    fail(`a data directory points into ${where}, where section ${payload.name} would be, needed none`);
  const changed = old === undefined ? [...sections, section] : sections.map((s) => (s === old ? section : s));
  return withSections(image, changed, ACTION);
}

/** The replaced section at its address, unless the new data would run into the next one. */
function inPlaceOf(sections: readonly Section[], old: Section | undefined, { data }: Payload): Section | undefined {
  if (old === undefined) return undefined;
  const { virtualAddress } = old.header;
  // Behind the last one there is as much room as memory has.
  const above = sections.map((s) => s.header.virtualAddress).filter((rva) => rva > virtualAddress);
  if (virtualAddress + data.length > Math.min(pe.ADDRESS_SPACE, ...above)) return undefined;
  return withHeader(old, { virtualSize: data.length }, data);
}

/** @param changed the image `before` with other sections, which are in no place of the file yet */
function finished(before: Image, changed: Image, span: LoadSpan, say: Say): Image {
  const layout = layoutOf(before, span);
  const result = layOut(sortSectionTable(changed), span, layout, ACTION);
  // The Multiboot1 header says where in memory the file begins: it holds for one size of the header area only.
  const [was, is] = [before.optional.sizeOfHeaders, result.optional.sizeOfHeaders];
  if (!hasNewHeaders(before)) return result;
  if (layout === "linear" && was !== is) {
    const why = "and the Multiboot1 header at its end would not be right";
    fail(`the header area would grow from ${hex(was)} to ${hex(is)} bytes, ${why}; add sections before emit-header`);
  }
  return withTruthfulNxCompat(result, before, say);
}

// ---- the command

/** Where a payload comes from. */
interface Source {
  readonly name: string;
  readonly file: string;
}

/** @param argument ".kernel=vmlinuz" */
function source(argument: string): Source {
  const equals = argument.indexOf("=");
  const [name, file] = [argument.slice(0, equals), argument.slice(equals + 1)];
  if (equals < 1 || file === "") throw new UsageError(`--section '${argument}' is not NAME=FILE`);
  return { name, file };
}

function listed(name: string, image: Image): string {
  const rows = payloadSections(image).map(({ name: section, header, data }) => {
    const digest = createHash("sha256").update(data).digest("hex");
    const where = range(header.virtualAddress, header.virtualAddress + header.virtualSize);
    return `  ${section.padEnd(MOST_NAME)}  ${where}  ${header.virtualSize} bytes  sha256 ${digest}\n`;
  });
  const count = `${rows.length === 0 ? "no" : rows.length} added section${rows.length === 1 ? "" : "s"}`;
  return `${name}: ${count}\n${rows.join("")}`;
}

function strings(value: unknown): string[] {
  return Array.isArray(value) ? value.map(String) : [];
}

export const command: Command = {
  usage: USAGE,
  options: {
    section: { type: "string", multiple: true },
    remove: { type: "string", multiple: true },
    list: { type: "boolean" },
    "strip-signature": { type: "boolean" },
  },
  positionals: ["IN", "[OUT]"],
  run([input = "", output], values, io) {
    const [add, remove] = [strings(values["section"]), strings(values["remove"])];
    if (values["list"] === true) {
      if (output !== undefined || add.length + remove.length !== 0) throw new UsageError("--list takes nothing but IN");
      aboutFile(input, () => io.stdout(listed(displayName(input), parseImage(readInput(input, io)))));
      return 0;
    }
    if (output === undefined) throw new UsageError("OUT is missing");
    if (add.length + remove.length === 0) throw new UsageError("--section or --remove is missing");
    refuseSameFile(input, output);
    const sources = add.map(source);
    for (const { file } of sources) refuseSameFile(file, output, "--section");
    if ([input, ...sources.map(({ file }) => file)].filter((file) => file === "-").length > 1)
      throw new UsageError("'-' is given twice, there is one standard input");
    const said: string[] = [];
    const say: Say = (line) => said.push(line);
    const bytes = readInput(input, io);
    const payloads = sources.map(({ name, file }) => ({ name, data: readInput(file, io) }));
    const change = (signed: Image): Image => {
      const image = unsigned(signed, values);
      const smaller = remove.length === 0 ? image : removeSections(image, remove, say);
      return payloads.length === 0 ? smaller : addSections(smaller, payloads, say);
    };
    writeOutput(
      output,
      aboutFile(input, () => serializeImage(change(parseImage(bytes)))),
      io,
    );
    said.forEach(sayOn(io, input));
    return 0;
  },
};

runIfMain(import.meta.url, command);
