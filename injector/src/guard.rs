//! The sealed list: a target index becomes an address here and nowhere else. The list is copied from the plan at start,
//! so that nothing written into shared memory later can turn a packet elsewhere. What does not fit is counted and never
//! sent: an unknown target, a client of another family, a client outside the announced ranges (its answers would reach a
//! real host), payload without a segment size.

use std::net::SocketAddr;

use flow::{Endpoint, Inject, Range};
use topology::Plan;
use topology::plan::{Clients, Protocol};

use crate::count::Count;
use crate::path;
use crate::sys::Destination;

/// One allowed destination.
#[derive(Clone, Debug)]
pub struct Target {
    /// Address and port as they go into the headers.
    pub endpoint: Endpoint,
    /// MTU of the route to it, bytes.
    pub mtu: u16,
    /// Segments or datagrams: what is sent to it follows from this alone.
    pub protocol: Protocol,
    /// The same address in the kernel's form.
    pub(crate) to: Destination,
}

impl Target {
    fn new(addr: SocketAddr, mtu: u16) -> Self {
        Self { endpoint: addr.into(), mtu, protocol: Protocol::Tcp, to: Destination::new(addr) }
    }
}

/// A record that may be sent, and where to.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'p> {
    /// The record's head.
    pub head: Inject,
    /// Its payload, still in the ring.
    pub payload: &'p [u8],
    /// The target that its index stands for.
    pub target: &'p Target,
}

/// The sealed list and the clients that may be spoken for.
#[derive(Clone, Debug)]
pub struct Guard {
    targets: Vec<Target>,
    clients: Allowed,
}

#[derive(Clone, Debug)]
enum Allowed {
    /// Only endpoints of these ranges.
    Pool { v4: Option<Range>, v6: Option<Range> },
    /// The captured clients' own addresses.
    Any,
}

impl Guard {
    /// A private copy of what the plan allows.
    pub fn new(plan: &Plan) -> Self {
        let targets: Vec<_> = plan.targets.iter().map(|t| (t.addr, t.mtu)).collect();
        let mut guard = Self::of(&targets, &plan.clients);
        for (target, planned) in guard.targets.iter_mut().zip(&plan.targets) {
            target.protocol = planned.protocol;
        }
        guard
    }

    /// From targets of TCP, each with the MTU of its route, and the clients alone.
    pub fn of(targets: &[(SocketAddr, u16)], clients: &Clients) -> Self {
        let clients = match clients {
            Clients::Pool { v4, v6, .. } => Allowed::Pool { v4: *v4, v6: *v6 },
            Clients::Keep => Allowed::Any,
        };
        Self { targets: targets.iter().map(|&(addr, mtu)| Target::new(addr, mtu)).collect(), clients }
    }

    /// The record with its destination, or the counter of the reason why it must not leave.
    pub fn check<'p>(&'p self, bytes: &'p [u8]) -> Result<Outgoing<'p>, Count> {
        let (head, payload) = Inject::split(bytes).ok_or(Count::Malformed)?;
        let target = self.targets.get(usize::from(head.target)).ok_or(Count::UnknownTarget)?;
        let v4 = head.client.addr.is_v4();
        if v4 != target.endpoint.addr.is_v4() {
            return Err(Count::WrongFamily);
        }
        if let Allowed::Pool { v4: range4, v6: range6 } = &self.clients {
            let range = if v4 { range4 } else { range6 };
            if !range.is_some_and(|r| r.contains(head.client.addr)) {
                return Err(Count::ForeignClient);
            }
        }
        match target.protocol {
            Protocol::Tcp if head.mss == 0 && !payload.is_empty() => return Err(Count::ZeroMss),
            Protocol::Udp if payload.len() > flow::datagram::MAX_PAYLOAD => return Err(Count::LongDatagram),
            Protocol::Tcp | Protocol::Udp => {}
        }
        Ok(Outgoing { head, payload, target })
    }

    /// Asks the kernel again for the MTU of every route: a device or a router on the way takes less than it did when the run
    /// was planned (or more). A few system calls a target, so not for every packet that was too large.
    pub fn look_at_routes(&mut self) {
        for target in &mut self.targets {
            if let Some(mtu) = path::mtu_to(target.endpoint.to_socket_addr()) {
                target.mtu = mtu;
            }
        }
    }

    /// The address behind an index, for claims.
    pub fn target(&self, index: u16) -> Option<Endpoint> {
        self.targets.get(usize::from(index)).map(|t| t.endpoint)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;
    use crate::testing::{plan, record};

    fn refused(guard: &Guard, head: Inject, payload: &[u8]) -> Count {
        guard.check(&record(head, payload)).map(|_| ()).unwrap_err()
    }

    #[test]
    fn only_the_sealed_targets_are_reached() {
        let plan = plan(&["10.0.0.1:80", "[2001:db8::1]:80"]);
        let guard = Guard::new(&plan);
        let head =
            Inject { client: "198.18.0.9:1024".parse::<SocketAddr>().unwrap().into(), ..Inject::default() };
        let bytes = record(head, &[]);
        assert_eq!(guard.check(&bytes).unwrap().target.endpoint.to_string(), "10.0.0.1:80");
        assert_eq!(refused(&guard, Inject { target: 2, ..head }, &[]), Count::UnknownTarget);
        assert_eq!(refused(&guard, Inject { target: u16::MAX, ..head }, &[]), Count::UnknownTarget);
        assert_eq!(refused(&guard, Inject { target: 1, ..head }, &[]), Count::WrongFamily);
        assert_eq!(refused(&guard, head, b"x"), Count::ZeroMss);
    }

    #[test]
    fn what_a_target_gets_is_what_its_mapping_says() {
        let mut plan = plan(&["10.0.0.1:80", "10.0.0.1:80"]);
        plan.targets[1].protocol = Protocol::Udp;
        let guard = Guard::new(&plan);
        let client = "198.18.0.9:1024".parse::<SocketAddr>().unwrap().into();
        let datagram = Inject { client, target: 1, ..Inject::default() };
        let bytes = record(datagram, b"x");
        assert_eq!(guard.check(&bytes).unwrap().target.protocol, Protocol::Udp);
        assert_eq!(refused(&guard, datagram, &[0; 65_528]), Count::LongDatagram);
        assert_eq!(refused(&guard, Inject { target: 0, ..datagram }, b"x"), Count::ZeroMss);
    }

    #[test]
    fn a_client_outside_the_announced_range_is_never_spoken_for() {
        let guard = Guard::new(&plan(&["10.0.0.1:80"]));
        let real: Endpoint = "203.0.113.5:40000".parse::<SocketAddr>().unwrap().into();
        assert_eq!(refused(&guard, Inject { client: real, ..Inject::default() }, &[]), Count::ForeignClient);
        let keep = Guard::new(&Plan { clients: Clients::Keep, ..plan(&["10.0.0.1:80"]) });
        assert!(keep.check(&record(Inject { client: real, ..Inject::default() }, &[])).is_ok());
    }

    #[test]
    fn torn_records_are_counted() {
        let guard = Guard::new(&plan(&["10.0.0.1:80"]));
        assert_eq!(guard.check(&[0; 63]).map(|_| ()).unwrap_err(), Count::Malformed);
        let lying = Inject { payload_len: 1, ..Inject::default() };
        assert_eq!(guard.check(lying.as_bytes()).map(|_| ()).unwrap_err(), Count::Malformed);
    }
}
