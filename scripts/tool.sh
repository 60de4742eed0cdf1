#!/usr/bin/env bash
# Installs a cargo tool of this version into target/tools, unless it is there or on the PATH already.
#
#   scripts/tool.sh NAME VERSION
set -euo pipefail
cd "$(dirname "$0")/.."
(($# == 2)) || { echo "usage: scripts/tool.sh NAME VERSION" >&2; exit 2; }
export PATH="$PWD/target/tools/bin:$PATH"
if ! command -v "$1" >/dev/null 2>&1; then
    echo "installing $1 $2"
    # Unoptimised: it runs for a second, and builds in a third of the time.
    cargo install --quiet --locked --debug --root target/tools "$1@$2"
fi
