#!/usr/bin/env bash
# Runs every benchmark and writes one report in Markdown, with machine and date, to the file named (standard output
# without). Figures of one report can be compared with each other, hardly with another machine's: instructions excepted.
#
#   scripts/perf.sh report.md             everything, about fifteen minutes
#   scripts/perf.sh --runs 3 report.md    each row of live traffic three times: the median, the least and the most
#   scripts/perf.sh --sample report.md    a few rows of each, about three minutes
#   scripts/perf.sh --quick report.md     without the rows that replay traffic
#   scripts/perf.sh --readme report.md    measures nothing: puts the main rows of that report into README.md
#
# Needs root, or user namespaces, for traffic between namespaces; nftables for loss and faults; valgrind for the instructions;
# redis-server for its rows.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { echo "usage: scripts/perf.sh [--quick | --sample] [--runs N] [REPORT], or --readme REPORT" >&2; exit 2; }

# The table of README.md, between its two marks, from a report's rows of live traffic.
readme() {
    local table
    table=$(awk '
        function row(what) { printf "| %s | %s %% | %s | %s |\n", what, $3, $10, $6 }
        /^# tcptwin/ { report = 1 }
        report && /, commit / { sub(/, commit [^,]*/, ""); sub(/:$/, ""); machine = $0; getline; machine = machine " " $0 }
        $1 == "keepalive-20k" && !harm { row("keep-alive, 20,000 requests/s") }
        $1 == "connections-8k" && !harm { row("a connection for each request, 8,000/s") }
        $1 == "copies-8-of-5k" { row("eight copies of 5,000 requests/s") }
        $1 == "post-100k-300" { row("uploads of 100 KB, 300/s") }
        $1 == "answer-1m-300" { row("answers of 1 MB, 300/s") }
        $1 == "loss-1" { row("2,000 requests/s, 1 % of the packets to and from the target lost") }
        /^## Harm/ { harm = 1 }
        /^## Over paths/ { harm = 0 }
        BEGIN { print "| load, answered online and by the target | arrived | CPU µs a request, all processes | behind, ms: p50/p99/most |"; print "|---|---|---|---|" }
        END { print ""; print "Clients, services and tcptwin share the cores; " machine "." }
    ' "$1")
    TABLE=$table perl -0pi -e 's/(<!-- perf -->\n).*?(<!-- \/perf -->)/$1$ENV{TABLE}\n$2/s' README.md
}
extent=all runs=1
while [[ ${1:-} == -* ]]; do
    case $1 in
        --readme) if (($# != 2)); then usage; fi; readme "$2"; exit ;;
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
cargo build --locked --release --quiet -p chaos
# As roles have it: what finds sessions lies in large pages.
large="env GLIBC_TUNABLES=glibc.malloc.hugetlb=1"

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
    echo "$(date -u +%Y-%m-%d), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), Linux $(uname -r), TCP $(cat /proc/sys/net/ipv4/tcp_congestion_control), $(nproc) cores of:"
    sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | sort -u
    bin=target/release
    if command -v valgrind >/dev/null 2>&1; then
        section "Instructions of each part, against the baseline" $bin/instructions --check bench/instructions.json
        if [[ $extent != sample ]]; then
            section "The same with shards and sessions added" $bin/instructions --scale
        fi
    else
        printf '\n## Instructions of each part\n\nNot measured: valgrind is not installed.\n'
    fi
    section "A record through a ring" $bin/ring
    section "A frame from the kernel's ring to a shard's" $bin/capture
    section "A segment to the target" $bin/inject
    section "A header on the return channel, encrypted and plain" $bin/returns
    section "The replay machine" $large $bin/session
    sessions=10,10000,100000,1000000 turns=1000000
    if [[ $extent == sample ]]; then sessions=10,10000 turns=200000; fi
    section "The pipeline without sockets" $large $bin/pipeline --sessions $sessions --turns $turns
    section "The same: a tenth of the flows with nine tenths of the requests; an upload beside the others; the upload alone" \
        $large $bin/pipeline --load even,skewed,elephant,upload --shards 1,4 --sessions 10000 --turns 200000
    section "20,000 requests a second, alone and beside an upload as fast as it is taken" \
        $large $bin/pipeline --load even,elephant --shards 1,4 --sessions 10000 --turns 60000 --rate 20000
    if [[ $extent == all ]]; then
        section "From a worker's death to its successor's first record" $bin/takeover
        section "Packet files" $bin/trace
    fi
    case $extent in
        quick) rows=() ;;
        sample) rows=(keepalive-20k connections-8k post-100k-300 idle) ;;
        all)
            rows=(keepalive-20k keepalive-500 keepalive-56k keepalive-80k keepalive-max connections-8k connections-12k connections-max
                connections-at-once closed-loop-1k closed-loop-max copies-8-of-5k copies-8-max copies-2-of-1500c
                copies-4-of-1500c post-100k-300 post-1m-10 answer-1m-300 answer-1m-max upload-2g upload-max idle)
            ;;
    esac
    if ((${#rows[@]})); then
        section "Replay of live traffic" $bin/replay --roles --runs "$runs" "${rows[@]}"
    fi
    if [[ $extent == all ]]; then
        section "Harm to the online service" $bin/replay --harm --runs "$runs" keepalive-20k connections-8k
        section "The same if roles did not give way" \
            $bin/replay --harm --runs "$runs" --with "--nice 0" keepalive-20k connections-8k
        section "Over paths that lose packets" $bin/replay loss-0.1 loss-1 loss-5 post-loss-0.1 post-loss-1 post-loss-5
        section "Faults, and what comes after them" $bin/faults
        section "Every process killed and stopped again and again, under load" target/release/chaos --seed 1 --minutes 1 \
            --faults capturer,shard,injector,hang --rate 1000 --connections 200 --short 50 --posts 2 --every 500
        section "A packet file as fast as possible" $bin/offline
        section "The same, from 200 connections" $bin/offline --connections 200 keepalive
        section "Recording packets of 1,400 bytes into memory" $bin/record
        section "Memory, and sessions that do nothing" $bin/memory 1000 10000 50000
        if command -v redis-server >/dev/null 2>&1; then
            section "One redis connection, closed loop" $bin/redis
            section "The same without waiting for answers" $bin/redis --no-wait
            section "50 redis connections that set 10 KB each time, within the usual memory" \
                $bin/redis --connections 50 --value 10240 1000
            section "The same with room for what waits" \
                $bin/redis --connections 50 --value 10240 --with "--memory 1GiB" 1000
        else
            printf '\n## redis\n\nNot measured: redis-server is not installed.\n'
        fi
    fi
} > "$report"
