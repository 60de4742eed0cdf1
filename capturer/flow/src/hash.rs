//! Keyed hashes of endpoints and flows. Called once per captured and per returned packet.
//!
//! Stable: the same key and endpoint give the same number in every process, build and version, since a record's shard and a
//! flow's number of copies are decided in different processes. The golden vectors below keep it so.
//!
//! rapidhash v3 with secrets of its own per key: with the published secrets some inputs collide under every seed, and
//! clients choose their own ports and (in IPv6) half of their addresses.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};

use crate::Endpoint;

/// The hash of one endpoint. Shards are taken from its high bits ([`shard_of`]), so tables inside a shard use the low ones.
pub fn endpoint_hash(seed: u64, endpoint: &Endpoint) -> u64 {
    rapidhash_v3_inline::<true, false, false>(&bytes(endpoint), &secrets(seed))
}

/// The shard of an endpoint hash: multiply-shift, so every shard gets its share to within 2^-48. `shards` is at least 1.
pub const fn shard_of(hash: u64, shards: u16) -> u16 {
    scale(hash, shards as u32) as u16
}

/// The hash of a flow: client and server, in this order.
pub fn flow_hash(seed: u64, client: &Endpoint, server: &Endpoint) -> u64 {
    let mut both = [0; 36];
    both[..18].copy_from_slice(&bytes(client));
    both[18..].copy_from_slice(&bytes(server));
    rapidhash_v3_inline::<true, false, false>(&both, &secrets(seed))
}

/// A hash scaled to `0..bound`, every value equally likely to within `bound` / 2^64.
pub(crate) const fn scale(hash: u64, bound: u32) -> u32 {
    ((hash as u128 * bound as u128) >> 64) as u32
}

/// Spreads every input bit over all output bits (the finaliser of SplitMix64: a bijection).
pub(crate) const fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Address and port as on the wire, so that the hash does not depend on the machine's byte order.
fn bytes(endpoint: &Endpoint) -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&endpoint.addr.0);
    bytes[16..].copy_from_slice(&endpoint.port.to_be_bytes());
    bytes
}

/// The published secrets, each whitened with another rotation of the mixed key. `RapidSecrets::seed` would do, but runs eight
/// dependent wide multiplications per call; this is two, and the unused secrets cost nothing.
#[inline(always)]
const fn secrets(seed: u64) -> RapidSecrets {
    const PUBLISHED: RapidSecrets = RapidSecrets::seed_cpp(0);
    let key = mix(seed ^ 0x9e37_79b9_7f4a_7c15);
    let mut secrets = PUBLISHED.secrets;
    let mut i = 0;
    while i < secrets.len() {
        secrets[i] ^= key.rotate_left(9 * i as u32 + 5);
        i += 1;
    }
    RapidSecrets { seed: key, secrets }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Addr;

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<std::net::SocketAddr>().unwrap().into()
    }

    #[test]
    fn golden_vectors() {
        let (a, b) = (endpoint("10.0.0.1:40001"), endpoint("[2001:2::1]:443"));
        let seen = [
            endpoint_hash(0, &a),
            endpoint_hash(1, &a),
            endpoint_hash(0, &b),
            endpoint_hash(u64::MAX, &b),
            flow_hash(0, &a, &b),
            flow_hash(7, &b, &a),
        ];
        let golden: [u64; 6] = [
            0xa7e5_6838_4e1d_b4b6,
            0x7f20_0f01_90ce_cb82,
            0x03e5_932d_780b_161a,
            0x2631_84a2_82f3_8b0d,
            0x04fd_e76f_8a1e_0f35,
            0xcb88_b678_da3d_8050,
        ];
        assert_eq!(seen, golden, "{seen:#018x?}");
    }

    /// 32 keys, real-looking clients (consecutive addresses and ports): chi-square of the shares of the shards.
    #[test]
    fn shards_get_equal_shares() {
        for shards in [2u16, 3, 7, 8, 64] {
            for seed in 0..8 {
                let mut seen = vec![0u32; usize::from(shards)];
                let n = 64_000;
                for i in 0..n {
                    let addr = Addr::v4([198, 18, (i >> 12) as u8, (i >> 4) as u8]);
                    let client = Endpoint::new(addr, 32_768 + (i % 16) as u16);
                    seen[usize::from(shard_of(endpoint_hash(seed, &client), shards))] += 1;
                }
                let want = f64::from(n) / f64::from(shards);
                let chi2: f64 = seen.iter().map(|&got| (f64::from(got) - want).powi(2) / want).sum();
                let freedom = f64::from(shards - 1);
                // Wilson-Hilferty: beyond five standard deviations a fair hash does not come in 40 tries.
                let z = ((chi2 / freedom).cbrt() - (1.0 - 2.0 / (9.0 * freedom)))
                    / (2.0 / (9.0 * freedom)).sqrt();
                assert!(
                    z < 5.0,
                    "shards {shards} seed {seed}: chi-square {chi2:.1} over {freedom} ({seen:?})"
                );
            }
        }
    }

    #[test]
    fn every_shard_number_is_in_range() {
        assert_eq!(shard_of(0, 1), 0);
        assert_eq!(shard_of(u64::MAX, 1), 0);
        assert_eq!(shard_of(u64::MAX, 5), 4);
        assert_eq!(shard_of(u64::MAX, u16::MAX), u16::MAX - 1);
    }

    #[test]
    fn inputs_that_collide_under_every_seed_of_the_published_secrets_do_not_here() {
        let published = RapidSecrets::seed_cpp(0).secrets[2].to_le_bytes();
        let crafted = |tail: u8| {
            let mut addr = [0; 16];
            addr[..8].copy_from_slice(&published);
            addr[8] = tail;
            Endpoint::new(Addr(addr), 80)
        };
        assert_ne!(endpoint_hash(3, &crafted(1)), endpoint_hash(3, &crafted(2)));
    }
}
