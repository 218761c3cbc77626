// SPDX-License-Identifier: GPL-2.0-only
// What verify says of a result that is right: what was compared, and what is different.

import { hex, range } from "../cli/numbers.ts";
import { isVoid } from "./expected.ts";
import { multiboot2Bases, usableBases, type Loaded } from "./loaded.ts";
import { loadByShim, type MultibootLoad } from "./loads.ts";
import { bytesIn, type Cause } from "./memory.ts";

/** A few lines. */
export function reportLines(loaded: Loaded): string[] {
  const { file, needed, result, memory, multiboot1, multiboot2 } = loaded;
  const compared = file.sections.reduce((sum, { header }) => sum + header.virtualSize, 0);
  const bases = usableBases(result).map(hex).join(", ");
  let [kept, voided] = [0, 0];
  const targets = new Set<number>();
  for (const fixup of needed.fixups) {
    if (fixup.width === 0) continue;
    targets.add(fixup.target);
    if (isVoid(fixup, needed.header)) voided++;
    else kept++;
  }
  const doubles = kept + voided - targets.size;
  const twice = doubles === 0 ? "" : `; ${doubles} come twice, in the original as well: loaders relocate twice`;
  const left = memory.length - loadByShim(result).memory.length;
  const rest = left === 0 ? "" : `, without ${left} sections that it does not load of the original either`;
  const multiboot = (load: MultibootLoad): string =>
    `file offset ${hex(load.offset)} to ${range(load.loadAddr, load.loadEndAddr)}, zeros to ${hex(load.segment.end)}, entry ${hex(needed.entry)}`;
  return [
    `PE loaders: ${hex(compared)} bytes of memory as needed at each base: ${bases}`,
    ...changesText(loaded),
    `base relocations: ${kept} as in the original, ${voided} void${twice}`,
    `shim: loads the same memory and the same base relocations${rest}`,
    ...(multiboot2 === undefined
      ? []
      : [`Multiboot2: ${multiboot(multiboot2)}, bases tried ${multiboot2Bases(multiboot2).map(hex).join(", ")}`]),
    ...(multiboot1 === undefined ? [] : [`Multiboot1: ${multiboot(multiboot1)}`]),
  ];
}

/** How much of memory is different, by cause, and what moved or grew: two lines of the report. */
function changesText({ file, needed: { memory, patches, header } }: Loaded): string[] {
  const counts = new Map<Cause, { places: number; bytes: number }>();
  for (const { cause, start, bytes } of patches) {
    const old = bytesIn(memory, start, start + bytes.length, cause);
    const changed = bytes.filter((byte, i) => byte !== old[i]).length;
    const count = counts.get(cause) ?? { places: 0, bytes: 0 };
    counts.set(cause, { places: count.places + (changed === 0 ? 0 : 1), bytes: count.bytes + changed });
  }
  const all = [...counts.values()];
  const bytes = all.reduce((sum, count) => sum + count.bytes, 0);
  const places = all.reduce((sum, count) => sum + count.places, 0);
  const causes = [...counts].map(([cause, count]) => `${cause} ${count.bytes} in ${count.places}`).join(", ");
  const { from, header: reloc } = file.reloc;
  const shape =
    file.steps.relocated === "moved"
      ? `base relocation table moved from ${hex(from.header.virtualAddress)} to ${hex(reloc.virtualAddress)}`
      : `base relocation table stays at ${hex(reloc.virtualAddress)}`;
  const grown = file.sections.filter((s) => s.header.virtualSize > s.from.header.virtualSize).map((s) => s.name);
  const dropped = header?.dropped ?? [];
  const tags = dropped.length === 0 ? "" : `; no room for the optional tags ${dropped.join(" ")}`;
  return [
    `changed in sections: ${bytes} bytes in ${places} places, none unexplained (${causes})`,
    `memory: ${shape}; zeros added behind ${grown.length === 0 ? "no section" : grown.join(" ")}${tags}`,
  ];
}
