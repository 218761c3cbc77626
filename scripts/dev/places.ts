// SPDX-License-Identifier: GPL-2.0-only
// Where this checkout has what; every tool and test of this room finds it here.

import { fileURLToPath } from "node:url";

/** The checkout, with a slash at its end. */
export const TOP = fileURLToPath(new URL("../../", import.meta.url));
export const SCRIPTS = fileURLToPath(new URL("../", import.meta.url));
export const SAMPLES = fileURLToPath(new URL("../../samples/", import.meta.url));
export const MINI_XEN = fileURLToPath(new URL("../../samples/mini-xen/mini-xen.efi", import.meta.url));
/** Where make test has the scripts in JavaScript. */
export const COMPILED = fileURLToPath(new URL("../../build/compiled/", import.meta.url));
