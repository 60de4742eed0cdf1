use super::*;
use crate::options::Place;
use crate::plan::{Clients, OnGap, Protocol};

fn arena(sessions: u32, chunks: u32) -> u64 {
    u64::from(sessions) * 448 + u64::from(chunks) * 1024 + (1 << 20)
}

fn facts(cores: u16) -> Facts {
    Facts {
        cores: (0..cores).collect(),
        host_id: 42,
        random: [1, 2, 3, 4, 5, 6],
        key: Some([7; 32]),
        arena_bytes: arena,
        format: 0,
    }
}

fn options(pairs: &[(Key, &str)]) -> Options {
    let mut options = Options::default();
    pairs.iter().for_each(|(key, text)| options.give(*key, text, Place::CommandLine));
    options
}

/// The smallest good command line, and what is added to it.
fn plan(extra: &[(Key, &str)]) -> Result<Plan, Refusal> {
    let mut all = vec![(Key::Map, "80-10.0.3.2:8080"), (Key::Intercept, "10.0.4.2")];
    all.extend_from_slice(extra);
    plan_from(&options(&all), &facts(8))
}

#[test]
fn the_smallest_command_line_makes_a_whole_plan() {
    let plan = plan(&[]).unwrap();
    assert_eq!(plan.name, "default");
    assert_eq!(plan.instance, 1);
    assert_eq!(plan.intercepts, ["10.0.4.2:36524".parse().unwrap()]);
    assert_eq!(
        plan.targets,
        [Target { addr: "10.0.3.2:8080".parse().unwrap(), mtu: 1500, protocol: Protocol::Tcp }]
    );
    assert!(matches!(plan.clients, Clients::Pool { v4: Some(_), v6: None, chosen: true }));
    assert_eq!((plan.copies_milli, plan.percent_ppm, plan.shards), (1_000, 1_000_000, 4));
    assert_eq!(plan.capture.engine, CaptureEngine::Ring);
    assert!(plan.replay.wait && plan.replay.rtt == Rtt::Measured && plan.replay.join == Join::Boundary);
    assert_eq!(plan.replay.on_gap, OnGap::Skip);
    assert_eq!(Plan::from_bytes(&plan.to_bytes()).unwrap(), plan);
}

#[test]
fn ways_are_probed_unless_nobody_real_is_at_risk() {
    assert_eq!(plan(&[]).unwrap().canary, CanaryPlan::On);
    assert_eq!(plan(&[(Key::Canary, "off")]).unwrap().canary, CanaryPlan::Off);
    let keep = |text| plan(&[(Key::KeepClients, ""), (Key::Canary, text)]);
    let from = CanaryPlan::From(vec!["10.7.7.7".parse().unwrap(), "fd00::7".parse().unwrap()]);
    assert_eq!(keep("10.7.7.7,fd00::7").unwrap().canary, from);
    for (refused, part) in [
        (keep("off"), "would send the target's answers to real users"),
        (keep("nobody"), "say `off`, or an address"),
        (plan(&[(Key::Canary, "10.7.7.7")]), "for --keep-clients only"),
    ] {
        let refusal = refused.unwrap_err();
        assert!(refusal.exit == 2 && refusal.sentence.contains(part), "{refusal}");
    }
}

#[test]
fn what_is_captured_can_be_narrowed() {
    let plan =
        plan(&[(Key::Net, "10.0.0.0/8,fd00::7"), (Key::NotNet, "10.1.2.x"), (Key::Filter, "tcp")]).unwrap();
    let shown = |ranges: &[flow::Range]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown(&plan.capture.filter.inside), ["10.0.0.0/8", "fd00::7/128"]);
    assert_eq!(shown(&plan.capture.filter.outside), ["10.1.2.0/24"]);
    assert_eq!(plan.capture.filter.expression.as_deref(), Some("tcp"));
    let many: Vec<String> = (0..65).map(|i| format!("10.0.{i}.0/24")).collect();
    let refusal = super::tests::plan(&[(Key::Net, &many.join(","))]).unwrap_err();
    assert!(refusal.sentence.contains("more than 64 ranges"), "{refusal}");
    let refusal = super::tests::plan(&[(Key::XdpForce, "")]).unwrap_err();
    assert!(refusal.sentence.contains("--capture xdp only"), "{refusal}");
}

#[test]
fn two_mappings_to_one_target_share_it_in_the_sealed_list() {
    let plan = plan(&[(Key::Map, "81-10.0.3.2:8080"), (Key::Map, "82-10.0.3.3:8080")]).unwrap();
    assert_eq!(plan.targets.len(), 2);
    assert_eq!(plan.mappings.iter().map(|m| m.target).collect::<Vec<_>>(), [0, 0, 1]);
}

#[test]
fn numbers_are_read_exactly() {
    for (text, milli) in [("2", 2000), ("1.5", 1500), ("0.25", 250), ("1.001", 1001), ("1000", 1_000_000)] {
        assert_eq!(plan(&[(Key::Copies, text)]).unwrap().copies_milli, milli);
    }
    for (text, ppm) in [("100", 1_000_000), ("0.01", 100), ("12.5", 125_000), ("33.33%", 333_300)] {
        assert_eq!(plan(&[(Key::Percent, text)]).unwrap().percent_ppm, ppm);
    }
    assert_eq!(plan(&[(Key::Rtt, "20")]).unwrap().replay.rtt, Rtt::Fixed(20_000));
    assert_eq!(plan(&[(Key::Rtt, "0.5ms")]).unwrap().replay.rtt, Rtt::Fixed(500));
    assert_eq!(plan(&[(Key::DrainTime, "1.5s")]).unwrap().replay.drain_ms, 1500);
}

#[test]
fn shards_and_cores_follow_the_machine() {
    for (cores, shards, pins) in
        [(1, 1, 0), (2, 1, 0), (3, 1, 3), (4, 2, 4), (6, 3, 5), (16, 8, 10), (64, 8, 10)]
    {
        let options = options(&[(Key::Map, "80-10.0.3.2:8080"), (Key::Intercept, "10.0.4.2")]);
        let plan = plan_from(&options, &facts(cores)).unwrap();
        assert_eq!((plan.shards, plan.cores.len()), (shards, pins), "{cores} cores");
        assert!(!plan.cores.contains(&0), "the first core stays free");
        let mut shard_cores = plan.cores.iter().skip(2).collect::<Vec<_>>();
        let count = shard_cores.len();
        shard_cores.dedup();
        assert_eq!(shard_cores.len(), count, "{cores} cores: shards do not share while there is room");
    }
    let plan = plan(&[(Key::Cores, "1,3"), (Key::Shards, "3")]).unwrap();
    assert_eq!(plan.cores, [1, 3, 1, 3, 1]);
    assert!(super::tests::plan(&[(Key::Cores, "none")]).unwrap().cores.is_empty());
    assert_eq!(spans(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
}

#[test]
fn more_sessions_take_more_memory_unless_it_was_given() {
    let large = plan(&[(Key::MaxSessions, "1000000")]).unwrap();
    assert!(u64::from(large.limits.sessions_per_shard) * 4 >= 1_000_000);
    let refusal = plan(&[(Key::MaxSessions, "1000000"), (Key::Memory, "64MiB")]).unwrap_err();
    assert!(refusal.sentence.contains("need --memory"), "{refusal}");
}

#[test]
fn the_return_channel_is_plain_only_where_that_was_said() {
    let mut no_key = facts(2);
    no_key.key = None;
    let line = |addr: &'static str| vec![(Key::Map, "80-10.0.3.2:8080"), (Key::Intercept, addr)];
    let refusal = plan_from(&options(&line("10.0.4.2")), &no_key).unwrap_err();
    assert!(refusal.sentence.contains("tcptwin keygen") && refusal.sentence.contains("--plain"), "{refusal}");
    assert_eq!(plan_from(&options(&line("127.0.0.1")), &no_key).unwrap().key, None);
    let mut plain = line("10.0.4.2");
    plain.push((Key::Plain, ""));
    assert_eq!(plan_from(&options(&plain), &facts(2)).unwrap().key, None);
    assert_eq!(plan_from(&options(&line("10.0.4.2")), &facts(2)).unwrap().key, Some([7; 32]));
}

#[test]
fn what_is_wrong_is_told_before_what_is_missing() {
    let mut no_key = facts(2);
    no_key.key = None;
    for (key, text) in [(Key::Memory, "256megs"), (Key::MaxCps, "9"), (Key::Shards, "many")] {
        let bare = options(&[(Key::Map, "80-10.0.3.2:8080"), (key, text)]);
        let refusal = plan_from(&bare, &no_key).unwrap_err();
        assert!(refusal.sentence.contains(text), "{refusal}");
    }
}

/// An option, a wrong value, a part of the sentence.
const SLIPS: &[(Key, &str, &str)] = &[
    (Key::Intercept, "10.0.4.2:0", "port 0"),
    (Key::Intercept, "10.0.4.2:port", "`port` is not a port number"),
    (Key::Intercept, "10.0.4.2:70000", "too large"),
    (Key::Intercept, "10.0.4.256", "not an IPv4 or IPv6 address"),
    (Key::Intercept, "assistant", "tcptwin resolves no names"),
    (Key::Intercept, "", "intercept has no address"),
    (Key::Intercept, ":36524", "intercept has no address"),
    (Key::Intercept, "0.0.0.0", "not the address of a host"),
    (Key::Intercept, "224.0.0.5", "not the address of a host"),
    (Key::Intercept, "10.0.4.2", "given twice"),
    (Key::Intercept, "10.0.4.2:36524", "given twice"),
    (Key::Intercept, "2001:db8::2:99x", "in brackets"),
    (Key::Intercept, "[2001:db8::2", "bracket is not closed"),
    (Key::Copies, "0", "nothing would be replayed"),
    (Key::Copies, "0.0", "nothing would be replayed"),
    (Key::Copies, "-1", "a number up to 1000"),
    (Key::Copies, "1001", "a number up to 1000"),
    (Key::Copies, "1.2345", "at most three decimals"),
    (Key::Copies, "1,5", "a number up to 1000"),
    (Key::Copies, "2x", "a number up to 1000"),
    (Key::Copies, "1e2", "a number up to 1000"),
    (Key::Copies, "", "a number up to 1000"),
    (Key::Copies, "nan", "a number up to 1000"),
    (Key::Copies, "inf", "a number up to 1000"),
    (Key::Percent, "0", "nothing would be replayed"),
    (Key::Percent, "0.001", "from 0.01 to 100"),
    (Key::Percent, "101", "from 0.01 to 100"),
    (Key::Percent, "-5", "from 0.01 to 100"),
    (Key::Percent, "half", "from 0.01 to 100"),
    (Key::Percent, "", "from 0.01 to 100"),
    (Key::Percent, "10%%", "from 0.01 to 100"),
    (Key::Shards, "0", "a whole number from 1 to 64"),
    (Key::Shards, "65", "a whole number from 1 to 64"),
    (Key::Shards, "2.5", "a whole number from 1 to 64"),
    (Key::Shards, "-1", "a whole number from 1 to 64"),
    (Key::Shards, "many", "a whole number from 1 to 64"),
    (Key::Shards, "", "a whole number from 1 to 64"),
    (Key::Cores, "", "a list of numbers"),
    (Key::Cores, "5-2", "a list of numbers"),
    (Key::Cores, "a", "a list of numbers"),
    (Key::Cores, "1,,2", "a list of numbers"),
    (Key::Cores, "1-", "a list of numbers"),
    (Key::Cores, "-1", "a list of numbers"),
    (Key::Cores, "0-70000", "a list of numbers"),
    (Key::Cores, "8", "may not run on core 8; it may use 0-7"),
    (Key::Cores, "1024", "may not run on core 1024"),
    (Key::Memory, "", "a size is a number"),
    (Key::Memory, "lots", "a size is a number"),
    (Key::Memory, "-1GiB", "a size is a number"),
    (Key::Memory, "1PiB", "a size is a number"),
    (Key::Memory, "1MiB", "this is too small"),
    (Key::Memory, "0", "this is too small"),
    (Key::MaxSessions, "0", "a whole number from 16"),
    (Key::MaxSessions, "1.5", "a whole number from 16"),
    (Key::MaxSessions, "20000000", "a whole number from 16"),
    (Key::MaxSessions, "many", "a whole number from 16"),
    (Key::Capture, "fast", "`ring`, `simple`, `pcap` or `xdp`"),
    (Key::Capture, "", "`ring`, `simple`, `pcap` or `xdp`"),
    (Key::Capture, "simple", "Add -i"),
    (Key::Capture, "xdp", "Add -i"),
    (Key::Net, "10.0.0.1/8", "no range of addresses"),
    (Key::NotNet, "", "no range of addresses"),
    (Key::Filter, "", "the expression is empty"),
    (Key::CaptureBuffer, "1KiB", "from 1MiB to 4GiB"),
    (Key::CaptureBuffer, "5GiB", "from 1MiB to 4GiB"),
    (Key::CaptureBuffer, "big", "a size is a number"),
    (Key::Interface, "", "no name of an interface"),
    (Key::Interface, "a-name-that-is-too-long", "no name of an interface"),
    (Key::Interface, "eth0/1", "no name of an interface"),
    (Key::Interface, "eth0,eth0", "given twice"),
    (Key::Interface, "any,eth0", "not both"),
    (Key::Interface, "eth0,any", "not both"),
    (Key::Rtt, "far", "`measured`, `none` or milliseconds"),
    (Key::Rtt, "-1", "`measured`, `none` or milliseconds"),
    (Key::Rtt, "10001", "`measured`, `none` or milliseconds"),
    (Key::Rtt, "", "`measured`, `none` or milliseconds"),
    (Key::Rtt, "20s", "`measured`, `none` or milliseconds"),
    (Key::Join, "always", "`first`, `boundary` or `never`"),
    (Key::OnGap, "ignore", "`skip`, `resync` or `abort`"),
    (Key::Join, "", "`first`, `boundary` or `never`"),
    (Key::IdleTime, "0", "from 1s to 168h"),
    (Key::IdleTime, "forever", "from 1s to 168h"),
    (Key::DrainTime, "2h", "from 0s to 1h"),
    (Key::DrainTime, "-1s", "from 0s to 1h"),
    (Key::DrainTime, "1 day", "from 0s to 1h"),
    (Key::Name, "", "1 to 32 letters"),
    (Key::Name, "a/b", "1 to 32 letters"),
    (Key::Name, "..", "1 to 32 letters"),
    (Key::Name, "-x", "1 to 32 letters"),
    (Key::Name, "with blank", "1 to 32 letters"),
    (Key::Name, "a-name-that-is-longer-than-thirty-two", "1 to 32 letters"),
    (Key::Name, "naïve", "1 to 32 letters"),
    (Key::Clients, "198.18.0.0/33", "the length goes up to 32"),
    (Key::Clients, "2001:2::/64", "needs IPv4 clients too"),
    (Key::Clients, "somewhere", "not a range"),
];

#[test]
fn every_slip_has_a_sentence_that_quotes_it() {
    for (key, text, part) in SLIPS {
        let refusal = plan(&[(*key, *text)]).expect_err(&format!("{} {text:?}", key.name()));
        assert_eq!(refusal.exit, 2, "{refusal}");
        assert!(refusal.sentence.contains(part), "{} {text:?} said: {refusal}", key.name());
        assert!(refusal.sentence.starts_with(&key.typed()), "{} {text:?} said: {refusal}", key.name());
    }
}

#[test]
fn rivals_are_refused() {
    let refusal = plan(&[(Key::Clients, "198.18.0.0/20"), (Key::KeepClients, "")]).unwrap_err();
    assert!(refusal.sentence.contains("-c and --keep-clients exclude each other"), "{refusal}");
}

#[test]
fn a_run_without_intercept_is_asked_for_one() {
    let refusal = plan_from(&options(&[(Key::Map, "80-10.0.3.2:8080")]), &facts(2)).unwrap_err();
    assert!(refusal.sentence.contains("There is no -s"), "{refusal}");
}

#[test]
fn the_metrics_address_needs_a_port() {
    assert!(metrics_addr(&options(&[(Key::Metrics, "127.0.0.1:9136")])).unwrap().is_some());
    for (text, part) in [
        ("127.0.0.1", "has no port"),
        ("9136", "has no address"),
        ("host:1", "resolves no names"),
        ("127.0.0.1:0", "port 0"),
    ] {
        let refusal = metrics_addr(&options(&[(Key::Metrics, text)])).unwrap_err();
        assert!(refusal.sentence.contains(part), "{refusal}");
    }
}
