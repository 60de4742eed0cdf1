//! Inputs made from others: a few changes to bytes, numbers and whole units of a corpus entry, and half of the time lengths
//! that fit again, so that what is behind the length checks is reached too.

use flow::ip;

use crate::dice::Dice;

/// How a target's inputs are built.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Bytes before the first unit.
    pub head: usize,
    /// Bytes of a unit (an operation, an option word); units are moved as a whole.
    pub unit: usize,
    /// Makes lengths fit again.
    pub repair: fn(&mut Dice, &mut [u8]),
}

/// Longest input that is made, bytes.
pub const LONGEST: usize = 4_096;

/// Numbers at which something ends.
const EDGES: [u32; 20] =
    [0, 1, 2, 3, 7, 8, 16, 19, 20, 40, 60, 63, 64, 127, 128, 255, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff];

/// Changes `input` a little; `others` are entries to take pieces from.
pub fn mutate(dice: &mut Dice, shape: &Shape, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    loop {
        change(dice, shape, input, others);
        if dice.once_in(3) {
            break;
        }
    }
    if dice.once_in(2) {
        (shape.repair)(dice, input);
    }
    input.truncate(LONGEST);
}

fn change(dice: &mut Dice, shape: &Shape, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    match dice.below(16) {
        0..=2 => at(dice, input, 1, |dice, bytes| bytes[0] ^= 1 << dice.below(8)),
        3 => at(dice, input, 1, |dice, bytes| bytes[0] = dice.roll() as u8),
        4 => at(dice, input, 1, |dice, bytes| bytes[0] = *dice.pick(&EDGES) as u8),
        5 => at(dice, input, 2, |dice, bytes| {
            let edge = *dice.pick(&EDGES) as u16;
            let edge = if dice.once_in(2) { edge } else { edge.wrapping_add(bytes.len() as u16) };
            bytes.copy_from_slice(&if dice.once_in(2) { edge.to_be_bytes() } else { edge.to_le_bytes() });
        }),
        6 => at(dice, input, 4, |dice, bytes| {
            let edge = *dice.pick(&EDGES);
            bytes.copy_from_slice(&if dice.once_in(2) { edge.to_be_bytes() } else { edge.to_le_bytes() });
        }),
        7 => at(dice, input, 1, |dice, bytes| {
            bytes[0] = bytes[0].wrapping_add(dice.below(9) as u8).wrapping_sub(4);
        }),
        8 => at(dice, input, 2, |dice, bytes| {
            let near =
                u16::from_be_bytes([bytes[0], bytes[1]]).wrapping_add(dice.below(33) as u16).wrapping_sub(16);
            bytes.copy_from_slice(&near.to_be_bytes());
        }),
        9 => {
            let (start, end) = span(dice, shape, input, 4);
            input.drain(start..end);
        }
        10 => {
            let (start, end) = span(dice, shape, input, 4);
            if input.len() < LONGEST {
                let copy = input[start..end].to_vec();
                let to = position(dice, shape, input);
                input.splice(to..to, copy);
            }
        }
        11 => {
            let (a, _) = span(dice, shape, input, 1);
            let (b, _) = span(dice, shape, input, 1);
            let n = shape.unit.min(input.len() - a.max(b));
            for i in 0..n {
                input.swap(a + i, b + i);
            }
        }
        12 => {
            let to = position(dice, shape, input);
            let fresh: Vec<u8> = (0..shape.unit * (1 + dice.below(3))).map(|_| dice.roll() as u8).collect();
            input.splice(to..to, fresh);
        }
        13 if !others.is_empty() => {
            let other = dice.pick(others);
            let (start, end) = span(dice, shape, other, 8);
            let to = position(dice, shape, input);
            if dice.once_in(2) {
                input.splice(to..to, other[start..end].iter().copied());
            } else {
                let n = (end - start).min(input.len() - to);
                input[to..to + n].copy_from_slice(&other[start..start + n]);
            }
        }
        14 => {
            let to = dice.below(input.len() + 1);
            input.truncate(to.max(shape.head));
        }
        _ => at(dice, input, 4, |dice, bytes| bytes.copy_from_slice(&(dice.roll() as u32).to_le_bytes())),
    }
}

/// Changes `len` bytes somewhere, if there are as many.
fn at(dice: &mut Dice, input: &mut [u8], len: usize, change: impl FnOnce(&mut Dice, &mut [u8])) {
    if input.len() >= len {
        let from = dice.below(input.len() - len + 1);
        change(dice, &mut input[from..from + len]);
    }
}

/// A boundary between units, or anywhere behind the head.
fn position(dice: &mut Dice, shape: &Shape, input: &[u8]) -> usize {
    let units = input.len().saturating_sub(shape.head) / shape.unit;
    let at = if dice.once_in(4) {
        dice.below(input.len() + 1)
    } else {
        shape.head + shape.unit * dice.below(units + 1)
    };
    at.min(input.len())
}

/// One to `most` units.
fn span(dice: &mut Dice, shape: &Shape, input: &[u8], most: usize) -> (usize, usize) {
    let start = position(dice, shape, input);
    (start, (start + shape.unit * (1 + dice.below(most))).min(input.len()))
}

/// A frame (behind four bytes of control) whose lengths and protocol fit, each most of the time.
pub(crate) fn frame(dice: &mut Dice, input: &mut [u8]) {
    let Some(packet) = input.get_mut(4..) else { return };
    let len = packet.len();
    let mostly = |dice: &mut Dice| !dice.once_in(5);
    let transport = match packet.first().map(|first| first >> 4) {
        Some(4) if len >= 40 => {
            if mostly(dice) {
                packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            }
            if mostly(dice) {
                packet[9] = ip::TCP;
                packet[6] &= 0x40;
                packet[7] = 0;
            }
            usize::from(packet[0] & 15) * 4
        }
        Some(6) if len >= 60 => {
            if mostly(dice) {
                packet[4..6].copy_from_slice(&(len as u16 - 40).to_be_bytes());
            }
            40
        }
        _ => return,
    };
    let Some(header) = packet.get_mut(transport..).filter(|header| header.len() >= 20) else { return };
    if mostly(dice) {
        let words = (usize::from(header[12] >> 4)).clamp(5, header.len() / 4);
        header[12] = (words.min(15) as u8) << 4 | header[12] & 15;
    }
}

/// A record of the inject ring (behind four bytes) whose payload length fits.
pub(crate) fn inject(_: &mut Dice, input: &mut [u8]) {
    const AT: usize = 4 + size_of::<flow::TcpFields>();
    let payload = input.len().saturating_sub(4 + size_of::<flow::Inject>()) as u32;
    if let Some(len) = input.get_mut(AT..AT + 4) {
        len.copy_from_slice(&payload.to_ne_bytes());
    }
}
