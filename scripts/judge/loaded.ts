// SPDX-License-Identifier: GPL-2.0-only
// verify's view of memory: what each kind of loader makes of the result, held against the original's memory with the
// changes that expected.ts has worked out. What is different beyond them is a violation, wherever it is.

import { hex, range } from "../cli/numbers.ts";
import { viewOf } from "../tables/fields.ts";
import { MB1_AOUT_KLUDGE, MB2_ADDRESS, MB2_ENTRY_ADDRESS } from "../tables/multiboot.ts";
import { MEM_DISCARDABLE, MEM_READ, SIZE_2M } from "../tables/pe.ts";
import { isVoid, type ExpectedFile, type ExpectedMemory } from "./expected.ts";
import type { Pair } from "./file.ts";
import type { Findings } from "./findings.ts";
import { MULTIBOOT1, MULTIBOOT2, loadByShim, relocationTable, tagName } from "./loads.ts";
import type { Multiboot1Load, Multiboot2Load, MultibootLoad } from "./loads.ts";
import { LoadedMemory, differences, isZero, segmentAt, type Fixup, type Fixups, type Memory } from "./memory.ts";
import { multiboot1Place } from "./multiboot.ts";
import { hasFlags, roundUp, type Pe } from "./read.ts";

/** Everything that the checks of memory are about. */
export interface Loaded {
  readonly file: ExpectedFile;
  readonly needed: ExpectedMemory;
  readonly result: Pe;
  readonly pairs: readonly Pair[];
  /** The result as firmware loads it, and its base relocations. */
  readonly memory: Memory;
  readonly fixups: Fixups;
  /** Undefined where the result has no such header, or a wrong one, which is among the findings. */
  readonly multiboot1: Multiboot1Load | undefined;
  readonly multiboot2: Multiboot2Load | undefined;
  readonly findings: Findings;
}

// ---- the same memory for PE loaders

/** At each base, section by section. Where they are and how large they are is in the headers, which checkFile compares. */
export function checkBases(loaded: Loaded): void {
  const { file, needed, result, memory, fixups, findings } = loaded;
  const { imageBase } = file.original.optional;
  const wanted = new LoadedMemory(needed.memory, file.original.bytes.length);
  const found = new LoadedMemory(memory, result.bytes.length);
  const before = findings.count;
  let last = imageBase;
  for (const base of usableBases(result)) {
    findings.attempt("the original", () => {
      wanted.relocate(needed.fixups, base - last);
      wanted.patch(needed.patches);
    });
    findings.attempt("the result", () => found.relocate(fixups, base - last));
    // Memory that could not be relocated as a whole has nothing to say.
    if (findings.count !== before) return;
    last = base;
    compareMemory(loaded, wanted.segments, found.segments, base === imageBase ? "" : ` at base ${hex(base)}`);
    // The other bases would say the same again, for every relocated place.
    if (findings.count !== before) return;
  }
}

/** ImageBase, where nothing is relocated, and the lowest and the highest base that Xen runs at: 2 MiB-aligned, below 4 GiB (efi-boot.h:efi_arch_load_addr_check). */
export function usableBases({ optional }: Pe): bigint[] {
  const highest = Math.floor((2 ** 32 - optional.sizeOfImage) / SIZE_2M) * SIZE_2M;
  const bases = highest < SIZE_2M ? [] : [SIZE_2M, highest];
  return [...new Set([optional.imageBase, ...bases.map(BigInt)])];
}

/** Differences of one section that are named; a section that is wrong altogether needs no more. */
const MOST_PER_SECTION = 8;

/**
 * Holds the result's memory against what it must be.
 * @param where the base in words, for messages; "" for the first, where nothing is relocated
 */
function compareMemory(
  { file: { original }, needed: { patches }, result, pairs, findings }: Loaded,
  wanted: Memory,
  found: Memory,
  where: string,
): void {
  for (const { needed, found: section } of pairs) {
    const { virtualAddress: start, virtualSize: size } = needed.header;
    const is = size === 0 ? undefined : segmentAt(found, section.header.virtualAddress)?.bytes;
    if (is === undefined) continue;
    const must =
      needed.from.header.virtualSize === 0
        ? is.subarray(0, 0)
        : (segmentAt(wanted, needed.before)?.bytes ?? is.subarray(0, 0));
    // What base relocations do not change is still what the file has, and was compared at the first base.
    if (where !== "" && must.buffer === original.bytes.buffer && is.buffer === result.bytes.buffer) continue;
    let [runs, unnamed] = [0, 0];
    for (const [from, to] of differences(must, is, size)) {
      if (++runs > MOST_PER_SECTION) {
        unnamed += to - from;
        continue;
      }
      const rva = needed.before + from;
      const patch = patches.find((p) => rva >= p.start && rva < p.start + p.bytes.length);
      const place = `section ${needed.name} + ${hex(from)}${patch === undefined ? "" : `, in ${patch.cause}`}`;
      findings.add(`memory at RVA ${hex(start + from)} (${place})${where}`, dump(is, from, to), dump(must, from, to));
    }
    if (unnamed !== 0)
      findings.add(
        `memory of section ${needed.name} at ${range(start, start + size)}${where}`,
        `different in more places, in all ${runs} (${unnamed} bytes or more)`,
        "no difference",
      );
  }
}

function dump(bytes: Uint8Array, start: number, end: number): string {
  const shown = Array.from({ length: Math.min(end - start, 8) }, (_, i) =>
    (bytes[start + i] ?? 0).toString(16).padStart(2, "0"),
  );
  return `${shown.join(" ")}${end - start > 8 ? " …" : ""}`;
}

// ---- the same base relocations

/** Entry by entry, as a loader's walk over the result's own table gives them. */
export function checkFixups({ file: { span }, needed, fixups, findings }: Loaded): void {
  const text = ({ type, target }: Fixup): string => `type ${type} for RVA ${hex(target)}`;
  findings.same("the number of base relocations, padding included,", fixups.length, needed.fixups.length);
  const found = fixups[Symbol.iterator]();
  let number = 0;
  for (const wanted of needed.fixups) {
    const actual: Fixup = found.next().value ?? wanted;
    const where = `base relocation number ${number++}`;
    if (isVoid(wanted, needed.header)) {
      if (actual.width !== 0)
        findings.add(where, text(actual), "none (type 0): its target is in the Multiboot2 header");
    } else if (actual.width !== wanted.width || actual.target !== wanted.target)
      findings.add(where, text(actual), text(wanted));
    else if (actual.width !== 0 && (actual.target < span.first || actual.target + actual.width > span.dataEnd))
      findings.add(where, text(actual), `in ${range(span.first, span.dataEnd)}, which Multiboot loads`);
  }
}

// ---- shim

/**
 * Xen reads its relocation table in memory, which shim must have loaded; and shim relocates by section name.
 * @throws ImageError when shim refuses the result
 */
export function checkShim({ file: { span }, result, pairs, memory, findings }: Loaded): void {
  const shim = loadByShim(result);
  const loaded = new Map(shim.memory.map((segment) => [segment.start, segment]));
  for (const { needed, found } of pairs) {
    const { virtualAddress: rva, virtualSize, characteristics } = found.header;
    if (virtualSize === 0 || loaded.get(rva)?.name === `section ${found.name}`) continue;
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
}

// ---- the same memory for Multiboot loaders

export function checkMultiboot2(loaded: Loaded, load: Multiboot2Load): void {
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
}

/** The lowest and the highest base that GRUB may choose, and the link address. */
export function multiboot2Bases({
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

export function checkMultiboot1(loaded: Loaded, load: Multiboot1Load): void {
  const { file, result, findings } = loaded;
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
