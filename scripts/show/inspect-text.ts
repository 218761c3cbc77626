// SPDX-License-Identifier: GPL-2.0-only
// inspect's facts as text to read, and to compare with a golden: one fact a line or a table row, aligned columns, no path,
// no date. All sizes and addresses are hexadecimal, all ranges half-open; a count is decimal.

import { hex, printable, range } from "../cli/numbers.ts";
import type { MultibootPlace, TagFacts } from "./inspect-boot.ts";
import type { Facts, Plain } from "./inspect-facts.ts";

export function factsText(facts: Facts): string {
  const sizeOfHeaders = Number(facts.optional.sizeOfHeaders);
  const blocks = [
    summary(facts),
    section("MS-DOS header", [["e_lfanew", hex(facts.lfanew)]]),
    section(
      "COFF file header",
      fieldRows(facts.coff, { characteristics: facts.coffFlagNames.join(" "), machine: "x86-64" }),
    ),
    section(
      "Optional header",
      fieldRows(facts.optional, {
        magic: "PE32+",
        subsystem: facts.subsystemName,
        dllCharacteristics: facts.dllFlagNames.join(" "),
      }),
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
function table(rows: readonly Row[]): string[] {
  const widths: number[] = [];
  for (const row of rows) row.forEach((cell, i) => (widths[i] = Math.max(widths[i] ?? 0, printable(cell).length)));
  return rows.map((row) => `  ${row.map((cell, i) => printable(cell).padEnd(widths[i] ?? 0)).join("  ")}`.trimEnd());
}

/** Every field of a structure, in its order, under the PE specification's name. */
function fieldRows(fields: Plain, remarks: Readonly<Record<string, string>> = {}): Row[] {
  return Object.entries(fields).map(([name, value]) => [
    name.charAt(0).toUpperCase() + name.slice(1),
    typeof value === "string" ? value : isCount(name) ? String(value) : hex(value),
    remarks[name] ?? "",
  ]);
}

function isCount(field: string): boolean {
  return /^(major|minor|numberOf)/.test(field);
}

function counts(numbers: Readonly<Record<string, number>>): string {
  return Object.entries(numbers)
    .map(([name, number]) => `${name} ${number}`)
    .join(", ");
}

function yesNo(reasonAgainst: string | null): string {
  return reasonAgainst === null ? "yes" : `no: ${reasonAgainst}`;
}

// ---- blocks

function summary({ file, checkSum, signed, problems, loadSpan, noLoadSpan }: Facts): string[] {
  const span: Row[] =
    loadSpan === null
      ? [["load span", `none: ${noLoadSpan}`]]
      : [
          [
            "load span",
            `${range(loadSpan.first, loadSpan.dataEnd)}, .bss at ${hex(loadSpan.bssStart)}, zeroed up to ${hex(loadSpan.bssEnd)}`,
          ],
          [
            "linear",
            yesNo(loadSpan.notLinear) +
              (loadSpan.delta === null ? "" : `, file offset = RVA - ${hex(loadSpan.delta)} in the load span`),
          ],
        ];
  return section("File", [
    ["size", `${hex(file.size)}, ${file.size} bytes`],
    ["SHA-256", file.sha256],
    [
      "CheckSum",
      checkSum.right
        ? `${hex(checkSum.found)}, right`
        : `${hex(checkSum.found)}, wrong: ${hex(checkSum.computed)} computed`,
    ],
    ["signed", signed ? "yes" : "no"],
    ...span,
    ...problems.map((problem) => ["problem", problem]),
  ]);
}

function directories({ directories }: Facts): string[] {
  return section("Data directories", [
    ["#", "name", "range", "size", "section"],
    ...directories.map(({ name, virtualAddress, size, section }, i) =>
      virtualAddress === 0 && size === 0
        ? [String(i), name, "-"]
        : [
            String(i),
            name,
            range(virtualAddress, virtualAddress + size),
            hex(size),
            section ?? (name === "Certificate Table" ? "file offset" : "no section"),
          ],
    ),
  ]);
}

function sections({ sections }: Facts): string[] {
  return section("Sections", [
    ["#", "name", "file range", "size", "memory range", "size", "RVA - file", "rwx", "flags"],
    ...sections.flatMap(({ name, storedName, header, file, memory, delta, rwx, flagNames }, i) => [
      [
        String(i + 1),
        name === printable(storedName) ? name : `${name} (${storedName})`,
        file === null
          ? header.pointerToRawData === 0
            ? "-"
            : `at ${hex(Number(header.pointerToRawData))}`
          : range(file.start, file.end),
        file === null ? "0x0" : hex(file.end - file.start),
        range(memory.start, memory.end),
        hex(memory.end - memory.start),
        delta === null ? "-" : signedHex(delta),
        rwx,
        [hex(Number(header.characteristics)), ...flagNames, ...leftovers(header)].join(" "),
      ],
    ]),
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

/** What emit-header may grow into: NOP or INT3. */
const PADDING: readonly number[] = [0x90, 0xcc];

function multiboot1(facts: Facts["multiboot1"], sizeOfHeaders: number): string[] {
  if (facts === null) return ["Multiboot1 header: none"];
  const rows = snakeRows(facts.fields, { flags: facts.flagNames.join(" ") });
  return section(
    `Multiboot1 header ${placeText(facts, sizeOfHeaders, "8 KiB")}`,
    facts.problem === null ? rows : [...rows, ["problem", facts.problem]],
  );
}

function multiboot2(facts: Facts["multiboot2"], sizeOfHeaders: number): string[] {
  if (facts === null) return ["Multiboot2 header: none"];
  const { fields, tags, behind, problem } = facts;
  const end = facts.rva === null ? "" : ` at RVA ${hex(facts.rva + (fields.headerLength ?? 0))}`;
  return [
    ...section(`Multiboot2 header ${placeText(facts, sizeOfHeaders, "32 KiB")}`, snakeRows(fields)),
    ...(problem === null
      ? table([["offset", "type", "flags", "size", "tag"], ...tags.map(tagRow)])
      : [`  problem: ${problem}`]),
    ...(behind === null
      ? []
      : [
          `  behind it${end}: ${PADDING.includes(behind.byte) ? `${hex(behind.bytes)} bytes of padding, ` : "no padding, "}${hex(behind.byte)}`,
        ]),
  ];
}

function tagRow({ offset, type, name, optional, flags, size, fields, requests, rest }: TagFacts): Row {
  const flagText = optional ? `${hex(flags)} OPTIONAL` : hex(flags);
  const values = Object.entries(fields).map(([field, value]) => `${field}=${hex(value)}`);
  const tag = [name, ...values, ...requests, ...(rest === "" ? [] : [`rest=${rest}`])].join(" ");
  return [`+${hex(offset)}`, String(type), flagText, hex(size), tag];
}

/** The Multiboot specifications' spelling: header_addr. */
function snakeRows(fields: Readonly<Record<string, number>>, remarks: Readonly<Record<string, string>> = {}): Row[] {
  return Object.entries(fields).map(([name, value]) => [
    name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
    hex(value),
    remarks[name] ?? "",
  ]);
}

/** Where the table still begins at _end, dozens of instructions compute that address. */
const SHOWN_REFERENCES = 4;

function addresses(rvas: readonly number[]): string {
  const more = rvas.length - SHOWN_REFERENCES;
  return rvas.slice(0, SHOWN_REFERENCES).map(hex).join(" ") + (more > 0 ? ` and ${more} more` : "") || "none";
}

function relocations({
  relocations: { entries, types, sections, blocks, startReferences, endReferences, problem },
}: Facts): string[] {
  return [
    ...section("Base relocations", [
      ["entries", entries === 0 ? "0" : `${entries}: ${counts(types)}`],
      ["targets", counts(sections) || "none"],
      ["lea of its start", addresses(startReferences)],
      ["lea of its end", addresses(endReferences)],
      ...(problem === null ? [] : [["problem", problem]]),
    ]),
    ...(blocks.length === 0
      ? []
      : table([
          ["page", "size", "first", "last", "in", "entries"],
          ...blocks.map((block) => [
            hex(block.page),
            hex(block.size),
            block.first === null ? "-" : hex(block.first),
            block.last === null ? "-" : hex(block.last),
            block.sections.join(" ") || "-",
            counts(block.types),
          ]),
        ])),
  ];
}

function debug({ debug }: Facts): string[] {
  if (debug.length === 0) return ["Debug directory: none"];
  return debug.flatMap(({ typeName, fileOffset, codeView, ...fields }, i) => [
    ...section(`Debug directory entry ${i + 1}: ${typeName}`, [
      ...fieldRows(fields, {
        pointerToRawData:
          fileOffset === null || fileOffset === fields.pointerToRawData
            ? ""
            : `wrong: AddressOfRawData is at ${hex(fileOffset)}`,
      }),
      ...(codeView === null
        ? []
        : [
            [codeView.signature, `age ${hex(codeView.age)}, path "${codeView.path}"`],
            ["build-id", codeView.guid],
          ]),
    ]),
  ]);
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
      range(start, end),
      hex(end - start),
      zeros ? "zeros" : sha256,
      overlaps ? `${what}, overlapping` : what,
    ]),
  );
}
