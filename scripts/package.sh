#!/usr/bin/env bash
# Makes the Debian package target/package/tcptwin_VERSION_ARCH.deb: program, systemd units, manual pages, completions and
# examples.
#
#   scripts/package.sh
#
# Installs cargo-deb into target/tools when it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
(($# == 0)) || { echo "usage: scripts/package.sh" >&2; exit 2; }
scripts/tool.sh cargo-deb 3.8.0
cargo build --locked --release --quiet -p tcptwin
out=target/package
rm -rf "$out"
for what in bash zsh fish; do target/release/tcptwin generate "$what" "$out" >/dev/null; done
target/release/tcptwin generate man "$out/man" >/dev/null
PATH="$PWD/target/tools/bin:$PATH" cargo deb --locked --no-build -p tcptwin --output "$out/"
