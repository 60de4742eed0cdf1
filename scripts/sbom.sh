#!/usr/bin/env bash
# Writes the software bill of materials of the program, every crate with version, licence and checksum (CycloneDX, JSON),
# to target/package/tcptwin.cdx.json.
#
#   scripts/sbom.sh
#
# Installs cargo-cyclonedx into target/tools when it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
(($# == 0)) || { echo "usage: scripts/sbom.sh" >&2; exit 2; }
scripts/tool.sh cargo-cyclonedx 0.5.9
mkdir -p target/package
# It writes one file beside each manifest of the workspace; only the program's is wanted.
trap 'find . -name tcptwin-sbom.json -not -path "./target/*" -delete' EXIT
PATH="$PWD/target/tools/bin:$PATH" cargo cyclonedx --manifest-path supervisor/Cargo.toml --format json --spec-version 1.5 \
    --override-filename tcptwin-sbom --quiet
mv supervisor/tcptwin-sbom.json target/package/tcptwin.cdx.json
echo "target/package/tcptwin.cdx.json: $(grep -c '"purl"' target/package/tcptwin.cdx.json) components"
