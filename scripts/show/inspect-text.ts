// SPDX-License-Identifier: GPL-2.0-only
// inspect's facts as text to read, and to compare with a golden: one fact a line or a table row, aligned columns, no path,
// no date. All sizes and addresses are hexadecimal, all ranges half-open; a count is decimal.

import { hex, printable, range } from "../cli/numbers.ts";
import { INT3, NOP } from "../xen/multiboot.ts";
import { repeatedText } from "../loaders/relocation-table.ts";
import type { MultibootPlace, TagFacts } from "./inspect-boot.ts";
import type { Facts, Plain } from "./inspect-facts.ts";

export function factsText(facts: Facts): string {
  const sizeOfHeaders = Number(facts.optional.sizeOfHeaders);
  const [coffFlags, dllFlags] = [facts.coffFlagNames.join(" "), facts.dllFlagNames.join(" ")];
  const blocks = [
    summary(facts),
    section("MS-DOS header", [["e_lfanew", hex(facts.lfanew)]]),
    section("COFF file header", fieldRows(facts.coff, { characteristics: coffFlags, machine: "x86-64" })),
    section(
      "Optional header",
      fieldRows(facts.optional, { magic: "PE32+", subsystem: facts.subsystemName, dllCharacteristics: dllFlags }),
    ),
    directories(facts),
    sections(facts),
    multiboot1(facts.multiboot1, sizeOfHeaders),
    multiboot2(facts.multiboot2, sizeOfHeaders),
    relocations(facts),
    debug(facts),
    symbols(facts),
    regions(facts),
  ];
  return blocks.map((lines) => lines.map((line) => `${line}\n`).join("")).join("\n");
}

// ---- lines

type Row = readonly string[];

/** A heading and its rows, in columns as wide as their widest cell. */
function section(heading: string, rows: readonly Row[]): string[] {
  return [heading, ...table(rows)];
}

/** Names come from the file, and a terminal would act on some of them: every cell is made printable. */
export function table(rows: readonly Row[]): string[] {
  const cells = rows.map((row) => row.map(printable));
  const widths: number[] = [];
  for (const row of cells) row.forEach((cell, i) => (widths[i] = Math.max(widths[i] ?? 0, cell.length)));
  return cells.map((row) => `  ${row.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join("  ")}`.trimEnd());
}

type Notes = Readonly<Record<string, string>>;

/** Every field of a structure, in its order, under the PE specification's name. */
function fieldRows(fields: Plain, notes: Notes = {}): Row[] {
  return Object.entries(fields).map(([field, value]) => [
    field.charAt(0).toUpperCase() + field.slice(1),
    typeof value === "string" || isCount(field) ? String(value) : hex(value),
    notes[field] ?? "",
  ]);
}

function isCount(field: string): boolean {
  return /^(major|minor|numberOf)/.test(field);
}

/** The same in the Multiboot specifications' spelling: header_addr. */
function snakeRows(fields: Readonly<Record<string, number>>, notes: Notes = {}): Row[] {
  return Object.entries(fields).map(([field, value]) => [
    field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
    hex(value),
    notes[field] ?? "",
  ]);
}

function counts(numbers: Readonly<Record<string, number>>): string {
  return Object.entries(numbers)
    .map(([name, number]) => `${name} ${number}`)
    .join(", ");
}

/** Two cells. */
function rangeAndSize(start: number, end: number): Row {
  return [range(start, end), hex(end - start)];
}

function problemRows(problem: string | null): Row[] {
  return problem === null ? [] : [["problem", problem]];
}

// ---- blocks

function summary({ file, checkSum, signed, problems, loadSpan, noLoadSpan }: Facts): string[] {
  const { found, computed, right } = checkSum;
  return section("File", [
    ["size", `${hex(file.size)}, ${file.size} bytes`],
    ["SHA-256", file.sha256],
    ["CheckSum", right ? `${hex(found)}, right` : `${hex(found)}, wrong: ${hex(computed)} computed`],
    ["signed", signed ? "yes" : "no"],
    ...(loadSpan === null ? [["load span", `none: ${noLoadSpan}`]] : spanRows(loadSpan)),
    ...problems.flatMap(problemRows),
  ]);
}

function spanRows({ first, dataEnd, bssStart, bssEnd, delta, notLinear }: NonNullable<Facts["loadSpan"]>): Row[] {
  const linear = notLinear === null ? "yes" : `no: ${notLinear}`;
  return [
    ["load span", `${range(first, dataEnd)}, .bss at ${hex(bssStart)}, zeroed up to ${hex(bssEnd)}`],
    ["linear", delta === null ? linear : `${linear}, file offset = RVA - ${hex(delta)} in the load span`],
  ];
}

function directories({ directories }: Facts): string[] {
  return section("Data directories", [
    ["#", "name", "range", "size", "section"],
    ...directories.map(({ name, virtualAddress, size, section }, i) => {
      const where = section ?? (name === "Certificate Table" ? "file offset" : "no section");
      const empty = virtualAddress === 0 && size === 0;
      return [String(i), name, ...(empty ? ["-"] : [...rangeAndSize(virtualAddress, virtualAddress + size), where])];
    }),
  ]);
}

function sections({ sections }: Facts): string[] {
  return section("Sections", [
    ["#", "name", "file range", "size", "memory range", "size", "RVA - file", "rwx", "flags"],
    ...sections.map((one, i) => {
      const { name, storedName, header, file, memory } = one;
      const nowhere = header.pointerToRawData === 0 ? "-" : `at ${hex(Number(header.pointerToRawData))}`;
      return [
        String(i + 1),
        name === printable(storedName) ? name : `${name} (${storedName})`,
        ...(file === null ? [nowhere, "0x0"] : rangeAndSize(file.start, file.end)),
        ...rangeAndSize(memory.start, memory.end),
        one.delta === null ? "-" : signedHex(one.delta),
        one.rwx,
        [hex(Number(header.characteristics)), ...one.flagNames, ...leftovers(header)].join(" "),
      ];
    }),
  ]);
}

/** The header fields that only object files use; zero in every image so far. */
function leftovers(header: Plain): string[] {
  const fields = ["pointerToRelocations", "pointerToLinenumbers", "numberOfRelocations", "numberOfLinenumbers"];
  return fields.filter((field) => header[field] !== 0).map((field) => `${field}=${hex(Number(header[field]))}`);
}

function signedHex(value: number): string {
  return value < 0 ? `-${hex(-value)}` : hex(value);
}

function placeText({ fileOffset, rva, section, found }: MultibootPlace, sizeOfHeaders: number, window: string): string {
  const nowhere = fileOffset < sizeOfHeaders ? "in the header area" : "in no section's data";
  const where = rva === null ? nowhere : `RVA ${hex(rva)} in ${printable(section ?? "")}`;
  return `at file offset ${hex(fileOffset)}, ${where}${found ? "" : `: too far, loaders look at the first ${window} of the file`}`;
}

function multiboot1(facts: Facts["multiboot1"], sizeOfHeaders: number): string[] {
  if (facts === null) return ["Multiboot1 header: none"];
  return section(`Multiboot1 header ${placeText(facts, sizeOfHeaders, "8 KiB")}`, [
    ...snakeRows(facts.fields, { flags: facts.flagNames.join(" ") }),
    ...problemRows(facts.problem),
  ]);
}

function multiboot2(facts: Facts["multiboot2"], sizeOfHeaders: number): string[] {
  if (facts === null) return ["Multiboot2 header: none"];
  const { fields, tags, rva, behind, problem } = facts;
  const where = rva === null ? "" : ` at RVA ${hex(rva + fields.headerLength)}`;
  const padding = behind !== null && [NOP, INT3].includes(behind.byte) ? `${hex(behind.bytes)} bytes of` : "no";
  return [
    ...section(`Multiboot2 header ${placeText(facts, sizeOfHeaders, "32 KiB")}`, snakeRows(fields)),
    ...(problem === null
      ? table([["offset", "type", "flags", "size", "tag"], ...tags.map(tagRow)])
      : [`  problem: ${problem}`]),
    ...(behind === null ? [] : [`  behind it${where}: ${padding} padding, ${hex(behind.byte)}`]),
  ];
}

function tagRow({ offset, type, name, optional, flags, size, fields, requests, rest }: TagFacts): Row {
  const flagText = optional ? `${hex(flags)} OPTIONAL` : hex(flags);
  const values = Object.entries(fields).map(([field, value]) => `${field}=${hex(value)}`);
  const tag = [name, ...values, ...requests, ...(rest === "" ? [] : [`rest=${rest}`])].join(" ");
  return [`+${hex(offset)}`, String(type), flagText, hex(size), tag];
}

/** Where the table still begins at _end, dozens of instructions compute that address. */
const SHOWN_REFERENCES = 4;

function addresses(rvas: readonly number[]): string {
  const more = rvas.length - SHOWN_REFERENCES;
  return rvas.slice(0, SHOWN_REFERENCES).map(hex).join(" ") + (more > 0 ? ` and ${more} more` : "") || "none";
}

function relocations({ relocations }: Facts): string[] {
  const { entries, types, sections, blocks, repeated } = relocations;
  const address = (rva: number | null): string => (rva === null ? "-" : hex(rva));
  const rows = blocks.map(({ page, size, first, last, sections, types }) => {
    return [hex(page), hex(size), address(first), address(last), sections.join(" ") || "-", counts(types)];
  });
  return [
    ...section("Base relocations", [
      ["entries", entries === 0 ? "0" : `${entries}: ${counts(types)}`],
      ["targets", counts(sections) || "none"],
      ["lea of its start", addresses(relocations.startReferences)],
      ["lea of its end", addresses(relocations.endReferences)],
      ...(repeated === null ? [] : [["repeated", `${repeatedText(repeated)}: a PE loader relocates that twice`]]),
      ...problemRows(relocations.problem),
    ]),
    ...(rows.length === 0 ? [] : table([["page", "size", "first", "last", "in", "entries"], ...rows])),
  ];
}

function debug({ debug }: Facts): string[] {
  if (debug.length === 0) return ["Debug directory: none"];
  return debug.flatMap(({ typeName, fileOffset, codeView, ...fields }, i) => {
    const right = fileOffset === null || fileOffset === fields.pointerToRawData;
    return section(`Debug directory entry ${i + 1}: ${typeName}`, [
      ...fieldRows(fields, right ? {} : { pointerToRawData: `wrong: AddressOfRawData is at ${hex(fileOffset)}` }),
      ...(codeView === null
        ? []
        : [
            [codeView.signature, `age ${hex(codeView.age)}, path "${codeView.path}"`],
            ["build-id", codeView.guid],
          ]),
    ]);
  });
}

function symbols({ symbols, coff }: Facts): string[] {
  if (coff.numberOfSymbols === 0) return ["Symbols: none"];
  if (symbols.length === 0) return ["Symbols: none of Xen's"];
  return section(
    "Symbols",
    symbols.map(({ name, rva, section, external }) => [hex(rva), section, external ? "external" : "static", name]),
  );
}

function regions({ regions }: Facts): string[] {
  return section(
    "File, part by part",
    regions.map(({ what, start, end, sha256, zeros, overlaps }) => [
      ...rangeAndSize(start, end),
      zeros ? "zeros" : sha256,
      overlaps ? `${what}, overlapping` : what,
    ]),
  );
}
