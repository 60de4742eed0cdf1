//! `tcptwin doctor` against the mistakes that people make: each is made, on real hosts in namespaces, and must be told from
//! all others by its name, with the command that mends it and the host where it is typed. Several at a time, each with
//! clients of its own, on one network.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::real::{self, tool};
use lab::scratch::Scratch;
use lab::story::{Story, step};
use lab::{Host, Instance, Load, netlink, network, wait};
use serde_json::Value;

use crate::stage::{ONLINE_PORT, SETTLE, Stage};

pub(crate) const STORIES: &[Story] = &[
    ("doctor_finds_nothing_where_all_is_well", 90, doctor_finds_nothing_where_all_is_well),
    (
        "doctor_tells_what_is_wrong_with_the_return_channel",
        120,
        doctor_tells_what_is_wrong_with_the_return_channel,
    ),
    ("doctor_tells_what_is_wrong_on_the_target", 180, doctor_tells_what_is_wrong_on_the_target),
    ("doctor_tells_what_is_wrong_on_the_online_host", 120, doctor_tells_what_is_wrong_on_the_online_host),
    ("doctor_tells_what_is_wrong_on_the_assistant", 90, doctor_tells_what_is_wrong_on_the_assistant),
    ("doctor_explains_a_run_that_goes_on", 120, doctor_explains_a_run_that_goes_on),
];

/// Longest examination, on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(60);

/// One that goes on.
struct Examination {
    child: Child,
    line: String,
    files: Scratch,
}

/// What it found.
struct Findings {
    line: String,
    exit: Option<i32>,
    whole: Value,
    stderr: String,
}

/// Begins `tcptwin doctor ARGS --json` on a host.
fn begin(stage: &Stage, host: &Host, args: &[&str]) -> Result<Examination> {
    begin_as(stage, host, Command::new(env!("CARGO_BIN_EXE_tcptwin")), args)
}

fn begin_as(stage: &Stage, host: &Host, mut command: Command, args: &[&str]) -> Result<Examination> {
    let files = Scratch::new("doctor")?;
    command
        .arg("doctor")
        .args(args)
        .arg("--json")
        .env("XDG_RUNTIME_DIR", stage.twin.runtime())
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(File::create(files.file("out"))?)
        .stderr(File::create(files.file("err"))?);
    let child = host.ns.spawn(command).context("starting tcptwin doctor")?;
    Ok(Examination { child, line: format!("tcptwin doctor {}", args.join(" ")), files })
}

impl Findings {
    /// Whether a counter of the firewall was seen to move.
    fn has_moved(&self) -> bool {
        self.all()
            .into_iter()
            .any(|one| one["seen"].as_str().is_some_and(|seen| seen.contains("packets dropped in")))
    }
}

impl Examination {
    fn end(mut self) -> Result<Findings> {
        ensure!(tool::wait_for(&mut self.child, LIMIT)?, "`{}` is not over after {LIMIT:?}", self.line);
        let read = |name: &str| std::fs::read_to_string(self.files.file(name)).unwrap_or_default();
        let (out, stderr) = (read("out"), read("err"));
        let whole = serde_json::from_str(&out).unwrap_or(Value::Null);
        Ok(Findings { line: self.line, exit: self.child.wait()?.code(), whole, stderr })
    }
}

impl Findings {
    fn all(&self) -> Vec<&Value> {
        self.whole["findings"].as_array().map(|all| all.iter().collect()).unwrap_or_default()
    }

    /// All is well, and each of these was looked at.
    fn are_none(&self, checks: &[&str]) -> Result<()> {
        ensure!(
            self.exit == Some(0),
            "`{}` ended with {:?}: {:#}\n{}",
            self.line,
            self.exit,
            self.whole,
            self.stderr
        );
        for check in checks {
            let ok = self.all().into_iter().any(|one| {
                one["outcome"] == "ok" && one["check"].as_str().is_some_and(|name| name.starts_with(check))
            });
            ensure!(ok, "`{}` says nothing good of {check}: {:#}", self.line, self.whole);
        }
        Ok(())
    }

    /// What is wrong, and nothing else, on that host; a command with these words mends it.
    fn are(&self, fault: &str, on: &str, command: &str) -> Result<()> {
        ensure!(
            self.exit == Some(3),
            "`{}` ended with {:?}: {:#}\n{}",
            self.line,
            self.exit,
            self.whole,
            self.stderr
        );
        let failed: Vec<&Value> = self.all().into_iter().filter(|one| one["outcome"] == "failed").collect();
        let faults: Vec<&str> = failed.iter().filter_map(|one| one["fault"].as_str()).collect();
        ensure!(
            !faults.is_empty() && faults.iter().all(|one| *one == fault),
            "`{}` found {faults:?}, not {fault}: {:#}",
            self.line,
            self.whole
        );
        let remedies = failed.iter().flat_map(|one| one["remedies"].as_array().cloned().unwrap_or_default());
        let fits = |remedy: &Value| {
            remedy["on"].as_str().is_some_and(|host| host.contains(on))
                && remedy["command"].as_str().is_some_and(|text| text.contains(command))
        };
        ensure!(
            remedies.into_iter().any(|remedy| fits(&remedy)),
            "`{}` names no `{command}` on {on}: {:#}",
            self.line,
            self.whole
        );
        println!("    {fault}: told, with `{command}` on {on}");
        Ok(())
    }
}

/// The arguments of a run to the target with answers by an intercept, under a name of its own.
fn arguments(stage: &Stage, name: &str, via: &str, more: &[&str]) -> Vec<String> {
    let map = lab::twin::map(ONLINE_PORT, stage.at_target());
    let mut args = vec!["--name".to_owned(), name.to_owned(), "-s".to_owned(), via.to_owned()];
    if !more.contains(&"-x") {
        args.extend(["-x".to_owned(), map]);
    }
    if !more.contains(&"-i") {
        args.extend(["-i".to_owned(), "eth0".to_owned()]);
    }
    if !more.contains(&"--key") {
        args.push("--plain".to_owned());
    }
    args.extend(more.iter().map(|one| (*one).to_owned()));
    args
}

fn online(stage: &Stage, name: &str, via: &str, more: &[&str]) -> Result<Examination> {
    let args = arguments(stage, name, via, more);
    begin(stage, &stage.net.online, &args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Clients, so that the capture sees some, until dropped.
fn clients(stage: &Stage) -> Result<lab::load::RunningLoad> {
    stage.start(Load { rate: Some(100.0), connections: 4, ..stage.load(50_000) })
}

fn doctor_finds_nothing_where_all_is_well() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let load = clients(&stage)?;
    step("by link, by raw IP, and with kept clients");
    let each = [
        online(&stage, "link", "10.88.0.5", &[])?,
        online(&stage, "raw", "10.88.0.5", &["--inject", "raw", "-c", "198.18.64.0/20"])?,
    ];
    let checks = [
        "privileges",
        "interface eth0",
        "service :80",
        "capture :80",
        "path out",
        "clients",
        "clock",
        "10.88.0.5:36524",
        "service",
        "SYN out",
        "SYN-ACK seen",
        "header back",
        "data",
    ];
    for one in each {
        one.end()?.are_none(&checks)?;
    }
    step("as a person reads it");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tcptwin"));
    let args = arguments(&stage, "person", "10.88.0.5", &["-c", "198.18.80.0/20"]);
    command.arg("doctor").args(&args).env("XDG_RUNTIME_DIR", stage.twin.runtime()).stdin(Stdio::null());
    let said = stage.net.online.ns.enter(move || command.output())?;
    let text = String::from_utf8_lossy(&said.stdout);
    println!("{text}");
    ensure!(said.status.success() && text.ends_with("all well\n"), "{} {text}", said.status);
    for line in [
        "online     privileges        ok ",
        "probe      header back       ok ",
        "intercept  10.88.0.5:36524   ok ",
    ] {
        ensure!(text.lines().any(|one| one.starts_with(line)), "no line `{line}` in\n{text}");
    }
    ensure!(text.lines().all(|line| line.chars().count() <= 100), "a line is too long in\n{text}");
    step("nothing is left behind");
    let tables = real::run(&stage.net.online.ns, "nft", &["list", "tables"], LIMIT)?.stdout;
    ensure!(tables.trim().is_empty(), "tables are left: {tables}");
    step("the other two hosts say the same");
    let target = stage.at_target().to_string();
    let there = begin(&stage, &stage.net.target, &["target", "-x", &target, "-s", "10.88.0.5"])?;
    let beside = begin(&stage, &stage.net.assistant, &["intercept", "-x", &target, "-i", "eth0", "--plain"])?;
    there.end()?.are_none(&["service", "answers", "reverse path", "drops", "firewall"])?;
    beside.end()?.are_none(&["interface eth0", "forwarding", "target"])?;
    load.stop()?;
    Ok(())
}

/// Something that speaks the channel's first bytes in a version that is not ours.
fn other_version(host: &Host, port: u16) -> Result<()> {
    let address = SocketAddr::new(host.v4(), port);
    let listener = host.ns.enter(move || TcpListener::bind(address))?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut preamble = vec![0; returns::PREAMBLE];
            if stream.read_exact(&mut preamble).is_err() {
                continue;
            }
            // The dialer's own preamble with the next version in it, wherever that stands.
            let ours = returns::VERSION.to_le_bytes();
            if let Some(at) = preamble.windows(2).skip(4).position(|two| two == ours) {
                preamble[at + 4..at + 6].copy_from_slice(&(returns::VERSION + 1).to_le_bytes());
            }
            let _ = stream.write_all(&preamble);
            let _ = stream.read(&mut [0; 64]);
        }
    });
    Ok(())
}

fn keys(dir: &Scratch, name: &str) -> Result<String> {
    let file = dir.file(name).to_string_lossy().into_owned();
    let made = Command::new(env!("CARGO_BIN_EXE_tcptwin")).args(["keygen", &file]).output()?;
    ensure!(made.status.success(), "keygen: {}", String::from_utf8_lossy(&made.stderr));
    Ok(file)
}

/// Rules of a host until its namespace ends.
fn rules(host: &Host, text: &str) -> Result<()> {
    let scratch = Scratch::new("rules")?;
    let file = scratch.file("rules");
    std::fs::write(&file, text)?;
    real::run(&host.ns, "nft", &["-f", &file.to_string_lossy()], LIMIT).with_context(|| text.to_owned())?;
    Ok(())
}

fn doctor_tells_what_is_wrong_with_the_return_channel() -> Result<()> {
    let stage = Stage::new()?;
    let load = clients(&stage)?;
    let _intercept = stage.intercept()?;
    let dir = Scratch::new("keys")?;
    let (key, other) = (keys(&dir, "key")?, keys(&dir, "other")?);
    let target = stage.at_target().to_string();
    let args = ["-x", &target, "-i", "eth0", "--key", &key];
    let _keyed = stage.twin.intercept(&stage.net.assistant2, &args)?;
    let run = stage.run(&["-c", "198.18.32.0/20"])?;
    other_version(&stage.net.client, 40_001)?;
    rules(
        &stage.net.online2,
        "table inet filter { chain input { type filter hook input priority 0; tcp dport 36524 drop; }; }\n",
    )?;
    let strange = "10.88.0.4:8081";
    step("eight mistakes at once");
    let each = [
        (
            "no_intercept",
            "10.88.0.2",
            "tcptwin intercept -x",
            online(&stage, "none", "10.88.0.2", &["-c", "198.18.0.0/24"])?,
        ),
        (
            "wrong_intercept_port",
            "online",
            "-s 10.88.0.5",
            online(&stage, "port", "10.88.0.5:40000", &["-c", "198.18.1.0/24"])?,
        ),
        (
            "wrong_key",
            "online",
            "scp",
            online(&stage, "key", "10.88.0.7", &["-c", "198.18.2.0/24", "--key", &other])?,
        ),
        (
            "version",
            "10.88.0.2",
            "tcptwin --version",
            online(&stage, "version", "10.88.0.2:40001", &["-c", "198.18.3.0/24"])?,
        ),
        (
            "intercept_firewall",
            "10.88.0.6",
            "tcp dport 36524 accept",
            online(&stage, "wall", "10.88.0.6", &["-c", "198.18.4.0/24"])?,
        ),
        (
            "pool_taken",
            "online",
            "tcptwin run -c",
            online(&stage, "two", "10.88.0.5", &["-c", "198.18.32.0/20"])?,
        ),
        ("key_mode", "10.88.0.7", "--key", online(&stage, "mode", "10.88.0.7", &["-c", "198.18.5.0/24"])?),
        (
            "intercept_host_down",
            "online",
            "ip neigh show 10.88.0.77",
            online(&stage, "down", "10.88.0.77", &["-c", "198.18.6.0/24"])?,
        ),
    ];
    for (fault, on, command, one) in each {
        one.end()?.are(fault, on, command)?;
    }
    step("a target that intercept does not watch");
    let map = format!("80-{strange}");
    let found = online(&stage, "watch", "10.88.0.5", &["-c", "198.18.7.0/24", "-x", &map])?.end()?;
    let faults = |fault: &str| found.all().into_iter().any(|one| one["fault"] == fault);
    ensure!(faults("target_unknown_to_intercept") && faults("target_refuses"), "{:#}", found.whole);
    load.stop()?;
    run.stop()?;
    Ok(())
}

/// The clients of one mistake.
fn pool(number: u8) -> (IpAddr, String) {
    (IpAddr::from([10, number, 0, 0]), format!("10.{number}.0.0/24"))
}

fn doctor_tells_what_is_wrong_on_the_target() -> Result<()> {
    let mut stage = Stage::new()?;
    let load = clients(&stage)?;
    let _intercept = stage.intercept()?;
    let (target, assistant) = (stage.at_target().to_string(), stage.net.assistant.v4());
    let [none, elsewhere, wall, invalid, refused, good] = [99, 98, 95, 94, 93, 92].map(pool);
    for (range, via) in [
        (&elsewhere, stage.net.client.v4()),
        (&wall, assistant),
        (&invalid, assistant),
        (&refused, assistant),
        (&good, assistant),
    ] {
        network::route_range(&stage.net.target, range.0, 24, via)?;
    }
    rules(
        &stage.net.target,
        &format!(
            "table inet filter {{ chain input {{ type filter hook input priority 0; ip saddr {} drop; ip saddr {} ct state invalid drop; ip saddr {} reject with icmp admin-prohibited; }}\n chain out {{ type filter hook output priority -300; ip daddr {} notrack; }}; }}\n",
            wall.1, invalid.1, refused.1, invalid.1
        ),
    )?;
    step("five mistakes at once, from the online host");
    let each = [
        (
            "answer_unseen",
            "ip route replace 10.99.0.0/24 via 10.88.0.5",
            online(&stage, "none", "10.88.0.5", &["-c", &none.1])?,
        ),
        (
            "answer_unseen",
            "doctor target -x 10.88.0.4:8080 -s 10.88.0.5 -c 10.98.0.0/24",
            online(&stage, "else", "10.88.0.5", &["-c", &elsewhere.1])?,
        ),
        ("answer_unseen", "doctor target", online(&stage, "wall", "10.88.0.5", &["-c", &wall.1])?),
        ("second_packet_lost", "notrack", online(&stage, "invalid", "10.88.0.5", &["-c", &invalid.1])?),
        ("target_rejects", "nft insert rule", online(&stage, "refused", "10.88.0.5", &["-c", &refused.1])?),
    ];
    for (fault, command, one) in each {
        one.end()?.are(fault, "10.88.0.4", command)?;
    }
    step("the target itself says which");
    let there = |range: &str| {
        begin(&stage, &stage.net.target, &["target", "-x", &target, "-s", "10.88.0.5", "-c", range])
    };
    let each = [
        ("target_no_route", "ip route replace 10.99.0.0/24 via 10.88.0.5", there(&none.1)?),
        ("target_wrong_route", "ip route replace 10.98.0.0/24 via 10.88.0.5", there(&elsewhere.1)?),
        ("target_firewall", "nft insert rule inet filter input ip saddr 10.95.0.0/24", there(&wall.1)?),
        ("target_firewall", "notrack", there(&invalid.1)?),
    ];
    for (fault, command, one) in each {
        one.end()?.are(fault, "target", command)?;
    }
    step("a rule that counts while probes meet it is told with its number, and alone");
    rules(
        &stage.net.target,
        &format!(
            "table inet more {{ chain input {{ type filter hook input priority 1; ip saddr {} counter drop; }}; }}\n",
            good.1
        ),
    )?;
    let mut found = None;
    wait::until("a probe and a look at the counters meet", SETTLE, || {
        let look = || -> Result<Findings> {
            let probes = online(&stage, "counted", "10.88.0.5", &["-c", &good.1])?;
            let looks = [there(&good.1)?.end()?, there(&good.1)?.end()?];
            probes.end()?;
            let [first, second] = looks;
            Ok(if second.has_moved() { second } else { first })
        };
        found = look().ok().filter(Findings::has_moved);
        found.is_some()
    })?;
    let found = found.context("it was found")?;
    found.are("target_firewall", "target", "nft insert rule inet more input ip saddr 10.92.0.0/24")?;
    let told =
        found.all().into_iter().find(|one| one["fault"] == "target_firewall").context("it was told")?;
    let (seen, wrong) = (told["seen"].as_str().unwrap_or(""), told["wrong"].as_str().unwrap_or(""));
    ensure!(seen.contains("packets dropped in") && !wrong.contains("inet filter"), "{told:#}");
    real::run(&stage.net.target.ns, "nft", &["flush", "ruleset"], LIMIT)?;

    step("a strict reverse path: the way back leads to another device");
    let strict = pool(97);
    let peer = stage.net.assistant2.ns.fd().as_raw_fd();
    stage.net.target.ns.enter(move || {
        netlink::add_veth("back0", "back1", peer)?;
        netlink::add_address("back0", IpAddr::from([10, 96, 0, 1]), 24)?;
        netlink::set_up("back0", true)
    })?;
    stage.net.assistant2.ns.enter(|| netlink::set_up("back1", true))?;
    network::route_range(&stage.net.target, strict.0, 24, IpAddr::from([10, 96, 0, 2]))?;
    stage.net.target.ns.set_sysctl("net/ipv4/conf/eth0/rp_filter", "1")?;
    let found = online(&stage, "strict", "10.88.0.5", &["-c", &strict.1])?.end()?;
    found.are("answer_unseen", "10.88.0.4", "net.ipv4.conf.all.rp_filter=2")?;
    begin(&stage, &stage.net.target, &["target", "-x", &target, "-s", "10.96.0.2", "-c", &strict.1])?
        .end()?
        .are("target_reverse_path", "target", "net.ipv4.conf.eth0.rp_filter=2")?;
    stage.net.target.ns.set_sysctl("net/ipv4/conf/eth0/rp_filter", "0")?;

    step("a path that is narrower than its ends know");
    stage.net.switch.enter(|| netlink::set_mtu("to-target", 1_300))?;
    let found = online(&stage, "narrow", "10.88.0.5", &["-c", &good.1])?.end()?;
    found.are("path_mtu", "online", "ip route replace 10.88.0.4 dev eth0 mtu")?;
    stage.net.switch.enter(|| netlink::set_mtu("to-target", 1_500))?;

    step("the service is down");
    stage.target_service.take();
    let found = online(&stage, "service", "10.88.0.5", &["-c", &good.1])?.end()?;
    found.are("target_refuses", "10.88.0.4", "ss -ltn 'sport = :8080'")?;
    stage.restart_target()?;
    step("another port than the service's own: the target names those that are there");
    let found = begin(
        &stage,
        &stage.net.target,
        &["target", "-x", "10.88.0.4:8081", "-s", "10.88.0.5", "-c", &good.1],
    )?
    .end()?;
    found.are("target_refuses", "target", "ss -ltnp")?;
    ensure!(found.whole.to_string().contains("10.88.0.4:8080"), "{:#}", found.whole);
    load.stop()?;
    Ok(())
}

fn doctor_tells_what_is_wrong_on_the_online_host() -> Result<()> {
    let stage = Stage::new()?;
    let load = clients(&stage)?;
    let _intercept = stage.intercept()?;
    let own = stage.net.online.ns.fd().as_raw_fd();
    stage.net.online.ns.enter(move || {
        netlink::add_veth("eth9", "eth8", own)?;
        netlink::set_up("eth9", true)?;
        netlink::set_up("eth8", true)
    })?;
    rules(
        &stage.net.online,
        "table inet filter { chain output { type filter hook output priority 0; ip saddr 198.18.9.0/24 drop; }; }\n",
    )?;
    step("seven mistakes at once");
    let at_target = stage.at_target().to_string();
    let (wrong_port, free) = (format!("81-{at_target}"), "198.18.8.0/24");
    let mut strip = Command::new(tool::find("setpriv")?);
    strip.args(["--bounding-set", "-net_raw", env!("CARGO_BIN_EXE_tcptwin")]);
    let args = arguments(&stage, "unable", "10.88.0.5", &["-c", "198.18.10.0/24"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let unable = begin_as(&stage, &stage.net.online, strip, &args)?;
    let each = [
        (
            "local_firewall",
            "nft insert rule inet filter output ip saddr 198.18.9.0/24",
            online(&stage, "wall", "10.88.0.5", &["--inject", "raw", "-c", "198.18.9.0/24"])?,
        ),
        (
            "wrong_online_port",
            "sport = :81",
            online(&stage, "port", "10.88.0.5", &["-c", free, "-x", &wrong_port])?,
        ),
        (
            "wrong_interface",
            "-i eth0",
            online(&stage, "device", "10.88.0.5", &["-c", "198.18.11.0/24", "-i", "eth9"])?,
        ),
        (
            "no_interface",
            "ip -br address",
            online(&stage, "nodevice", "10.88.0.5", &["-c", "198.18.12.0/24", "-i", "eth7"])?,
        ),
        ("pool_in_use", "tcptwin run -c", online(&stage, "pool", "10.88.0.5", &["-c", "10.88.0.128/25"])?),
        (
            "filtered_out",
            "tcpdump",
            online(&stage, "nets", "10.88.0.5", &["-c", "198.18.13.0/24", "--net", "10.77.0.0/16"])?,
        ),
        ("no_capability", "setcap cap_net_raw", unable),
    ];
    for (fault, command, one) in each {
        one.end()?.are(fault, "online", command)?;
    }
    step("forms of -c that match nothing elsewhere are refused with the right one");
    for (form, part) in [
        ("198.18.x.x", "Write ADDRESS/LENGTH"),
        ("198.18.0.1/20", "Write 198.18.0.0/20"),
        ("198.18.0.", "not a range"),
    ] {
        let found = online(&stage, "form", "10.88.0.5", &["-c", form])?.end()?;
        ensure!(
            found.exit == Some(2) && found.stderr.contains(part),
            "{}: {:?} {}",
            found.line,
            found.exit,
            found.stderr
        );
    }
    load.stop()?;
    Ok(())
}

fn doctor_tells_what_is_wrong_on_the_assistant() -> Result<()> {
    let stage = Stage::new()?;
    let load = clients(&stage)?;
    let target = stage.at_target().to_string();
    let there = || {
        begin(
            &stage,
            &stage.net.assistant,
            &["intercept", "-x", &target, "-i", "eth0", "--plain", "--name", "mine"],
        )
    };
    step("it forwards");
    stage.net.assistant.ns.set_sysctl("net/ipv4/ip_forward", "1")?;
    there()?.end()?.are("forwarding", "assistant", "sysctl -w net.ipv4.ip_forward=0")?;
    let held = ["intercept", "-x", &target, "-i", "eth0", "--plain", "--name", "mine", "--guard"];
    begin(&stage, &stage.net.assistant, &held)?.end()?.are_none(&["forwarding"])?;
    stage.net.assistant.ns.set_sysctl("net/ipv4/ip_forward", "0")?;
    step("no such interface");
    let found =
        begin(&stage, &stage.net.assistant, &["intercept", "-x", &target, "-i", "eth5", "--plain"])?.end()?;
    found.are("no_interface", "assistant", "ip -br address")?;
    step("a firewall before the port is said, and what a running intercept sees");
    rules(
        &stage.net.assistant,
        "table inet filter { chain input { type filter hook input priority 0; policy drop; }; }\n",
    )?;
    let _intercept: Instance =
        stage.twin.intercept(&stage.net.assistant, &["-x", &target, "-i", "eth0", "--name", "mine"])?;
    let found = there()?.end()?;
    let has = |fault: &str| found.all().into_iter().any(|one| one["fault"] == fault);
    ensure!(has("listen_firewall") && has("nothing_seen") && found.exit == Some(0), "{:#}", found.whole);
    load.stop()?;
    Ok(())
}

fn doctor_explains_a_run_that_goes_on() -> Result<()> {
    let mut stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    let load = clients(&stage)?;
    wait::until("sessions were answered", SETTLE, || {
        run.stats().is_ok_and(|stats| stats.number("/turns/answered").is_ok_and(|turns| turns > 50))
    })?;
    step("all is well");
    let name = run.stats()?.value()["name"].as_str().context("stats name the run")?.to_owned();
    let whole = ["--name", name.as_str()];
    begin(&stage, &stage.net.online, &whole)?.end()?.are_none(&[
        "service :80",
        "capture :80",
        "way and back",
        "sessions",
    ])?;
    step("one client of it");
    let local = stage.net.online.ns.enter(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))?;
    let client = client_of(&local).with_context(|| format!("no client is connected: {local}"))?;
    let found = begin(&stage, &stage.net.online, &["--name", name.as_str(), &client])?.end()?;
    let one = &found.whole["sessions"][0];
    ensure!(
        found.exit == Some(0) && one["client"] == client.as_str() && one["phase"] == "open",
        "{:#}",
        found.whole
    );
    ensure!(
        one["steps"].as_array().is_some_and(|steps| steps.len() >= 10)
            && ["captured", "sent", "answered"].iter().all(|step| happened(one, step)),
        "{:#}",
        found.whole
    );
    step("the target's service stops");
    stage.target_service.take();
    wait::until("sessions fail", SETTLE, || {
        run.stats().is_ok_and(|stats| stats.value()["targets"][0]["state"] == "sick")
    })?;
    let found = begin(&stage, &stage.net.online, &whole)?.end()?;
    let named =
        |fault: &str| found.all().into_iter().any(|one| one["fault"] == fault && one["outcome"] == "failed");
    ensure!(found.exit == Some(3) && named("target_refuses"), "{:#}", found.whole);
    step("one that failed is remembered, with its steps");
    load.stop()?;
    wait::until("its clients' ends were captured", SETTLE, || {
        begin(&stage, &stage.net.online, &whole)
            .and_then(Examination::end)
            .is_ok_and(|found| found.whole["failed_last"][0]["client"].is_string())
    })?;
    let found = begin(&stage, &stage.net.online, &whole)?.end()?;
    let failed = found.whole["failed_last"][0]["client"].as_str().context("one has failed")?.to_owned();
    let found = begin(&stage, &stage.net.online, &["--name", name.as_str(), &failed])?.end()?;
    let sessions = found.whole["sessions"].as_array().context("sessions")?;
    let one = sessions.iter().find(|one| one["phase"] == "over").context("one that is over")?;
    ensure!(
        found.exit == Some(3)
            && one["failure"].is_string()
            && ["syn_sent", "failed"].iter().all(|step| happened(one, step)),
        "{:#}",
        found.whole
    );
    // Else its region would stay, for a successor to take over.
    run.stop_run()?;
    Ok(())
}

/// Whether a session's diary has this step.
fn happened(session: &Value, step: &str) -> bool {
    session["steps"].as_array().is_some_and(|steps| steps.iter().any(|one| one["step"] == step))
}

/// A connected client of the online service, as the kernel writes the table down.
fn client_of(table: &str) -> Option<String> {
    let port = format!(":{ONLINE_PORT:04X}");
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, remote, state) = (fields.get(1)?, fields.get(2)?, fields.get(3)?);
        let (ip, remote_port) = remote.split_once(':')?;
        let ip = u32::from_str_radix(ip, 16).ok()?.to_le_bytes();
        let remote_port = u16::from_str_radix(remote_port, 16).ok()?;
        (local.ends_with(&port) && *state == "01")
            .then(|| SocketAddr::new(IpAddr::from(ip), remote_port).to_string())
    })
}
