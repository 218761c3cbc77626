/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Host tool: fills in the table `expected` of a freshly linked mini-xen, in place, and the PE checksum.
 *
 * It runs on what our own linker script makes, so it asserts instead of explaining.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "layout.h"

static uint8_t image[1 << 20] __attribute__((aligned(8)));
static size_t image_size;
static uint8_t *pe;             /* at the signature */
static uint8_t *symbols, *strings;
static uint32_t nr_symbols;

static uint16_t get16(const uint8_t *p)
{
    return p[0] | p[1] << 8;
}

static uint32_t get32(const uint8_t *p)
{
    return get16(p) | (uint32_t)get16(p + 2) << 16;
}

static void put32(uint8_t *p, uint32_t value)
{
    for ( int i = 0; i < 4; i++ )
        p[i] = value >> 8 * i;
}

static uint8_t *section_header(unsigned int i)
{
    assert(i < get16(pe + 6));

    return pe + 24 + get16(pe + 20) + 40 * i;
}

static uint8_t *at_rva(uint32_t rva)
{
    for ( unsigned int i = 0; i < get16(pe + 6); i++ )
    {
        const uint8_t *s = section_header(i);

        if ( rva - get32(s + 12) < get32(s + 8) )
            return image + get32(s + 20) + rva - get32(s + 12);
    }

    assert(!"RVA in no section");
}

static uint32_t symbol_rva(const char *name)
{
    for ( uint32_t i = 0; i < nr_symbols; i += 1 + symbols[18 * i + 17] )
    {
        const uint8_t *s = symbols + 18 * i;
        char buf[9] = "";

        memcpy(buf, s, 8);
        if ( !strcmp(get32(s) ? buf : (char *)strings + get32(s + 4), name) )
            return get32(section_header(get16(s + 12) - 1) + 12) + get32(s + 8);
    }

    fprintf(stderr, "no symbol %s\n", name);
    exit(1);
}

static void section_name(char *out, const uint8_t *header)
{
    memcpy(out, header, 8);
    if ( *out == '/' )
        strcpy(out, (char *)strings + atoi(out + 1));
}

static void add_hole(struct expected *e, uint32_t rva, uint32_t size)
{
    assert(e->nr_holes < sizeof(e->hole) / sizeof(*e->hole));
    e->hole[e->nr_holes].rva = rva;
    e->hole[e->nr_holes++].size = size;
}

static void fill_relocs(struct expected *e)
{
    const uint8_t *directory = pe + 24 + 112 + 5 * 8, *p = at_rva(get32(directory)), *end;

    e->relocs_size = get32(directory + 4);
    e->fixups_sum = FNV_START;
    for ( end = p + e->relocs_size; p < end; p += get32(p + 4) )
    {
        e->nr_blocks++;
        e->fixups_sum = fnv(e->fixups_sum, p, 8);
        for ( uint32_t i = 8; i < get32(p + 4); i += 2 )
        {
            uint32_t type = get16(p + i) >> 12, rva = get32(p) + (get16(p + i) & 0xfff);

            if ( type == IMAGE_REL_BASED_ABSOLUTE )
                continue;
            if ( rva < TEXT_PAGE_END )
            {
                e->nr_header_fixups++;
                continue;
            }
            e->nr_fixups++;
            e->fixups_sum = fixup_sum(e->fixups_sum, type, rva);
        }
    }
    assert(p == end);
}

static void fill_checksum(void)
{
    uint32_t sum = 0;

    put32(pe + 24 + 64, 0);
    for ( size_t i = 0; i < image_size; i += 2 )
    {
        sum += get16(image + i);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    put32(pe + 24 + 64, sum + image_size);
}

int main(int argc, char **argv)
{
    struct expected e = { .nr_sections = 0 };
    uint32_t expected_rva, bss_rva;
    FILE *f = argc == 2 ? fopen(argv[1], "r+b") : NULL;

    if ( !f )
    {
        fprintf(stderr, "usage: mksums IMAGE\n");
        return 2;
    }
    image_size = fread(image, 1, sizeof(image), f);
    assert(image_size < sizeof(image));

    pe = image + get32(image + 60);
    nr_symbols = get32(pe + 16);
    symbols = image + get32(pe + 12);
    strings = symbols + 18 * nr_symbols;

    add_hole(&e, HEADER_START, HEADER_END - HEADER_START);
    /* The displacements of the instructions that refer to the base relocation table. */
    for ( uint32_t rva = symbol_rva("displacements"); rva < symbol_rva("displacements_end"); rva += 4 )
        add_hole(&e, rva + get32(at_rva(rva)), 4);
    /* PointerToRawData of the debug directory's only entry: an offset in the file. */
    add_hole(&e, get32(pe + 24 + 112 + 6 * 8) + 24, 4);
    expected_rva = symbol_rva("expected");
    add_hole(&e, expected_rva, sizeof(e));

    bss_rva = symbol_rva("__bss_start");
    for ( unsigned int i = 0; get32(section_header(i) + 12) < bss_rva; i++ )
    {
        const uint8_t *header = section_header(i);
        struct section *s = &e.section[e.nr_sections++];

        section_name(s->name, header);
        s->size = get32(header + 8);
        s->rva = get32(header + 12);
        s->sum = section_sum(&e, s, image + get32(header + 20));
    }

    e.end_rva = symbol_rva("_end");
    assert(e.end_rva == symbol_rva("__base_relocs_start"));
    e.tags_sum = tags_sum((const uint32_t *)at_rva(symbol_rva("multiboot2_header")));
    fill_relocs(&e);
    e.sum = fnv(FNV_START, &e, sizeof(e) - sizeof(e.sum));

    memcpy(at_rva(expected_rva), &e, sizeof(e));
    fill_checksum();

    rewind(f);
    if ( fwrite(image, 1, image_size, f) != image_size || fclose(f) )
    {
        perror(argv[1]);
        return 1;
    }

    return 0;
}
