// SPDX-License-Identifier: GPL-2.0-only
// The picture in words, for terminals, for screen readers and where nothing is drawn: a line for each thing in the order
// of the file, then what is in memory only; marks for what Multiboot loads; the same remarks.

import { hex } from "../cli/numbers.ts";
import { count, type Coverage, type Extent, type PictureFacts } from "./picture-facts.ts";

interface Row {
  readonly name: string;
  readonly file: Extent | undefined;
  readonly memory: Extent | undefined;
}

export function textPicture(pictures: readonly PictureFacts[]): string {
  return pictures.map(onePicture).join("\n");
}

function onePicture(facts: PictureFacts): string {
  const { title, size, remarks, coverage } = facts;
  const lines = rows(facts).map(({ name, file, memory }) => [
    name,
    file === undefined ? "-" : hex(file.start),
    file === undefined ? "" : hex(file.end),
    memory === undefined ? "-" : hex(memory.start),
    memory === undefined ? "" : hex(memory.end),
    ...coverage.map((cover) => mark(cover, file, memory)),
  ]);
  const table = [["", "file", "to", "memory", "to", ...coverage.map(({ name }) => name)], ...lines];
  const width = (column: number): number => Math.max(...table.map((row) => row[column]?.length ?? 0));
  const padded = table.map((row) => `  ${row.map((cell, i) => cell.padEnd(width(i))).join("  ")}`.trimEnd());
  return `${title}: ${count(size)} bytes\n${padded.join("\n")}\n\n${remarks.map(({ text, bad }) => `  ${bad ? "!" : " "} ${text}\n`).join("")}`;
}

function rows({ parts, holes, strays }: PictureFacts): Row[] {
  const all: Row[] = [
    ...parts,
    ...holes.map((memory) => ({ name: "(gap)", file: undefined, memory })),
    ...strays.map((file) => ({ name: "(nothing's)", file, memory: undefined })),
  ];
  const inFile = all
    .filter(({ file }) => file !== undefined)
    .sort((a, b) => (a.file?.start ?? 0) - (b.file?.start ?? 0));
  const rest = all
    .filter(({ file }) => file === undefined)
    .sort((a, b) => (a.memory?.start ?? 0) - (b.memory?.start ?? 0));
  return [...inFile, ...rest];
}

function mark(cover: Coverage, file: Extent | undefined, memory: Extent | undefined): string {
  if (file !== undefined && file.start < cover.file.end && file.end > cover.file.start)
    return file.end > cover.file.end + 4095 ? "loaded in part" : "loaded";
  if (memory !== undefined && memory.start < cover.zeroedTo && memory.end > cover.memory.end) return "zeroed";
  return "";
}
