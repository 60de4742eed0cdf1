//! Opening the capture sockets: filter and ring in place before the first frame. Called by the supervisor, which keeps them open
//! while capturers come and go; a capturer takes them over by number.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{setsockopt, sockopt};
use shm::{Region, Role};
use topology::Plan;
use topology::plan::{CaptureEngine, Protocol};

use crate::count::{MAX_RINGS, POSITIONS};
use crate::error::OpenError;
use crate::filter::{ANY_LINK, Frames, Instruction};
use crate::interfaces::{self, Interface};
use crate::live::RINGS;
use crate::online::program;
use crate::packet_ring::{Hearing, RingSpec, open_socket};
use crate::role;
use crate::sys::{Begin, Bound, PacketSocket, RingMemory, link_type};
use crate::xdp;

/// Slots of the ring for small frames: everything up to an Ethernet frame of 1,500 bytes, and a little more.
const SMALL_SLOT_BYTES: u32 = 2_048;
/// Of bare acknowledgements, with the longest of headers.
const BARE_SLOT_BYTES: u32 = 256;
/// What part of the buffer is theirs: 16,384 in 64 MiB, which 1.6 million a second fill in `role::UNAWAITED_MS`.
const BARE_SHARE: u64 = 16;
/// The longest packet that the ring for large frames takes whole: 64 KiB and a VLAN tag.
const LARGE_PACKET_BYTES: u32 = 65_536 + 4;
/// More where datagrams are captured: an IPv6 header stands in front of 64 KiB of them, and a link header in front of that.
const LARGE_DATAGRAMS_BYTES: u32 = LARGE_PACKET_BYTES + 40 + 32;
/// The first kernel that tells of datagrams in one packet. Those before drop what they cannot tell of.
const TELLS_DATAGRAMS: (u32, u32) = (6, 2);
/// An Ethernet header.
pub(crate) const ETHERNET_HEADER: u32 = 14;

/// An open capture socket. Close-on-exec; whoever starts a role lifts that.
#[derive(Debug)]
pub struct CaptureSocket(PacketSocket);

impl AsFd for CaptureSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<PacketSocket> for CaptureSocket {
    /// One that was made by [`open`] and came back another way than through [`inherit`].
    fn from(socket: PacketSocket) -> Self {
        Self(socket)
    }
}

impl From<CaptureSocket> for PacketSocket {
    fn from(socket: CaptureSocket) -> Self {
        socket.0
    }
}

/// Opens the sockets of a plan: for the ring engine two for each interface (or two for all), for the simple engine one for each
/// interface, for the xdp engine its program and a socket for each queue; none for the pcap engine, which is tried out only. Frames
/// are kept from now on, where there are sockets for them.
///
/// # Errors
/// A sentence for the operator: an interface that does not exist, a missing capability, a ring that does not fit in memory.
pub fn open(plan: &Plan) -> Result<Vec<CaptureSocket>, OpenError> {
    if plan.trace.is_some() {
        return Ok(vec![]);
    }
    let existing = interfaces::interfaces();
    let names = interface_names(plan);
    if names.len() * RINGS > MAX_RINGS {
        return Err(OpenError::TooMany { count: names.len(), max: MAX_RINGS / RINGS });
    }
    let wanted = known_of(&existing, &names)?;
    for interface in wanted.iter().flatten().filter(|interface| !interface.up) {
        tracing::warn!("{} is down; nothing is captured on it until it is up", interface.name);
    }
    match plan.capture.engine {
        CaptureEngine::Ring => open_rings(plan, &wanted),
        CaptureEngine::Simple => open_simple(plan, &wanted, &existing),
        CaptureEngine::Pcap => crate::pcap::try_out(plan).map(|()| vec![]),
        CaptureEngine::Xdp => xdp::open(plan, &wanted),
    }
}

/// Lets the kernel keep nothing more in these sockets, now and whoever reads from them. The engine without sockets ends with its
/// role.
///
/// # Errors
/// The first of a socket that goes on; the others are closed all the same.
pub fn deafen(plan: &Plan, sockets: &[CaptureSocket]) -> io::Result<()> {
    match plan.capture.engine {
        CaptureEngine::Ring | CaptureEngine::Simple => {}
        CaptureEngine::Xdp => return xdp::deafen(sockets),
        CaptureEngine::Pcap => return Ok(()),
    }
    // At once: the kernel makes each of them wait for all cores.
    std::thread::scope(|scope| {
        let closing: Vec<_> = sockets.iter().map(|socket| scope.spawn(|| socket.0.close())).collect();
        closing
            .into_iter()
            .map(|one| one.join().expect("closing does not panic"))
            .fold(Ok(()), io::Result::and)
    })
}

/// Whether the supervisor's sockets are all that captures: [`deafen`] ends it then.
pub const fn is_held_by_sockets(plan: &Plan) -> bool {
    plan.trace.is_none() && !matches!(plan.capture.engine, CaptureEngine::Pcap)
}

/// Takes over sockets that were handed down by number.
pub fn inherit(plan: &Plan, numbers: &[RawFd]) -> Result<Vec<CaptureSocket>, OpenError> {
    if plan.capture.engine == CaptureEngine::Ring && plan.trace.is_none() {
        let wanted = interface_names(plan).len() * RINGS;
        if numbers.len() != wanted {
            return Err(OpenError::Sockets { wanted, got: numbers.len() });
        }
    }
    let adopt = |&number: &RawFd| match taken_over(plan, number) {
        Ok(socket) => Ok(CaptureSocket(socket)),
        Err(source) => Err(OpenError::Inherited { number, source }),
    };
    numbers.iter().map(adopt).collect()
}

/// What the xdp engine hands down are no packet sockets.
fn taken_over(plan: &Plan, number: RawFd) -> io::Result<PacketSocket> {
    match plan.capture.engine {
        CaptureEngine::Xdp => Ok(PacketSocket::from(shm::inherit(number)?)),
        _ => PacketSocket::adopt(number),
    }
}

/// What a socket of a plan is called where somebody keeps it for the next start: number and sizes, so that one of other sizes is
/// never taken for ours. None behind the last, and for the other engines, whose sockets keep next to nothing. How many the xdp
/// engine has, the device knows.
pub fn name(plan: &Plan, place: usize) -> Option<String> {
    if plan.trace.is_some() {
        return None;
    }
    match plan.capture.engine {
        CaptureEngine::Ring if place < interface_names(plan).len() * RINGS => {
            let spec = ring_specs(plan)[place % RINGS];
            let form = if spec.begin() == Begin::Link { "-datagrams" } else { "" };
            Some(format!("capture-{place}-{}x{}{form}", spec.slot_bytes(), spec.slots()))
        }
        CaptureEngine::Xdp => Some(format!("capture-{place}-xdp-{}", plan.capture.buffer_bytes)),
        CaptureEngine::Ring | CaptureEngine::Simple | CaptureEngine::Pcap => None,
    }
}

/// Takes over sockets that outlived their supervisor, in the order of their [`name`]s. Each must be what [`open`] would make
/// for this plan: bound where it says, with this filter, and a ring of this size. One that was closed is open then.
///
/// # Errors
/// Which is not, by its place; all of them are closed then.
pub fn take_over(plan: &Plan, sockets: Vec<OwnedFd>) -> Result<Vec<CaptureSocket>, OpenError> {
    let (existing, names) = (interfaces::interfaces(), interface_names(plan));
    let wanted = known_of(&existing, &names)?;
    match plan.capture.engine {
        CaptureEngine::Xdp => xdp::take_over(&wanted, sockets),
        _ => take_over_rings(plan, &wanted, sockets),
    }
}

fn take_over_rings(
    plan: &Plan,
    interfaces: &[Option<&Interface>],
    sockets: Vec<OwnedFd>,
) -> Result<Vec<CaptureSocket>, OpenError> {
    let (specs, programs, wanted) = (ring_specs(plan), ring_programs(plan), interfaces.len() * RINGS);
    if sockets.len() != wanted || plan.capture.engine != CaptureEngine::Ring {
        return Err(OpenError::Sockets { wanted, got: sockets.len() });
    }
    let mut taken = vec![];
    for (i, socket) in sockets.into_iter().map(PacketSocket::from).enumerate() {
        let failed = |source| OpenError::Kept { place: i, source };
        let wrong = |why: &str| failed(io::Error::other(why));
        let spec = specs[i % RINGS];
        let bound = interfaces[i / RINGS].map_or(Bound::Any, |interface| Bound::Interface(interface.index));
        if !socket.is_ring_of(spec.begin()).map_err(failed)? {
            return Err(wrong("it is no packet ring"));
        }
        if socket.bound().map_err(failed)? != bound {
            return Err(wrong("it listens on another interface"));
        }
        // A version before this one did not; and behind this it is what it is.
        socket.lock_filter().map_err(failed)?;
        if socket.filter().map_err(failed)? != programs[i % RINGS] {
            return Err(wrong("its filter is another plan's"));
        }
        // The kernel refuses to map anything but the whole ring.
        RingMemory::map(&socket, spec).map_err(|_| wrong("its ring is of another size"))?;
        // Its capturer had begun to drain.
        socket.reopen().map_err(failed)?;
        taken.push(CaptureSocket(socket));
    }
    Ok(taken)
}

/// The sockets are new ones, the region is not: frame numbers go on, at the first slot of each ring. Called by the
/// supervisor before the first capturer of a region that it adopted.
pub fn begin_anew(region: &'static Region, plan: &Plan) {
    if plan.trace.is_some() {
        return;
    }
    // What a dead capturer had committed is in place then, and no successor stores its positions over ours.
    region.journal(Role::Capturer).done();
    let counters = region.counters(Role::Capturer);
    if plan.capture.engine != CaptureEngine::Pcap {
        // That one opens its own, and counts then.
        role::unseen(&counters);
    }
    if plan.capture.engine == CaptureEngine::Xdp {
        (0..MAX_RINGS).for_each(|ring| counters.set(POSITIONS + ring, 0));
        return;
    }
    let last = (0..MAX_RINGS).map(|ring| counters.get(POSITIONS + ring)).max().unwrap_or(0);
    for (ring, spec) in ring_specs(plan).iter().cycle().take(interface_names(plan).len() * RINGS).enumerate()
    {
        counters.set(POSITIONS + ring, last.next_multiple_of(spec.slots().into()));
    }
}

/// The interfaces of a plan in the order of their sockets; `None` is all of them together.
pub(crate) fn interface_names(plan: &Plan) -> Vec<Option<String>> {
    let names = &plan.capture.interfaces;
    if names.is_empty() || names.iter().any(|name| name == "any") {
        return vec![None];
    }
    names.iter().cloned().map(Some).collect()
}

/// The rings of one interface: small frames, large ones and bare acknowledgements share its buffer. Connections need not be told of datagrams, and have
/// frames without link headers: the kernel reads a device's header only where somebody wants it.
pub(crate) fn ring_specs(plan: &Plan) -> [RingSpec; RINGS] {
    let bytes = plan.capture.buffer_bytes;
    let bare = RingSpec::with_slots(BARE_SLOT_BYTES, bytes / BARE_SHARE);
    let small = RingSpec::with_slots(SMALL_SLOT_BYTES, bytes / 2 - bytes / BARE_SHARE);
    if plan.replays(Protocol::Udp) && kernel() >= TELLS_DATAGRAMS {
        let large = RingSpec::for_packets(LARGE_DATAGRAMS_BYTES, bytes / 2);
        [small, large, bare].map(RingSpec::telling_datagrams)
    } else {
        [small, RingSpec::for_packets(LARGE_PACKET_BYTES, bytes / 2), bare]
    }
}

/// Version of the running kernel; (0, 0) if it does not say.
fn kernel() -> (u32, u32) {
    let Ok(names) = nix::sys::utsname::uname() else { return (0, 0) };
    let release = names.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Their filters.
pub(crate) fn ring_programs(plan: &Plan) -> [Vec<Instruction>; RINGS] {
    let [small, _, bare] = ring_specs(plan);
    let link = if small.begin() == Begin::Link { ANY_LINK } else { 0 };
    let (most, bare) = (small.packet_bytes(), bare.packet_bytes());
    [Frames::UpTo { most, bare }, Frames::Above(most), Frames::Bare(bare)]
        .map(|frames| program(plan, link, frames))
}

/// The link header that the frames of this interface begin with in the simple engine; 0 where there is none that we know.
pub(crate) fn link_header(interface: &str) -> io::Result<u32> {
    Ok(match link_type(interface)? {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => ETHERNET_HEADER,
        _ => 0,
    })
}

/// A recording has the answers too, which this host sends; what a mirror port brings comes in, both directions.
pub(crate) fn hearing(plan: &Plan) -> Hearing {
    let promiscuous = plan.capture.promiscuous;
    Hearing { promiscuous, outgoing: plan.record.is_some() && !promiscuous }
}

fn known_of<'a>(
    existing: &'a [Interface],
    names: &[Option<String>],
) -> Result<Vec<Option<&'a Interface>>, OpenError> {
    names.iter().map(|name| name.as_ref().map(|name| known(existing, name)).transpose()).collect()
}

fn known<'a>(existing: &'a [Interface], name: &str) -> Result<&'a Interface, OpenError> {
    let found = existing.iter().find(|interface| interface.name == name);
    found.ok_or_else(|| OpenError::NoInterface { name: name.to_owned(), existing: interfaces::names() })
}

fn open_rings(plan: &Plan, wanted: &[Option<&Interface>]) -> Result<Vec<CaptureSocket>, OpenError> {
    let (specs, programs) = (ring_specs(plan), ring_programs(plan));
    let mut sockets = vec![];
    for interface in wanted {
        let (name, index) =
            interface.map_or(("any", 0), |interface| (interface.name.as_str(), interface.index));
        for (spec, program) in specs.iter().zip(&programs) {
            let socket = open_socket(spec, program, index, hearing(plan)).map_err(|source| {
                OpenError::new("opening a capture ring", name, spec.bytes() as u64 >> 20, source)
            })?;
            sockets.push(CaptureSocket(socket));
        }
    }
    Ok(sockets)
}

/// One socket for each interface: `pnet_datalink` knows no "all", so that is every interface which is up now.
fn open_simple(
    plan: &Plan,
    wanted: &[Option<&Interface>],
    existing: &[Interface],
) -> Result<Vec<CaptureSocket>, OpenError> {
    let all = wanted.contains(&None);
    let chosen = existing
        .iter()
        .filter(|interface| if all { interface.up } else { wanted.contains(&Some(interface)) });
    chosen.map(|interface| open_simple_on(plan, interface)).collect()
}

fn open_simple_on(plan: &Plan, interface: &Interface) -> Result<CaptureSocket, OpenError> {
    let failed = |source| {
        OpenError::new("opening a packet socket", &interface.name, plan.capture.buffer_bytes >> 20, source)
    };
    let header = link_header(&interface.name).map_err(failed)?;
    let begin = if header == 0 { Begin::Network } else { Begin::Link };
    let socket = PacketSocket::open(begin).map_err(failed)?;
    // pnet_datalink gives no way to set a filter, but takes a socket that has one.
    socket.filter_for_good(&program(plan, header, Frames::All)).map_err(failed)?;
    if !hearing(plan).outgoing {
        let _ = socket.ignore_outgoing();
    }
    let bytes = usize::try_from(plan.capture.buffer_bytes).unwrap_or(usize::MAX).min(i32::MAX as usize / 2);
    if setsockopt(&socket, sockopt::RcvBufForce, &bytes).is_err() {
        // Without CAP_NET_ADMIN the limit net.core.rmem_max holds; drops are reported.
        let _ = setsockopt(&socket, sockopt::RcvBuf, &bytes);
    }
    socket.bind(interface.index).map_err(failed)?;
    Ok(CaptureSocket(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{plan, regions};
    use shm::Word;

    #[test]
    fn new_sockets_begin_at_a_first_slot_whatever_a_dead_capturer_had_committed() {
        let plan = plan(&["8080-10.0.3.2:8080"]);
        let [dead, heir, successor] = regions(&plan, 3).try_into().unwrap();
        let mut journal = dead.journal(Role::Capturer);
        journal.put(Word::Counter(POSITIONS), 100_001);
        journal.commit();
        begin_anew(heir, &plan);
        assert!(!successor.journal(Role::Capturer).repeated());
        for (ring, spec) in ring_specs(&plan).iter().enumerate() {
            let position = successor.read_counter(Role::Capturer, POSITIONS + ring);
            assert!(position >= 100_001 && position.is_multiple_of(spec.slots().into()), "{position}");
        }
    }
}
