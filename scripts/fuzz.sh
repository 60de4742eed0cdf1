#!/usr/bin/env bash
# Any bytes at all, at every place where bytes come in (bench/fuzz): no panic, no loop, no read past the data, and each
# target's oracle holds. `stream`, `sealed` and `receive` are the return channel under attack.
#
#   scripts/fuzz.sh [MILLIONS] [TARGET...]          so many million generated inputs for each target (1; all targets)
#   scripts/fuzz.sh --quick                         the same million as ever, with the build of the tests; for check.sh
#   scripts/fuzz.sh --frames [MILLIONS]             so many million altered frames (10) through a whole return receiver
#   scripts/fuzz.sh --cargo-fuzz SECONDS [TARGET...]   guided by coverage (cargo-fuzz and a nightly compiler), per target
#   scripts/fuzz.sh --input TARGET FILE             one input again
#   scripts/fuzz.sh --seeds                         writes the valid inputs of every kind into the corpus
#
# SEED=n gives other inputs; without it MILLIONS takes one from the clock and says which. What breaks something is left in
# target/fuzz/found and goes, with the fix, into bench/fuzz/corpus/TARGET.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { sed -n '5,10s/^# *//p' "$0" >&2; exit 2; }

# Links and tables come and go with every input: their memory is not to be given back to the system each time.
export MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TOP_PAD_=16777216

all=(frame options checksum rewrite record stream sealed receive ring table trace)
fuzz() { cargo run --locked --quiet -p fuzzing -- "$@"; }

case "${1:-1}" in
    --quick)
        [[ $# -eq 1 ]] || usage
        # The tests have built this already; any other way to ask for it would build half the crates with other features.
        cargo test --locked --quiet --workspace --exclude tcptwin --test corpus --no-run
        program=${CARGO_TARGET_DIR:-target}/debug/fuzz
        # Two halves, for two cores.
        "$program" run --inputs 1000000 --seed 1 sealed stream &
        half=$!
        "$program" run --inputs 1000000 --seed 1 frame options checksum rewrite record ring table trace ||
            { kill "$half"; exit 1; }
        # Real sockets, and hundreds of frames in an input.
        "$program" run --frames 300000 --seed 1 receive || { kill "$half"; exit 1; }
        wait "$half"
        ;;
    --frames)
        [[ $# -le 2 && ${2:-10} =~ ^[0-9]+$ ]] || usage
        fuzz run --frames "${2:-10}000000" --seed "${SEED:-$(date +%s)}" receive
        ;;
    --seeds) fuzz seeds ;;
    --input)
        [[ $# -eq 3 ]] || usage
        fuzz input "$2" "$3"
        ;;
    --cargo-fuzz)
        [[ ${2:-} =~ ^[0-9]+$ ]] || usage
        seconds=$2
        shift 2
        (($#)) || set -- "${all[@]}"
        cargo fuzz --version >/dev/null 2>&1 || { echo "cargo fuzz is not installed: cargo install cargo-fuzz" >&2; exit 1; }
        for target in "$@"; do
            echo "== $target, $seconds s"
            mkdir -p "target/fuzz/corpus/$target" target/fuzz/found
            # New inputs go into the first folder; the tree's are read only.
            CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/fuzz/libfuzzer" cargo +nightly fuzz run --fuzz-dir bench/fuzz/cargo "$target" \
                "target/fuzz/corpus/$target" "bench/fuzz/corpus/$target" -- \
                -max_total_time="$seconds" -max_len=4096 -timeout=20 -print_final_stats=1 \
                -artifact_prefix="target/fuzz/found/$target-"
        done
        ;;
    *)
        [[ ${1:-1} =~ ^[0-9]+$ ]] || usage
        millions=${1:-1}
        (($#)) && shift
        seed=${SEED:-$(date +%s)}
        # As fast as the program, as strict as the tests.
        export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true
        export CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/fuzz/release"
        cargo run --locked --quiet --release -p fuzzing -- run --inputs "${millions}000000" --seed "$seed" "$@"
        ;;
esac
