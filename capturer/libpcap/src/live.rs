//! A device: frames read without waiting, frames sent.

use std::os::fd::BorrowedFd;

use crate::error::Error;
use crate::sys;

/// How a device is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of each frame that are kept, at most [`crate::MAX_SNAPLEN`].
    pub snaplen: i32,
    /// Ask the device for frames of others too.
    pub promiscuous: bool,
    /// Bytes of the kernel's buffer; `None` for the library's own choice.
    pub buffer_bytes: Option<u64>,
    /// Which frames by their direction.
    pub direction: Direction,
}

/// Which frames by their direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Those that arrive.
    In,
    /// All.
    Both,
}

/// A frame as it was read.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The captured bytes, from the link header on.
    pub bytes: &'a [u8],
    /// Its length on the wire.
    pub wire_len: u32,
    /// When it was seen, CLOCK_REALTIME nanoseconds.
    pub time_ns: u64,
}

/// What the kernel counted since the device was opened; 32 bits that wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames that passed the filter.
    pub received: u32,
    /// Frames for which there was no room.
    pub dropped: u32,
    /// Frames that the device itself dropped, where it tells.
    pub device_dropped: u32,
}

/// An open device; closed when dropped.
#[derive(Debug)]
pub struct Live {
    handle: sys::Handle,
    device: String,
    link_type: i32,
    /// Nanoseconds in a unit of the sub-second part of time stamps.
    unit_ns: u64,
    /// What the library remarked although it opened the device.
    remark: Option<String>,
}

impl Live {
    /// Opens a device for frames without delay ("immediate mode"), non-blocking, with time stamps in nanoseconds where the
    /// library has them.
    ///
    /// # Errors
    /// The library is absent, the device does not exist or may not be opened.
    pub fn open(device: &str, options: Options) -> Result<Self, Error> {
        let opened = sys::Handle::live(device, options)?;
        let link_type = opened.handle.link_type();
        let unit_ns = if opened.handle.has_nanoseconds() { 1 } else { 1_000 };
        Ok(Self {
            handle: opened.handle,
            device: device.to_owned(),
            link_type,
            unit_ns,
            remark: opened.remark,
        })
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// What its frames begin with ([`crate::link`]).
    pub const fn link_type(&self) -> i32 {
        self.link_type
    }

    /// The library's name of that link type.
    pub fn link_name(&self) -> String {
        sys::link_name(self.link_type)
    }

    /// What the library remarked when it opened the device.
    pub fn remark(&self) -> Option<&str> {
        self.remark.as_deref()
    }

    /// Lets through only frames of this expression from now on, in the kernel where that is possible.
    ///
    /// # Errors
    /// The library does not take the expression, or the filter cannot be set.
    pub fn set_filter(&mut self, expression: &str) -> Result<(), Error> {
        self.handle.set_filter(expression, &self.device)
    }

    /// The next frame; `None` when none waits.
    ///
    /// # Errors
    /// The device went down or away.
    pub fn read(&mut self) -> Result<Option<Packet<'_>>, Error> {
        let Self { handle, device, unit_ns, .. } = self;
        let read =
            handle.next().map_err(|why| Error::Device { step: "read from", device: device.clone(), why })?;
        Ok(read.map(|raw| Packet {
            bytes: raw.bytes,
            wire_len: raw.wire_len,
            time_ns: raw
                .seconds
                .wrapping_mul(1_000_000_000)
                .wrapping_add(raw.fraction.wrapping_mul(*unit_ns)),
        }))
    }

    /// What to wait for, where the device can be waited for; readable when frames are there.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.handle.fd()
    }

    /// What the kernel counted.
    ///
    /// # Errors
    /// The device does not tell.
    pub fn stats(&mut self) -> Result<Stats, Error> {
        self.handle.stats().map_err(|why| self.failed("ask for the counters of", why))
    }

    /// Sends a frame, link header included; returns how many bytes went.
    ///
    /// # Errors
    /// The device refused it: what the kernel said, and that as a sentence.
    pub fn inject(&mut self, frame: &[u8]) -> Result<usize, (std::io::Error, Error)> {
        self.handle.inject(frame).map_err(|(error, why)| (error, self.failed("send through", why)))
    }

    fn failed(&self, step: &'static str, why: String) -> Error {
        Error::Device { step, device: self.device.clone(), why }
    }
}
