/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Entry points, Multiboot headers and the data whose place and contents check.c judges.
 */
#include "layout.h"

/* Multiboot headers and 32-bit code hold link physical addresses: 4 bytes each, so a HIGHLOW base relocation each. */
#define sym_offs(sym) ((sym) - IMAGE_BASE)

#define MB1_HEADER_MAGIC     0x1badb002
#define MB2_HEADER_MAGIC     0xe85250d6
#define MB1_BOOT_MAGIC       0x2badb002

#define TAG_OPTIONAL         1

/* Print the string at %esi or %rsi on COM1. Only instructions that are encoded alike in 32-bit and 64-bit mode. */
        .macro DEFINE_PUTS name
\name:  mov     $0x3fd, %dx             /* line status: wait until the transmitter is empty */
        in      (%dx), %al
        test    $0x20, %al
        jz      \name
        lodsb
        test    %al, %al
        jz      1f
        mov     $0x3f8, %dx
        out     %al, (%dx)
        jmp     \name
1:      ret
        .endm

/* The checker itself can't be reached: end QEMU with what stands for FAIL (see finish() in check.c), or stop. */
        .macro DIE
        mov     $0x11, %al
        out     %al, $0xf4              /* isa-debug-exit */
        mov     $0xfe, %al
        out     %al, $0x64              /* reset by keyboard controller */
1:      cli
        hlt
        jmp     1b
        .endm

        .section .text.header, "ax", @progbits
        .code32

        .globl  start, _start
_start:
start:
        jmp     probe_init
        .nops   3

/* The Multiboot1 header, 12-byte form: no room for addresses, Multiboot2's begins right behind. */
        .balign 8, 0x90
multiboot1_header:
        .long   MB1_HEADER_MAGIC
        .long   3                       /* page-aligned modules, memory information */
        .long   -(MB1_HEADER_MAGIC + 3)

        .balign 8, 0xc2                 /* as Xen pads: not zero */
multiboot2_header:
        .long   MB2_HEADER_MAGIC
        .long   0                       /* i386 */
        .long   multiboot2_header_end - multiboot2_header
        .long   -(MB2_HEADER_MAGIC + (multiboot2_header_end - multiboot2_header))

        .macro TAG type flags content:vararg
        .balign 8, 0xc2
10\@:   .short  \type
        .short  \flags
        .long   11\@f - 10\@b
        .ifnb \content
        .long   \content
        .endif
11\@:
        .endm

        TAG     1, 0, 4, 6              /* information request: basic memory, memory map */
        TAG     6, 0                    /* page-aligned modules */
        TAG     10, 1, sym_offs(start), 0xffffffff, 0x200000, 2 /* relocatable, as high as possible */
        TAG     4, TAG_OPTIONAL, 2      /* console flags: EGA text */
        TAG     5, TAG_OPTIONAL, 0, 0, 0 /* framebuffer */
        TAG     7, TAG_OPTIONAL         /* keep EFI boot services */
        TAG     9, TAG_OPTIONAL, sym_offs(__efi64_mb2_start)
        TAG     0, 0
multiboot2_header_end:
        /* 0x90 to the end of the page, from the linker script: the assembler would choose longer instructions. */

        .section .text, "ax", @progbits
text_magic:
        .long   TEXT_MAGIC

/*
 * From `start`: 32-bit, flat, no stack. Without any fix-up, as .text is not writable: where are we, and is .init at its distance?
 * To __start with
 *   %ebp address of RVA 0, %edx Multiboot magic, %ebx information structure
 */
probe_init:
        cli
        cld
        mov     %eax, %edx
        mov     0x7bfc, %ecx            /* borrow four bytes of low memory as stack */
        mov     $0x7c00, %esp
        call    1f
1:      pop     %ebp
        mov     %ecx, 0x7bfc
        cmpl    $INIT_MAGIC, init_magic - 1b(%ebp)
        lea     __start - 1b(%ebp), %eax
        lea     start - TEXT_RVA - 1b(%ebp), %ebp
        jne     2f
        jmp     *%eax

2:      call    3f
3:      pop     %ebp
        lea     prefix - 3b(%ebp), %esi
        lea     mb1 - 3b(%ebp), %edi
        cmp     $MB1_BOOT_MAGIC, %edx
        je      4f
        lea     mb2_bios - 3b(%ebp), %edi
4:      call    puts32
        mov     %edi, %esi
        call    puts32
        lea     no_init - 3b(%ebp), %esi
        call    puts32
        DIE

        DEFINE_PUTS puts32

prefix:         .asciz  "\r\nMINI-XEN "
mb1:            .asciz  "mb1"
mb2_bios:       .asciz  "mb2-bios"
no_init:        .asciz  " FAIL: .init: not at its distance from .text\r\n"

        .section .init.text, "awx", @progbits
        .globl  init_magic
init_magic:
        .long   INIT_MAGIC

/* 32-bit, from probe_init: Multiboot1, or Multiboot2 on BIOS. */
__start:
        /* Page tables and stack lie in .bss, so look there first: %esi = address of the first byte that isn't zero, or 0. */
        lea     sym_offs(__bss_start)(%ebp), %edi
        lea     sym_offs(__2M_rwdata_end)(%ebp), %ecx
        sub     %edi, %ecx
        xor     %esi, %esi
        xor     %eax, %eax
        repe scasb
        je      1f
        lea     -1(%edi), %esi
1:
        /* Identity-map the first 4 GiB in pages of 2 MiB. */
        lea     sym_offs(boot_pml4)(%ebp), %edi
        mov     $2 * 4096 / 4, %ecx
        rep stosl
        mov     $0x83, %eax             /* present, writable, large */
2:      mov     %eax, (%edi)
        movl    $0, 4(%edi)
        add     $8, %edi
        add     $0x200000, %eax
        jnc     2b

        lea     sym_offs(boot_pdpt + 3)(%ebp), %eax
        mov     %eax, sym_offs(boot_pml4)(%ebp)
        lea     sym_offs(boot_pd + 3)(%ebp), %eax
        lea     sym_offs(boot_pdpt)(%ebp), %edi
        mov     $4, %ecx
3:      mov     %eax, (%edi)
        add     $8, %edi
        add     $4096, %eax
        loop    3b

        lea     sym_offs(boot_stack_end)(%ebp), %esp
        mov     %cr4, %eax
        or      $0x20, %eax             /* PAE */
        mov     %eax, %cr4
        lea     sym_offs(boot_pml4)(%ebp), %eax
        mov     %eax, %cr3
        mov     %edx, %edi
        mov     $0xc0000080, %ecx       /* EFER.LME */
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax       /* PG */
        mov     %eax, %cr0

        lea     sym_offs(boot_gdt)(%ebp), %eax
        push    %eax
        pushw   $3 * 8 - 1
        lgdt    (%esp)
        lea     sym_offs(.Lstart64)(%ebp), %eax
        push    $1 * 8
        push    %eax
        lret

        .code64
.Lstart64:
        mov     $2 * 8, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        lea     boot_stack_end(%rip), %rsp
        mov     %edi, %edi
        mov     %esi, %edx
        mov     %ebx, %esi
        call    multiboot_entry         /* (magic, information structure, byte in .bss) */

        .balign 8
boot_gdt:
        .quad   0
        .quad   0x00af9b000000ffff      /* 64-bit code; both "accessed", so that the CPU does not write here */
        .quad   0x00cf93000000ffff      /* data */

        .macro PROBE_TEXT path
        lea     \path(%rip), %rsi
        cmpl    $TEXT_MAGIC, text_magic(%rip)
        jne     no_text
        .endm

/* 64-bit, boot services on, the loader's stack: Multiboot2 on EFI. %rax magic, %rbx information structure. */
        .globl  __efi64_mb2_start
__efi64_mb2_start:
        cld
        and     $-16, %rsp
        PROBE_TEXT mb2_efi
        mov     %eax, %edi
        mov     %rbx, %rsi
        call    efi_multiboot2_entry

/* 64-bit, the PE's entry point: %rcx image handle, %rdx system table. */
        .globl  efi_start
efi_start:
        cld
        and     $-16, %rsp
        PROBE_TEXT efi
        mov     %rcx, %rdi
        mov     %rdx, %rsi
        call    efi_entry

no_text:
        call    puts64
        lea     no_text_message(%rip), %rsi
        call    puts64
        DIE

        DEFINE_PUTS puts64

mb2_efi:        .asciz  "\r\nMINI-XEN mb2-efi"
efi:            .asciz  "\r\nMINI-XEN efi"
no_text_message: .asciz " FAIL: .text: not at its distance from .init\r\n"

/*
 * Absolute pointers, 8 and 4 bytes wide, in every section that has fix-ups in Xen. The last one of each, _end, is also the address of
 * __base_relocs_start as linked: it has to stay when the table moves.
 */
        .macro POINTERS name
        .balign 8
        .globl  \name
\name:
        .quad   start, rodata_first, init_magic, data_read_mostly_first, data_first, __bss_start, _end
        .long   sym_offs(start), sym_offs(rodata_first), sym_offs(init_magic), sym_offs(data_read_mostly_first)
        .long   sym_offs(data_first), sym_offs(__bss_start), sym_offs(_end)
        .endm

        .section .init.data, "aw", @progbits
        POINTERS pointers_init

/* Four-byte fix-ups like those of Xen's early page tables, and so many that the table is longer than one page. An odd number. */
        .balign 4096
many_fixups:
        .rept   2099
        .long   sym_offs(start) + (. - many_fixups)
        .endr

        .section .data.rel.ro.first, "aw", @progbits
        .globl  rodata_first
rodata_first:
        .ascii  "rodata"

        .section .data.rel.ro, "aw", @progbits
        POINTERS pointers_rodata
        .balign 8
        .globl  expected
expected:
        .space  EXPECTED_SIZE

        .section .data.read_mostly, "aw", @progbits
        .globl  data_read_mostly_first
data_read_mostly_first:
        .ascii  "data.read_mostly"
        POINTERS pointers_read_mostly

        .section .data, "aw", @progbits
        .globl  data_first
data_first:
        .ascii  "data"
        POINTERS pointers_data

        .section .bss, "aw", @nobits
        .balign 4096
boot_pml4:
        .space  4096
boot_pdpt:
        .space  4096
boot_pd:
        .space  4 * 4096
        .space  16384
boot_stack_end:
        .space  0x131248 - 6 * 4096 - 16384     /* as long as Xen's */

        .section .note.GNU-stack, "", @progbits
