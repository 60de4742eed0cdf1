//! Frames in, records out.

use flow::record::Captured;
use shm::Consumer;

use super::*;
use crate::testing::{flagged, plan, regions, segment};

struct Bench {
    dispatcher: Dispatcher,
    shards: Vec<Consumer>,
}

fn bench(change: impl FnOnce(&mut Plan)) -> Bench {
    let mut plan = plan(&["80-10.0.3.2:8080", "10.0.0.9:6379-10.0.3.2:6379"]);
    change(&mut plan);
    let region = regions(&plan, 1)[0];
    let shards = (0..plan.shards).map(|shard| region.consumer(Link::Capture(shard))).collect();
    Bench { dispatcher: Dispatcher::new(region, &plan), shards }
}

impl Bench {
    fn send(&mut self, packet: &[u8], wire_len: u32) {
        self.dispatcher.frame(&Frame::plain(packet, wire_len, 0), 777);
    }

    fn whole(&mut self, packet: &[u8]) {
        self.send(packet, packet.len() as u32);
    }

    fn read(&mut self) -> Vec<(u16, Captured, Vec<u8>)> {
        self.dispatcher.commit(|_| {});
        let mut all = vec![];
        for (shard, ring) in self.shards.iter_mut().zip(0..) {
            while let Some(bytes) = shard.next() {
                let (head, payload) = Captured::split(bytes).unwrap();
                all.push((ring, head, payload.to_vec()));
            }
            shard.release();
        }
        all
    }

    fn count(&self, what: Count) -> u64 {
        self.dispatcher.counters().get(what.index())
    }
}

/// Whoever is connected finds room behind a flood of SYNs, and none of them when it is over.
#[test]
fn syns_do_not_fill_a_ring() {
    let mut bench = bench(|plan| plan.shards = 1);
    let syn = |n: u32| {
        let from = format!("10.0.{}.{}:40000", n / 250, n % 250);
        flagged(flag::SYN, &from, "10.0.0.9:6379", n, &[])
    };
    for round in 0..3 {
        let before = bench.count(Count::RingFullSegments);
        for n in 0..20_000 {
            bench.whole(&syn(n));
        }
        bench.whole(&segment("10.1.0.1:40000", "10.0.0.9:6379", 99, b"hello"));
        let read = bench.read();
        let syns = read.len() - 1;
        // An eighth of 8 MiB in records of 128 bytes, or half of them where the last half is not known to be gone.
        assert!((4_096..=8_192).contains(&syns), "round {round}: {syns}");
        assert_eq!(read.last().map(|(_, _, payload)| payload.as_slice()), Some(&b"hello"[..]));
        assert_eq!(bench.count(Count::RingFullSegments) - before, 20_000 - syns as u64);
    }
}

#[test]
fn a_segment_reaches_the_shard_of_its_client_with_all_its_fields() {
    let mut bench = bench(|_| {});
    bench.whole(&segment("10.0.0.1:40000", "10.0.0.9:6379", 99, b"hello"));
    let read = bench.read();
    let [(shard, head, payload)] = &read[..] else { panic!("{read:?}") };
    let client = head.client;
    assert_eq!(client.to_string(), "10.0.0.1:40000");
    assert_eq!(head.server.to_string(), "10.0.0.9:6379");
    assert_eq!(*shard, shard_of(endpoint_hash(11, &client), 2));
    assert_eq!((head.time_ns, head.mapping, head.cut_len), (777, 1, 0));
    assert_eq!((head.tcp.seq.0, &payload[..]), (99, &b"hello"[..]));
    assert_eq!((bench.count(Count::Segments), bench.count(Count::PayloadBytes)), (1, 5));
}

#[test]
fn all_segments_of_a_client_reach_one_shard_and_clients_spread() {
    let mut bench = bench(|plan| plan.shards = 4);
    for port in 40_000..40_200 {
        for service in ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:6379"] {
            bench.whole(&segment(&format!("10.0.0.1:{port}"), service, 0, b"x"));
        }
    }
    let mut per_client = std::collections::HashMap::new();
    for (shard, head, _) in bench.read() {
        per_client.entry(head.client.port).or_insert_with(Vec::new).push(shard);
    }
    assert!(per_client.values().all(|shards| shards.len() == 3 && shards.iter().all(|s| *s == shards[0])));
    let busy: std::collections::HashSet<u16> = per_client.values().map(|shards| shards[0]).collect();
    assert_eq!(busy.len(), 4);
}

#[test]
fn what_the_capture_cut_is_a_counted_hole() {
    let mut bench = bench(|_| {});
    let packet = segment("10.0.0.1:40000", "10.0.0.1:80", 0, &[7; 1000]);
    bench.send(&packet[..540], packet.len() as u32);
    let (_, head, payload) = bench.read().remove(0);
    assert_eq!((payload.len(), head.cut_len), (500, 500));
    assert_eq!((bench.count(Count::CutSegments), bench.count(Count::CutBytes)), (1, 500));
}

/// Of a file's answers the shard of their client gets the headers, beside the ledger; of live capture's nothing.
#[test]
fn answers_of_a_file_are_told_to_the_shard_of_their_client() {
    let trace = topology::plan::TracePlan {
        files: vec!["-".into()],
        speed_milli: None,
        max_gap_ms: None,
        loops: 1,
        from: None,
        until: None,
        limit: None,
        rate: None,
        decap: false,
    };
    for (trace, told) in [(Some(trace), 1), (None, 0)] {
        let mut bench = bench(|plan| plan.trace = trace);
        bench.whole(&segment("10.0.0.9:6379", "10.0.0.1:40000", 99, b"an answer"));
        bench.whole(&segment("10.0.0.9:6380", "10.0.0.1:40000", 99, b"of nobody's"));
        let read = bench.read();
        assert_eq!(read.len(), told);
        for (shard, head, payload) in &read {
            assert_eq!((head.client.to_string(), head.mapping), ("10.0.0.1:40000".to_owned(), 1));
            assert_eq!(*shard, shard_of(endpoint_hash(11, &head.client), 2));
            assert!(head.is_answer() && payload.is_empty());
            assert_eq!((head.tcp.seq.0, head.cut_len), (99, 9));
        }
        let seen = [Count::Answers, Count::Segments, Count::PayloadBytes, Count::NotMapped];
        assert_eq!(seen.map(|what| bench.count(what)), [told as u64, 0, 0, 2 - told as u64]);
    }
}

#[test]
fn what_is_not_ours_is_counted_by_what_it_is() {
    let mut bench = bench(|_| {});
    bench.whole(&segment("10.0.0.1:40000", "10.0.0.1:81", 0, b"x"));
    bench.whole(&segment("198.18.0.1:40000", "10.0.0.1:80", 0, b"x"));
    let mut fragment = segment("10.0.0.1:40000", "10.0.0.1:80", 0, b"x");
    fragment[6] = 0x20;
    bench.whole(&fragment);
    bench.whole(&[0x45; 12]);
    bench.whole(&[]);
    assert!(bench.read().is_empty());
    let seen =
        [Count::NotMapped, Count::Own, Count::Fragment, Count::ShortIp, Count::Segments, Count::Frames];
    assert_eq!(seen.map(|what| bench.count(what)), [1, 1, 1, 2, 0, 5]);
}

#[test]
fn a_full_ring_costs_segments_and_never_the_ledger() {
    let mut bench = bench(|plan| {
        plan.shards = 1;
        plan.rings.capture = 1 << 16;
        plan.copies_milli = 3_000;
    });
    for seq in 0..1_000u32 {
        bench.whole(&segment("10.0.0.1:40000", "10.0.0.1:80", seq * 100, &[9; 100]));
    }
    let read = bench.read();
    let taken: u64 = read.iter().map(|(_, head, _)| u64::from(head.payload_len)).sum();
    assert!(!read.is_empty() && read.len() < 1_000);
    assert_eq!(bench.count(Count::PayloadBytes), 100_000);
    assert_eq!(taken + bench.count(Count::RingFullBytes), 100_000);
    assert_eq!(bench.count(Count::RingFullSegments), 1_000 - read.len() as u64);
    assert_eq!(bench.count(Count::RingFullWantedBytes), 3 * bench.count(Count::RingFullBytes));
    // Room again: it goes on.
    bench.whole(&segment("10.0.0.1:40000", "10.0.0.1:80", 0, b"again"));
    assert_eq!(bench.read().len(), 1);
}

#[test]
fn a_super_frame_crosses_in_one_record() {
    let mut bench = bench(|_| {});
    let payload: Vec<u8> = (0..65_000u32).map(|i| i as u8).collect();
    bench.whole(&segment("[fd00::1]:40000", "[fd00::9]:80", 0, &payload));
    let (_, head, got) = bench.read().remove(0);
    assert_eq!((head.payload_len, got), (65_000, payload));
}

#[test]
fn a_batch_is_public_as_a_whole_or_not_at_all() {
    let plan = plan(&["80-10.0.3.2:8080"]);
    let [region, next, reader] = regions(&plan, 3)[..] else { panic!("three mappings") };
    let packet = segment("10.0.0.1:40000", "10.0.0.1:80", 0, b"once");
    let frame = Frame::plain(&packet, packet.len() as u32, 0);
    let mut died = Dispatcher::new(region, &plan);
    died.frame(&frame, 1);
    // It dies before the commit; the successor begins where the kernel's ring was read from.
    let mut dispatcher = Dispatcher::new(next, &plan);
    assert_eq!((dispatcher.position(0), dispatcher.counters().get(Count::Frames.index())), (0, 0));
    dispatcher.frame(&frame, 1);
    dispatcher.commit(|note| note(0, 7));
    assert_eq!((dispatcher.position(0), dispatcher.counters().get(Count::Frames.index())), (7, 1));
    let mut count = 0;
    for shard in 0..plan.shards {
        let mut ring = reader.consumer(Link::Capture(shard));
        while ring.next().is_some() {
            count += 1;
        }
    }
    assert_eq!(count, 1);
}

#[test]
fn paused_frames_are_still_sent() {
    let mut bench = bench(|_| {});
    bench.dispatcher.control.set_paused(true);
    bench.whole(&segment("10.0.0.1:40000", "10.0.0.1:80", 0, b"x"));
    assert_eq!(bench.read().len(), 1);
}

/// The packets of one datagram for a path of 1,500 bytes.
fn datagram(client: &str, server: &str, payload: &[u8]) -> Vec<Vec<u8>> {
    let at = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
    flow::emit_udp::Pieces::new(at(client), at(server), payload, 1_500, 5)
        .map(|piece| {
            let mut buf = [0; flow::emit_udp::MAX_HEADERS];
            let len = piece.emit(&mut buf);
            [&buf[..len], piece.payload].concat()
        })
        .collect()
}

fn with_udp() -> Bench {
    let mapped = plan(&["80-10.0.3.2:8080", "udp:53-10.0.3.2:53", "udp:80-10.0.3.2:81"]);
    bench(|plan| (plan.mappings, plan.targets) = (mapped.mappings.clone(), mapped.targets.clone()))
}

#[test]
fn datagrams_and_segments_of_one_port_go_by_their_own_mappings() {
    let mut bench = with_udp();
    bench.whole(&segment("10.0.0.1:40000", "10.0.0.9:80", 1, b"tcp"));
    bench.whole(&datagram("10.0.0.1:40000", "10.0.0.9:80", b"udp")[0]);
    bench.whole(&datagram("10.0.0.1:40000", "10.0.0.9:53", b"")[0]);
    bench.whole(&datagram("10.0.0.1:40000", "10.0.0.9:54", b"?")[0]);
    bench.whole(&datagram("198.18.0.1:40000", "10.0.0.9:53", b"own")[0]);
    let read: Vec<(u16, Vec<u8>)> =
        bench.read().into_iter().map(|(_, head, payload)| (head.mapping, payload)).collect();
    assert_eq!(read, [(0, b"tcp".to_vec()), (2, b"udp".to_vec()), (1, vec![])]);
    assert_eq!((bench.count(Count::Segments), bench.count(Count::Datagrams)), (1, 2));
    assert_eq!((bench.count(Count::PayloadBytes), bench.count(Count::DatagramBytes)), (3, 3));
    assert_eq!((bench.count(Count::NotMapped), bench.count(Count::Own)), (1, 1));
}

#[test]
fn fragments_of_a_datagram_become_one_record() {
    let mut bench = with_udp();
    let payload: Vec<u8> = (0..9_000u32).map(|i| i as u8).collect();
    let mut packets = datagram("10.0.0.1:40000", "10.0.0.9:53", &payload);
    packets.reverse();
    packets.iter().for_each(|packet| bench.whole(packet));
    let read = bench.read();
    assert!(read.len() == 1 && read[0].2 == payload && read[0].1.mapping == 1);
    assert_eq!(bench.count(Count::DatagramFragments), 7);
    bench.whole(&datagram("10.0.0.1:40000", "10.0.0.9:54", &payload)[1]);
    assert!(bench.read().is_empty());
    assert_eq!(bench.count(Count::DatagramsIncomplete), 0);
}

#[test]
fn a_datagram_that_finds_no_room_or_is_cut_is_counted() {
    let mut bench = with_udp();
    bench.dispatcher.control.set_copies_milli(3_000);
    let packet = &datagram("10.0.0.1:40000", "10.0.0.9:53", &[1; 1_000])[0];
    bench.send(&packet[..500], packet.len() as u32);
    assert_eq!((bench.count(Count::DatagramsCut), bench.read().len()), (0, 0), "counted with the batch");
    assert_eq!(bench.count(Count::DatagramsCut), 1);
    while bench.count(Count::DatagramsRingFull) == 0 {
        bench.whole(packet);
        bench.dispatcher.commit(|_| {});
    }
    assert_eq!(bench.count(Count::DatagramsRingFull), 3);
    assert_eq!(bench.count(Count::DatagramsRingFullWantedBytes), 3_000);
}

#[test]
fn several_datagrams_in_one_packet_become_a_record_each_and_are_recorded_one_by_one() {
    let mut bench = with_udp();
    bench.dispatcher.recording = true;
    let payload: Vec<u8> = (0..1_300u32).map(|i| (i / 5) as u8).collect();
    let packet = datagram("10.0.0.1:40000", "10.0.0.9:53", &payload).remove(0);
    let each = |bytes| std::num::NonZeroU16::new(bytes).unwrap();
    let carrying = |carries| Frame { carries, ..Frame::plain(&packet, packet.len() as u32, 5) };
    let frame = carrying(Carries::Each(each(500)));
    assert!(bench.dispatcher.frame(&frame, 777));
    let mut kept = vec![];
    bench.dispatcher.record(&frame, |one| {
        let Ok(Seen::Whole(datagram)) = datagram::parse(one.packet, one.wire_len) else { panic!("{one:?}") };
        kept.push((one.time_ns, datagram.payload.to_vec()));
        one.packet.len()
    });
    let parts: Vec<Vec<u8>> = payload.chunks(500).map(<[u8]>::to_vec).collect();
    assert_eq!(bench.read().into_iter().map(|(_, _, payload)| payload).collect::<Vec<_>>(), parts);
    assert_eq!(kept, parts.into_iter().map(|part| (5, part)).collect::<Vec<_>>());
    assert_eq!((bench.count(Count::Datagrams), bench.count(Count::RecordPackets)), (3, 3));
    assert_eq!(bench.count(Count::RecordBytes), 1_300 + 3 * 28);

    // What is one datagram at most is the frame itself; what nobody can take apart is none.
    assert!(bench.dispatcher.frame(&carrying(Carries::Each(each(1_300))), 777));
    bench.dispatcher.record(&frame, |one| {
        assert_eq!(one.packet, &packet[..]);
        one.packet.len()
    });
    assert!(!bench.dispatcher.frame(&carrying(Carries::Several), 777));
    assert_eq!(bench.read().len(), 1);
    assert_eq!((bench.count(Count::Datagrams), bench.count(Count::DatagramsUnsplit)), (4, 1));
}
