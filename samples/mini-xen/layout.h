/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What head.S, check.c and the host tool mksums.c have to agree on.
 */
#ifndef LAYOUT_H
#define LAYOUT_H

/* Keep in sync with --image-base in the Makefile and the addresses in mini-xen.lds. */
#define IMAGE_BASE      0xffff82d040000000
#define TEXT_RVA        0x200000

/* First dword of .text's code and of .init: do both run at the distance they were linked for? */
#define TEXT_MAGIC      0x74786574
#define INIT_MAGIC      0x74696e69

/* RVAs in the first page of .text that the tool may rewrite: the Multiboot headers. */
#define HEADER_START    (TEXT_RVA + 8)
#define HEADER_END      (TEXT_RVA + 0x200)
#define TEXT_PAGE_END   (TEXT_RVA + 0x1000)

#define EXPECTED_SIZE   440

#ifndef __ASSEMBLER__

#include <stdint.h>

/* A section below .bss as linked; sum is FNV-1a over [rva, rva + size), bytes in holes counting as 0. */
struct section {
    char name[24];
    uint32_t rva, size;
    uint64_t sum;
};

/* Bytes that legitimately differ between the linked file and memory. */
struct hole {
    uint32_t rva, size;
};

/* Zeros when linked, filled in by mksums. */
struct expected {
    struct section section[8];
    struct hole hole[8];
    uint32_t nr_sections, nr_holes;
    uint32_t end_rva;           /* of _end, and of __base_relocs_start as linked */
    uint32_t relocs_size;       /* of the whole base relocation table, in bytes */
    uint32_t nr_blocks;
    uint32_t nr_fixups;         /* without padding entries, and those of the Multiboot2 header */
    uint32_t nr_header_fixups;  /* those */
    uint32_t unused;
    uint64_t tags_sum;          /* of the Multiboot2 header as linked */
    uint64_t fixups_sum;        /* FNV-1a over nr_fixups targets and all blocks' headers, in table order */
    uint64_t sum;               /* FNV-1a over all of the above */
};

_Static_assert(sizeof(struct expected) == EXPECTED_SIZE, "head.S reserves the room");

#define FNV_START 0xcbf29ce484222325u

static inline uint64_t fnv_byte(uint64_t sum, uint8_t byte)
{
    return (sum ^ byte) * 0x100000001b3u;
}

static inline uint64_t fnv(uint64_t sum, const void *data, uint64_t size)
{
    const uint8_t *p = data;

    while ( size-- )
        sum = fnv_byte(sum, *p++);

    return sum;
}

/* Sum of a section's bytes wherever they are: in the file (mksums) or in memory (check.c). */
static inline uint64_t section_sum(const struct expected *e, const struct section *s, const uint8_t *data)
{
    uint64_t sum = FNV_START;

    for ( uint32_t i = 0; i < s->size; i++ )
    {
        uint8_t byte = data[i];

        for ( uint32_t h = 0; h < e->nr_holes; h++ )
            if ( s->rva + i - e->hole[h].rva < e->hole[h].size )
                byte = 0;

        sum = fnv_byte(sum, byte);
    }

    return sum;
}

static inline uint64_t fixup_sum(uint64_t sum, uint32_t type, uint32_t rva)
{
    uint32_t word = type << 28 | rva;

    return fnv(sum, &word, sizeof(word));
}

/* FNV-1a over the tags of a Multiboot2 header, without padding and without those the tool adds: ADDRESS, ENTRY_ADDRESS. */
static inline uint64_t tags_sum(const uint32_t *header)
{
    uint64_t sum = FNV_START;

    for ( const uint32_t *tag = header + 4; (uint16_t)tag[0] && tag[1] >= 8; tag += (tag[1] + 7) / 8 * 2 )
        if ( (uint16_t)tag[0] != 2 && (uint16_t)tag[0] != 3 )
            sum = fnv(sum, tag, tag[1]);

    return sum;
}

/* A block of the base relocation table. */
struct base_reloc_block {
    uint32_t rva, size;
    uint16_t entry[];
};

#define IMAGE_REL_BASED_ABSOLUTE 0
#define IMAGE_REL_BASED_HIGHLOW  3
#define IMAGE_REL_BASED_DIR64    10

#endif /* !__ASSEMBLER__ */

#endif
