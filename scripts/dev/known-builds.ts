// SPDX-License-Identifier: GPL-2.0-only
// The Xen builds that the goldens and the boot tests are made from: Debian's packages, because anybody can have them
// and because their xen.efi differ in everything the pipeline has to cope with. The digest names the build; the
// suites only say where to look for it.

export interface KnownBuild {
  /** Directory name under samples/xen, and the name in the goldens */
  readonly id: string;
  /** Suites to look in, likeliest first: a security update moves to the main suite with the next point release */
  readonly suites: readonly string[];
  readonly package: string;
  readonly version: string;
  /** Where xen.efi lies in the package */
  readonly path: string;
  /** SHA-256 of that file, not of the package */
  readonly sha256: string;
}

/** @param id begins with the release, which package and file are called by */
function debian(id: string, version: string, suites: readonly string[], sha256: string): KnownBuild {
  const release = id.split(".", 2).join(".");
  return {
    id,
    suites,
    package: `xen-hypervisor-${release}-amd64`,
    version,
    path: `boot/xen-${release}-amd64.efi`,
    sha256,
  };
}

export const knownBuilds: readonly KnownBuild[] = [
  debian("4.14.6-1", "4.14.6-1", ["bullseye"], "9fb48395b515c1da23d6f993178d4485bfa4c887b79a772393023dc071733683"),
  debian(
    "4.17.5+72",
    "4.17.5+72-g01140da4e8-1",
    ["bookworm"],
    "fed66e0c7bee6aa7796dcc5094fec7ba1694a0d45d5f257ca817edc31fa06d1a",
  ),
  debian(
    "4.17.7+13",
    "4.17.7+13-g2445b30a44-0+deb12u1",
    ["bookworm-security", "bookworm"],
    "bd73ba43ee3d4d2d16fa9d2243c022a2910eb13a5762cfae63e5eab94f6153d9",
  ),
  debian(
    "4.20.3+127",
    "4.20.3+127-gc42374a105-0+deb13u1",
    ["trixie", "trixie-security"],
    "0485f4bb6e04bcf25b38eb3c0348de2ac119d82134a3050453a9b66a62262474",
  ),
  debian(
    "4.20.4+39",
    "4.20.4+39-gf1e1321c87-1",
    ["sid", "testing"],
    "7b87901f4c8b7956d64db5000dd63aad931654d320d7397c9e7c779a263516d3",
  ),
  debian(
    "4.20.4+63",
    "4.20.4+63-g7abfd2bce2-0+deb13u1",
    ["trixie-security", "trixie"],
    "f33aad25f080417cc437371c133f3fd3b4f0589032cacf44d1f2ac4f1546ca24",
  ),
];
