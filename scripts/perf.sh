#!/usr/bin/env bash
# Runs every benchmark and writes one report in Markdown, with machine and date, to the file named (standard output
# without). Figures of one report can be compared with each other, hardly with another machine's: instructions excepted.
#
#   scripts/perf.sh report.md            everything, about ten minutes
#   scripts/perf.sh --quick report.md    without the rows that replay traffic
#
# Needs root, or user namespaces, for traffic between namespaces; valgrind for the instructions.
set -euo pipefail
cd "$(dirname "$0")/.."

quick=false
if [[ ${1:-} == --quick ]]; then quick=true; shift; fi
if (($# > 1)) || [[ ${1:-} == -* ]]; then echo "usage: scripts/perf.sh [--quick] [REPORT]" >&2; exit 2; fi
report=${1:-/dev/stdout}

# Apart, so that what a harness needs of the library does not get into the program.
cargo build --locked --release --quiet -p tcptwin
cargo build --locked --release --quiet -p bench

section() {
    local title=$1; shift
    echo "measuring: $title" >&2
    printf '\n## %s\n\n`%s`\n\n```\n' "$title" "$*"
    "$@" 2>&1 || echo "failed with exit status $?"
    printf '```\n'
}

{
    echo "# tcptwin $(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1), measured"
    echo
    echo "$(date -u +%Y-%m-%d), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), Linux $(uname -r), $(nproc) cores of:"
    sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | sort -u
    bin=target/release
    if command -v valgrind >/dev/null 2>&1; then
        section "Instructions of each part, against the baseline" $bin/instructions --check bench/instructions.json
    else
        printf '\n## Instructions of each part\n\nNot measured: valgrind is not installed.\n'
    fi
    section "A record through a ring" $bin/ring
    section "A frame from the kernel's ring to a shard's" $bin/capture
    section "The replay machine" $bin/session
    section "The pipeline without sockets" $bin/pipeline --sessions 10,10000,1000000 --turns 1000000
    if ! $quick; then
        section "Replay of live traffic" $bin/replay --harm keepalive-20k keepalive-500 keepalive-max connections-5k \
            connections-8k closed-loop-1k copies-8-of-5k post-100k-300 answer-1m-300 idle
        section "A packet file as fast as possible" $bin/offline
        section "The same, from 200 connections" $bin/offline --connections 200 keepalive
        section "Recording packets of 1,400 bytes into memory" $bin/record
        section "Memory, and sessions that do nothing" $bin/memory
        section "One redis connection, closed loop" $bin/redis
    fi
} > "$report"
