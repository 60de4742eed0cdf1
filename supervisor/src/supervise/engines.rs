//! By which engines the injector sends and whether the ways to the targets are whole, as its gauges tell, and what the kernel's
//! guard has to say.

use injector::Engines;

use super::Supervisor;

impl Supervisor {
    /// Says which targets can be reached no more, or again.
    pub(super) fn watch_ways(&mut self) {
        for text in self.canary.since(self.region, &self.plan) {
            self.event(text);
        }
    }

    /// Says what changed since the last call.
    pub(super) fn watch_engines(&mut self) {
        for text in self.fence.as_ref().map(injector::Fence::news).unwrap_or_default() {
            self.event(text);
        }
        let Some(now) = Engines::read(&self.plan, self.region) else { return };
        if self.engines.as_ref() == Some(&now) {
            return;
        }
        let known = self.engines.is_some();
        let words = now.words(self.plan.inject, &self.region.control().guarded());
        self.engines = Some(now);
        if known {
            self.event(format!("sending by {words} from now on"));
        }
    }
}
