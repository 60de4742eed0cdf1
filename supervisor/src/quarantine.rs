//! Records that a shard worker has died of twice: kept as files, so that somebody can find out why, and shown again by
//! `tcptwin autopsy FILE` to a table made of what the file holds, in a process that may die of it.
//!
//! A file has the record, the sessions that it belongs to with what they held, and the plan without its key. Payload is
//! real users' data: the files are this user's alone, beside the control socket, few and bounded.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::Context as _;
use flow::{Captured, Inject, Returned, record};
use serde::{Deserialize, Serialize};
use session::{Datagrams, Held, Order, Part, Sink, Table};
use shm::{Item, MILLION, Region};
use topology::plan::Protocol;
use topology::{Plan, Refusal};

use crate::confine;

/// Files of one instance at most; what comes later is left out all the same, but not kept.
const FILES: usize = 16;
/// Bytes of sessions in a file at most; a record adds up to 64 KiB, and both are written as hexadecimal digits.
const SESSION_BYTES: usize = 96 << 10;

/// What a file holds.
#[derive(Serialize, Deserialize)]
struct Specimen {
    /// The program that died, by its version.
    version: String,
    plan: Plan,
    shard: u16,
    /// Session, if it was not a record that it died of.
    session: Option<u32>,
    captured: Option<String>,
    returned: Option<String>,
    percent_ppm: u32,
    copies_milli: u32,
    /// CLOCK_MONOTONIC of that host, µs.
    time_us: u64,
    /// Of sessions; of the flow where a datagram was returned.
    arena: Vec<Cut>,
}

/// A part of the shard's arena, of the sessions' or the datagrams' half.
#[derive(Serialize, Deserialize)]
struct Cut {
    at: u64,
    bytes: String,
}

/// Keeps what a shard's worker died of; the path, or why there is none.
pub(crate) fn keep(
    directory: &Path,
    region: &Region,
    plan: &Plan,
    shard: u16,
    item: Item,
    arena: &[u8],
) -> anyhow::Result<PathBuf> {
    let directory = directory.join(format!("{}.quarantine", plan.name));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .with_context(|| format!("making {} failed", directory.display()))?;
    let specimen = take(region, plan, shard, item, arena);
    for number in 1..=FILES {
        let path = directory.join(format!("{number}.json"));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mut file) => {
                let text = serde_json::to_vec(&specimen).context("the specimen cannot be written")?;
                file.write_all(&text).with_context(|| format!("writing {} failed", path.display()))?;
                return Ok(path);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("making {} failed", path.display())),
        }
    }
    anyhow::bail!("{} holds {FILES} files already; look at them and remove them", directory.display())
}

fn take(region: &Region, plan: &Plan, shard: u16, item: Item, arena: &[u8]) -> Specimen {
    let bytes = region.record_of(shard, item).unwrap_or_default();
    let captured = matches!(item, Item::Captured(_)).then_some(&bytes);
    let returned = matches!(item, Item::Returned(_)).then_some(&bytes);
    let segment = captured.and_then(|bytes| Captured::split(bytes)).map(|(segment, _)| segment);
    let header = returned.and_then(|bytes| record::split::<Returned>(bytes)).map(|(header, _)| header);
    let wanted = |held: &Held<'_>| {
        segment.is_some_and(|segment| held.is_of(&segment))
            || header.is_some_and(|header| held.is_answered_by(&header))
            || item == Item::Session(held.id)
    };
    let config = shard_worker::machine_config(plan, shard);
    let parts = match header.filter(Datagrams::is_answer) {
        Some(header) => Datagrams::specimen(shard_worker::arena_of_datagrams(arena, plan), &header),
        None => session::specimen(arena, &config, SESSION_BYTES, wanted),
    };
    Specimen {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        plan: Plan { key: None, ..plan.clone() },
        shard,
        session: if let Item::Session(id) = item { Some(id) } else { None },
        captured: captured.map(|bytes| to_hex(bytes)),
        returned: returned.map(|bytes| to_hex(bytes)),
        percent_ppm: region.control().percent_ppm(),
        copies_milli: region.control().copies_milli(),
        time_us: shm::monotonic_us(),
        arena: parts.iter().map(|Part { at, bytes }| Cut { at: *at, bytes: to_hex(bytes) }).collect(),
    }
}

/// `tcptwin autopsy FILE`: says what the file holds, and lets a process of its own take it.
///
/// # Errors
/// The file is none of ours.
pub(crate) fn autopsy(file: &str, inside: bool) -> anyhow::Result<ExitCode> {
    let specimen = read(file)?;
    if inside {
        // What it holds has killed two workers, and somebody may have made it for that.
        match confine::of_autopsy(&specimen.plan) {
            Some(keep) => keep.give_up()?.enter(None)?,
            None => println!("  taken without a sandbox: this kernel has no filters of system calls"),
        }
        let sent = specimen.replay().map_err(Refusal::usage)?;
        println!("  taken: {} sent", crate::words::counted(sent, "record"));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{file}: {}", specimen.words());
    // What a shell or a script had left open is nothing for whoever takes it.
    let named = confine::named_by(std::iter::once(Path::new(file)));
    sandbox::keep_from_children(&named).context("looking at what is open failed")?;
    let child = Command::new("/proc/self/exe").args(["autopsy", "--inside", file]).status();
    let status = child.context("starting a process to take it failed")?;
    println!("{}", verdict(status));
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verdict(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    const SIGSYS: i32 = nix::sys::signal::Signal::SIGSYS as i32;
    match (status.success(), status.signal()) {
        (true, _) => "this program survives it".to_owned(),
        (false, Some(SIGSYS)) => {
            "this program makes a system call at it that it must not make: please report it, without the payload".to_owned()
        }
        (false, Some(signal)) => {
            format!("this program dies of it (signal {signal}): please report it, without the payload")
        }
        (false, None) => format!("this program fails at it ({status})"),
    }
}

fn read(file: &str) -> Result<Specimen, Refusal> {
    let text = std::fs::read(file).map_err(|error| {
        let why = crate::words::of_io(&error);
        Refusal::usage(format!(
            "autopsy {file}: the file cannot be read ({why}). `tcptwin run` names the files that it keeps"
        ))
    })?;
    serde_json::from_slice(&text).map_err(|error| {
        Refusal::usage(format!("autopsy {file}: this is no file that `tcptwin run` has kept ({error})"))
    })
}

impl Specimen {
    fn words(&self) -> String {
        let segment = self.captured.as_deref().and_then(from_hex);
        let header = self.returned.as_deref().and_then(from_hex);
        let what = match (segment, header, self.session) {
            (Some(bytes), ..) => match Captured::split(&bytes) {
                Some((head, payload)) => format!(
                    "a captured {} {} -> {} with {}",
                    if self.is_datagram(&head) { "datagram" } else { "segment" },
                    head.client,
                    head.server,
                    crate::words::counted(payload.len() as u64, "byte")
                ),
                None => "a captured record whose lengths disagree".to_owned(),
            },
            (_, Some(bytes), _) => match record::split::<Returned>(&bytes) {
                Some((head, _)) => format!(
                    "a returned {} {} -> {}",
                    if Datagrams::is_answer(&head) { "datagram" } else { "header" },
                    head.target,
                    head.client
                ),
                None => "a returned record that is too short".to_owned(),
            },
            (.., Some(id)) => format!("what session {id} had to do"),
            _ => "nothing".to_owned(),
        };
        format!("{what}, of which shard {} of tcptwin {} died twice", self.shard, self.version)
    }

    /// Makes a table of the arena's parts and lets it take the record, its timers, and whatever it has to say; how many
    /// records it sent.
    fn replay(&self) -> Result<u64, String> {
        if let Some(bytes) = self.captured.as_deref().and_then(from_hex)
            && let Some((datagram, payload)) = Captured::split(&bytes)
            && self.is_datagram(&datagram)
        {
            return Ok(self.replay_datagram(&datagram, payload));
        }
        let record = |text: &Option<String>| match text {
            Some(text) => from_hex(text).ok_or("the record is not hexadecimal").map(Some),
            None => Ok(None),
        };
        let returned = record(&self.returned)?;
        let returned = returned.and_then(|bytes| Some(record::split::<Returned>(&bytes)?.0));
        if let Some(header) = returned.filter(Datagrams::is_answer) {
            let arena = self.arena(Datagrams::arena_bytes())?;
            let mut datagrams = shard_worker::datagrams(arena, &self.plan, self.shard)
                .ok_or("its plan replays no datagrams")?;
            datagrams.returned(self.time_us, &header);
            datagrams.tick(self.time_us);
            return Ok(0);
        }
        let config = shard_worker::machine_config(&self.plan, self.shard);
        let bytes = Table::arena_bytes(config.limits.sessions, config.limits.chunks);
        let mut table = Table::new(self.arena(bytes)?, config);
        let mut sent = Sent(0);
        if let Some(bytes) = record(&self.captured)?
            && let Some((segment, payload)) = Captured::split(&bytes)
        {
            let (percent_ppm, copies_milli) = (self.percent_ppm, self.copies_milli);
            if !table.admits(self.time_us, &segment, payload.len(), percent_ppm, copies_milli) {
                table.settle();
            }
            table.captured(self.time_us, &segment, payload, percent_ppm, copies_milli);
        }
        if let Some(header) = returned {
            table.returned(self.time_us, &header);
        }
        table.tick(self.time_us);
        while table.pump(self.time_us, &mut sent) {
            table.settle();
        }
        table.settle();
        Ok(sent.0)
    }
}

impl Specimen {
    /// An arena of so many bytes in which the kept parts stand where they stood.
    fn arena(&self, bytes: u64) -> Result<&'static mut [u8], String> {
        let words: &'static mut [u64] = vec![0u64; bytes.div_ceil(8) as usize].leak();
        let arena = zerocopy::IntoBytes::as_mut_bytes(words);
        for cut in &self.arena {
            let bytes = from_hex(&cut.bytes).ok_or("a part of the arena is not hexadecimal")?;
            let place = (cut.at as usize)
                .checked_add(bytes.len())
                .and_then(|end| arena.get_mut(cut.at as usize..end));
            place.ok_or("a part of the arena lies outside of it")?.copy_from_slice(&bytes);
        }
        Ok(arena)
    }

    fn is_datagram(&self, head: &Captured) -> bool {
        let mapping = self.plan.mappings.get(usize::from(head.mapping));
        mapping.is_some_and(|mapping| mapping.protocol == Protocol::Udp)
    }

    /// A flow of datagrams holds nothing but its replayed endpoints, which come of the datagram itself: an empty table finds the
    /// same ones. How many copies it sent.
    fn replay_datagram(&self, head: &Captured, payload: &[u8]) -> u64 {
        let arena: &'static mut [u64] = vec![0; Datagrams::arena_bytes().div_ceil(8) as usize].leak();
        let arena = zerocopy::IntoBytes::as_mut_bytes(arena);
        let mut sent = Sent(0);
        if let Some(mut datagrams) = shard_worker::datagrams(arena, &self.plan, self.shard) {
            let order = Order {
                paused: false,
                percent_ppm: self.percent_ppm,
                copies_milli: self.copies_milli,
                admitted_ppm: MILLION,
                kept_ppm: MILLION,
            };
            let copies = datagrams.copies(head, &order, false);
            for copy in 0..copies {
                datagrams.send(self.time_us, head, payload, [copy, copies], &mut sent);
            }
            datagrams.tick(self.time_us);
        }
        sent.0
    }
}

/// Counts.
struct Sent(u64);

impl Sink for Sent {
    fn emit<'p>(&mut self, _head: &Inject, parts: impl Iterator<Item = &'p [u8]>) {
        // All of the payload is walked over, as for the injector.
        let _ = parts.map(<[u8]>::len).sum::<usize>();
        self.0 += 1;
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks_exact(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use flow::record::flag;
    use flow::{Endpoint, Seq, TcpFields};
    use lab::scratch::Scratch;
    use shm::{Link, Role};
    use topology::wiring;
    use zerocopy::IntoBytes as _;

    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<std::net::SocketAddr>().unwrap().into()
    }

    fn segment(flags: u16, seq: u32, payload_len: u32) -> Captured {
        Captured {
            tcp: TcpFields { seq: Seq(seq), ack: Seq(1), flags, ..TcpFields::default() },
            payload_len,
            client: endpoint("203.0.113.5:40000"),
            server: endpoint("10.0.0.10:80"),
            ..Captured::default()
        }
    }

    /// A worker holds a request and dies in the middle of the next.
    #[test]
    fn what_is_kept_is_taken_again_as_it_was() {
        let name = format!("quarantine-{}", std::process::id());
        let plan = crate::testing::plan(&name, &[]);
        let spec = wiring::region_spec(&plan, shard_worker::arena_bytes);
        let region = Region::create(&name, &spec, &plan.to_bytes(), 1).unwrap();
        region.control().set_percent_ppm(1_000_000);
        region.control().set_copies_milli(1_000);
        let killer = segment(flag::ACK | flag::PSH, 16, 6);
        let mut ring = region.producer(Link::Capture(1));
        assert!(ring.push(b"another record") && ring.push(&[killer.as_bytes(), b"killer"].concat()));
        ring.publish();
        let mut reader = Region::attach(&name).unwrap().consumer(Link::Capture(1));
        let batch = reader.peek_batch(2);
        let item = Item::Captured(batch.position(1).unwrap());
        let now_us = shm::monotonic_us();
        let mut table = Table::new(region.arena(1), shard_worker::machine_config(&plan, 1));
        for (head, payload) in [
            (segment(flag::SYN, 0, 0), &b""[..]),
            (segment(flag::ACK, 1, 0), b""),
            (segment(flag::ACK | flag::PSH, 1, 15), b"held and unsent"),
        ] {
            table.captured(now_us, &head, payload, 1_000_000, 1_000);
        }
        table.settle();
        table.captured(now_us, &killer, b"killer", 1_000_000, 1_000);
        let successor = Region::attach(&name).unwrap();
        let scratch = Scratch::new("quarantine").unwrap();
        let kept = keep(scratch.path(), region, &plan, 1, item, successor.arena(1)).unwrap();
        Region::remove(&name).unwrap();
        let specimen = read(kept.to_str().unwrap()).unwrap();
        assert!(
            specimen.words().contains("203.0.113.5:40000 -> 10.0.0.10:80 with 6 bytes"),
            "{}",
            specimen.words()
        );
        assert_eq!(specimen.replay(), Ok(1), "its session still owes the SYN");
        let held = "held and unsent".bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert!(specimen.arena.iter().any(|cut| cut.bytes.contains(&held)));
        let mut cut = specimen;
        cut.arena.push(Cut { at: u64::MAX, bytes: "00".into() });
        assert!(cut.replay().unwrap_err().contains("outside"));
        cut.arena.push(Cut { at: 0, bytes: "0".into() });
        cut.arena.swap(0, 1);
        assert!(cut.replay().is_err());
        assert_eq!(region.read_counter(Role::Shard(1), 0), 0, "nothing was counted for it");
    }

    /// A worker dies at the second of two datagrams.
    #[test]
    fn a_datagram_that_is_kept_is_taken_again() {
        let name = format!("quarantine-udp-{}", std::process::id());
        let plan = crate::testing::plan(
            &name,
            &[(topology::Key::Map, "udp:53-10.0.3.2:53"), (topology::Key::Copies, "3")],
        );
        let spec = wiring::region_spec(&plan, shard_worker::arena_bytes);
        let region = Region::create(&name, &spec, &plan.to_bytes(), 1).unwrap();
        region.control().set_percent_ppm(1_000_000);
        region.control().set_copies_milli(3_000);
        let killer = Captured {
            payload_len: 6,
            client: endpoint("203.0.113.5:40000"),
            server: endpoint("10.0.0.10:53"),
            ..Captured::default()
        };
        let mut ring = region.producer(Link::Capture(1));
        assert!(ring.push(&[killer.as_bytes(), b"killer"].concat()));
        ring.publish();
        let mut reader = Region::attach(&name).unwrap().consumer(Link::Capture(1));
        let item = Item::Captured(reader.peek_batch(1).position(0).unwrap());
        let scratch = Scratch::new("quarantine").unwrap();
        let kept = keep(scratch.path(), region, &plan, 1, item, region.arena(1)).unwrap();
        Region::remove(&name).unwrap();
        let specimen = read(kept.to_str().unwrap()).unwrap();
        let said = specimen.words();
        assert!(
            said.contains("a captured datagram 203.0.113.5:40000 -> 10.0.0.10:53 with 6 bytes"),
            "{said}"
        );
        assert_eq!(specimen.replay(), Ok(3), "a copy each");
    }

    /// A worker dies at the answer to a datagram: the flow that it belongs to is kept with it.
    #[test]
    fn a_returned_datagram_that_is_kept_is_taken_again() {
        let name = format!("quarantine-answer-{}", std::process::id());
        let plan = crate::testing::plan(&name, &[(topology::Key::Map, "udp:53-10.0.3.2:53")]);
        let spec = wiring::region_spec(&plan, shard_worker::arena_bytes);
        let region = Region::create(&name, &spec, &plan.to_bytes(), 1).unwrap();
        let asked = Captured {
            payload_len: 3,
            client: endpoint("203.0.113.5:40000"),
            server: endpoint("10.0.0.10:53"),
            ..Captured::default()
        };
        let mut client = Client(None);
        {
            let arena = Region::attach(&name).unwrap().arena(1);
            let at = arena.len() - shard_worker::arena_of_datagrams(arena, &plan).len();
            let mut datagrams = shard_worker::datagrams(&mut arena[at..], &plan, 1).unwrap();
            datagrams.send(shm::monotonic_us(), &asked, b"ask", [0, 1], &mut client);
        }
        let answer = Returned {
            kind: record::kind::UDP,
            payload_len: 9,
            client: client.0.expect("it was sent"),
            target: endpoint("10.0.3.2:53"),
            ..Returned::default()
        };
        let mut ring = region.producer(Link::Returns(1));
        assert!(ring.push(answer.as_bytes()));
        ring.publish();
        let mut reader = Region::attach(&name).unwrap().consumer(Link::Returns(1));
        let item = Item::Returned(reader.peek_batch(1).position(0).unwrap());
        let scratch = Scratch::new("quarantine").unwrap();
        let kept = keep(scratch.path(), region, &plan, 1, item, region.arena(1)).unwrap();
        Region::remove(&name).unwrap();
        let specimen = read(kept.to_str().unwrap()).unwrap();
        assert!(specimen.words().contains("a returned datagram 10.0.3.2:53 -> "), "{}", specimen.words());
        assert_eq!(specimen.arena.len(), 2, "what begins the arena, and the flow");
        assert_eq!(specimen.replay(), Ok(0));
        let mut again = shard_worker::datagrams(
            specimen.arena(Datagrams::arena_bytes()).unwrap(),
            &specimen.plan,
            specimen.shard,
        )
        .unwrap();
        again.returned(specimen.time_us, &answer);
        assert_eq!(again.take_counts()[session::DatagramCount::Replies.index()], 1, "it finds its flow");
    }

    /// Whose a sent datagram is.
    struct Client(Option<Endpoint>);

    impl Sink for Client {
        fn emit<'p>(&mut self, head: &Inject, _: impl Iterator<Item = &'p [u8]>) {
            self.0 = Some(head.client);
        }
    }

    #[test]
    fn a_quarantine_has_so_many_places_and_no_more() {
        let name = format!("quarantine-full-{}", std::process::id());
        let plan = crate::testing::plan(&name, &[]);
        let spec = wiring::region_spec(&plan, shard_worker::arena_bytes);
        let region = Region::create(&name, &spec, &plan.to_bytes(), 1).unwrap();
        Region::remove(&name).unwrap();
        let scratch = Scratch::new("quarantine").unwrap();
        let arena = region.arena(0);
        for _ in 0..FILES {
            keep(scratch.path(), region, &plan, 0, Item::Session(3), arena).unwrap();
        }
        let full = keep(scratch.path(), region, &plan, 0, Item::Session(3), arena).unwrap_err();
        assert!(full.to_string().contains("holds 16 files already"), "{full}");
    }

    #[test]
    fn what_is_no_specimen_is_refused_in_a_sentence() {
        let scratch = Scratch::new("quarantine").unwrap();
        let file = scratch.file("other");
        for (text, part) in
            [(None, "cannot be read (no such file"), (Some("{}"), "no file that `tcptwin run`")]
        {
            if let Some(text) = text {
                std::fs::write(&file, text).unwrap();
            }
            let refusal = read(file.to_str().unwrap()).err().unwrap();
            assert!(refusal.exit == 2 && refusal.sentence.contains(part), "{refusal}");
        }
        assert_eq!((from_hex("0g"), from_hex("0"), from_hex("0aff")), (None, None, Some(vec![10, 255])));
    }
}
