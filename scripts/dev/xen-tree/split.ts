// SPDX-License-Identifier: GPL-2.0-only
// What xen-tree-test.ts makes of a tree: one whose xen.efi satisfies strict W^X in the way of upstream's series
// "x86/efi: discard multiboot and PVH support for PE binary" (v8, July 2026), written anew, for 4.17 and 4.20: the Multiboot
// header and entry code are in sections of their own, which the PE discards; .init is .init.text and .init.data, 2 MiB
// apart; sections begin on pages; and nothing executable has a base relocation.

import { ImageError } from "../../cli/errors.ts";
import { COMBINE_TOOL, combinesBinaries } from "../../tree/xen-tree.ts";
import type { Edit } from "../../tree/xen-tree.ts";

type Change = Pick<Edit, "file" | "find" | "put">;

/** @throws ImageError when the tree is not as expected */
export function split(read: (file: string) => string, write: (file: string, contents: string) => void): void {
  const changes = combinesBinaries(read) ? [...SPLIT, COMBINED] : SPLIT;
  for (const { file, find, put } of changes) {
    const contents = read(file);
    const { length } = [...contents.matchAll(new RegExp(find, `${find.flags}g`))];
    if (length !== 1) throw new ImageError(`${file}: ${length} places ${find}, needed one`);
    write(
      file,
      contents.replace(find, (found) => put(found)),
    );
  }
  // 4.17 links xen.efi as OMAGIC, which makes .text writable; 4.20 does not any more.
  write(MAKEFILE, read(MAKEFILE).replaceAll("/efi.lds -N $<", "/efi.lds $<"));
}

const MAKEFILE = "xen/arch/x86/Makefile";
const HEAD = "xen/arch/x86/boot/head.S";
const LINKER_SCRIPT = "xen/arch/x86/xen.lds.S";

const discard = `  /DISCARD/ : {
    *(.text.header)
    *(.init.*multiboot)
  }
`;

const merged = /^#ifdef EFI \/\* EFI wants to merge all of \.init\.\* {2}ELF doesn't\. \*\/\n/.source;

/** The 32-bit C code, which in older releases is a part of head.S. */
const COMBINED: Change = {
  file: COMBINE_TOOL,
  find: /\.init\.text(?=, "ax", @progbits)/,
  put: () => ".init.multiboot",
};

const SPLIT: readonly Change[] = [
  { file: HEAD, find: /\.init\.rodata(?=, "a", @progbits\n\n\.Lbad_cpu_msg:)/, put: (found) => `${found}.multiboot` },
  {
    file: HEAD,
    find: /\.init\.data(?=, "aw", @progbits\n *\.align 4\n\n *\.word +0\ngdt_boot_descr:)/,
    put: (found) => `${found}.multiboot`,
  },
  { file: HEAD, find: /\.init\.text(?=, "ax", @progbits\n\n(?:early_error|bad_cpu):)/, put: () => ".init.multiboot" },
  // It is copied to low memory before it runs, and has base relocations, for which its own place must be writable.
  {
    file: HEAD,
    find: /^ENTRY\(trampoline_start\)$/m,
    put: (found) => `        .section .init.data, "aw", @progbits\n${found}`,
  },
  { file: LINKER_SCRIPT, find: /^ {2}\. = __image_base__;\n/m, put: (found) => found + discard },
  {
    file: LINKER_SCRIPT,
    find: new RegExp(`${merged} {2}DECL_SECTION\\(\\.init\\) \\{\n#else\n(.*\n)#endif\n`, "m"),
    put: (found) => /^.*\.init\.text.*\n/m.exec(found)?.[0] ?? found,
  },
  { file: LINKER_SCRIPT, find: /^ *_sinittext = \.;\n/m, put: (found) => `${found}       *(.init.multiboot)\n` },
  {
    file: LINKER_SCRIPT,
    find: new RegExp(`${merged} *\\. = ALIGN\\(SMP_CACHE_BYTES\\);\n#else\n.*\n.*\n#endif\n`, "m"),
    put: () => "  } PHDR(text)\n#ifdef EFI\n  . = ALIGN(SECTION_ALIGN);\n#endif\n  DECL_SECTION(.init.data) {\n",
  },
  { file: LINKER_SCRIPT, find: /^ *\*\(\.init\.data\)\n/m, put: (found) => `       *(.init.data.multiboot)\n${found}` },
  {
    file: LINKER_SCRIPT,
    find: /^ *(?:\. = ALIGN\(32\);\n *)?DECL_SECTION\(\.buildid\)/m,
    put: () => "  . = ALIGN(PAGE_SIZE);\n  DECL_SECTION(.buildid)",
  },
  { file: LINKER_SCRIPT, find: /^ {2}\.reloc ALIGN\(4\) : \{\n/m, put: (found) => `  . = ALIGN(PAGE_SIZE);\n${found}` },
  // The jump to the final mapping, from where Xen is to where it is linked to be, without an address in the code.
  {
    file: "xen/arch/x86/efi/efi-boot.h",
    find: /"movabs \$__start_xen, %\[rip\]\\n\\t"\n/,
    put: () => '"lea    __start_xen(%%rip), %[rip]\\n\\t"\n                   "add    %[to_link], %[rip]\\n\\t"\n',
  },
  {
    file: "xen/arch/x86/efi/efi-boot.h",
    find: /^ *: \[cr3\] "r" \(idle_pg_table\),\n/m,
    put: (found) => `${found}                     [to_link] "r" (__XEN_VIRT_START - xen_phys_start),\n`,
  },
];
