//! Ids and jitter, from a seed that is handed in.

/// Ids and jitter from a seed (SplitMix64): the same seed gives the same ones.
#[derive(Debug)]
pub(super) struct Ids(pub(super) u64);

impl Ids {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Nine alphanumerics: legal everywhere, and exactly what the strictest server wants.
    pub(super) fn call_id(&mut self) -> String {
        const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut rest = self.next();
        let mut letter = || {
            let at = rest % 62;
            rest /= 62;
            char::from(LETTERS[usize::try_from(at).unwrap_or(0)])
        };
        (0..9).map(|_| letter()).collect()
    }

    /// From 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "jitter")]
    pub(super) const fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
