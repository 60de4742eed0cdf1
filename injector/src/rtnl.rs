//! Questions to the kernel about routes, devices and neighbours (rtnetlink(7)), one at a time, each with its answer; and the
//! news that it spreads about them. Its other parts are asked, and heard, in the same way.

use std::io;

use netlink_packet_core::{
    NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// A socket for questions. Nothing leaves the host.
pub(crate) struct Rtnl(Socket);

impl Rtnl {
    /// In the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        connected(NETLINK_ROUTE).map(Self)
    }

    /// See [`ask`].
    pub(crate) fn ask(
        &self,
        question: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Result<Option<RouteNetlinkMessage>, io::Error>> {
        ask(&self.0, question, flags)
    }
}

/// A socket for questions to this part of the kernel, in the network namespace of the calling thread.
pub(crate) fn connected(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Asks, and takes the one answer. The outer error is ours (no netlink), the inner one the kernel's word.
pub(crate) fn ask<Q: NetlinkSerializable, A: NetlinkDeserializable>(
    socket: &Socket,
    question: Q,
    flags: u16,
) -> io::Result<Result<Option<A>, io::Error>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (reply, _) = socket.recv_from_full()?;
    let nonsense = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let reply = NetlinkMessage::<A>::deserialize(&reply)
        .map_err(|e| nonsense(format!("the answer makes no sense: {e}")))?;
    match reply.payload {
        NetlinkPayload::InnerMessage(message) => Ok(Ok(Some(message))),
        NetlinkPayload::Error(e) if e.code.is_none() => Ok(Ok(None)),
        NetlinkPayload::Error(e) => Ok(Err(e.to_io())),
        _ => Err(nonsense("an unexpected answer".to_owned())),
    }
}

/// Groups of news (linux/rtnetlink.h): devices, neighbours, routes and rules of both families, next hops.
pub(crate) const LINKS: u32 = 1;
pub(crate) const NEIGHBOURS: u32 = 3;
pub(crate) const ROUTES: [u32; 5] = [7, 8, 11, 19, 32];

/// A socket that becomes readable with each change in these groups. Never blocks.
pub(crate) fn news(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    Ok(socket)
}

/// Takes everything that waits. Whether it was anything, though some of it may have been lost.
pub(crate) fn hear(socket: &Socket, buffer: &mut Vec<u8>) -> bool {
    let mut heard = false;
    loop {
        buffer.clear();
        match socket.recv(buffer, 0) {
            Ok(_) => heard = true,
            // More came than the socket holds.
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => heard = true,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return heard,
        }
    }
}
