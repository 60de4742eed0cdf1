//! What `stats --json` says, read by its stable names; a name that is missing is an error, never a zero.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;

/// One object of `stats --json`.
#[derive(Clone, Debug)]
pub struct Stats {
    value: Value,
    ledger: Ledger,
    state: String,
}

/// One entry of `roles`.
#[derive(Clone, Debug, Deserialize)]
pub struct RoleStats {
    /// `capturer`, `shard-worker`, `injector`...
    pub role: String,
    /// Number among its kind.
    pub index: u64,
    /// Process id.
    pub pid: u32,
    /// `running`...
    pub state: String,
    /// How often it was started again.
    pub restarts: u64,
    /// CPU time, seconds.
    pub cpu_s: f64,
    /// How long it was away when it was started again.
    pub recovery_us: RecoveryTime,
}

/// From a death to a successor that runs, microseconds; 0 before the first.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct RecoveryTime {
    /// The last one.
    pub last: u64,
    /// The longest.
    pub worst: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Ledger {
    captured: Amount,
    wanted: Bytes,
    delivered: Bytes,
    in_flight: Bytes,
    dropped: BTreeMap<String, Amount>,
    missed: Bytes,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Amount {
    #[allow(dead_code, reason = "read so that its absence is an error")]
    segments: u64,
    payload_bytes: u64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Bytes {
    payload_bytes: u64,
}

impl Stats {
    /// From the text of one object.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let value: Value =
            serde_json::from_str(text).with_context(|| format!("stats are no JSON: {text}"))?;
        let ledger = value.get("ledger").context("stats have no ledger")?;
        let ledger =
            Ledger::deserialize(ledger).with_context(|| format!("the ledger lacks something: {ledger}"))?;
        let state = value.get("state").and_then(Value::as_str).context("stats have no state")?.to_owned();
        Ok(Self { value, ledger, state })
    }

    /// A number by its path, `/sessions/open`.
    pub fn number(&self, path: &str) -> anyhow::Result<u64> {
        number(&self.value, path)
    }

    /// The whole object.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// `running`, `draining`...
    pub fn state(&self) -> &str {
        &self.state
    }

    /// The processes.
    pub fn roles(&self) -> anyhow::Result<Vec<RoleStats>> {
        let roles = self.value.get("roles").context("stats have no roles")?;
        Ok(Vec::deserialize(roles)?)
    }

    /// Payload bytes read from the kernel.
    pub fn captured(&self) -> u64 {
        self.ledger.captured.payload_bytes
    }

    /// Payload bytes wanted at the target.
    pub fn wanted(&self) -> u64 {
        self.ledger.wanted.payload_bytes
    }

    /// Payload bytes acknowledged by the target.
    pub fn delivered(&self) -> u64 {
        self.ledger.delivered.payload_bytes
    }

    /// Payload bytes held or unacknowledged.
    pub fn in_flight(&self) -> u64 {
        self.ledger.in_flight.payload_bytes
    }

    /// Payload bytes in holes of the capture.
    pub fn missed(&self) -> u64 {
        self.ledger.missed.payload_bytes
    }

    /// Payload bytes dropped under one reason; 0 where the reason does not occur.
    pub fn dropped(&self, reason: &str) -> u64 {
        self.ledger.dropped.get(reason).map_or(0, |a| a.payload_bytes)
    }

    /// Payload bytes dropped under any reason.
    pub fn dropped_in_all(&self) -> u64 {
        self.ledger.dropped.values().map(|a| a.payload_bytes).sum()
    }

    /// The reasons that occurred, with their bytes.
    pub fn drops(&self) -> Vec<(String, u64)> {
        let all = self.ledger.dropped.iter().map(|(reason, a)| (reason.clone(), a.payload_bytes));
        all.filter(|&(_, bytes)| bytes > 0).collect()
    }

    /// The ledger as a sentence.
    pub fn ledger(&self) -> String {
        format!(
            "captured {} wanted {} = delivered {} + in flight {} + dropped {} {:?}, missed {}",
            self.captured(),
            self.wanted(),
            self.delivered(),
            self.in_flight(),
            self.dropped_in_all(),
            self.drops(),
            self.missed()
        )
    }

    /// wanted = delivered + in flight + Σ dropped, to the byte.
    pub fn check_ledger(&self) -> anyhow::Result<()> {
        let sum = self.delivered() + self.in_flight() + self.dropped_in_all();
        ensure!(self.wanted() == sum, "the ledger does not add up: {}, which is {sum}", self.ledger());
        Ok(())
    }
}

/// A number in what `tcptwin stats --json` printed, by its path.
pub(super) fn number(value: &Value, path: &str) -> anyhow::Result<u64> {
    value
        .pointer(path)
        .and_then(Value::as_u64)
        .with_context(|| format!("stats have no number at {path}: {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"name":"default","uptime_s":12.3,"state":"running",
        "roles":[{"role":"capturer","index":0,"pid":7,"state":"running","restarts":0,"cpu_s":0.1,"rss_bytes":1,"recovery_us":{"last":5,"worst":9}}],
        "capture":{"frames":5,"kernel_drops":0},
        "ledger":{"captured":{"segments":3,"payload_bytes":30},"wanted":{"payload_bytes":30},
        "delivered":{"payload_bytes":20},"in_flight":{"payload_bytes":4},
        "dropped":{"ring_full":{"segments":1,"payload_bytes":6}},"missed":{"payload_bytes":0}}}"#;

    #[test]
    fn the_documented_object_is_read() {
        let stats = Stats::parse(TEXT).unwrap();
        stats.check_ledger().unwrap();
        assert_eq!((stats.dropped("ring_full"), stats.dropped("gap")), (6, 0));
        assert_eq!(stats.number("/capture/frames").unwrap(), 5);
        assert_eq!(stats.roles().unwrap()[0].pid, 7);
        assert!(stats.number("/turns/sent").is_err());
    }

    #[test]
    fn one_byte_too_few_is_seen_and_a_missing_part_is_an_error() {
        let text = TEXT.replace(r#""delivered":{"payload_bytes":20}"#, r#""delivered":{"payload_bytes":19}"#);
        assert!(Stats::parse(&text).unwrap().check_ledger().is_err());
        assert!(Stats::parse(&TEXT.replace("in_flight", "elsewhere")).is_err());
    }
}
