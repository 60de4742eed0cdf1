//! What does the replay machine cost: a turn, a short connection, a byte of a long upload?
//!
//! ```text
//! cargo run --release -p bench --bin session
//! ```
//!
//! One table, virtual time, and a target that answers at once with everything it was asked for; only the table's calls are
//! timed, the target's few instructions included, in CPU time. Each figure is the best of several rounds: on a busy machine
//! the others measure the neighbours. A turn is one captured request, its record out, one returned answer and whatever
//! acknowledgement that draws. With 50,000 sessions each turn finds its slot cold.

use bench::{ANSWER, Client, REQUEST, cpu_ns};
use flow::record::flag;
use flow::{Endpoint, Inject, Returned};
use session::{
    Clients, Config, Count, Join, Limits, OnGap, Pace, Rtt, Seeds, Sink, Table, TargetConfig, Times,
};

const ROUNDS: usize = 9;
/// Records of one batch, which is one transaction.
const BATCH: usize = 32;

fn main() {
    println!("{:<44} {:>9}", "", "ns each");
    for sessions in [1, 1_000, 50_000] {
        let turns = 400_000 / sessions.min(400_000);
        let mut rig = Rig::new(sessions.max(64) * 2);
        let mut clients: Vec<Client> = (0..sessions).map(Client::new).collect();
        clients.iter_mut().for_each(|client| rig.open(client));
        let best = best_of(|| {
            let start = cpu_ns();
            for _ in 0..turns {
                for client in &mut clients {
                    rig.turn(client);
                }
            }
            (cpu_ns() - start, turns * sessions)
        });
        println!("{:<44} {best:>9.0}", format!("turn, {sessions} sessions"));
        assert_eq!(rig.table.tally().in_flight, 0);
    }
    for sessions in [32, 50_000] {
        let turns = 400_000 / sessions;
        let mut rig = Rig::new(sessions * 2);
        let mut clients: Vec<Client> = (0..sessions).map(Client::new).collect();
        clients.iter_mut().for_each(|client| rig.open(client));
        let best = best_of(|| {
            let start = cpu_ns();
            for _ in 0..turns {
                clients.chunks_mut(BATCH).for_each(|some| rig.turns(some));
            }
            (cpu_ns() - start, turns * sessions)
        });
        println!("{:<44} {best:>9.0}", format!("turn, {sessions} sessions, {BATCH} a batch"));
    }
    let mut rig = Rig::new(4_096);
    let mut serial = 0;
    let best = best_of(|| {
        let start = cpu_ns();
        for _ in 0..20_000u32 {
            serial += 1;
            rig.short(serial);
        }
        (cpu_ns() - start, 20_000)
    });
    println!("{:<44} {best:>9.0}", "short connection (SYN, request, FIN)");
    let mut rig = Rig::new(64);
    let mut client = Client::new(1);
    rig.open(&mut client);
    let payload = vec![b'x'; 60_000];
    let best = best_of(|| {
        let start = cpu_ns();
        for _ in 0..2_000 {
            rig.captures(&mut client, flag::ACK | flag::PSH, &payload);
        }
        (cpu_ns() - start, 2_000)
    });
    println!("{:<44} {best:>9.0}", "super-frame of 60,000 bytes");
    println!("delivered {} bytes", rig.table.tally().count(Count::Delivered));
    for sessions in [5_000, 50_000, 1_000_000] {
        let mut rig = Rig::new(sessions);
        (0..sessions).map(Client::new).for_each(|mut client| rig.open(&mut client));
        let image = rig.table.image();
        let config = rig.table.config().clone();
        let best = best_of(|| {
            let place = place(&config);
            place[..image.len()].copy_from_slice(&image);
            let start = cpu_ns();
            let table = Table::new(place, config.clone());
            let spent = cpu_ns() - start;
            assert_eq!(table.tally().open, u64::from(sessions));
            (spent, 1)
        });
        println!("{:<44} {best:>9.0}", format!("a dead worker's {sessions} sessions taken over"));
    }
}

/// An arena for such a table.
fn place(config: &Config) -> &'static mut [u8] {
    let bytes = Table::arena_bytes(config.limits.sessions, config.limits.chunks) as usize;
    let words: &'static mut [u64] = vec![0u64; bytes.div_ceil(8)].leak();
    zerocopy::IntoBytes::as_mut_bytes(words)
}

fn best_of(mut round: impl FnMut() -> (i64, u32)) -> f64 {
    (0..ROUNDS)
        .map(|_| {
            let (ns, n) = round();
            ns as f64 / f64::from(n)
        })
        .fold(f64::INFINITY, f64::min)
}

struct Rig {
    table: Table,
    now_us: u64,
    target: Target,
}

impl Rig {
    fn new(sessions: u32) -> Self {
        let target = endpoint("10.0.3.2:8080");
        let config = Config {
            shards: 1,
            shard: 0,
            seeds: Seeds { shard: 1, sample: 2, endpoint: 3, isn: 4, table: 5 },
            clients: Clients::Pool { v4: Some("198.18.0.0/15".parse().expect("a range")), v6: None },
            targets: vec![TargetConfig { endpoint: target, mtu: 1500 }],
            mappings: vec![0],
            wait: true,
            rtt: Rtt::None,
            join: Join::Boundary,
            on_gap: OnGap::Skip,
            pace: Pace::default(),
            limits: Limits { sessions, chunks: 65_536, held_per_session: 4 << 20 },
            times: Times::default(),
            claim: false,
        };
        let table = Table::new(place(&config), config);
        Self { table, now_us: 1_000_000_000, target: Target { address: target, answers: Vec::new() } }
    }

    fn captures(&mut self, client: &mut Client, flags: u16, payload: &[u8]) {
        self.takes(client, flags, payload);
        self.settle();
    }

    fn takes(&mut self, client: &mut Client, flags: u16, payload: &[u8]) {
        self.now_us += 3;
        let time_ns = self.now_us * 1_000;
        let segment = client.segment(self.target.address, time_ns, flags, payload.len() as u32);
        if !self.table.admits(self.now_us, &segment, payload.len(), 1_000_000, 1_000) {
            self.table.settle();
        }
        self.table.captured(self.now_us, &segment, payload, 1_000_000, 1_000);
    }

    /// Until neither side has anything to say.
    fn settle(&mut self) {
        loop {
            while self.table.pump(self.now_us, &mut self.target) {}
            self.table.settle();
            if self.target.answers.is_empty() {
                break;
            }
            self.now_us += 20;
            for answer in std::mem::take(&mut self.target.answers) {
                self.table.returned(self.now_us, &answer);
            }
        }
        if self.table.next_deadline_us().is_some_and(|at| at <= self.now_us) {
            self.table.tick(self.now_us);
        }
    }

    fn open(&mut self, client: &mut Client) {
        self.captures(client, flag::SYN, &[]);
        client.has_read(1);
        self.captures(client, flag::ACK, &[]);
    }

    fn turn(&mut self, client: &mut Client) {
        self.captures(client, flag::ACK | flag::PSH, &[b'r'; REQUEST as usize]);
        client.has_read(ANSWER);
    }

    /// A turn of each, in one batch of requests and one of answers.
    fn turns(&mut self, clients: &mut [Client]) {
        for client in &mut *clients {
            self.takes(client, flag::ACK | flag::PSH, &[b'r'; REQUEST as usize]);
            client.has_read(ANSWER);
        }
        self.settle();
    }

    fn short(&mut self, n: u32) {
        let mut client = Client::new(n);
        self.open(&mut client);
        self.turn(&mut client);
        self.captures(&mut client, flag::ACK | flag::FIN, &[]);
    }
}

/// Answers every record at once.
struct Target {
    address: Endpoint,
    answers: Vec<Returned>,
}

impl Sink for Target {
    fn emit<'p>(&mut self, head: &Inject, parts: impl Iterator<Item = &'p [u8]>) {
        self.answers.extend(bench::answer(head, self.address, parts.map(<[u8]>::len).sum()));
    }
}

fn endpoint(text: &str) -> Endpoint {
    text.parse::<std::net::SocketAddr>().expect("an address and a port").into()
}
