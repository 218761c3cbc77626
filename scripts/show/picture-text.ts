// SPDX-License-Identifier: GPL-2.0-only
// The picture in words, for terminals, for screen readers and where nothing is drawn: a line for each thing in the order
// of the file, then what is in memory only; marks for what Multiboot loads; the same remarks.

import { hex } from "../cli/numbers.ts";
import { table } from "./inspect-text.ts";
import { count, type Coverage, type Extent, type Part, type PictureFacts } from "./picture-facts.ts";

/** What is somewhere; undefined where it is not. */
type Place = Pick<Part, "file" | "memory">;

export function textPicture(pictures: readonly PictureFacts[]): string {
  return pictures.map(onePicture).join("\n");
}

function onePicture(facts: PictureFacts): string {
  const { title, size, remarks, coverage } = facts;
  const ends = (place: Extent | undefined): string[] => (place ? [hex(place.start), hex(place.end)] : ["-", ""]);
  const lines = rows(facts).map((row) => [
    row.name,
    ...ends(row.file),
    ...ends(row.memory),
    ...coverage.map((cover) => mark(cover, row)),
  ]);
  const heading = ["", "file", "to", "memory", "to", ...coverage.map(({ name }) => name)];
  const notes = remarks.map(({ text, bad }) => `  ${bad ? "!" : " "} ${text}\n`);
  return `${title}: ${count(size)} bytes\n${table([heading, ...lines]).join("\n")}\n\n${notes.join("")}`;
}

function rows({ parts, holes, strays }: PictureFacts): (Place & { readonly name: string })[] {
  const all = [
    ...parts,
    ...holes.map((memory) => ({ name: "(gap)", file: undefined, memory })),
    ...strays.map((file) => ({ name: "(nothing's)", file, memory: undefined })),
  ];
  const by = (key: keyof Place) => (a: Place, b: Place) => (a[key]?.start ?? 0) - (b[key]?.start ?? 0);
  const [inFile, rest] = [all.filter(({ file }) => file), all.filter(({ file }) => !file)];
  return [...inFile.sort(by("file")), ...rest.sort(by("memory"))];
}

function mark(cover: Coverage, { file, memory }: Place): string {
  if (file !== undefined && file.start < cover.file.end && file.end > cover.file.start)
    return file.end > cover.file.end + 4095 ? "loaded in part" : "loaded";
  if (memory !== undefined && memory.start < cover.zeroedTo && memory.end > cover.memory.end) return "zeroed";
  return "";
}
