//! Valid inputs of every kind, and the hostile ones that everybody knows. `fuzz seeds` writes them into `corpus/`, where a
//! test holds them to what stands here.
//!
//! | file | for the targets |
//! |---|---|
//! | `packets` | frame, options, checksum, rewrite |
//! | `channel` | record, stream, sealed, receive |
//! | here | ring |
//! | `tables` | table |
//! | `files` | trace |

pub mod channel;
pub mod files;
pub mod packets;
pub mod tables;

/// A name and an input.
pub(crate) type Seed = (String, Vec<u8>);

fn named<const N: usize>(seeds: [(&str, Vec<u8>); N]) -> Vec<Seed> {
    seeds.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

/// Rings: sequences of operations, most of them without a scribble.
pub fn rings() -> Vec<Seed> {
    let op = |what: u8, few: u8, small: u16, word: u64| {
        [&[what, few][..], &small.to_le_bytes(), &word.to_le_bytes()].concat()
    };
    let push = |len| op(0, 0, len, 0);
    let (publish, next, release) = (op(4, 0, 0, 0), op(6, 0, 0, 0), op(8, 0, 0, 0));
    let peek = |look, free| op(9, look, free, 0);
    let lap = |len| [push(len), publish.clone(), next.clone(), release.clone()].concat();
    let fill =
        [vec![push(40); 20].concat(), publish.clone(), peek(31, 7), push(40), publish.clone(), peek(31, 31)]
            .concat();
    named([
        ("one", lap(5)),
        ("largest", [lap(503), lap(504), lap(505)].concat()),
        ("around", (0..24u16).flat_map(|n| lap(n * 37 % 500)).collect()),
        (
            "pads",
            [
                push(300),
                push(300),
                publish.clone(),
                next.clone(),
                release.clone(),
                push(300),
                push(300),
                publish.clone(),
                next.clone(),
                next.clone(),
                release.clone(),
            ]
            .concat(),
        ),
        ("full", fill.clone()),
        (
            "successors",
            [
                push(9),
                push(9),
                publish.clone(),
                op(10, 0, 0, 0),
                next.clone(),
                op(11, 0, 0, 0),
                next.clone(),
                push(8),
                op(10, 0, 0, 0),
                publish.clone(),
                release.clone(),
            ]
            .concat(),
        ),
        (
            "batches",
            [vec![push(1); 9].concat(), publish.clone(), next.clone(), peek(4, 2), peek(9, 9)].concat(),
        ),
        ("empty", [next.clone(), peek(3, 3), release.clone(), publish.clone()].concat()),
        (
            "head_off",
            [
                push(9),
                publish.clone(),
                op(12, 2, 0, 13),
                next.clone(),
                push(9),
                publish.clone(),
                next.clone(),
            ]
            .concat(),
        ),
        (
            "head_beyond",
            [
                push(9),
                publish.clone(),
                op(12, 0, 0, 30),
                push(9),
                op(10, 0, 0, 0),
                push(9),
                publish.clone(),
                next.clone(),
            ]
            .concat(),
        ),
        (
            "head_anything",
            [fill.clone(), op(12, 3, 0, u64::MAX - 63), push(9), publish.clone(), next.clone()].concat(),
        ),
        (
            "tail_back",
            [
                fill.clone(),
                op(13, 1, 0, 3),
                next.clone(),
                op(13, 3, 0, 0),
                next.clone(),
                push(9),
                publish.clone(),
            ]
            .concat(),
        ),
        (
            "tail_beyond",
            [
                push(9),
                publish.clone(),
                op(13, 0, 0, 39),
                next.clone(),
                peek(31, 31),
                push(9),
                publish.clone(),
                next.clone(),
            ]
            .concat(),
        ),
        (
            "tail_anything",
            [op(13, 3, 0, u64::MAX), next.clone(), peek(3, 3), push(9), publish.clone(), next.clone()]
                .concat(),
        ),
        (
            "seal_broken",
            [
                vec![push(60); 4].concat(),
                publish.clone(),
                op(14, 4, 132, u64::MAX),
                peek(31, 31),
                next.clone(),
            ]
            .concat(),
        ),
        (
            "length_beyond",
            [push(9), push(9), publish.clone(), op(15, 0, 2_000, 0), next.clone(), next.clone()].concat(),
        ),
        (
            "length_beyond_published",
            [push(9), publish.clone(), op(15, 0, 500, 0), next.clone(), peek(3, 3), next.clone()].concat(),
        ),
        ("length_huge", [push(9), publish.clone(), op(15, 0x20, 0, 0x7fff_ffff), next.clone()].concat()),
        ("pad_too_short", [push(9), publish.clone(), op(15, 0x40, 10, 0), next.clone()].concat()),
        (
            "pads_alone",
            [vec![lap(9); 12].concat(), push(400), publish.clone(), op(15, 0x40, 248, 0), next.clone()]
                .concat(),
        ),
        (
            "scribbled",
            [
                fill,
                (0..40u16).flat_map(|n| op(14, 8, n * 25, 0x0101_0101_0101_0101 << (n % 8))).collect(),
                next,
                peek(31, 31),
            ]
            .concat(),
        ),
    ])
}
