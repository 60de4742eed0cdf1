//! How many times a flow is replayed. Pure and keyed, so that capturer and shard agree without speaking.

use crate::Endpoint;
use crate::hash::{flow_hash, mix, scale};

/// One whole in parts per million, and in thousandths.
const MILLION: u32 = 1_000_000;
const THOUSAND: u32 = 1_000;

/// The number of copies of a flow; 0 when it is sampled out.
///
/// `percent_ppm` of all flows are kept (1,000,000 is all), and each of those comes `copies_milli` / 1000 times: the whole part
/// always, and one more for a fraction of the flows (1,500 gives one copy of half of them and two of the other half). Both
/// decisions use bits of their own, and `isn` (the client's initial sequence number, 0 when the flow's SYN was not seen)
/// lets a four-tuple that comes back draw again.
pub fn copies(
    seed: u64,
    client: &Endpoint,
    server: &Endpoint,
    isn: u32,
    percent_ppm: u32,
    copies_milli: u32,
) -> u32 {
    let flow = drawn(seed, client, server, isn);
    if scale(flow, MILLION) >= percent_ppm {
        return 0;
    }
    let fraction = copies_milli % THOUSAND;
    let extra = scale(mix(flow ^ 0x9e37_79b9_7f4a_7c15), THOUSAND) < fraction;
    copies_milli / THOUSAND + u32::from(extra)
}

/// What [`copies`] compares with the share: a flow with a lower draw is kept longer when the share shrinks. Below 1,000,000.
pub fn draw(seed: u64, client: &Endpoint, server: &Endpoint, isn: u32) -> u32 {
    scale(drawn(seed, client, server, isn), MILLION)
}

fn drawn(seed: u64, client: &Endpoint, server: &Endpoint, isn: u32) -> u64 {
    mix(flow_hash(seed, client, server) ^ mix(u64::from(isn)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Addr;

    fn flows() -> impl Iterator<Item = (Endpoint, Endpoint)> {
        (0..40_000u32).map(|i| {
            let client = Endpoint::new(Addr::v4([10, 9, (i >> 8) as u8, i as u8]), 30_000 + (i >> 6) as u16);
            (client, Endpoint::new(Addr::v4([10, 0, 0, 1]), 80))
        })
    }

    fn total(percent_ppm: u32, copies_milli: u32) -> f64 {
        flows().map(|(c, s)| f64::from(copies(5, &c, &s, 9, percent_ppm, copies_milli))).sum()
    }

    #[test]
    fn whole_numbers_are_exact() {
        for n in [1, 2, 8, 1000] {
            assert!(flows().all(|(c, s)| copies(5, &c, &s, 0, MILLION, n * THOUSAND) == n));
        }
        assert!(flows().all(|(c, s)| copies(5, &c, &s, 0, 0, 8_000) == 0));
        assert!(flows().all(|(c, s)| copies(5, &c, &s, 0, MILLION, 0) == 0));
    }

    #[test]
    fn fractions_are_unbiased() {
        // 40,000 draws: the standard deviation of a share is at most 0.25 %, five of them are allowed.
        for (percent_ppm, copies_milli, want) in
            [(MILLION, 1_500, 1.5), (MILLION, 250, 0.25), (100_000, 1_000, 0.1), (500_000, 1_500, 0.75)]
        {
            let share = total(percent_ppm, copies_milli) / 40_000.0;
            assert!(
                (share - want).abs() < 0.0125 * f64::max(1.0, want),
                "{percent_ppm} {copies_milli}: {share}"
            );
        }
    }

    #[test]
    fn both_decisions_are_independent() {
        // Among the flows that a 50 % sample keeps, half of 1.5 copies still get two.
        let kept: Vec<u32> =
            flows().map(|(c, s)| copies(5, &c, &s, 1, 500_000, 1_500)).filter(|&n| n > 0).collect();
        let twice = kept.iter().filter(|&&n| n == 2).count() as f64 / kept.len() as f64;
        assert!((twice - 0.5).abs() < 0.02, "{twice}");
    }

    #[test]
    fn a_tuple_that_comes_back_draws_again() {
        let (c, s) = flows().next().unwrap();
        let kept = (0..10_000).filter(|&isn| copies(5, &c, &s, isn, 500_000, 1_000) > 0).count();
        assert!((4_700..5_300).contains(&kept), "{kept}");
    }

    #[test]
    fn a_flow_is_kept_by_every_share_above_its_draw() {
        for (c, s) in flows().take(2_000) {
            let draw = draw(5, &c, &s, 0);
            assert_eq!(copies(5, &c, &s, 0, draw, 1_000), 0);
            assert_eq!(copies(5, &c, &s, 0, draw + 1, 1_000), 1);
        }
    }

    #[test]
    fn a_larger_percentage_keeps_what_a_smaller_one_kept() {
        for (c, s) in flows().take(2_000) {
            let small = copies(5, &c, &s, 0, 200_000, 1_000);
            assert!(small == 0 || copies(5, &c, &s, 0, 300_000, 1_000) == 1);
        }
    }
}
