//! What the control socket asks for.

use std::time::Instant;

use super::{Phase, Supervisor};
use crate::cli::Order;
use crate::control::{Reply, Request};
use crate::words;

impl Supervisor {
    pub(super) fn reply(&mut self, request: Request, now: Instant) -> Reply {
        let control = self.region.control();
        let said = |text: String| Reply::Ok(serde_json::Value::String(text));
        let order = match request {
            Request::Stats => {
                return match serde_json::to_value(self.sample().stats) {
                    Ok(stats) => Reply::Ok(stats),
                    Err(error) => Reply::Error(format!("the figures cannot be written: {error}")),
                };
            }
            Request::Pause => Order::Pause,
            Request::Resume => Order::Resume,
            Request::Stop => Order::Stop,
            Request::Percent { ppm } => Order::Percent(ppm),
            Request::Copies { milli } => Order::Copies(milli),
            Request::Upgrade => Order::Upgrade,
            Request::Halt => Order::Halt,
        };
        if !matches!(self.phase, Phase::Running) && order != Order::Halt {
            return Reply::Error(format!("the instance {} is ending already", self.plan.name));
        }
        if self.plan.records_only() && !matches!(order, Order::Stop | Order::Halt | Order::Upgrade) {
            return Reply::Error("this instance records and replays nothing: it can be stopped (`tcptwin ctl stop`), halted or upgraded".to_owned());
        }
        match order {
            Order::Pause => {
                control.set_paused(true);
                self.event("paused by ctl".to_owned());
                said("paused: what is captured from now on is counted as `paused`; `tcptwin ctl resume` goes on".to_owned())
            }
            Order::Resume => {
                control.set_paused(false);
                self.event("resumed by ctl".to_owned());
                said("resumed".to_owned())
            }
            Order::Stop => {
                self.begin_drain(now);
                said(format!("draining, at most {} s", self.plan.replay.drain_ms.div_ceil(1000)))
            }
            Order::Upgrade => self.prepare_upgrade(now),
            Order::Halt => self.halt(now, "by tcptwin ctl halt"),
            Order::Percent(ppm) if (1..=1_000_000).contains(&ppm) => {
                self.ask_percent(ppm);
                self.event(format!("{} % of new flows by ctl", f64::from(ppm) / 1e4));
                said(format!("{} % of new flows from now on; open ones go on", f64::from(ppm) / 1e4))
            }
            Order::Copies(milli) if (1..=topology::planner::MAX_COPIES * 1000).contains(&milli.into()) => {
                control.set_copies_milli(milli);
                let copies = words::copies(milli);
                self.event(format!("{copies} of new flows by ctl"));
                said(format!("{copies} of new flows from now on; open ones go on"))
            }
            Order::Percent(_) | Order::Copies(_) => {
                Reply::Error("this number is out of its bounds".to_owned())
            }
        }
    }
}
