//! What a run keeps itself to, and the kill switch: held against packet sockets at the switch.

use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use lab::departures::{Departure, most_within};
use lab::scratch::Scratch;
use lab::story::{Story, step};
use lab::twin::{Kind, leftovers};
use lab::{Departures, Instance, Load, Mode, wait};

use crate::stage::{SETTLE, Stage};

pub(crate) const STORIES: &[Story] = &[
    ("roles_give_way_to_production", 60, roles_give_way_to_production),
    ("no_100_ms_hold_more_packets_than_allowed", 120, no_100_ms_hold_more_packets_than_allowed),
    ("no_100_ms_hold_more_bits_than_allowed", 120, no_100_ms_hold_more_bits_than_allowed),
    ("no_100_ms_hold_more_connections_than_allowed", 120, no_100_ms_hold_more_connections_than_allowed),
    ("a_ramp_lets_flows_in_by_and_by", 60, a_ramp_lets_flows_in_by_and_by),
];
/// A neighbour would spoil what these measure: how late the last packet leaves, and what CPU time a budget is kept to.
pub(crate) const ALONE: &[Story] = &[
    ("a_halt_under_load_takes_100_ms_and_stays", 120, a_halt_under_load_takes_100_ms_and_stays),
    ("over_budget_flows_are_shed_and_counted", 180, over_budget_flows_are_shed_and_counted),
];

/// Nothing leaves later than this after somebody threw the switch.
const HALT_NS: u64 = 100_000_000;

fn now_ns() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn a_halt_under_load_takes_100_ms_and_stays() -> Result<()> {
    // By hand: HALT_TRIPS=200 LAB_PATIENCE=10.
    let trips = std::env::var("HALT_TRIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(4_u32);
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let load = Load { rate: Some(2_000.0), time: Duration::from_secs(3_600), ..stage.load(u64::MAX / 2) };
    // Ids beyond the witnesses' are answered and not noted.
    let load = stage.start(load)?;
    let mut latest = Vec::new();
    for trip in 0..trips {
        let run = stage.run(&["--name", &format!("halted-{}", std::process::id())])?;
        let (name, pid) = (run.name.clone(), run.pid());
        let file = stage.twin.runtime().join("tcptwin").join(format!("{name}.halt"));
        let departures = Departures::start(&stage.net, &stage.net.online)?;
        wait::until("it replays", SETTLE, || run.stats().is_ok_and(|stats| stats.delivered() > 0))?;
        // So that the witness, which began later than the replay, has seen some of it.
        std::thread::sleep(Duration::from_millis(200));
        let begin_ns = now_ns();
        if trip % 2 == 0 {
            let said = run.ctl(&["halt"])?;
            ensure!(said.contains("nothing is captured or sent any more") && said.contains("rm "), "{said}");
        } else {
            fs::write(&file, "")?;
        }
        let ended = run.wait(SETTLE)?;
        ensure!(ended.status.code() == Some(1), "ended with {}: {}", ended.status, ended.stderr);
        ensure!(ended.stderr.contains(&format!("rm {}", file.display())), "{}", ended.stderr);
        let stats = ended.stats().context("the summary of a halted run")?;
        stats.check_ledger()?;
        std::thread::sleep(Duration::from_millis(150));
        let noted = departures.stop()?;
        let last_ns = noted.last().context("nothing was seen at the switch")?.time_ns;
        ensure!(last_ns + 2_000_000_000 > begin_ns, "the replay had stopped before");
        let late_ns = last_ns.saturating_sub(begin_ns);
        ensure!(late_ns <= HALT_NS, "the last packet left {} us after the order", late_ns / 1_000);
        latest.push(late_ns);
        let mut left = leftovers(&name, pid, stage.twin.runtime(), &stage.net.online)?;
        left.retain(|one| *one != format!("file {}", file.display()));
        ensure!(left.is_empty(), "left behind: {left:#?}");
        step("it stays halted");
        let map = lab::twin::map(crate::stage::ONLINE_PORT, stage.at_target());
        let args = ["-x", &map, "-s", "10.88.0.5", "-i", "eth0", "--name", &name];
        let again = stage.twin.begin(Kind::Run, &stage.net.online, &args)?.wait(SETTLE)?;
        ensure!(again.status.code() == Some(3), "ended with {}: {}", again.status, again.stderr);
        ensure!(again.stderr.contains("was halted") && again.stderr.contains("rm "), "{}", again.stderr);
        fs::remove_file(&file)?;
    }
    latest.sort_unstable();
    step(format!(
        "{trips} trips: the last packet left p50 {} us, max {} us after the order",
        latest[latest.len() / 2] / 1_000,
        latest[latest.len() - 1] / 1_000
    ));
    load.stop()?;
    Ok(())
}

/// The roles: last for a core, first when memory runs out. Who watches them is not slowed down, and who captures by half: what that
/// one leaves to the kernel for too long is lost, whatever writes or sends it waits.
fn roles_give_way_to_production() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let usual = nice_of(&fs::read_to_string("/proc/self/stat")?)?;
    let scratch = Scratch::new("recording")?;
    let directory = scratch.path().to_str().context("a path of letters")?;
    for (options, nice) in [(&[][..], 10), (&["--nice", "0"], 0), (&["--nice", "19"], 19)] {
        let run = stage.run(&[options, &["--record", directory]].concat())?;
        let roles = run.stats()?.roles()?;
        ensure!(roles.len() > 3, "{roles:?}");
        for role in roles {
            let pid = role.pid;
            let wanted_oom = if pid == run.pid() { 900 } else { 1_000 };
            let oom: i32 = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim().parse()?;
            ensure!(oom == wanted_oom, "oom_score_adj of {pid} is {oom}");
            // The kernel's own choice: this test stands for production.
            let score = |pid: &str| -> Result<i32> {
                Ok(fs::read_to_string(format!("/proc/{pid}/oom_score"))?.trim().parse()?)
            };
            ensure!(score(&pid.to_string())? > score("self")?, "{pid} would not be chosen before production");
            let lower = |stat: &str| match role.role.as_str() {
                "supervisor" => 0,
                "capturer" if !stat.contains("(recorder)") => nice / 2,
                _ => nice,
            };
            let strange = || -> Result<Option<String>> {
                for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                    let stat = fs::read_to_string(task?.path().join("stat"))?;
                    if nice_of(&stat)? != (usual + lower(&stat)).min(19) {
                        return Ok(Some(stat));
                    }
                }
                Ok(None)
            };
            // The recorder's thread may have begun a moment ago.
            let _ = wait::until("all have their priority", SETTLE, || matches!(strange(), Ok(None)));
            let strange = strange()?;
            ensure!(strange.is_none(), "{options:?}: a thread of {role:?} has the wrong nice: {strange:?}");
        }
        run.stop_run()?;
    }
    Ok(())
}

fn decimal(run: &Instance, path: &str) -> Result<f64> {
    let stats = run.stats()?;
    stats
        .value()
        .pointer(path)
        .and_then(serde_json::Value::as_f64)
        .with_context(|| format!("stats have no {path}"))
}

/// Field 19 of proc_pid_stat(5), counted from the end of the name.
fn nice_of(stat: &str) -> Result<i64> {
    let fields = stat.rsplit_once(')').context("a stat line")?.1;
    Ok(fields.split_whitespace().nth(16).context("its nice value")?.parse()?)
}

fn over_budget_flows_are_shed_and_counted() -> Result<()> {
    const BUDGET: f64 = 8.0;
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--budget-cpu", &BUDGET.to_string()])?;
    let load = Load { connections: 100, rate: Some(4_000.0), ..stage.load(u64::MAX / 2) };
    let load = stage.start(Load { time: Duration::from_secs(3_600), ..load })?;
    let step_of = |run: &Instance| -> Result<String> {
        let stats = run.stats()?;
        let step = stats.value().pointer("/restraint/step").and_then(|step| step.as_str().map(str::to_owned));
        step.context("stats name no step")
    };
    step("open connections are shed");
    wait::until("flows are shed", SETTLE, || {
        run.stats().is_ok_and(|stats| {
            stats.dropped("shed") > 0 && stats.number("/sessions/failed/shed").is_ok_and(|n| n > 0)
        })
    })?;
    std::thread::sleep(Duration::from_secs(4));
    step("from outside: what it takes over three seconds");
    let before = run.cpu_s();
    std::thread::sleep(Duration::from_secs(3));
    let percent = (run.cpu_s() - before) / 3.0 * 100.0;
    // /proc counts in ticks of 10 ms.
    ensure!(percent <= BUDGET * 1.1 + 1.0, "{percent:.1} % of a core; {}", step_of(&run)?);
    ensure!(step_of(&run)? != "whole", "nothing was over budget");
    step("without load all comes back");
    load.stop()?;
    wait::until("all flows are wanted again", Duration::from_secs(120), || {
        step_of(&run).is_ok_and(|step| step == "whole")
    })?;
    run.wait_quiet(SETTLE)?.check_ledger()?;
    let answered = stage.target.answered();
    stage.send(Load { mode: Mode::ClientCloses, rate: Some(50.0), ..stage.load(100) })?;
    wait::until("they reach the target", SETTLE, || stage.target.answered() >= answered + 100)?;
    let stats = crate::stage::end(run)?;
    let others = stats.dropped_in_all()
        - ["duplicate", "shed", "joined_midturn", "not_joined"]
            .map(|reason| stats.dropped(reason))
            .iter()
            .sum::<u64>();
    ensure!(others == 0 && stats.dropped("shed") > 0, "{}", stats.ledger());
    Ok(())
}

fn a_ramp_lets_flows_in_by_and_by() -> Result<()> {
    const THIRDS: u64 = 3;
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let load = Load { mode: Mode::ClientCloses, rate: Some(300.0), ..stage.load(10_000) };
    let load = stage.start(Load { time: Duration::from_secs(60), ..load })?;
    let run = stage.run(&["--ramp", "9s"])?;
    let mut shares = Vec::new();
    let mut seen = (stage.online.connections(), stage.target.connections());
    for third in 1..=THIRDS {
        let left_s = 9 - third * 9 / THIRDS;
        wait::until("the ramp goes on", SETTLE, || {
            decimal(&run, "/restraint/ramp_left_s").is_ok_and(|left| left <= left_s as f64)
        })?;
        let now = (stage.online.connections(), stage.target.connections());
        shares.push((now.1 - seen.1) as f64 / (now.0 - seen.0) as f64);
        seen = now;
    }
    step(format!("of each third of it, these shares were replayed: {shares:.2?}"));
    ensure!(shares.is_sorted(), "{shares:?}");
    for (share, wanted) in shares.iter().zip([1.0 / 6.0, 0.5, 5.0 / 6.0]) {
        ensure!((share - wanted).abs() < 0.15, "{shares:?}");
    }
    wait::until("the ramp ends at all flows", SETTLE, || {
        decimal(&run, "/control/percent").is_ok_and(|percent| percent == 100.0)
    })?;
    load.stop()?;
    let stats = crate::stage::end(run)?;
    let others = stats.dropped_in_all()
        - ["duplicate", "joined_midturn"].map(|reason| stats.dropped(reason)).iter().sum::<u64>();
    ensure!(others == 0, "{}", stats.ledger());
    Ok(())
}

const WINDOW_NS: u64 = 100_000_000;

/// Replays `load` for some seconds under `option`, and holds what left within any 100 ms against `most`, and its mean against a share
/// of it; then insists on an exact
/// ledger and on nothing lost but what was shed.
fn limited(
    option: [&str; 2],
    load: Load,
    stage: &Stage,
    most: u64,
    least: f64,
    what: fn(&Departure) -> u64,
) -> Result<()> {
    let run = stage.run(&[option[0], option[1], "--shards", "2"])?;
    let departures = Departures::start(&stage.net, &stage.net.online)?;
    let load = stage.start(Load { time: Duration::from_secs(60), ..load })?;
    std::thread::sleep(Duration::from_secs(8));
    load.stop()?;
    run.wait_quiet(SETTLE)?.check_ledger()?;
    let noted = departures.stop()?;
    let seconds =
        noted.last().zip(noted.first()).map_or(0, |(last, first)| last.time_ns - first.time_ns) as f64 / 1e9;
    let worst = most_within(&noted, WINDOW_NS, what);
    let mean = noted.iter().map(what).sum::<u64>() as f64 / seconds.max(0.1) / 10.0;
    step(format!("in 100 ms: {mean:.1} in the mean of {seconds:.1} s, {worst} at most, {most} allowed"));
    ensure!(worst <= most, "{worst} in 100 ms, {most} allowed");
    ensure!(mean >= least * most as f64, "{mean:.1} in the mean of 100 ms: the limit is kept too well");
    let stats = run.stop_run()?;
    let known = ["duplicate", "shed", "joined_midturn", "not_joined", "stopped"];
    let others = stats.dropped_in_all() - known.map(|reason| stats.dropped(reason)).iter().sum::<u64>();
    ensure!(others == 0, "{}", stats.ledger());
    Ok(())
}

fn no_100_ms_hold_more_packets_than_allowed() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let load = Load { rate: Some(1_500.0), connections: 200, ..stage.load(100_000) };
    limited(["--max-pps", "600"], load, &stage, 60, 0.85, |one| one.packets)
}

fn no_100_ms_hold_more_bits_than_allowed() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let load = Load { rate: Some(60.0), body_bytes: 100_000, ..stage.load(100_000) };
    limited(["--max-bps", "20M"], load, &stage, 2_000_000, 0.7, |one| one.bytes * 8)
}

fn no_100_ms_hold_more_connections_than_allowed() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let load = Load { mode: Mode::ClientCloses, rate: Some(500.0), ..stage.load(100_000) };
    limited(["--max-cps", "200"], load, &stage, 20, 0.9, |one| u64::from(one.syn))
}
