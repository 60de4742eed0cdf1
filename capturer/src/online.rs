//! Which mapping a packet belongs to, exactly. The kernel filter asks the same of every frame and may let a little more through.

use std::net::{IpAddr, SocketAddr};

use flow::{Addr, Endpoint, Range};
use topology::Plan;
use topology::plan::{Clients, FilterPlan, Mapping, Protocol};

use crate::expression;
use crate::filter::{ANY_LINK, CaptureFilter, Frames, Instruction, Services, behind_any_link, joined};

/// What a packet is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A client's, to the online service of this mapping.
    Mapping(u16),
    /// One that the injector sent.
    Own,
    /// A client's that `--net` or `--not-net` leaves out.
    LeftOut,
    /// Nothing of ours.
    Other,
}

/// The online services, and how to tell our own packets.
#[derive(Clone, Debug)]
pub struct Online {
    /// Sorted by port; at each port those with an address first.
    services: Vec<Service>,
    clients: Vec<Range>,
    inside: Vec<Range>,
    outside: Vec<Range>,
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
        let services = plan.mappings.iter().zip(0..).filter(|(mapping, _)| mapping.protocol == protocol);
        let services = services.map(|(mapping, index)| (mapping.online_ip, mapping.online_port, index));
        let targets = targets(plan, protocol).map(Endpoint::from).collect();
        Self::of(services, targets, client_ranges(plan)).narrowed(&plan.capture.filter)
    }

    /// From online services, each with the number of its mapping, the targets, and the ranges of replayed clients.
    pub fn of(
        services: impl Iterator<Item = (Option<IpAddr>, u16, u16)>,
        targets: Vec<Endpoint>,
        clients: Vec<Range>,
    ) -> Self {
        let mut services: Vec<Service> = services
            .map(|(ip, port, mapping)| Service {
                port,
                any: ip.is_none(),
                addr: ip.map_or(flow::record::ANY, Addr::from),
                mapping,
            })
            .collect();
        services.sort_unstable();
        Self { services, clients, inside: Vec::new(), outside: Vec::new(), targets }
    }

    /// Only the clients that `--net` and `--not-net` take.
    #[must_use]
    pub fn narrowed(mut self, filter: &FilterPlan) -> Self {
        self.inside.clone_from(&filter.inside);
        self.outside.clone_from(&filter.outside);
        self
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
            Some(_) if among(&self.clients, src.addr) => Meaning::Own,
            Some(service) if service.any && self.targets.contains(dst) => Meaning::Own,
            Some(_) if among(&self.outside, src.addr) => Meaning::LeftOut,
            Some(_) if !self.inside.is_empty() && !among(&self.inside, src.addr) => Meaning::LeftOut,
            Some(service) => Meaning::Mapping(service.mapping),
        }
    }

    /// The same of a packet that may be an answer: `Mapping` when it is one to a client's request of that mapping.
    pub fn answer(&self, src: &Endpoint, dst: &Endpoint) -> Meaning {
        match self.meaning(dst, src) {
            // A replayed client may have a service's port: what it sends to a target looks like an answer.
            Meaning::Mapping(_) if among(&self.clients, src.addr) || self.targets.contains(dst) => {
                Meaning::Own
            }
            other => other,
        }
    }
}

/// Whether an address lies in one of the ranges of its own family: `::/0` holds no IPv4 address.
pub(crate) fn among(ranges: &[Range], addr: Addr) -> bool {
    ranges.iter().any(|range| range.is_v4() == addr.is_v4() && range.contains(addr))
}

/// The same as a kernel filter, with the expression of `-F` in front where offsets count from the IP header.
pub(crate) fn program(plan: &Plan, link_header: u32, frames: Frames) -> Vec<Instruction> {
    let ours = filter(plan, link_header, frames).program();
    match link_header {
        0 => joined(&expression::planned(plan), ours),
        ANY_LINK => joined(&behind_any_link(&expression::planned(plan)), ours),
        _ => ours,
    }
}

/// The same as a kernel filter, without the expression.
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
        inside: plan.capture.filter.inside.clone(),
        outside: plan.capture.filter.outside.clone(),
        targets: tcp.targets,
        udp: services(Protocol::Udp),
        promiscuous: plan.capture.promiscuous,
        answers: plan.record.is_some(),
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
    fn clients_inside_and_outside_are_told_apart() {
        let mut plan = plan(&["80-10.0.3.2:80"]);
        plan.capture.filter.inside = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()];
        plan.capture.filter.outside = vec!["10.0.0.7/32".parse().unwrap(), "::/0".parse().unwrap()];
        assert_eq!(meaning(&plan, "10.0.0.1:5", "10.0.0.9:80"), Meaning::Mapping(0));
        assert_eq!(meaning(&plan, "10.0.0.7:5", "10.0.0.9:80"), Meaning::LeftOut);
        assert_eq!(meaning(&plan, "11.0.0.1:5", "10.0.0.9:80"), Meaning::LeftOut);
        assert_eq!(meaning(&plan, "[fd00::1]:5", "[fd00::9]:80"), Meaning::LeftOut);
        assert_eq!(meaning(&plan, "11.0.0.1:5", "10.0.0.9:81"), Meaning::Other);
    }

    #[test]
    fn answers_are_told_from_our_own_packets() {
        let plan = plan(&["80-10.0.3.2:80"]);
        let parse = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
        let answer =
            |src: &str, dst: &str| Online::new(&plan, Protocol::Tcp).answer(&parse(src), &parse(dst));
        assert_eq!(answer("10.0.0.9:80", "10.0.0.1:5"), Meaning::Mapping(0));
        assert_eq!(answer("10.0.0.9:81", "10.0.0.1:5"), Meaning::Other);
        assert_eq!(answer("10.0.0.9:80", "198.18.3.3:5"), Meaning::Own);
        assert_eq!(answer("198.18.3.3:80", "10.0.4.1:5"), Meaning::Own, "a replayed client's");
        assert_eq!(answer("10.0.0.1:80", "10.0.3.2:80"), Meaning::Own, "to a target");
        assert_eq!(answer("10.0.3.2:80", "10.0.0.1:5"), Meaning::Own, "a target's");
    }

    #[test]
    fn our_own_packets_are_known() {
        let plan = plan(&["80-10.0.3.2:80"]);
        assert_eq!(meaning(&plan, "198.18.3.3:5", "10.0.0.9:80"), Meaning::Own);
        assert_eq!(meaning(&plan, "10.0.0.1:5", "10.0.3.2:80"), Meaning::Own);
        assert_eq!(meaning(&plan, "10.0.0.1:5", "10.0.3.1:80"), Meaning::Mapping(0));
    }
}
