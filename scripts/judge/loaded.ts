// SPDX-License-Identifier: GPL-2.0-only
// verify's view of memory: what each kind of loader makes of the result, held against the original's memory with the
// changes that expected.ts has worked out. What is different beyond them is a violation, wherever it is.

import { hex, range } from "../cli/numbers.ts";
import { viewOf } from "../tables/fields.ts";
import { MB1_AOUT_KLUDGE, MB2_ADDRESS, MB2_ENTRY_ADDRESS } from "../tables/multiboot.ts";
import { MEM_DISCARDABLE, MEM_READ, SIZE_2M } from "../tables/pe.ts";
import { inNewPlaces, isVoid } from "./expected.ts";
import type { ExpectedFile, ExpectedMemory } from "./expected.ts";
import type { Pair } from "./file.ts";
import type { Findings } from "./findings.ts";
import { MULTIBOOT1, MULTIBOOT2, loadByShim, relocationTable, tagName } from "./loads.ts";
import type { Multiboot1Load, Multiboot2Load, MultibootLoad } from "./loads.ts";
import { LoadedMemory, bytesIn, differences, isZero } from "./memory.ts";
import type { Cause, Fixup, Fixups, Memory, Patch, Segment } from "./memory.ts";
import { multiboot1Place } from "./multiboot.ts";
import { hasFlags, roundUp } from "./read.ts";
import type { Pe } from "./read.ts";

/** Everything that the checks of memory are about. */
export interface Loaded {
  readonly file: ExpectedFile;
  readonly needed: ExpectedMemory;
  readonly result: Pe;
  readonly pairs: readonly Pair[];
  /** The result as firmware loads it, and its base relocations. */
  readonly memory: Memory;
  readonly fixups: Fixups;
  readonly findings: Findings;
}

// ---- the same memory for PE loaders

/** @returns a line of the report */
export function checkBases({ file, needed, result, memory, fixups, findings }: Loaded): string {
  const { original, sections } = file;
  const bases = usableBases(result);
  const [wanted, found] = [
    new LoadedMemory(needed.memory, original.bytes.length),
    new LoadedMemory(memory, result.bytes.length),
  ];
  const before = findings.count;
  let compared = 0;
  let last = original.optional.imageBase;
  for (const base of bases) {
    findings.attempt("the original", () => {
      wanted.relocate(needed.fixups, base - last);
      wanted.patch(needed.patches);
    });
    findings.attempt("the result", () => found.relocate(fixups, base - last));
    last = base;
    if (findings.count === before)
      compared = compareMemory(
        inNewPlaces(wanted.segments, sections),
        found.segments.slice(1),
        needed.patches,
        base === bases[0] ? "" : ` at base ${hex(base)}`,
        findings,
      );
    // The other bases would say the same again, for every relocated place.
    if (findings.count !== before) break;
  }
  return `PE loaders: ${hex(compared)} bytes of memory as needed at each base: ${bases.map(hex).join(", ")}`;
}

/** ImageBase, where nothing is relocated, and the lowest and the highest base that Xen runs at: 2 MiB-aligned, below 4 GiB (efi-boot.h:efi_arch_load_addr_check). */
function usableBases({ optional }: Pe): bigint[] {
  const highest = Math.floor((2 ** 32 - optional.sizeOfImage) / SIZE_2M) * SIZE_2M;
  const bases = highest < SIZE_2M ? [] : [SIZE_2M, highest];
  return [...new Set([optional.imageBase, ...bases.map(BigInt)])];
}

/**
 * Holds the result's memory against what it must be.
 * @param where the base in words, for messages
 * @returns bytes compared
 */
function compareMemory(
  needed: Memory,
  found: Memory,
  patches: readonly Patch[],
  where: string,
  findings: Findings,
): number {
  const name = (s: Segment): string => `memory of ${s.name} at ${range(s.start, s.end)}${where}`;
  const there = new Map(found.map((segment) => [segment.start, segment]));
  let compared = 0;
  for (const segment of needed) {
    const other = there.get(segment.start);
    there.delete(segment.start);
    if (other?.end === segment.end) {
      compared += segment.end - segment.start;
      compareSegment(segment, other, patches, where, findings);
      continue;
    }
    const is = other === undefined ? "missing" : `at ${range(other.start, other.end)}`;
    findings.add(name(segment), is, "as in the original");
  }
  for (const segment of there.values()) findings.add(name(segment), "new", "nothing the original has not");
  return compared;
}

/** Differences of one section that are named; a section that is wrong altogether needs no more. */
const MOST_PER_SECTION = 8;

function compareSegment(
  needed: Segment,
  found: Segment,
  patches: readonly Patch[],
  where: string,
  findings: Findings,
): void {
  let [runs, unnamed] = [0, 0];
  for (const [start, end] of differences(needed.bytes, found.bytes, needed.end - needed.start)) {
    if (++runs > MOST_PER_SECTION) {
      unnamed += end - start;
      continue;
    }
    const rva = needed.start + start;
    const patch = patches.find((p) => rva >= p.start && rva < p.start + p.bytes.length);
    const place = `${needed.name} + ${hex(start)}${patch === undefined ? "" : `, in ${patch.cause}`}`;
    findings.add(
      `memory at RVA ${hex(rva)} (${place})${where}`,
      dump(found.bytes, start, end),
      dump(needed.bytes, start, end),
    );
  }
  if (unnamed !== 0)
    findings.add(
      `memory of ${needed.name} at ${range(needed.start, needed.end)}${where}`,
      `different in more places, in all ${runs} (${unnamed} bytes or more)`,
      "no difference",
    );
}

function dump(bytes: Uint8Array, start: number, end: number): string {
  const shown = Array.from({ length: Math.min(end - start, 8) }, (_, i) =>
    (bytes[start + i] ?? 0).toString(16).padStart(2, "0"),
  );
  return `${shown.join(" ")}${end - start > 8 ? " …" : ""}`;
}

/** How much of memory is different, by cause, and what moved or grew: two lines of the report. */
export function changesText({ file, needed: { memory, patches, header } }: Loaded): string[] {
  const counts = new Map<Cause, { places: number; bytes: number }>();
  for (const { cause, start, bytes } of patches) {
    const old = bytesIn(memory, start, start + bytes.length, cause);
    const changed = bytes.filter((byte, i) => byte !== old[i]).length;
    const count = counts.get(cause) ?? { places: 0, bytes: 0 };
    counts.set(cause, { places: count.places + (changed === 0 ? 0 : 1), bytes: count.bytes + changed });
  }
  const all = [...counts.values()];
  const bytes = all.reduce((sum, count) => sum + count.bytes, 0);
  const places = all.reduce((sum, count) => sum + count.places, 0);
  const causes = [...counts].map(([cause, count]) => `${cause} ${count.bytes} in ${count.places}`).join(", ");
  const { from, header: reloc } = file.reloc;
  const shape =
    file.steps.relocated === "moved"
      ? `base relocation table moved from ${hex(from.header.virtualAddress)} to ${hex(reloc.virtualAddress)}`
      : `base relocation table stays at ${hex(reloc.virtualAddress)}`;
  const grown = file.sections.filter((s) => s.header.virtualSize > s.from.header.virtualSize).map((s) => s.name);
  const dropped = header?.dropped ?? [];
  const tags = dropped.length === 0 ? "" : `; no room for the optional tags ${dropped.join(" ")}`;
  return [
    `changed: ${bytes} bytes in ${places} places, none unexplained (${causes})`,
    `memory: ${shape}; zeros added behind ${grown.length === 0 ? "no section" : grown.join(" ")}${tags}`,
  ];
}

// ---- the same base relocations

/** Entry by entry, as a loader's walk over the result's own table gives them. @returns a line of the report */
export function checkFixups({ file: { span }, needed, fixups, findings }: Loaded): string {
  const text = ({ type, target }: Fixup): string => `type ${type} for RVA ${hex(target)}`;
  findings.same("the number of base relocations, padding included,", fixups.length, needed.fixups.length);
  const found = fixups[Symbol.iterator]();
  let [number, kept, voided] = [0, 0, 0];
  for (const wanted of needed.fixups) {
    const actual: Fixup = found.next().value ?? wanted;
    const where = `base relocation number ${number++}`;
    if (isVoid(wanted, needed.header)) {
      voided++;
      if (actual.width !== 0)
        findings.add(where, text(actual), "none (type 0): its target is in the Multiboot2 header");
      continue;
    }
    if (wanted.width !== 0) kept++;
    if (actual.width !== wanted.width || actual.target !== wanted.target)
      findings.add(where, text(actual), text(wanted));
    else if (actual.width !== 0 && (actual.target < span.first || actual.target + actual.width > span.dataEnd))
      findings.add(where, text(actual), `in ${range(span.first, span.dataEnd)}, which Multiboot loads`);
  }
  const targets = new Set([...needed.fixups].filter(({ width }) => width !== 0).map(({ target }) => target));
  const doubles = kept + voided - targets.size;
  const twice = doubles === 0 ? "" : `; ${doubles} come twice, in the original as well: loaders relocate twice`;
  return `base relocations: ${kept} as in the original, ${voided} void${twice}`;
}

// ---- shim

/**
 * Xen reads its relocation table in memory, which shim must have loaded; and shim relocates by section name.
 * @returns a line of the report
 * @throws ImageError when shim refuses the result
 */
export function checkShim({ file: { span }, result, pairs, memory, findings }: Loaded): string {
  const shim = loadByShim(result);
  const loaded = new Map(shim.memory.map((segment) => [segment.start, segment]));
  let left = 0;
  for (const { needed, found } of pairs) {
    const { virtualAddress: rva, virtualSize, characteristics } = found.header;
    if (virtualSize === 0 || loaded.get(rva)?.name === `section ${found.name}`) continue;
    left++;
    const isLoaded = hasFlags(needed.from, MEM_READ) && !hasFlags(needed.from, MEM_DISCARDABLE);
    if (needed.name === ".reloc" || rva < span.bssEnd || isLoaded)
      findings.add(
        `section ${found.name} at RVA ${hex(rva)}`,
        `not loaded by shim, with flags ${hex(characteristics)}`,
        "loaded: readable and not discardable",
      );
  }
  for (const { name, start, end, bytes } of memory) {
    const [first] = differences(bytes, loaded.get(start)?.bytes ?? bytes, end - start);
    if (first === undefined) continue;
    const where = `memory at RVA ${hex(start + first[0])} (${name} + ${hex(first[0])})`;
    findings.add(where, "not the same when loaded by shim", "the same as by firmware");
  }
  const table = pairs.find(({ needed }) => needed.name === ".reloc")?.found.header.pointerToRawData ?? 0;
  findings.sameBytes("the base relocation table that shim reads", shim.table, relocationTable(result, memory), table);
  const rest = left === 0 ? "" : `, without ${left} sections that it does not load of the original either`;
  return `shim: loads the same memory and the same base relocations${rest}`;
}

// ---- the same memory for Multiboot loaders

/** @returns a line of the report */
export function checkMultiboot2(loaded: Loaded, load: Multiboot2Load): string {
  const { file, needed, result, findings } = loaded;
  const { name } = MULTIBOOT2;
  const { span } = file;
  const { sizeOfHeaders } = result.optional;
  checkMultibootLoad(loaded, load, name, (needed.header?.rva ?? 0) - span.first + sizeOfHeaders, span.first);
  const names = (types: readonly number[]): string => types.map(tagName).join(", ");
  const types = [MB2_ADDRESS, MB2_ENTRY_ADDRESS, ...(needed.header?.tags.map((t) => t.type) ?? [])];
  const order = `the order of tags in ${name} at offset ${hex(load.headerAt)}`;
  findings.same(order, names(load.tags.map((t) => t.type)), names(types));
  checkEfiEntries(loaded, load);
  const { minAddr, maxAddr, align } = load.relocatable;
  const bases = multiboot2Bases(load);
  if (bases.length === 0)
    findings.add(
      `${name}'s RELOCATABLE tag`,
      `${hex(minAddr)} to ${hex(maxAddr)} by ${hex(align)}`,
      `room for ${hex(load.segment.end - load.loadAddr)} bytes`,
    );
  for (const base of bases) {
    // GRUB moves everything by the same distance (multiboot_mbi2.c); the bytes stay as they are.
    const start = base + span.first - load.loadAddr;
    if (start % SIZE_2M !== 0)
      findings.add(`${name}: _start, when loaded at ${hex(base)},`, hex(start), "a multiple of 0x200000");
  }
  return `Multiboot2: ${loadText(load, needed.entry)}, bases tried ${bases.map(hex).join(", ")}`;
}

/** The lowest and the highest base that GRUB may choose, and the link address. */
function multiboot2Bases({
  loadAddr,
  segment,
  relocatable: { minAddr, maxAddr, align: asked },
}: Multiboot2Load): number[] {
  // GRUB takes alignment 0 as 1, and max_addr as a bound of the image's end.
  const align = Math.max(asked, 1);
  const lowest = roundUp(minAddr, align);
  const highest = Math.floor((maxAddr - (segment.end - segment.start)) / align) * align;
  if (highest < lowest) return [];
  const isUsable = loadAddr >= lowest && loadAddr <= highest && loadAddr % align === 0;
  return [...new Set([lowest, highest, ...(isUsable ? [loadAddr] : [])])];
}

/** ENTRY_ADDRESS_EFI32 and _EFI64. */
const EFI_ENTRIES: readonly number[] = [8, 9];

function checkEfiEntries({ file: { span }, findings }: Loaded, { tags }: Multiboot2Load): void {
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

/** A Linux boot protocol's magic, at its file offset: QEMU looks for it first (hw/i386/x86-common.c). */
const LINUX_MAGIC = { at: 0x202, value: 0x53726448 };

/** @returns a line of the report */
export function checkMultiboot1(loaded: Loaded, load: Multiboot1Load): string {
  const { file, needed, result, findings } = loaded;
  const { name } = MULTIBOOT1;
  const { sizeOfHeaders } = result.optional;
  checkMultibootLoad(loaded, load, name, multiboot1Place(sizeOfHeaders), file.span.first - sizeOfHeaders);
  findings.same(`${name}'s flags`, load.flags, MB1_AOUT_KLUDGE | 3);
  if (viewOf(result.bytes).getUint32(LINUX_MAGIC.at, true) === LINUX_MAGIC.value)
    findings.add(
      `the header area at offset ${hex(LINUX_MAGIC.at)}`,
      '"HdrS"',
      "anything else: QEMU would take the file for a Linux kernel",
    );
  return `Multiboot1: ${loadText(load, needed.entry)}`;
}

/**
 * What is common to both: the addresses, and every byte of the span and of .bss.
 * @param place file offset of the header
 * @param lowest what is loaded first: an address
 */
function checkMultibootLoad(
  { file: { span }, needed: { entry }, result, memory, findings }: Loaded,
  load: MultibootLoad,
  name: string,
  place: number,
  lowest: number,
): void {
  findings.same(`${name}'s place in the file`, load.headerAt, place);
  findings.same(`${name}'s load_addr`, load.loadAddr, lowest);
  findings.same(`${name}'s header_addr`, load.headerAddr, span.first + load.headerAt - result.optional.sizeOfHeaders);
  findings.same(`${name}'s load_end_addr`, load.loadEndAddr, span.dataEnd);
  findings.same(`${name}'s bss_end_addr`, load.bssEndAddr, span.mappedEnd);
  findings.same(`${name}'s entry address`, load.entryAddr, entry);
  if (entry < span.first || entry >= span.dataEnd)
    findings.add("the entry address", hex(entry), `in ${range(span.first, span.dataEnd)}`);
  const { start: from, end: to, bytes: copied } = load.segment;
  const at = (address: number): number => Math.max(0, address - from);
  let end = span.first;
  for (const { name: section, start, end: next, bytes } of memory) {
    if (start < span.first || start >= span.bssEnd) continue;
    if (!isZero(copied.subarray(at(end), at(start))))
      findings.add(`what ${name} loads at ${range(end, start)}`, "not zero", "zeros, for no section is there");
    const [first] = differences(bytes, copied.subarray(at(start), at(next)), next - start);
    if (first !== undefined) {
      const [offset] = first;
      findings.add(
        `what ${name} loads at ${hex(start + offset)} (${section} + ${hex(offset)})`,
        hex(copied[at(start + offset)] ?? 0),
        `${hex(bytes[offset] ?? 0)} as a PE loader has it`,
      );
    }
    end = next;
  }
  if (to < end) findings.add(`what ${name} loads or clears`, range(from, to), `all of ${range(span.first, end)}`);
}

function loadText({ offset, segment, loadAddr, loadEndAddr }: MultibootLoad, entry: number): string {
  return `file offset ${hex(offset)} to ${range(loadAddr, loadEndAddr)}, zeros to ${hex(segment.end)}, entry ${hex(entry)}`;
}
