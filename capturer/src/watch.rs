//! Whether a named interface is there and up: looked at once a second by the engines whose sockets do not tell.

use crate::interfaces;

/// How an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// There and up.
    Up,
    /// There and down.
    Down,
    /// Not there, or another one of the same name where it matters.
    Gone,
}

/// An interface that is looked at.
#[derive(Debug)]
pub(crate) struct Watch {
    name: String,
    /// With another index it is another interface; `None` where that does not matter.
    index: Option<u32>,
    state: State,
    downs: u64,
}

impl Watch {
    /// One that was just up.
    pub(crate) const fn new(name: String, index: Option<u32>) -> Self {
        Self { name, index, state: State::Up, downs: 0 }
    }

    /// Its name.
    #[cfg(feature = "xdp")]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How often it was seen to be up no more.
    pub(crate) const fn downs(&self) -> u64 {
        self.downs
    }

    /// Looks, and says in the log what changed.
    pub(crate) fn look(&mut self) -> State {
        let found = interfaces::find(&self.name);
        let found = found.filter(|found| self.index.is_none_or(|index| index == found.index));
        let state = match found {
            None => State::Gone,
            Some(found) if found.up => State::Up,
            Some(_) => State::Down,
        };
        if state != self.state {
            let name = &self.name;
            match state {
                State::Up => tracing::info!("{name} is up again; capturing goes on"),
                State::Down => tracing::warn!("{name} is down; nothing is captured on it until it is up"),
                State::Gone if self.index.is_some() => tracing::warn!(
                    "{name} is gone; capturing goes on elsewhere. Start again to capture on a new {name}"
                ),
                State::Gone => tracing::warn!(
                    "{name} is gone; capturing goes on elsewhere, and on {name} when it is back"
                ),
            }
            self.downs += u64::from(self.state == State::Up);
            self.state = state;
        }
        state
    }
}
