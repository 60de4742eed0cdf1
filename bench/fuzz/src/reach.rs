//! Which counters and reasons the inputs reached: a corpus that never gets behind the first check proves nothing. And of how many
//! parts they were, where one input is many.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

thread_local! {
    static NAMES: RefCell<Option<BTreeSet<&'static str>>> = const { RefCell::new(None) };
    static PARTS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// The names that were noted in this thread during `work`.
pub fn watch(work: impl FnOnce()) -> BTreeSet<&'static str> {
    NAMES.set(Some(BTreeSet::new()));
    work();
    NAMES.take().unwrap_or_default()
}

/// Notes a name, when somebody watches.
pub(crate) fn note(name: &'static str) {
    NAMES.with_borrow_mut(|names| {
        if let Some(names) = names {
            names.insert(name);
        }
    });
}

/// Notes several, when somebody watches.
pub(crate) fn note_all(names: impl FnOnce() -> Vec<&'static str>) {
    if NAMES.with_borrow(Option::is_some) {
        names().into_iter().for_each(note);
    }
}

/// Counts parts of inputs.
pub(crate) fn count(name: &'static str, parts: u64) {
    PARTS.with_borrow_mut(|all| *all.entry(name).or_default() += parts);
}

/// The parts that were counted in this thread since somebody asked last.
pub(crate) fn take_parts() -> BTreeMap<&'static str, u64> {
    PARTS.take()
}
