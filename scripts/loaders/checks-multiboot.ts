// SPDX-License-Identifier: GPL-2.0-only
// What Multiboot loaders look for in a file, and what they do not look for although the image needs it. As in checks.ts
// each check is one question; most are asked of either version of the header.

import { Buffer } from "node:buffer";
import { hex, range } from "../cli/numbers.ts";
import type { HeaderTag } from "../judge/loads.ts";
import { differences } from "../judge/memory.ts";
import { byAddress, roundUp, sectionEnd, type Pe, type Section } from "../judge/read.ts";
import { viewOf } from "../tables/fields.ts";
import * as mb from "../tables/multiboot.ts";
import { CNT_UNINITIALIZED_DATA, PAGE_SIZE, SIZE_2M } from "../tables/pe.ts";
import { onlyIf } from "./checks.ts";
import type { Evidence, LoadAddresses, MultibootEvidence } from "./facts.ts";
import type { Check } from "./rules.ts";

/** A version of Multiboot. */
export interface Version {
  readonly name: string;
  readonly key: "multiboot1" | "multiboot2";
  /** Bytes of the file that loaders search. */
  readonly search: number;
  /** What to say where there is not even a magic. */
  readonly hint: string;
}

export const version1: Version = { name: "Multiboot1", key: "multiboot1", search: mb.MB1_SEARCH, hint: "" };
export const version2: Version = {
  name: "Multiboot2",
  key: "multiboot2",
  search: mb.MB2_SEARCH,
  hint: ": built without multiboot?",
};

/** A question about the header of either version. */
function headerCheck(found: (header: MultibootEvidence, image: Pe, version: Version) => ReturnType<Check>) {
  return (version: Version): Check =>
    (evidence) =>
      found(evidence[version.key], evidence.image, version);
}

// ---- the header

const window = ({ search }: Version): string => `in the first ${hex(search)} bytes of the file`;

export const noHeader = headerCheck(({ at, first }, _image, version) => {
  if (at >= 0) return undefined;
  const other = first < 0 ? version.hint : `: the magic at offset ${hex(first)} has a wrong checksum`;
  return `no ${version.name} header ${window(version)}${other}`;
});

/** Limine and FreeBSD take the first magic that they find. */
export const noMagic = headerCheck(
  ({ first }, _image, version) => first < 0 && `no ${version.name} magic ${window(version)}`,
);

export const firstMagicInvalid = headerCheck(
  ({ at, first }, _image, { name }) =>
    first >= 0 && first !== at && `the first ${name} magic, at offset ${hex(first)}, has a wrong checksum`,
);

export const badTags: Check = ({ multiboot2: { problem } }) => problem;

/** QEMU wants all 48 bytes of the specification's header inside the window. */
export function headerBehind(last: number): Check {
  return ({ multiboot1: { at } }) =>
    at > last && `the Multiboot1 header is at offset ${hex(at)}, needed at most ${hex(last)}`;
}

const withFlags = ({ multiboot1: { at, flags } }: Evidence): string =>
  `the Multiboot1 header at offset ${hex(at)} has flags ${hex(flags)}`;

export function flagsOutside(known: number, ignored = 0xffff0000): Check {
  return (evidence) => {
    const { at, flags } = evidence.multiboot1;
    const unknown = Number(BigInt(flags) & ~BigInt(known) & ~BigInt(ignored));
    return at >= 0 && unknown !== 0 && { why: withFlags(evidence), args: [flags] };
  };
}

export const asksForVideo: Check = (evidence) => {
  const { at, flags } = evidence.multiboot1;
  return at >= 0 && (flags & mb.MB1_VIDEO_MODE) !== 0 && `${withFlags(evidence)}, which ask for a video mode`;
};

/** "MZ" is no ELF, so nothing but the address fields can tell where to load it. */
export const noAddresses1: Check = ({ multiboot1: m }) =>
  m.at >= 0 &&
  m.addresses === undefined &&
  `no load addresses in the Multiboot1 header at offset ${hex(m.at)} (flags ${hex(m.flags)}) and no ELF`;

export const noAddresses2: Check = ({ multiboot2: m }) =>
  m.at >= 0 && m.problem === undefined && m.addresses === undefined && "no Multiboot2 address tag and no ELF";

const ELF_CLASS_AT = 4;
const ELF_MACHINE_AT = 18;
const ELF_X86_64 = 62;

/** GRUB tells an ELF's class by this byte of the file, and only then looks whether it is an ELF. */
export function whereElfClassLooks(valid: boolean, check: Check): Check {
  return onlyIf(({ image }) => [1, 2].includes(image.bytes[ELF_CLASS_AT] ?? 0) === valid, check);
}

/** QEMU looks at what would be an ELF's machine. */
export function whereMachineLooks64(is64: boolean, check: Check): Check {
  return onlyIf(({ image }) => (viewOf(image.bytes).getUint16(ELF_MACHINE_AT, true) === ELF_X86_64) === is64, check);
}

/** Where a Linux kernel has "HdrS": then the file is one to QEMU. */
const HDRS_AT = 0x202;
export const looksLikeLinux: Check = ({ image }) =>
  Buffer.from(image.bytes.subarray(HDRS_AT, HDRS_AT + 4)).toString("latin1") === "HdrS" &&
  `offset ${hex(HDRS_AT)} holds "HdrS": it is taken for a Linux kernel`;

// ---- address fields

/** A question about the address fields; where there are none, others have said so. */
function addressCheck(found: (a: LoadAddresses, image: Pe) => string | false) {
  return headerCheck(({ addresses }, image) => {
    const reason = addresses && found(addresses, image);
    return reason && `the header at offset ${hex(addresses?.at ?? 0)} has ${reason}`;
  });
}

export const loadBehindHeader = addressCheck(
  (a) => a.headerAddr < a.loadAddr && `header_addr ${hex(a.headerAddr)} below load_addr ${hex(a.loadAddr)}`,
);

export const offsetBelowFile = addressCheck(
  (a) =>
    a.headerAddr >= a.loadAddr &&
    a.offset < 0 &&
    `load_addr ${hex(a.loadAddr)}, which is ${hex(-a.offset)} bytes before the file begins`,
);

export const endBelowLoad = addressCheck(
  (a) =>
    a.loadEndAddr !== 0 &&
    a.loadEndAddr < a.loadAddr &&
    `load_end_addr ${hex(a.loadEndAddr)} below load_addr ${hex(a.loadAddr)}`,
);

/** GRUB does not notice that it reads less than it asked for. */
export const endBeyondFile = addressCheck(
  (a, { bytes: { length } }) =>
    a.headerAddr >= a.loadAddr &&
    a.offset + a.size > length &&
    `load_end_addr ${hex(a.loadEndAddr)}, which is at offset ${hex(a.offset + a.size)}, the file ends at ${hex(length)}`,
);

/** iPXE and old Limine compare with the file's length, without the offset. */
export const moreThanFile = addressCheck(
  (a, { bytes: { length } }) =>
    a.size > length &&
    `load_end_addr ${hex(a.loadEndAddr)}: that makes ${hex(a.size)} bytes, the file has ${hex(length)}`,
);

export const bssBelowEnd = addressCheck(
  (a) =>
    a.bssEndAddr !== 0 &&
    a.bssEndAddr < a.end &&
    `bss_end_addr ${hex(a.bssEndAddr)} below the end of what is loaded, ${hex(a.end)}`,
);

/** syslinux counts .bss from load_end_addr, so that must be there. */
export const bssWithoutEnd = addressCheck(
  (a) => a.loadEndAddr === 0 && a.bssEndAddr !== 0 && `load_end_addr 0 and bss_end_addr ${hex(a.bssEndAddr)}`,
);

// kexec's own: 0 has no meaning there.
export const loadNotPageAligned = addressCheck(
  (a) => a.loadAddr % PAGE_SIZE !== 0 && `load_addr ${hex(a.loadAddr)}, needed a multiple of ${hex(PAGE_SIZE)}`,
);
export const endZeroOrBelow = addressCheck(
  (a) =>
    a.loadEndAddr < a.loadAddr && `load_end_addr ${hex(a.loadEndAddr)}, needed at least load_addr ${hex(a.loadAddr)}`,
);
export const bssZeroOrBelow = addressCheck(
  (a) =>
    a.bssEndAddr < a.loadEndAddr &&
    `bss_end_addr ${hex(a.bssEndAddr)}, needed at least load_end_addr ${hex(a.loadEndAddr)}`,
);

export const entryOutsideLoad = headerCheck(
  ({ addresses: a, entryAddr: entry }) =>
    a !== undefined &&
    entry !== undefined &&
    a.end >= a.loadAddr &&
    (entry < a.loadAddr || entry >= a.end) &&
    `the entry address is ${hex(entry)}, needed in ${range(a.loadAddr, a.end)}, what is loaded`,
);

/** What happens to any image that comes so far. */
export function onceLoaded(version: Version, why: string): Check {
  return headerCheck(({ addresses }) => addresses && why)(version);
}

// ---- Multiboot2 tags

const required = ({ flags }: HeaderTag): boolean => (flags & mb.MB2_TAG_OPTIONAL) === 0;
const TAG_EFI_BS = 7;
const TAG_EFI64 = 9;

export function requiredTagBesides(...known: readonly number[]): Check {
  return ({ multiboot2: { tags } }) => {
    const tag = tags.find((t) => required(t) && !known.includes(t.type));
    if (tag === undefined) return undefined;
    const name = mb.MB2_TAG_NAMES[tag.type] ?? `type ${tag.type}`;
    return { why: `the Multiboot2 header has the tag ${name}, and not as an optional one`, args: [tag.type] };
  };
}

export function requestBesides(...known: readonly number[]): Check {
  return ({ multiboot2: { tags } }) => {
    const unknown = tags
      .filter((tag) => tag.type === mb.MB2_INFORMATION_REQUEST && required(tag))
      .flatMap(requests)
      .find((type) => !known.includes(type));
    const why = "the Multiboot2 header requests information that the loader does not have";
    return unknown !== undefined && { why, args: [unknown] };
  };
}

function requests({ bytes }: HeaderTag): number[] {
  const view = viewOf(bytes);
  const length = Math.floor((bytes.length - mb.MB2_TAG.size) / 4);
  return Array.from({ length }, (_, i) => view.getUint32(mb.MB2_TAG.size + 4 * i, true));
}

/** BIOS builds have no other entry; EFI builds take the EFI64 one. */
export const addressWithoutEntry: Check = ({ multiboot2: { addresses, entryAddr } }) =>
  addresses !== undefined &&
  entryAddr === undefined &&
  "the Multiboot2 header has an address tag and no entry address tag";

export const efi64BeforeEntry: Check = ({ multiboot2: { tags } }) => {
  const efi64 = tags.findIndex((t) => t.type === TAG_EFI64);
  const entry = tags.findIndex((t) => t.type === mb.MB2_ENTRY_ADDRESS);
  return efi64 >= 0 && (entry < 0 || entry > efi64) && "no entry address tag in front of the EFI64 entry tag";
};

function noTag(type: number, why: string): Check {
  return ({ multiboot2: { at, problem, tags } }) =>
    at >= 0 && problem === undefined && !tags.some((t) => t.type === type) && why;
}

export const noBootServicesTag = noTag(TAG_EFI_BS, "the Multiboot2 header has no EFI boot services tag");
export const noEfi64Tag = noTag(TAG_EFI64, "the Multiboot2 header has no EFI64 entry tag");
export const noEfi64TagForXen = noTag(
  TAG_EFI64,
  "the Multiboot2 header has no EFI64 entry tag: the 32-bit entry is called in 64-bit mode",
);

export const limitsTooTight: Check = ({ multiboot2: { addresses: a, relocatable: r } }) => {
  if (a === undefined || r === undefined) return undefined;
  const size = a.bssEndAddr === 0 ? a.size : a.bssEndAddr - a.loadAddr;
  // Below load_addr it is a size of nearly 2^64.
  if (size >= 0 && size <= r.maxAddr && r.minAddr <= r.maxAddr - size) return undefined;
  const needed = size < 0 ? `bss_end_addr above load_addr ${hex(a.loadAddr)}` : `room for ${hex(size)} bytes`;
  return `the relocatable tag has min_addr ${hex(r.minAddr)} and max_addr ${hex(r.maxAddr)}, needed ${needed}`;
};

// ---- what Xen needs of the memory that it finds itself in

const bssOf = ({ sections }: Pe): Section | undefined => sections.find((s) => s.name === ".bss");

/** What Multiboot has to load: the sections below .bss, in RVA order, up to the last that is initialised. */
export function sectionsToLoad(image: Pe): Section[] {
  const bssStart = bssOf(image)?.header.virtualAddress ?? 0;
  const below = byAddress(image.sections).filter((s) => s.header.virtualAddress < bssStart);
  return below.slice(0, below.findLastIndex((s) => (s.header.characteristics & CNT_UNINITIALIZED_DATA) === 0) + 1);
}

/**
 * Whether Multiboot puts the same bytes at the same addresses as firmware would, up to .bss. Loaders cannot know, and
 * nothing is printed when they do not.
 */
export const memoryDiffers = headerCheck(({ addresses: a }, image) => {
  if (a === undefined) return undefined;
  if (a.offset < 0 || a.size < 0 || a.offset + a.size > image.bytes.length) return undefined; // others say so
  for (const section of sectionsToLoad(image)) {
    const { virtualAddress: start, virtualSize } = section.header;
    const end = sectionEnd(section);
    if (start < a.loadAddr || end > a.end)
      return `section ${section.name} at ${range(start, end)} is not in what is loaded, ${range(a.loadAddr, a.end)}`;
    const from = a.offset + start - a.loadAddr;
    const [difference] = differences(image.bytes.subarray(from, from + virtualSize), section.data, virtualSize);
    if (difference === undefined) continue;
    const where = hex(start + difference[0]);
    return `what is loaded at ${where} is not section ${section.name}'s data: the file is not linear`;
  }
  return undefined;
});

export const bssNotCovered = headerCheck(({ addresses: a }, image) => {
  const bss = bssOf(image);
  if (a === undefined || bss === undefined || a.bssEndAddr >= sectionEnd(bss)) return undefined;
  if (a.bssEndAddr !== 0 && a.bssEndAddr < a.loadEndAddr) return undefined; // others say so
  const needed = hex(sectionEnd(bss));
  return `bss_end_addr is ${hex(a.bssEndAddr)}, needed at least ${needed}, the end of .bss: modules would be put into it`;
});

/** Xen maps whole 2 MiB pages, and gives what is behind _end to its allocator. */
export const bssNotRounded = headerCheck(({ addresses: a }, image) => {
  const bss = bssOf(image);
  if (a === undefined || bss === undefined || a.bssEndAddr < sectionEnd(bss)) return undefined;
  const needed = roundUp(sectionEnd(bss), SIZE_2M);
  return (
    a.bssEndAddr < needed &&
    `bss_end_addr is ${hex(a.bssEndAddr)}, needed ${hex(needed)}: Xen maps and uses memory up to the next 2 MiB`
  );
});

/** `_start`, Xen's first byte, is the lowest section's; a relocatable image is moved by multiples of `align`. */
export const startUnaligned = headerCheck(({ addresses: a, relocatable }, image) => {
  const first = byAddress(image.sections)[0]?.header.virtualAddress;
  if (a === undefined || first === undefined) return undefined;
  if (relocatable === undefined)
    return first % SIZE_2M !== 0 && `_start is loaded at ${hex(first)}, needed a multiple of ${hex(SIZE_2M)}`;
  const { align } = relocatable;
  if (align !== 0 && align % SIZE_2M === 0 && (first - a.loadAddr) % SIZE_2M === 0) return undefined;
  const where = `load_addr is ${hex(a.loadAddr)}, aligned to ${hex(align)} where it is loaded`;
  return `${where}, and _start ${hex(first)}: needed _start on a multiple of ${hex(SIZE_2M)}`;
});
