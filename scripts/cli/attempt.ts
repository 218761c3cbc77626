// SPDX-License-Identifier: GPL-2.0-only

import { ImageError } from "./errors.ts";

/**
 * What `work` returns, or why it cannot: the message of its ImageError, without "Cannot …: " where that says `action`.
 * For reports, which have the reason in the place of a fact.
 */
export function attempt<T>(action: string, work: () => T): { readonly value?: T; readonly reason?: string } {
  try {
    return { value: work() };
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    const { message } = error;
    return { reason: message.startsWith(`Cannot ${action}`) ? message.replace(/^[^:]*: /, "") : message };
  }
}
