#!/usr/bin/env bash
# Passes all tests: unit and property tests, the model-checked orderings of the shared-memory ring, the tests on real
# traffic between network namespaces (nginx, redis, curl, wrk, redis-benchmark, tcpdump), and three minutes of faults.
#
#   scripts/check.sh            everything
#   scripts/check.sh --quick    without the tests on real traffic
#
# Installs the servers that the real-traffic tests need when they are missing and apt-get can be used. Those tests need
# root (network namespaces, packet sockets); without it they say SKIPPED and the rest still runs.
set -euo pipefail
cd "$(dirname "$0")/.."

# A step begins, so many minutes and seconds after the first.
step() { printf '== %s (%d:%02d)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

# What goes with us, however we end.
policy='' beside=''
leave() {
    [[ -z $policy ]] || rm -f "$policy"
    [[ -z $beside ]] || kill -- "-$beside" 2>/dev/null || true
}
trap leave EXIT

# What computes while the tests on real traffic mostly wait, at a lower priority; not at the lowest there is, SCHED_IDLE: who is kept
# from a core within the kernel, by a lock that others need, would be kept for seconds. First the builds of what the last steps run,
# optimised, each apart, so that what a harness needs of the library does not get into the program; sim.sh builds its own.
compute() {
    local of
    for of in "-p tcptwin" "-p chaos" "-p bench --bin instructions"; do
        # shellcheck disable=SC2086
        nice -n 10 cargo build --locked --release --quiet $of
    done
    nice -n 10 scripts/sim.sh --seeds 8000 --jobs 1
}

quick=false
case "${1:-}" in
    "") ;;
    --quick) quick=true ;;
    *) echo "usage: scripts/check.sh [--quick]" >&2; exit 2 ;;
esac

packages=()
need() { command -v "$1" >/dev/null 2>&1 || packages+=("$2"); }
# A library that is opened at run time: by the loader's cache, where Debian's package and others put it.
need_library() { PATH="$PATH:/usr/sbin:/sbin" ldconfig -p 2>/dev/null | grep "$1" >/dev/null || packages+=("$2"); }
need_library 'libpcap\.so\.' libpcap0.8
if ! $quick; then
    # Debian keeps some of these in /usr/sbin, which an ordinary PATH may lack.
    export PATH="$PATH:/usr/sbin:/sbin"
    need nginx nginx-light
    need redis-server redis-server
    need redis-benchmark redis-tools
    need wrk wrk
    need dnsmasq dnsmasq-base
    need curl curl
    need nft nftables
    need ip iproute2
    need valgrind valgrind
    need tcpdump tcpdump
    need capinfos wireshark-common
    need strace strace
    need setcap libcap2-bin
fi
if ((${#packages[@]})); then
    if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null 2>&1; then
        echo "not installed: ${packages[*]} (run as root, or: sudo apt-get install ${packages[*]}); their tests will say SKIPPED" >&2
    else
        echo "installing ${packages[*]}"
        export DEBIAN_FRONTEND=noninteractive
        # The tests start servers of their own; the packages must not start theirs.
        if [[ ! -e /usr/sbin/policy-rc.d ]]; then
            printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
            chmod 755 /usr/sbin/policy-rc.d
            policy=/usr/sbin/policy-rc.d
        fi
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    fi
fi

step "what is built in: licences, sources, crates that are not wanted"
scripts/tool.sh cargo-deny 0.20.2
# It looks at what is for other systems as well, which no build here has fetched.
cargo fetch --locked --quiet
PATH="$PWD/target/tools/bin:$PATH" cargo deny --offline --log-level error check bans licenses sources

step "unit and property tests"
cargo test --locked --workspace --exclude tcptwin --quiet

step "orderings of the ring and the doorbell, model-checked"
RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --locked -p shm --release --test loom --quiet

mkdir -p target
# A process group of its own, which ends as a whole.
set -m
compute >target/beside.log 2>&1 </dev/null &
beside=$!
set +m

step "the binary: command line$($quick || echo ', replay of real traffic')"
if $quick; then
    cargo test --locked -p tcptwin --quiet --bins --test wrong_use --test survey
else
    cargo test --locked -p tcptwin --quiet
fi

step "the xdp engine, which the other tests are built without"
cargo test --locked -p capturer --features xdp --quiet --test kernel xdp
if ! $quick; then
    cargo test --locked -p tcptwin --features xdp --quiet --test replay -- mirror_port
fi

step "the replay machine over bad links, in virtual time: eight thousand worlds (ran beside all this)"
failed=false
wait "$beside" || failed=true
beside=''
cat target/beside.log
! $failed || exit 1
if command -v valgrind >/dev/null 2>&1; then
    step "instructions of each part of the packet path, against the baseline"
    cargo run --locked --release --quiet -p bench --bin instructions -- --check bench/instructions.json
else
    echo "SKIPPED instructions of each part of the packet path: valgrind is not installed"
fi

step "any bytes at all: a million generated inputs at every place where bytes come in"
scripts/fuzz.sh --quick

if ! $quick; then
    step "every process killed, stopped and cut off under real traffic"
    scripts/chaos.sh --seed 1 --minutes 2.5 --rate 1000 --connections 1000 --short 50 --posts 2 --every 1000
    step "bytes of the shared region flipped under load"
    scripts/chaos.sh --seed 1 --minutes 0.5 --flips 50000 --rate 500 --connections 200 --short 50 --posts 2
fi
step "everything passed"
