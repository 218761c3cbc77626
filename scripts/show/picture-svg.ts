// SPDX-License-Identifier: GPL-2.0-only
// The picture as SVG that people can read and edit: a group for each thing, a line for each element, whole numbers.
// Kinds are told apart by patterns and names, not by colour alone; in a dark reader the colours change along
// (prefers-color-scheme), and where a reader does not say, the picture brings its own background.

import { hex } from "../cli/numbers.ts";
import { count, type Coverage, type Extent, type Part, type PictureFacts } from "./picture-facts.ts";
import { KINDS, type Kind } from "./picture-kinds.ts";
import { LEAST, MOST, PIXELS_PER_MIB, columnsOf, yOf, type Columns, type Strip } from "./picture-scale.ts";

// ---- places, in pixels

const MARGIN = 20;
const PANEL = { width: 580, top: 74, gap: 24 };
interface Place {
  readonly x: number;
  readonly width: number;
}
const FILE: Place = { x: 106, width: 124 };
const MEMORY: Place = { x: 314, width: 130 };
/** Brackets of what loaders copy: beside the file, and beside memory. */
const FILE_BRACKETS = { Multiboot2: 38, Multiboot1: 16 } as const;
const SPAN_BRACKET = 522;
const MEMORY_BRACKETS = { Multiboot2: 544, Multiboot1: 566 } as const;
const LINE = 18;
/** Characters of a remark's line. */
const MOST_CHARACTERS = 88;
const LEGEND = { column: 190, row: 24 };
/** Pixels of an average character at the size of running text, and then some. */
const CHARACTER = 6.7;

/** An image with its columns and its remarks in lines. */
interface Panel {
  readonly facts: PictureFacts;
  readonly columns: Columns;
  readonly remarks: readonly { readonly lines: readonly string[]; readonly bad: boolean }[];
}

/** One picture, of one image or of two side by side. */
export function svgPicture(pictures: readonly PictureFacts[]): string {
  const panels: Panel[] = pictures.map((facts) => ({
    facts,
    columns: columnsOf(facts),
    remarks: facts.remarks.map(({ text, bad }) => ({ lines: wrap(text, MOST_CHARACTERS), bad })),
  }));
  const low = Math.max(...panels.map(({ columns }) => columns.bottom)) + PANEL.top;
  const remarkCount = Math.max(...panels.map(({ remarks }) => remarks.flatMap(({ lines }) => lines).length));
  const remarksEnd = low + 26 + LINE * remarkCount;
  const strips = panels.flatMap(({ columns }) => [...columns.file, ...columns.memory]);
  const width = 2 * MARGIN + pictures.length * PANEL.width + (pictures.length - 1) * PANEL.gap;
  const scale = legend(strips, remarksEnd + 16, width - 2 * MARGIN);
  const height = remarksEnd + 16 + scale.height + MARGIN;
  const title = pictures.map((facts) => facts.title).join(" and ");
  return `${[
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img" aria-labelledby="title desc">`,
    "<!-- SPDX-License-Identifier: GPL-2.0-only -->",
    `<title id="title">Layout of ${escape(title)}</title>`,
    `<desc id="desc">${escape(description(pictures))}</desc>`,
    style(),
    patterns(),
    `<rect class="paper" width="${width}" height="${height}"/>`,
    ...panels.flatMap((panel, i) => panelLines(panel, i, low)),
    ...scale.lines,
    "</svg>",
  ].join("\n")}\n`;
}

function description(pictures: readonly PictureFacts[]): string {
  return pictures
    .map(({ title, remarks }) => `${title}:\n${remarks.map(({ text }) => `${text}.\n`).join("")}`)
    .join("");
}

export function escape(text: string): string {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
}

function wrap(text: string, most: number): string[] {
  const lines: string[] = [""];
  for (const word of text.split(" ")) {
    const line = lines.at(-1) ?? "";
    if (line !== "" && line.length + word.length >= most) lines.push(word);
    else lines[lines.length - 1] = line === "" ? word : `${line} ${word}`;
  }
  return lines;
}

// ---- colours and patterns

/** Paper, ink, and a fill for each kind: by day and by night. */
const COLOURS: readonly (readonly [selector: string, property: string, day: string, night: string])[] = [
  [".paper", "fill", "#ffffff", "#0d1117"],
  ["text, .ink", "fill", "#1f2328", "#e6edf3"],
  [".name, .cut", "stroke", "#ffffff", "#0d1117"],
  [".edge, .hatch, .bracket", "stroke", "#1f2328", "#e6edf3"],
  [".link", "fill", "#8c959f", "#8c959f"],
  [".f-headers, .f-zeros", "fill", "#ffffff", "#0d1117"],
  [".f-code", "fill", "#cfe3fb", "#1b3f66"],
  [".f-data", "fill", "#f6ecc9", "#4a4019"],
  [".f-reloc", "fill", "#f7d6ee", "#5a2450"],
  [".f-bss", "fill", "#e8ebee", "#2a3038"],
  [".f-debug", "fill", "#e2e0f5", "#34305c"],
  [".f-added", "fill", "#d7efdc", "#1e4a2a"],
  [".f-symbols", "fill", "#eeeeee", "#30363d"],
  [".f-gap", "fill", "#ffdcd7", "#5c1a16"],
  [".gap", "stroke", "#b3261e", "#b8433b"],
  [".bad", "stroke", "#b3261e", "#ff8a80"],
  [".badtext", "fill", "#b3261e", "#ff8a80"],
  [".good", "stroke", "#1a7f37", "#56d364"],
];

function style(): string {
  const day = COLOURS.map(([selector, property, colour]) => `${selector} { ${property}: ${colour} }`);
  const night = COLOURS.map(([selector, property, , colour]) => `  ${selector} { ${property}: ${colour} }`);
  return `<style>
text { font: 12px "DejaVu Sans", Verdana, sans-serif }
.title { font-size: 17px; font-weight: bold }
.small { font-size: 10.5px }
.strong { font-weight: bold }
.mid { text-anchor: middle }
.end { text-anchor: end }
.name { paint-order: stroke; stroke-width: 3px; stroke-linejoin: round }
.edge, .bracket, .gap, .good, .bad, .cut { fill: none }
.edge { stroke-width: 1 }
.hatch { stroke-width: 1; stroke-opacity: .32; fill: none }
.bracket { stroke-width: 1.5 }
.zeroed { stroke-dasharray: 3 3 }
.link { fill-opacity: .16 }
.cut { stroke-width: 5 }
.gap, .good, .bad { stroke-width: 2 }
.part:hover .link, .part:focus .link { fill-opacity: .5 }
.part:hover .edge, .part:focus .edge { stroke-width: 2.5 }
.part:focus { outline: none }
${day.join("\n")}
@media (prefers-color-scheme: dark) {
${night.join("\n")}
}
</style>`;
}

function patterns(): string {
  const all = KINDS.map(([kind, , hatch]) => {
    const lines = hatch === "" ? "" : path(kind === "gap" ? "gap" : "hatch", hatch);
    return `  <pattern id="${kind}" width="8" height="8" patternUnits="userSpaceOnUse"><rect class="f-${kind}" width="8" height="8"/>${lines}</pattern>`;
  });
  return ["<defs>", ...all, "</defs>"].join("\n");
}

// ---- elements

function path(classes: string, d: string): string {
  return `<path class="${classes}" d="${d}"/>`;
}

function box(kind: Kind, x: number, y: number, width: number, height: number): string {
  return `<rect class="edge" style="fill:url(#${kind})" x="${x}" y="${y}" width="${width}" height="${height}"/>`;
}

function words(x: number, y: number, text: string, classes = ""): string {
  return `<text${classes === "" ? "" : ` class="${classes}"`} x="${x}" y="${y}">${escape(text)}</text>`;
}

/** Words that go up, around a point. */
function upwards(x: number, y: number, text: string, classes: string): string {
  return `<text class="${classes}" transform="translate(${x} ${y}) rotate(-90)">${text}</text>`;
}

function indent(line: string): string {
  return `  ${line}`;
}

// ---- an image

function panelLines({ facts, columns, remarks }: Panel, index: number, low: number): string[] {
  const x = MARGIN + index * (PANEL.width + PANEL.gap);
  return [
    "",
    `<g id="image-${index + 1}" transform="translate(${x} 0)">`,
    ...[
      words(FILE.x, 34, facts.title, "title"),
      words(PANEL.width, 34, `${count(facts.size)} bytes`, "end"),
      words(FILE.x - 6, 62, "file offset", "small end"),
      words(FILE.x + FILE.width / 2, 62, "file", "strong mid"),
      words(MEMORY.x + MEMORY.width / 2, 62, "memory", "strong mid"),
      words(MEMORY.x + MEMORY.width + 6, 62, "RVA", "small"),
      `<g transform="translate(0 ${PANEL.top})">`,
      ...[...parts(facts, columns), ...gaps(columns), ...brackets(facts, columns)].map(indent),
      "</g>",
      ...remarkLines(remarks, low + 26),
    ].map(indent),
    "</g>",
  ];
}

/** Each part with its strips in both columns, so that pointing at one shows the other. */
function parts(facts: PictureFacts, { file, memory }: Columns): string[] {
  return facts.parts.flatMap((part) => {
    const [inFile, inMemory] = [file, memory].map((strips) => strips.filter((strip) => strip.part === part));
    return partGroup(part, inFile ?? [], inMemory ?? [], facts);
  });
}

/** What lies between the parts. */
function gaps({ file, memory }: Columns): string[] {
  const between = (strips: readonly Strip[], place: Place, what: string): string[] =>
    strips
      .filter(({ part, kind }) => part === undefined && kind !== "nothing")
      .flatMap((strip) => {
        const { start, end } = strip.extent;
        const name = words(place.x + place.width / 2, middle(strip), "gap", "name mid strong");
        return group(`gap: ${hex(start)} to ${hex(end)}, ${count(end - start)} bytes ${what}`, [
          ...rectangle(strip, place),
          ...(strip.height >= 14 ? [name] : []),
        ]);
      });
  return [
    ...between(file, FILE, "of the file that belong to nothing"),
    ...between(memory, MEMORY, "of memory that the file does not have"),
  ];
}

function group(title: string, lines: readonly string[]): string[] {
  return ['<g class="part" tabindex="0">', `  <title>${escape(title)}</title>`, ...lines.map(indent), "</g>"];
}

function partGroup(part: Part, file: readonly Strip[], memory: readonly Strip[], facts: PictureFacts): string[] {
  if (file.length + memory.length === 0) return [];
  const [inFile, ...others] = [file.find(({ named }) => named), ...memory.filter(({ named }) => named)];
  return group([part.name, ...part.details].join("\n"), [
    ...(inFile === undefined ? [] : others.flatMap((strip) => (strip === undefined ? [] : link(inFile, strip)))),
    ...file.flatMap((strip) => rectangle(strip, FILE)),
    ...memory.flatMap((strip) => rectangle(strip, MEMORY)),
    ...file.flatMap((strip) => labels(strip, FILE, facts)),
    ...memory.flatMap((strip) => labels(strip, MEMORY, facts)),
  ]);
}

function link(from: Strip, to: Strip): string[] {
  const [left, right] = [FILE.x + FILE.width, MEMORY.x];
  return [
    path("link", `M${left} ${from.y}L${right} ${to.y}v${to.height}L${left} ${from.y + from.height}z`),
    `<path class="edge" stroke-opacity=".5" d="M${left} ${from.y}L${right} ${to.y}M${left} ${from.y + from.height}L${right} ${to.y + to.height}"/>`,
  ];
}

function rectangle({ kind, y, height, cut }: Strip, { x, width }: Place): string[] {
  return [box(kind, x, y, width, height), ...(cut ? tear(x - 4, y + Math.round((height * 3) / 4), width + 8) : [])];
}

/** Across what is less high than the scale would have it. */
function tear(x: number, y: number, width: number): string[] {
  const line = (y: number): string => `M${x} ${y}${"l6 -4l6 4".repeat(Math.floor(width / 12))}`;
  return [path("cut", line(y)), path("edge", line(y - 2) + line(y + 2))];
}

function middle({ y, height, cut }: Strip): number {
  return y + Math.round(height / (cut ? 3 : 2)) + 4;
}

function labels(strip: Strip, place: Place, facts: PictureFacts): string[] {
  const { part, extent, named, y } = strip;
  if (part === undefined || !named) return [];
  const { x, width } = place;
  const inFile = place === FILE;
  const headers = inFile ? facts.headers.filter(({ at }) => at >= extent.start && at < extent.end) : [];
  const tags = headers.map(({ name }) => name).join(" ");
  const name = short(part.name);
  const address = hex(extent.start);
  return [
    ...(tags === ""
      ? [words(x + width / 2, middle(strip), name, "name mid")]
      : [
          words(x + 6, middle(strip), name, "name"),
          words(x + width - 4, middle(strip), tags, "name end strong small"),
        ]),
    inFile ? words(x - 6, y + 12, address, "small end") : words(x + width + 6, y + 12, address, "small"),
  ];
}

/** As much of a name as a strip is wide. */
function short(name: string): string {
  return name.length > 18 ? `${name.slice(0, 17)}…` : name;
}

// ---- what loaders copy

function brackets({ span, holes, coverage }: PictureFacts, { file, memory }: Columns): string[] {
  const kind = holes.length === 0 ? "bracket" : "bad";
  const loadSpan = span && heightOf(memory, { start: span.first, end: span.dataEnd });
  return [
    ...(loadSpan === undefined ? [] : bracket("load span", SPAN_BRACKET, loadSpan, 1, kind)),
    ...coverage.flatMap((cover) => {
      const x = MEMORY_BRACKETS[cover.name];
      const loaded = heightOf(memory, cover.memory);
      return [
        ...bracket(`${cover.name} reads`, FILE_BRACKETS[cover.name], heightOf(file, cover.file), -1, "bracket"),
        ...bracket(`${cover.name} loads`, x, loaded, 1, "bracket"),
        ...zeroed(cover, x, loaded.bottom, memory),
      ];
    }),
  ];
}

const ROUNDING = 4096;

/** What is drawn beside some strips, in pixels. */
type Height = ReturnType<typeof heightOf>;

function heightOf(strips: readonly Strip[], { start, end }: Extent) {
  // What begins where a strip does must not be drawn at the end of the strip above it.
  const at = strips.findLast(({ extent }) => extent.start === start)?.y ?? yOf(strips, start);
  // What ends in the rounding of a strip's end ends with the strip.
  const last = strips.find(({ extent }) => extent.start < end && end <= extent.end && extent.end - end < ROUNDING);
  return { top: Math.round(at), bottom: last === undefined ? Math.round(yOf(strips, end)) : last.y + last.height };
}

/** @param side -1: the ticks point to the right, the words are left of it; 1: the other way round */
function bracket(text: string, x: number, { top, bottom }: Height, side: 1 | -1, kind: string): string[] {
  const textX = x + side * (side === 1 ? 12 : 5);
  const classes = `small mid${kind === "bad" ? " badtext" : ""}`;
  return [
    path(kind, `M${x - 4 * side} ${top}H${x}V${bottom}h${-4 * side}`),
    upwards(textX, Math.round((top + bottom) / 2), text, classes),
  ];
}

function zeroed({ zeroedTo }: Coverage, x: number, top: number, memory: readonly Strip[]): string[] {
  const bottom = Math.round(yOf(memory, zeroedTo));
  const text = upwards(x + 12, Math.round((top + bottom) / 2), "zeroes", "small mid");
  return [path("bracket zeroed", `M${x} ${top}V${bottom}h-4`), ...(bottom - top < 40 ? [] : [text])];
}

function remarkLines(remarks: Panel["remarks"], top: number): string[] {
  let y = top;
  return remarks.flatMap(({ lines, bad }) => {
    const mark = bad ? path("bad", `M2 ${y - 9}l8 8m0 -8l-8 8`) : path("good", `M2 ${y - 5}l3 4l6 -8`);
    const text = lines.map((line, i) => words(18, y + i * LINE, line));
    y += lines.length * LINE;
    return [mark, ...text];
  });
}

// ---- what the picture means

function legend(strips: readonly Strip[], top: number, width: number): { lines: string[]; height: number } {
  const kinds = KINDS.filter(([kind]) => strips.some((strip) => strip.kind === kind));
  const perRow = Math.floor(width / LEGEND.column);
  const swatches = kinds.flatMap(([kind, name], i) => {
    const [x, y] = [(i % perRow) * LEGEND.column, Math.floor(i / perRow) * LEGEND.row];
    return [box(kind, x, y, 26, 16), words(x + 33, y + 12, name)];
  });
  const y = Math.ceil(kinds.length / perRow) * LEGEND.row + LINE;
  const lines = wrap(
    `This is 1 MiB, of file and of memory. Not to scale: what would be less than ${LEAST} pixels high, the height of a name; and what has a tear, which is more than ${MOST / PIXELS_PER_MIB} MiB. Where the lines between file and memory are level, the file is linear. MB1, MB2: the Multiboot headers.`,
    Math.floor((width - 12) / CHARACTER),
  );
  const drawn = [
    "",
    `<g id="legend" transform="translate(${MARGIN} ${top})">`,
    ...swatches.map(indent),
    indent(path("bracket", `M4 ${y - 12}H0V${y - 12 + PIXELS_PER_MIB}h4`)),
    ...lines.map((line, i) => indent(words(12, y + i * LINE, line))),
    "</g>",
  ];
  return { lines: drawn, height: y + lines.length * LINE };
}
