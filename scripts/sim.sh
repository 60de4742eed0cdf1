#!/usr/bin/env bash
# Simulates the replay machine: seeded clients, bad links, another TCP as the target, all in virtual time. A broken rule
# is printed with its seed and the command that repeats it; how far it is goes to stderr every five seconds.
#
#   scripts/sim.sh                          1,000 worlds, about 100 sessions each
#   scripts/sim.sh --seconds 90             as many as 90 seconds allow
#   scripts/sim.sh --seeds 20000 --jobs 2   a long run
#   scripts/sim.sh --seed N [--trace]       one world again, with every packet
#   scripts/sim.sh --profile loss-1         one family of worlds
#   scripts/sim.sh --kernel --seeds 40      the kernel's own TCP as the target, in real time: some 25 s, 16 at once
#                                           on two processors (root or user namespaces, /dev/net/tun)
#
# All options: scripts/sim.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
exec cargo run --locked --release --quiet -p sim -- "$@"
