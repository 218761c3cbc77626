// SPDX-License-Identifier: GPL-2.0-only
// What Multiboot loaders look for in a file, and what they do not look for although the image needs it. As in
// loader-checks.ts each check is one question.

import { Buffer } from "node:buffer";
import { hex, range } from "../cli/numbers.ts";
import { differences } from "../judge/memory.ts";
import { loadOffset, loadSize } from "./facts.ts";
import type { Evidence, LoadAddresses } from "./facts.ts";
import type { Check } from "./rules.ts";
import { byAddress, roundUp, sectionEnd } from "../pe/image.ts";
import { viewOf } from "../tables/fields.ts";
import {
  MB1_SEARCH,
  MB1_VIDEO_MODE,
  MB2_ENTRY_ADDRESS,
  MB2_INFORMATION_REQUEST,
  MB2_SEARCH,
  MB2_TAG,
  MB2_TAG_NAMES,
  MB2_TAG_OPTIONAL,
} from "../tables/multiboot.ts";
import { PAGE_SIZE, SIZE_2M } from "../tables/pe.ts";
import type { Multiboot2Tag } from "../xen/multiboot.ts";

/** The two versions of the address fields; undefined where there are none. */
export type Version = (evidence: Evidence) => {
  readonly addresses: LoadAddresses | undefined;
  readonly entryAddr: number | undefined;
};
export const version1: Version = ({ multiboot1: m }) => m;
export const version2: Version = ({ multiboot2: m }) => m;

/** A check of the address fields; without them others have said so. */
function addressCheck(version: Version, found: (a: LoadAddresses, evidence: Evidence) => string | undefined): Check {
  return (evidence) => {
    const { addresses } = version(evidence);
    const reason = addresses === undefined ? undefined : found(addresses, evidence);
    return reason === undefined ? undefined : `the header at offset ${hex(addresses?.at ?? 0)} has ${reason}`;
  };
}

// ---- the header

export const noMultiboot1: Check = ({ multiboot1: m }) => {
  if (m.at >= 0) return undefined;
  const other = m.first < 0 ? "" : `: the magic at offset ${hex(m.first)} has a wrong checksum`;
  return `no Multiboot1 header in the first ${hex(MB1_SEARCH)} bytes of the file${other}`;
};

export const noMultiboot2: Check = ({ multiboot2: m }) => {
  if (m.at >= 0) return undefined;
  const other =
    m.first < 0 ? ": built without multiboot?" : `: the magic at offset ${hex(m.first)} has a wrong checksum`;
  return `no Multiboot2 header in the first ${hex(MB2_SEARCH)} bytes of the file${other}`;
};

/** Limine and FreeBSD take the first magic that they find. */
export const noMagic1: Check = ({ multiboot1: m }) =>
  m.first >= 0 ? undefined : `no Multiboot1 magic in the first ${hex(MB1_SEARCH)} bytes of the file`;
export const noMagic2: Check = ({ multiboot2: m }) =>
  m.first >= 0 ? undefined : `no Multiboot2 magic in the first ${hex(MB2_SEARCH)} bytes of the file`;
export const firstMagic1Invalid: Check = ({ multiboot1: m }) =>
  m.first < 0 || m.first === m.at
    ? undefined
    : `the first Multiboot1 magic, at offset ${hex(m.first)}, has a wrong checksum`;
export const firstMagic2Invalid: Check = ({ multiboot2: m }) =>
  m.first < 0 || m.first === m.at
    ? undefined
    : `the first Multiboot2 magic, at offset ${hex(m.first)}, has a wrong checksum`;

export const badTags: Check = ({ multiboot2: { problem } }) => problem;

/** QEMU wants all 48 bytes of the specification's header inside the window. */
export function headerBehind(last: number): Check {
  return ({ multiboot1: { at } }) =>
    at <= last ? undefined : `the Multiboot1 header is at offset ${hex(at)}, needed at most ${hex(last)}`;
}

export function flagsOutside(known: number, ignored = 0xffff0000): Check {
  return ({ multiboot1: { at, flags } }) => {
    const bad = Number(BigInt(flags) & ~BigInt(known) & ~BigInt(ignored));
    return at < 0 || bad === 0
      ? undefined
      : { why: `the Multiboot1 header at offset ${hex(at)} has flags ${hex(flags)}`, args: [flags] };
  };
}

export const asksForVideo: Check = ({ multiboot1: { at, flags } }) =>
  at < 0 || (flags & MB1_VIDEO_MODE) === 0
    ? undefined
    : `the Multiboot1 header at offset ${hex(at)} has flags ${hex(flags)}, which ask for a video mode`;

/** "MZ" is no ELF, so nothing but the address fields can tell where to load it. */
export const noAddresses1: Check = ({ multiboot1: m }) =>
  m.at < 0 || m.addresses !== undefined
    ? undefined
    : `no load addresses in the Multiboot1 header at offset ${hex(m.at)} (flags ${hex(m.flags)}) and no ELF`;

export const noAddresses2: Check = ({ multiboot2: m }) =>
  m.at < 0 || m.problem !== undefined || m.addresses !== undefined ? undefined : "no Multiboot2 address tag and no ELF";

const ELF_CLASS_AT = 4;
const ELF_MACHINE_AT = 18;

/** GRUB tells an ELF's class by this byte of the file, and only then looks whether it is an ELF. */
export function elfClassLooks(valid: boolean): (check: Check) => Check {
  return (check) => (evidence) => {
    const elfClass = evidence.bytes.subarray(ELF_CLASS_AT, ELF_CLASS_AT + 1)[0];
    return (elfClass === 1 || elfClass === 2) === valid ? check(evidence) : undefined;
  };
}

/** QEMU looks at what would be an ELF's machine. */
export function machineLooks64(is64: boolean): (check: Check) => Check {
  return (check) => (evidence) => {
    const machine = viewOf(evidence.bytes.subarray(ELF_MACHINE_AT, ELF_MACHINE_AT + 2)).getUint16(0, true);
    return (machine === 62) === is64 ? check(evidence) : undefined;
  };
}

/** Where a Linux kernel has "HdrS": then the file is one to QEMU. */
const HDRS_AT = 0x202;
export const looksLikeLinux: Check = ({ bytes }) =>
  bytes.length >= HDRS_AT + 4 && Buffer.from(bytes.subarray(HDRS_AT, HDRS_AT + 4)).toString("latin1") === "HdrS"
    ? `offset ${hex(HDRS_AT)} holds "HdrS": it is taken for a Linux kernel`
    : undefined;

// ---- address fields

export const loadBehindHeader = (version: Version): Check =>
  addressCheck(version, (a) =>
    a.headerAddr >= a.loadAddr ? undefined : `header_addr ${hex(a.headerAddr)} below load_addr ${hex(a.loadAddr)}`,
  );

export const offsetBelowFile = (version: Version): Check =>
  addressCheck(version, (a) =>
    a.headerAddr < a.loadAddr || loadOffset(a) >= 0
      ? undefined
      : `load_addr ${hex(a.loadAddr)}, which is ${hex(-loadOffset(a))} bytes before the file begins`,
  );

export const endBelowLoad = (version: Version): Check =>
  addressCheck(version, (a) =>
    a.loadEndAddr === 0 || a.loadEndAddr >= a.loadAddr
      ? undefined
      : `load_end_addr ${hex(a.loadEndAddr)} below load_addr ${hex(a.loadAddr)}`,
  );

/** GRUB does not notice that it reads less than it asked for. */
export const endBeyondFile = (version: Version): Check =>
  addressCheck(version, (a, { bytes }) => {
    const end = loadOffset(a) + loadSize(a, bytes.length);
    return a.headerAddr < a.loadAddr || end <= bytes.length
      ? undefined
      : `load_end_addr ${hex(a.loadEndAddr)}, which is at offset ${hex(end)}, the file ends at ${hex(bytes.length)}`;
  });

/** iPXE and old Limine compare with the file's length, without the offset. */
export const moreThanFile = (version: Version): Check =>
  addressCheck(version, (a, { bytes }) => {
    const size = loadSize(a, bytes.length);
    return size <= bytes.length
      ? undefined
      : `load_end_addr ${hex(a.loadEndAddr)}: that makes ${hex(size)} bytes, the file has ${hex(bytes.length)}`;
  });

export const bssBelowEnd = (version: Version): Check =>
  addressCheck(version, (a, { bytes }) => {
    const end = a.loadAddr + loadSize(a, bytes.length);
    return a.bssEndAddr === 0 || a.bssEndAddr >= end
      ? undefined
      : `bss_end_addr ${hex(a.bssEndAddr)} below the end of what is loaded, ${hex(end)}`;
  });

/** syslinux counts .bss from load_end_addr, so that must be there. */
export const bssWithoutEnd = (version: Version): Check =>
  addressCheck(version, (a) =>
    a.loadEndAddr !== 0 || a.bssEndAddr === 0 ? undefined : `load_end_addr 0 and bss_end_addr ${hex(a.bssEndAddr)}`,
  );

// kexec's own: 0 has no meaning there.
export const loadNotPageAligned = addressCheck(version1, (a) =>
  a.loadAddr % PAGE_SIZE === 0 ? undefined : `load_addr ${hex(a.loadAddr)}, needed a multiple of ${hex(PAGE_SIZE)}`,
);
export const endZeroOrBelow = addressCheck(version1, (a) =>
  a.loadEndAddr >= a.loadAddr
    ? undefined
    : `load_end_addr ${hex(a.loadEndAddr)}, needed at least load_addr ${hex(a.loadAddr)}`,
);
export const bssZeroOrBelow = addressCheck(version1, (a) =>
  a.bssEndAddr >= a.loadEndAddr
    ? undefined
    : `bss_end_addr ${hex(a.bssEndAddr)}, needed at least load_end_addr ${hex(a.loadEndAddr)}`,
);

export const entryOutsideLoad =
  (version: Version): Check =>
  (evidence) => {
    const { addresses: a, entryAddr: entry } = version(evidence);
    if (a === undefined || entry === undefined) return undefined;
    const end = a.loadAddr + loadSize(a, evidence.bytes.length);
    return end < a.loadAddr || (entry >= a.loadAddr && entry < end)
      ? undefined
      : `the entry address is ${hex(entry)}, needed in ${range(a.loadAddr, end)}, what is loaded`;
  };

// ---- Multiboot2 tags

function anyTag(found: (tag: Multiboot2Tag) => number | undefined, why: (tag: Multiboot2Tag) => string): Check {
  return ({ multiboot2: { tags } }) => {
    for (const tag of tags) {
      const arg = found(tag);
      if (arg !== undefined) return { why: why(tag), args: [arg] };
    }
    return undefined;
  };
}

const tagName = ({ type }: Multiboot2Tag): string => MB2_TAG_NAMES[type] ?? `type ${type}`;
const required = ({ flags }: Multiboot2Tag): boolean => (flags & MB2_TAG_OPTIONAL) === 0;
export const TAG_EFI_BS = 7;
export const TAG_EFI64 = 9;

export const requiredTagBesides = (...known: readonly number[]): Check =>
  anyTag(
    (tag) => (required(tag) && !known.includes(tag.type) ? tag.type : undefined),
    (tag) => `the Multiboot2 header has the tag ${tagName(tag)}, and not as an optional one`,
  );

export const requestBesides = (...known: readonly number[]): Check =>
  anyTag(
    (tag) =>
      tag.type === MB2_INFORMATION_REQUEST && required(tag)
        ? requests(tag).find((type) => !known.includes(type))
        : undefined,
    () => "the Multiboot2 header requests information that the loader does not have",
  );

function requests({ bytes }: Multiboot2Tag): number[] {
  const view = viewOf(bytes);
  return Array.from({ length: Math.floor((bytes.length - MB2_TAG.size) / 4) }, (_, i) =>
    view.getUint32(MB2_TAG.size + 4 * i, true),
  );
}

/** BIOS builds have no other entry; EFI builds take the EFI64 one. */
export const addressWithoutEntry: Check = ({ multiboot2: { addresses, entryAddr } }) =>
  addresses === undefined || entryAddr !== undefined
    ? undefined
    : "the Multiboot2 header has an address tag and no entry address tag";

export const efi64BeforeEntry: Check = ({ multiboot2: { tags } }) => {
  const efi64 = tags.findIndex((t) => t.type === TAG_EFI64);
  const entry = tags.findIndex((t) => t.type === MB2_ENTRY_ADDRESS);
  return efi64 < 0 || (entry >= 0 && entry < efi64)
    ? undefined
    : "no entry address tag in front of the EFI64 entry tag";
};

export const noTag =
  (type: number, why: string): Check =>
  ({ multiboot2: { at, problem, tags } }) =>
    at < 0 || problem !== undefined || tags.some((t) => t.type === type) ? undefined : why;

export const limitsTooTight: Check = ({ multiboot2: { addresses: a, relocatable: r }, bytes }) => {
  if (a === undefined || r === undefined) return undefined;
  const size = a.bssEndAddr === 0 ? loadSize(a, bytes.length) : a.bssEndAddr - a.loadAddr;
  // Below load_addr it is a size of nearly 2^64.
  if (size >= 0 && size <= r.maxAddr && r.minAddr <= r.maxAddr - size) return undefined;
  const needed = size < 0 ? `bss_end_addr above load_addr ${hex(a.loadAddr)}` : `room for ${hex(size)} bytes`;
  return `the relocatable tag has min_addr ${hex(r.minAddr)} and max_addr ${hex(r.maxAddr)}, needed ${needed}`;
};

// ---- what Xen needs of the memory that it finds itself in

/**
 * Whether Multiboot puts the same bytes at the same addresses as firmware would, up to .bss. Loaders cannot know, and
 * nothing is printed when they do not.
 */
export const memoryDiffers =
  (version: Version): Check =>
  (evidence) => {
    const { addresses: a } = version(evidence);
    const { bytes, span } = evidence;
    if (a === undefined || span === undefined) return undefined;
    const offset = loadOffset(a);
    const size = loadSize(a, bytes.length);
    if (offset < 0 || size < 0 || offset + size > bytes.length) return undefined; // others say so
    for (const section of span.sections) {
      const { virtualAddress, virtualSize } = section.header;
      const end = sectionEnd(section);
      if (virtualAddress < a.loadAddr || end > a.loadAddr + size) {
        return (
          `section ${section.name} at ${range(virtualAddress, end)} is not in what is loaded, ` +
          `${range(a.loadAddr, a.loadAddr + size)}`
        );
      }
      const from = offset + virtualAddress - a.loadAddr;
      const [difference] = differences(bytes.subarray(from, from + virtualSize), section.data, virtualSize);
      if (difference !== undefined) {
        return (
          `what is loaded at ` +
          `${hex(virtualAddress + difference[0])} is not section ${section.name}'s data: the file is not linear`
        );
      }
    }
    return undefined;
  };

export const bssNotCovered =
  (version: Version): Check =>
  (evidence) => {
    const { addresses: a } = version(evidence);
    const bss = evidence.image.sections.find((s) => s.name === ".bss");
    if (a === undefined || bss === undefined || a.bssEndAddr >= sectionEnd(bss)) return undefined;
    if (a.bssEndAddr !== 0 && a.bssEndAddr < a.loadEndAddr) return undefined; // others say so
    return (
      `bss_end_addr is ${hex(a.bssEndAddr)}, needed at least ` +
      `${hex(sectionEnd(bss))}, the end of .bss: modules would be put into it`
    );
  };

/** Xen maps whole 2 MiB pages, and gives what is behind _end to its allocator. */
export const bssNotRounded =
  (version: Version): Check =>
  (evidence) => {
    const { addresses: a } = version(evidence);
    const bss = evidence.image.sections.find((s) => s.name === ".bss");
    const needed = bss === undefined ? 0 : roundUp(sectionEnd(bss), SIZE_2M);
    if (a === undefined || bss === undefined || a.bssEndAddr < sectionEnd(bss) || a.bssEndAddr >= needed) {
      return undefined;
    }
    return `bss_end_addr is ${hex(a.bssEndAddr)}, needed ${hex(needed)}: Xen maps and uses memory up to the next 2 MiB`;
  };

/** `_start`, Xen's first byte, is the lowest section's; a relocatable image is moved by multiples of `align`. */
export const startUnaligned =
  (version: Version): Check =>
  (evidence) => {
    const { addresses: a } = version(evidence);
    const first = byAddress(evidence.image.sections)[0]?.header.virtualAddress;
    if (a === undefined || first === undefined) return undefined;
    const relocatable = version === version2 ? evidence.multiboot2.relocatable : undefined;
    if (relocatable === undefined) {
      return first % SIZE_2M === 0
        ? undefined
        : `_start is loaded at ${hex(first)}, needed a multiple of ${hex(SIZE_2M)}`;
    }
    const { align } = relocatable;
    if (align !== 0 && align % SIZE_2M === 0 && (first - a.loadAddr) % SIZE_2M === 0) return undefined;
    const where = `load_addr is ${hex(a.loadAddr)}, aligned to ${hex(align)} where it is loaded, and _start ${hex(
      first,
    )}`;
    return `${where}: needed _start on a multiple of ${hex(SIZE_2M)}`;
  };
