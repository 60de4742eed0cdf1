//! Live replay on real traffic: real clients, real servers, the built `tcptwin`, hosts in namespaces.
//!
//! Each story holds the target against the online server request by request, and the ledger against the bytes that the
//! load sent. What the pipeline says of itself is never the only evidence.
//!
//! | file | holds |
//! |---|---|
//! | `stage` | hosts, services and instances that most stories start from |
//! | `http` | keep-alive, a connection per request, pipelined, IPv6, wrk |
//! | `bulk` | large requests and answers in super-frames |
//! | `canary` | the probe of the ways to the targets and back; a host that forwards |
//! | `databases` | redis, in order and at once |
//! | `joining` | connections older than the capture |
//! | `hosts` | several online hosts, several intercepts |
//! | `amount` | copies and percent |
//! | `modes` | `any`, loopback, `--tun`, kept clients, the simple engine, a key |
//! | `offline` | packet files instead of live traffic |
//! | `files` | packet files of every shape, and what happens to a replay on the way |
//! | `pipes` | packets out of standard input and named pipes |
//! | `terminal` | what a replay shows on a terminal, and elsewhere |
//! | `tools` | packet files that tcpdump, editcap and mergecap have written |
//! | `repeating` | a file replayed twice, packet by packet on the wire |
//! | `capture` | the same traffic through each capture engine; expressions and ranges |
//! | `devices` | bridge, macvlan and overlay, where the service is and where it is sent by |
//! | `inject` | by link and by raw IP, and what changes on the way |
//! | `faults` | what dies and comes back under load |
//! | `surviving` | the supervisor dies, is upgraded, or gives up |
//! | `poison` | a defect that one kind of answer hits |
//! | `doctor` | the mistakes that people make, each told from the others |
//! | `udp` | datagrams beside connections |
//! | `recording` | what `record` and `run --record` write; mirror ports |
//! | `recorded` | nginx and redis, recorded and replayed against nginx and redis |
//! | `restraint` | the kill switch, budgets, rates, ramp, priority |
//! | `floods` | SYNs by the hundred thousand, strangers at the return channel |
//! | `confined` | what user, capabilities, filters and descriptors the processes have |
//! | `ending` | names, drain, and what is left behind |

use std::process::ExitCode;

mod amount;
mod bulk;
mod canary;
mod capture;
mod confined;
mod databases;
mod devices;
mod doctor;
mod ending;
mod faults;
mod files;
mod floods;
mod hosts;
mod http;
mod inject;
mod joining;
mod modes;
mod offline;
mod pipes;
mod poison;
mod recorded;
mod recording;
mod repeating;
mod restraint;
mod stage;
mod surviving;
mod terminal;
mod tools;
mod udp;

fn main() -> ExitCode {
    let groups = [
        http::STORIES,
        bulk::STORIES,
        canary::STORIES,
        databases::STORIES,
        joining::STORIES,
        hosts::STORIES,
        amount::STORIES,
        modes::STORIES,
        offline::STORIES,
        files::STORIES,
        pipes::STORIES,
        terminal::STORIES,
        tools::STORIES,
        capture::STORIES,
        devices::STORIES,
        inject::STORIES,
        faults::STORIES,
        surviving::STORIES,
        recording::STORIES,
        recorded::STORIES,
        restraint::STORIES,
        repeating::STORIES,
        poison::STORIES,
        confined::STORIES,
        ending::STORIES,
        udp::STORIES,
        doctor::STORIES,
    ];
    lab::story::run_all(&groups.concat(), &[surviving::ALONE, restraint::ALONE, floods::ALONE].concat())
}
