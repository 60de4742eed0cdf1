//! Headers from a memory-mapped packet ring. The kernel filter keeps only what comes from the targets and cuts it behind
//! its headers, so slots are small and the ring stays in the cache.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use capturer::filter::ReturnFilter;
use capturer::packet_ring::{Hearing, PacketRing, RingSpec, Start, open_socket};
use nix::net::if_::if_nametoindex;
use tracing::info;

use crate::source::{Frame, Source};

/// Answers arriving on one interface, or on all.
pub(crate) struct RingSource {
    ring: PacketRing,
    /// `None`: all interfaces.
    interface: Option<String>,
}

/// Bytes of a slot: the kernel's own header and 176 bytes of packet, more than the longest headers of an ICMPv6 error.
const SLOT_BYTES: u32 = 256;

impl RingSource {
    /// Opens the capture of answers of `targets`, and of `datagrams`, on an interface, or on all.
    ///
    /// # Errors
    /// A sentence: no such interface, not allowed, too little memory.
    pub(crate) fn open(
        targets: &[SocketAddr],
        datagrams: &[SocketAddr],
        interface: Option<&str>,
        bytes: usize,
    ) -> Result<Self, String> {
        let place = interface.unwrap_or("all interfaces");
        let index = match interface {
            None => 0,
            Some(name) => if_nametoindex(name).map_err(|_| {
                format!("-i {name}: this host has no interface of that name. `ip link` shows them")
            })?,
        };
        let filter = ReturnFilter {
            targets: targets.to_vec(),
            datagrams: datagrams.to_vec(),
            clients: Vec::new(),
            payload: 0,
            promiscuous: false,
            link_header: 0,
        };
        let spec = RingSpec::with_slots(SLOT_BYTES, bytes as u64);
        let open = || {
            let socket = open_socket(&spec, &filter.program(), index, Hearing::default())?;
            PacketRing::map(socket, spec, Start::Fresh)
        };
        let ring = open().map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => format!(
                "opening a packet socket on {place} needs CAP_NET_RAW. Run with sudo, or once: \
                 sudo setcap cap_net_raw,cap_net_admin+ep {}",
                std::env::current_exe().map_or_else(|_| "tcptwin".to_owned(), |p| p.display().to_string())
            ),
            Some(libc::ENOMEM) => format!(
                "the capture ring of {bytes} bytes on {place} does not fit in the kernel's memory. Free memory, or ask for a smaller one"
            ),
            _ => format!("opening a packet socket on {place} failed: {error}"),
        })?;
        Ok(Self { ring, interface: interface.map(str::to_owned) })
    }

    /// An interface that was deleted and made again needs a new binding.
    fn bind_again(&mut self) {
        let Some(name) = &self.interface else { return };
        if self.ring.interface_gone()
            && let Ok(index) = if_nametoindex(name.as_str())
            && self.ring.socket().bind(index).is_ok()
        {
            info!("{name} is there again; answers are captured on it");
        }
    }
}

impl Source for RingSource {
    fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    fn drain(&mut self, budget: usize, each: &mut dyn FnMut(&Frame<'_>)) -> usize {
        let mut count = 0;
        while count < budget
            && let Some((meta, bytes)) = self.ring.peek()
        {
            each(&Frame { packet: bytes, wire_len: meta.len, time_ns: meta.time_ns, segment_size: 0 });
            self.ring.advance();
            count += 1;
        }
        self.ring.release();
        count
    }

    fn tend(&mut self) -> u64 {
        self.bind_again();
        self.ring.take_dropped().unwrap_or(0)
    }

    fn recover(&mut self) -> Option<io::Error> {
        self.ring.socket().take_error().ok().flatten()
    }

    fn name(&self) -> &str {
        self.interface.as_deref().unwrap_or("all interfaces")
    }
}
