//! What a process that entered its sandbox can still do, and what ends it: each in a process of its own, which is this very program
//! with a variable set.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output};

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use sandbox::calls::{self, List};
use sandbox::{Access, Keep, Opening};

/// Says to the child what it is to do.
const CHILD: &str = "SANDBOX_CHILD";

/// The lists of the processes that stand at the edges and in the middle.
const PROCESSES: [(&str, &[List]); 3] = [
    ("worker", &[calls::LIVE]),
    ("injector", &[calls::LIVE, calls::THREADS, calls::WAIT, calls::EPOLL, calls::INJECT, calls::RETURNS]),
    (
        "capturer",
        &[calls::LIVE, calls::WAIT, calls::EPOLL, calls::FINE_TIMERS, calls::CAPTURE, calls::DEVICES],
    ),
];

type Deed = (&'static str, &'static str, fn());

/// What an intruder would do first, and the call that stops it.
const DEEDS: [Deed; 5] = [
    ("a packet socket", "socket", || {
        let _ = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None);
    }),
    ("a connection by datagrams", "socket", || {
        let _ = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::empty(), None);
    }),
    ("a file", "openat", || {
        let _ = File::open("/etc/passwd");
    }),
    ("another user", "setresuid", || {
        let root = nix::unistd::Uid::from_raw(0);
        let _ = nix::unistd::setresuid(root, root, root);
    }),
    ("a signal to somebody else", "kill", || {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(1), None);
    }),
];

fn keep(calls: &[List], files: Vec<Opening>) -> Keep {
    Keep {
        name: "shard-worker 7".to_owned(),
        user: None,
        capabilities: Vec::new(),
        files: Some(files),
        ports: Vec::new(),
        calls: calls.to_vec(),
        data_bytes: 256 << 20,
    }
}

fn enter(calls: &[List]) {
    keep(calls, Vec::new()).give_up().unwrap().enter(None).unwrap();
}

/// Runs the test `name` in another process, where [`order`] gives `what`.
fn child(name: &str, what: &str) -> Output {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(CHILD, what)
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap()
}

fn order() -> Option<String> {
    std::env::var(CHILD).ok()
}

#[test]
fn a_forbidden_call_ends_the_process_and_is_named() {
    if let Some(what) = order() {
        let (process, deed) = what.split_once(':').unwrap();
        enter(PROCESSES.iter().find(|(name, _)| *name == process).unwrap().1);
        DEEDS.iter().find(|(name, ..)| *name == deed).unwrap().2();
        panic!("it was done");
    }
    for (process, _) in PROCESSES {
        for (deed, called, _) in DEEDS {
            // These ask the kernel by datagram sockets: of the route's MTU, with an address of either family, and of devices.
            if matches!((process, deed), ("capturer" | "injector", "a connection by datagrams")) {
                continue;
            }
            let done = child("a_forbidden_call_ends_the_process_and_is_named", &format!("{process}:{deed}"));
            let said = String::from_utf8_lossy(&done.stderr);
            assert_eq!(done.status.signal(), Some(libc::SIGSYS), "{process}, {deed}: {} {said}", done.status);
            let line = format!("ERROR shard-worker 7: stopped by its sandbox at the system call {called},");
            assert!(said.contains(&line), "{process}, {deed}: {said}");
        }
    }
}

#[test]
fn a_thread_is_bound_like_the_one_that_started_it() {
    if order().is_some() {
        enter(PROCESSES[1].1);
        let thread = std::thread::Builder::new().name("inner".to_owned()).spawn(|| DEEDS[0].2());
        let _ = thread.unwrap().join();
        panic!("it was done");
    }
    let done = child("a_thread_is_bound_like_the_one_that_started_it", "go");
    assert_eq!(done.status.signal(), Some(libc::SIGSYS), "{done:?}");
}

#[test]
fn it_dies_of_its_own_faults_as_before() {
    match order().as_deref() {
        Some("abort") => {
            enter(PROCESSES[0].1);
            std::process::abort();
        }
        Some("panic") => {
            enter(PROCESSES[0].1);
            std::panic::set_hook(Box::new(|_| std::process::abort()));
            panic!("a defect");
        }
        Some("overflow") => {
            enter(PROCESSES[0].1);
            std::hint::black_box(deep(1));
        }
        Some("memory") => {
            enter(PROCESSES[0].1);
            std::hint::black_box(vec![1_u8; 300 << 20]);
        }
        _ => {
            for what in ["abort", "panic", "overflow", "memory"] {
                let done = child("it_dies_of_its_own_faults_as_before", what);
                assert_eq!(done.status.signal(), Some(libc::SIGABRT), "{what}: {done:?}");
                let said = String::from_utf8_lossy(&done.stderr);
                assert!(!said.contains("sandbox at"), "{what}: {said}");
            }
        }
    }
}

#[expect(unconditional_recursion, reason = "until the stack ends")]
fn deep(n: u64) -> u64 {
    std::hint::black_box(n) + deep(n + 1)
}

#[test]
fn work_goes_on() {
    if order().is_some() {
        enter(PROCESSES[1].1);
        // Megabytes at a time, which a thread's heap would give back at its end.
        let sum = |n: u64| {
            move || {
                let held: Vec<_> = (0..n).map(|i| vec![i; 100]).collect();
                held.iter().map(|each| each.len() as u64).sum::<u64>()
            }
        };
        let threads: Vec<_> = (0..4).map(|n| std::thread::spawn(sum(n * 1_000))).collect();
        let all: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let map: std::collections::HashMap<u64, u64> = (0..10_000).map(|n| (n, n)).collect();
        eprintln!("done: {all} {}", map.len());
        std::process::exit(0);
    }
    let done = child("work_goes_on", "go");
    assert!(String::from_utf8_lossy(&done.stderr).contains("done: 600000 10000"), "{done:?}");
}

#[test]
fn only_what_was_named_is_in_reach() {
    if order().is_some() {
        let directory = std::env::temp_dir().join(format!("sandbox-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let opening = Opening { path: directory.clone(), access: Access::Record };
        let lists = [calls::LIVE, calls::READ_FILES, calls::WRITE_FILES];
        keep(&lists, vec![opening]).give_up().unwrap().enter(None).unwrap();
        let (part, whole) = (directory.join("x.part"), directory.join("x"));
        std::fs::write(&part, b"inside").unwrap();
        std::fs::rename(&part, &whole).unwrap();
        assert_eq!(std::fs::read(&whole).unwrap(), b"inside");
        std::fs::remove_file(&whole).unwrap();
        for outside in ["/etc/passwd", "/proc/self/status", "/tmp/outside-of-it"] {
            let error = std::fs::OpenOptions::new().append(true).open(outside).unwrap_err();
            assert!(matches!(
                error.kind(),
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::NotFound
            ));
            assert!(File::open(outside).is_err(), "{outside}");
        }
        eprintln!("kept: {}", directory.display());
        std::process::exit(0);
    }
    let done = child("only_what_was_named_is_in_reach", "go");
    let said = String::from_utf8_lossy(&done.stderr);
    let directory = said.lines().find_map(|line| line.split_once("kept: ")).map(|(_, path)| path.to_owned());
    std::fs::remove_dir(directory.unwrap_or_else(|| panic!("{said}"))).unwrap();
}
