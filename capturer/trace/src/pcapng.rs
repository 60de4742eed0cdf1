//! The block format (draft-ietf-opsawg-pcapng): sections of either byte order, each with interfaces of their own, and packets that
//! name theirs. Section headers and interface descriptions are read by `pcap-parser`; packet blocks here, because its parsers make
//! a list of each packet's options, and we want none of them.

use pcap_parser::pcapng::{parse_interfacedescriptionblock_be, parse_interfacedescriptionblock_le};

use crate::MAX_PACKET;
use crate::file::{Raw, Stop};
use crate::window::Window;

/// The section that is read.
#[derive(Default)]
pub(crate) struct PcapNg {
    big_endian: bool,
    interfaces: Vec<Interface>,
}

/// What an interface description says.
#[derive(Clone, Copy)]
struct Interface {
    link: u16,
    snap: u32,
    clock: Clock,
}

/// How an interface counts time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clock {
    /// `if_tsresol`: a negative power of ten, or of two when the highest bit is set.
    pub(crate) resolution: u8,
    /// `if_tsoffset`, seconds.
    pub(crate) offset_s: i64,
}

/// What a block is to the caller.
pub(crate) enum Block {
    /// A packet; the block stays at the window's start.
    Packet(Raw),
    /// No packet; the block is consumed.
    Other,
    /// A packet block that contradicts itself; consumed.
    Bad(&'static str),
    /// A packet of an interface that was not described; consumed.
    UnknownInterface(u32),
}

/// The same number in both byte orders.
const SECTION: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// Type and length.
const HEAD: usize = 8;
/// Type, length, and length again.
const FRAME: u32 = 12;
/// Longest block that is read as a whole, bytes: a packet and a good deal of comments.
const MAX_BLOCK: u32 = MAX_PACKET + (768 << 10);
/// Interfaces of one section at most.
const MAX_INTERFACES: usize = 4_096;

impl PcapNg {
    /// Whether the file begins with a section.
    pub(crate) fn begin(window: &mut Window) -> Option<Self> {
        if !window.fill(12) || word(false, window.bytes(), 0) != SECTION {
            return None;
        }
        byte_order(window.bytes()).map(|_| Self::default())
    }

    /// The block at the window's start.
    pub(crate) fn block(&mut self, window: &mut Window) -> Result<Block, Stop> {
        if !window.fill(FRAME as usize) {
            return Err(if window.bytes().is_empty() { Stop::End } else { Stop::Cut });
        }
        let bytes = window.bytes();
        if word(false, bytes, 0) == SECTION {
            let Some(big_endian) = byte_order(bytes) else {
                return Err(Stop::Damaged("a section without byte order".to_owned()));
            };
            *self = Self { big_endian, interfaces: std::mem::take(&mut self.interfaces) };
            self.interfaces.clear();
        }
        let (kind, len) = (self.word(bytes, 0), self.word(bytes, 4));
        if len < FRAME || len % 4 != 0 {
            return Err(Stop::Damaged(format!("a block of {len} bytes")));
        }
        match kind {
            ENHANCED_PACKET | OLD_PACKET | SIMPLE_PACKET | INTERFACE if len > MAX_BLOCK => {
                return Err(Stop::Damaged(format!("a block of {len} bytes")));
            }
            ENHANCED_PACKET | OLD_PACKET => return self.packet(window, kind, len),
            SIMPLE_PACKET => return self.simple_packet(window, len),
            INTERFACE => {
                self.whole(window, len)?;
                if self.interfaces.len() == MAX_INTERFACES {
                    window.consume(u64::from(len));
                    return Ok(Block::Bad("more than 4,096 interfaces"));
                }
                self.interfaces.push(self.interface(&window.bytes()[..len as usize]));
            }
            _ => {
                if !window.consume(u64::from(len) - 4) || !window.fill(4) {
                    return Err(Stop::Cut);
                }
                let again = self.word(window.bytes(), 0);
                window.consume(4);
                return if again == len { Ok(Block::Other) } else { Err(lengths_differ(len, again)) };
            }
        }
        window.consume(u64::from(len));
        Ok(Block::Other)
    }

    /// An enhanced packet, or what was used before there was one.
    fn packet(&self, window: &mut Window, kind: u32, len: u32) -> Result<Block, Stop> {
        const FIXED: usize = HEAD + 20;
        let whole = self.whole(window, len);
        let bytes = window.bytes();
        if bytes.len() < FIXED {
            return Err(whole.err().unwrap_or(Stop::Cut));
        }
        let interface = match kind {
            ENHANCED_PACKET => self.word(bytes, 8),
            // Sixteen bits, then a count of drops.
            _ if self.big_endian => self.word(bytes, 8) >> 16,
            _ => self.word(bytes, 8) & 0xffff,
        };
        let ticks = u64::from(self.word(bytes, 12)) << 32 | u64::from(self.word(bytes, 16));
        let (captured, original) = (self.word(bytes, 20), self.word(bytes, 24));
        let room = len.saturating_sub(FIXED as u32 + 4);
        let frame = FIXED..FIXED + captured as usize;
        match whole {
            // Only what stands behind the packet is missing: the packet is used, and the end is met with the next.
            Err(Stop::Cut) if captured <= room && bytes.len() >= frame.end => {}
            Err(stop) => return Err(stop),
            Ok(()) => {}
        }
        if captured > room || captured > MAX_PACKET {
            window.consume(u64::from(len));
            return Ok(Block::Bad("its packet is longer than the block"));
        }
        let Some(of) = self.interfaces.get(interface as usize) else {
            window.consume(u64::from(len));
            return Ok(Block::UnknownInterface(interface));
        };
        Ok(Block::Packet(Raw {
            time_ns: Some(of.clock.ns(ticks)),
            link: of.link,
            frame,
            wire_len: original.max(captured),
            record_len: u64::from(len),
        }))
    }

    fn simple_packet(&self, window: &mut Window, len: u32) -> Result<Block, Stop> {
        const FIXED: usize = HEAD + 4;
        self.whole(window, len)?;
        let Some(of) = self.interfaces.first() else {
            window.consume(u64::from(len));
            return Ok(Block::UnknownInterface(0));
        };
        let Some(room) = len.checked_sub(FIXED as u32 + 4) else {
            window.consume(u64::from(len));
            return Ok(Block::Bad("it is shorter than its own header"));
        };
        let original = self.word(window.bytes(), 8);
        let snap = if of.snap == 0 { MAX_PACKET } else { of.snap };
        let captured = original.min(room).min(snap).min(MAX_PACKET);
        Ok(Block::Packet(Raw {
            time_ns: None,
            link: of.link,
            frame: FIXED..FIXED + captured as usize,
            wire_len: original,
            record_len: u64::from(len),
        }))
    }

    /// An interface; one whose options make no sense counts microseconds, as the format has it without options.
    fn interface(&self, block: &[u8]) -> Interface {
        let parsed = if self.big_endian {
            parse_interfacedescriptionblock_be(block)
        } else {
            parse_interfacedescriptionblock_le(block)
        };
        match parsed {
            Ok((_, found)) => Interface {
                link: found.linktype.0 as u32 as u16,
                snap: found.snaplen,
                clock: Clock { resolution: found.if_tsresol, offset_s: found.if_tsoffset },
            },
            Err(_) => {
                let bytes = [block.get(8).copied().unwrap_or(0xff), block.get(9).copied().unwrap_or(0xff)];
                let link =
                    if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
                Interface { link, snap: 0, clock: Clock { resolution: 6, offset_s: 0 } }
            }
        }
    }

    /// A block that is there as a whole and says its length the same at both ends.
    fn whole(&self, window: &mut Window, len: u32) -> Result<(), Stop> {
        if !window.fill(len as usize) {
            return Err(Stop::Cut);
        }
        match self.word(window.bytes(), len as usize - 4) {
            again if again == len => Ok(()),
            again => Err(lengths_differ(len, again)),
        }
    }

    fn word(&self, bytes: &[u8], at: usize) -> u32 {
        word(self.big_endian, bytes, at)
    }
}

impl Clock {
    /// Nanoseconds since the Unix epoch; times before or far behind it end at the bounds.
    pub(crate) fn ns(self, ticks: u64) -> u64 {
        let offset = i128::from(self.offset_s) * 1_000_000_000;
        let since = match self.resolution {
            9 => u128::from(ticks),
            0..9 => u128::from(ticks) * u128::from(10_u64.pow(u32::from(9 - self.resolution))),
            // 64 bits of ticks are less than 10^20 of the finest unit that leaves anything.
            10..=29 => u128::from(ticks) / 10_u128.pow(u32::from(self.resolution - 9)),
            30..=127 => 0,
            binary => (u128::from(ticks) * 1_000_000_000) >> (binary & 0x7f),
        };
        u64::try_from((since as i128 + offset).max(0)).unwrap_or(u64::MAX)
    }
}

fn lengths_differ(len: u32, again: u32) -> Stop {
    Stop::Damaged(format!("a block of {len} bytes that ends as one of {again}"))
}

fn byte_order(bytes: &[u8]) -> Option<bool> {
    [false, true].into_iter().find(|big_endian| word(*big_endian, bytes, 8) == BYTE_ORDER)
}

/// Callers have made sure that it is buffered.
fn word(big_endian: bool, bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes[at..].first_chunk().expect("the caller filled the window");
    if big_endian { u32::from_be_bytes(*bytes) } else { u32::from_le_bytes(*bytes) }
}
