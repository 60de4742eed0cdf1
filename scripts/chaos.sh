#!/usr/bin/env bash
# Kills, stops and cuts off every process of a live replay between network namespaces, and counts what arrives: every
# request answered online must be answered exactly once by the target, the ledger must be exact, memory flat, no packet
# astray. Needs root, or user namespaces, and nftables.
#
#   scripts/chaos.sh --seed 7 --minutes 3                    all kinds of faults
#   scripts/chaos.sh --seed 7 --minutes 60 --faults shard,capturer,injector --rate 10000
#   scripts/chaos.sh --seed 7 --minutes 5 --faults channel --cut 120000 --every 150000     cuts of up to two minutes
#   scripts/chaos.sh --seed 7 --keep-clients                 flows claimed one by one
#   scripts/chaos.sh --seed 7 --flips 1000000                random bytes of the shared region flipped
#
# A rule that was broken is printed with the command that repeats the run, and the exit status is 1. Memory: 48 bytes a
# request. All options: scripts/chaos.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# Apart, so that what the harness needs of the region does not get into the program.
cargo build --locked --release --quiet -p tcptwin
cargo build --locked --release --quiet -p chaos
exec target/release/chaos "$@"
