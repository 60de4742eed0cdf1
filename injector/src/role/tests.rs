//! The whole role in a namespace: records in two rings, packets on a wire, and its end.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Instant;

use flow::record::flag;
use flow::{Inject, TcpFields};
use shm::Producer;

use super::*;
use crate::count::{Count, LinkState, ReturnCount};
use crate::testing::{Answer, in_namespace, intercept, ip, plan, record, region};

struct Rig {
    region: &'static Region,
    shards: Vec<Producer>,
    role: JoinHandle<Result<(), RunError>>,
}

fn start(change: impl FnOnce(&mut Plan)) -> Rig {
    ip("link set lo up");
    ip("addr add 10.9.9.1/32 dev lo");
    let mut plan = plan(&["10.9.9.1:80"]);
    change(&mut plan);
    let region = region(&plan);
    let sockets = crate::open(&plan).unwrap();
    let shards = (0..plan.shards).map(|k| region.producer(Link::Inject(k))).collect();
    let role = std::thread::spawn(move || run(region, &plan, sockets, || Ok(())));
    Rig { region, shards, role }
}

impl Rig {
    fn inject(&mut self, shard: usize, flags: u16, payload: &[u8]) {
        let client: SocketAddr = ([198, 18, 0, 1], 1_024).into();
        let tcp = TcpFields { flags, ..TcpFields::default() };
        let head = Inject { tcp, client: client.into(), mss: 1_448, ..Inject::default() };
        assert!(self.shards[shard].push(&record(head, payload)));
        self.shards[shard].publish();
        self.region.doorbell(Role::Injector).ring();
    }

    fn sent(&self, count: Count) -> u64 {
        self.region.read_counter(Role::Injector, count.index())
    }

    fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < Duration::from_secs(30), "{what} never came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn the_role_sends_until_all_shards_are_done_and_their_rings_empty() {
    in_namespace("the_role_sends_until_all_shards_are_done_and_their_rings_empty", || {
        let at = intercept(Answer::Welcome { epoch: 1, next: 1 });
        let mut rig = start(|plan| plan.intercepts = vec![at]);
        rig.inject(0, flag::SYN, &[]);
        rig.until("the SYN", |rig| rig.sent(Count::Syn) == 1);
        rig.until("the intercept", |rig| {
            let state = crate::intercept_index(0, crate::InterceptCount::State);
            rig.region.read_counter(Role::Receiver, state) == LinkState::Up.index() as u64
        });
        assert_eq!(rig.region.read_counter(Role::Receiver, ReturnCount::Connected.index()), 1);
        assert_eq!(rig.region.heartbeat(Role::Injector).state(), RoleState::Running);
        rig.region.control().set_draining(true);
        rig.region.heartbeat(Role::Shard(0)).set_state(RoleState::Done);
        rig.inject(1, flag::ACK | flag::PSH, &[7; 4_000]);
        rig.until("the data", |rig| rig.sent(Count::PayloadBytes) == 4_000);
        assert!(!rig.role.is_finished(), "shard 1 still works");
        // Its last words, and at once its end.
        rig.inject(1, flag::RST, &[]);
        rig.region.heartbeat(Role::Shard(1)).set_state(RoleState::Done);
        rig.region.doorbell(Role::Injector).ring();
        rig.role.join().unwrap().unwrap();
        let read = |count: Count| rig.region.read_counter(Role::Injector, count.index());
        assert_eq!((read(Count::Rst), read(Count::Segments)), (1, 5));
        for role in [Role::Injector, Role::Receiver] {
            assert_eq!(rig.region.heartbeat(role).state(), RoleState::Done);
        }
    });
}

#[test]
fn halt_ends_the_role_though_shards_still_work() {
    in_namespace("halt_ends_the_role_though_shards_still_work", || {
        let mut rig = start(|_| {});
        rig.inject(0, flag::SYN, &[]);
        rig.until("the SYN", |rig| rig.sent(Count::Syn) == 1);
        rig.region.control().set_halt(true);
        rig.region.doorbell(Role::Injector).ring();
        rig.role.join().unwrap().unwrap();
        // What comes now is nobody's.
        assert!(rig.shards[0].push(&record(Inject::default(), &[])) && rig.shards[0].publish());
        assert!(rig.region.link_depth(Link::Inject(0)) > 0);
    });
}
