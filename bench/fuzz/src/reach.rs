//! Which counters and reasons the inputs reached: a corpus that never gets behind the first check proves nothing.

use std::cell::RefCell;
use std::collections::BTreeSet;

thread_local! {
    static NAMES: RefCell<Option<BTreeSet<&'static str>>> = const { RefCell::new(None) };
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
