//! Waiting for a condition of the world, with a limit and a sentence for when it never comes.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Asks every few milliseconds until the answer is yes.
pub fn until(what: &str, limit: Duration, mut ask: impl FnMut() -> bool) -> anyhow::Result<()> {
    let asked = Instant::now();
    let mut pause = Duration::from_millis(1);
    while !ask() {
        if asked.elapsed() > limit {
            bail!("waited {:.1} s in vain: {what}", limit.as_secs_f32());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(())
}

/// Reads a number every 20 ms until it stays the same for `still`.
pub fn until_still(limit: Duration, still: Duration, mut read: impl FnMut() -> u64) -> anyhow::Result<u64> {
    let asked = Instant::now();
    let (mut last, mut since) = (read(), Instant::now());
    while since.elapsed() < still {
        if asked.elapsed() > limit {
            bail!("a number did not come to rest within {:.1} s, it is {last}", limit.as_secs_f32());
        }
        std::thread::sleep(Duration::from_millis(20));
        let now = read();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}
