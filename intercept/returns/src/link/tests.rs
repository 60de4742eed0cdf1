use flow::{Addr, Endpoint, Range, Returned};
use proptest::prelude::*;

use super::*;
use crate::crypt::TAG;
use crate::hello::{MAX_RANGES, MAX_TARGETS, Mode, Position, RefusedCode};
use crate::hello::{Refused, Welcome};
use crate::stream::parse;
use crate::{Reason, Stated};

const KEY: [u8; 32] = [7; 32];

fn peer() -> SocketAddr {
    "10.0.4.2:36524".parse().unwrap()
}

fn hello() -> Hello {
    Hello {
        software: "0.1.0".to_owned(),
        instance: 0x1122_3344_5566_7788,
        incarnation: 3,
        name: "default".to_owned(),
        mode: Mode::Ranges(vec!["198.18.16.0/20".parse().unwrap(), "2001:2:0:1::/64".parse().unwrap()]),
        targets: vec![Endpoint::new(Addr::v4([10, 0, 3, 2]), 8080)],
        last: Some(Position { epoch: 9, last: 41 }),
    }
}

fn record(position: u64) -> Returned {
    Returned { position, payload_len: (position as u32).wrapping_mul(3), ..Returned::default() }
}

fn pair(dialer: Policy, listener: Policy) -> (Link, Link) {
    (Link::dialer(dialer, &hello(), peer()).unwrap(), Link::listener(listener, peer()))
}

/// Moves what `from` has pending to `to`, as far as it fits.
fn carry(from: &mut Link, to: &mut Link) -> usize {
    let room = to.receive_buffer();
    let n = from.pending().len().min(room.len());
    room[..n].copy_from_slice(&from.pending()[..n]);
    to.received(n);
    from.sent(n);
    n
}

fn feed(to: &mut Link, bytes: &[u8]) {
    to.receive_buffer()[..bytes.len()].copy_from_slice(bytes);
    to.received(bytes.len());
}

/// Handshake, hello and welcome; returns both ends open.
fn connected(policy: Policy) -> (Link, Link) {
    let (mut d, mut l) = pair(policy, policy);
    carry(&mut d, &mut l);
    assert!(l.next().unwrap().is_none());
    carry(&mut l, &mut d);
    assert!(d.next().unwrap().is_none());
    carry(&mut d, &mut l);
    match l.next().unwrap() {
        Some(Message::Hello(h)) => assert_eq!(h, hello()),
        other => panic!("{other:?}"),
    }
    assert!(l.outgoing().welcome(&Welcome { software: "0.1.0".to_owned(), epoch: 9, next: 42 }));
    carry(&mut l, &mut d);
    assert!(matches!(d.next().unwrap(), Some(Message::Welcome(w)) if w.next == 42 && w.epoch == 9));
    (d, l)
}

/// Runs the opening until one end has an error; returns the errors of both.
fn disagree(dialer: Policy, listener: Policy) -> (LinkError, LinkError) {
    let (mut d, mut l) = pair(dialer, listener);
    carry(&mut d, &mut l);
    let at_listener = l.next().map(|m| format!("{m:?}")).unwrap_err();
    carry(&mut l, &mut d);
    let at_dialer = d.next().map(|m| format!("{m:?}")).unwrap_err();
    assert_eq!(d.next().map(|_| ()).unwrap_err(), at_dialer, "an error is final");
    (at_dialer, at_listener)
}

#[test]
fn records_arrive_with_their_positions_plain_and_encrypted() {
    for policy in [Policy::PlainLocal, Policy::Keyed(KEY)] {
        let (mut d, mut l) = connected(policy);
        assert_eq!(l.is_encrypted(), matches!(policy, Policy::Keyed(_)));
        for position in 42..542 {
            assert!(l.outgoing().record(&record(position)));
        }
        assert!(l.outgoing().gap(5, 547));
        assert!(l.outgoing().record(&record(547)));
        l.outgoing().flush();
        let (mut seen, mut next, mut gaps) = (0, 42, 0);
        while carry(&mut l, &mut d) > 0 {
            while let Some(message) = d.next().unwrap() {
                match message {
                    Message::Batch(batch) => {
                        assert_eq!((batch.first, batch.epoch), (next, 9));
                        for r in batch.records() {
                            assert_eq!(r.unwrap(), record(next));
                            (next, seen) = (next + 1, seen + 1);
                        }
                    }
                    Message::Gap { dropped, next: after } => {
                        (gaps, next) = (gaps + dropped, after);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!((seen, next, gaps), (501, 548, 5));
    }
}

#[test]
fn claims_paces_and_pings_go_the_other_way() {
    let (mut d, mut l) = connected(Policy::Keyed(KEY));
    let flow = |n: u8| (Endpoint::new(Addr::v4([192, 0, 2, n]), 1000 + u16::from(n)), hello().targets[0]);
    for n in 0..100 {
        assert!(d.outgoing().claim(&flow(n).0, &flow(n).1));
    }
    assert!(d.outgoing().pace(true) && d.outgoing().pace(false));
    assert!(d.outgoing().ping(77));
    carry(&mut d, &mut l);
    match l.next().unwrap() {
        Some(Message::Claims(claims)) => {
            assert_eq!(claims.len(), 100);
            assert!(claims.iter().eq((0..100).map(flow)));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(l.next().unwrap(), Some(Message::Pace { eager: true })));
    assert!(matches!(l.next().unwrap(), Some(Message::Pace { eager: false })));
    assert!(matches!(l.next().unwrap(), Some(Message::Ping(77))));
    assert!(l.outgoing().pong(77));
    assert!(l.outgoing().bye("going\ndown"));
    carry(&mut l, &mut d);
    assert!(matches!(d.next().unwrap(), Some(Message::Pong(77))));
    assert!(matches!(d.next().unwrap(), Some(Message::Bye { sentence: "going down" })));
}

#[test]
fn a_refusal_carries_its_sentence_and_a_free_range() {
    let (mut d, mut l) = pair(Policy::Keyed(KEY), Policy::Keyed(KEY));
    carry(&mut d, &mut l);
    assert!(l.next().unwrap().is_none());
    carry(&mut l, &mut d);
    assert!(d.next().unwrap().is_none());
    carry(&mut d, &mut l);
    assert!(matches!(l.next().unwrap(), Some(Message::Hello(_))));
    let refused = Refused {
        code: RefusedCode::RangeTaken,
        sentence: "198.18.16.0/20 is taken by `other`".to_owned(),
        suggestion: Some("198.18.32.0/20".parse::<Range>().unwrap()),
    };
    assert!(l.outgoing().refuse(&refused));
    carry(&mut l, &mut d);
    assert!(matches!(d.next().unwrap(), Some(Message::Refused(r)) if r == refused));
}

#[test]
fn the_opening_survives_a_cut_at_every_byte() {
    for policy in [Policy::Plain, Policy::Keyed(KEY)] {
        let (mut d, mut l) = pair(policy, policy);
        for _ in 0..400 {
            for forth in [true, false] {
                let (from, to) = if forth { (&mut d, &mut l) } else { (&mut l, &mut d) };
                if let Some(&byte) = from.pending().first() {
                    feed(to, &[byte]);
                    from.sent(1);
                }
                if let Some(Message::Hello(h)) = to.next().unwrap() {
                    assert_eq!(h, hello());
                }
            }
        }
        assert!(d.is_open() && l.is_open() && d.pending().is_empty());
    }
}

#[test]
fn a_stream_cut_at_every_offset_gives_the_same_records() {
    for policy in [Policy::Plain, Policy::Keyed(KEY)] {
        // The bytes differ for each encrypted connection, so each offset has a connection of its own.
        let mut cut = 0;
        loop {
            let (mut d, mut l) = connected(policy);
            for position in 42..62 {
                assert!(l.outgoing().record(&record(position)));
            }
            l.outgoing().flush();
            let bytes = l.pending().to_vec();
            let mut got = 0;
            for part in [&bytes[..cut], &bytes[cut..]] {
                feed(&mut d, part);
                while let Some(message) = d.next().unwrap() {
                    let Message::Batch(batch) = message else { panic!("{message:?}") };
                    got += batch.records().filter(Result::is_ok).count();
                }
            }
            assert_eq!(got, 20, "cut at {cut}");
            cut += 1;
            if cut > bytes.len() {
                break;
            }
        }
    }
}

#[test]
fn another_key_is_one_clear_sentence_at_both_ends() {
    let (d, l) = disagree(Policy::Keyed(KEY), Policy::Keyed([8; 32]));
    assert_eq!((d.reason(), l.reason()), (Reason::WrongKey, Reason::WrongKey));
    assert!(d.to_string().starts_with("the key here differs from the one at 10.0.4.2:36524"), "{d}");
    assert!(!d.may_pass());
}

#[test]
fn plain_against_encrypted_is_named_at_both_ends() {
    for (dialer, listener) in [
        (Policy::Plain, Policy::Keyed(KEY)),
        (Policy::PlainLocal, Policy::Keyed(KEY)),
        (Policy::Keyed(KEY), Policy::Plain),
        (Policy::Plain, Policy::Unwilling),
    ] {
        let (d, l) = disagree(dialer, listener);
        let peer = peer();
        let (here, there) = (dialer.stated(), listener.stated());
        assert_eq!(d, LinkError::Mode { peer, here, there });
        assert_eq!(l, LinkError::Mode { peer, here: there, there: here });
    }
    let (mut d, mut l) = pair(Policy::Plain, Policy::PlainLocal);
    carry(&mut d, &mut l);
    assert!(l.next().unwrap().is_none() && l.is_open(), "two kinds of plain agree");
}

#[test]
fn another_version_is_named_with_both_numbers() {
    let mut l = Link::listener(Policy::Plain, peer());
    let mut preamble = Preamble::write(Stated::Plain, Verdict::Accepted);
    preamble[8] = 9;
    feed(&mut l, &preamble);
    let error = l.next().map(|_| ()).unwrap_err();
    assert_eq!(error, LinkError::Version { peer: peer(), here: VERSION, there: 9 });
    assert!(error.to_string().contains("version 9") && error.to_string().contains("version 3"));

    let mut d = Link::dialer(Policy::Plain, &hello(), peer()).unwrap();
    preamble[11] = Verdict::Version as u8;
    feed(&mut d, &preamble);
    assert_eq!(d.next().map(|_| ()).unwrap_err().reason(), Reason::Version);
}

#[test]
fn a_stranger_learns_nothing_and_is_recognised_at_its_first_byte() {
    for bytes in [&b"G"[..], b"tcpx", b"GET / HTTP/1.1\r\n\r\n", &[0; 40]] {
        let mut l = Link::listener(Policy::Keyed(KEY), peer());
        feed(&mut l, bytes);
        assert_eq!(l.next().map(|_| ()).unwrap_err().reason(), Reason::NotTcptwin);
        assert!(l.pending().is_empty());
    }
}

#[test]
fn a_full_listener_is_named() {
    let mut d = Link::dialer(Policy::Keyed(KEY), &hello(), peer()).unwrap();
    feed(&mut d, &crypt::busy());
    let error = d.next().map(|_| ()).unwrap_err();
    assert!(error.reason() == Reason::Busy && error.may_pass());
}

#[test]
fn altered_replayed_and_reordered_frames_are_rejected() {
    let batch = |l: &mut Link, position| {
        assert!(l.outgoing().record(&record(position)));
        l.outgoing().flush();
        let bytes = l.pending().to_vec();
        l.sent(bytes.len());
        bytes
    };
    let altered = |d: &mut Link| d.next().map(|_| ()).unwrap_err().reason();

    let (mut d, mut l) = connected(Policy::Keyed(KEY));
    let mut bytes = batch(&mut l, 42);
    *bytes.last_mut().unwrap() ^= 1;
    feed(&mut d, &bytes);
    assert_eq!(altered(&mut d), Reason::Altered);

    let (mut d, mut l) = connected(Policy::Keyed(KEY));
    let bytes = batch(&mut l, 42);
    feed(&mut d, &bytes);
    assert!(d.next().unwrap().is_some());
    feed(&mut d, &bytes);
    assert_eq!(altered(&mut d), Reason::Altered);

    let (mut d, mut l) = connected(Policy::Keyed(KEY));
    let _lost = batch(&mut l, 42);
    let bytes = batch(&mut l, 43);
    feed(&mut d, &bytes);
    assert_eq!(altered(&mut d), Reason::Altered);
}

#[test]
fn hostile_lengths_and_positions_close_the_connection() {
    let (mut d, _) = connected(Policy::Plain);
    feed(&mut d, &[0xff, 0xff]);
    assert_eq!(d.next().map(|_| ()).unwrap_err().reason(), Reason::FrameLength);

    for (bytes, what) in [
        (&[0u8, 0][..], "an empty frame"),
        (&[1, 0, 99], "a message of unknown type"),
        (&[2, 0, tag::PING, 0], "ping"),
        (&[10, 0, tag::PING, 0, 0, 0, 0, 0, 0, 0, 0, 1], "bytes after the end of a message"),
        (&[3, 0, tag::BYE, 0xff, 0xfe], "farewell"),
    ] {
        let (mut d, _) = connected(Policy::Plain);
        feed(&mut d, bytes);
        assert_eq!(d.next().map(|_| ()).unwrap_err(), LinkError::Malformed { peer: peer(), what });
    }

    // Positions that repeat or jump, a gap that goes back, another epoch.
    for wrong in [41, 44, u64::MAX] {
        let (mut d, mut l) = connected(Policy::Plain);
        assert!(l.outgoing().record(&record(42)) && l.outgoing().record(&record(wrong)));
        l.outgoing().flush();
        carry(&mut l, &mut d);
        assert!(d.next().unwrap().is_some());
        assert_eq!(d.next().map(|_| ()).unwrap_err().reason(), Reason::Malformed);
    }
    let (mut d, mut l) = connected(Policy::Plain);
    assert!(l.outgoing().gap(1, 41));
    carry(&mut l, &mut d);
    assert_eq!(d.next().map(|_| ()).unwrap_err().reason(), Reason::Malformed);
}

#[test]
fn messages_in_the_wrong_direction_close_the_connection() {
    let (mut d, mut l) = connected(Policy::Plain);
    assert!(d.outgoing().record(&record(0)));
    d.outgoing().flush();
    carry(&mut d, &mut l);
    assert_eq!(l.next().map(|_| ()).unwrap_err(), LinkError::Unexpected { peer: peer(), what: "records" });
    assert!(l.outgoing().claim(&Endpoint::default(), &Endpoint::default()));
    l.outgoing().flush();
    carry(&mut l, &mut d);
    assert_eq!(d.next().map(|_| ()).unwrap_err(), LinkError::Unexpected { peer: peer(), what: "claims" });
}

#[test]
fn a_socket_that_takes_nothing_fills_a_bounded_buffer() {
    let (mut d, mut l) = connected(Policy::Keyed(KEY));
    let mut taken = 42;
    while l.outgoing().record(&record(taken)) {
        taken += 1;
    }
    assert!(l.pending().len() <= BUFFER && taken > 42 + 500, "{taken}");
    while l.outgoing().pong(1) {}
    // The other end reads again: what was taken arrives, what was not can be offered again.
    assert!(l.pending().len() <= BUFFER && l.outgoing().room() < 2 + 9 + TAG);
    let mut got = 0;
    while carry(&mut l, &mut d) > 0 {
        while let Some(message) = d.next().unwrap() {
            if let Message::Batch(batch) = message {
                got += batch.len() as u64;
            }
        }
    }
    assert_eq!(got, taken - 42);
    assert!(l.outgoing().record(&record(taken)));
}

#[test]
fn the_halves_work_apart() {
    let (mut d, l) = connected(Policy::Keyed(KEY));
    let (mut incoming, mut outgoing) = l.split().unwrap();
    assert!(outgoing.record(&record(42)));
    outgoing.flush();
    let n = outgoing.pending().len();
    feed(&mut d, outgoing.pending());
    outgoing.sent(n);
    assert!(matches!(d.next().unwrap(), Some(Message::Batch(_))));
    assert!(d.outgoing().ping(5));
    let bytes = d.pending().to_vec();
    incoming.receive_buffer()[..bytes.len()].copy_from_slice(&bytes);
    incoming.received(bytes.len());
    assert!(matches!(incoming.next().unwrap(), Some(Message::Ping(5))));
    let (d, _) = pair(Policy::Plain, Policy::Plain);
    assert!(d.split().is_none(), "not before it is open");
}

#[test]
fn the_longest_hello_fits_and_longer_lists_are_cut() {
    let mut long = hello();
    long.name = "é".repeat(200);
    long.targets = vec![long.targets[0]; MAX_TARGETS + 9];
    long.mode = Mode::Ranges(vec!["10.0.0.0/8".parse().unwrap(); MAX_RANGES + 1]);
    let mut d = Link::dialer(Policy::Plain, &long, peer()).unwrap();
    let mut l = Link::listener(Policy::Plain, peer());
    carry(&mut d, &mut l);
    assert!(l.next().unwrap().is_none());
    carry(&mut l, &mut d);
    assert!(d.next().unwrap().is_none());
    carry(&mut d, &mut l);
    let Some(Message::Hello(got)) = l.next().unwrap() else { panic!() };
    assert_eq!(got.name, "é".repeat(32));
    assert_eq!(got.targets.len(), MAX_TARGETS);
    assert!(matches!(got.mode, Mode::Ranges(r) if r.len() == MAX_RANGES));
}

proptest! {
    #[test]
    fn any_bytes_are_survived_in_every_state(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        greeted in any::<bool>(),
        keyed in any::<bool>(),
        frame in any::<bool>(),
    ) {
        let policy = if keyed { Policy::Keyed(KEY) } else { Policy::Plain };
        let (mut d, mut l) = if greeted { connected(policy) } else { pair(policy, policy) };
        for link in [&mut d, &mut l] {
            if frame {
                // A well-formed frame, so that the bytes reach the messages.
                feed(link, &(bytes.len() as u16).to_le_bytes());
            }
            feed(link, &bytes);
            for _ in 0..500 {
                match link.next() {
                    Ok(Some(Message::Batch(batch))) => { let _ = batch.records().count(); }
                    Ok(Some(Message::Claims(claims))) => { let _ = claims.iter().count(); }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break,
                }
            }
        }
    }

    #[test]
    fn any_body_is_a_message_or_an_error(kind in 0u8..12, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut body = vec![kind];
        body.extend(bytes);
        if let Ok(Message::Batch(batch)) = parse(&body) {
            prop_assert!(batch.records().count() <= batch.len() + 1);
        }
    }
}
