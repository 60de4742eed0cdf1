use std::process::Command;

use super::*;
use crate::testing::{in_namespace, ip, plan};

#[test]
fn pool_rules_name_the_range_and_keep_rules_the_target() {
    let pool = plan(&["10.0.0.1:80"]);
    assert!(inet("t", &pool).contains("ip saddr 198.18.0.0/15 notrack"));
    assert!(netdev("t", &pool, &["eth0"]).contains("ip saddr 198.18.0.0/15 jump forged"));
    let keep = Plan { clients: Clients::Keep, ..pool };
    assert!(inet("t", &keep).contains("ip daddr 10.0.0.1 tcp dport 80 fib saddr type != local notrack"));
    let guard = netdev("t", &keep, &["eth0"]);
    assert!(!guard.contains("saddr") && guard.contains("meta mark 0x7477696e jump forged"), "{guard}");
}

fn listed() -> String {
    let out = Command::new("nft").args(["list", "tables"]).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

/// A way to 10.8.0.9 that leads over a device.
fn a_device() {
    ip("link add v0 type veth peer name v1");
    ip("addr add 10.8.0.1/24 dev v0");
    ip("link set v0 up");
    ip("link set v1 up");
}

/// Installs; none, said loudly, where there is no nftables.
fn install(plan: &Plan) -> Option<Fence> {
    match Fence::install(plan) {
        Ok((fence, None)) => Some(fence),
        Ok((_, Some(note))) | Err(note @ Note::NoNft) => {
            eprintln!("SKIPPED: {note}");
            None
        }
        Err(note) => panic!("{note}"),
    }
}

/// Watches: what is guarded now, and what it is told.
fn watch(fence: &mut Fence) -> (Vec<u32>, Receiver<Vec<u32>>) {
    let (tell, told) = channel();
    fence.watch(move |devices| tell.send(devices.to_vec()).unwrap()).unwrap();
    (fence.devices().to_vec(), told)
}

#[test]
fn the_tables_come_and_go() {
    in_namespace("the_tables_come_and_go", || {
        a_device();
        let pool = plan(&["10.8.0.9:80", "10.8.0.7:80", "[fd00::9]:80"]);
        for plan in [pool.clone(), Plan { clients: Clients::Keep, ..pool }] {
            let Some(fence) = install(&plan) else { return };
            assert_eq!(fence.devices().len(), 1);
            assert!(
                listed().contains("table inet tcptwin_test")
                    && listed().contains("table netdev tcptwin_test")
            );
            // As if the instance had been killed: the next of its name replaces the tables.
            std::mem::forget(fence);
            assert_eq!(Fence::instances(), ["test"]);
            let again = install(&plan).unwrap();
            drop(again);
            assert!(!listed().contains("tcptwin"), "{}", listed());
        }
    });
}

#[test]
fn a_guard_that_went_before_anybody_watched_is_missed_at_once() {
    in_namespace("a_guard_that_went_before_anybody_watched_is_missed_at_once", || {
        a_device();
        let Some(mut fence) = install(&plan(&["10.8.0.9:80"])) else { return };
        nft::run(&[], "delete table inet tcptwin_test").unwrap();
        let (whole, told) = watch(&mut fence);
        let next = || told.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!((next(), next()), (vec![], whole));
    });
}

#[test]
fn a_guard_that_somebody_removes_is_missed_at_once_and_put_back() {
    in_namespace("a_guard_that_somebody_removes_is_missed_at_once_and_put_back", || {
        a_device();
        let Some(mut fence) = install(&plan(&["10.8.0.9:80"])) else { return };
        let (whole, told) = watch(&mut fence);
        for script in ["delete table netdev tcptwin_test", "flush chain inet tcptwin_test forged"] {
            let begin = Instant::now();
            nft::run(&[], script).unwrap();
            let next = || told.recv_timeout(Duration::from_secs(10)).unwrap();
            assert_eq!(next(), Vec::<u32>::new(), "{script}");
            assert!(begin.elapsed() < PAUSE + Duration::from_secs(2), "after {:?}", begin.elapsed());
            assert_eq!(next(), whole, "{script}");
            let said = fence.news().join("; ");
            assert!(said.contains("raw IP until it stands again"), "{said}");
        }
        // A route that leaves by another device takes the guard along.
        ip("link add w0 type veth peer name w1");
        ip("link set w0 up");
        ip("link set w1 up");
        ip("addr add 10.8.1.1/24 dev w0");
        ip("route add 10.8.0.9/32 dev w0");
        let moved = told.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(moved.len() == 1 && moved != whole, "{moved:?}: {:?}", fence.news());
        drop(fence);
        assert!(!listed().contains("tcptwin"), "{}", listed());
    });
}
