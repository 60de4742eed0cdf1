//! A capturer in a namespace, and what the shards would see of it.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

use capturer::sys::PacketSocket;
use capturer::{CaptureSocket, Count, RoleError};
use flow::record::flag;
use flow::{Captured, Endpoint};
use lab::{Namespace, netlink};
use shm::{Consumer, Link, Region, Role};
use topology::Plan;

use super::{PATIENCE, address};
use crate::testing;

/// A namespace with loopback up; `None`, and a line that says so, when that is not permitted.
pub(crate) fn namespace() -> Option<Arc<Namespace>> {
    match Namespace::new("capturer test") {
        Ok(ns) => {
            ns.enter(|| netlink::set_up("lo", true).unwrap());
            Some(Arc::new(ns))
        }
        Err(error) => {
            eprintln!(
                "SKIPPED: no network namespace ({error}). Run as root to test the capturer on a real kernel"
            );
            None
        }
    }
}

/// One connection: `up` from client to server, then the client's FIN, then `down`. Returns the client's endpoint. Both ends are on
/// one core, so segments arrive in the order in which they were sent.
pub(crate) fn talk(ns: &Namespace, server: &str, up: &[u8], down: &[u8]) -> Endpoint {
    let (server, up, down) = (address(server), up.to_vec(), down.to_vec());
    // A thread of its own, since the namespace's other threads stay where they like.
    let talking = ns.thread("talk", move || {
        lab::cores::stay_on_one_core().unwrap();
        let listener = TcpListener::bind(server).unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = vec![];
            stream.read_to_end(&mut got).unwrap();
            stream.write_all(&down).unwrap();
            got
        });
        let mut stream = TcpStream::connect(server).unwrap();
        let client = stream.local_addr().unwrap();
        stream.write_all(&up).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.read_to_end(&mut vec![]).unwrap();
        assert!(serving.join().unwrap() == up, "the kernel carries what we send");
        client.into()
    });
    talking.unwrap().join().unwrap()
}

/// What was captured of one client.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// The bytes in their places; a hole ends them.
    pub(crate) bytes: Vec<u8>,
    /// Payload bytes that were captured more than once.
    pub(crate) repeated: usize,
    /// Segments that came after one with a higher number.
    pub(crate) inversions: usize,
    pub(crate) syns: usize,
    pub(crate) fins: usize,
    /// The longest payload of one frame.
    pub(crate) longest: usize,
}

pub(crate) struct Rig {
    pub(crate) ns: Arc<Namespace>,
    pub(crate) region: &'static Region,
    /// The region as successors see it.
    views: Vec<&'static Region>,
    pub(crate) seen: Vec<(Captured, Vec<u8>)>,
    plan: Plan,
    shards: Vec<Consumer>,
    /// As the supervisor keeps them.
    sockets: Vec<PacketSocket>,
    role: Option<JoinHandle<Result<(), RoleError>>>,
}

impl Rig {
    /// Opens the sockets; nobody reads them yet.
    pub(crate) fn open(ns: Arc<Namespace>, plan: &Plan) -> Self {
        let mut views = testing::regions(plan, 8);
        let region = views.remove(0);
        let opening = plan.clone();
        let sockets = ns.enter(move || capturer::open(&opening).unwrap());
        let shards = (0..plan.shards).map(|shard| region.consumer(Link::Capture(shard))).collect();
        let sockets = sockets.into_iter().map(PacketSocket::from).collect();
        Self { ns, region, views, seen: vec![], plan: plan.clone(), shards, sockets, role: None }
    }

    pub(crate) fn start(ns: Arc<Namespace>, plan: &Plan) -> Self {
        Self::start_in(ns, plan)
    }

    pub(crate) fn start_in(ns: Arc<Namespace>, plan: &Plan) -> Self {
        let mut rig = Self::open(ns, plan);
        rig.run();
        rig
    }

    /// Starts the role.
    pub(crate) fn run(&mut self) {
        let sockets: Vec<CaptureSocket> =
            self.sockets.iter().map(|socket| CaptureSocket::from(socket.duplicate().unwrap())).collect();
        let (region, plan) = (self.region, self.plan.clone());
        self.role = Some(
            self.ns.thread("capturer", move || capturer::run(region, &plan, sockets, || Ok(()))).unwrap(),
        );
    }

    /// Ends the role at once, as a crash would, but for the locks of this process.
    pub(crate) fn halt(&mut self) {
        self.region.control().set_halt(true);
        self.wait_for_end();
        self.region.control().set_halt(false);
        self.pump();
    }

    /// Starts another role on the same rings and region.
    pub(crate) fn succeed(&mut self) {
        self.region = self.views.remove(0);
        self.run();
    }

    /// The sockets went with their supervisor; the next one opens new ones for the region that it adopts.
    pub(crate) fn renew(&mut self) {
        let opening = self.plan.clone();
        let sockets = self.ns.enter(move || capturer::open(&opening).unwrap());
        self.sockets = sockets.into_iter().map(PacketSocket::from).collect();
        capturer::begin_anew(self.views.remove(0), &self.plan);
        self.succeed();
    }

    /// Whether all sockets see frames, or none.
    pub(crate) fn all_see(&self, frames: bool) -> bool {
        self.sockets.iter().all(|socket| socket.is_open().unwrap() == frames)
    }

    pub(crate) fn wait_for_end(&mut self) {
        if let Some(role) = self.role.take() {
            role.join().unwrap().unwrap();
        }
    }

    pub(crate) fn stop(&mut self) {
        self.region.control().set_draining(true);
        self.wait_for_end();
        self.pump();
    }

    pub(crate) fn stop_and_read(&mut self, client: Endpoint) -> Stream {
        self.stop();
        self.stream(client)
    }

    /// Takes what the rings hold.
    pub(crate) fn pump(&mut self) {
        for shard in &mut self.shards {
            while let Some(bytes) = shard.next() {
                let (head, payload) = Captured::split(bytes).expect("records agree with themselves");
                self.seen.push((head, payload.to_vec()));
            }
            shard.release();
        }
    }

    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let asked = lab::wait::until(what, PATIENCE, || {
            self.pump();
            done(self)
        });
        asked.unwrap();
    }

    pub(crate) fn count(&self, what: Count) -> u64 {
        self.region.read_counter(Role::Capturer, what.index())
    }

    pub(crate) fn stream(&self, client: Endpoint) -> Stream {
        let mut stream = Stream::default();
        let Some(isn) = self
            .seen
            .iter()
            .find(|(h, _)| h.client == client && h.tcp.has(flag::SYN))
            .map(|(h, _)| h.tcp.seq)
        else {
            return stream;
        };
        let mut there: Vec<Option<u8>> = vec![];
        let mut highest = isn;
        for (head, payload) in self.seen.iter().filter(|(head, _)| head.client == client) {
            stream.syns += usize::from(head.tcp.has(flag::SYN));
            stream.fins += usize::from(head.tcp.has(flag::FIN));
            stream.longest = stream.longest.max(payload.len());
            stream.inversions += usize::from(head.tcp.seq.before(highest));
            highest = highest.max(head.tcp.seq);
            let at = head.tcp.seq.since(isn + 1).max(0) as usize;
            there.resize(there.len().max(at + payload.len()), None);
            for (place, &byte) in there[at..].iter_mut().zip(payload) {
                stream.repeated += usize::from(place.is_some());
                assert!(place.is_none_or(|before| before == byte), "two captures of one byte agree");
                *place = Some(byte);
            }
        }
        stream.bytes = there.into_iter().map_while(|byte| byte).collect();
        stream
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.region.control().set_halt(true);
        if let Some(role) = self.role.take() {
            let _ = role.join();
        }
    }
}
