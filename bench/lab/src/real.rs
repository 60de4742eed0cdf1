//! Real servers and clients, as installed on this machine, inside a namespace.
//!
//! | file | holds |
//! |---|---|
//! | `dnsmasq` | a name server with a log of its questions, and a client of ours |
//! | `nginx` | a web server with an access log that can be compared request by request |
//! | `redis` | a redis server, and a client of ours that writes lists which prove order |
//! | `tool` | `curl`, `wrk`, `redis-benchmark` and whatever runs and ends |
//!
//! A program that is not installed makes the story `Skipped`, with the command that installs it.

pub mod dnsmasq;
pub mod nginx;
pub mod redis;
pub mod tool;

pub use dnsmasq::Dnsmasq;
pub use nginx::Nginx;
pub use redis::{Redis, RedisLoad};
pub use tool::{Output, find, run};
