//! The return channel between `run` (which dials) and intercept (which listens): the headers of the target's answers
//! on their way back. Pure: bytes in, bytes out, no socket and no clock. The only thing taken from outside is the
//! operating system's randomness, once per encrypted handshake.
//!
//! | file | holds |
//! |---|---|
//! | `link` | [`Link`]: one end of one connection, hiding framing and encryption |
//! | `incoming`, `outgoing` | its two halves, which may live in two threads |
//! | `policy` | whether a connection is encrypted or plain, and who allows what |
//! | `crypt` | the first bytes both ends send, the Noise handshake, sealed frames |
//! | `hello` | hello, welcome, refused: who dials, what it owns, where it goes on |
//! | `stream` | the messages that follow: batches of records, gaps, claims, pings |
//! | `record` | `flow::Returned` as few bytes |
//! | `error` | what goes wrong on a connection, as sentences and as counters |
//! | `wire` | little-endian reading and writing with every length checked |
//!
//! ```text
//! dialer                                   listener
//! preamble (version, policy) [+ noise 1] ->
//!                                       <- preamble (version, policy, verdict) [+ noise 2]
//! Hello (instance, ranges, last position) ->
//!                                       <- Welcome (epoch, next position) | Refused (sentence, free range)
//! Claims, Ping ->                       <- Batch, Gap, Pong
//! ```

mod crypt;
mod error;
mod hello;
mod incoming;
mod link;
mod outgoing;
mod policy;
mod record;
mod stream;
mod wire;

pub use crypt::{PREAMBLE, VERSION, busy};
pub use error::{LinkError, Reason};
pub use hello::{Hello, Mode, Position, Refused, RefusedCode, Welcome};
pub use hello::{MAX_NAME, MAX_RANGES, MAX_SENTENCE, MAX_SOFTWARE, MAX_TARGETS};
pub use incoming::Incoming;
pub use link::Link;
pub use outgoing::Outgoing;
pub use policy::{NoPolicy, Policy, Stated};
pub use record::{BadRecord, MAX_RECORD, MIN_RECORD, decode, encode};
pub use stream::{Batch, Claims, Message, Records};
pub use stream::{MAX_BODY, MAX_FRAME};
