// SPDX-License-Identifier: GPL-2.0-only
// The pictures: goldens of them, what a reader has to be able to see in them, and that any image can be drawn.

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ImageError } from "./cli/errors.ts";
import { Fuzzer } from "./dev/fuzz/run.ts";
import { beforeAndAfter, matchView } from "./dev/golden/views.ts";
import type { BeforeAndAfter } from "./dev/golden/views.ts";
import { TOP } from "./dev/places.ts";
import { run, sample } from "./dev/sample/run.ts";
import { command, drawLayout } from "./layout.ts";
import { pictureFacts } from "./show/picture-facts.ts";
import { KINDS } from "./show/picture-kinds.ts";
import { MOST, PIXELS_PER_MIB, columnsOf } from "./show/picture-scale.ts";

const MINI = beforeAndAfter("mini-xen", "move") as BeforeAndAfter;
const both = ({ original, result }: BeforeAndAfter): [string, Uint8Array][] => [
  ["xen.efi", original],
  ["xen.mb.efi", result],
];
const SVG = drawLayout(both(MINI), "svg");
const HTML = drawLayout(both(MINI), "html");
const TEXT = drawLayout(both(MINI), "text");

/** A program that judges; in CI it must be there. */
function judge(program: string, args: readonly string[], input: string): string | undefined {
  const { error, status, stderr } = spawnSync(program, args, { input, encoding: "utf8" });
  if (error !== undefined && process.env.CI !== "true") {
    console.log(`skipped: ${program} is not there, which would have judged the picture`);
    return undefined;
  }
  assert.is(error, undefined);
  return status === 0 ? "" : stderr;
}

// ---

const goldens = suite("pictures");

goldens("mini-xen before and after, as SVG and as text", () => {
  matchView("mini-xen-layout.svg", SVG);
  matchView("mini-xen-layout.txt", TEXT);
});

for (const name of ["4.17.7+13"]) {
  const pair = beforeAndAfter(name, "move");
  (pair === undefined ? goldens.skip : goldens)(`${name} before and after: the README's picture`, () => {
    matchView(`${name}-layout.svg`, drawLayout(both(pair as BeforeAndAfter), "svg"));
    assert.ok(
      fs.readFileSync(path.join(TOP, "README.md"), "utf8").includes(`golden/views/${name}-layout.svg`),
      "README shows another one",
    );
  });
}

goldens.run();

// ---

const svg = suite("SVG");

svg("it is well-formed, and drawn by librsvg", () => {
  const fault = judge("xmllint", ["--noout", "-"], SVG);
  assert.ok(fault === undefined || fault === "", fault);
  const undrawn = judge("rsvg-convert", ["--format", "png"], SVG);
  assert.ok(undrawn === undefined || undrawn === "", undrawn);
  if (fault !== undefined)
    assert.is.not(judge("xmllint", ["--noout", "-"], SVG.replace("</svg>", "")), "", "the judge judges");
});

svg("people can read it: a line for each element, none long, whole numbers", () => {
  const lines = SVG.split("\n");
  assert.is(lines.filter((line) => line.length > 400).join("\n"), "");
  assert.is(
    lines
      .filter((line) => (line.match(/<(rect|path|text|g)\b/g) ?? []).length > 1 && !line.includes("<pattern"))
      .join("\n"),
    "",
  );
  assert.is(
    lines.filter((line) => /\b(x|y|d|width|height)="[^"]*\d\.\d/.test(line)).join("\n"),
    "",
    "fractions of pixels",
  );
});

svg("a section's name is text in it, whatever characters it has", () => {
  const odd = drawLayout([['<"&>.efi', sample("set section .rodata.name <&>'")]], "svg");
  assert.ok(odd.includes("&lt;&amp;&gt;'</text>") && odd.includes("&lt;&quot;&amp;&gt;.efi"));
  const fault = judge("xmllint", ["--noout", "-"], odd);
  assert.ok(fault === undefined || fault === "", fault);
});

svg("what is linear is drawn by level lines, what is not by others", () => {
  const slopes = (bytes: Uint8Array): number[] => {
    const drawn = drawLayout([["x", bytes]], "svg");
    return [...drawn.matchAll(/class="link" d="M\d+ (\d+)L\d+ (\d+)/g)].map(
      ([, from, to]) => Number(to) - Number(from),
    );
  };
  const [before, after] = [slopes(MINI.original), slopes(MINI.result)];
  // The sections of the load span, and the header area as Multiboot1 loads it. For PE loaders that is at RVA 0.
  assert.is(
    after.filter((slope) => slope === 0).length,
    (pictureFacts(MINI.result, "x").span?.sections.length ?? 0) + 1,
    after.join(" "),
  );
  assert.ok((after[0] ?? 0) < 0, after.join(" "));
  assert.ok(before.filter((slope) => slope !== 0).length > 4, before.join(" "));
});

svg("a strip is as high as the scale says, unless it is torn or as high as its name", () => {
  for (const { original, result } of [MINI]) {
    for (const bytes of [original, result]) {
      const { file, memory } = columnsOf(pictureFacts(bytes, "x"));
      for (const { extent, height, cut, named } of [...file, ...memory]) {
        const scaled = ((extent.end - extent.start) * PIXELS_PER_MIB) / (1 << 20);
        if (cut) assert.is(height, MOST);
        else
          assert.ok(
            Math.abs(height - scaled) <= 0.5 || (scaled < height && height <= (named ? 17 : 6)),
            `${height} for ${scaled}`,
          );
      }
    }
  }
});

svg("no words run out of the picture, of one image or of two", () => {
  for (const images of [both(MINI), both(MINI).slice(0, 1)]) {
    const drawn = drawLayout(images, "svg");
    const width = Number(/ width="(\d+)"/.exec(drawn)?.[1]);
    let left = 0;
    for (const line of drawn.split("\n")) {
      left = Number(/<g id="[^"]+" transform="translate\((\d+) /.exec(line)?.[1] ?? left);
      const [, classes = "", x, words = ""] = /<text(?: class="([^"]*)")? x="(\d+)"[^>]*>([^<]*)</.exec(line) ?? [];
      if (x === undefined || /\b(end|mid)\b/.test(classes)) continue;
      const end = left + Number(x) + 6.7 * words.replace(/&\w+;/g, "x").length * (classes.includes("title") ? 1.6 : 1);
      assert.ok(end <= width, `${Math.round(end)} of ${width}: ${words}`);
    }
  }
});

svg("gaps are red and named before, and there are none after", () => {
  const gaps = (bytes: Uint8Array): number => drawLayout([["x", bytes]], "svg").match(/<title>gap: /g)?.length ?? 0;
  assert.ok(gaps(MINI.original) >= 3, String(gaps(MINI.original)));
  assert.is(gaps(MINI.result), 0);
  assert.match(SVG, />gap<\/text>/);
});

svg("it does not rely on colour: no two kinds have the same pattern and no name", () => {
  const hatches = new Map(
    [...SVG.matchAll(/<pattern id="(\w+)".*?<\/pattern>/g)].map(([whole, kind]) => [
      kind ?? "",
      / d="([^"]*)"/.exec(whole)?.[1] ?? "",
    ]),
  );
  assert.is(hatches.size, KINDS.length);
  // Headers and data are the two plain ones: both have their names on them, as everything of a part has.
  const plain = [...hatches].filter(([, hatch]) => hatch === "").map(([kind]) => kind);
  assert.equal(plain, ["headers", "data"]);
  assert.is(new Set(hatches.values()).size, KINDS.length - 1);
});

svg("text can be read on everything it stands on, by day and by night", () => {
  const [day = "", night = ""] = SVG.slice(SVG.indexOf("<style>"), SVG.indexOf("</style>")).split(
    "@media (prefers-color-scheme: dark)",
  );
  for (const css of [day, night]) {
    const colours = (selector: RegExp, property: string): string[] =>
      [...css.matchAll(/^ *([^\n{]+) \{ (fill|stroke): (#[0-9a-f]{6}) \}$/gm)]
        .filter(([, s, p]) => selector.test(s ?? "") && p === property)
        .map(([, , , colour]) => colour ?? "");
    const [ink = ""] = colours(/^text/, "fill");
    const grounds = [...colours(/^\.f-/, "fill"), ...colours(/^\.paper/, "fill")];
    assert.ok(grounds.length > 8);
    for (const ground of grounds)
      assert.ok(contrast(ink, ground) >= 7, `${ink} on ${ground}: ${contrast(ink, ground)}`);
    const [bad = "", paper = ""] = [colours(/^\.badtext/, "fill")[0], colours(/^\.paper/, "fill")[0]];
    assert.ok(contrast(bad, paper) >= 4.5, `${bad} on ${paper}`);
  }
});

/** As WCAG 2 defines it, "contrast ratio". */
function contrast(one: string, other: string): number {
  const light = (colour: string): number => {
    const [r = 0, g = 0, b = 0] = [1, 3, 5].map((at) => {
      const c = parseInt(colour.slice(at, at + 2), 16) / 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [low = 0, high = 0] = [light(one), light(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

svg.run();

// ---

const page = suite("HTML and text");

page("the page asks for nothing, from nowhere", () => {
  const addresses = [...HTML.matchAll(/\bhttps?:[^\s"'<]*/g)].map(([address]) => address);
  assert.equal([...new Set(addresses)], ["http://www.w3.org/2000/svg"], "a name of SVG, which nobody fetches");
  assert.not.match(HTML, /\b(src|href)=|@import|url\((?!#)/);
  assert.match(HTML, /Content-Security-Policy" content="default-src 'none'/);
});

page("every part says what it is to who points at it, and the page has the text", () => {
  const parts = [...HTML.matchAll(/<g class="part" tabindex="0">\s*<title>([^<]+)<\/title>/g)].map(
    ([, title]) => title ?? "",
  );
  assert.ok(parts.length > 20, String(parts.length));
  assert.ok(
    parts.some((title) =>
      /^\.init\nfile \[0x[0-9a-f]+,0x[0-9a-f]+\), memory \[.*\n\d.* bytes in the file, \d.* in memory\nrwx CODE/.test(
        title,
      ),
    ),
  );
  assert.ok(HTML.includes(TEXT.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;")));
});

page("the text has every section's addresses, as an independent reader of PE sees them", () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "layout-"));
  try {
    const file = path.join(folder, "xen.efi");
    fs.writeFileSync(file, MINI.original);
    const { stdout, error } = spawnSync("objdump", ["-h", file], { encoding: "utf8" });
    if (error !== undefined && process.env.CI !== "true")
      return void console.log("skipped: objdump is not there, which would have judged the addresses");
    const text = drawLayout([["x", MINI.original]], "text");
    const rows = [
      ...stdout.matchAll(/^ +\d+ (\.\S+) +([0-9a-f]{8}) +([0-9a-f]{16}) +[0-9a-f]{16} +([0-9a-f]{8})/gm),
    ].filter(([, name]) => !name?.startsWith(".debug"));
    assert.ok(rows.length >= 8, stdout);
    for (const [, name = "", , vma = "", offset = ""] of rows) {
      const line = text.split("\n").find((l) => l.trim().startsWith(`${name} `)) ?? "";
      const rva = BigInt(`0x${vma}`) - 0xffff82d040000000n;
      assert.ok(line.includes(`0x${rva.toString(16)} `), `${name}: ${line}`);
      if (Number(`0x${offset}`) !== 0)
        assert.ok(line.includes(`0x${Number(`0x${offset}`).toString(16)} `), `${name}: ${line}`);
    }
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
});

page.run();

// ---

const usage = suite("layout.ts");

usage("writes to a file or to standard output, reads standard input", async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "layout-"));
  try {
    const file = (name: string): string => path.join(folder, name);
    fs.writeFileSync(file("xen.efi"), MINI.original);
    fs.writeFileSync(file("xen.mb.efi"), MINI.result);
    assert.is((await run(command, [file("xen.efi"), file("xen.mb.efi"), "--svg", file("x.svg")])).status, 0);
    assert.is(fs.readFileSync(file("x.svg"), "utf8"), SVG);
    assert.is((await run(command, [file("xen.efi"), file("xen.mb.efi"), "--html", "-"])).stdout.toString(), HTML);
    assert.is((await run(command, [file("xen.efi"), file("xen.mb.efi")])).stdout.toString(), TEXT);
    assert.is((await run(command, [file("xen.efi"), file("xen.mb.efi"), "--text"])).stdout.toString(), TEXT);
    assert.match((await run(command, ["-"], MINI.result)).stdout.toString(), /^<stdin>: /);
    const wrong = async (args: string[], message: RegExp): Promise<void> => {
      const { status, stderr, stdout } = await run(command, args);
      assert.is(status, 2);
      assert.match(stderr, message);
      assert.is(stdout.length, 0);
    };
    await wrong([], /^layout\.ts: FILE is missing; see layout\.ts --help\n$/);
    await wrong(["a", "--svg", "x", "--text"], /^layout\.ts: --svg and --text are both given, needed one; /);
    await wrong(["-", "-"], /FILE and FILE2 are both '-'/);
    await wrong([file("xen.efi"), "--svg", file("xen.efi")], /is the same file as IN/);
    const bad = await run(command, [file("x.svg"), "--svg", file("y.svg")]);
    assert.is(bad.status, 1);
    assert.match(bad.stderr, /^[^\n]*x\.svg: Cannot read the image: [^\n]*\n$/);
    assert.not.ok(fs.existsSync(file("y.svg")));
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
});

usage("any bytes are drawn, or refused in a line", () => {
  const fuzzer = new Fuzzer(20260907);
  let drawn = 0;
  for (let i = 0; i < 1000; i++) {
    try {
      const picture = drawLayout([["x", fuzzer.image(i).bytes]], "html");
      assert.not.match(picture, /undefined|NaN|\[object/);
      drawn++;
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
      assert.match(error.message, /^Cannot (read|draw)[^\n]*$/);
    }
  }
  assert.ok(drawn > 100, String(drawn));
});

usage("an image without a load span is drawn, with the reason; one of very many sections is not", () => {
  assert.match(
    drawLayout([["x", sample("set section .bss.name .bzz")]], "text"),
    /! no load span: there is no section \.bss/,
  );
  const many = sample(
    Array.from(
      { length: 60 },
      (_, i) => `section .s${i} rva=0x${(0x1000000 + 4096 * i).toString(16)} flags=data,read\nhex 01`,
    ).join("\n"),
  );
  assert.throws(() => drawLayout([["x", many]], "text"), /^Cannot draw: there are 7\d parts, needed at most 48$/);
});

usage.run();
