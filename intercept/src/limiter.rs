//! Log lines that a stranger can cause: at most one of a kind in a few seconds, and then how many were left out.

use tracing::{Level, event};

/// Remembers when a kind was last logged.
pub(crate) struct Limiter {
    kinds: Vec<Kind>,
}

struct Kind {
    name: &'static str,
    next_ms: u64,
    left_out: u64,
}

/// Between two lines of a kind.
const EVERY_MS: u64 = 5_000;
/// Kinds told apart at most; they are constants of the program.
const KINDS: usize = 64;

impl Limiter {
    pub(crate) const fn new() -> Self {
        Self { kinds: Vec::new() }
    }

    pub(crate) fn info(&mut self, now_ms: u64, kind: &'static str, line: impl FnOnce() -> String) {
        if self.may(now_ms, kind) {
            event!(Level::INFO, "{}", line());
        }
    }

    pub(crate) fn warn(&mut self, now_ms: u64, kind: &'static str, line: impl FnOnce() -> String) {
        if self.may(now_ms, kind) {
            event!(Level::WARN, "{}", line());
        }
    }

    /// Tells what was left out, when its time has come.
    pub(crate) fn flush(&mut self, now_ms: u64) {
        for kind in self.kinds.iter_mut().filter(|k| k.left_out > 0 && now_ms >= k.next_ms) {
            event!(
                Level::WARN,
                "{} more of the kind `{}` in {} s",
                kind.left_out,
                kind.name,
                EVERY_MS / 1000
            );
            (kind.left_out, kind.next_ms) = (0, now_ms + EVERY_MS);
        }
    }

    fn may(&mut self, now_ms: u64, name: &'static str) -> bool {
        let full = self.kinds.len() == KINDS;
        match self.kinds.iter_mut().find(|k| k.name == name) {
            Some(kind) if now_ms < kind.next_ms => {
                kind.left_out += 1;
                false
            }
            Some(kind) => {
                kind.next_ms = now_ms + EVERY_MS;
                true
            }
            None if full => false,
            None => {
                self.kinds.push(Kind { name, next_ms: now_ms + EVERY_MS, left_out: 0 });
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_a_kind_in_five_seconds_and_the_rest_counted() {
        let mut limiter = Limiter::new();
        assert!(limiter.may(0, "a") && limiter.may(0, "b"));
        assert!(!limiter.may(4_999, "a") && !limiter.may(4_999, "a"));
        assert_eq!(limiter.kinds[0].left_out, 2);
        limiter.flush(5_000);
        assert_eq!(limiter.kinds[0].left_out, 0);
        assert!(!limiter.may(9_999, "a") && limiter.may(10_000, "a"));
    }
}
