//! Link types, VLAN tags and tunnels.

use lab::dump::{self, Order};
use trace::{Options, Report, Trouble};

use crate::{Seen, between, read_one, segment, whole};

const ORDER: Order = Order::Little;

fn read(link: u16, frames: &[Vec<u8>], options: Options) -> (Vec<Seen>, Report) {
    let mut file = dump::pcap(ORDER, true, link);
    for frame in frames {
        file.extend(dump::record(ORDER, 0, 1, frame, frame.len() as u32));
    }
    read_one(&file, options)
}

#[test]
fn every_link_type_leads_to_the_packet() {
    let (v4, v6) = (segment(b"four"), between("[fd00::1]:4000", "[fd00::9]:80", b"six"));
    let with = |head: &[u8], body: &[u8]| [head, body].concat();
    let cooked = |kind: [u8; 2]| [&[0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0][..], &kind].concat();
    let cooked_2 = |kind: [u8; 2]| [&kind[..], &[0; 18]].concat();
    for (link, frame, packet) in [
        (1, dump::ethernet(0x0800, &v4), &v4),
        (1, dump::ethernet(0x86dd, &v6), &v6),
        (1, dump::ethernet(0x8100, &with(&[0, 5, 8, 0], &v4)), &v4),
        (1, dump::ethernet(0x88a8, &with(&[0, 5, 0x81, 0, 0, 6, 0x86, 0xdd], &v6)), &v6),
        (113, with(&cooked([8, 0]), &v4), &v4),
        (113, with(&cooked([0x81, 0]), &with(&[0, 5, 8, 0], &v4)), &v4),
        (276, with(&cooked_2([0x86, 0xdd]), &v6), &v6),
        (12, v4.clone(), &v4),
        (14, v6.clone(), &v6),
        (101, v6.clone(), &v6),
        (228, v4.clone(), &v4),
        (229, v6.clone(), &v6),
        (0, with(&[2, 0, 0, 0], &v4), &v4),
        (0, with(&[0, 0, 0, 30], &v6), &v6),
        (108, with(&[0, 0, 0, 24], &v6), &v6),
        (9, with(&[0xff, 3, 0, 0x21], &v4), &v4),
        (9, with(&[0, 0x57], &v6), &v6),
    ] {
        let (seen, report) = read(link, std::slice::from_ref(&frame), Options::default());
        assert_eq!(seen, [whole(1, packet)], "link type {link}, {frame:02x?}");
        assert!(report.notes().is_empty());
        // Cut anywhere, it is as much of the packet as is left, or named.
        for len in 0..frame.len() {
            let (cut, report) = read(link, &[frame[..len].to_vec()], Options::default());
            let left = packet.len() - (frame.len() - len).min(packet.len());
            match cut.as_slice() {
                [] => assert_eq!((left, report.count(Trouble::ShortFrame)), (0, 1), "{len} of {frame:02x?}"),
                [(_, ip, _)] => assert_eq!(ip, &packet[..left]),
                more => panic!("{more:?}"),
            }
        }
    }
}

#[test]
fn what_holds_no_ip_is_counted_under_its_name() {
    let tags = [0, 5, 0x81, 0, 0, 6, 0x81, 0, 0, 7, 8, 0];
    let frames =
        [dump::ethernet(0x0806, &[0; 28]), dump::ethernet(0x8100, &[&tags[..], &segment(b"x")].concat())];
    let (seen, report) = read(1, &frames, Options::default());
    assert_eq!((seen.len(), report.not_ip, report.count(Trouble::DeepTags)), (0, 1, 1));
    let (seen, report) = read(147, &[segment(b"x")], Options::default());
    assert_eq!((seen.len(), report.count(Trouble::UnknownLink)), (0, 1));
    assert!(report.notes()[0].to_string().contains("at byte 24: "), "{}", report.notes()[0]);
    assert!(report.notes()[0].to_string().contains("link type 147"), "{}", report.notes()[0]);
}

#[test]
fn tunnels_are_opened_when_asked() {
    let decap = Options { decap: true, ..Options::default() };
    let packet = between("[fd00::1]:4000", "[fd00::9]:80", b"inner");
    let inner = dump::ethernet(0x86dd, &packet);
    let vxlan = [&[8, 0, 0, 0, 0, 0, 42, 0][..], &inner].concat();
    let geneve = [&[2, 0, 0x65, 0x58, 0, 0, 42, 0][..], &[0; 8], &inner].concat();
    let bare = [&[0, 0, 0x86, 0xdd, 0, 0, 42, 0][..], &packet].concat();
    let of = |wrap: fn(u16, &[u8]) -> Vec<u8>| {
        [(4_789, &vxlan), (8_472, &vxlan), (6_081, &geneve), (6_081, &bare)]
            .map(|(port, body)| wrap(port, body))
    };
    for outer in [of(dump::udp), of(dump::udp_v6)].concat() {
        assert_eq!(read(101, std::slice::from_ref(&outer), Options::default()).0, [whole(1, &outer)]);
        let (seen, report) = read(101, std::slice::from_ref(&outer), decap);
        assert_eq!((seen, report.decapsulated), (vec![whole(1, &packet)], 1));
        // Padding of the outer frame belongs to nobody.
        let kind = if outer[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
        let padded = dump::ethernet(kind, &[&outer[..], &[0; 9]].concat());
        assert_eq!(read(1, &[padded], decap).0, [whole(1, &packet)]);
        // A mirror that cuts: the inner packet is cut, and says how long it was.
        let mut file = dump::pcap(ORDER, true, 101);
        file.extend(dump::record(ORDER, 0, 1, &outer[..outer.len() - 3], outer.len() as u32));
        let (seen, report) = read_one(&file, decap);
        let cut = (1, packet[..packet.len() - 3].to_vec(), packet.len() as u32);
        assert_eq!((seen, report.cut_packets), (vec![cut], 1));
    }
    let other = dump::udp(53, &[8; 40]);
    assert_eq!(read(101, std::slice::from_ref(&other), decap).0, [whole(1, &other)]);
    let arp = dump::udp(4_789, &[&[8, 0, 0, 0, 0, 0, 42, 0][..], &dump::ethernet(0x0806, &[0; 28])].concat());
    let (seen, report) = read(101, &[arp], decap);
    assert_eq!((seen.len(), report.not_ip), (0, 1));
}

#[test]
fn fragments_are_counted_and_handed_on() {
    let mut fragment = segment(b"part");
    fragment[6] = 0x20;
    let (seen, report) = read(101, &[fragment], Options::default());
    assert_eq!((seen.len(), report.fragments), (1, 1));
}
