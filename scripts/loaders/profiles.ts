// SPDX-License-Identifier: GPL-2.0-only
// All loader profiles.

import { EFI_PROFILES } from "./efi.ts";
import { MULTIBOOT_PROFILES } from "./multiboot.ts";
import type { Profile } from "./rules.ts";
import { SHIM_PROFILES } from "./shim.ts";

/** In the order in which verdicts are shown. */
export const PROFILES: readonly Profile[] = [...EFI_PROFILES, ...SHIM_PROFILES, ...MULTIBOOT_PROFILES];

export function profileNamed(name: string): Profile | undefined {
  return PROFILES.find((profile) => profile.name === name);
}
