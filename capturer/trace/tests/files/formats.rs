//! The two formats and the compressions.

use lab::dump::{self, Order};
use trace::{Options, Trouble};

use crate::{gzip, read_one, segment, whole, zstd};

const ETHERNET: u16 = 1;
const RAW: u16 = 101;
const ORDERS: [Order; 2] = [Order::Little, Order::Big];

#[test]
fn pcap_of_either_order_and_resolution() {
    for order in ORDERS {
        for (nanoseconds, unit) in [(false, 1_000), (true, 1)] {
            let mut file = dump::pcap(order, nanoseconds, ETHERNET);
            file.extend(dump::record(order, 7, 123_456, &dump::ethernet(0x0800, &segment(b"one")), 57));
            file.extend(dump::record(order, 4_000_000_000, 5, &dump::ethernet(0x0800, &segment(b"two")), 57));
            let (seen, report) = read_one(&file, Options::default());
            let times = [7_000_000_000 + 123_456 * unit, 4_000_000_000_000_000_000 + 5 * unit];
            assert_eq!(seen, [whole(times[0], &segment(b"one")), whole(times[1], &segment(b"two"))]);
            assert_eq!((report.packets, report.bytes, report.notes().len()), (2, 86, 0));
            assert_eq!((report.first_ns, report.last_ns), (Some(times[0]), Some(times[1])));
        }
    }
}

#[test]
fn pcapng_with_all_its_blocks() {
    for order in ORDERS {
        let comment = dump::option(order, 1, b"a comment");
        let nanoseconds = dump::option(order, 9, &[9]);
        let mut file = dump::section(order);
        file.extend(dump::block(order, 0x0bad_cafe, b"unknown"));
        file.extend(dump::interface(order, ETHERNET, 0, &comment));
        file.extend(dump::interface(order, RAW, 96, &[nanoseconds, comment.clone()].concat()));
        file.extend(dump::block(order, 4, &[0; 8]));
        file.extend(dump::enhanced(
            order,
            0,
            5_000_000,
            &dump::ethernet(0x0800, &segment(b"1")),
            55,
            &comment,
        ));
        file.extend(dump::enhanced(order, 1, 5_000_000_001, &segment(b"2"), 41, &[]));
        file.extend(dump::block(order, 5, &[0; 12]));
        file.extend(dump::old_packet(order, 1, 5_000_000_002, &segment(b"3"), 41));
        file.extend(dump::simple(order, &dump::ethernet(0x0800, &segment(b"4")), 55));
        let (seen, report) = read_one(&file, Options::default());
        let expected = [(0, &b"1"[..]), (1, b"2"), (2, b"3"), (2, b"4")]
            .map(|(ns, text)| whole(5_000_000_000 + ns, &segment(text)));
        assert_eq!(seen, expected);
        assert_eq!((report.untimed, report.notes().len()), (1, 0));
    }
}

#[test]
fn every_section_has_its_own_order_and_interfaces() {
    let mut file = Vec::new();
    for (n, order) in [Order::Big, Order::Little, Order::Big].into_iter().enumerate() {
        file.extend(dump::section(order));
        if n < 2 {
            file.extend(dump::interface(order, RAW, 0, &[]));
        }
        file.extend(dump::enhanced(order, 0, 1 + n as u64, &segment(&[n as u8]), 41, &[]));
    }
    let (seen, report) = read_one(&file, Options::default());
    assert_eq!(seen, [whole(1_000, &segment(&[0])), whole(2_000, &segment(&[1]))]);
    assert_eq!(report.count(Trouble::UnknownInterface), 1, "the last section describes none");
}

#[test]
fn interfaces_count_time_as_they_say() {
    let order = Order::Little;
    for (resolution, offset_s, ticks, expected) in [
        (0, 0, 3, 3_000_000_000),
        (3, 0, 3, 3_000_000),
        (6, 10, 5, 10_000_005_000),
        (9, -1, 2_000_000_007, 1_000_000_007),
        (12, 0, 7_999, 7),
        (9, -5, 1, 0),
        (0x80, 0, 2, 2_000_000_000),
        (0x8a, 0, 1_536, 1_500_000_000),
        (0xff, 0, u64::MAX, 0),
        (127, 0, u64::MAX, 0),
        (0, 0, u64::MAX, u64::MAX),
    ] {
        let options =
            [dump::option(order, 9, &[resolution]), dump::option(order, 14, &i64::to_le_bytes(offset_s))]
                .concat();
        let mut file = dump::section(order);
        file.extend(dump::interface(order, RAW, 0, &options));
        file.extend(dump::enhanced(order, 0, ticks, &segment(b"t"), 41, &[]));
        let (seen, _) = read_one(&file, Options::default());
        assert_eq!(seen, [whole(expected, &segment(b"t"))], "resolution {resolution:#x}, offset {offset_s}");
    }
}

#[test]
fn a_simple_packet_is_as_long_as_the_snap_length_says() {
    let order = Order::Big;
    let packet = segment(&[7; 100]);
    let mut file = dump::section(order);
    file.extend(dump::interface(order, RAW, 90, &[]));
    file.extend(dump::simple(order, &packet[..92], 140));
    let (seen, report) = read_one(&file, Options::default());
    assert_eq!(seen, [(0, packet[..90].to_vec(), 140)]);
    assert_eq!(report.cut_packets, 1);
}

#[test]
fn compressed_files_of_several_members() {
    let order = Order::Little;
    let mut file = dump::pcap(order, true, RAW);
    for n in 0..200 {
        file.extend(dump::record(order, 1, n, &segment(&n.to_be_bytes()), 44));
    }
    let plain = read_one(&file, Options::default());
    assert_eq!(plain.0.len(), 200);
    let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let (a, b) = file.split_at(1_001);
    for compressed in [
        gzip(&file),
        zstd(&file),
        [gzip(a), gzip(b)].concat(),
        [zstd(a), zstd(b)].concat(),
        [skippable, zstd(a), zstd(b)].concat(),
    ] {
        assert_eq!(read_one(&compressed, Options::default()), plain);
    }
}
