//! Networks in namespaces with servers and clients, for tests, demo and benchmarks.
//!
//! | file | holds |
//! |---|---|
//! | `user` | becoming root of a user namespace, so that nothing here needs privilege |
//! | `namespace` | a network namespace that lives as long as a thread of ours |
//! | `netlink` | links, addresses and routes |
//! | `network` | the hosts of a replay on one bridge |
//! | `impair` | loss, resets, refused sends and a leaky mirror, by nftables |
//! | `wire` | a cable that delays, reorders, doubles, loses and alters frames |
//! | `outside` | packets that are where none may be, seen on the wire |
//! | `departures` | when replayed packets leave a host, by the kernel's time stamps |
//! | `replayed` | frames that a replay sent, and sent twice |
//! | `flood` | SYNs that nobody means, as many as the machine can make |
//! | `dump` | packet files made by hand |
//! | `tun` | a TUN device as a host's only one |
//! | `witness` | what a server answered, id by id, and how two servers compare |
//! | `http` | an HTTP service in one thread |
//! | `load` | a load of requests on a schedule |
//! | `real` | real nginx, redis, curl, wrk, redis-benchmark |
//! | `twin` | the built `tcptwin` as processes: start, stats, kill a role, stop, ledger |
//! | `cores` | a thread kept on one core |
//! | `spin` | a process led into an endless loop |
//! | `manager` | a service manager that keeps descriptors over a restart |
//! | `story` | a test runner: one story at a time, bounded in time, none skipped silently |
//! | `process`, `wait`, `scratch` | what /proc says, waiting with a limit, directories of one's own |
//! | `histogram`, `digest`, `clock`, `head` | latencies, body digests, monotonic time, HTTP heads |

pub mod clock;
pub mod cores;
pub mod departures;
pub mod digest;
pub mod dump;
pub mod flood;
mod head;
pub mod histogram;
pub mod http;
pub mod impair;
pub mod load;
pub mod manager;
pub mod namespace;
pub mod netlink;
pub mod network;
pub mod outside;
pub mod process;
pub mod real;
pub mod replayed;
pub mod scratch;
pub mod spin;
pub mod story;
mod sys;
pub mod tun;
pub mod twin;
pub mod user;
pub mod wait;
pub mod wire;
pub mod witness;

pub use departures::Departures;
pub use flood::{Flood, Hose};
pub use histogram::Histogram;
pub use http::{HttpOptions, HttpService};
pub use load::{Load, LoadReport, Mode};
pub use manager::Manager;
pub use namespace::Namespace;
pub use network::{Answers, Host, Network};
pub use outside::Outside;
pub use replayed::{Frames, Replayed};
pub use tun::Tun;
pub use twin::{Instance, Stats, Twin};
pub use wire::{Course, Wire};
pub use witness::{Fidelity, Witness};

/// Raises this process's limit on open files to what it may have, so that thousands of connections fit.
pub(crate) fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const PLENTY: u64 = 1 << 18;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard.max(PLENTY)
        && setrlimit(Resource::RLIMIT_NOFILE, hard.max(PLENTY), hard.max(PLENTY)).is_err()
    {
        // Only root may go above the hard limit. Refused or not, the connections that do not fit are counted as failures
        // later.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
