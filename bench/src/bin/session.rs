//! What does the replay machine cost: a turn, a short connection, a byte of a long upload?
//!
//! ```text
//! cargo run --release -p bench --bin session
//! ```
//!
//! One table, virtual time, and a target that answers at once with everything it was asked for; only the table's calls are
//! timed, the target's few instructions included, in CPU time. Each figure is the best of several rounds: on a busy machine
//! the others measure the neighbours. A turn is one captured request, its record out, one returned answer and whatever
//! acknowledgement that draws. With 50,000 sessions each turn finds its slot cold.

use bench::machine::{Machine, place};
use bench::{Client, cpu_ns};
use flow::record::flag;
use session::{Count, Table};

const ROUNDS: usize = 9;
/// Records of one batch, which is one transaction.
const BATCH: usize = 32;

fn main() {
    println!("{:<44} {:>9}", "", "ns each");
    for sessions in [1, 1_000, 50_000] {
        let turns = 400_000 / sessions.min(400_000);
        let mut rig = Machine::new(sessions.max(64) * 2);
        let mut clients: Vec<Client> = (0..sessions).map(Client::new).collect();
        clients.iter_mut().for_each(|client| rig.open(client));
        let best = best_of(|| {
            let start = cpu_ns();
            for _ in 0..turns {
                for client in &mut clients {
                    rig.turn(client);
                }
            }
            (cpu_ns() - start, turns * sessions)
        });
        println!("{:<44} {best:>9.0}", format!("turn, {sessions} sessions"));
        assert_eq!(rig.table.tally().in_flight, 0);
    }
    for sessions in [32, 50_000] {
        let turns = 400_000 / sessions;
        let mut rig = Machine::new(sessions * 2);
        let mut clients: Vec<Client> = (0..sessions).map(Client::new).collect();
        clients.iter_mut().for_each(|client| rig.open(client));
        let best = best_of(|| {
            let start = cpu_ns();
            for _ in 0..turns {
                clients.chunks_mut(BATCH).for_each(|some| rig.turns(some));
            }
            (cpu_ns() - start, turns * sessions)
        });
        println!("{:<44} {best:>9.0}", format!("turn, {sessions} sessions, {BATCH} a batch"));
    }
    let mut rig = Machine::new(4_096);
    let mut serial = 0;
    let best = best_of(|| {
        let start = cpu_ns();
        for _ in 0..20_000u32 {
            serial += 1;
            rig.short(serial);
        }
        (cpu_ns() - start, 20_000)
    });
    println!("{:<44} {best:>9.0}", "short connection (SYN, request, FIN)");
    let mut rig = Machine::new(64);
    let mut client = Client::new(1);
    rig.open(&mut client);
    let payload = vec![b'x'; 60_000];
    let best = best_of(|| {
        let start = cpu_ns();
        for _ in 0..2_000 {
            rig.captures(&mut client, flag::ACK | flag::PSH, &payload);
        }
        (cpu_ns() - start, 2_000)
    });
    println!("{:<44} {best:>9.0}", "super-frame of 60,000 bytes");
    println!("delivered {} bytes", rig.table.tally().count(Count::Delivered));
    for sessions in [5_000, 50_000, 1_000_000] {
        let mut rig = Machine::new(sessions);
        (0..sessions).map(Client::new).for_each(|mut client| rig.open(&mut client));
        let image = rig.table.image();
        let config = rig.table.config().clone();
        let best = best_of(|| {
            let place = place(&config);
            place[..image.len()].copy_from_slice(&image);
            let start = cpu_ns();
            let table = Table::new(place, config.clone());
            let spent = cpu_ns() - start;
            assert_eq!(table.tally().open, u64::from(sessions));
            (spent, 1)
        });
        println!("{:<44} {best:>9.0}", format!("a dead worker's {sessions} sessions taken over"));
    }
}

fn best_of(mut round: impl FnMut() -> (i64, u32)) -> f64 {
    (0..ROUNDS)
        .map(|_| {
            let (ns, n) = round();
            ns as f64 / f64::from(n)
        })
        .fold(f64::INFINITY, f64::min)
}
