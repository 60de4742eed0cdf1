//! How each option looks to a person: its letter, what it takes, and its help in each command that takes it.

use crate::options::Key;

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing: it is set or not.
    Flag,
    /// One value; the placeholder in the help.
    One(&'static str),
    /// Values, repeated or comma separated; the placeholder in the help.
    Many(&'static str),
    /// Names of files, as they are, without an option in front; the placeholder in the help.
    Files(&'static str),
}

/// The commands that take options of this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `tcptwin run`.
    Run,
    /// `tcptwin replay`.
    Replay,
    /// `tcptwin record`.
    Record,
    /// `tcptwin intercept`.
    Intercept,
}

impl Command {
    /// As typed.
    pub const fn name(self) -> &'static str {
        match self {
            Command::Run => "run",
            Command::Replay => "replay",
            Command::Record => "record",
            Command::Intercept => "intercept",
        }
    }
}

/// How an option looks to a person.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// The letter, where it has one.
    pub short: Option<char>,
    /// What it takes.
    pub takes: Takes,
    /// Heading in the help.
    pub group: &'static str,
    /// Help of `run`; none where `run` does not take it.
    pub run: Option<&'static str>,
    /// Help of `replay`; likewise.
    pub replay: Option<&'static str>,
    /// Help of `record`; likewise.
    pub record: Option<&'static str>,
    /// Help of `intercept`; likewise.
    pub intercept: Option<&'static str>,
}

impl Look {
    /// The help text in this command; none where the command does not take the option.
    pub const fn help(&self, command: Command) -> Option<&'static str> {
        match command {
            Command::Run => self.run,
            Command::Replay => self.replay,
            Command::Record => self.record,
            Command::Intercept => self.intercept,
        }
    }
}

const TRAFFIC: &str = "Traffic";
const REPLAY: &str = "Replay";
const FILES: &str = "Files";
const RECORDING: &str = "Recording";
const RESOURCES: &str = "Resources";
const RESTRAINT: &str = "Restraint";
const RETURN: &str = "Return channel";
const OUTPUT: &str = "Output";

/// Help of `--sandbox`.
const SANDBOX: &str = "What processes that meet packets give up before the first: user, capabilities, files and system calls that they do not need; no-landlock where the kernel cannot keep them from files, off for nothing of it [default: on]";

impl Key {
    /// How the option looks to a person.
    pub const fn look(self) -> Look {
        use Takes::{Files, Flag, Many, One};
        let (short, takes, group, run, intercept) = match self {
            Key::Map => (
                Some('x'),
                Many("MAP"),
                TRAFFIC,
                Some(
                    "What to replay and where: [ONLINE-IP:]PORT-TARGET:PORT, for example 80-10.0.3.2:8080; repeatable, comma separated, IPv6 in brackets",
                ),
                Some(
                    "The services whose answers are returned: TARGET:PORT, for example 10.0.3.2:8080; repeatable, comma separated, IPv6 in brackets",
                ),
            ),
            Key::Intercept => (
                Some('s'),
                Many("ADDR[:PORT]"),
                TRAFFIC,
                Some("Where `tcptwin intercept` listens (port 36524 unless given); repeatable"),
                None,
            ),
            Key::Clients => (
                Some('c'),
                Many("RANGE"),
                TRAFFIC,
                Some(
                    "Addresses of the replayed clients, at most one range of each family [default: a part of 198.18.0.0/15 and 2001:2::/48 of this instance's own]",
                ),
                Some(
                    "With --tun: the ranges whose route the device takes [default: 198.18.0.0/15 and 2001:2::/48]",
                ),
            ),
            Key::KeepClients => (
                None,
                Flag,
                TRAFFIC,
                Some("Replay with the real clients' addresses instead of a range"),
                None,
            ),
            Key::Interface => (
                Some('i'),
                Many("NAME"),
                TRAFFIC,
                Some("Interfaces to capture on, or `any` [default: any]"),
                Some("Interfaces the answers arrive on, or `any` [default: any]"),
            ),
            Key::Mirror => (
                None,
                Flag,
                TRAFFIC,
                Some(
                    "The interface is a mirror port, and the online service on another host: -i names the one, -x the other's address",
                ),
                None,
            ),
            Key::Record => (
                None,
                One("DIR"),
                RECORDING,
                Some("Record what is captured there too, requests and answers, as pcapng files"),
                None,
            ),
            Key::Output => (Some('o'), One("DIR"), RECORDING, None, None),
            Key::Rotate => (
                None,
                One("SIZE"),
                RECORDING,
                Some(
                    "End a file before it is longer than this [default: 1GiB, and a quarter of --keep at most]",
                ),
                None,
            ),
            Key::RotateEvery => {
                (None, One("TIME"), RECORDING, Some("End a file when it is so old [default: 1h]"), None)
            }
            Key::Keep => (
                None,
                One("SIZE|all"),
                RECORDING,
                Some(
                    "Remove the oldest files of this instance so that all of them stay within this [default: 10GiB]",
                ),
                None,
            ),
            Key::Snap => (
                None,
                One("BYTES"),
                RECORDING,
                Some("Keep so many bytes of a packet, from its IP header on; 0 keeps all [default: 0]"),
                None,
            ),
            Key::Zstd => (None, Flag, RECORDING, Some("Compress the files"), None),
            Key::RecordBuffer => (
                None,
                One("SIZE"),
                RECORDING,
                Some(
                    "Memory between capture and disk, for moments in which the disk stands still [default: 64MiB]",
                ),
                None,
            ),
            Key::Copies => (
                Some('n'),
                One("N"),
                REPLAY,
                Some("Copies of each flow, up to three decimals: 2, 1.5, 0.25 [default: 1]"),
                None,
            ),
            Key::Percent => (
                Some('r'),
                One("PERCENT"),
                REPLAY,
                Some("Share of flows to replay, in steps of 0.01 [default: 100]"),
                None,
            ),
            Key::NoWait => (
                None,
                Flag,
                REPLAY,
                Some("Send requests without waiting for the answer to the one before"),
                None,
            ),
            Key::Rtt => (
                None,
                One("measured|none|MS"),
                REPLAY,
                Some(
                    "Distance of the replayed clients: each client's own, none, or milliseconds [default: measured]",
                ),
                None,
            ),
            Key::Join => (
                None,
                One("first|boundary|never"),
                REPLAY,
                Some(
                    "When to join connections older than the capture: at the first data, at the first new request, never [default: boundary]",
                ),
                None,
            ),
            Key::OnGap => (
                None,
                One("skip|resync|abort"),
                REPLAY,
                Some(
                    "Where the capture has a hole: skip the request (and reconnect if part of it was sent), skip it on the same connection, end the session [default: skip]",
                ),
                None,
            ),
            Key::IdleTime => (
                None,
                One("TIME"),
                REPLAY,
                Some("Close a replayed session after this much silence [default: 10m]"),
                None,
            ),
            Key::DrainTime => (
                None,
                One("TIME"),
                REPLAY,
                Some("Time for open requests to finish after Ctrl-C [default: 10s]"),
                None,
            ),
            Key::Shards => (
                None,
                One("N"),
                RESOURCES,
                Some("Shard worker processes [default: half the cores, 1 to 8]"),
                None,
            ),
            Key::Cores => (
                None,
                One("LIST|none"),
                RESOURCES,
                Some(
                    "Cores for capturer, injector and shards, for example 2-5 or 1,3,5 [default: the last cores; none with one or two cores]",
                ),
                None,
            ),
            Key::Memory => (
                None,
                One("SIZE"),
                RESOURCES,
                Some("Size of the shared region with all rings, sessions and held payload [default: 192MiB]"),
                None,
            ),
            Key::MaxSessions => (
                None,
                One("N"),
                RESOURCES,
                Some("Replayed sessions open at the same time [default: 65536]"),
                None,
            ),
            Key::Capture => (
                None,
                One("ring|simple|pcap|xdp"),
                RESOURCES,
                Some(
                    "Capture engine: `ring` for nearly everything; `simple` where the ring does not work; `pcap` for devices and expressions that only libpcap knows; `xdp` for a mirror port at high rates, on an interface of its own [default: ring]",
                ),
                None,
            ),
            Key::Filter => (
                Some('F'),
                One("EXPR"),
                TRAFFIC,
                Some(
                    "Capture only what this expression takes too, as tcpdump writes it (pcap-filter(7)), for example 'not src host 10.0.0.7'; needs libpcap on this host, while --net, --not-net and -x need nothing",
                ),
                None,
            ),
            Key::Net => (
                None,
                Many("CIDR"),
                TRAFFIC,
                Some(
                    "Capture only clients in these ranges, for example 10.0.0.0/8; repeatable, comma separated",
                ),
                None,
            ),
            Key::NotNet => (
                None,
                Many("CIDR"),
                TRAFFIC,
                Some("Capture no client in these ranges; repeatable, comma separated"),
                None,
            ),
            Key::XdpForce => (
                None,
                Flag,
                RESOURCES,
                Some(
                    "Let --capture xdp take an interface that carries this host's own traffic: the host no longer receives anything through it",
                ),
                None,
            ),
            Key::Inject => (
                None,
                One("link|raw|pcap"),
                RESOURCES,
                Some(
                    "Injection engine: frames on the link, raw IP, or libpcap [default: link where the next hop is known and nftables guards its device, else raw]",
                ),
                None,
            ),
            Key::Canary => (
                None,
                Many("off|ADDR"),
                TRAFFIC,
                Some(
                    "Do not probe the ways to the targets and back; or, with --keep-clients, probe them from these addresses, which nobody has [default: on, from an endpoint that no session has]",
                ),
                None,
            ),
            Key::Guard => (
                None,
                Flag,
                TRAFFIC,
                None,
                Some(
                    "Where this host forwards packets: install a rule that drops what the targets send to anybody beyond it; it goes at the end",
                ),
            ),
            Key::CaptureBuffer => (
                None,
                One("SIZE"),
                RESOURCES,
                Some("Kernel buffer of each interface for captured frames [default: 64MiB]"),
                None,
            ),
            Key::Tun => (
                None,
                Flag,
                TRAFFIC,
                None,
                Some(
                    "Run on the target itself: a TUN device takes the replayed clients' route, so that no second machine is needed",
                ),
            ),
            Key::Listen => (
                None,
                One("ADDR[:PORT]"),
                RETURN,
                None,
                Some("Where to listen for `tcptwin run` [default: 0.0.0.0:36524 and [::]:36524]"),
            ),
            Key::KeyFile => (
                None,
                One("FILE"),
                RETURN,
                Some(
                    "Key of the return channel, made by `tcptwin keygen` [default: /etc/tcptwin/key where it exists]",
                ),
                Some(
                    "Key of the return channel, made by `tcptwin keygen` [default: /etc/tcptwin/key where it exists]",
                ),
            ),
            Key::Plain => (
                None,
                Flag,
                RETURN,
                Some("No key: the return channel is neither authenticated nor encrypted"),
                Some("No key: the return channel is neither authenticated nor encrypted"),
            ),
            Key::Lab => (
                None,
                Flag,
                TRAFFIC,
                Some("Allow targets on loopback and on this host (tests and experiments only)"),
                None,
            ),
            Key::Files => (None, Files("FILE"), FILES, None, None),
            Key::Speed => (None, One("F|max"), FILES, None, None),
            Key::MaxGap => (None, One("TIME"), FILES, None, None),
            Key::Loops | Key::Limit | Key::Rate | Key::Seed => (None, One("N"), FILES, None, None),
            Key::From | Key::Until => (None, One("TIME"), FILES, None, None),
            Key::Decap | Key::DryRun => (None, Flag, FILES, None, None),
            Key::BudgetCpu => (
                None,
                One("PERCENT"),
                RESTRAINT,
                Some(
                    "CPU time that all processes of this run may take together, in percent of one core, measured over a second: beyond it new flows are left out, then open ones ended (counted as `shed`), then capture stops, until there is room again [default: no limit]",
                ),
                None,
            ),
            Key::MaxPps => (
                None,
                One("N"),
                RESTRAINT,
                Some(
                    "Packets a second towards the targets at most, in any 100 ms; k and M count in thousands and millions [default: no limit]",
                ),
                None,
            ),
            Key::MaxBps => (
                None,
                One("RATE"),
                RESTRAINT,
                Some(
                    "Bits a second towards the targets at most, from the IP header on, for example 100M or 2.5G [default: no limit]",
                ),
                None,
            ),
            Key::MaxCps => (
                None,
                One("N"),
                RESTRAINT,
                Some(
                    "Connections begun a second at most, all targets together; those beyond wait up to a second [default: no limit]",
                ),
                None,
            ),
            Key::Ramp => (
                None,
                One("TIME"),
                RESTRAINT,
                Some(
                    "Let the share of flows grow from none to that of -r in this time, for example 5m [default: 0]",
                ),
                None,
            ),
            Key::Nice => (
                None,
                One("N"),
                RESTRAINT,
                Some(
                    "By how much the CPU priority of our processes is lower, that of a live capturer by half of it, from 0 to 19 [default: 10]",
                ),
                None,
            ),
            Key::HaltFile => (
                None,
                One("FILE"),
                RESTRAINT,
                Some(
                    "The kill switch, as `tcptwin ctl halt` is: as soon as this file is there, nothing is captured or sent, the run ends, and no other of its name starts before the file is removed [default: NAME.halt beside the control socket]",
                ),
                None,
            ),
            Key::Sandbox => (None, One("on|no-landlock|off"), RESOURCES, Some(SANDBOX), Some(SANDBOX)),
            Key::Name => (
                None,
                One("NAME"),
                OUTPUT,
                Some("Name of this instance, where several run on one host [default: default]"),
                Some("Name of this instance, where several run on one host [default: intercept]"),
            ),
            Key::Metrics => (
                None,
                One("ADDR:PORT"),
                OUTPUT,
                Some("Serve Prometheus text here, for example 127.0.0.1:9136"),
                Some("Serve Prometheus text here, for example 127.0.0.1:9136"),
            ),
            Key::Quiet => (
                None,
                Flag,
                OUTPUT,
                Some("Print no live view and no hints; warnings and the summary stay"),
                Some("Print no live view and no hints; warnings and the summary stay"),
            ),
            Key::Json => (
                None,
                Flag,
                OUTPUT,
                Some("Print the summary as one JSON object on stdout, and no live view"),
                Some("Print the summary as one JSON object on stdout, and no live view"),
            ),
        };
        Look { short, takes, group, run, replay: self.in_replay(run), record: self.in_record(run), intercept }
    }

    /// The help of `replay`: that of `run`, where a packet file is no other than an interface.
    const fn in_replay(self, run: Option<&'static str>) -> Option<&'static str> {
        Some(match self {
            Key::Files => {
                "Packet files: pcap or pcapng, plain, gzip or zstd; several are merged by time, - is standard input"
            }
            Key::Speed => {
                "So many times as fast as it was captured, in steps of 0.001, or as fast as answers, windows and --rate allow [default: 1]"
            }
            Key::MaxGap => {
                "Pauses of the capture, in which no packet at all was seen, last no longer than this [default: as long as they did]"
            }
            Key::Loops => "Replay the files so many times, each time with other clients [default: 1]",
            Key::From => {
                "Leave out what was captured before: a time behind the first packet (90s, 5m), or a moment (2026-01-31T12:00:00Z)"
            }
            Key::Until => "Leave out what was captured after: likewise",
            Key::Limit => "Read so many packets at most of each loop",
            Key::Rate => "Replay so many packets a second at most [default: no limit]",
            Key::Decap => "Take packets out of VXLAN and GENEVE, as cloud mirrors send them",
            Key::Seed => {
                "A number from which addresses, ports, sequence numbers and samples are drawn: the same one makes the same replay [default: 1]"
            }
            Key::DryRun => "Say what would be replayed (sessions, turns, bytes, duration), and send nothing",
            Key::Rtt => {
                "Distance of the replayed clients: each client's own, none, or milliseconds [default: measured; none with --speed max]"
            }
            Key::Join => {
                "When to join connections older than the files: at the first data, at the first new request, never [default: boundary]"
            }
            Key::DrainTime => {
                "Time without progress after which open requests are given up at the end of the files, and time they have after Ctrl-C [default: 10s]"
            }
            Key::Filter => {
                "Replay only what this expression takes too, as tcpdump writes it (pcap-filter(7)), for example 'not src host 10.0.0.7'; needs libpcap on this host, while --net, --not-net and -x need nothing"
            }
            Key::Net => {
                "Replay only clients in these ranges, for example 10.0.0.0/8; repeatable, comma separated"
            }
            Key::NotNet => "Replay no client in these ranges; repeatable, comma separated",
            Key::OnGap => {
                "Where the files have a hole: skip the request (and reconnect if part of it was sent), skip it on the same connection, end the session [default: skip]"
            }
            Key::BudgetCpu => {
                "CPU time that all processes of this run may take together, in percent of one core, measured over a second: beyond it the files wait [default: no limit]"
            }
            Key::MaxCps => {
                "Connections begun a second at most, all targets together; those beyond wait [default: no limit]"
            }
            Key::Interface
            | Key::Mirror
            | Key::Capture
            | Key::CaptureBuffer
            | Key::XdpForce
            | Key::Record
            | Key::Rotate
            | Key::RotateEvery
            | Key::Keep
            | Key::Snap
            | Key::Zstd
            | Key::RecordBuffer => return None,
            _ => return run,
        })
    }

    /// The help of `record`: that of `run`, where a replay makes no difference.
    const fn in_record(self, run: Option<&'static str>) -> Option<&'static str> {
        match self {
            Key::Map => Some(
                "The services to record: [ONLINE-IP:]PORT, for example 80; repeatable, comma separated, IPv6 in brackets",
            ),
            Key::Output => Some("Directory of the files; made where it does not exist"),
            Key::Cores => Some(
                "Core of the capturer; the thread that writes is not pinned [default: the last core; none with one or two cores]",
            ),
            Key::Capture => Some(
                "Capture engine: memory-mapped ring, or `simple`, where the ring does not work [default: ring]",
            ),
            Key::Interface
            | Key::Mirror
            | Key::Filter
            | Key::Net
            | Key::NotNet
            | Key::CaptureBuffer
            | Key::Rotate
            | Key::RotateEvery
            | Key::Keep
            | Key::Snap
            | Key::Zstd
            | Key::RecordBuffer
            | Key::Nice
            | Key::HaltFile
            | Key::Sandbox
            | Key::Name
            | Key::Metrics
            | Key::Quiet
            | Key::Json => run,
            _ => None,
        }
    }
}
