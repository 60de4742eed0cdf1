//! Bad input at the built program: each wrong option, address, range, interface or peer ends in one sentence that says
//! what to do, with exit code 2 (wrong use) or 3 (refused by the checks), and nothing is started or left behind.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A directory of its own for sockets and files, gone at the end.
struct Room(PathBuf);

impl Room {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tcptwin-wrong-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tcptwin"));
        command
            .args(line.split_whitespace())
            .env("XDG_RUNTIME_DIR", &self.0)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .current_dir(&self.0);
        command
    }

    fn output(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs it and checks that it is refused as it should be.
    fn refused(&self, line: &str, exit: i32, part: &str) {
        let output = self.output(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "`tcptwin {line}` said: {said}");
        assert!(said.contains(part), "`tcptwin {line}` said: {said}");
        assert!(said.starts_with("error: ") && !said.contains("panicked"), "`tcptwin {line}` said: {said}");
        assert!(
            output.stdout.is_empty(),
            "`tcptwin {line}` wrote data: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn left_behind(name: &str) -> bool {
    Path::new(&format!("/dev/shm/tcptwin-{name}")).exists()
}

/// Whether packet sockets may be opened here; without that right the checks end before all others.
fn may_capture() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let may =
        set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|bits| bits >> 13 & 1 == 1);
    if !may {
        eprintln!("NOT TESTED: this needs CAP_NET_RAW; run the tests as root");
    }
    may
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

const GOOD: &str = "-x 80-10.0.3.2:8080 -s 10.0.4.2 --plain";

#[test]
fn wrong_use_ends_with_2_and_a_sentence() {
    let room = Room::new("use");
    for (line, part) in [
        ("", "which command?"),
        ("rum", "Did you mean `run`?"),
        ("run", "there is no -x"),
        (
            "run -x 80-10.0.3.2 -s 10.0.4.2",
            "-x 80-10.0.3.2: the target has no port. Write PORT-TARGET:PORT, for example -x 80-10.0.3.2:8080",
        ),
        ("run -x 80-10.0.3.2:0 -s 10.0.4.2", "port 0"),
        ("run -x 80-10.0.3.2:8080 --plain", "There is no -s"),
        ("run -x 80-10.0.3.2:8080,80-10.0.3.2:8080 -s 10.0.4.2 --plain", "given twice"),
        ("run -x 80-target:8080 -s 10.0.4.2 --plain", "resolves no names"),
        ("run -x 80-10.0.3.2:8080 -s 10.0.4.2", "has no key"),
        ("run -x 80-10.0.3.2:8080 -s 10.0.4.2 --key /no/such/key", "the key cannot be read"),
        ("run -x 80-10.0.3.2:8080 -s 10.0.4.2 --key k --plain", "exclude each other"),
        ("run -f /no/such.toml", "the file cannot be read"),
        ("run -x", "has no value"),
        ("run --copis 2", "Did you mean --copies?"),
        ("intercept", "There is no -x"),
        ("intercept -x 10.0.3.2 --plain", "the target has no port"),
        ("intercept -x 10.0.3.2:80", "has no key"),
        ("intercept -x 10.0.3.2:80 --plain -c 198.18.0.0/15", "for --tun only"),
        ("ctl", "which command?"),
        ("ctl percent 0", "nothing would be replayed"),
        ("ctl copies many", "copies are a number"),
        ("stats --name ../x", "1 to 32 letters"),
        ("keygen", "is missing"),
        ("role capturer 0 --name a --epoch x --parent 1", "not by hand"),
    ] {
        room.refused(line, 2, part);
    }
}

#[test]
fn each_option_of_run_refuses_nonsense() {
    let room = Room::new("options");
    for (option, part) in [
        ("-n 0", "nothing would be replayed"),
        ("-n -1", "a number up to 1000"),
        ("-r 101", "from 0.01 to 100"),
        ("-c 198.18.0.1/20", "Write 198.18.0.0/20"),
        ("-c 198.18.0.0/20 --keep-clients", "exclude each other"),
        ("--canary off --keep-clients", "would send the target's answers to real users"),
        ("-i eth0,any", "not both"),
        ("--shards 0", "from 1 to 64"),
        ("--sandbox maybe", "`on`, `no-landlock` or `off`"),
        ("--cores 5-2", "a list of numbers"),
        ("--memory 1MiB", "need --memory"),
        ("--max-sessions 1", "from 16"),
        ("--capture fast", "`ring`, `simple`, `pcap` or `xdp`"),
        ("--capture xdp", "named interfaces only"),
        ("--xdp-force", "--capture xdp only"),
        ("--net 10.0.0.1/8", "no range of addresses"),
        ("--not-net 10.0.0.0/8,x", "--not-net x: this is no range"),
        ("--capture-buffer 1", "from 1MiB"),
        ("--rtt far", "milliseconds"),
        ("--join sometimes", "`boundary`"),
        ("--drain-time 3h", "from 0s to 1h"),
        ("--name a/b", "1 to 32 letters"),
        ("--metrics 9136", "has no address"),
    ] {
        room.refused(&format!("run {GOOD} {option}"), 2, part);
    }
}

#[test]
fn a_wrong_expression_is_refused_in_libpcaps_words_or_the_package_is_named() {
    let room = Room::new("expression");
    let output = room.output(&format!("run {GOOD} -F tcp[tcp"));
    let said = String::from_utf8_lossy(&output.stderr);
    let well = match libpcap::version() {
        Ok(_) => output.status.code() == Some(2) && said.contains("-F tcp[tcp: libpcap does not take"),
        Err(_) => output.status.code() == Some(3) && said.contains("libpcap0.8") && said.contains("--net"),
    };
    assert!(well, "it said: {said}");
}

#[test]
fn a_wrong_file_is_named_with_its_line() {
    let room = Room::new("file");
    let write = |text: &str| fs::write(room.0.join("live.toml"), text).unwrap();
    write("map = \"80-10.0.3.2:8080\"\nintercept = \"10.0.4.2\"\ncopys = 2\n");
    room.refused(
        "run -f live.toml",
        2,
        "live.toml, line 3: there is no option `copys`. Did you mean `copies`?",
    );
    write("map = \"80-10.0.3.2\"\nplain = true\n");
    room.refused("run -f live.toml", 2, "live.toml, line 1: map = \"80-10.0.3.2\": the target has no port");
    write("map = [\n");
    room.refused("run -f live.toml", 2, "not TOML");
    // The command line wins over the file: its mistake is the one that is told.
    write("map = \"80-10.0.3.2:8080\"\nintercept = \"10.0.4.2\"\nplain = true\ncopies = 2\n");
    room.refused("run -f live.toml -n 0", 2, "-n 0: nothing would be replayed");
}

#[test]
fn what_is_no_target_is_refused_before_anything_starts() {
    if !may_capture() {
        return;
    }
    let room = Room::new("target");
    let name = format!("wrong-target-{}", std::process::id());
    for (line, part) in [
        ("-x 80-127.0.0.1:8080 -s 127.0.0.1", "is a loopback address"),
        ("-x 80-[::1]:8080 -s 127.0.0.1", "is a loopback address"),
        ("-x 80-224.0.0.1:8080 -s 127.0.0.1", "is a multicast group"),
        ("-x 80-255.255.255.255:8080 -s 127.0.0.1", "is a broadcast address"),
        ("-x 80-0.0.0.0:8080 -s 127.0.0.1", "is no address of a host"),
        ("-x 8080-127.0.0.1:8080 -s 127.0.0.1 --lab", "is captured itself"),
        ("-x 127.0.0.1:80-127.0.0.1:80 -s 127.0.0.1 --lab", "the captured service itself"),
        ("-x 80-127.0.0.1:8080 -s 127.0.0.1 --lab -i none0", "-i none0: this host has no such interface"),
    ] {
        room.refused(&format!("run {line} --plain --name {name}"), 3, part);
    }
    let refused = "-x 80-127.0.0.1:8080 -s 127.0.0.1:1 --lab";
    room.refused(
        &format!("run {refused} --plain --name {name}"),
        3,
        "no intercept answers at 127.0.0.1:1 (connection refused after 3 tries",
    );
    room.refused(
        &format!("intercept -x 10.0.3.2:8080 --tun -c 10.0.0.0/8 --plain --name {name}"),
        3,
        "the client range 10.0.0.0/8 holds 10.0.3.2 (a target)",
    );
    assert!(!left_behind(&name));
    let stats = room.output(&format!("stats --name {name}"));
    assert_eq!(stats.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&stats.stderr).contains("no instance named"));
}

/// A running intercept on loopback; killed when the test fails.
struct Running(Child);

impl Running {
    fn intercept(room: &Room, name: &str, port: u16, more: &str) -> Self {
        let line =
            format!("intercept -x 127.0.0.1:18080 -i lo --listen 127.0.0.1:{port} --name {name} {more}");
        let child = room.command(&line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let running = Self(child);
        let until = Instant::now() + Duration::from_secs(20);
        while !room.output(&format!("stats --name {name} --json")).status.success() {
            assert!(Instant::now() < until, "the intercept did not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        running
    }

    fn ended(mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_name_in_use_a_busy_port_and_another_key_are_refused() {
    if !may_capture() {
        return;
    }
    let room = Room::new("peer");
    let (name, port) = (format!("wrong-peer-{}", std::process::id()), free_port());
    let running = Running::intercept(&room, &name, port, "--plain");
    room.refused(
        &format!(
            "intercept -x 127.0.0.1:18080 -i lo --listen 127.0.0.1:{} --name {name} --plain",
            free_port()
        ),
        3,
        "runs already",
    );
    room.refused(
        &format!("intercept -x 127.0.0.1:18080 -i lo --listen 127.0.0.1:{port} --name {name}-2 --plain"),
        3,
        &format!("127.0.0.1:{port}"),
    );
    let run =
        |more: &str| format!("run -x 80-127.0.0.1:18080 --lab -s 127.0.0.1:{port} --name {name}-run {more}");
    assert!(room.output("keygen key").status.success());
    room.refused(&run("--key key"), 3, "disagree");
    room.refused(&run("--plain -x 81-127.0.0.1:18081 -c 127.0.0.0/8"), 2, "loopback addresses never leave");
    assert!(!left_behind(&format!("{name}-run")));

    let pause = room.output(&format!("ctl --name {name} pause"));
    assert_eq!(pause.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&pause.stderr).contains("only knows `stop`"));
    assert!(room.output(&format!("ctl --name {name} stop")).status.success());
    assert_eq!(running.ended(), Some(0));
}

#[test]
fn help_and_version_are_data_and_succeed() {
    let room = Room::new("help");
    for line in ["--help", "run --help", "intercept --help", "ctl --help", "--version"] {
        let output = room.output(line);
        assert!(output.status.success() && output.stderr.is_empty(), "{line}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("tcptwin"), "{text}");
        assert!(
            !text.lines().any(|line| line.trim_start().starts_with("role")),
            "the hidden command is listed: {text}"
        );
    }
}
