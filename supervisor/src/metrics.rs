//! `--metrics ADDR`: everything that `stats --json` holds, as Prometheus text.
//!
//! The `metrics` facade is fed with absolute values read from the shared region (its own counters live in one process
//! only, and cost more than the roles may pay), and rendered at each scrape by a thread of its own, so that a slow scraper
//! holds nobody.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::{Label, counter, gauge};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::Value;

use crate::stats::{Stats, Udp};

/// The latest state, shared with the exporter's thread.
pub(crate) type Board = Arc<Mutex<Option<Stats>>>;

/// Longest request head, bytes.
const MAX_HEAD: usize = 8 << 10;
/// Time for one scrape.
const PATIENCE: Duration = Duration::from_secs(3);

/// Opens the address and serves what stands on the board, in a thread of its own, until the process ends.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) fn serve_board(at: SocketAddr, board: Board) -> io::Result<()> {
    serve(TcpListener::bind(at)?, move || {
        let stats = board.lock().expect("no holder panics").clone();
        if let Some(stats) = stats {
            feed(&stats);
        }
    })
}

/// Serves, in a thread of its own, what `feed` tells the facade at each scrape.
///
/// # Errors
/// There is no thread to be had.
pub(crate) fn serve(listener: TcpListener, feed: impl Fn() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            // One scraper at a time; what goes wrong with it is its own affair.
            let _ = one(stream, &feed);
        }
    })?;
    Ok(())
}

/// Tells the facade every number of a JSON object, named by its path. Counters, except what can fall.
pub(crate) fn feed_value(instance: &str, path: &str, value: &Value) {
    let labels = || vec![Label::new("instance_name", instance.to_owned())];
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                feed_value(instance, &format!("{path}_{key}"), value);
            }
        }
        Value::Array(items) => {
            for item in items {
                let name = item.get("name").and_then(Value::as_str).unwrap_or_default();
                let number = item.get("instance").and_then(Value::as_str).unwrap_or_default();
                let labels =
                    || [Label::new("run", name.to_owned()), Label::new("run_instance", number.to_owned())];
                for (key, value) in item.as_object().into_iter().flatten() {
                    let labels =
                        [&labels()[..], &[Label::new("instance_name", instance.to_owned())]].concat();
                    number_or_flag(&format!("{path}_{key}"), value, labels);
                }
            }
        }
        other => number_or_flag(path, other, labels()),
    }
}

fn number_or_flag(name: &str, value: &Value, labels: Vec<Label>) {
    let falls = ["queued", "uptime_s", "rss_bytes"].iter().any(|gauge| name.ends_with(gauge));
    match (value.as_bool(), value.as_u64()) {
        (Some(flag), _) => gauge!(name.to_owned(), labels).set(f64::from(u8::from(flag))),
        (_, Some(number)) if falls => gauge!(name.to_owned(), labels).set(number as f64),
        (_, Some(number)) => counter!(format!("{name}_total"), labels).absolute(number),
        _ => {}
    }
}

fn one(mut stream: TcpStream, feed: &dyn Fn()) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => head.extend_from_slice(&buffer[..n]),
        }
        if head.len() > MAX_HEAD {
            return reply(&mut stream, "431 Request Header Fields Too Large", "");
        }
    }
    let line = String::from_utf8_lossy(&head);
    let mut words = line.split_ascii_whitespace();
    match (words.next(), words.next()) {
        (Some("GET"), Some(path)) if path == "/metrics" || path == "/" || path.starts_with("/metrics?") => {
            reply(&mut stream, "200 OK", &render(feed))
        }
        (Some("GET"), _) => reply(&mut stream, "404 Not Found", "the metrics are at /metrics\n"),
        _ => reply(&mut stream, "405 Method Not Allowed", "use GET\n"),
    }
}

fn reply(stream: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

/// What `feed` tells, as Prometheus text. The recorder is new each time: an old one would go on telling of connections
/// that have gone.
fn render(feed: &dyn Fn()) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, feed);
    recorder.handle().render()
}

fn feed(stats: &Stats) {
    let instance = || vec![Label::new("instance_name", stats.name.clone())];
    let with = |key: &'static str, value: &str| {
        let mut labels = instance();
        labels.push(Label::new(key, value.to_owned()));
        labels
    };
    gauge!("tcptwin_build_info", with("version", &stats.version)).set(1.0);
    gauge!("tcptwin_capture_engine", with("engine", &stats.capture.engine)).set(1.0);
    gauge!("tcptwin_uptime_seconds", instance()).set(stats.uptime_s);
    gauge!("tcptwin_epoch", instance()).set(stats.epoch as f64);
    for state in ["starting", "running", "paused", "draining", "stopped"] {
        gauge!("tcptwin_state", with("state", state)).set(f64::from(u8::from(stats.state == state)));
    }
    gauge!("tcptwin_paused", instance()).set(f64::from(u8::from(stats.control.paused)));
    gauge!("tcptwin_percent", instance()).set(stats.control.percent);
    gauge!("tcptwin_asked_percent", instance()).set(stats.control.asked_percent);
    gauge!("tcptwin_copies", instance()).set(stats.control.copies);
    for role in &stats.roles {
        let labels = || {
            let mut labels = with("role", &role.role);
            labels.push(Label::new("index", role.index.to_string()));
            labels
        };
        gauge!("tcptwin_role_up", labels()).set(f64::from(u8::from(role.pid != 0)));
        gauge!("tcptwin_role_pid", labels()).set(f64::from(role.pid));
        let state = [labels(), vec![Label::new("state", role.state.clone())]].concat();
        gauge!("tcptwin_role_state", state).set(1.0);
        counter!("tcptwin_role_restarts_total", labels()).absolute(role.restarts);
        // Counters are whole numbers in this facade; a second is too coarse for CPU time.
        counter!("tcptwin_role_cpu_milliseconds_total", labels()).absolute((role.cpu_s * 1e3) as u64);
        gauge!("tcptwin_role_resident_bytes", labels()).set(role.rss_bytes as f64);
        for (which, us) in [("last", role.recovery_us.last), ("worst", role.recovery_us.worst)] {
            let mut labels = labels();
            labels.push(Label::new("which", which));
            gauge!("tcptwin_role_recovery_microseconds", labels).set(us as f64);
        }
    }
    feed_ledger(stats, &instance, &with);
    for canary in &stats.canary {
        let held = f64::from(u8::from(canary.held));
        gauge!("tcptwin_target_held", with("target", &canary.addr)).set(held);
        let state = [with("target", &canary.addr), vec![Label::new("state", canary.state.clone())]].concat();
        gauge!("tcptwin_probe_state", state).set(1.0);
        counter!("tcptwin_probe_failures_total", with("target", &canary.addr)).absolute(canary.failures);
        for (hop, us) in [("out", canary.rtt_us.out), ("back", canary.rtt_us.back)] {
            let hop = [with("target", &canary.addr), vec![Label::new("hop", hop)]].concat();
            gauge!("tcptwin_probe_microseconds", hop).set(us as f64);
        }
    }
    if let Some(restraint) = &stats.restraint {
        gauge!("tcptwin_ramp_left_seconds", instance()).set(restraint.ramp_left_s);
        counter!("tcptwin_held_milliseconds_total", instance()).absolute((restraint.held_s * 1e3) as u64);
        gauge!("tcptwin_cpu_percent", instance()).set(restraint.cpu_percent);
        gauge!("tcptwin_cpu_budget_percent", instance()).set(restraint.cpu_budget_percent);
        gauge!("tcptwin_admitted_percent", instance()).set(restraint.admitted_percent);
        gauge!("tcptwin_kept_percent", instance()).set(restraint.kept_percent);
        for step in ["whole", "leaving_out", "shedding", "blind"] {
            gauge!("tcptwin_restraint_step", with("step", step))
                .set(f64::from(u8::from(restraint.step == step)));
        }
    }
    for target in &stats.targets {
        let state = [with("target", &target.addr), vec![Label::new("state", target.state.clone())]].concat();
        gauge!("tcptwin_target_state", state).set(1.0);
        gauge!("tcptwin_target_sick", with("target", &target.addr))
            .set(f64::from(u8::from(target.state == "sick")));
        counter!("tcptwin_target_trips_total", with("target", &target.addr)).absolute(target.trips);
    }
    for (intercept, name) in stats.intercepts.iter().map(|intercept| (intercept, intercept.addr.as_str())) {
        let words = [("state", &intercept.state), ("trouble", &intercept.trouble)];
        let words = words.map(|(key, word)| Label::new(key, word.clone()));
        gauge!("tcptwin_intercept_state", [&with("intercept", name)[..], &words].concat()).set(1.0);
        gauge!("tcptwin_intercept_up", with("intercept", name))
            .set(f64::from(u8::from(intercept.state == "up")));
        counter!("tcptwin_intercept_connects_total", with("intercept", name)).absolute(intercept.connects);
        counter!("tcptwin_intercept_headers_total", with("intercept", name)).absolute(intercept.headers);
        counter!("tcptwin_intercept_gaps_total", with("intercept", name)).absolute(intercept.gaps);
    }
    for (link, bytes) in &stats.rings {
        gauge!("tcptwin_ring_bytes", with("link", link)).set(*bytes as f64);
    }
    for (role, counters) in &stats.counters {
        let (kind, index) = split(role);
        for (name, value) in counters {
            counter!(format!("tcptwin_{kind}_{name}_total"), with("index", index)).absolute(*value);
        }
    }
    for (role, gauges) in &stats.gauges {
        let (kind, index) = split(role);
        for (name, value) in gauges {
            gauge!(format!("tcptwin_{kind}_{name}"), with("index", index)).set(*value as f64);
        }
    }
}

fn feed_udp(udp: &Udp, instance: &dyn Fn() -> Vec<Label>, with: &dyn Fn(&'static str, &str) -> Vec<Label>) {
    for (kind, amount) in
        [("captured", udp.captured), ("wanted", udp.wanted), ("sent", udp.sent), ("replies", udp.replies)]
    {
        counter!("tcptwin_udp_datagrams_total", with("kind", kind)).absolute(amount.datagrams);
        counter!("tcptwin_udp_bytes_total", with("kind", kind)).absolute(amount.payload_bytes);
    }
    for (reason, amount) in &udp.dropped {
        counter!("tcptwin_udp_dropped_datagrams_total", with("reason", reason)).absolute(amount.datagrams);
        counter!("tcptwin_udp_dropped_bytes_total", with("reason", reason)).absolute(amount.payload_bytes);
    }
    counter!("tcptwin_udp_missed_total", instance()).absolute(udp.missed);
    counter!("tcptwin_udp_injected_total", instance()).absolute(udp.inject.datagrams);
    counter!("tcptwin_udp_fragments_total", instance()).absolute(udp.inject.fragments);
    counter!("tcptwin_udp_refused_packets_total", instance()).absolute(udp.inject.refused);
    counter!("tcptwin_udp_icmp_errors_total", instance()).absolute(udp.icmp_errors);
    gauge!("tcptwin_udp_first_reply_microseconds", instance()).set(udp.first_reply_us as f64);
    gauge!("tcptwin_udp_flows_open", instance()).set(udp.flows.open as f64);
    counter!("tcptwin_udp_flows_started_total", instance()).absolute(udp.flows.started);
    counter!("tcptwin_udp_flows_expired_total", instance()).absolute(udp.flows.expired);
}

fn feed_ledger(
    stats: &Stats,
    instance: &dyn Fn() -> Vec<Label>,
    with: &dyn Fn(&'static str, &str) -> Vec<Label>,
) {
    let ledger = &stats.ledger;
    counter!("tcptwin_capture_frames_total", instance()).absolute(stats.capture.frames);
    counter!("tcptwin_capture_kernel_drops_total", instance()).absolute(stats.capture.kernel_drops);
    counter!("tcptwin_ledger_captured_segments_total", instance()).absolute(ledger.captured.segments);
    counter!("tcptwin_ledger_captured_bytes_total", instance()).absolute(ledger.captured.payload_bytes);
    counter!("tcptwin_ledger_wanted_bytes_total", instance()).absolute(ledger.wanted.payload_bytes);
    counter!("tcptwin_ledger_delivered_bytes_total", instance()).absolute(ledger.delivered.payload_bytes);
    gauge!("tcptwin_ledger_in_flight_bytes", instance()).set(ledger.in_flight.payload_bytes as f64);
    counter!("tcptwin_ledger_missed_bytes_total", instance()).absolute(ledger.missed.payload_bytes);
    for (reason, amount) in &ledger.dropped {
        counter!("tcptwin_ledger_dropped_segments_total", with("reason", reason)).absolute(amount.segments);
        counter!("tcptwin_ledger_dropped_bytes_total", with("reason", reason)).absolute(amount.payload_bytes);
    }
    if let Some(udp) = &stats.udp {
        feed_udp(udp, instance, with);
    }
    gauge!("tcptwin_sessions_open", instance()).set(stats.sessions.open as f64);
    counter!("tcptwin_sessions_started_total", instance()).absolute(stats.sessions.started);
    counter!("tcptwin_sessions_completed_total", instance()).absolute(stats.sessions.completed);
    for (reason, count) in &stats.sessions.failed {
        counter!("tcptwin_sessions_failed_total", with("reason", reason)).absolute(*count);
    }
    let turns = &stats.turns;
    for (kind, count) in [
        ("sent", turns.sent),
        ("answered", turns.answered),
        ("guessed", turns.guessed),
        ("unanswered", turns.unanswered),
        ("overlapped", turns.overlapped),
    ] {
        counter!("tcptwin_turns_total", with("kind", kind)).absolute(count);
    }
    counter!("tcptwin_inject_segments_total", instance()).absolute(stats.inject.segments);
    counter!("tcptwin_inject_bytes_total", instance()).absolute(stats.inject.bytes);
    counter!("tcptwin_inject_engine_switches_total", instance()).absolute(stats.inject.switches);
    counter!("tcptwin_inject_detours_total", instance()).absolute(stats.inject.detours);
    counter!("tcptwin_guard_dropped_total", instance()).absolute(stats.guard.dropped);
    let engine = [("engine", stats.inject.engine.clone()), ("why", stats.inject.why.clone())];
    let labels = instance().into_iter().chain(engine.map(|(key, value)| Label::new(key, value)));
    gauge!("tcptwin_inject_engine", labels.collect::<Vec<_>>()).set(1.0);
    for (errno, count) in &stats.inject.errors {
        counter!("tcptwin_inject_errors_total", with("errno", errno)).absolute(*count);
    }
    counter!("tcptwin_returned_headers_total", instance()).absolute(stats.returned.headers);
    if let Some(replay) = &stats.replay {
        counter!("tcptwin_replay_read_bytes_total", instance()).absolute(replay.read_bytes);
        gauge!("tcptwin_replay_bytes", instance()).set(replay.bytes as f64);
        gauge!("tcptwin_replay_read_seconds", instance()).set(replay.read_s);
        gauge!("tcptwin_replay_answered_seconds", instance()).set(replay.answered_s);
        counter!("tcptwin_replay_online_answers_total", instance()).absolute(replay.online_answers);
    }
    let latency = &stats.latency_us;
    for (name, quantiles) in [
        ("target_first_byte", latency.target_first_byte),
        ("online_first_byte", latency.online_first_byte),
        ("lag", latency.lag),
        ("turn_wait", latency.turn_wait),
    ] {
        let series =
            [("0.5", quantiles.p50), ("0.9", quantiles.p90), ("0.99", quantiles.p99), ("1", quantiles.max)];
        for (quantile, us) in series {
            gauge!(format!("tcptwin_{name}_microseconds"), with("quantile", quantile)).set(us as f64);
        }
    }
}

/// `shard-worker-2` → (`shard_worker`, `2`).
fn split(role: &str) -> (String, &str) {
    let (kind, index) = role.rsplit_once('-').unwrap_or((role, "0"));
    (kind.replace('-', "_"), index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Amount, Intercept, Replay, RoleStats, Target};

    fn stats() -> Stats {
        let mut stats =
            Stats { name: "web".into(), state: "running".into(), uptime_s: 3.5, ..Stats::default() };
        stats.roles.push(RoleStats {
            role: "shard-worker".into(),
            index: 1,
            pid: 7,
            cpu_s: 1.25,
            recovery_us: crate::stats::RecoveryTime { last: 4_000, worst: 9_000 },
            ..RoleStats::default()
        });
        stats.ledger.delivered.payload_bytes = 1 << 60;
        stats.ledger.dropped.insert("gap".into(), Amount { segments: 2, payload_bytes: 99 });
        stats.counters.insert("shard-worker-1".into(), [("flows".into(), 5)].into());
        stats.gauges.insert("shard-worker-1".into(), [("open".into(), 4)].into());
        stats
    }

    #[test]
    fn ledger_and_counters_are_there_per_role_and_shard() {
        let text = render(&|| feed(&stats()));
        for line in [
            "tcptwin_uptime_seconds{instance_name=\"web\"} 3.5",
            "tcptwin_ledger_delivered_bytes_total{instance_name=\"web\"} 1152921504606846976",
            "tcptwin_ledger_dropped_bytes_total{instance_name=\"web\",reason=\"gap\"} 99",
            "tcptwin_shard_worker_flows_total{instance_name=\"web\",index=\"1\"} 5",
            "tcptwin_shard_worker_open{instance_name=\"web\",index=\"1\"} 4",
            "tcptwin_role_cpu_milliseconds_total{instance_name=\"web\",role=\"shard-worker\",index=\"1\"} 1250",
            "tcptwin_role_recovery_microseconds{instance_name=\"web\",role=\"shard-worker\",index=\"1\",which=\"worst\"} 9000",
            "tcptwin_state{instance_name=\"web\",state=\"running\"} 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in:\n{text}");
        }
    }

    /// Every number, text and flag in `stats --json` is told apart from every other, and looked for.
    #[test]
    fn everything_that_stats_holds_is_there() {
        let mut whole = stats();
        whole.targets.push(Target::default());
        whole.intercepts.push(Intercept::default());
        whole.replay = Some(Replay::default());
        whole.sessions.failed.insert("refused".into(), 0);
        whole.inject.errors.insert("ENOBUFS".into(), 0);
        whole.rings.insert("capture-0".into(), 0);
        let mut value = serde_json::to_value(&whole).unwrap();
        let mut wanted = Vec::new();
        mark("", &mut value, &mut wanted);
        let text = render(&|| feed(&serde_json::from_value(value.clone()).unwrap()));
        assert!(wanted.len() > 50, "{wanted:?}");
        for (path, mark) in wanted {
            assert!(text.lines().any(|line| line.contains(&mark)), "{path}, {mark}, is not in:\n{text}");
        }
    }

    /// Gives every leaf a value of its own; how it will stand in the text.
    fn mark(path: &str, value: &mut Value, wanted: &mut Vec<(String, String)>) {
        let own = 10_001 + wanted.len();
        match value {
            Value::Object(fields) => {
                fields.iter_mut().for_each(|(key, value)| mark(&format!("{path}/{key}"), value, wanted));
            }
            Value::Array(items) => items.iter_mut().for_each(|item| mark(path, item, wanted)),
            Value::Bool(flag) => {
                *flag = true;
                let name = path.rsplit('/').next().unwrap_or_default();
                wanted.push((path.to_owned(), format!("tcptwin_{name}{{instance_name=\"web\"}} 1")));
            }
            // One of the words that there are.
            Value::String(word) if path == "/state" => {
                *word = "draining".to_owned();
                wanted.push((path.to_owned(), "state=\"draining\"} 1".to_owned()));
            }
            Value::String(word) if path == "/name" => {
                wanted.push((path.to_owned(), format!("instance_name=\"{word}\"")));
            }
            Value::String(word) => {
                *word = format!("M{own}");
                wanted.push((path.to_owned(), format!("=\"M{own}\"")));
            }
            Value::Number(number) => {
                *number = own.into();
                let index = path == "/roles/index";
                let shown = if path == "/roles/cpu_s" { own * 1_000 } else { own };
                wanted.push((
                    path.to_owned(),
                    if index { format!("index=\"{own}\"") } else { format!("}} {shown}") },
                ));
            }
            Value::Null => {}
        }
    }

    #[test]
    fn an_intercepts_numbers_are_named_by_their_path() {
        let value = serde_json::json!({"ready": true, "capture": {"captured": 7}, "peers": [{"name": "web", "instance": "1f", "sent": 3, "queued": 2}]});
        let text = render(&|| feed_value("a", "tcptwin_intercept", &value));
        for line in [
            "tcptwin_intercept_ready{instance_name=\"a\"} 1",
            "tcptwin_intercept_capture_captured_total{instance_name=\"a\"} 7",
            "tcptwin_intercept_peers_sent_total{run=\"web\",run_instance=\"1f\",instance_name=\"a\"} 3",
            "tcptwin_intercept_peers_queued{run=\"web\",run_instance=\"1f\",instance_name=\"a\"} 2",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn a_scrape_is_answered_and_garbage_is_not() {
        let probe = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = probe.local_addr().unwrap();
        drop(probe);
        serve_board(at, Arc::new(Mutex::new(Some(stats())))).unwrap();
        let ask = |request: &str| {
            let mut stream = TcpStream::connect(at).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        let text = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 OK") && text.contains("tcptwin_uptime_seconds"), "{text}");
        assert!(ask("GET /other HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
    }
}
