//! What a header costs from its frame to the socket. Not a test of anything; prints figures:
//! `cargo test --release -p intercept figures -- --ignored --nocapture`

use std::io::Read;
use std::net::{TcpListener, TcpStream};

use flow::record::{flag, opt};
use flow::{Addr, Seq, TcpFields};
use nix::time::{ClockId, clock_gettime};
use returns::{Link, Mode, Policy};

use super::*;
use crate::command::Attach;
use crate::testing::{hello, target};
use crate::window::Window;

fn cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// The listener's half of an open connection, and a thread that reads what it sends.
fn outgoing(policy: Policy) -> (returns::Outgoing, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut theirs = TcpStream::connect(addr).unwrap();
    let ours = listener.accept().unwrap().0;
    ours.set_nonblocking(true).unwrap();
    let hello = hello(1, Mode::Ranges(vec!["198.18.0.0/15".parse().unwrap()]));
    let mut dialer = Link::dialer(policy, &hello, addr).unwrap();
    let mut link = Link::listener(policy, addr);
    for _ in 0..4 {
        for (from, to) in [(0, 1), (1, 0)] {
            let pair = [&mut dialer, &mut link];
            let bytes = pair[from].pending().to_vec();
            pair[from].sent(bytes.len());
            pair[to].receive_buffer()[..bytes.len()].copy_from_slice(&bytes);
            pair[to].received(bytes.len());
            let _ = pair[to].next().unwrap();
        }
    }
    std::thread::spawn(move || {
        let mut waste = vec![0; 1 << 20];
        while theirs.read(&mut waste).is_ok_and(|n| n > 0) {}
    });
    (link.split().unwrap().1, ours)
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    let frames: Vec<Vec<u8>> = (0..4096_u32)
        .map(|n| {
            let [_, _, c, d] = n.to_be_bytes();
            let client = Endpoint::new(Addr::v4([198, 18, c, d]), 40_000);
            let tcp = TcpFields {
                seq: Seq(n),
                flags: flag::ACK | flag::PSH,
                options: opt::TIMESTAMPS,
                ..TcpFields::default()
            };
            let mut headers = [0; flow::emit::MAX_HEADERS];
            let len = flow::emit::emit(&mut headers, target(), client, &tcp, &[&[0; 200]], 0);
            headers[..len].to_vec()
        })
        .collect();
    for (name, policy) in [("plain", Policy::PlainLocal), ("encrypted", Policy::Keyed([1; 32]))] {
        for burst in [1, 8, 32, 256] {
            let stats = Arc::new(Stats::default());
            let limits = Limits::default();
            let mut forward = Forward::new(&[target()], &[], &limits, 1, 2, stats.clone());
            let (outgoing, stream) = outgoing(policy);
            forward.command(Command::Attach(Box::new(Attach {
                slot: 0,
                tenure: 1,
                connection: 1,
                stream: Arc::new(stream),
                outgoing,
                ranges: vec!["198.18.0.0/15".parse().unwrap()],
                fresh: Some(Window::new(limits.window)),
                last: None,
                software: String::new(),
            })));
            let rounds = 400_000 / burst;
            let (mut parse_ns, start) = (0, cpu_ns());
            for round in 0..rounds {
                let before = cpu_ns();
                for i in 0..burst {
                    let packet = &frames[(round * burst + i) % frames.len()];
                    forward.frame(&Frame { packet, wire_len: 252, time_ns: 1, segment_size: 0 });
                }
                parse_ns += cpu_ns() - before;
                forward.peers.flush(true);
            }
            let total = cpu_ns() - start;
            let n = (rounds * burst) as u64;
            println!(
                "{name:9} bursts of {burst:3}: {:5} ns a header ({} ns until queued), {} of {n} sent, {} waited",
                total / n,
                parse_ns / n,
                stats.get(Count::Sent),
                stats.get(Count::Blocked),
            );
        }
    }
}
