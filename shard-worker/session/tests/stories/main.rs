//! Packet stories: a scripted client on the online side, a small hand-written TCP server as the target, virtual time, and
//! the table's invariants after every step.

#[allow(unreachable_pub)]
mod kit;

mod answers;
mod closing;
mod copies;
mod endings;
mod foresight;
mod handshake;
mod hearing;
mod holes;
mod hostile;
mod icmp;
mod limits;
mod loss;
mod midstream;
mod policy;
mod probing;
mod protocols;
mod recovery;
mod repeating;
mod restart;
mod shedding;
mod simulation;
mod trouble;
mod turns;
mod validate;
mod windows;
