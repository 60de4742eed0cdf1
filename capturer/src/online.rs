//! Which mapping a packet belongs to, exactly. The kernel filter asks the same of every frame and may let a little more through.

use std::net::SocketAddr;

use flow::{Addr, Endpoint, Range};
use topology::Plan;
use topology::plan::{Clients, Mapping, Protocol};

use crate::filter::{CaptureFilter, Frames, Services};

/// What a packet is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A client's, to the online service of this mapping.
    Mapping(u16),
    /// One that the injector sent.
    Own,
    /// Nothing of ours.
    Other,
}

/// The online services, and how to tell our own packets.
#[derive(Clone, Debug)]
pub struct Online {
    /// Sorted by port; at each port those with an address first.
    services: Vec<Service>,
    clients: Vec<Range>,
    targets: Vec<Endpoint>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Service {
    port: u16,
    any: bool,
    addr: Addr,
    mapping: u16,
}

impl Online {
    /// The plan's services of one protocol.
    pub fn new(plan: &Plan, protocol: Protocol) -> Self {
        let mut services: Vec<Service> = plan
            .mappings
            .iter()
            .zip(0..)
            .filter(|(mapping, _)| mapping.protocol == protocol)
            .map(|(mapping, index)| Service {
                port: mapping.online_port,
                any: mapping.online_ip.is_none(),
                addr: mapping.online_ip.map_or(flow::record::ANY, Addr::from),
                mapping: index,
            })
            .collect();
        services.sort_unstable();
        let targets = targets(plan, protocol).map(Endpoint::from).collect();
        Self { services, clients: client_ranges(plan), targets }
    }

    /// What a packet from `src` to `dst` is. The first mapping with the very address wins, then the first without one.
    pub fn meaning(&self, src: &Endpoint, dst: &Endpoint) -> Meaning {
        let from = self.services.partition_point(|service| service.port < dst.port);
        let found = self.services[from..]
            .iter()
            .take_while(|service| service.port == dst.port)
            .find(|service| service.any || service.addr == dst.addr);
        match found {
            None => Meaning::Other,
            Some(_) if self.clients.iter().any(|range| range.contains(src.addr)) => Meaning::Own,
            Some(service) if service.any && self.targets.contains(dst) => Meaning::Own,
            Some(service) => Meaning::Mapping(service.mapping),
        }
    }
}

/// The same as a kernel filter.
pub(crate) fn filter(plan: &Plan, link_header: u32, frames: Frames) -> CaptureFilter {
    let services = |protocol| {
        let online = |mapping: &Mapping| (mapping.online_ip, mapping.online_port);
        let mapped = plan.mappings.iter().filter(|mapping| mapping.protocol == protocol);
        Services { online: mapped.map(online).collect(), targets: targets(plan, protocol).collect() }
    };
    let tcp = services(Protocol::Tcp);
    CaptureFilter {
        online: tcp.online,
        clients: client_ranges(plan),
        targets: tcp.targets,
        udp: services(Protocol::Udp),
        promiscuous: plan.capture.promiscuous,
        link_header,
        frames,
    }
}

fn targets(plan: &Plan, protocol: Protocol) -> impl Iterator<Item = SocketAddr> + '_ {
    let of_it = plan.targets.iter().filter(move |target| target.protocol == protocol);
    of_it.map(|target| target.addr)
}

fn client_ranges(plan: &Plan) -> Vec<Range> {
    match &plan.clients {
        Clients::Pool { v4, v6, .. } => v4.iter().chain(v6).copied().collect(),
        Clients::Keep => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::plan;

    fn meaning(plan: &Plan, src: &str, dst: &str) -> Meaning {
        let parse = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
        Online::new(plan, Protocol::Tcp).meaning(&parse(src), &parse(dst))
    }

    #[test]
    fn the_very_address_wins_over_any() {
        let plan = plan(&["80-10.0.3.2:8080", "10.0.0.9:80-10.0.3.3:80", "[fd00::9]:6379-10.0.3.3:80"]);
        assert_eq!(meaning(&plan, "10.0.0.1:5", "10.0.0.9:80"), Meaning::Mapping(1));
        assert_eq!(meaning(&plan, "10.0.0.1:5", "10.0.0.8:80"), Meaning::Mapping(0));
        assert_eq!(meaning(&plan, "[fd00::1]:5", "[fd00::9]:6379"), Meaning::Mapping(2));
        assert_eq!(meaning(&plan, "[fd00::1]:5", "[fd00::8]:6379"), Meaning::Other);
        assert_eq!(meaning(&plan, "10.0.0.9:80", "10.0.0.1:5"), Meaning::Other);
    }

    #[test]
    fn our_own_packets_are_known() {
        let plan = plan(&["80-10.0.3.2:80"]);
        assert_eq!(meaning(&plan, "198.18.3.3:5", "10.0.0.9:80"), Meaning::Own);
        assert_eq!(meaning(&plan, "10.0.0.1:5", "10.0.3.2:80"), Meaning::Own);
        assert_eq!(meaning(&plan, "10.0.0.1:5", "10.0.3.1:80"), Meaning::Mapping(0));
    }
}
