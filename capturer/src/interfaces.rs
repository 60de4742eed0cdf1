//! The interfaces of this host, by `pnet_datalink`. Used for preflight, error messages and the simple engine.

use std::net::IpAddr;

/// An interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Set up by the administrator and (except for loopback) connected.
    pub up: bool,
    /// Its link address, where it has one.
    pub mac: Option<[u8; 6]>,
    /// The loopback interface.
    pub loopback: bool,
}

/// All of them, in the order of their indices.
pub fn interfaces() -> Vec<Interface> {
    let mut all: Vec<Interface> = pnet_datalink::interfaces()
        .into_iter()
        .map(|of| Interface {
            up: of.is_up() && (of.is_running() || of.is_loopback()),
            loopback: of.is_loopback(),
            addresses: of.ips.iter().map(|net| (net.ip(), net.prefix())).collect(),
            mac: of.mac.map(|mac| mac.octets()),
            index: of.index,
            name: of.name,
        })
        .collect();
    all.sort_by_key(|interface| interface.index);
    all
}

/// The interface of this name.
pub fn find(name: &str) -> Option<Interface> {
    interfaces().into_iter().find(|interface| interface.name == name)
}

/// The names of all interfaces, for a sentence.
pub(crate) fn names() -> String {
    interfaces().into_iter().map(|interface| interface.name).collect::<Vec<_>>().join(", ")
}
