//! One replay machine in virtual time, with a target that answers at once with everything it was asked for.

use flow::record::flag;
use flow::{Captured, Endpoint, Inject, Returned};
use session::{
    Clients, Config, Diary, Join, Limits, OnGap, Pace, Rtt, Seeds, Sink, Table, TargetConfig, Times,
};

use crate::client::{ANSWER, Client, REQUEST, answer};

/// A table, its clock and its target.
pub struct Machine {
    /// The table.
    pub table: Table,
    now_us: u64,
    target: Target,
    /// Transactions end only when asked for.
    lasting: bool,
}

impl Machine {
    /// For at most so many sessions.
    pub fn new(sessions: u32) -> Self {
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
            file_us: None,
            repeatable: false,
        };
        let mut table = Table::new(place(&config), config);
        table.keep_diary(Diary::over(zeroed(Diary::bytes(sessions)), sessions));
        Self::on(table, 1_000_000_000)
    }

    /// On a table that is there, whose first mapping leads to the one target.
    pub fn on(table: Table, now_us: u64) -> Self {
        let address = table.config().targets[0].endpoint;
        let target = Target { address, answers: Vec::new(), records: 0 };
        Self { table, now_us, target, lasting: false }
    }

    /// One turn of a worker's loop that has nothing to do but learn what a predecessor left; true when there is more.
    pub fn walks(&mut self) -> bool {
        let more = self.table.walk(session::SLICE);
        self.settle();
        more
    }

    /// One captured segment, and all that follows from it.
    pub fn captures(&mut self, client: &mut Client, flags: u16, payload: &[u8]) {
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
            if !self.lasting {
                self.table.settle();
            }
            if !self.target.answers.is_empty() {
                self.now_us += 20;
                let answers = std::mem::take(&mut self.target.answers);
                self.table.foresee(std::iter::empty(), answers.iter().copied());
                for answer in answers {
                    self.table.returned(self.now_us, &answer);
                }
            } else if self.table.is_due(self.now_us) {
                self.table.tick(self.now_us);
            } else {
                break;
            }
        }
    }

    /// The handshake.
    pub fn open(&mut self, client: &mut Client) {
        self.captures(client, flag::SYN, &[]);
        client.has_read(1);
        self.captures(client, flag::ACK, &[]);
    }

    /// A request and its answer.
    pub fn turn(&mut self, client: &mut Client) {
        self.captures(client, flag::ACK | flag::PSH, &[b'r'; REQUEST as usize]);
        client.has_read(ANSWER);
    }

    /// Time goes by, and what it brings about follows.
    pub fn passes(&mut self, us: u64) {
        self.now_us += us;
        self.settle();
    }

    /// Records emitted so far.
    pub fn records(&self) -> u64 {
        self.target.records
    }

    /// A turn of each, in one batch of requests and one of answers.
    pub fn turns(&mut self, clients: &mut [Client]) {
        let server = self.target.address;
        let coming =
            clients.iter().map(|client| Captured { client: client.at, server, ..Captured::default() });
        self.table.foresee(coming, std::iter::empty());
        for client in &mut *clients {
            self.takes(client, flag::ACK | flag::PSH, &[b'r'; REQUEST as usize]);
            client.has_read(ANSWER);
        }
        self.settle();
    }

    /// Several turns of each in one transaction.
    pub fn turns_together(&mut self, clients: &mut [Client], turns: u32) {
        self.lasting = true;
        (0..turns).for_each(|_| self.turns(clients));
        self.lasting = false;
        self.table.settle();
    }

    /// A connection of one turn.
    pub fn short(&mut self, n: u32) {
        let mut client = Client::new(n);
        self.open(&mut client);
        self.turn(&mut client);
        self.captures(&mut client, flag::ACK | flag::FIN, &[]);
    }
}

/// An arena for such a table.
pub fn place(config: &Config) -> &'static mut [u8] {
    zeroed(Table::arena_bytes(config.limits.sessions, config.limits.chunks))
}

/// Memory that begins where a page does, as a region's does.
fn zeroed(bytes: u64) -> &'static mut [u8] {
    const PAGE: usize = 4_096;
    let memory = vec![0u8; bytes as usize + PAGE].leak();
    let begin = memory.as_ptr().align_offset(PAGE);
    &mut memory[begin..]
}

/// Answers every record at once.
struct Target {
    address: Endpoint,
    answers: Vec<Returned>,
    records: u64,
}

impl Sink for Target {
    fn emit<'p>(&mut self, head: &Inject, parts: impl Iterator<Item = &'p [u8]>) {
        self.records += 1;
        self.answers.extend(answer(head, self.address, parts.map(<[u8]>::len).sum()));
    }
}

fn endpoint(text: &str) -> Endpoint {
    text.parse::<std::net::SocketAddr>().expect("an address and a port").into()
}
