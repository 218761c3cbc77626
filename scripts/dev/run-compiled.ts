// SPDX-License-Identifier: GPL-2.0-only
// Runs the compiled copy of a script in its place: node build/compiled/dev/run-compiled.mjs SCRIPT.ts ARGUMENT...

import * as path from "node:path";
import process from "node:process";
import { COMPILED, SCRIPTS } from "./places.ts";

// What starts other scripts as this one was started, by process.execArgv, starts them so as well.
process.execArgv.push(...process.argv.splice(1, 1));
const script = path.relative(SCRIPTS, path.resolve(process.argv[1] ?? ""));
await import(path.join(COMPILED, script.replace(/ts$/, "mjs")));
