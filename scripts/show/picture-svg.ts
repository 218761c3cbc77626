// SPDX-License-Identifier: GPL-2.0-only
// The picture as SVG that people can read and edit: a group for each thing, a line for each element, whole numbers.
// Kinds are told apart by patterns and names, not by colour alone; in a dark reader the colours change along
// (prefers-color-scheme), and where a reader does not say, the picture brings its own background.

import { hex } from "../cli/numbers.ts";
import { count } from "./picture-facts.ts";
import type { Coverage, Extent, Part, PictureFacts } from "./picture-facts.ts";
import { KINDS } from "./picture-kinds.ts";
import type { Kind } from "./picture-kinds.ts";
import { LEAST, MOST, PIXELS_PER_MIB, columnsOf, yOf } from "./picture-scale.ts";
import type { Columns, Strip } from "./picture-scale.ts";

// ---- places, in pixels

const MARGIN = 20;
const PANEL = { width: 580, top: 74, gap: 24 };
const FILE = { x: 106, width: 124 };
const MEMORY = { x: 314, width: 130 };
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

/** One picture, of one image or of two side by side. */
export function svgPicture(pictures: readonly PictureFacts[]): string {
  const panels = pictures.map((facts) => ({ facts, columns: columnsOf(facts) }));
  const low = Math.max(...panels.map(({ columns }) => columns.bottom)) + PANEL.top;
  const wrapped = pictures.map(({ remarks }) => remarks.map(({ text, bad }) => ({ lines: wrap(text), bad })));
  const remarksEnd =
    low + 26 + LINE * Math.max(...wrapped.map((remarks) => remarks.reduce((n, { lines }) => n + lines.length, 0)));
  const kinds = KINDS.filter(([kind]) =>
    panels.some(({ columns }) => [...columns.file, ...columns.memory].some((s) => s.kind === kind)),
  );
  const width = 2 * MARGIN + pictures.length * PANEL.width + (pictures.length - 1) * PANEL.gap;
  const scale = legend(kinds, remarksEnd + 16, width - 2 * MARGIN);
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
    ...panels.flatMap(({ facts, columns }, i) =>
      panel(facts, columns, MARGIN + i * (PANEL.width + PANEL.gap), low, wrapped[i] ?? [], i),
    ),
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

function wrap(text: string, most = MOST_CHARACTERS): string[] {
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
  const rules = (night: boolean): string[] =>
    COLOURS.map(([selector, property, day, dark]) => `${selector} { ${property}: ${night ? dark : day} }`);
  return [
    "<style>",
    'text { font: 12px "DejaVu Sans", Verdana, sans-serif }',
    ".title { font-size: 17px; font-weight: bold }",
    ".small { font-size: 10.5px }",
    ".strong { font-weight: bold }",
    ".mid { text-anchor: middle }",
    ".end { text-anchor: end }",
    ".name { paint-order: stroke; stroke-width: 3px; stroke-linejoin: round }",
    ".edge, .bracket, .gap, .good, .bad, .cut { fill: none }",
    ".edge { stroke-width: 1 }",
    ".hatch { stroke-width: 1; stroke-opacity: .32; fill: none }",
    ".bracket { stroke-width: 1.5 }",
    ".zeroed { stroke-dasharray: 3 3 }",
    ".link { fill-opacity: .16 }",
    ".cut { stroke-width: 5 }",
    ".gap, .good, .bad { stroke-width: 2 }",
    ".part:hover .link, .part:focus .link { fill-opacity: .5 }",
    ".part:hover .edge, .part:focus .edge { stroke-width: 2.5 }",
    ".part:focus { outline: none }",
    ...rules(false),
    "@media (prefers-color-scheme: dark) {",
    ...rules(true).map((rule) => `  ${rule}`),
    "}",
    "</style>",
  ].join("\n");
}

/** What is drawn over the fill, in a square of 8 pixels. */
const HATCHES: Readonly<Record<Exclude<Kind, "nothing">, string>> = {
  headers: "",
  code: "M0 8L8 0",
  data: "",
  reloc: "M0 8L8 0M0 0L8 8",
  bss: "M1 2h2M5 6h2",
  zeros: "M3 4h1",
  debug: "M0 2h8M0 6h8",
  added: "M0 0L8 8",
  symbols: "M2 0v8M6 0v8",
  gap: "M0 0L8 8M0 8L8 0",
};

function patterns(): string {
  const all = KINDS.map(([kind]) => {
    const hatch = HATCHES[kind as Exclude<Kind, "nothing">];
    const lines = hatch === "" ? "" : `<path class="${kind === "gap" ? "gap" : "hatch"}" d="${hatch}"/>`;
    return `  <pattern id="${kind}" width="8" height="8" patternUnits="userSpaceOnUse"><rect class="f-${kind}" width="8" height="8"/>${lines}</pattern>`;
  });
  return ["<defs>", ...all, "</defs>"].join("\n");
}

// ---- an image

type Wrapped = { readonly lines: readonly string[]; readonly bad: boolean };

function panel(
  facts: PictureFacts,
  columns: Columns,
  x: number,
  low: number,
  remarks: readonly Wrapped[],
  index: number,
): string[] {
  return [
    "",
    `<g id="image-${index + 1}" transform="translate(${x} 0)">`,
    ...[
      `<text class="title" x="${FILE.x}" y="34">${escape(facts.title)}</text>`,
      `<text class="end" x="${PANEL.width}" y="34">${count(facts.size)} bytes</text>`,
      `<text class="small end" x="${FILE.x - 6}" y="62">file offset</text>`,
      `<text class="strong mid" x="${FILE.x + FILE.width / 2}" y="62">file</text>`,
      `<text class="strong mid" x="${MEMORY.x + MEMORY.width / 2}" y="62">memory</text>`,
      `<text class="small" x="${MEMORY.x + MEMORY.width + 6}" y="62">RVA</text>`,
      `<g transform="translate(0 ${PANEL.top})">`,
      ...[...parts(facts, columns), ...brackets(facts, columns)].map(indent),
      "</g>",
      ...remarkLines(remarks, low + 26),
    ].map(indent),
    "</g>",
  ];
}

function indent(line: string): string {
  return `  ${line}`;
}

/** Each part with its strips in both columns, so that pointing at one shows the other. */
function parts(facts: PictureFacts, { file, memory }: Columns): string[] {
  const between = [...file, ...memory].filter(({ part, kind }) => part === undefined && kind !== "nothing");
  return [
    ...facts.parts.flatMap((part) =>
      partGroup(
        part,
        file.filter((s) => s.part === part),
        memory.filter((s) => s.part === part),
        facts,
      ),
    ),
    ...between.flatMap((strip) => {
      const place = file.includes(strip) ? FILE : MEMORY;
      const bytes = strip.extent.end - strip.extent.start;
      return group(
        `gap: ${hex(strip.extent.start)} to ${hex(strip.extent.end)}, ${count(bytes)} bytes${place === MEMORY ? " of memory that the file does not have" : " of the file that belong to nothing"}`,
        [
          ...rectangle(strip, place),
          ...(strip.height >= 14
            ? [`<text class="name mid strong" x="${place.x + place.width / 2}" y="${middle(strip)}">gap</text>`]
            : []),
        ],
      );
    }),
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
    `<path class="link" d="M${left} ${from.y}L${right} ${to.y}v${to.height}L${left} ${from.y + from.height}z"/>`,
    `<path class="edge" stroke-opacity=".5" d="M${left} ${from.y}L${right} ${to.y}M${left} ${from.y + from.height}L${right} ${to.y + to.height}"/>`,
  ];
}

function rectangle({ kind, y, height, cut }: Strip, { x, width }: { x: number; width: number }): string[] {
  return [
    `<rect class="edge" style="fill:url(#${kind})" x="${x}" y="${y}" width="${width}" height="${height}"/>`,
    ...(cut ? zigzag(x - 4, y + Math.round((height * 3) / 4), width + 8) : []),
  ];
}

/** A tear across what is less high than the scale would have it. */
function zigzag(x: number, y: number, width: number): string[] {
  const teeth = Math.floor(width / 12);
  const line = `M${x} ${y}${"l6 -4l6 4".repeat(teeth)}`;
  return [
    `<path class="cut" d="${line}"/>`,
    `<path class="edge" d="M${x} ${y - 2}${"l6 -4l6 4".repeat(teeth)}M${x} ${y + 2}${"l6 -4l6 4".repeat(teeth)}"/>`,
  ];
}

function middle({ y, height, cut }: Strip): number {
  return y + Math.round(height / (cut ? 3 : 2)) + 4;
}

function labels(strip: Strip, { x, width }: { x: number; width: number }, facts: PictureFacts): string[] {
  const { part, extent, named } = strip;
  if (part === undefined || !named) return [];
  const inFile = x === FILE.x;
  const tags = inFile
    ? facts.headers.filter(({ at }) => at >= extent.start && at < extent.end).map(({ name }) => name)
    : [];
  const address = inFile
    ? `<text class="small end" x="${x - 6}" y="${strip.y + 12}">${hex(extent.start)}</text>`
    : `<text class="small" x="${x + width + 6}" y="${strip.y + 12}">${hex(extent.start)}</text>`;
  const name =
    tags.length === 0
      ? `<text class="name mid" x="${x + width / 2}" y="${middle(strip)}">${escape(short(part.name))}</text>`
      : `<text class="name" x="${x + 6}" y="${middle(strip)}">${escape(short(part.name))}</text>`;
  return [
    name,
    ...(tags.length === 0
      ? []
      : [`<text class="name end strong small" x="${x + width - 4}" y="${middle(strip)}">${tags.join(" ")}</text>`]),
    address,
  ];
}

/** As much of a name as a strip is wide. */
function short(name: string): string {
  return name.length > 18 ? `${name.slice(0, 17)}…` : name;
}

// ---- what loaders copy

function brackets(facts: PictureFacts, { file, memory }: Columns): string[] {
  const { span, holes, coverage } = facts;
  const lines: string[] = [];
  if (span !== undefined) {
    const bad = holes.length !== 0;
    lines.push(
      ...bracket(
        "load span",
        SPAN_BRACKET,
        extentY(memory, { start: span.first, end: span.dataEnd }),
        1,
        bad ? "bad" : "bracket",
      ),
    );
  }
  for (const cover of coverage) {
    lines.push(...bracket(`${cover.name} reads`, FILE_BRACKETS[cover.name], extentY(file, cover.file), -1, "bracket"));
    const x = MEMORY_BRACKETS[cover.name];
    const loaded = extentY(memory, cover.memory);
    lines.push(...bracket(`${cover.name} loads`, x, loaded, 1, "bracket"), ...zeroed(cover, x, loaded.end, memory));
  }
  return lines;
}

const ROUNDING = 4096;

function extentY(strips: readonly Strip[], { start, end }: Extent): Extent {
  // What begins where a strip does must not be drawn at the end of the strip above it.
  const at = strips.findLast(({ extent }) => extent.start === start)?.y ?? yOf(strips, start);
  // What ends in the rounding of a strip's end ends with the strip.
  const last = strips.find(({ extent }) => extent.start < end && end <= extent.end && extent.end - end < ROUNDING);
  return { start: Math.round(at), end: last === undefined ? Math.round(yOf(strips, end)) : last.y + last.height };
}

/** @param side -1: the ticks point to the right, the words are left of it; 1: the other way round */
function bracket(words: string, x: number, { start, end }: Extent, side: 1 | -1, kind: string): string[] {
  const tick = -4 * side;
  const [textX, textY] = [x + side * (side === 1 ? 12 : 5), Math.round((start + end) / 2)];
  return [
    `<path class="${kind}" d="M${x + tick} ${start}H${x}V${end}h${tick}"/>`,
    `<text class="small mid${kind === "bad" ? " badtext" : ""}" transform="translate(${textX} ${textY}) rotate(-90)">${words}</text>`,
  ];
}

function zeroed({ zeroedTo }: Coverage, x: number, from: number, memory: readonly Strip[]): string[] {
  const end = Math.round(yOf(memory, zeroedTo));
  const words =
    end - from < 40
      ? []
      : [
          `<text class="small mid" transform="translate(${x + 12} ${Math.round((from + end) / 2)}) rotate(-90)">zeroes</text>`,
        ];
  return [`<path class="bracket zeroed" d="M${x} ${from}V${end}h-4"/>`, ...words];
}

function remarkLines(remarks: readonly Wrapped[], top: number): string[] {
  let y = top;
  return remarks.flatMap(({ lines, bad }) => {
    const mark = bad
      ? `<path class="bad" d="M2 ${y - 9}l8 8m0 -8l-8 8"/>`
      : `<path class="good" d="M2 ${y - 5}l3 4l6 -8"/>`;
    const text = lines.map((line) => {
      const element = `<text x="18" y="${y}">${escape(line)}</text>`;
      y += LINE;
      return element;
    });
    return [mark, ...text];
  });
}

// ---- what the picture means

function legend(kinds: typeof KINDS, top: number, width: number): { lines: string[]; height: number } {
  const perRow = Math.floor(width / LEGEND.column);
  const swatches = kinds.flatMap(([kind, words], i) => {
    const [x, y] = [(i % perRow) * LEGEND.column, Math.floor(i / perRow) * LEGEND.row];
    return [
      `<rect class="edge" style="fill:url(#${kind})" x="${x}" y="${y}" width="26" height="16"/>`,
      `<text x="${x + 33}" y="${y + 12}">${words}</text>`,
    ];
  });
  const y = Math.ceil(kinds.length / perRow) * LEGEND.row + LINE;
  const words = wrap(
    `This is 1 MiB, of file and of memory. Not to scale: what would be less than ${LEAST} pixels high, the height of a name; and what has a tear, which is more than ${MOST / PIXELS_PER_MIB} MiB. Where the lines between file and memory are level, the file is linear. MB1, MB2: the Multiboot headers.`,
    Math.floor((width - 12) / CHARACTER),
  );
  const lines = [
    "",
    `<g id="legend" transform="translate(${MARGIN} ${top})">`,
    ...swatches.map(indent),
    `  <path class="bracket" d="M4 ${y - 12}H0V${y - 12 + PIXELS_PER_MIB}h4"/>`,
    ...words.map((line, i) => `  <text x="12" y="${y + i * LINE}">${line}</text>`),
    "</g>",
  ];
  return { lines, height: y + words.length * LINE };
}
