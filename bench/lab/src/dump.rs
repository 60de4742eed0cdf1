//! Packet files made by hand, in either byte order: what tests, the corpus and benches let `trace` read. Lengths are right unless the
//! caller says otherwise.

/// The byte order of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

impl Order {
    fn word(self, number: u32) -> [u8; 4] {
        match self {
            Self::Little => number.to_le_bytes(),
            Self::Big => number.to_be_bytes(),
        }
    }

    fn half(self, number: u16) -> [u8; 2] {
        match self {
            Self::Little => number.to_le_bytes(),
            Self::Big => number.to_be_bytes(),
        }
    }

    fn words(self, numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| self.word(*number)).collect()
    }
}

/// The header of a pcap file.
pub fn pcap(order: Order, nanoseconds: bool, link: u16) -> Vec<u8> {
    let magic = if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
    let mut bytes = order.word(magic).to_vec();
    bytes.extend(order.half(2));
    bytes.extend(order.half(4));
    bytes.extend(order.words(&[0, 0, 262_144, u32::from(link)]));
    bytes
}

/// One record of a pcap file; `fraction` is in the file's unit, `wire_len` the frame's length on the wire.
pub fn record(order: Order, seconds: u32, fraction: u32, frame: &[u8], wire_len: u32) -> Vec<u8> {
    let mut bytes = order.words(&[seconds, fraction, frame.len() as u32, wire_len]);
    bytes.extend_from_slice(frame);
    bytes
}

/// Any pcapng block; the body is padded.
pub fn block(order: Order, kind: u32, body: &[u8]) -> Vec<u8> {
    let padded = body.len().next_multiple_of(4);
    let len = 12 + padded as u32;
    let mut bytes = order.words(&[kind, len]);
    bytes.extend_from_slice(body);
    bytes.resize(8 + padded, 0);
    bytes.extend(order.word(len));
    bytes
}

/// The header of a section.
pub fn section(order: Order) -> Vec<u8> {
    let mut body = order.word(0x1a2b_3c4d).to_vec();
    body.extend(order.half(1));
    body.extend(order.half(0));
    body.extend([0xff; 8]);
    block(order, 0x0a0d_0d0a, &body)
}

/// An option of a pcapng block.
pub fn option(order: Order, code: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = order.half(code).to_vec();
    bytes.extend(order.half(value.len() as u16));
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An interface. `options` without the end mark, which is added when there are any.
pub fn interface(order: Order, link: u16, snap: u32, options: &[u8]) -> Vec<u8> {
    let mut body = order.half(link).to_vec();
    body.extend(order.half(0));
    body.extend(order.word(snap));
    body.extend(with_end(options));
    block(order, 1, &body)
}

/// An enhanced packet block.
pub fn enhanced(
    order: Order,
    interface: u32,
    ticks: u64,
    frame: &[u8],
    wire_len: u32,
    options: &[u8],
) -> Vec<u8> {
    let head = [interface, (ticks >> 32) as u32, ticks as u32, frame.len() as u32, wire_len];
    let mut body = order.words(&head);
    body.extend_from_slice(frame);
    body.resize(body.len().next_multiple_of(4), 0);
    body.extend(with_end(options));
    block(order, 6, &body)
}

/// A packet block as it was before there were enhanced ones.
pub fn old_packet(order: Order, interface: u16, ticks: u64, frame: &[u8], wire_len: u32) -> Vec<u8> {
    let mut body = order.half(interface).to_vec();
    body.extend(order.half(7));
    body.extend(order.words(&[(ticks >> 32) as u32, ticks as u32, frame.len() as u32, wire_len]));
    body.extend_from_slice(frame);
    block(order, 2, &body)
}

/// A simple packet block.
pub fn simple(order: Order, frame: &[u8], wire_len: u32) -> Vec<u8> {
    block(order, 3, &[&order.word(wire_len), frame].concat())
}

fn with_end(options: &[u8]) -> Vec<u8> {
    if options.is_empty() { Vec::new() } else { [options, &[0; 4]].concat() }
}

/// An Ethernet frame of this type.
pub fn ethernet(ethertype: u16, body: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1][..], &ethertype.to_be_bytes(), body].concat()
}

/// An IPv4 datagram of UDP from 10.9.0.1 to 10.9.0.2.
pub fn udp(port: u16, body: &[u8]) -> Vec<u8> {
    let udp = udp_alone(port, body);
    let mut bytes = vec![0x45, 0];
    bytes.extend((20 + udp.len() as u16).to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    bytes.extend(udp);
    bytes
}

/// An IPv6 datagram of UDP from fd09::1 to fd09::2, behind an empty destination header as tunnels may have one.
pub fn udp_v6(port: u16, body: &[u8]) -> Vec<u8> {
    const DESTINATION: u8 = 60;
    let udp = udp_alone(port, body);
    let end = |last: u8| [&[0xfd, 9][..], &[0; 13], &[last]].concat();
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((8 + udp.len() as u16).to_be_bytes());
    bytes.extend([DESTINATION, 64]);
    bytes.extend([end(1), end(2)].concat());
    // Next header, length; six bytes of padding.
    bytes.extend([17, 0, 1, 4, 0, 0, 0, 0]);
    bytes.extend(udp);
    bytes
}

fn udp_alone(port: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = 50_000_u16.to_be_bytes().to_vec();
    bytes.extend(port.to_be_bytes());
    bytes.extend((8 + body.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend_from_slice(body);
    bytes
}
