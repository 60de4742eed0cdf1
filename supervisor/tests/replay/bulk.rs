//! Large requests and answers: super-frames, windows, segments cut to the target's size.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::real::{self, Nginx, nginx};
use lab::story::{Story, step};
use lab::{Answers, HttpOptions, Load, Mode, Network, wait};

use crate::stage::{ONLINE_PORT, SETTLE, Stage, TARGET_PORT, answered, clean, end, twin};

pub(crate) const STORIES: &[Story] = &[
    ("posts_of_100_kb_arrive_byte_for_byte", 60, posts_of_100_kb_arrive_byte_for_byte),
    ("a_post_of_100_kb_on_each_connection", 60, a_post_of_100_kb_on_each_connection),
    ("answers_of_one_megabyte_are_acknowledged", 60, answers_of_one_megabyte_are_acknowledged),
    ("nginx_sends_files_and_takes_uploads", 60, nginx_sends_files_and_takes_uploads),
];

fn posts_of_100_kb_arrive_byte_for_byte() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    let load = Load { connections: 8, rate: Some(100.0), body_bytes: 100_000, ..stage.load(300) };
    let report = stage.send(load)?;
    let stats = stage.all_replayed(run, &report, 1)?;
    // With offloads on, the capture sees far fewer segments than 1,448-byte ones would be.
    let segments = stats.number("/ledger/captured/segments")?;
    ensure!(segments < report.request_bytes / 1_448, "{segments} segments: the capture saw no super-frame");
    Ok(())
}

fn a_post_of_100_kb_on_each_connection() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let load = Load { mode: Mode::ServerCloses, rate: Some(60.0), body_bytes: 100_000, ..stage.load(180) };
    let report = stage.send(load)?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn answers_of_one_megabyte_are_acknowledged() -> Result<()> {
    let options = HttpOptions { response_bytes: 1 << 20, ..HttpOptions::default() };
    let stage = Stage::with(Answers::ViaAssistant, options)?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    let report = stage.send(Load { connections: 8, rate: Some(50.0), ..stage.load(150) })?;
    let stats = stage.all_replayed(run, &report, 1)?;
    ensure!(stats.number("/turns/unanswered")? == 0, "{} unanswered", stats.number("/turns/unanswered")?);
    Ok(())
}

fn nginx_sends_files_and_takes_uploads() -> Result<()> {
    let net = Network::standard()?;
    real::find("curl")?;
    let online = Nginx::start(&net.online, ONLINE_PORT)?;
    let target = Nginx::start(&net.target, TARGET_PORT)?;
    let twin = twin()?;
    let _intercept = twin.intercept(&net.assistant, &["-x", "10.88.0.4:8080", "-i", "eth0"])?;
    let run = twin.run(&net.online, &["-x", "80-10.88.0.4:8080", "-s", "10.88.0.5", "-i", "eth0"])?;
    let limit = Duration::from_secs(20);
    let body = lab::scratch::Scratch::new("body")?;
    std::fs::write(body.file("100k"), vec![b'p'; 100_000])?;
    let data = format!("@{}", body.file("100k").display());
    step("curl fetches a file of 1 MiB and uploads 100 KB, one connection each, then both on one");
    for n in 0..5 {
        let (big, upload) = (format!("http://10.88.0.3/big/{n}"), format!("http://10.88.0.3/upload/{n}"));
        real::run(&net.client.ns, "curl", &["-sS", "--fail", "-o", "/dev/null", &big], limit)?;
        real::run(
            &net.client.ns,
            "curl",
            &["-sS", "--fail", "-H", "Expect:", "--data-binary", &data, &upload],
            limit,
        )?;
    }
    let both = [
        "-sS",
        "--fail",
        "-o",
        "/dev/null",
        "http://10.88.0.3/big/one",
        "-o",
        "/dev/null",
        "http://10.88.0.3/big/two",
    ];
    real::run(&net.client.ns, "curl", &both, limit)?;
    let to = SocketAddr::new(net.online.v4(), ONLINE_PORT);
    answered(Load { first_id: 100, ..Load::new(to, 50) }.run(&net.client.ns)?)?;
    let _ = wait::until("nginx at the target", SETTLE, || target.answered().is_ok_and(|n| n >= 62));
    let stats = end(run)?;
    let found = nginx::differences(&online.requests()?, &target.requests()?, 1);
    ensure!(found.is_empty() && online.answered()? == 62, "the logs differ: {found:#?}");
    clean(&stats, stats.wanted() - stats.dropped("duplicate"))
}
