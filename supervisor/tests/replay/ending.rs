//! Names, drain, signals, and what is left behind: nothing.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::real;
use lab::story::{Story, step};
use lab::twin::{Kind, leftovers};
use lab::{Load, Mode, process, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::stage::{ONLINE_PORT, SETTLE, Stage, answered};

pub(crate) const STORIES: &[Story] = &[
    ("ctrl_c_drains_and_leaves_nothing_behind", 60, ctrl_c_drains_and_leaves_nothing_behind),
    ("sigterm_ends_run_and_intercept", 60, sigterm_ends_run_and_intercept),
    ("a_second_instance_of_one_name_is_refused", 60, a_second_instance_of_one_name_is_refused),
    (
        "no_intercept_is_one_sentence_and_nothing_started",
        60,
        no_intercept_is_one_sentence_and_nothing_started,
    ),
    ("metrics_say_what_stats_say", 60, metrics_say_what_stats_say),
    ("paused_traffic_is_counted_as_paused", 60, paused_traffic_is_counted_as_paused),
    (
        "a_demo_whose_run_is_killed_says_so_and_leaves_nothing",
        60,
        a_demo_whose_run_is_killed_says_so_and_leaves_nothing,
    ),
];

fn ctrl_c_drains_and_leaves_nothing_behind() -> Result<()> {
    let stage = Stage::new()?;
    let intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let (name, pid) = (run.name.clone(), run.pid());
    ensure!(
        !leftovers(&name, pid, stage.twin.runtime(), &stage.net.online)?.is_empty(),
        "the check sees nothing"
    );
    let load = stage.start(Load { rate: Some(1_000.0), ..stage.load(50_000) })?;
    step("Ctrl-C under load");
    let stats = run.stop_run()?;
    answered(load.stop()?)?;
    ensure!(stats.in_flight() == 0, "in flight after the end: {}", stats.ledger());
    let others = stats.dropped_in_all() - stats.dropped("duplicate") - stats.dropped("stopped");
    ensure!(others == 0, "{}", stats.ledger());
    let left = leftovers(&name, pid, stage.twin.runtime(), &stage.net.online)?;
    ensure!(left.is_empty(), "run left behind: {left:#?}");
    let (name, pid) = (intercept.name.clone(), intercept.pid());
    let ended = intercept.stop()?;
    ensure!(ended.status.success(), "intercept ended with {}: {}", ended.status, ended.stderr);
    let left = leftovers(&name, pid, stage.twin.runtime(), &stage.net.assistant)?;
    ensure!(left.is_empty(), "intercept left behind: {left:#?}");
    Ok(())
}

fn sigterm_ends_run_and_intercept() -> Result<()> {
    let stage = Stage::new()?;
    let intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    stage.send(stage.load(100))?;
    for instance in [run, intercept] {
        let line = instance.command_line.clone();
        instance.signal(Signal::SIGTERM)?;
        let ended = instance.wait(SETTLE)?;
        ensure!(ended.status.success(), "`{line}` ended with {}: {}", ended.status, ended.stderr);
    }
    Ok(())
}

fn a_second_instance_of_one_name_is_refused() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    let name = run.name.clone();
    let map = lab::twin::map(ONLINE_PORT, stage.at_target());
    let args = ["-x", &map, "-s", "10.88.0.5", "-i", "eth0", "--name", &name];
    let second = stage.twin.begin(Kind::Run, &stage.net.online, &args)?;
    let ended = second.wait(SETTLE)?;
    ensure!(matches!(ended.status.code(), Some(2 | 3)), "ended with {}: {}", ended.status, ended.stderr);
    ensure!(ended.stderr.contains(&name), "the sentence does not name {name}: {}", ended.stderr);
    step("the first is not disturbed");
    let report = stage.send(Load { rate: Some(1_000.0), ..stage.load(1_000) })?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn no_intercept_is_one_sentence_and_nothing_started() -> Result<()> {
    let stage = Stage::new()?;
    let map = lab::twin::map(ONLINE_PORT, stage.at_target());
    let run =
        stage.twin.begin(Kind::Run, &stage.net.online, &["-x", &map, "-s", "10.88.0.5", "-i", "eth0"])?;
    let (name, pid) = (run.name.clone(), run.pid());
    let ended = run.wait(SETTLE)?;
    ensure!(ended.status.code() == Some(3), "ended with {}: {}", ended.status, ended.stderr);
    ensure!(ended.stderr.contains("10.88.0.5:36524"), "the sentence does not say where: {}", ended.stderr);
    ensure!(
        ended.stderr.contains("tcptwin intercept"),
        "the sentence does not say what to do: {}",
        ended.stderr
    );
    let left = leftovers(&name, pid, stage.twin.runtime(), &stage.net.online)?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    Ok(())
}

fn metrics_say_what_stats_say() -> Result<()> {
    let stage = Stage::new()?;
    real::find("curl")?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--metrics", "127.0.0.1:9136"])?;
    let report = stage.send(Load { rate: Some(1_000.0), ..stage.load(1_000) })?;
    stage.wait_for_target(1)?;
    let stats = run.wait_quiet(SETTLE)?;
    let url = format!("http://{}/metrics", SocketAddr::from(([127, 0, 0, 1], 9_136)));
    let delivered = stats.delivered();
    ensure!(delivered == report.request_bytes, "{}", stats.ledger());
    let fetch = || real::run(&stage.net.online.ns, "curl", &["-sS", "--fail", &url], Duration::from_secs(10));
    let says =
        |text: &str| text.lines().any(|l| l.contains("delivered") && l.ends_with(&format!(" {delivered}")));
    step("the metrics follow within a second or two");
    let said = wait::until("a metric says how many bytes were delivered", Duration::from_secs(4), || {
        fetch().is_ok_and(|out| says(&out.stdout))
    });
    let text = fetch()?.stdout;
    ensure!(text.contains("# TYPE") && said.is_ok(), "no metric says {delivered} bytes delivered:\n{text}");
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn paused_traffic_is_counted_as_paused() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    let first = stage.send(Load { mode: Mode::ClientCloses, ..stage.load(200) })?;
    stage.wait_for_target(1)?;
    step("pause");
    run.ctl(&["pause"])?;
    let second = stage.send(Load { mode: Mode::ClientCloses, first_id: 1_000, ..stage.load(200) })?;
    step("resume");
    run.wait_quiet(SETTLE)?;
    run.ctl(&["resume"])?;
    let third = stage.send(Load { mode: Mode::ClientCloses, first_id: 2_000, ..stage.load(200) })?;
    stage.wait_for(2_000..2_200)?;
    let stats = crate::stage::end(run)?;
    ensure!((1_000..1_200).all(|id| stage.target.times(id) == 0), "a paused request reached the target");
    ensure!(
        (0..200).chain(2_000..2_200).all(|id| stage.target.times(id) == 1),
        "a request is missing or twice"
    );
    ensure!(stats.dropped("paused") == second.request_bytes, "{}", stats.ledger());
    ensure!(stats.delivered() == first.request_bytes + third.request_bytes, "{}", stats.ledger());
    Ok(())
}

fn a_demo_whose_run_is_killed_says_so_and_leaves_nothing() -> Result<()> {
    step("a demo");
    let mut demo = Command::new(env!("CARGO_BIN_EXE_tcptwin"));
    let demo = demo.args(["demo", "--seconds", "10"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let pid = demo.id();
    let name = format!("--name demo-{pid} ");
    let working = || process::tree(pid).into_iter().filter(|p| p.command_line().contains(&name));
    let begun =
        wait::until("its capturer", SETTLE, || working().any(|p| p.command_line().contains("role capturer")));
    step("its run dies");
    // The others of that name are its roles.
    let run = working().find(|p| p.parent == pid);
    let killed = run.map(|run| kill(Pid::from_raw(run.pid.cast_signed()), Signal::SIGKILL));
    let ended = demo.wait_with_output()?;
    let said = String::from_utf8_lossy(&ended.stderr);
    begun?;
    ensure!(killed == Some(Ok(())), "the run was not found: {said}");
    ensure!(ended.status.code() == Some(1), "ended with {}: {said}", ended.status);
    // Early enough, it had not begun to replay.
    let sentences = ["ended in the middle of the demo", "ended at once"];
    ensure!(sentences.iter().any(|sentence| said.contains(sentence)), "it said: {said}");
    let region = format!("/dev/shm/tcptwin-demo-{pid}");
    ensure!(!Path::new(&region).exists(), "left behind: {region}");
    Ok(())
}
