use flow::emit::{MAX_HEADERS, emit};
use flow::{Seq, TcpFields};
use trace::Place;

use super::*;
use crate::testing::plan;

const CLIENT: &str = "10.0.0.1:40000";
const SERVER: &str = "10.0.0.9:80";

struct File {
    survey: Survey,
    now_ns: u64,
}

impl File {
    fn new(bounds: Bounds) -> Self {
        Self { survey: Survey::of_plan(&plan(&["80-10.0.3.2:8080"]), bounds), now_ns: 1_000 }
    }

    /// A packet of which `cut` bytes at the end were not captured.
    fn cut(&mut self, src: &str, dst: &str, flags: u16, (seq, ack): (u32, u32), payload: &[u8], cut: usize) {
        let at = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
        let tcp = TcpFields { seq: Seq(seq), ack: Seq(ack), flags, ..TcpFields::default() };
        let mut head = [0; MAX_HEADERS];
        let len = emit(&mut head, at(src), at(dst), &tcp, &[payload], 0);
        let bytes = [&head[..len], payload].concat();
        self.now_ns += 1_000_000;
        let (ip, wire_len) = (&bytes[..bytes.len() - cut], bytes.len() as u32);
        self.survey.packet(&Packet { time_ns: self.now_ns, ip, wire_len, place: Place::default() });
    }

    fn client(&mut self, flags: u16, seq: u32, ack: u32, payload: &[u8]) {
        self.cut(CLIENT, SERVER, flags, (seq, ack), payload, 0);
    }

    fn data(&mut self, seq: u32, ack: u32, payload: &[u8]) {
        self.client(flag::ACK, seq, ack, payload);
    }

    fn server(&mut self, seq: u32, ack: u32, payload: &[u8]) {
        self.cut(SERVER, CLIENT, flag::ACK, (seq, ack), payload, 0);
    }
}

/// A connection from its SYN on, up to the first request.
fn opened() -> File {
    opened_by(File::new(Bounds::default()).survey)
}

fn opened_by(survey: Survey) -> File {
    let mut file = File { survey, now_ns: 1_000 };
    file.client(flag::SYN, 99, 0, &[]);
    file.data(100, 500, &[]);
    file
}

#[test]
fn turns_begin_where_the_client_has_read_some_answer() {
    let mut file = opened();
    file.data(100, 500, &[1; 10]);
    file.data(110, 500, &[1; 10]);
    file.server(500, 120, &[2; 300]);
    file.data(120, 800, &[]);
    file.data(120, 800, &[1; 10]);
    let sums = file.survey.sums();
    assert_eq!((sums.begun, sums.midstream, sums.turns), (1, 0, 2));
    assert_eq!((sums.request_bytes, sums.answer_bytes), (30, 300));
    assert_eq!((sums.packets, sums.answers), (6, 1));
    assert_eq!(file.survey.duration_ns(), 6_000_000);
}

#[test]
fn what_comes_again_is_neither_new_nor_a_turn() {
    let mut file = opened();
    file.data(100, 500, &[1; 10]);
    file.data(100, 700, &[1; 10]);
    file.data(105, 700, &[1; 10]);
    let sums = file.survey.sums();
    assert_eq!((sums.request_bytes, sums.repeated_bytes, sums.turns), (15, 15, 2));
}

#[test]
fn a_hole_is_missing_until_it_is_filled() {
    let mut file = opened();
    file.data(200, 500, &[1; 50]);
    assert_eq!(file.survey.sums().missing_bytes, 100);
    file.data(120, 500, &[1; 30]);
    assert_eq!(file.survey.sums().missing_bytes, 70);
    file.data(100, 500, &[1; 150]);
    let sums = file.survey.sums();
    assert_eq!((sums.request_bytes, sums.repeated_bytes, sums.missing_bytes), (150, 80, 0));
}

#[test]
fn more_holes_than_are_remembered_stay_missing() {
    let mut file = opened();
    for n in 0..10 {
        file.data(110 + 20 * n, 500, &[1; 10]);
    }
    let sums = file.survey.sums();
    assert_eq!((sums.missing_bytes, sums.request_bytes, sums.turns), (100, 100, 1));
}

#[test]
fn what_the_snap_length_cut_off_is_a_hole() {
    let mut file = opened();
    file.cut(CLIENT, SERVER, flag::ACK, (100, 500), &[1; 100], 40);
    file.data(200, 500, &[1; 10]);
    let sums = file.survey.sums();
    assert_eq!((sums.request_bytes, sums.missing_bytes), (70, 40));
}

#[test]
fn numbers_wrap() {
    let mut file = File::new(Bounds::default());
    file.client(flag::SYN, u32::MAX - 10, 0, &[]);
    file.data(u32::MAX - 9, u32::MAX - 1, &[1; 20]);
    file.data(10, 20, &[1; 5]);
    let sums = file.survey.sums();
    assert_eq!((sums.request_bytes, sums.missing_bytes, sums.turns, sums.answer_bytes), (25, 0, 2, 22));
}

#[test]
fn the_same_endpoints_again_are_another_session() {
    let mut file = opened();
    file.client(flag::SYN, 99, 0, &[]);
    file.data(150, 500, &[1; 10]);
    file.client(flag::FIN | flag::ACK, 160, 500, &[]);
    file.client(flag::SYN, 70_000, 0, &[]);
    let sums = file.survey.sums();
    assert_eq!((sums.begun, sums.missing_bytes), (2, 50));
}

#[test]
fn without_its_syn_a_session_begins_at_its_first_data() {
    let mut file = File::new(Bounds::default());
    file.data(100, 500, &[]);
    assert_eq!(file.survey.sums().midstream, 0);
    file.data(100, 500, &[1; 10]);
    assert_eq!((file.survey.sums().midstream, file.survey.sums().request_bytes), (1, 10));
}

#[test]
fn a_full_table_forgets_what_has_ended_and_counts_the_rest() {
    let mut file = File::new(Bounds { flows: 2, services: 1 });
    let client = |n: u32| format!("10.0.0.{n}:4000");
    for n in 1..=2 {
        file.cut(&client(n), SERVER, flag::SYN, (0, 0), &[], 0);
    }
    file.cut(&client(3), SERVER, flag::SYN, (0, 0), &[], 0);
    assert_eq!((file.survey.sums().begun, file.survey.counts().overflow_packets), (2, 1));
    file.cut(&client(1), SERVER, flag::FIN | flag::ACK, (11, 1), &[], 0);
    file.cut(&client(3), SERVER, flag::SYN, (0, 0), &[], 0);
    assert_eq!((file.survey.sums().begun, file.survey.counts().overflow_packets), (3, 1));
    file.cut(&client(1), "10.0.0.9:81", flag::SYN, (0, 0), &[], 0);
    assert_eq!(file.survey.counts().overflow_services, 1);
}

#[test]
fn services_are_told_by_their_syn_else_by_the_lower_port() {
    let mut file = File::new(Bounds::default());
    let other = |file: &mut File, src: &str, dst: &str, flags| file.cut(src, dst, flags, (0, 0), &[1; 5], 0);
    other(&mut file, "10.1.0.1:7000", "10.1.0.2:9000", flag::SYN);
    other(&mut file, "10.1.0.2:9000", "10.1.0.1:7000", flag::ACK);
    other(&mut file, "10.2.0.1:443", "10.2.0.2:50000", flag::ACK);
    let top = file.survey.top(9);
    let shown: Vec<_> =
        top.iter().map(|one| (one.at.to_string(), one.certain, one.packets, one.syns)).collect();
    assert_eq!(shown, [("10.1.0.2:9000".to_owned(), true, 2, 1), ("10.2.0.1:443".to_owned(), false, 1, 0)]);
    assert_eq!(file.survey.counts().other_tcp, 3);
    let at = SERVER.parse::<std::net::SocketAddr>().unwrap().into();
    let mapped = Service { at, ..top[0] };
    assert_eq!([&top[0], &mapped].map(|one| file.survey.is_mapped(one)), [false, true]);
    assert!(!file.survey.is_mapped(&Service { protocol: Protocol::Udp, ..mapped }), "only TCP of it is");
}

#[test]
fn what_a_replay_sent_is_not_replayed_again() {
    let mut file = File::new(Bounds::default());
    file.cut("198.18.0.7:4000", SERVER, flag::SYN, (0, 0), &[], 0);
    file.cut(SERVER, "198.18.0.7:4000", flag::SYN | flag::ACK, (0, 1), &[], 0);
    assert_eq!((file.survey.counts().own, file.survey.sums()), (2, Sums::default()));
}

#[test]
fn what_an_option_leaves_out_is_counted_by_which_one() {
    let mut plan = plan(&["80-10.0.3.2:8080"]);
    plan.capture.filter.outside = vec!["10.0.0.1/32".parse().unwrap()];
    let mut file = opened_by(Survey::of_plan(&plan, Bounds::default()));
    file.server(500, 120, &[2; 300]);
    assert_eq!((file.survey.counts().left_out, file.survey.sums()), (3, Sums::default()));
    // Takes what is shorter than 60 bytes from the IP header on: BPF_LD|BPF_LEN, BPF_JGT, BPF_RET.
    let program = [(0x80, 0, 0, 0), (0x25, 1, 0, 60), (0x06, 0, 0, 1), (0x06, 0, 0, 0)]
        .map(|(code, jt, jf, k)| Instruction { code, jt, jf, k });
    plan.capture.filter.outside.clear();
    let mut file = opened_by(Survey::of_plan(&plan, Bounds::default()).taking(program.to_vec()));
    file.data(100, 500, &[1; 100]);
    file.server(500, 200, &[2; 300]);
    file.data(200, 800, &[]);
    let sums = file.survey.sums();
    assert_eq!((file.survey.counts().not_taken, sums.packets, sums.answers), (2, 3, 0));
    assert_eq!((sums.request_bytes, sums.answer_bytes), (0, 300));
}
