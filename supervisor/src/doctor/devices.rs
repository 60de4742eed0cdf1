//! The interfaces that are captured on: whether they are there and up, their offloads, their MTU.

use super::Visit;
use super::finding::{Fault, Finding};

/// Notes each named interface, or all that are up.
pub(crate) fn check(visit: &mut Visit<'_>, names: &[String]) {
    let known = capturer::interfaces::interfaces();
    let all: Vec<&str> = known.iter().map(|one| one.name.as_str()).collect();
    if names.is_empty() {
        let up: Vec<&str> = known.iter().filter(|one| one.up).map(|one| one.name.as_str()).collect();
        visit.book.note(Finding::ok(visit.here, "interfaces", format!("all: {}", up.join(", "))));
        return;
    }
    for name in names {
        let check = format!("interface {name}");
        let Some(interface) = known.iter().find(|one| one.name == *name) else {
            let on = visit.this_host();
            visit.book.note(
                Finding::failed(visit.here, check, Fault::NoInterface, "this host has no such interface")
                    .because(format!("It has {}; -i any captures on all.", all.join(", ")))
                    .mend(on, "ip -br address"),
            );
            continue;
        };
        let facts = match injector::facts::device(interface.index) {
            Ok(facts) => facts,
            Err(error) => {
                let why = crate::words::of_io(&error);
                visit.book.note(Finding::skipped(
                    visit.here,
                    check,
                    format!("asking the kernel failed: {why}"),
                ));
                continue;
            }
        };
        if !facts.is_up || !facts.has_carrier {
            let why = if facts.is_up { "up, but not connected" } else { "down" };
            let on = visit.this_host();
            visit.book.note(
                Finding::failed(visit.here, check, Fault::InterfaceDown, why)
                    .because("Nothing is captured on it until it is up.")
                    .mend(on, format!("ip link set dev {name} up")),
            );
            continue;
        }
        let offloads = match (facts.joins, facts.cuts) {
            (false, false) => "no offloads",
            (true, true) => "super-frames both ways (fine)",
            (true, false) => "super-frames on reception (fine)",
            (false, true) => "super-frames on sending (fine)",
        };
        visit.book.note(Finding::ok(visit.here, check, format!("up, MTU {}, {offloads}", facts.mtu)));
    }
}
