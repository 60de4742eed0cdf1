//! One peer under a clock of the test's own: what happens with time, without waiting for it.

use std::net::TcpListener;
use std::time::Duration;

use nix::sys::epoll::{EpollCreateFlags, EpollTimeout};
use shm::Role;

use super::*;
use crate::greeting;
use crate::testing::{plan, region};

struct Rig {
    peer: Peer,
    shared: Shared,
    now_us: u64,
}

impl Rig {
    fn new(at: SocketAddr) -> Self {
        let plan = plan(&["10.0.0.1:80"]);
        let region = region(&plan);
        let shared = Shared {
            ear: None,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap(),
            sorter: Sorter::new(region, plan.seeds.shard),
            counters: region.counters(Role::Receiver),
            live: None,
            stalled: false,
        };
        let hello = greeting::hello(&plan, 1, None);
        let peer = Peer::new(0, at, greeting::policy(&plan, at), hello, &shared, SECOND_US);
        Self { peer, shared, now_us: SECOND_US }
    }

    fn turn(&mut self) {
        let mut events = [EpollEvent::empty(); 4];
        let ready = self.shared.epoll.wait(&mut events, EpollTimeout::from(1u16)).unwrap();
        for event in &events[..ready] {
            self.peer.ready(event.events());
        }
        self.peer.turn(self.now_us, &mut self.shared);
    }

    fn value(&self, count: InterceptCount) -> u64 {
        self.shared.counters.get(intercept_index(0, count))
    }

    fn trouble(&self) -> Trouble {
        Trouble::ALL[self.value(InterceptCount::LastTrouble) as usize]
    }
}

#[test]
fn an_outage_is_dialled_at_a_quarter_of_its_length_and_soon_however_long_it_is() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = unused.local_addr().unwrap();
    drop(unused);
    let mut rig = Rig::new(at);
    let start_us = rig.now_us;
    for _ in 0..200 {
        let until_us = loop {
            match rig.peer.state {
                State::Waiting { until_us } => break until_us,
                _ => rig.turn(),
            }
        };
        let (pause_us, outage_us) = (until_us - rig.now_us, rig.now_us - start_us);
        let wanted_us = (outage_us / 4).clamp(PAUSE_US.0, AWAY_PAUSE_US);
        assert!(
            outage_us == 0 || pause_us * 4 >= wanted_us * 3 && pause_us * 4 <= wanted_us * 5,
            "{pause_us}"
        );
        rig.now_us = until_us;
        rig.peer.turn(rig.now_us, &mut rig.shared);
    }
    assert!(rig.now_us - start_us > 40 * SECOND_US, "an outage of {} us", rig.now_us - start_us);
    assert_eq!(rig.trouble(), Trouble::ConnectionRefused);
    assert_eq!(rig.value(InterceptCount::State), LinkState::Down.index() as u64);
}

/// A path that swallows everything: patience with a dial and the pause behind it make less than a second.
#[test]
fn a_dial_that_nobody_answers_is_given_up_soon() {
    // Its queue holds one connection; the next SYN is left without an answer.
    let full = TcpListener::bind("127.0.0.1:0").unwrap();
    nix::sys::socket::listen(&full, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let at = full.local_addr().unwrap();
    let _first = TcpStream::connect(at).unwrap();
    let mut rig = Rig::new(at);
    rig.turn();
    let State::Connecting { since_us, .. } = rig.peer.state else { panic!("it dials") };
    assert_eq!(rig.peer.wakes_us(), Some(since_us + CONNECT_US));
    rig.now_us = since_us + CONNECT_US - 1;
    rig.turn();
    assert!(matches!(rig.peer.state, State::Connecting { .. }));
    rig.now_us += 1;
    rig.turn();
    assert_eq!(rig.trouble(), Trouble::TimedOut);
    let until_us = rig.peer.wakes_us().unwrap();
    assert!(until_us - since_us < SECOND_US, "{} us", until_us - since_us);
    const { assert!(CONNECT_US + AWAY_PAUSE_US * 5 / 4 < SECOND_US) };
}

#[test]
fn who_accepts_and_says_nothing_is_given_three_seconds() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut rig = Rig::new(listener.local_addr().unwrap());
    while !matches!(rig.peer.state, State::Up(_)) {
        rig.turn();
    }
    rig.now_us += SILENCE_US;
    rig.turn();
    assert!(matches!(rig.peer.state, State::Up(_)), "three seconds are not over");
    rig.now_us += 1;
    rig.turn();
    assert!(matches!(rig.peer.state, State::Waiting { .. }));
    assert_eq!(rig.trouble(), Trouble::TimedOut);
    // The dial that was given up is closed.
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut hello = Vec::new();
    assert!(stream.read_to_end(&mut hello).is_ok());
}
