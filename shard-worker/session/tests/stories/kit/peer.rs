//! The target: how it is set up, and a connection as it sees it.

use flow::record::SackBlock;
use flow::{Endpoint, Seq};

/// How the target's application answers.
#[derive(Clone, Debug)]
pub enum App {
    /// Each line gets an answer; its length stands in the line (`... 500\n`), in so many writes. `then_close` closes after.
    Lines { writes: u32, delay_us: u64, close_after: u32 },
    /// Reads and says nothing.
    Silent,
    /// Answers so many bytes once the client has closed its side.
    AfterFin(u32),
    /// Says so many bytes first, then lines.
    Greets(u32),
}

pub const LINES: App = App::Lines { writes: 1, delay_us: 100, close_after: 0 };

#[derive(Clone, Debug)]
pub struct TargetOptions {
    pub app: App,
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub timestamps: bool,
    pub sack: bool,
    /// Most bytes that the application leaves unread; the rest of this is the window.
    pub buffer: u32,
    /// Reads nothing while set.
    pub stalled: bool,
    pub refuse: bool,
    pub dead: bool,
    /// Closes as soon as the client does.
    pub close_with_client: bool,
    /// After its close, acknowledges what still comes and throws it away, instead of a reset.
    pub discards_after_close: bool,
    /// Holds a write back while an earlier one is unacknowledged (Nagle's algorithm).
    pub nagle: bool,
    /// Initial sequence number of its next connection.
    pub isn: u32,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self {
            app: LINES,
            mss: Some(1460),
            window_scale: Some(7),
            timestamps: true,
            sack: true,
            buffer: 1 << 20,
            stalled: false,
            refuse: false,
            dead: false,
            close_with_client: true,
            discards_after_close: false,
            nagle: false,
            isn: 700_000,
        }
    }
}

/// A connection as the target sees it.
#[derive(Clone, Debug)]
pub struct Peer {
    pub client: Endpoint,
    pub established: bool,
    pub reset: bool,
    pub irs: Seq,
    pub rcv_nxt: Seq,
    pub iss: Seq,
    pub snd_una: Seq,
    pub snd_nxt: Seq,
    pub(super) out_of_order: Vec<(Seq, Vec<u8>)>,
    /// Everything the application read.
    pub read: Vec<u8>,
    pub(super) unread: Vec<u8>,
    pub(super) parsed: usize,
    pub lines: u32,
    pub client_fin: bool,
    pub(super) fin_at: Option<Seq>,
    pub fin_sent: bool,
    pub(super) ts_recent: u32,
    pub(super) timestamps: bool,
    pub(super) sack: bool,
    pub(super) answers: Vec<(u64, u32, bool)>,
    pub(super) retry_at: u64,
    pub(super) tries: u32,
    pub largest: usize,
    pub(super) sacks: Vec<SackBlock>,
}

impl Peer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }

    pub fn is_closed(&self) -> bool {
        self.client_fin && self.fin_sent && self.snd_una == self.snd_nxt
    }
}
