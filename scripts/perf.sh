#!/usr/bin/env bash
# Runs every benchmark and writes one report in Markdown, with machine and date, to the file named (standard output
# without). Figures of one report can be compared with each other, hardly with another machine's: instructions excepted.
#
#   scripts/perf.sh report.md             everything, about fifteen minutes
#   scripts/perf.sh --runs 3 report.md    each row of live traffic three times: the median, the least and the most
#   scripts/perf.sh --sample report.md    a few rows of each, about three minutes
#   scripts/perf.sh --quick report.md     without the rows that replay traffic
#
# Needs root, or user namespaces, for traffic between namespaces; valgrind for the instructions; redis-server for its rows.
# Rows with faults (deaths, cuts, refused sends, holes in the capture) have no cost to compare: scripts/check.sh judges them.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { echo "usage: scripts/perf.sh [--quick | --sample] [--runs N] [REPORT]" >&2; exit 2; }
extent=all runs=1
while [[ ${1:-} == -* ]]; do
    case $1 in
        --quick | --sample) extent=${1#--}; shift ;;
        --runs) runs=${2:-}; [[ $runs =~ ^[1-9][0-9]?$ ]] || usage; shift 2 ;;
        *) usage ;;
    esac
done
if (($# > 1)); then usage; fi
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
    section "A segment to the target" $bin/inject
    section "The replay machine" $bin/session
    sessions=10,10000,100000,1000000 turns=1000000
    if [[ $extent == sample ]]; then sessions=10,10000 turns=200000; fi
    section "The pipeline without sockets" $bin/pipeline --sessions $sessions --turns $turns
    section "The same: a tenth of the flows with nine tenths of the requests; an upload beside the others; the upload alone" \
        $bin/pipeline --load even,skewed,elephant,upload --shards 1,4 --sessions 10000 --turns 200000
    if [[ $extent == all ]]; then
        section "From a worker's death to its successor's first record" $bin/takeover
        section "Packet files" $bin/trace
    fi
    case $extent in
        quick) rows=() ;;
        sample) rows=(keepalive-20k connections-8k post-100k-300 idle) ;;
        all)
            rows=(keepalive-20k keepalive-500 keepalive-max connections-8k connections-12k connections-max
                connections-at-once closed-loop-1k closed-loop-max copies-8-of-5k copies-8-max copies-2-of-1500c
                copies-4-of-1500c post-100k-300 post-1m-10 answer-1m-300 answer-1m-max upload-2g upload-max idle)
            ;;
    esac
    if ((${#rows[@]})); then
        section "Replay of live traffic" $bin/replay --runs "$runs" "${rows[@]}"
    fi
    if [[ $extent == all ]]; then
        section "Harm to the online service" $bin/replay --harm --runs "$runs" keepalive-20k connections-8k
        section "Over paths that lose packets" $bin/replay loss-0.1 loss-1 loss-5 post-loss-0.1 post-loss-1 post-loss-5
        section "A packet file as fast as possible" $bin/offline
        section "The same, from 200 connections" $bin/offline --connections 200 keepalive
        section "Recording packets of 1,400 bytes into memory" $bin/record
        section "Memory, and sessions that do nothing" $bin/memory
        if command -v redis-server >/dev/null 2>&1; then
            section "One redis connection, closed loop" $bin/redis
            section "The same without waiting for answers" $bin/redis --no-wait
            section "50 redis connections that set 10 KB each time" $bin/redis --connections 50 --value 10240 1000
        else
            printf '\n## redis\n\nNot measured: redis-server is not installed.\n'
        fi
    fi
} > "$report"
