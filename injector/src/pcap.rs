//! Frames sent through libpcap, for devices that a packet socket of ours cannot serve: one call a frame, the payload copied
//! behind its headers. The library's handles live and die with the role: nothing can outlive it here but the raw sockets that
//! stand in meanwhile.

use std::io;

use flow::Endpoint;
use flow::TcpFields;
use flow::emit::{MAX_HEADERS, emit};
use libpcap::{Direction, Live, Options};

use crate::sys;
use crate::way::{ETHERNET, Way};

/// The devices in use.
pub(crate) struct Pcap {
    devices: Vec<(u32, Live)>,
    frame: Box<[u8]>,
}

/// Longest frame: a link-layer header and what an IP packet's length field holds.
const MAX_FRAME: usize = ETHERNET + 65_535;
/// Nothing that arrives is wanted: as few bytes of it as the library takes.
const BUFFER_BYTES: u64 = 64 << 10;
/// A filter that no frame of any link type passes: nothing is copied for us.
const NOTHING: &str = "less 1";

impl Pcap {
    /// No device yet.
    pub(crate) fn new() -> Self {
        Self { devices: Vec::new(), frame: vec![0; MAX_FRAME].into() }
    }

    /// Whether frames can be sent on a device; opens it when it is not.
    pub(crate) fn is_ready(&mut self, device: u32) -> bool {
        if self.devices.iter().any(|(index, _)| *index == device) {
            return true;
        }
        let Some(name) = sys::device_name(device) else { return false };
        let options = Options {
            snaplen: 64,
            promiscuous: false,
            buffer_bytes: Some(BUFFER_BYTES),
            direction: Direction::In,
        };
        let open = || -> Result<Live, libpcap::Error> {
            let mut live = Live::open(&name, options)?;
            live.set_filter(NOTHING)?;
            Ok(live)
        };
        match open() {
            Ok(live) => {
                self.devices.push((device, live));
                true
            }
            Err(error) => {
                tracing::warn!("{error}: what leaves by {name} is sent by raw IP");
                false
            }
        }
    }

    /// Sends one segment; how many bytes it had from the IP header on.
    pub(crate) fn send(
        &mut self,
        way: &Way,
        client: Endpoint,
        target: Endpoint,
        tcp: &TcpFields,
        payload: &[u8],
        ip_id: u16,
    ) -> io::Result<usize> {
        let device = self.devices.iter_mut().find(|(index, _)| *index == way.device);
        let (_, live) = device.ok_or(io::ErrorKind::NotFound)?;
        let link = way.head().len();
        self.frame[..link].copy_from_slice(way.head());
        let headers: &mut [u8; MAX_HEADERS] =
            (&mut self.frame[link..link + MAX_HEADERS]).try_into().expect("there is room for all headers");
        let len = emit(headers, client, target, tcp, &[payload], ip_id);
        let end = link + len + payload.len();
        let place =
            self.frame.get_mut(link + len..end).ok_or(io::Error::from_raw_os_error(libc::EMSGSIZE))?;
        place.copy_from_slice(payload);
        live.inject(&self.frame[..end]).map_err(|(error, _)| error)?;
        Ok(len + payload.len())
    }
}
