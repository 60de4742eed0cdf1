//! The only source of chance: a seed decides everything that happens in a world.

/// SplitMix64: small, fast, and every seed is a good one.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// From a seed and the part of the world that rolls, so that one part's rolls do not shift another's.
    pub(crate) fn new(seed: u64, part: u64) -> Self {
        let mut dice =
            Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ part.wrapping_mul(0xd1b5_4a32_d192_ed03));
        dice.next();
        dice
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From 0 to below `n`; 0 when `n` is 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// From `low` to below `high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low))
    }

    /// True this often in a million.
    pub(crate) fn ppm(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.below(1_000_000) < u64::from(ppm)
    }

    /// True this often in a hundred.
    pub(crate) fn percent(&mut self, percent: u32) -> bool {
        self.ppm(percent * 10_000)
    }

    /// One of several, each with its weight.
    pub(crate) fn weighted<T: Copy>(&mut self, choices: &[(u32, T)]) -> T {
        let mut roll = self.below(choices.iter().map(|(weight, _)| u64::from(*weight)).sum());
        for (weight, choice) in choices {
            match roll.checked_sub(u64::from(*weight)) {
                Some(rest) => roll = rest,
                None => return *choice,
            }
        }
        choices[0].1
    }

    /// From 1 on, small most of the time, now and then up to `most`: sizes as they are in the field.
    pub(crate) fn size(&mut self, most: u64) -> u64 {
        let bits = u64::from(64 - most.leading_zeros());
        let few = self.below(bits + 1).min(self.below(bits + 1));
        (1 + self.below(1 << few.max(4))).min(most)
    }
}
