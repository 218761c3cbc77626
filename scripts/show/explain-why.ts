// SPDX-License-Identifier: GPL-2.0-only
// Why anything is different: for each kind of change the step that makes it, and the loader that asks for it, with the
// place in that loader's source.

export type Step = "relocate-reloc" | "align-sections" | "emit-header" | "every step" | "--strip-signature";

export interface Why {
  readonly step: Step;
  readonly text: string;
}

export const WHY = {
  discardable: {
    step: "relocate-reloc",
    text: 'Xen reads the table at run time (efi-boot.h:efi_arch_relocate_image), and shim leaves discardable sections out (pe.c:handle_image): "Unsupported relocation type".',
  },
  moved: {
    step: "relocate-reloc",
    text: "Multiboot loads one range and zeroes what follows, so .bss has to be last; ahead of __init_end Xen frees the table with the init memory.",
  },
  tableSize: {
    step: "relocate-reloc",
    text: "shim relocates by a section .reloc at the directory's address (pe-relocate.c); it is given the directory's size.",
  },
  reference: {
    step: "relocate-reloc",
    text: "Xen computes the table's bounds by these instructions; everything else that refers to the same address means _end, and stays.",
  },
  beyond: {
    step: "relocate-reloc",
    text: "A symbol of .reloc that is beyond its table names the end of the image (__image_end__), and keeps its address.",
  },
  order: {
    step: "every step",
    text: "The section table is in RVA order, on which signers and loaders that copy raw padding rely; symbols name their section by its place in it.",
  },
  headerArea: {
    step: "align-sections",
    text: "Room for the Multiboot1 header and for 16 more section headers: objcopy and ukify append theirs in place, and the linker leaves room for none.",
  },
  linear: {
    step: "align-sections",
    text: "Multiboot copies one range of the file to one range of memory (GRUB multiboot.c, QEMU multiboot.c, syslinux mboot map.c, iPXE multiboot.c): file offset = RVA - constant, and what lies between the sections is in the file.",
  },
  grown: {
    step: "align-sections",
    text: "GRUB 2.14's PE loader refuses a section with more raw data than memory (peimage.c); no loader minds more memory.",
  },
  behind: {
    step: "align-sections",
    text: "What Multiboot does not load follows on multiples of 512 without a gap: firmware (DxeImageVerificationLib.c:HashPeImage), shim (pe.c:generate_hash) and signers then hash the same bytes.",
  },
  sums: {
    step: "align-sections",
    text: 'Follows from the raw sizes and pointers (PE specification, "Optional Header").',
  },
  imageSize: {
    step: "align-sections",
    text: "Firmware reserves so much (BasePeCoff.c), a multiple of SectionAlignment that covers .bss up to 2 MiB, where Xen maps it, and every debug section.",
  },
  stray: {
    step: "align-sections",
    text: "Firmware refuses an image with a section beyond SizeOfImage, silently (BasePeCoff.c:PeCoffLoaderLoadImage); old GNU ld puts debug sections there that its script does not know.",
  },
  debugOffset: {
    step: "align-sections",
    text: "Debuggers find the build-id by file offset; loaders do not look.",
  },
  padding: {
    step: "align-sections",
    text: "Signers pad a file to 8 bytes, and shim counts such zeros when it hashes (pe.c:generate_hash).",
  },
  multiboot2: {
    step: "emit-header",
    text: 'A PE needs load addresses: without ADDRESS and ENTRY_ADDRESS GRUB takes it for an ELF (multiboot_mbi2.c), "invalid arch-dependent ELF magic". ENTRY_ADDRESS stands before the EFI64 entry, or Limine stops (multiboot2.c). The old Multiboot1 header has to go: loaders take the first magic.',
  },
  multiboot1: {
    step: "emit-header",
    text: "For GRUB `multiboot`, QEMU, syslinux, iPXE and kexec. This form needs 32 bytes, which .text has not got; here it is below 8192 - 48, QEMU's limit (hw/i386/multiboot.c), and the header area is loaded along, below .text.",
  },
  voidFixup: {
    step: "emit-header",
    text: "The fix-up's target is in the rewritten header: firmware would change bytes that mean something else now. Type 0 pads, and the table keeps its size, by which Xen walks it.",
  },
  nxCompat: {
    step: "emit-header",
    text: "Not true of this image, and loaders that believe it refuse the image (GRUB 2.14 peimage.c, shim's NX policy).",
  },
  checkSum: {
    step: "every step",
    text: 'The sum of the whole file (PE specification, "CheckSum"); signatures leave it out.',
  },
  signature: {
    step: "--strip-signature",
    text: "No signature survives a change.",
  },
} as const satisfies Record<string, Why>;

export type Reason = keyof typeof WHY;

/** Why the data of a section is other than before. */
export const IN_SECTIONS: ReadonlySet<Reason> = new Set(["reference", "debugOffset", "multiboot2", "voidFixup"]);

/** Why a field of the COFF header or of the optional header is another. */
export const FIELD_REASONS: Readonly<Record<string, Reason>> = {
  pointerToSymbolTable: "behind",
  sizeOfCode: "sums",
  sizeOfInitializedData: "sums",
  fileAlignment: "sums",
  sizeOfImage: "imageSize",
  sizeOfHeaders: "headerArea",
  dllCharacteristics: "nxCompat",
};
