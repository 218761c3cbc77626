// SPDX-License-Identifier: GPL-2.0-only
// The picture as one HTML file that asks for nothing: the SVG, what is pointed at in words, and the picture as text.

import type { PictureFacts } from "./picture-facts.ts";
import { escape, svgPicture } from "./picture-svg.ts";
import { textPicture } from "./picture-text.ts";

export function htmlPicture(pictures: readonly PictureFacts[]): string {
  const title = pictures.map((facts) => facts.title).join(" and ");
  return `<!DOCTYPE html>
<!-- SPDX-License-Identifier: GPL-2.0-only -->
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Layout of ${escape(title)}</title>
<style>
body { margin: 1em; font: 15px/1.4 sans-serif; background: #fff; color: #1f2328 }
svg { max-width: 100%; height: auto }
output { display: block; white-space: pre-line; min-height: 6em; margin: 1em 0; padding: .5em 1em; border-left: 4px solid }
pre { overflow-x: auto }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3 } }
</style>
</head>
<body>
${svgPicture(pictures)}<output id="details">Point at a part, or go through them with the Tab key: this says what it is.</output>
<h2>The same as text</h2>
<pre>
${escape(textPicture(pictures))}</pre>
<script>
const details = document.getElementById("details");
for (const part of document.querySelectorAll(".part")) {
  const show = () => { details.textContent = part.querySelector("title").textContent; };
  part.addEventListener("mouseenter", show);
  part.addEventListener("focus", show);
  part.addEventListener("click", show);
}
</script>
</body>
</html>
`;
}
