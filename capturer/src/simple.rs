//! The simple source: `pnet_datalink`, one system call a frame and 1.4–1.6 µs of it (measured), against 0.04–0.23 for the ring. For
//! hosts where the ring does not work, and to tell the ring's faults from the network's.
//!
//! Its channel hides who a frame was addressed to, cuts at 4 KiB and is promiscuous by default. It is therefore given a socket of
//! ours whose filter has decided that already (on loopback each frame would come twice), and a buffer that no frame fills.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, IntoRawFd as _, OwnedFd};
use std::time::Duration;

use pnet_datalink::{Channel, Config, DataLinkReceiver, NetworkInterface};
use topology::Plan;
use trace::link::kind;

use crate::error::RoleError;
use crate::open::{CaptureSocket, ETHERNET_HEADER, link_header};
use crate::role::realtime_ns;
use crate::source::{Frame, Links, Source};
use crate::sys::{Bound, PacketSocket, mtu};

/// Above the longest super-frame (BIG TCP: 512 KiB), so that nothing is cut without notice.
const READ_BUFFER_BYTES: usize = 640 * 1024;

/// The simple source.
pub struct Simple {
    interfaces: Vec<Interface>,
    turn: usize,
    downs: u64,
}

struct Interface {
    name: String,
    receiver: Box<dyn DataLinkReceiver>,
    /// The same socket, for what the channel does not offer.
    socket: PacketSocket,
    /// What frames begin with.
    link: u16,
    /// Packets longer than this were several.
    mtu: u32,
    down: bool,
    gone: bool,
}

impl Simple {
    /// Opens channels over sockets made by [`crate::open`] for the same plan.
    pub fn new(plan: &Plan, sockets: Vec<CaptureSocket>) -> Result<Self, RoleError> {
        let known = pnet_datalink::interfaces();
        let mut interfaces = vec![];
        for socket in sockets {
            let socket = PacketSocket::from(socket);
            let failed =
                |interface: &str, source| RoleError::Simple { interface: interface.to_owned(), source };
            let index = match socket.bound() {
                Ok(Bound::Interface(index)) => index,
                // Removed before this role began.
                Ok(Bound::Any | Bound::Gone) => continue,
                Err(source) => return Err(failed("an interface", source)),
            };
            let Some(interface) = known.iter().find(|interface| interface.index == index) else { continue };
            let name = interface.name.clone();
            interfaces.push(
                open_channel(interface, socket, plan.capture.promiscuous)
                    .map_err(|source| failed(&name, source))?,
            );
        }
        Ok(Self { interfaces, turn: 0, downs: 0 })
    }
}

fn open_channel(
    interface: &NetworkInterface,
    socket: PacketSocket,
    promiscuous: bool,
) -> io::Result<Interface> {
    let kept = socket.duplicate()?;
    let config = Config {
        read_buffer_size: READ_BUFFER_BYTES,
        // This role never sends; the channel insists on a buffer.
        write_buffer_size: 0,
        read_timeout: Some(Duration::ZERO),
        promiscuous,
        // Closed by the channel.
        socket_fd: Some(OwnedFd::from(socket).into_raw_fd()),
        ..Config::default()
    };
    let Channel::Ethernet(_, receiver) = pnet_datalink::channel(interface, config)? else {
        return Err(io::Error::other("the engine knows no Ethernet channel here"));
    };
    Ok(Interface {
        name: interface.name.clone(),
        receiver,
        socket: kept,
        mtu: mtu(&interface.name)?,
        link: if link_header(&interface.name)? == ETHERNET_HEADER { kind::ETHERNET } else { kind::RAW },
        down: false,
        gone: false,
    })
}

impl Source for Simple {
    fn drain(&mut self, max: u32, sink: &mut dyn FnMut(&Frame<'_>)) -> u32 {
        let count = self.interfaces.len();
        let mut taken = 0;
        for i in 0..count {
            let interface = &mut self.interfaces[(self.turn + i) % count];
            while taken < max && interface.take(sink) {
                taken += 1;
            }
        }
        self.turn = (self.turn + 1) % count.max(1);
        taken
    }

    fn release(&mut self) {}

    fn positions(&self, _note: &mut dyn FnMut(u16, u64)) {}

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.interfaces.iter().map(|interface| interface.socket.as_fd()).collect()
    }

    fn take_dropped(&mut self) -> u64 {
        self.interfaces
            .iter()
            .filter_map(|interface| interface.socket.statistics().ok())
            .map(|(_, n)| u64::from(n))
            .sum()
    }

    fn attend(&mut self) -> Links {
        for interface in &mut self.interfaces {
            let name = &interface.name;
            let failed = !matches!(interface.socket.take_error(), Ok(None));
            let gone = matches!(interface.socket.bound(), Ok(Bound::Gone));
            let up = crate::interfaces::find(name).is_some_and(|interface| interface.up);
            let down = gone || failed || (interface.down && !up);
            if gone && !interface.gone {
                tracing::warn!(
                    "{name} is gone; capturing goes on elsewhere. Start again to capture on a new {name}"
                );
            } else if down && !interface.down {
                tracing::warn!("{name} is down; nothing is captured on it until it is up");
            } else if interface.down && !down {
                tracing::info!("{name} is up again; capturing goes on");
            }
            self.downs += u64::from(down && !interface.down);
            (interface.down, interface.gone) = (down, gone);
        }
        let count = |is: fn(&Interface) -> bool| self.interfaces.iter().filter(|i| is(i)).count() as u64;
        Links { downs: self.downs, down: count(|i| i.down && !i.gone), gone: count(|i| i.gone) }
    }

    fn relocate(&mut self) {}

    fn close(&mut self) {
        for interface in &self.interfaces {
            if let Err(error) = interface.socket.close() {
                tracing::warn!("closing the capture socket of {} failed: {error}", interface.name);
            }
        }
    }

    fn reopen(&mut self) {
        for interface in &self.interfaces {
            if let Err(error) = interface.socket.reopen() {
                tracing::warn!("opening the capture socket of {} again failed: {error}", interface.name);
            }
        }
    }
}

impl Interface {
    /// Hands over one frame; false when none waits.
    fn take(&mut self, sink: &mut dyn FnMut(&Frame<'_>)) -> bool {
        // No frame (a time-out) and a pending error end the batch alike; the error is taken by `attend`.
        let Ok(bytes) = self.receiver.next() else { return false };
        let len = bytes.len() as u32;
        if let Some(frame) = Frame::behind(self.link, bytes, len, realtime_ns(), self.mtu) {
            sink(&frame);
        }
        true
    }
}
