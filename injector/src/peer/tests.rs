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
fn an_outage_is_dialled_at_a_quarter_of_its_length() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = unused.local_addr().unwrap();
    drop(unused);
    let mut rig = Rig::new(at);
    let start_us = rig.now_us;
    for _ in 0..200 {
        while rig.peer.wakes_us().is_none() {
            rig.turn();
        }
        let until_us = rig.peer.wakes_us().unwrap();
        let (pause_us, outage_us) = (until_us - rig.now_us, rig.now_us - start_us);
        let wanted_us = (outage_us / 4).clamp(PAUSE_US.0, PAUSE_US.1);
        assert!(
            outage_us == 0 || pause_us * 4 >= wanted_us * 3 && pause_us * 4 <= wanted_us * 5,
            "{pause_us}"
        );
        rig.now_us = until_us;
        rig.peer.turn(rig.now_us, &mut rig.shared);
    }
    assert_eq!(rig.trouble(), Trouble::ConnectionRefused);
    assert_eq!(rig.value(InterceptCount::State), LinkState::Down.index() as u64);
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
    assert!(rig.peer.wakes_us().is_none(), "three seconds are not over");
    rig.now_us += 1;
    rig.turn();
    assert!(rig.peer.wakes_us().is_some());
    assert_eq!(rig.trouble(), Trouble::TimedOut);
    // The dial that was given up is closed.
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut hello = Vec::new();
    assert!(stream.read_to_end(&mut hello).is_ok());
}
