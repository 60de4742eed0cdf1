//! Our compiler, our join and our machine against libpcap and the kernel, over a hundred thousand random packets each: IPv4 with
//! options, IPv6 with extension headers, fragments, other protocols, cut anywhere. Without libpcap on the host these say that
//! they were skipped.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use super::interpreter::{Aside, check, run};
use super::*;
use crate::sys::PacketSocket;

const PACKETS: usize = 100_000;

/// SplitMix64: the same packets in every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// A packet, and what libpcap, which does not step over extension headers, must see to say the same as we.
struct Sample {
    bytes: Vec<u8>,
    /// Without extension headers, cut at the same place.
    plain: Vec<u8>,
    /// Fragments but the first, which we drop.
    inner_fragment: bool,
    /// A chain too long, or an authentication header: ours come up, and the parser decides.
    unsure: bool,
}

const V4: [[u8; 4]; 8] = [
    [10, 0, 0, 1],
    [10, 0, 0, 9],
    [10, 0, 0, 17],
    [10, 0, 3, 2],
    [10, 1, 0, 1],
    [198, 18, 0, 7],
    [198, 20, 0, 7],
    [203, 0, 113, 5],
];

fn v6(dice: &mut Dice) -> [u8; 16] {
    let text =
        dice.pick(&["fd00::1", "fd00::9", "fd00::32", "fd00:1::1", "2001:2::7", "2001:2:1::7", "fe80::1"]);
    text.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

fn transport(dice: &mut Dice) -> Vec<u8> {
    let port = |dice: &mut Dice| dice.pick(&[80_u16, 443, 6379, 8080, 40_000]).to_be_bytes();
    let (source, destination) = (port(dice), port(dice));
    let (rest, payload) = (dice.bytes(16), dice.below(30));
    [&source[..], &destination, &rest, &dice.bytes(payload)].concat()
}

fn sample(dice: &mut Dice) -> Sample {
    let (mut inner_fragment, mut unsure) = (false, false);
    let protocol = dice.pick(&[6, 6, 6, 6, 17, 1, 58]);
    let (head, chain, tail) = if dice.one_in(2) {
        let words = if dice.one_in(3) { 5 + dice.below(11) } else { 5 };
        let mut head = dice.bytes(words * 4);
        head[0] = 0x40 | words as u8;
        let fragment = dice.pick(&[0_u16, 0, 0, 0, 0x4000, 0x2000, 0x2001, 0x1234]);
        head[6..8].copy_from_slice(&fragment.to_be_bytes());
        head[9] = protocol;
        head[12..16].copy_from_slice(&dice.pick(&V4));
        head[16..20].copy_from_slice(&dice.pick(&V4));
        (head, vec![], transport(dice))
    } else {
        let mut head = dice.bytes(40);
        head[0] = 0x60 | head[0] & 0xf;
        head[8..24].copy_from_slice(&v6(dice));
        head[24..40].copy_from_slice(&v6(dice));
        let count = if dice.one_in(2) { 0 } else { 1 + dice.below(3) };
        let kinds: Vec<u8> = (0..count).map(|_| dice.pick(&[0, 43, 60, 44, 44, 51])).collect();
        let mut chain = vec![];
        for (i, &kind) in kinds.iter().enumerate() {
            let next = kinds.get(i + 1).copied().unwrap_or(protocol);
            let words = if kind == 44 { 0 } else { dice.below(3) as u8 };
            let mut header = dice.bytes(8 * (usize::from(words) + 1));
            (header[0], header[1]) = (next, words);
            // What stands behind one that is not stepped over does not matter.
            if kind == 44 && !inner_fragment && !unsure {
                let offset = dice.pick(&[0_u16, 0, 0, 1, 8, 0x1234]);
                header[2..4].copy_from_slice(&offset.to_be_bytes());
                inner_fragment = offset & 0xfff8 != 0 && i < 2;
            }
            unsure |= !inner_fragment && (kind == 51 || i >= 2);
            chain.extend(header);
        }
        head[6] = kinds.first().copied().unwrap_or(protocol);
        (head, chain, transport(dice))
    };
    let mut plain = [&head[..], &tail].concat();
    if head[0] >> 4 == 6 {
        plain[6] = protocol;
    }
    let mut bytes = [&head[..], &chain, &tail].concat();
    if dice.one_in(3) {
        let cut = 1 + dice.below(bytes.len());
        bytes.truncate(cut);
        let behind = cut.saturating_sub(chain.len()).max(cut.min(head.len()));
        plain.truncate(behind);
        // A chain that is cut ends there.
        unsure |= cut < head.len() + chain.len() && cut > head.len();
    }
    Sample { bytes, plain, inner_fragment, unsure }
}

fn beside(bytes: &[u8]) -> Aside {
    let protocol = if bytes[0] >> 4 == 4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
    Aside { protocol: protocol as u16, packet_type: 0, interface: 2 }
}

fn samples(seed: u64) -> Vec<Sample> {
    let mut dice = Dice(seed);
    (0..PACKETS).map(|_| sample(&mut dice)).collect()
}

/// libpcap's program, as it stands in a plan; `None`, and a line that says so, without the library.
fn theirs(expression: &str) -> Option<Vec<Instruction>> {
    match crate::expression::compile(expression) {
        Ok(program) => Some(program),
        Err(crate::expression::ExpressionError::NoLibrary(error)) => {
            eprintln!("SKIPPED: {error}");
            None
        }
        // libpcap has no program for what no packet is.
        Err(error) if error.to_string().contains("rejects all packets") => Some(NOTHING.to_vec()),
        Err(error) => panic!("{expression}: {error}"),
    }
}

/// As [`CaptureFilter::online`].
type Services = Vec<(Option<IpAddr>, u16)>;

/// Services, and the same in libpcap's words.
fn services() -> Vec<(Services, &'static str)> {
    let ip = |text: &str| Some(text.parse().unwrap());
    vec![
        (vec![(None, 80)], "tcp dst port 80"),
        (vec![(None, 80), (None, 443)], "tcp dst port 80 or tcp dst port 443"),
        (vec![(ip("10.0.0.9"), 6379)], "dst host 10.0.0.9 and tcp dst port 6379"),
        (
            vec![(ip("fd00::9"), 80), (None, 443)],
            "(dst host fd00::9 and tcp dst port 80) or tcp dst port 443",
        ),
        (
            vec![(ip("10.0.0.9"), 80), (ip("10.0.0.1"), 80), (ip("fd00::1"), 80)],
            "(dst host 10.0.0.9 or dst host 10.0.0.1 or dst host fd00::1) and tcp dst port 80",
        ),
        (
            vec![(None, 80), (None, 443), (None, 6379), (None, 8080)],
            "tcp and (dst port 80 or dst port 443 or dst port 6379 or dst port 8080)",
        ),
    ]
}

/// `--net`, `--not-net`, and the same in libpcap's words.
fn nets() -> Vec<(Vec<&'static str>, Vec<&'static str>, &'static str)> {
    vec![
        (vec![], vec![], ""),
        (vec!["10.0.0.0/8"], vec![], " and src net 10.0.0.0/8"),
        (vec!["10.0.0.0/28", "fd00::/64"], vec![], " and (src net 10.0.0.0/28 or src net fd00::/64)"),
        (vec![], vec!["10.0.0.9", "fd00::/16"], " and not (src host 10.0.0.9 or src net fd00::/16)"),
        (vec!["0.0.0.0/0"], vec!["10.0.0.16/28"], " and ip and not src net 10.0.0.16/28"),
        (
            vec!["fd00::/48", "2001:2:1::/48"],
            vec!["fd00::9"],
            " and (src net fd00::/48 or src net 2001:2:1::/48) and not src host fd00::9",
        ),
        (
            vec!["10.0.0.0/9", "203.0.113.0/24", "fd00::1"],
            vec!["10.0.0.1"],
            " and (src net 10.0.0.0/9 or src net 203.0.113.0/24 or src host fd00::1) and not src host 10.0.0.1",
        ),
    ]
}

#[test]
fn our_compiler_says_what_libpcap_says() {
    let samples = samples(1);
    let mut compared = 0;
    for (online, service) in services() {
        for (inside, outside, net) in nets() {
            // Half of them with replayed clients to leave out, and targets, as a run has them.
            let own = compared % 2 == 1;
            let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
            let mut filter = CaptureFilter {
                online: online.clone(),
                clients: vec![],
                targets: vec![],
                udp: crate::filter::Services::default(),
                inside: ranges(&inside),
                outside: ranges(&outside),
                promiscuous: false,
                answers: false,
                link_header: 0,
                frames: Frames::All,
            };
            let mut expression = format!("({service}){net}");
            if own {
                filter.clients = ranges(&["198.18.0.0/15", "2001:2::/48"]);
                expression += " and not (src net 198.18.0.0/15 or src net 2001:2::/48)";
            }
            let ours = filter.program();
            check(&ours);
            let Some(theirs) = theirs(&expression) else { return };
            let empty = theirs == NOTHING;
            let theirs = Machine::new(theirs).unwrap();
            let mut taken = 0;
            for sample in &samples {
                let ours = run(&ours, &sample.bytes, beside(&sample.bytes)) > 0;
                let theirs = theirs.matches(&sample.plain, sample.plain.len() as u32);
                taken += usize::from(ours && theirs);
                let agree = match sample {
                    Sample { inner_fragment: true, .. } => !ours,
                    Sample { unsure: true, .. } => true,
                    _ => ours == theirs,
                };
                assert!(agree, "{expression}: ours says {ours}, libpcap {theirs}: {:02x?}", sample.bytes);
            }
            assert_eq!(taken == 0, empty, "{expression} takes {taken}");
            compared += 1;
        }
    }
    assert!(compared >= 30, "{compared} filters");
}

/// What people write.
const EXPRESSIONS: [&str; 34] = [
    "tcp",
    "not tcp",
    "ip",
    "ip6",
    "host 10.0.0.1",
    "src host 10.0.0.9",
    "not src host 10.0.0.7 and not src host 10.0.0.9",
    "net 10.0.0.0/28",
    "src net fd00::/64",
    "port 80 or port 443",
    "tcp dst port 80",
    "tcp port 80 and not host 10.0.0.1",
    "portrange 80-500",
    "tcp src portrange 1024-65535",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "tcp[13] = 2",
    "tcp[2:2] = 80",
    "ip[8] < 64",
    "ip[6:2] & 0x1fff != 0",
    "ip[0] & 0xf > 5",
    "ip[2:2] > 1000",
    "ip6[6] = 44",
    "ip6[7] >= 100",
    "len > 60",
    "greater 100 or less 30",
    "ip proto 17",
    "ip6 proto 58",
    "proto \\tcp",
    "ip6 proto 6 or ip6 proto 17",
    "tcp[((tcp[12] & 0xf0) >> 2):1] = 0x47",
    "(ip[2:2] - ((ip[0] & 0xf) << 2)) != 0 and tcp",
    "ip[1] * 2 + 3 > 100 or ip[1] / 3 < 10 or ip[1] % 7 = 3",
    "ip host 10.0.0.1 or ip6 host fd00::1 or udp",
    "src 10.0.0.1 and dst 10.0.0.9 and (tcp port 80 or udp port 443)",
];

#[test]
fn joined_programs_take_what_both_take() {
    let samples = samples(2);
    let ours = CaptureFilter {
        online: vec![(None, 80), (None, 443)],
        clients: vec!["198.18.0.0/15".parse().unwrap()],
        targets: vec![],
        udp: crate::filter::Services::default(),
        inside: vec![],
        outside: vec!["10.1.0.0/16".parse().unwrap()],
        promiscuous: false,
        answers: false,
        link_header: 0,
        frames: Frames::All,
    };
    let ours = ours.program();
    for expression in EXPRESSIONS {
        let Some(program) = theirs(expression) else { return };
        let both = joined(&program, ours.clone());
        check(&both);
        assert!(both.len() > ours.len() + program.len(), "{expression} is joined");
        let machine = Machine::new(program).unwrap();
        for sample in &samples {
            let bytes = &sample.bytes;
            let alone = run(&ours, bytes, beside(bytes));
            let wanted = if machine.matches(bytes, bytes.len() as u32) { alone } else { 0 };
            assert_eq!(run(&both, bytes, beside(bytes)), wanted, "{expression}: {bytes:02x?}");
            // A second tag in front: ours alone decides, and the dispatcher after it.
            let tagged = [&[0, 5][..], &beside(bytes).protocol.to_be_bytes(), bytes].concat();
            let aside = Aside { protocol: 0x8100, packet_type: 0, interface: 2 };
            assert_eq!(run(&both, &tagged, aside), run(&ours, &tagged, aside), "{expression}, tagged");
        }
    }
}

#[test]
fn what_would_be_too_long_together_is_left_to_the_dispatcher() {
    let ours = vec![Instruction { code: 6, jt: 0, jf: 0, k: 1 }; 3_000];
    let long = vec![Instruction { code: 6, jt: 0, jf: 0, k: 1 }; 1_093];
    assert_eq!(joined(&long, ours.clone()), ours);
    assert_eq!(joined(&long[1..], ours).len(), MAX_INSTRUCTIONS);
}

#[test]
fn the_machine_says_what_the_kernel_says() {
    // A pair of datagram sockets: what the filter of one refuses never arrives there.
    let (near, far) = UnixDatagram::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let filtered = PacketSocket::from(OwnedFd::from(far.try_clone().unwrap()));
    let samples = samples(3);
    let mut arrived = vec![0; 4_096];
    for (i, expression) in EXPRESSIONS.iter().enumerate() {
        let Some(program) = theirs(expression) else { return };
        filtered.attach(&program).unwrap();
        let machine = Machine::new(program).unwrap();
        // Other packets for each.
        for sample in samples.iter().skip(i * 2_000).take(3_000) {
            near.send(&sample.bytes).unwrap();
            let kernel = far.recv(&mut arrived).is_ok();
            let ours = machine.matches(&sample.bytes, sample.bytes.len() as u32);
            assert_eq!(ours, kernel, "{expression}: {:02x?}", sample.bytes);
        }
    }
}
