//! Any bytes at all, at every place where bytes come in: frames, options, ring records, the return channel, the rings
//! themselves, and whole sequences of them at a session table. One function a target; each panics when its oracle does not
//! hold, and none of them may panic, loop or read past the data on any input.
//!
//! Who calls them: the tests here over `corpus/`, `scripts/fuzz.sh` over millions of generated inputs, and `cargo fuzz`
//! through `cargo/`, guided by coverage. An input that broke something stays in the corpus.
//!
//! | file | holds |
//! |---|---|
//! | `frame` | a captured packet; against etherparse |
//! | `options` | TCP options; against a plain second walker and etherparse |
//! | `checksum` | the Internet checksum; against etherparse and RFC 1071's text |
//! | `rewrite` | a record of the inject ring: guard, cutter, headers |
//! | `record` | a returned header, packed and plain |
//! | `stream` | a plain return channel's incremental decoder |
//! | `sealed` | two ends of a return channel over a line that may alter bytes |
//! | `receive` | the injector's return receiver between an honest intercept and one that says anything |
//! | `ring` | a ring that anybody may have scribbled over |
//! | `table` | a session table under any sequence of operations |
//! | `trace` | a packet file; read again, and cut |
//! | `lease` | memory that a table believes to be for ever |
//! | `seeds`, `seeds/*` | valid inputs of every kind: the corpus |
//! | `mutate` | inputs made from others |
//! | `engine` | millions of them, repeatably |
//! | `reach` | what a corpus gets to |
//! | `data`, `dice` | reading an input; random numbers |

mod checksum;
mod data;
mod dice;
pub mod engine;
mod frame;
mod lease;
pub mod mutate;
mod options;
pub mod reach;
mod receive;
mod record;
mod rewrite;
mod ring;
mod sealed;
pub mod seeds;
mod stream;
mod table;
mod trace;

pub use checksum::checksum;
pub use frame::frame;
pub use options::options;
pub use receive::receive;
pub use record::record;
pub use rewrite::rewrite;
pub use ring::ring;
pub use sealed::sealed;
pub use stream::stream;
pub use table::table;
pub use trace::trace;

/// A place where bytes come in.
pub struct Target {
    /// Its name, which is also that of its corpus folder.
    pub name: &'static str,
    /// Takes any input; panics when the oracle does not hold.
    pub run: fn(&[u8]),
    /// Valid inputs, each with a name.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
    /// How its inputs are built: what mutation should respect half of the time.
    shape: mutate::Shape,
}

const fn bytes() -> mutate::Shape {
    mutate::Shape { head: 0, unit: 1, repair: |_, _| {} }
}

const fn ops(head: usize, unit: usize) -> mutate::Shape {
    mutate::Shape { head, unit, repair: |_, _| {} }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "frame",
        run: frame,
        seeds: seeds::packets::frames,
        shape: mutate::Shape { head: 4, unit: 4, repair: mutate::frame },
    },
    Target { name: "options", run: options, seeds: seeds::packets::options, shape: bytes() },
    Target { name: "checksum", run: checksum, seeds: seeds::packets::checksums, shape: bytes() },
    Target {
        name: "rewrite",
        run: rewrite,
        seeds: seeds::packets::records,
        shape: mutate::Shape { head: 4, unit: 4, repair: mutate::inject },
    },
    Target { name: "record", run: record, seeds: seeds::channel::records, shape: bytes() },
    Target { name: "stream", run: stream, seeds: seeds::channel::streams, shape: ops(2, 1) },
    Target { name: "sealed", run: sealed, seeds: seeds::channel::talks, shape: ops(1, sealed::OP) },
    Target { name: "receive", run: receive, seeds: seeds::channel::intercepts, shape: ops(1, 1) },
    Target { name: "ring", run: ring, seeds: seeds::rings, shape: ops(0, ring::OP) },
    Target { name: "trace", run: trace, seeds: seeds::files::files, shape: ops(2, 4) },
    Target { name: "table", run: table, seeds: seeds::tables::tables, shape: ops(table::HEAD, table::OP) },
];
