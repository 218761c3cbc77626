// SPDX-License-Identifier: GPL-2.0-only
// SBAT tables that shim does not read, each with the message that says why.

import { Buffer } from "node:buffer";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { hasSbatComponent, sbatFault } from "./sbat.ts";

const HEAD = "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md";
const XEN = "xen.example,1,Example,xen,4.17,https://example.com";
const fault = (text: string): string | undefined => sbatFault(Buffer.from(text, "latin1"));

const WRONG: readonly [what: string, text: string, message: RegExp][] = [
  ["nothing", "", /^the last line does not end with a line feed/],
  ["a byte order mark", `\xef\xbb\xbf${HEAD}\n`, /^line 1 begins with a byte order mark/],
  ["CR LF", `${HEAD}\r\n${XEN}\r\n`, /^line 1 has a carriage return, needed line feeds only$/],
  ["a CR later", `${HEAD}\n${XEN}\r\n`, /^line 2 has a carriage return/],
  ["a NUL", `${HEAD}\n${XEN}\n\0`, /^line 3 has the byte 0x0, needed printable ASCII$/],
  ["UTF-8", `${HEAD}\nxen,1,Ex\xc3\xa4mple,xen,4.17,url\n`, /^line 2 has the byte 0xc3/],
  ["no last LF", `${HEAD}\n${XEN}`, /^the last line does not end with a line feed, needed one$/],
  ["no head", `${XEN}\n`, /^line 1 is 'xen\.example,.*', needed 'sbat,1,SBAT Version,sbat,1,…'$/],
  ["an old head", "sbat,1,2021030218\n", /^line 1 is 'sbat,1,2021030218', needed/],
  ["the head second", `${XEN}\n${HEAD}\n`, /^line 1 is/],
  ["five fields", `${HEAD}\nxen,1,Example,xen,4.17\n`, /^line 2 is '.*', 5 fields, needed 6$/],
  ["seven fields", `${HEAD}\n${XEN},more\n`, /^line 2 is '.*', 7 fields, needed 6$/],
  ["an empty field", `${HEAD}\nxen,1,,xen,4.17,url\n`, /^line 2 is '.*', its vendor_name is empty/],
  ["an empty line", `${HEAD}\n\n${XEN}\n`, /^line 2 is empty, 1 fields, needed 6$/],
  ["generation 0", `${HEAD}\nxen,0,Example,xen,4.17,url\n`, /its component_generation is '0', needed a number from 1$/],
  ["no number", `${HEAD}\nxen,one,Example,xen,4.17,url\n`, /its component_generation is 'one'/],
];

const tables = suite("sbatFault()");

for (const [what, text, message] of WRONG) {
  tables(`refuses ${what}`, () => assert.match(fault(text) ?? "nothing", message));
}

tables("takes a table with components, and one without, and tells them apart", () => {
  assert.is(fault(`${HEAD}\n${XEN}\nxen.example2,12,E,x,1,mail:a@example.com\n`), undefined);
  assert.is(fault(`${HEAD}\n`), undefined);
  assert.is(hasSbatComponent(Buffer.from(`${HEAD}\n${XEN}\n`)), true);
  assert.is(hasSbatComponent(Buffer.from(`${HEAD}\n`)), false);
});

tables.run();
