// SPDX-License-Identifier: GPL-2.0-only
// The names that inspect prints for numbers: flags, types and kinds, spelled as in the specifications, without the
// prefixes that say the same on every line (IMAGE_SCN_, IMAGE_FILE_, …).

import { hex } from "../cli/numbers.ts";
import { hasFlags, type Section } from "../pe/image.ts";
import * as pe from "../tables/pe.ts";

/** [bit, name] in ascending order. */
type FlagNames = readonly (readonly [flag: number, name: string])[];

/** PE specification, "Characteristics" of the COFF file header. */
export const FILE_FLAGS: FlagNames = [
  [0x0001, "RELOCS_STRIPPED"],
  [0x0002, "EXECUTABLE_IMAGE"],
  [0x0004, "LINE_NUMS_STRIPPED"],
  [0x0008, "LOCAL_SYMS_STRIPPED"],
  [0x0010, "AGGRESSIVE_WS_TRIM"],
  [0x0020, "LARGE_ADDRESS_AWARE"],
  [0x0080, "BYTES_REVERSED_LO"],
  [0x0100, "32BIT_MACHINE"],
  [0x0200, "DEBUG_STRIPPED"],
  [0x0400, "REMOVABLE_RUN_FROM_SWAP"],
  [0x0800, "NET_RUN_FROM_SWAP"],
  [0x1000, "SYSTEM"],
  [0x2000, "DLL"],
  [0x4000, "UP_SYSTEM_ONLY"],
  [0x8000, "BYTES_REVERSED_HI"],
];

/** PE specification, "DLL Characteristics". */
export const DLL_FLAGS: FlagNames = [
  [0x0020, "HIGH_ENTROPY_VA"],
  [0x0040, "DYNAMIC_BASE"],
  [0x0080, "FORCE_INTEGRITY"],
  [0x0100, "NX_COMPAT"],
  [0x0200, "NO_ISOLATION"],
  [0x0400, "NO_SEH"],
  [0x0800, "NO_BIND"],
  [0x1000, "APPCONTAINER"],
  [0x2000, "WDM_DRIVER"],
  [0x4000, "GUARD_CF"],
  [0x8000, "TERMINAL_SERVER_AWARE"],
];

/** PE specification, "Section Flags", without MEM_READ, MEM_WRITE and MEM_EXECUTE (shown as rwx) and the alignment bits. */
const SECTION_FLAGS: FlagNames = [
  [0x00000008, "NO_PAD"],
  [0x00000020, "CODE"],
  [0x00000040, "INITIALIZED_DATA"],
  [0x00000080, "UNINITIALIZED_DATA"],
  [0x00000100, "LNK_OTHER"],
  [0x00000200, "LNK_INFO"],
  [0x00000800, "LNK_REMOVE"],
  [0x00001000, "LNK_COMDAT"],
  [0x00008000, "GPREL"],
  [0x01000000, "LNK_NRELOC_OVFL"],
  [0x02000000, "DISCARDABLE"],
  [0x04000000, "NOT_CACHED"],
  [0x08000000, "NOT_PAGED"],
  [0x10000000, "SHARED"],
];

/** PE specification, "Windows Subsystem". */
export const SUBSYSTEMS: Readonly<Record<number, string>> = {
  1: "native",
  2: "Windows GUI",
  3: "Windows CUI",
  10: "EFI application",
  11: "EFI boot service driver",
  12: "EFI runtime driver",
  13: "EFI ROM image",
};

/** PE specification, "Optional Header Data Directories". */
export const DIRECTORY_NAMES: readonly string[] = [
  "Export Table",
  "Import Table",
  "Resource Table",
  "Exception Table",
  "Certificate Table",
  "Base Relocation Table",
  "Debug",
  "Architecture",
  "Global Ptr",
  "TLS Table",
  "Load Config Table",
  "Bound Import",
  "IAT",
  "Delay Import Descriptor",
  "CLR Runtime Header",
  "Reserved",
];

/** PE specification, "Debug Type". */
export const DEBUG_TYPES: Readonly<Record<number, string>> = {
  1: "COFF",
  2: "CODEVIEW",
  3: "FPO",
  4: "MISC",
  13: "POGO",
  16: "REPRO",
  20: "EX_DLLCHARACTERISTICS",
};

/** Multiboot Specification, section 3.1.2; names as in multiboot.h. */
export const MB1_FLAGS: FlagNames = [
  [0x00000001, "PAGE_ALIGN"],
  [0x00000002, "MEMORY_INFO"],
  [0x00000004, "VIDEO_MODE"],
  [0x00010000, "AOUT_KLUDGE"],
];

/** The 32-bit fields behind type, flags and size of each Multiboot2 header tag; the specification's names. */
export const MB2_TAG_FIELDS: Readonly<Record<number, readonly string[]>> = {
  2: ["header_addr", "load_addr", "load_end_addr", "bss_end_addr"],
  3: ["entry_addr"],
  4: ["console_flags"],
  5: ["width", "height", "depth"],
  8: ["entry_addr"],
  9: ["entry_addr"],
  10: ["min_addr", "max_addr", "align", "preference"],
};

/** Multiboot2 Specification, section 3.6: what an INFORMATION_REQUEST asks for; names as in multiboot2.h. */
export const MB2_INFORMATION_NAMES: readonly string[] = [
  "END CMDLINE BOOT_LOADER_NAME MODULE BASIC_MEMINFO BOOTDEV MMAP VBE FRAMEBUFFER ELF_SECTIONS APM EFI32 EFI64 SMBIOS",
  "ACPI_OLD ACPI_NEW NETWORK EFI_MMAP EFI_BS EFI32_IH EFI64_IH LOAD_BASE_ADDR",
].flatMap((line) => line.split(" "));

/** Where Xen's linker script and its entry code put their marks (xen/arch/x86/xen.lds.S, boot/head.S, efi/). */
export const SYMBOLS_OF_INTEREST: ReadonlySet<string> = new Set(
  [
    "start _start __efi64_mb2_start __start_xen __pvh_start __high_start efi_start efi_multiboot2",
    "multiboot1_header multiboot2_header trampoline_start trampoline_end",
    "_stext _etext _srodata _erodata _sinittext _einittext __init_begin __init_end",
    "__note_gnu_build_id_start __note_gnu_build_id_end __2M_text_start __2M_text_end __2M_rodata_start __2M_rodata_end",
    "__2M_init_start __2M_init_end __2M_rwdata_start __2M_rwdata_end",
    "__bss_start __bss_end __base_relocs_start __base_relocs_end _end",
  ].flatMap((line) => line.split(" ")),
);

/** The names of the flags that are set; bits without a name come as one hexadecimal number. */
export function flagNames(value: number, names: FlagNames): string[] {
  const known = names.filter(([flag]) => (value & flag) !== 0);
  const rest = known.reduce((left, [flag]) => left - flag, value);
  return [...known.map(([, name]) => name), ...(rest === 0 ? [] : [hex(rest)])];
}

/** "rw-" */
export function permissions(section: Section): string {
  const flags = [pe.MEM_READ, pe.MEM_WRITE, pe.MEM_EXECUTE];
  return flags.map((flag, i) => (hasFlags(section, flag) ? "rwx"[i] : "-")).join("");
}

/** Four bits of the section flags hold 1 + the binary logarithm of an alignment; only object files should have it. */
const ALIGN_MASK = 0x00f00000;
const ALIGN_SHIFT = 20;

/** The names of a section's flags without those that {@link permissions} shows, and without the alignment. */
export function sectionFlagNames({ header }: Section): string[] {
  const shownElsewhere = pe.MEM_READ | pe.MEM_WRITE | pe.MEM_EXECUTE | ALIGN_MASK;
  return flagNames((header.characteristics & ~shownElsewhere) >>> 0, SECTION_FLAGS);
}

/** "ALIGN_16BYTES"; none where the flags say nothing of it. */
export function alignmentNames({ header }: Section): string[] {
  const align = (header.characteristics & ALIGN_MASK) >>> ALIGN_SHIFT;
  return align === 0 ? [] : [`ALIGN_${2 ** (align - 1)}BYTES`];
}
