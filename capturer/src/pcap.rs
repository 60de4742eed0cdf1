//! The live source on libpcap, opened at run time: for devices that packet rings do not know, and for expressions about a link
//! layer. 0.06 to 0.5 µs a frame more than the ring (measured: 123 ns for small frames instead of 66, 569 for 8 KB instead of
//! 75), and slots of one size: `--capture-buffer` holds 512 frames for each 64 MiB on interfaces with offloads.
//!
//! The handle, and what the kernel holds for it, lives and dies with the role: frames of the time until a successor has opened its
//! own are missing. How often that was is counted ([`crate::Count::Opened`]); what it cost shows as `missed` in the ledger.
//!
//! libpcap's filter is made of text: the expression, and our mappings in its language. It lets a little more through than is
//! meant; the dispatcher decides again.

use std::os::fd::BorrowedFd;

use flow::Range;
use libpcap::{Direction, Live, Options, link};
use nix::sys::socket::{setsockopt, sockopt};
use topology::Plan;
use topology::plan::FilterPlan;
use trace::link::is_known;

use crate::again::Again;
use crate::error::OpenError;
use crate::filter::{CaptureFilter, Frames};
use crate::interfaces::{self, Interface};
use crate::online::filter;
use crate::open::{hearing, interface_names};
use crate::role::realtime_ns;
use crate::source::{Frame, Links, Source};
use crate::sys::mtu;
use crate::watch::{State, Watch};

/// Bytes of a frame that are kept: a super-frame of 64 KiB and more, in slots of 128 KiB with the kernel's header. libpcap's own
/// 256 KiB would halve the number of slots for frames that only BIG TCP makes; those come cut, and are counted so.
const SNAPLEN: i32 = 128 * 1024 - 256;
/// Mappings named one by one in the filter; beyond, the dispatcher alone looks at addresses, so that the text stays short.
const MAX_TERMS: usize = 64;

/// The live source on libpcap.
#[derive(Debug)]
pub struct Pcap {
    devices: Vec<Device>,
    turn: usize,
    /// Devices opened since the last [`Source::take_opened`].
    opened: u64,
    /// Frames seen later than this are not taken any more, CLOCK_REALTIME nanoseconds.
    until_ns: u64,
}

#[derive(Debug)]
struct Device {
    name: String,
    options: Options,
    plan: Plan,
    watch: Option<Watch>,
    /// `any` alone: what was seen last.
    again: Option<Again>,
    /// `None` while it is gone.
    open: Option<Open>,
    /// What was lost before it went down and was not told yet.
    dropped: u64,
}

#[derive(Debug)]
struct Open {
    live: Live,
    /// What frames begin with.
    link: u16,
    /// Packets longer than this were several.
    mtu: u32,
    /// The kernel's count of drops when it was told last.
    told: u32,
}

/// Opens every device of a plan once, so that a fault is a sentence before the start.
///
/// # Errors
/// libpcap is absent, a device cannot be opened, or does not take the filter.
pub(crate) fn try_out(plan: &Plan) -> Result<(), OpenError> {
    devices(plan).iter().try_for_each(|device| device.opened().map(|_| ()))
}

fn devices(plan: &Plan) -> Vec<Device> {
    let device = |name: Option<String>| Device {
        again: name.is_none().then(Again::default),
        watch: name.clone().map(|name| Watch::new(name, None)),
        name: name.unwrap_or_else(|| "any".to_owned()),
        options: Options {
            snaplen: SNAPLEN,
            promiscuous: plan.capture.promiscuous,
            buffer_bytes: Some(plan.capture.buffer_bytes),
            direction: if hearing(plan).outgoing { Direction::Both } else { Direction::In },
        },
        plan: plan.clone(),
        open: None,
        dropped: 0,
    };
    interface_names(plan).into_iter().map(device).collect()
}

impl Pcap {
    /// Opens the devices of a plan. One that cannot be opened now is tried again each second.
    pub fn new(plan: &Plan) -> Self {
        let mut source = Self { devices: devices(plan), turn: 0, opened: 0, until_ns: u64::MAX };
        source.open_again();
        source
    }

    fn open_again(&mut self) {
        for device in self.devices.iter_mut().filter(|device| device.open.is_none()) {
            if let Ok(open) = device.opened() {
                device.open = Some(open);
                self.opened += 1;
            }
        }
    }
}

impl Source for Pcap {
    fn drain(&mut self, max: u32, sink: &mut dyn FnMut(&Frame<'_>)) -> u32 {
        let (count, until_ns) = (self.devices.len(), self.until_ns);
        let mut taken = 0;
        for i in 0..count {
            let device = &mut self.devices[(self.turn + i) % count];
            while taken < max && device.take(until_ns, sink) {
                taken += 1;
            }
        }
        self.turn = (self.turn + 1) % count.max(1);
        taken
    }

    /// libpcap gives a frame's slot back when the next one is read.
    fn release(&mut self) {}

    fn positions(&self, _note: &mut dyn FnMut(u16, u64)) {}

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.devices.iter().filter_map(|device| device.open.as_ref()?.live.fd()).collect()
    }

    fn take_dropped(&mut self) -> u64 {
        self.devices.iter_mut().map(Device::take_dropped).sum()
    }

    fn take_opened(&mut self) -> u64 {
        std::mem::take(&mut self.opened)
    }

    fn attend(&mut self) -> Links {
        self.open_again();
        let mut links = Links::default();
        for device in &mut self.devices {
            // `any` is no interface, and always there.
            let Some(watch) = &mut device.watch else { continue };
            match (watch.look(), device.open.is_some()) {
                (State::Gone, _) => links.gone += 1,
                (State::Down, _) | (State::Up, false) => links.down += 1,
                (State::Up, true) => {}
            }
            links.downs += watch.downs();
        }
        links
    }

    fn relocate(&mut self) {}

    fn close(&mut self) {
        self.until_ns = realtime_ns();
    }

    fn reopen(&mut self) {
        self.until_ns = u64::MAX;
    }
}

impl Device {
    fn opened(&self) -> Result<Open, OpenError> {
        let failed = |source| OpenError::Pcap { interface: self.name.clone(), source };
        let mut live = Live::open(&self.name, self.options).map_err(failed)?;
        let number = live.link_type();
        let Some(link) = u16::try_from(number).ok().filter(|link| is_known(*link)) else {
            return Err(OpenError::LinkType { interface: self.name.clone(), link: live.link_name() });
        };
        let interface = interfaces::find(&self.name);
        live.set_filter(&words(&self.plan, number, interface.as_ref())).map_err(failed)?;
        if self.again.is_some()
            && let Some(fd) = live.fd()
        {
            // At worst frames of a bridge come twice.
            let _ = setsockopt(&fd, sockopt::ReceiveTimestampns, &true);
        }
        // `any` has no length of its own, and nothing is too long for it.
        Ok(Open { live, link, mtu: mtu(&self.name).unwrap_or(u32::MAX), told: 0 })
    }

    /// Hands over one frame; false when none waits.
    fn take(&mut self, until_ns: u64, sink: &mut dyn FnMut(&Frame<'_>)) -> bool {
        let Some(Open { live, link, mtu, .. }) = &mut self.open else { return false };
        match live.read() {
            Ok(None) => false,
            Ok(Some(read)) if read.time_ns > until_ns => false,
            Ok(Some(read)) => {
                if let Some(mut frame) = Frame::behind(*link, read.bytes, read.wire_len, read.time_ns, *mtu) {
                    let again = &mut self.again;
                    frame.again =
                        again.as_mut().is_some_and(|again| again.is(frame.time_ns, 0, frame.packet));
                    sink(&frame);
                }
                true
            }
            Err(error) => {
                tracing::warn!("{error}; it is opened again as soon as that is possible");
                self.dropped += self.take_dropped();
                self.open = None;
                false
            }
        }
    }

    fn take_dropped(&mut self) -> u64 {
        let mut dropped = std::mem::take(&mut self.dropped);
        if let Some(open) = &mut self.open
            && let Ok(stats) = open.live.stats()
        {
            dropped += u64::from(stats.dropped.wrapping_sub(open.told));
            open.told = stats.dropped;
        }
        dropped
    }
}

/// Our mappings and the expression in libpcap's language, for frames of this link type. A second VLAN tag is in the frame's
/// bytes, and `vlan` shifts what is written behind it; chains of IPv6 extension headers all come up.
///
/// An expression about packets that begin at the IP header is the dispatcher's to decide once more, and frames with a second
/// tag go past it here, as in the ring's filter. One about the link layer is libpcap's alone.
fn words(plan: &Plan, link_type: i32, interface: Option<&Interface>) -> String {
    let ours = filter(plan, 0, Frames::All);
    let packet = directed(&ours, link_type, interface);
    let tagged = match link_type {
        link::ETHERNET => format!(" or (vlan and vlan and {packet})"),
        link::LINUX_SLL => {
            let host = if ours.promiscuous { "" } else { "link[0:2] = 0 and " };
            format!(" or ({host}(link[14:2] = 0x8100 or link[14:2] = 0x88a8))")
        }
        _ => String::new(),
    };
    let FilterPlan { expression, program, .. } = &plan.capture.filter;
    match expression {
        None => format!("{packet}{tagged}"),
        Some(expression) if program.is_empty() => format!("({expression}) and ({packet}{tagged})"),
        Some(expression) => format!("(({expression}) and {packet}){tagged}"),
    }
}

/// Requests that come in, and where a recording wants them the answers that go out. libpcap itself leaves out what goes out on
/// loopback, so there both directions come in, as they do from a mirror port.
fn directed(ours: &CaptureFilter, link_type: i32, interface: Option<&Interface>) -> String {
    let requests = packet(ours, "dst", "src");
    // Frames to other hosts that a bridge or a switch floods here are nobody's request to this host.
    let host = match (link_type, ours.promiscuous, interface.and_then(|interface| interface.mac)) {
        (link::ETHERNET, false, Some([a, b, c, d, e, f])) => {
            format!("ether dst {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} and ")
        }
        (link::LINUX_SLL, false, _) => "link[0:2] = 0 and ".to_owned(),
        (link::LINUX_SLL2, false, _) => "link[10] = 0 and ".to_owned(),
        _ => String::new(),
    };
    if !ours.answers {
        return format!("({host}{requests})");
    }
    let answers = packet(ours, "src", "dst");
    if ours.promiscuous || interface.is_some_and(|interface| interface.loopback) {
        return format!("({host}({requests} or {answers}))");
    }
    let (goes_out, loopback) = match link_type {
        link::LINUX_SLL => ("link[0:2] = 4", Some("link[2:2] = 772")),
        link::LINUX_SLL2 => ("link[10] = 4", Some("link[8:2] = 772")),
        _ => ("outbound", None),
    };
    let comes_in = if host.is_empty() { "inbound and " } else { &host };
    let local = loopback.map_or_else(String::new, |is_it| format!(" or ({host}{is_it} and {answers})"));
    format!("(({comes_in}{requests}) or ({goes_out} and {answers}){local})")
}

/// Packets of the mappings in one direction, and a little more: `service` and `client` say on which side each stands.
fn packet(ours: &CaptureFilter, service: &str, client: &str) -> String {
    let protocols = [("tcp", &ours.online, &ours.targets), ("udp", &ours.udp.online, &ours.udp.targets)];
    let exact =
        protocols.iter().map(|(_, online, targets)| online.len() + targets.len()).sum::<usize>() <= MAX_TERMS;
    let mut terms = std::collections::BTreeSet::new();
    for (protocol, online, targets) in protocols {
        for &(ip, port) in online {
            let to_port = format!("{protocol} {service} port {port}");
            let own = targets.iter().filter(|target| target.port() == port);
            terms.insert(match ip {
                _ if !exact => to_port,
                Some(ip) => format!("({service} host {ip} and {to_port})"),
                None => {
                    let not: String =
                        own.map(|target| format!(" and not {service} host {}", target.ip())).collect();
                    format!("({to_port}{not})")
                }
            });
        }
    }
    if !ours.udp.online.is_empty() {
        // Fragments but the first have no ports.
        terms.insert("(ip proto 17 and ip[6:2] & 0x1fff != 0)".to_owned());
    }
    let nets = |side: &str, ranges: &[Range]| {
        let words: Vec<String> = ranges.iter().map(|range| format!("{side} net {range}")).collect();
        words.join(" or ")
    };
    let terms: Vec<String> = terms.into_iter().collect();
    let extensions = [0, 43, 44, 51, 60].map(|header| format!("ip6[6] = {header}")).join(" or ");
    let mut packet = format!("({} or (ip6 and ({extensions})))", terms.join(" or "));
    let outside: Vec<Range> = ours.clients.iter().chain(&ours.outside).copied().collect();
    if !outside.is_empty() {
        packet = format!("{packet} and not ({})", nets(client, &outside));
    }
    if ours.answers && !ours.clients.is_empty() {
        // A replayed client may have a service's port.
        packet = format!("{packet} and not ({})", nets(service, &ours.clients));
    }
    if !ours.inside.is_empty() {
        packet = format!("{packet} and ({})", nets(client, &ours.inside));
    }
    format!("({packet})")
}
