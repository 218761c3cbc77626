/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * mini-xen judges itself: is all of the image there, intact, and right for where it runs?
 *
 * Code only, no variables: .bss has to be found zero before anything is written, and what Multiboot loads is not relocated, so
 * that tables of addresses can't be used.
 */
#include <stddef.h>
#include "layout.h"

#define INIT __attribute__((section(".init.text"), noinline, noclone))
#define EFIAPI __attribute__((ms_abi))

#define MB1_HEADER_MAGIC 0x1badb002
#define MB1_BOOT_MAGIC   0x2badb002
#define MB2_HEADER_MAGIC 0xe85250d6
#define MB2_BOOT_MAGIC   0x36d76289

#define MB2_TAG_ADDRESS     2
#define MB2_TAG_ENTRY       3
#define MB2_TAG_ENTRY_EFI64 9

#define MBI2_TAG_EFI64_SYSTEM_TABLE 12
#define MBI2_TAG_EFI_BOOT_SERVICES  18
#define MBI2_TAG_EFI64_IMAGE_HANDLE 20
#define MBI2_TAG_LOAD_BASE_ADDR     21

#define ROUND_UP_2M(x) (((x) + 0x1fffff) & ~0x1fffffu)

/* All symbols are within the image: a %rip-relative lea reaches them, no table of addresses (GOT) in between. */
#pragma GCC visibility push(hidden)
extern const struct expected expected;
extern uint8_t start[], __efi64_mb2_start[], rodata_first[], init_magic[], init_end[], data_read_mostly_first[], data_first[];
extern uint8_t __bss_start[], _end[], __2M_rwdata_end[], __base_relocs_start[], __base_relocs_end[];

#define NR_POINTERS 7

/* See POINTERS in head.S. */
extern struct pointers {
    uint64_t dir64[NR_POINTERS];
    uint32_t highlow[NR_POINTERS];
} pointers_rodata, pointers_init, pointers_read_mostly, pointers_data;
#pragma GCC visibility pop

/* How we were entered. */
struct boot {
    const char *path;
    int pe;                     /* loaded as PE, not by Multiboot */
    uint8_t *base;              /* where RVA 0 is */
    uint64_t delta;             /* what base relocation added to absolute addresses: nothing by Multiboot */
    uint8_t *system_table;      /* EFI's, or NULL */
    unsigned int failures;
};

/* The base relocation table, as efi_arch_relocate_image() found it. */
struct relocs {
    uint8_t *start, *end;
    int loaded;
    const void *bad;            /* what can't be walked any further, or NULL */
    uint32_t nr_blocks, nr_fixups, nr_header_fixups;
    uint64_t fixups_sum;
};

static inline void outb(uint16_t port, uint8_t value)
{
    asm volatile ( "outb %0, %1" :: "a" (value), "Nd" (port) );
}

static inline void outw(uint16_t port, uint16_t value)
{
    asm volatile ( "outw %0, %1" :: "a" (value), "Nd" (port) );
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;

    asm volatile ( "inb %1, %0" : "=a" (value) : "Nd" (port) );

    return value;
}

/* ---- Report on COM1 ---- */

static void print(const char *s)
{
    for ( ; *s; s++ )
    {
        while ( !(inb(0x3fd) & 0x20) )
            ;
        outb(0x3f8, *s);
    }
}

static void print_hex(const char *label, uint64_t value)
{
    char buf[17], *p = buf + sizeof(buf);

    *--p = 0;
    do
        *--p = "0123456789abcdef"[value & 15];
    while ( value >>= 4 );

    print(label);
    print(" 0x");
    print(p);
}

static void begin_line(const struct boot *b)
{
    print("\r\nMINI-XEN ");
    print(b->path);
}

static void fail(struct boot *b, const char *what, uint64_t found, uint64_t needed)
{
    begin_line(b);
    print(" FAIL: ");
    print(what);
    print_hex(": found", found);
    print_hex(", needed", needed);
    b->failures++;
}

static void fail_at(struct boot *b, const char *what, const void *at, uint64_t found, uint64_t needed)
{
    fail(b, what, found, needed);
    print_hex(", at", (uint64_t)at);
}

static void expect(struct boot *b, const char *what, uint64_t found, uint64_t needed)
{
    if ( found != needed )
        fail(b, what, found, needed);
}

/* Ends QEMU one way or another. */
static void __attribute__((noreturn)) finish(const struct boot *b)
{
    if ( !b->failures )
    {
        begin_line(b);
        print(" PASS");
    }
    print("\r\n");

    /* Device isa-debug-exit, if there: the exit status is twice this plus 1. */
    outb(0xf4, b->failures ? 0x11 : 0x10);

    if ( b->system_table )
    {
        uint8_t *runtime_services = *(uint8_t **)(b->system_table + 88);
        void EFIAPI (*reset_system)(uint64_t type, uint64_t status, uint64_t size, void *data) =
            *(void **)(runtime_services + 104);

        reset_system(2 /* shut down */, 0, 0, NULL);
    }

    outw(0x604, 0x2000);        /* ACPI power off, where SeaBIOS puts it on QEMU's machines */
    outb(0x64, 0xfe);           /* reset by keyboard controller */
    for ( ;; )
        asm volatile ( "cli; hlt" );
}

/* ---- Multiboot headers and tags ---- */

/* The header that the loader saw is in memory, too. */
static const uint32_t *find_header(const uint8_t *from, const uint8_t *to, unsigned int step, uint32_t magic)
{
    for ( ; from < to; from += step )
    {
        const uint32_t *h = (const void *)from;

        if ( h[0] == magic && !(h[0] + h[1] + h[2] + (magic == MB2_HEADER_MAGIC ? h[3] : 0)) )
            return h;
    }

    return NULL;
}

static const uint32_t *find_mb2_header(void)
{
    return find_header(start, start + 0x1000, 8, MB2_HEADER_MAGIC);
}

/* Tags of header and information structure differ in the width of their type only. */
static const uint32_t *find_tag(const uint32_t *tag, const void *end, uint32_t type_mask, uint32_t type)
{
    for ( ; (const void *)tag < end && tag[1] >= 8; tag += (tag[1] + 7) / 8 * 2 )
        if ( (tag[0] & type_mask) == type )
            return tag;

    return NULL;
}

static const uint32_t *find_header_tag(const uint32_t *header, uint16_t type)
{
    return header ? find_tag(header + 4, (const uint8_t *)header + header[2], 0xffff, type) : NULL;
}

static const uint32_t *find_info_tag(const uint32_t *info, uint32_t type)
{
    return find_tag(info + 2, (const uint8_t *)info + info[0], ~0u, type);
}

/* ---- Base relocations ---- */

/* It is whole, in one of the places the tool may choose: at _end, where it was linked, or behind .init. */
static int is_loaded(struct boot *b, const struct relocs *r)
{
    unsigned int failures = b->failures;

    expect(b, "__base_relocs_end - __base_relocs_start", r->end - r->start, expected.relocs_size);
    if ( r->start == b->base + expected.end_rva )
        return b->pe && failures == b->failures; /* Multiboot does not load it there, and Xen doesn't need it then. */

    if ( (uint64_t)r->start & 0xfff || r->start < init_end || r->end > data_read_mostly_first )
        fail(b, "__base_relocs_start", (uint64_t)r->start, (uint64_t)b->base + expected.end_rva);

    return failures == b->failures;
}

/* For mksums: where the displacements of two instructions are that end at labels 1 and 2. */
#define NOTE_DISPLACEMENTS \
    ".pushsection .rodata.displacements, \"a\"\n\t.long 1b - 4 - ., 2b - 4 - .\n\t.popsection"

/*
 * Walks the table and adds delta to all that it points at. As in Xen's function of this name, the table is found through symbols, not
 * the data directory: by the two instructions that must follow when it moves. One has prefix 48, the other 4C.
 */
INIT void efi_arch_relocate_image(struct boot *b, uint64_t delta, struct relocs *r)
{
    register uint8_t *last asm ( "r8" );
    uint8_t *first;

    asm ( "lea __base_relocs_start(%%rip), %0\n1:\n\t"
          "lea __base_relocs_end(%%rip), %1\n2:\n\t" NOTE_DISPLACEMENTS : "=&D" (first), "=r" (last) );

    r->start = first;
    r->end = last;
    r->bad = NULL;
    r->nr_blocks = r->nr_fixups = r->nr_header_fixups = 0;
    r->fixups_sum = FNV_START;
    r->loaded = is_loaded(b, r);
    if ( !r->loaded )
        return;

    for ( const uint8_t *p = r->start; p < r->end; )
    {
        const struct base_reloc_block *block = (const void *)p;

        r->bad = block;
        if ( r->end - p < 8 || block->size < 8 || block->size & 3 || block->size > r->end - p )
            return;

        r->fixups_sum = fnv(r->fixups_sum, block, 8);
        for ( unsigned int i = 0; i < (block->size - 8) / 2; i++ )
        {
            uint32_t type = block->entry[i] >> 12, rva = block->rva + (block->entry[i] & 0xfff);

            if ( type == IMAGE_REL_BASED_ABSOLUTE )
                continue;

            r->bad = &block->entry[i];
            if ( (type != IMAGE_REL_BASED_DIR64 && type != IMAGE_REL_BASED_HIGHLOW) ||
                 rva < TEXT_RVA || rva > expected.end_rva - 8 )
                return;

            if ( delta && type == IMAGE_REL_BASED_DIR64 )
                *(uint64_t *)(b->base + rva) += delta;
            else if ( delta )
                *(uint32_t *)(b->base + rva) += delta;

            if ( rva < TEXT_PAGE_END ) /* the tool voids those */
            {
                r->nr_header_fixups++;
                continue;
            }
            r->nr_fixups++;
            r->fixups_sum = fixup_sum(r->fixups_sum, type, rva);
        }

        r->bad = NULL;
        r->nr_blocks++;
        p += block->size;
    }
}

/* A second pair, the other way round: clang inlines the function above where it is called. */
INIT void check_second_pair(struct boot *b, const struct relocs *r)
{
    uint8_t *first, *last;

    asm ( "lea __base_relocs_end(%%rip), %0\n1:\n\t"
          "lea __base_relocs_start(%%rip), %1\n2:\n\t" NOTE_DISPLACEMENTS : "=&a" (last), "=c" (first) );

    expect(b, "__base_relocs_start, second reference", (uint64_t)first, (uint64_t)r->start);
    expect(b, "__base_relocs_end, second reference", (uint64_t)last, (uint64_t)r->end);
}

/* Is it what the linker made? Returns whether it can be used. */
static int check_relocs(struct boot *b, struct relocs *r)
{
    unsigned int failures = b->failures;

    efi_arch_relocate_image(b, 0, r);
    print_hex(", base relocations at", (uint64_t)r->start);
    check_second_pair(b, r);

    if ( failures != b->failures || !r->loaded )
        return 0;

    if ( r->bad )
    {
        fail_at(b, "unsupported base relocation", r->bad, *(const uint16_t *)r->bad, IMAGE_REL_BASED_DIR64 << 12);
        return 0;
    }
    /* Those in the Multiboot2 header as linked, which is gone when there is one with addresses. */
    expect(b, "base relocations of the Multiboot2 header", r->nr_header_fixups,
           find_header_tag(find_mb2_header(), MB2_TAG_ADDRESS) ? 0 : expected.nr_header_fixups);
    expect(b, "blocks of base relocations", r->nr_blocks, expected.nr_blocks);
    expect(b, "base relocations", r->nr_fixups, expected.nr_fixups);
    expect(b, "checksum of base relocations", r->fixups_sum, expected.fixups_sum);

    return failures == b->failures;
}

/* ---- Addresses ---- */

/* Instructions that are like those above, and mean the same address as linked, but not the table. */
INIT uint8_t *end_seen_from_init(void)
{
    uint8_t *p;

    asm volatile ( "lea _end(%%rip), %0" : "=d" (p) );

    return p;
}

static uint8_t *end_seen_from_text(void)
{
    register uint8_t *p asm ( "r9" );

    asm volatile ( "lea _end(%%rip), %0" : "=r" (p) );

    return p;
}

static void check_pointer(struct boot *b, const struct pointers *set, unsigned int i, const uint8_t *target)
{
    uint64_t dir64 = IMAGE_BASE + (target - b->base) + b->delta;

    if ( set->dir64[i] != dir64 )
        fail_at(b, "absolute pointer (DIR64)", &set->dir64[i], set->dir64[i], dir64);
    if ( set->highlow[i] != (uint32_t)(dir64 - IMAGE_BASE) )
        fail_at(b, "absolute pointer (HIGHLOW)", &set->highlow[i], set->highlow[i], (uint32_t)(dir64 - IMAGE_BASE));
}

static void check_pointers(struct boot *b, const struct pointers *set)
{
    check_pointer(b, set, 0, start);
    check_pointer(b, set, 1, rodata_first);
    check_pointer(b, set, 2, init_magic);
    check_pointer(b, set, 3, data_read_mostly_first);
    check_pointer(b, set, 4, data_first);
    check_pointer(b, set, 5, __bss_start);
    check_pointer(b, set, 6, b->base + expected.end_rva);
}

/* ---- Memory ---- */

static const uint8_t *first_dirty(const uint8_t *p, const uint8_t *end)
{
    for ( ; p < end; p++ )
        if ( *p )
            return p;

    return NULL;
}

static void check_zero(struct boot *b, const char *what, const uint8_t *from, const uint8_t *to)
{
    const uint8_t *dirty = first_dirty(from, to);

    if ( dirty )
        fail_at(b, what, dirty, *dirty, 0);
}

static void check_sections(struct boot *b)
{
    for ( unsigned int i = 0; i < expected.nr_sections; i++ )
    {
        const struct section *s = &expected.section[i];
        const uint8_t *data = b->base + s->rva;
        uint64_t sum = section_sum(&expected, s, data);

        if ( sum != s->sum )
        {
            fail_at(b, s->name, data, sum, s->sum);
            print(" (checksum of contents)");
        }
    }
}

/* Multiboot copies one range of the file: what no section covers is zero there, but for a table that was moved behind .init. */
static void check_gaps(struct boot *b, const struct relocs *r)
{
    for ( unsigned int i = 0; i < expected.nr_sections; i++ )
    {
        const struct section *s = &expected.section[i];
        const uint8_t *from = b->base + s->rva + s->size;
        const uint8_t *to = i + 1 < expected.nr_sections ? b->base + s[1].rva : __bss_start;

        if ( r->start >= from && r->end <= to )
        {
            check_zero(b, "gap behind .init", from, r->start);
            from = r->end;
        }
        check_zero(b, "gap behind a section", from, to);
    }
}

/* Called with what was found in .bss before it was used. */
static void check(struct boot *b, const uint8_t *bss_dirty)
{
    uint64_t sum = fnv(FNV_START, &expected, offsetof(struct expected, sum));
    const uint32_t *h = find_mb2_header();
    struct relocs relocs;
    int relocs_usable;

    b->base = (uint8_t *)((uintptr_t)start - TEXT_RVA);
    begin_line(b);
    print_hex(": RVA 0 at", (uint64_t)b->base);

    if ( sum != expected.sum )
    {
        fail_at(b, "table of expected values", &expected, sum, expected.sum);
        return;
    }

    expect(b, "load address modulo 2 MiB", (uint64_t)start & 0x1fffff, 0);
    expect(b, "load address above 4 GiB", ((uint64_t)__2M_rwdata_end - 1) >> 32, 0);
    if ( b->pe )
        b->delta = (uint64_t)b->base - IMAGE_BASE;
    relocs_usable = check_relocs(b, &relocs);

    expect(b, "address of a byte in or behind .bss that is not zero", (uint64_t)bss_dirty, 0);

    check_pointers(b, &pointers_rodata);
    check_pointers(b, &pointers_init);
    check_pointers(b, &pointers_read_mostly);
    check_pointers(b, &pointers_data);
    /* As linked, the Multiboot2 header is relocated, too; one with addresses must not be. */
    if ( find_header_tag(h, MB2_TAG_ADDRESS) )
        expect(b, "checksum of the Multiboot2 header's old tags", tags_sum(h), expected.tags_sum);
    expect(b, "_end seen from .init", (uint64_t)end_seen_from_init(), (uint64_t)b->base + expected.end_rva);
    expect(b, "_end seen from .text", (uint64_t)end_seen_from_text(), (uint64_t)b->base + expected.end_rva);

    if ( !b->pe )
    {
        check_sections(b);
        check_gaps(b, &relocs);
    }
    else if ( relocs_usable )
    {
        /* As Xen does before it leaves the firmware's page tables; then the image must be as linked, every byte of it. */
        efi_arch_relocate_image(b, -b->delta, &relocs);
        check_sections(b);
        efi_arch_relocate_image(b, b->delta, &relocs);
    }
}

/* ---- Entered by Multiboot ---- */

/* header_addr, load_addr, load_end_addr, bss_end_addr: in this order in both. */
static void check_addresses(struct boot *b, const uint32_t *header, const uint32_t *addr, uint32_t load_addr)
{
    const struct section *last = &expected.section[expected.nr_sections - 1];

    expect(b, "header_addr", addr[0], (const uint8_t *)header - b->base);
    expect(b, "load_addr", addr[1], load_addr);
    expect(b, "load_end_addr", addr[2], last->rva + last->size);
    expect(b, "bss_end_addr", addr[3], ROUND_UP_2M(expected.end_rva));
}

static void check_mb1(struct boot *b)
{
    /* In the header area, loaded below the image. */
    const uint32_t *h = find_header(start - 0x2000, start, 4, MB1_HEADER_MAGIC);

    expect(b, "load address (Multiboot1 can't move)", (uint64_t)b->base, 0);
    if ( !h || !(h[1] & 0x10000) )
    {
        fail(b, "Multiboot1 header with addresses", (uint64_t)h, 0x10003);
        return;
    }
    /* The first byte of the file. */
    expect(b, "DOS header", *(uint16_t *)(b->base + h[4]), 0x5a4d);
    check_addresses(b, h, h + 3, h[4]);
    expect(b, "entry_addr", h[7], start - b->base);
}

static const uint32_t *need(struct boot *b, const char *what, const uint32_t *tag)
{
    if ( !tag )
        fail(b, what, 0, 1);

    return tag;
}

static void check_mb2(struct boot *b, const uint32_t *info)
{
    const uint32_t *h = find_mb2_header();
    const uint32_t *tag = find_info_tag(info, MBI2_TAG_LOAD_BASE_ADDR);

    if ( tag ) /* a loader that does not move the image need not tell */
        expect(b, "load base address told by the loader", tag[2], (uint64_t)start);

    tag = need(b, "address tag", find_header_tag(h, MB2_TAG_ADDRESS));
    if ( tag )
        check_addresses(b, h, tag + 2, TEXT_RVA);
    tag = need(b, "entry address tag", find_header_tag(h, MB2_TAG_ENTRY));
    if ( tag )
        expect(b, "entry_addr", tag[2], start - b->base);
    tag = need(b, "EFI64 entry address tag", find_header_tag(h, MB2_TAG_ENTRY_EFI64));
    if ( tag )
        expect(b, "EFI64 entry_addr", tag[2], __efi64_mb2_start - b->base);
}

/* From head.S, in long mode. */
void multiboot_entry(uint32_t magic, const uint32_t *info, const uint8_t *bss_dirty)
{
    struct boot b = { .path = magic == MB1_BOOT_MAGIC ? "mb1" : "mb2-bios" };

    outb(0x3fb, 3);             /* BIOS may not have set COM1 up: 8 bits, no parity */
    check(&b, bss_dirty);
    if ( magic == MB1_BOOT_MAGIC )
        check_mb1(&b);
    else if ( magic == MB2_BOOT_MAGIC )
        check_mb2(&b, info);
    else
        fail(&b, "Multiboot magic in %eax", magic, MB2_BOOT_MAGIC);
    finish(&b);
}

void efi_multiboot2_entry(uint32_t magic, const uint32_t *info)
{
    struct boot b = { .path = "mb2-efi" };
    const uint32_t *tag;

    check(&b, first_dirty(__bss_start, __2M_rwdata_end));
    if ( magic == MB2_BOOT_MAGIC )
    {
        check_mb2(&b, info);
        /* What Xen needs here. */
        tag = need(&b, "EFI64 system table", find_info_tag(info, MBI2_TAG_EFI64_SYSTEM_TABLE));
        if ( tag )
            b.system_table = *(uint8_t **)(tag + 2);
        need(&b, "EFI boot services", find_info_tag(info, MBI2_TAG_EFI_BOOT_SERVICES));
        need(&b, "EFI64 image handle", find_info_tag(info, MBI2_TAG_EFI64_IMAGE_HANDLE));
    }
    else
        fail(&b, "Multiboot magic in %eax", magic, MB2_BOOT_MAGIC);
    finish(&b);
}

/* ---- Entered as PE ---- */

struct loaded_image {
    uint64_t unused[8];
    uint8_t *image_base;
    uint64_t image_size;
};

void efi_entry(void *image_handle, uint8_t *system_table)
{
    static const uint32_t loaded_image_protocol[] = { 0x5b1b31a1, 0x11d29562, 0xa0003f8e, 0x3b7269c9 };
    struct boot b = { .path = "efi", .pe = 1, .system_table = system_table };
    uint8_t *boot_services = *(uint8_t **)(system_table + 96);
    uint64_t EFIAPI (*handle_protocol)(void *handle, const void *guid, void *interface) = *(void **)(boot_services + 152);
    struct loaded_image *image;
    uint64_t status = handle_protocol(image_handle, loaded_image_protocol, &image);

    check(&b, first_dirty(__bss_start, _end));
    if ( status )
        fail(&b, "HandleProtocol(LoadedImage)", status, 0);
    else
    {
        expect(&b, "LoadedImage->ImageBase", (uint64_t)image->image_base, (uint64_t)b.base);
        if ( image->image_size < expected.end_rva )
            fail(&b, "LoadedImage->ImageSize", image->image_size, expected.end_rva);
    }
    finish(&b);
}
