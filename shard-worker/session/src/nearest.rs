//! How near each client is at least: the shortest handshake seen from its address to a service, in a small table that
//! forgets. One handshake is no measure of a distance: the first one after a pause took 300 µs where the next ones took 10.
//!
//! Private memory: after a restart a client counts as being as far as its connection's own handshake says, until it opens
//! another one.

use flow::Endpoint;
use flow::hash::flow_hash;

/// Entries of one set; a new client takes the place of the oldest.
const WAYS: usize = 4;
/// Sets: 64 KiB in all, for 8,192 clients.
const SETS: usize = 2_048;
/// Keeps these hashes apart from those of flows.
const NEAREST: u64 = 0x6e65_6172_6573_7421;

#[derive(Clone, Copy, Default)]
struct Entry {
    /// High half of the hash of client address and service; 0 is empty.
    tag: u32,
    rtt_us: u32,
}

/// The table.
pub(crate) struct Nearest {
    seed: u64,
    sets: Box<[[Entry; WAYS]]>,
}

impl Nearest {
    /// Empty; `seed` is that of the hash tables.
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed: seed ^ NEAREST, sets: vec![[Entry::default(); WAYS]; SETS].into_boxed_slice() }
    }

    /// Set and tag of a client; its port says nothing about its distance.
    fn place(&self, client: &Endpoint, server: &Endpoint) -> (usize, u32) {
        let hash = flow_hash(self.seed, &Endpoint::new(client.addr, 0), server);
        (hash as usize % SETS, ((hash >> 32) as u32).max(1))
    }

    /// Notes the round trip of one handshake.
    pub(crate) fn note(&mut self, client: &Endpoint, server: &Endpoint, rtt_us: u32) {
        let (set, tag) = self.place(client, server);
        let set = &mut self.sets[set];
        match set.iter_mut().find(|entry| entry.tag == tag) {
            Some(entry) => entry.rtt_us = entry.rtt_us.min(rtt_us),
            None => {
                set.rotate_right(1);
                set[0] = Entry { tag, rtt_us };
            }
        }
    }

    /// The shortest round trip known; `None` when there is none.
    pub(crate) fn rtt_us(&self, client: &Endpoint, server: &Endpoint) -> Option<u32> {
        let (set, tag) = self.place(client, server);
        self.sets[set].iter().find(|entry| entry.tag == tag).map(|entry| entry.rtt_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<std::net::SocketAddr>().unwrap().into()
    }

    #[test]
    fn the_shortest_handshake_of_an_address_counts_for_all_its_ports() {
        let (mut nearest, server) = (Nearest::new(1), endpoint("10.0.1.1:80"));
        nearest.note(&endpoint("10.9.0.1:1"), &server, 300);
        nearest.note(&endpoint("10.9.0.1:2"), &server, 10);
        nearest.note(&endpoint("10.9.0.1:3"), &server, 25_000);
        nearest.note(&endpoint("10.9.0.2:1"), &server, 20_000);
        assert_eq!(nearest.rtt_us(&endpoint("10.9.0.1:9"), &server), Some(10));
        assert_eq!(nearest.rtt_us(&endpoint("10.9.0.2:9"), &server), Some(20_000));
        assert_eq!(nearest.rtt_us(&endpoint("10.9.0.1:1"), &endpoint("10.0.1.1:443")), None);
    }

    #[test]
    fn too_many_clients_are_forgotten_not_kept() {
        let (mut nearest, server) = (Nearest::new(1), endpoint("10.0.1.1:80"));
        let clients: Vec<Endpoint> =
            (0..60_000u32).map(|i| endpoint(&format!("10.{}.{}.1:1", i >> 8, i & 255))).collect();
        clients.iter().for_each(|client| nearest.note(client, &server, 5));
        let known = clients.iter().filter(|client| nearest.rtt_us(client, &server).is_some()).count();
        assert_eq!(known, SETS * WAYS, "as many as there is room for");
        assert_eq!(nearest.rtt_us(clients.last().unwrap(), &server), Some(5), "the newest is among them");
    }
}
