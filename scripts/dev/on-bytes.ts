// SPDX-License-Identifier: GPL-2.0-only

import type { Image } from "../pe/image.ts";
import { parseImage } from "../pe/parse.ts";
import { serializeImage } from "../pe/serialize.ts";

/** The transform of an Image as one of bytes. */
export function onBytes(transform: (image: Image) => Image): (bytes: Uint8Array) => Uint8Array {
  return (bytes) => serializeImage(transform(parseImage(bytes)));
}
