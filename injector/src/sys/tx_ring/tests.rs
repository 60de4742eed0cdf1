//! Real rings between two ends of a wire, in a network namespace of the test's own.

use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};

use super::*;
use crate::testing::{in_namespace, ip};

/// A protocol of nobody's (local experimental, IEEE 802).
const PROTOCOL: u16 = 0x88b5;

/// A device, and what its other end hears of our protocol.
struct Wire {
    to: Destination,
    heard: OwnedFd,
}

fn index(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).unwrap()
}

impl Wire {
    fn new() -> Self {
        ip("link add near mtu 9000 type veth peer name far mtu 9000");
        ip("link set near up");
        ip("link set far up");
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let heard = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
        setsockopt(&heard, sockopt::RcvBufForce, &(16 << 20)).unwrap();
        Self { to: Destination::link(index("near"), PROTOCOL), heard }
    }

    /// The number of the next frame, if one of ours waits, and that it was not altered.
    fn number(&self) -> Option<u32> {
        let mut bytes = [0; 4_096];
        let far = index("far") as usize;
        while let Ok((len, from)) = recvfrom::<LinkAddr>(self.heard.as_raw_fd(), &mut bytes) {
            let is_far = from.is_some_and(|from| from.ifindex() == far);
            // The host has things to say too.
            if is_far && bytes[12..14] == PROTOCOL.to_be_bytes() {
                let number = u32::from_ne_bytes(bytes[14..18].try_into().unwrap());
                assert_eq!(bytes[..len], frame(number)[VNET..], "frame {number}");
                return Some(number);
            }
        }
        None
    }

    /// Those of the next `n`.
    fn numbers(&self, n: usize) -> Vec<u32> {
        let mut numbers = Vec::new();
        let start = Instant::now();
        while numbers.len() < n && start.elapsed() < Duration::from_secs(20) {
            match self.number() {
                Some(number) => numbers.push(number),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        numbers
    }
}

/// A frame that says its number, of a length and with bytes that follow from it, up to the longest.
fn frame(number: u32) -> Vec<u8> {
    let mut frame = vec![0; VNET];
    frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame.extend(PROTOCOL.to_be_bytes());
    frame.extend(number.to_ne_bytes());
    let len = 64 + number as usize * 37 % (MOST - 63);
    frame.extend((frame.len()..len).map(|at| (at as u32 ^ number) as u8));
    frame
}

/// Sends the frames of these numbers, each in two parts, and says how many calls that took.
fn send(ring: &mut TxRing, to: &Destination, numbers: std::ops::Range<u32>) -> usize {
    let frames: Vec<Vec<u8>> = numbers.map(frame).collect();
    let (mut sent, mut calls) = (0, 0);
    while sent < frames.len() {
        let parts = frames[sent..].iter().map(|frame| {
            let (head, payload) = frame.split_at(40);
            [head, payload]
        });
        sent += ring.send(to, parts).unwrap();
        calls += 1;
        assert!(calls < 1_000, "{sent} frames in {calls} calls");
    }
    calls
}

fn alone(frame: &[u8]) -> impl Iterator<Item = [&[u8]; 2]> {
    std::iter::once([frame, &[][..]])
}

#[test]
fn frames_arrive_whole_and_in_order_round_and_round() {
    in_namespace("frames_arrive_whole_and_in_order_round_and_round", || {
        let wire = Wire::new();
        let mut ring = TxRing::map(open_ring().unwrap()).unwrap();
        // Only read when all slots were written again: what a receiver holds is its own.
        let calls = send(&mut ring, &wire.to, 0..1_000);
        assert!(calls < 100, "{calls} calls");
        for first in (1_000..3_000).step_by(10) {
            send(&mut ring, &wire.to, first..first + 10);
        }
        assert_eq!(wire.numbers(3_000), (0..3_000).collect::<Vec<_>>());
    });
}

#[test]
fn a_successor_goes_on_where_the_kernel_is() {
    in_namespace("a_successor_goes_on_where_the_kernel_is", || {
        let wire = Wire::new();
        let socket = open_ring().unwrap();
        let mut next = 0;
        for left in [0, 1, 77, 256, 3] {
            let mut ring = TxRing::map(socket.try_clone().unwrap()).unwrap();
            send(&mut ring, &wire.to, next..next + 100);
            next += 100;
            // It dies with some that it had filled and not told of.
            let at = ring.next.unwrap();
            for k in 0..left {
                ring.fill((at + k) % SLOTS, [&frame(9_999), &[]]);
            }
        }
        assert_eq!(wire.numbers(500), (0..500).collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(wire.number(), None, "nothing leaves twice, and nothing that nobody told of");
    });
}

#[test]
fn a_device_that_is_down_refuses_and_up_again_it_takes() {
    in_namespace("a_device_that_is_down_refuses_and_up_again_it_takes", || {
        let wire = Wire::new();
        let mut ring = TxRing::map(open_ring().unwrap()).unwrap();
        let one = frame(0);
        ip("link set near down");
        assert_eq!(ring.send(&wire.to, alone(&one)).unwrap(), 0, "where the kernel is cannot be asked");
        ip("link set near up");
        send(&mut ring, &wire.to, 0..3);
        ip("link set near down");
        let refused = ring.send(&wire.to, alone(&one)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENETDOWN));
        ip("link set near up");
        send(&mut ring, &wire.to, 3..6);
        assert_eq!(wire.numbers(6), [0, 1, 2, 3, 4, 5]);
    });
}

/// Of a frame that the kernel does not like the rest of its run is no victim.
#[test]
fn what_is_refused_is_told_of_and_the_rest_goes_on() {
    in_namespace("what_is_refused_is_told_of_and_the_rest_goes_on", || {
        let wire = Wire::new();
        let mut ring = TxRing::map(open_ring().unwrap()).unwrap();
        let frames = [frame(0), vec![0; 3], frame(1)];
        let parts = |first: usize| frames[first..].iter().map(|frame| [&frame[..], &[]]);
        assert_eq!(ring.send(&wire.to, parts(0)).unwrap(), 1);
        assert_eq!(ring.send(&wire.to, parts(1)).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(ring.send(&wire.to, parts(2)).unwrap(), 1);
        assert_eq!(wire.numbers(2), [0, 1]);
    });
}

#[test]
fn only_a_ring_can_be_mapped() {
    in_namespace("only_a_ring_can_be_mapped", || {
        assert!(TxRing::map(open_packet().unwrap()).is_err());
    });
}
