// SPDX-License-Identifier: GPL-2.0-only
// Where everything in a picture goes: one column for the file, one for memory, on one scale. File and memory are lined up
// where the load span begins, so that what is linear is drawn by level lines.
//
// To scale: PIXELS_PER_MIB. Two things are not, and the picture says so: what would be too low for its name is drawn
// LEAST pixels high, and what would be higher than MOST is cut there, with a mark.

import type { Extent, Part, PictureFacts } from "./picture-facts.ts";
import type { Kind } from "./picture-kinds.ts";

export const PIXELS_PER_MIB = 32;
/** A name needs so much; so much is enough for what has none. */
export const LEAST = 17;
const LEAST_NAMELESS = 6;
/** 4 MiB. */
export const MOST = 4 * PIXELS_PER_MIB;
/** Less than a page of zeros, or of nothing, is not drawn: it is rounding. */
const LEAST_BYTES = 4096;
const MIB = 1 << 20;

/** A rectangle of a column. */
export interface Strip {
  /** Undefined for what lies between parts. */
  readonly part: Part | undefined;
  readonly kind: Kind;
  /** What it stands for: file offsets or RVAs. */
  readonly extent: Extent;
  /** Pixels from the top of the picture. */
  readonly y: number;
  readonly height: number;
  /** Whether it is less high than the scale would have it. */
  readonly cut: boolean;
  /** Whether it carries its part's name. */
  readonly named: boolean;
}

export interface Columns {
  readonly file: readonly Strip[];
  readonly memory: readonly Strip[];
  readonly bottom: number;
}

/** Both columns, beginning at or below y = 0. */
export function columnsOf(facts: PictureFacts): Columns {
  const file = fileColumn(facts);
  const memory = memoryColumn(facts);
  const first = facts.span?.sections[0];
  const at = (strips: readonly Strip[]): number =>
    strips.find((s) => s.part !== undefined && s.named && s.part.memory?.start === first?.header.virtualAddress)?.y ??
    0;
  const distance = first === undefined ? 0 : at(memory) - at(file);
  const moved = (strips: readonly Strip[], by: number): Strip[] => strips.map((s) => ({ ...s, y: s.y + by }));
  const [down, up] = [moved(file, Math.max(0, distance)), moved(memory, Math.max(0, -distance))];
  const bottom = [...down, ...up].reduce((lowest, { y, height }) => Math.max(lowest, y + height), 0);
  return { file: down, memory: up, bottom };
}

/** The y of a file offset or an RVA; between strips, that of the nearest. */
export function yOf(strips: readonly Strip[], address: number): number {
  for (const { extent, y, height } of strips) {
    if (address < extent.start) return y;
    if (address <= extent.end) return y + (height * (address - extent.start)) / Math.max(1, extent.end - extent.start);
  }
  const last = strips.at(-1);
  return last === undefined ? 0 : last.y + last.height;
}

// ---- the columns

class Column {
  readonly strips: Strip[] = [];
  #y = 0;

  add(part: Part | undefined, kind: Kind, extent: Extent, named: boolean): void {
    const bytes = extent.end - extent.start;
    if (!named && kind !== "gap" && bytes < LEAST_BYTES) return;
    const scaled = Math.round((bytes * PIXELS_PER_MIB) / MIB);
    const height = Math.min(MOST, Math.max(named ? LEAST : LEAST_NAMELESS, scaled));
    this.strips.push({ part, kind, extent, y: this.#y, height, cut: height < scaled, named });
    this.#y += height;
  }

  /** A part: its name on what is not zeros, then the zeros. */
  addPart(part: Part, { start, end }: Extent): void {
    const middle = part.content === 0 ? end : Math.min(end, start + part.content);
    // Zeros of less than a page would not be drawn: they are part of what is.
    const zerosAt = end - middle < LEAST_BYTES ? end : middle;
    this.add(part, part.content === 0 && part.kind !== "bss" ? "zeros" : part.kind, { start, end: zerosAt }, true);
    this.add(part, "zeros", { start: zerosAt, end }, false);
  }
}

function fileColumn({ parts, strays }: PictureFacts): Strip[] {
  const column = new Column();
  const items: { extent: Extent; part?: Part }[] = [
    ...parts.flatMap((part) => (part.file === undefined ? [] : [{ extent: part.file, part }])),
    ...strays.map((extent) => ({ extent })),
  ].sort((a, b) => a.extent.start - b.extent.start);
  for (const { extent, part } of items) {
    if (part === undefined) column.add(undefined, "gap", extent, true);
    else column.addPart(part, extent);
  }
  return column.strips;
}

function memoryColumn({ parts, holes, coverage, span }: PictureFacts): Strip[] {
  const column = new Column();
  const loaded = parts.flatMap((part) => (part.memory === undefined ? [] : [{ part, extent: part.memory }]));
  const below = coverage.find(({ memory }) => span !== undefined && memory.start < span.first);
  const headers = parts.find(({ kind }) => kind === "headers");
  // Multiboot1 loads the header area directly below the span, PE loaders at RVA 0.
  if (below !== undefined && headers !== undefined && span !== undefined)
    loaded.push({ part: headers, extent: { start: below.memory.start, end: span.first } });
  loaded.sort((a, b) => a.extent.start - b.extent.start);
  let end = 0;
  for (const { part, extent } of loaded) {
    const hole = holes.find(({ start }) => start === end);
    if (hole !== undefined) column.add(undefined, "gap", hole, false);
    else column.add(undefined, "nothing", { start: end, end: extent.start }, false);
    column.addPart(part, extent);
    end = Math.max(end, extent.end);
  }
  return column.strips;
}
