//! One doorbell a consumer: how a process sleeps until another has put work into any of its rings.
//!
//! ```text
//! consumer: ticket = prepare()   word read, then `asleep` announced, then a SeqCst fence, then the rings looked at
//!           empty? wait(ticket)  : cancel()
//! producer: publish()            the ring's tail stored
//!           ring()               a SeqCst fence, then `asleep` looked at; only when set: the word moves, futex wake
//! ```
//! Each side stores, fences, and then loads what the other stored: at least one of them sees the other (store buffering).
//! With Release and Acquire alone 4,927 of 2 million wake-ups were lost, on x86. The futex is shared between processes.
//!
//! A ringer may be killed at any instruction. So it moves the word first, wakes second, and takes the announcement down
//! last; taking it down first would let a second ringer believe that the wake-up was on its way. The announcement is made
//! of the ticket, so that a late ringer cannot take down the announcement of the next sleep.

use std::time::Duration;

use crate::sync::{AtomicU32, Ordering::Relaxed, Ordering::SeqCst, fence};

/// The announcement's mark: words are even, so a marked ticket is never zero.
const ASLEEP: u32 = 1;
/// What the word moves by.
const STEP: u32 = 2;

/// A futex word, and whether anybody sleeps on it.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct Doorbell {
    word: AtomicU32,
    /// 0, or the sleeper's ticket with [`ASLEEP`]. Both sides change it, and only by read-modify-write: those have one
    /// order for everybody (and loom, which does not order a plain store against an exchange, can follow).
    asleep: AtomicU32,
    #[cfg(loom)]
    futex: model::Futex,
}

impl Default for Doorbell {
    fn default() -> Self {
        Self::new()
    }
}

impl Doorbell {
    /// A doorbell outside a region, between threads.
    pub fn new() -> Self {
        Self {
            word: AtomicU32::new(0),
            asleep: AtomicU32::new(0),
            #[cfg(loom)]
            futex: model::Futex::default(),
        }
    }

    /// Called after work was published: wakes the consumer if it sleeps. One fence and one load when it does not.
    #[inline]
    pub fn ring(&self) {
        // Between the caller's publishing store and our load; pairs with the fence in `prepare`.
        fence(SeqCst);
        let announced = self.asleep.load(Relaxed);
        if announced != 0 {
            self.wake(announced);
        }
    }

    #[cold]
    fn wake(&self, announced: u32) {
        self.word.fetch_add(STEP, SeqCst);
        self.futex_wake();
        // Saves later ringers the system call until the consumer has come back. Fails when it already did.
        let _ = self.asleep.compare_exchange(announced, 0, Relaxed, Relaxed);
    }

    /// The consumer announces that it is going to sleep. It must then look once more for work, and call either
    /// [`Doorbell::wait`] with the ticket or [`Doorbell::cancel`].
    #[must_use]
    pub fn prepare(&self) -> u32 {
        let ticket = self.word.load(Relaxed);
        self.asleep.swap(ticket | ASLEEP, Relaxed);
        // Between our announcement and the caller's look at its rings; pairs with the fence in `ring`.
        fence(SeqCst);
        ticket
    }

    /// Sleeps until the bell rings or rang since the ticket was drawn, at most `timeout`. True when it rang.
    ///
    /// May return false before the time is over (a signal, or the wake-up for the sleep before, come late): the caller
    /// looks at its rings and its clock, not at what this returns.
    pub fn wait(&self, ticket: u32, timeout: Duration) -> bool {
        self.futex_wait(ticket, timeout);
        self.cancel();
        self.word.load(Relaxed) != ticket
    }

    /// Takes the announcement back: there was work.
    pub fn cancel(&self) {
        self.asleep.swap(0, Relaxed);
    }

    #[cfg(not(loom))]
    fn futex_wait(&self, ticket: u32, timeout: Duration) {
        crate::sys::futex_wait(&self.word, ticket, timeout);
    }

    #[cfg(not(loom))]
    fn futex_wake(&self) {
        crate::sys::futex_wake(&self.word);
    }

    #[cfg(loom)]
    fn futex_wait(&self, ticket: u32, _timeout: Duration) {
        self.futex.wait(&self.word, ticket);
    }

    #[cfg(loom)]
    fn futex_wake(&self) {
        self.futex.wake();
    }
}

/// The kernel's half of a futex as far as it matters: the comparison and the queueing happen under the lock that a waker
/// takes too (futex(7)). It has no timeout, so that a lost wake-up is a deadlock, which loom reports.
#[cfg(loom)]
mod model {
    use loom::sync::{Condvar, Mutex};

    use crate::sync::{AtomicU32, Ordering::Relaxed};

    #[derive(Debug, Default)]
    pub(super) struct Futex {
        bucket: Mutex<()>,
        sleepers: Condvar,
    }

    impl Futex {
        pub(super) fn wait(&self, word: &AtomicU32, expected: u32) {
            let bucket = self.bucket.lock().expect("no panic under the lock");
            if word.load(Relaxed) == expected {
                drop(self.sleepers.wait(bucket).expect("no panic under the lock"));
            }
        }

        pub(super) fn wake(&self) {
            let _bucket = self.bucket.lock().expect("no panic under the lock");
            self.sleepers.notify_one();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn nobody_asleep_means_the_word_stays() {
        let bell = Doorbell::new();
        bell.ring();
        assert_eq!(bell.word.load(Relaxed), 0);
    }

    #[test]
    fn a_ring_between_prepare_and_wait_is_not_lost() {
        let bell = Doorbell::new();
        let ticket = bell.prepare();
        bell.ring();
        assert!(bell.wait(ticket, Duration::from_secs(3600)));
    }

    #[test]
    fn a_second_ring_for_one_sleep_makes_no_call() {
        let bell = Doorbell::new();
        let ticket = bell.prepare();
        bell.ring();
        bell.ring();
        assert_eq!(bell.word.load(Relaxed), ticket + STEP);
    }

    #[test]
    fn a_cancelled_sleep_is_not_rung() {
        let bell = Doorbell::new();
        let ticket = bell.prepare();
        bell.cancel();
        bell.ring();
        assert_eq!(bell.word.load(Relaxed), ticket);
    }

    #[test]
    fn a_late_ringer_leaves_the_next_announcement_alone() {
        let bell = Doorbell::new();
        let first = bell.prepare();
        bell.ring();
        assert!(bell.wait(first, Duration::from_secs(3600)));
        let second = bell.prepare();
        // What a ringer of the first sleep does last, much later.
        let _ = bell.asleep.compare_exchange(first | ASLEEP, 0, Relaxed, Relaxed);
        bell.ring();
        assert!(bell.wait(second, Duration::from_secs(3600)));
    }

    #[test]
    fn nothing_rings_and_the_timeout_ends_it() {
        let bell = Doorbell::new();
        let ticket = bell.prepare();
        assert!(!bell.wait(ticket, Duration::from_millis(1)));
    }
}
