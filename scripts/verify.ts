// SPDX-License-Identifier: GPL-2.0-only
//
// Proves that xen.mb.efi is xen.efi with nothing but the announced changes: loads both the way firmware, shim and the two
// kinds of Multiboot loaders do, at several bases, and accounts for every differing byte of memory and of the file.
//
// Changes: nothing. Prints a short report and exits 0, or a line per violation on standard error and exits 1.
// Proves: obligations 1 to 5 of the design. (1) Loaded as a PE, the same memory at every base, but for the header
//   area, the Multiboot2 header, the base relocation table's place and the references to it, and the debug directory's
//   file offsets; by shim as by firmware. (2) Loaded by Multiboot, what a PE loader has at the link address. (3) The same
//   base relocations but those of the rewritten header. (4) Every loader's rules hold (check-loaders). (5) Every byte of
//   the file is one that a signature covers.
// Independent: it reads the formats by the same field tables as the three steps and shares nothing else with them. What
//   has to be different is computed anew from the original, by the rules; then the rest must be equal.
// Order: after emit-header. For the steps before it, it says what is missing.

import { displayName, readInput, runIfMain } from "./cli/cli.ts";
import type { Command } from "./cli/cli.ts";
import { ImageError } from "./cli/errors.ts";
import { hex, range } from "./cli/numbers.ts";
import {
  checkAuthenticode,
  checkHeaders,
  checkLayout,
  checkSections,
  newTableAddress,
  pairSections,
  sameBytes,
  spanOf,
  tableEnd,
  withStraysInPlace,
} from "./judge/file.ts";
import type { Comparison, Span } from "./judge/file.ts";
import { Findings } from "./judge/findings.ts";
import {
  differences,
  fixupWidth,
  isZero,
  loadByFirmware,
  loadByShim,
  loadMultiboot1,
  loadMultiboot2,
  readFixups,
  relocationTable,
} from "./judge/loads.ts";
import type { Fixups, Memory, Multiboot1Load, Multiboot2Load, MultibootLoad } from "./judge/loads.ts";
import {
  changedMemory,
  checkPointers,
  checkTags,
  compareMemory,
  countChanges,
  debugPatches,
  headerChange,
  multiboot1Header,
  multiboot1Place,
  referencePatches,
  reshapedSections,
  voidPatches,
} from "./judge/memory.ts";
import type { HeaderChange, Patch } from "./judge/memory.ts";
import { Relocator } from "./judge/relocated-memory.ts";
import { checkSymbols, startSymbol } from "./judge/symbols.ts";
import { examine } from "./loaders/facts.ts";
import type { Evidence } from "./loaders/facts.ts";
import { PROFILES } from "./loaders/profiles.ts";
import { boots, judge as askLoader } from "./loaders/rules.ts";
import { hasFlags, parseImage, roundUp } from "./pe/image.ts";
import type { Image } from "./pe/image.ts";
import { aboutFile } from "./pe/transform.ts";
import { viewOf } from "./tables/fields.ts";
import { MB1_AOUT_KLUDGE } from "./tables/multiboot.ts";
import {
  DIRECTORY_BASE_RELOCATION,
  DIRECTORY_DEBUG,
  MEM_DISCARDABLE,
  MEM_READ,
  SECTION_HEADER,
  SIZE_2M,
} from "./tables/pe.ts";

const USAGE = `Usage: verify.ts ORIGINAL RESULT

Proves that RESULT, an xen.mb.efi, is the xen.efi ORIGINAL with nothing but the announced changes.
"-" is standard input, for one of them.

  --help  print this text

A report on standard output, or a line per violation on standard error.
Exit status: 0 verified, 1 violations or unsuitable files, 2 wrong usage.
`;

export interface Verdict {
  /** One line each, "Cannot verify: where, found, needed", without the file's name. None: RESULT is right. */
  readonly violations: string[];
  /** What was compared, and what is different, in a few lines. */
  readonly report: string[];
}

/** Judges a result by its original. Neither is changed; any bytes may be given. */
export function verify(originalBytes: Uint8Array, resultBytes: Uint8Array): Verdict {
  const findings = new Findings();
  const original = findings.attempt("the original", () => parseImage(originalBytes));
  if (original !== undefined) return verifyImage(original, resultBytes, findings);
  findings.attempt("the result", () => parseImage(resultBytes));
  return verdict(findings, []);
}

/** {@link verify} for who has read the original already. */
export function verifyImage(original: Image, resultBytes: Uint8Array, findings = new Findings()): Verdict {
  const report: string[] = [];
  const result = findings.attempt("the result", () => parseImage(resultBytes));
  if (result !== undefined) judge(original, result, findings, report);
  return verdict(findings, report);
}

function verdict(findings: Findings, report: string[]): Verdict {
  return { violations: findings.lines(), report: findings.count === 0 ? report : [] };
}

/** What loaders make of the result. */
interface Loads {
  readonly multiboot2: Multiboot2Load | undefined;
  readonly multiboot1: Multiboot1Load | undefined;
}

function judge(original: Image, result: Image, findings: Findings, report: string[]): void {
  // First, because it is what an image lacks that has not gone through all the steps.
  const multiboot2 = findings.attempt("the result", () => loadMultiboot2(result.background));
  const multiboot1 = findings.attempt("the result", () => loadMultiboot1(result.background));
  const comparison = compare(original, result, findings);
  if (comparison === undefined) return;
  checkHeaders(comparison, findings);
  checkSections(comparison, findings);
  checkLayout(comparison, findings);
  checkSymbols(comparison, findings);
  checkAuthenticode(result, findings);
  report.push(checkLoaders(original, result, findings));
  judgeMemory(comparison, { multiboot2, multiboot1 }, findings, report);
}

function compare(original: Image, result: Image, findings: Findings): Comparison | undefined {
  const pairs = pairSections(original, result, findings);
  const before = findings.attempt("the original", () => spanOf(original));
  const span = findings.attempt("the result", () => spanOf(result));
  const [reloc, second] = original.sections.filter((s) => s.name === ".reloc");
  if (reloc === undefined || second !== undefined)
    findings.add("the original", `with ${reloc === undefined ? "no" : "two"} sections .reloc`, "one");
  if (pairs === undefined || before === undefined || span === undefined || reloc === undefined) return undefined;
  const moved = pairs.get(reloc)?.header.virtualAddress !== reloc.header.virtualAddress;
  // The moved table is the last thing loaded where .bss is what follows .init.
  const { size: table } = original.directories[DIRECTORY_BASE_RELOCATION] ?? { size: 0 };
  const dataEnd = moved ? Math.max(before.dataEnd, newTableAddress(original, reloc) + table) : before.dataEnd;
  const needed = { ...before, dataEnd };
  for (const bound of ["first", "dataEnd", "bssStart", "bssEnd"] as const)
    findings.same(`RVA ${bound} of what Multiboot loads`, span[bound], needed[bound]);
  return { original, result, span, pairs, reloc, moved };
}

// ---- obligation 1: the same memory for PE loaders

interface Original {
  readonly memory: Memory;
  readonly fixups: Fixups;
  readonly header: HeaderChange;
  readonly entry: number;
  readonly patches: readonly Patch[];
}

function judgeMemory(
  comparison: Comparison,
  { multiboot2, multiboot1 }: Loads,
  findings: Findings,
  report: string[],
): void {
  const { result, span } = comparison;
  const memory = findings.attempt("the result", () => loadByFirmware(result));
  const fixups =
    memory === undefined
      ? undefined
      : findings.attempt("the result", () => readFixups(relocationTable(result, memory)));
  const before = findings.attempt("the original", () => readOriginal(comparison, findings));
  if (memory === undefined || fixups === undefined || before === undefined) return;
  const bases = usableBases(result);
  const compared = compareAtBases(comparison, before, memory, fixups, bases, findings);
  report.push(`PE loaders: ${hex(compared)} bytes of memory as needed at each base: ${bases.map(hex).join(", ")}`);
  reportChanges(comparison, before, report);
  report.push(checkFixups(before, fixups, span, findings));
  findings.attempt("the result", () => report.push(checkShim(comparison, memory, findings)));
  checkHeaderArea(comparison, before.entry, findings);
  if (multiboot2 !== undefined) report.push(checkMultiboot2(comparison, before, memory, multiboot2, findings));
  if (multiboot1 !== undefined) report.push(checkMultiboot1(comparison, before, memory, multiboot1, findings));
}

/** What the original is, and what has to change in its memory. @throws ImageError when that cannot be told */
function readOriginal(comparison: Comparison, findings: Findings): Original {
  const { original, span, pairs, reloc, moved } = comparison;
  const memory = loadByFirmware(withStraysInPlace(original));
  const fixups = readFixups(relocationTable(original, memory));
  const before = spanOf(original);
  const entry = startSymbol(original) ?? span.first;
  const [section] = before.sections;
  if (section === undefined) throw new ImageError("it has no section below .bss");
  const header = headerChange(section, span, entry);
  const { virtualAddress: table, size } = original.directories[DIRECTORY_BASE_RELOCATION] ?? {
    virtualAddress: 0,
    size: 0,
  };
  checkDebugDirectory(original, header, findings);
  const patches = [header.patch, ...voidPatches(fixups, header.patch, table), ...debugPatches(comparison, memory)];
  if (moved) {
    patches.push(
      ...referencePatches(
        before,
        table,
        size,
        (pairs.get(reloc) ?? reloc).header.virtualAddress - reloc.header.virtualAddress,
      ),
    );
    checkPointers(memory, fixups, original.optional.imageBase, table, table + size, findings);
  }
  return { memory, fixups, header, entry, patches };
}

/** One that is written over is lost, whatever its entries look like afterwards. */
function checkDebugDirectory({ directories }: Image, { patch }: HeaderChange, findings: Findings): void {
  const { virtualAddress, size } = directories[DIRECTORY_DEBUG] ?? { virtualAddress: 0, size: 0 };
  const [end, headerEnd] = [virtualAddress + size, patch.start + patch.bytes.length];
  if (size !== 0 && virtualAddress < headerEnd && patch.start < end)
    findings.add(
      "the debug directory",
      `at ${range(virtualAddress, end)}`,
      `outside ${range(patch.start, headerEnd)}, the Multiboot2 header`,
    );
}

/** ImageBase, where nothing is relocated, and the lowest and the highest base that Xen runs at: 2 MiB-aligned, below 4 GiB (efi-boot.h:efi_arch_load_addr_check). */
function usableBases({ optional }: Image): bigint[] {
  const highest = Math.floor((2 ** 32 - optional.sizeOfImage) / SIZE_2M) * SIZE_2M;
  const bases = highest < SIZE_2M ? [] : [SIZE_2M, highest];
  return [...new Set([optional.imageBase, ...bases.map(BigInt)])];
}

function compareAtBases(
  comparison: Comparison,
  before: Original,
  memory: Memory,
  fixups: Fixups,
  bases: readonly bigint[],
  findings: Findings,
): number {
  const { original, result } = comparison;
  const changes = { patches: before.patches, reshaped: reshapedSections(comparison) };
  const relocators = [
    new Relocator(before.memory, before.fixups, original.fileSize),
    new Relocator(memory, fixups, result.fileSize),
  ] as const;
  const count = findings.count;
  let compared = 0;
  for (const base of bases) {
    const delta = base - original.optional.imageBase;
    const shown = { where: delta === 0n ? "" : ` at base ${hex(base)}`, further: base !== bases[0] };
    const needed = findings.attempt("the original", () => changedMemory(relocators[0].at(delta), changes));
    const found = findings.attempt("the result", () => relocators[1].at(delta).slice(1));
    if (needed === undefined || found === undefined) return compared;
    compared = compareMemory(needed, found, before.patches, shown, findings);
    // The other bases would say the same again, for every relocated place.
    if (findings.count !== count) return compared;
  }
  return compared;
}

function reportChanges(comparison: Comparison, { memory, patches, header }: Original, report: string[]): void {
  const { pairs, reloc, moved } = comparison;
  const counts = [...countChanges(memory, patches)];
  const total = counts.reduce((sum, [, { bytes }]) => sum + bytes, 0);
  const places = counts.reduce((sum, [, count]) => sum + count.places, 0);
  const causes = counts.map(([cause, count]) => `${cause} ${count.bytes} in ${count.places}`).join(", ");
  report.push(`changed: ${total} bytes in ${places} places, none unexplained (${causes})`);
  const table = (pairs.get(reloc) ?? reloc).header.virtualAddress;
  const grown = [...pairs]
    .filter(([from, to]) => to.header.virtualSize > from.header.virtualSize)
    .map(([from]) => from.name);
  const shape = moved
    ? `base relocation table moved from ${hex(reloc.header.virtualAddress)} to ${hex(table)}`
    : `base relocation table stays at ${hex(table)}`;
  report.push(
    `memory: ${shape}; zeros added behind ${grown.length === 0 ? "no section" : grown.join(" ")}${header.dropped.length === 0 ? "" : `; no room for the optional tags ${header.dropped.join(" ")}`}`,
  );
}

// ---- obligation 3: the same base relocations

/** Entry by entry, as the loader's walk over the result's own table gives them. */
function checkFixups({ fixups, header }: Original, found: Fixups, span: Span, findings: Findings): string {
  const start = header.patch.start;
  const end = start + header.patch.bytes.length;
  let [total, voided] = [0, 0];
  findings.same("the number of base relocations, padding included,", found.count, fixups.count);
  for (let i = 0; i < Math.min(found.count, fixups.count); i++) {
    const target = fixups.targets[i] ?? 0;
    const width = fixupWidth(fixups.types[i]);
    const gone = width !== 0 && target < end && target + width > start;
    if (width !== 0) total++;
    if (gone) voided++;
    const foundTarget = found.targets[i] ?? 0;
    const foundWidth = fixupWidth(found.types[i]);
    const same = gone ? foundWidth === 0 : foundWidth === width && foundTarget === target;
    const loaded = foundWidth === 0 || (foundTarget >= span.first && foundTarget + foundWidth <= span.dataEnd);
    if (same && loaded) continue;
    if (findings.full) findings.addUnnamed(1);
    else if (same)
      findings.add(
        `base relocation number ${i}`,
        fixupText(found, i),
        `in ${range(span.first, span.dataEnd)}, which Multiboot loads`,
      );
    else
      findings.add(
        `base relocation number ${i}`,
        fixupText(found, i),
        gone ? "none (type 0): its target is in the Multiboot2 header" : fixupText(fixups, i),
      );
  }
  return `base relocations: ${total - voided} as in the original, ${voided} void`;
}

function fixupText({ types, targets }: Fixups, i: number): string {
  return `type ${types[i]} for RVA ${hex(targets[i] ?? 0)}`;
}

// ---- shim

/** Xen reads its relocation table in memory, which shim must have loaded; and shim relocates by section name. */
function checkShim({ result, span, pairs, reloc }: Comparison, memory: Memory, findings: Findings): string {
  const shim = loadByShim(result);
  const loaded = new Map(shim.memory.map((segment) => [segment.start, segment]));
  const left: string[] = [];
  for (const [from, to] of pairs) {
    const { virtualAddress, virtualSize } = to.header;
    if (virtualSize === 0 || loaded.get(virtualAddress)?.name === `section ${to.name}`) continue;
    left.push(from.name);
    const needed =
      from === reloc || virtualAddress < span.bssEnd || (hasFlags(from, MEM_READ) && !hasFlags(from, MEM_DISCARDABLE));
    if (needed)
      findings.add(
        `section ${to.name} at RVA ${hex(virtualAddress)}`,
        `not loaded by shim, with flags ${hex(to.header.characteristics)}`,
        "loaded: readable and not discardable",
      );
  }
  for (const segment of memory) {
    const other = loaded.get(segment.start);
    if (other === undefined) continue;
    for (const [start] of differences(segment.bytes, other.bytes, segment.end - segment.start)) {
      findings.add(
        `memory at RVA ${hex(segment.start + start)} (${segment.name} + ${hex(start)})`,
        "not the same when loaded by shim",
        "the same as by firmware",
      );
      break;
    }
  }
  sameBytes(
    findings,
    relocationTable(result, memory),
    shim.table,
    (pairs.get(reloc) ?? reloc).header.pointerToRawData,
    "the base relocation table that shim reads",
  );
  return `shim: loads the same memory and the same base relocations${left.length === 0 ? "" : `, without ${left.length} sections that it does not load of the original either`}`;
}

// ---- obligation 2: the same memory for Multiboot loaders

/** The header area behind the section table: what was there, then zeros, with the Multiboot1 header in them. */
function checkHeaderArea({ original, result, span }: Comparison, entryAddr: number, findings: Findings): void {
  const { sizeOfHeaders } = result.optional;
  const [start, at] = [tableEnd(result), multiboot1Place(sizeOfHeaders)];
  if (at < start + 16 * SECTION_HEADER.size)
    return findings.add(
      "the place of the Multiboot1 header",
      hex(at),
      `at least ${hex(start + 16 * SECTION_HEADER.size)}: room for 16 section headers`,
    );
  const needed = new Uint8Array(sizeOfHeaders - start);
  needed.set(
    original.background.subarray(tableEnd(original), original.optional.sizeOfHeaders).subarray(0, needed.length),
  );
  if (!isZero(needed.subarray(at - start, at - start + 64)))
    findings.add(
      `the original, behind its section table at offset ${hex(at)},`,
      "in use",
      "64 zero bytes for the Multiboot1 header",
    );
  needed.set(multiboot1Header(span, sizeOfHeaders, entryAddr), at - start);
  sameBytes(findings, needed, result.background.subarray(start, sizeOfHeaders), start, "the header area");
}

function checkMultiboot2(
  { result, span }: Comparison,
  { header, entry }: Original,
  memory: Memory,
  load: Multiboot2Load,
  findings: Findings,
): string {
  const name = "the Multiboot2 header";
  findings.same(`${name}'s place in the file`, load.headerAt, header.rva - span.first + result.optional.sizeOfHeaders);
  findings.same(`${name}'s load_addr`, load.loadAddr, span.first);
  findings.same(`${name}'s header_addr`, load.headerAddr, header.rva);
  checkTags(load, header, findings);
  checkEfiEntries(load, span, findings);
  checkMultibootLoad(load, name, span, memory, entry, findings);
  const bases = multiboot2Bases(load);
  if (bases.length === 0)
    findings.add(
      `${name}'s RELOCATABLE tag`,
      `${hex(load.relocatable.minAddr)} to ${hex(load.relocatable.maxAddr)} by ${hex(load.relocatable.align)}`,
      `room for ${hex(load.segment.end - load.loadAddr)} bytes`,
    );
  for (const base of bases) {
    // GRUB moves everything by the same distance (multiboot_mbi2.c); the bytes stay as they are.
    const start = base + span.first - load.loadAddr;
    if (start % SIZE_2M !== 0)
      findings.add(`${name}: _start, when loaded at ${hex(base)},`, hex(start), "a multiple of 0x200000");
  }
  return `Multiboot2: ${loadText(load, entry)}, bases tried ${bases.map(hex).join(", ")}`;
}

/** The lowest and the highest base that GRUB may choose, and the link address. */
function multiboot2Bases({ loadAddr, segment, relocatable }: Multiboot2Load): number[] {
  const { minAddr, maxAddr } = relocatable;
  // GRUB takes alignment 0 as 1, and max_addr as a bound of the image's end.
  const align = Math.max(relocatable.align, 1);
  const lowest = roundUp(minAddr, align);
  const highest = Math.floor((maxAddr - (segment.end - segment.start)) / align) * align;
  if (highest < lowest) return [];
  return [
    ...new Set([
      lowest,
      highest,
      ...(loadAddr >= lowest && loadAddr <= highest && loadAddr % align === 0 ? [loadAddr] : []),
    ]),
  ];
}

/** ENTRY_ADDRESS_EFI32 and _EFI64. */
const EFI_ENTRIES: readonly number[] = [8, 9];

function checkEfiEntries({ tags }: Multiboot2Load, span: Span, findings: Findings): void {
  for (const { type, bytes } of tags) {
    if (!EFI_ENTRIES.includes(type) || bytes.length < 12) continue;
    const entry = viewOf(bytes).getUint32(8, true);
    if (entry < span.first || entry >= span.dataEnd)
      findings.add(
        `the EFI entry address in the Multiboot2 tag of type ${type}`,
        hex(entry),
        `in ${range(span.first, span.dataEnd)}`,
      );
  }
}

/** Bytes in front of this file offset hold a Linux boot protocol's magic in a kernel, which QEMU looks for first (hw/i386/x86-common.c). */
const LINUX_MAGIC_AT = 0x202;
const LINUX_MAGIC = 0x53726448;

function checkMultiboot1(
  { result, span }: Comparison,
  { entry }: Original,
  memory: Memory,
  load: Multiboot1Load,
  findings: Findings,
): string {
  const name = "the Multiboot1 header";
  const { sizeOfHeaders } = result.optional;
  findings.same(`${name}'s place in the file`, load.headerAt, multiboot1Place(sizeOfHeaders));
  findings.same(`${name}'s flags`, load.flags, MB1_AOUT_KLUDGE | 3);
  findings.same(`${name}'s load_addr`, load.loadAddr, span.first - sizeOfHeaders);
  findings.same(`${name}'s header_addr`, load.headerAddr, span.first - sizeOfHeaders + load.headerAt);
  checkMultibootLoad(load, name, span, memory, entry, findings);
  if (viewOf(result.background.subarray(0, sizeOfHeaders)).getUint32(LINUX_MAGIC_AT, true) === LINUX_MAGIC)
    findings.add(
      `the header area at offset ${hex(LINUX_MAGIC_AT)}`,
      '"HdrS"',
      "anything else: QEMU would take the file for a Linux kernel",
    );
  return `Multiboot1: ${loadText(load, entry)}`;
}

/** What is common to both: the addresses that say how much, and every byte of the span and of .bss. */
function checkMultibootLoad(
  load: MultibootLoad,
  name: string,
  span: Span,
  memory: Memory,
  entry: number,
  findings: Findings,
): void {
  findings.same(`${name}'s load_end_addr`, load.loadEndAddr, span.dataEnd);
  findings.same(`${name}'s bss_end_addr`, load.bssEndAddr, span.mappedEnd);
  findings.same(`${name}'s entry address`, load.entryAddr, entry);
  if (entry < span.first || entry >= span.dataEnd)
    findings.add("the entry address", hex(entry), `in ${range(span.first, span.dataEnd)}`);
  const { segment } = load;
  const at = (address: number): number => Math.max(0, address - segment.start);
  let end = span.first;
  for (const { name: section, start, end: next, bytes } of memory) {
    if (start < span.first || start >= span.bssEnd) continue;
    if (!isZero(segment.bytes.subarray(at(end), at(start))))
      findings.add(`what ${name} loads at ${range(end, start)}`, "not zero", "zeros, for no section is there");
    for (const [from] of differences(bytes, segment.bytes.subarray(at(start), at(next)), next - start)) {
      findings.add(
        `what ${name} loads at ${hex(start + from)} (${section} + ${hex(from)})`,
        hex(segment.bytes[at(start + from)] ?? 0),
        `${hex(bytes[from] ?? 0)} as a PE loader has it`,
      );
      break;
    }
    end = next;
  }
  if (segment.end < end)
    findings.add(`what ${name} loads or clears`, range(segment.start, segment.end), `all of ${range(span.first, end)}`);
}

function loadText({ offset, segment, loadAddr, loadEndAddr }: MultibootLoad, entry: number): string {
  return `file offset ${hex(offset)} to ${range(loadAddr, loadEndAddr)}, zeros to ${hex(segment.end)}, entry ${hex(entry)}`;
}

// ---- obligation 4: every loader takes it

/**
 * No loader that the result is for may refuse it, or start a Xen that cannot go on, for a reason that the original did
 * not give it already.
 */
function checkLoaders(original: Image, result: Image, findings: Findings): string {
  const after = examine(result.background, result);
  let before: Evidence | undefined;
  const accepted: string[] = [];
  const asBefore: string[] = [];
  for (const profile of PROFILES.filter(({ needed }) => needed)) {
    const verdict = askLoader(profile, after);
    if (boots(verdict)) {
      accepted.push(profile.name);
      continue;
    }
    before ??= examine(original.background, original);
    const known = new Set(askLoader(profile, before).findings.map(({ rule }) => rule));
    const worse = verdict.findings.find(({ kind, rule }) => kind !== "warn" && !known.has(rule));
    if (worse === undefined) asBefore.push(profile.name);
    else
      findings.add(
        `the result by the rules of ${profile.name}`,
        `that it ${verdict.outcome}: ${worse.why} (${worse.source})`,
        "that it loads",
      );
  }
  const rest = asBefore.length === 0 ? "" : `; as the original not by ${asBefore.join(" ")}`;
  return `loaders: taken by ${accepted.join(" ")}${rest}`;
}

// ---- the command

export const command: Command = {
  usage: USAGE,
  options: {},
  positionals: ["ORIGINAL", "RESULT"],
  run([original = "", result = ""], _values, io) {
    const originalBytes = readInput(original, io);
    // An original that cannot be read is no fault of the result.
    const image = aboutFile(original, () => parseImage(originalBytes));
    const { violations, report } = verifyImage(image, readInput(result, io));
    for (const line of violations) io.stderr(`${displayName(result)}: ${line}\n`);
    if (violations.length !== 0) return 1;
    io.stdout(
      `${displayName(result)}: verified against ${displayName(original)}\n${report.map((line) => `  ${line}\n`).join("")}`,
    );
    return 0;
  },
};

runIfMain(import.meta.url, command);
