// SPDX-License-Identifier: GPL-2.0-only

import process from "node:process";
import type { Io } from "../cli/cli.ts";

/**
 * Shows how far long work is, on standard error, in a line that the next one replaces. A pipe or a file gets nothing of it.
 * @param line what is being done; "" when it is done, and the line is free again
 */
export function showProgress(line: string, io: Io): void {
  if (process.stderr.isTTY) io.stderr(`\r\x1b[K${line}`);
}
