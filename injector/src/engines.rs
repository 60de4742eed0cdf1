//! Which engine each target has, and why, in words: before the start from what is known then, later from the role's gauges.

use std::time::{Duration, Instant};

use shm::{ANY_DEVICE, Region, Role};
use topology::Plan;
use topology::plan::InjectEngine;

use crate::count::choice_index;
use crate::open::Sockets;
use crate::rtnl::Rtnl;
use crate::sender::choose;
use crate::way::{self, Choice, Way};

/// One choice for each target of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engines(Vec<(String, Choice)>);

/// Time for neighbours to answer before the start.
const PATIENCE: Duration = Duration::from_millis(500);

impl Engines {
    /// What the role will find, once these devices are guarded. Makes the kernel ask for next hops that it does not know, and
    /// waits for their answers, but not long.
    pub fn foresee(plan: &Plan, sockets: &Sockets, guarded: &[u32]) -> Self {
        let all = |choice| Self::of(plan, plan.targets.iter().map(|_| choice));
        if plan.inject == InjectEngine::Raw {
            return all(Choice::RawAsked);
        }
        let Ok(rtnl) = Rtnl::open() else { return all(Choice::NoNetlink) };
        let until = Instant::now() + PATIENCE;
        loop {
            let ways: Vec<Result<Way, Choice>> =
                plan.targets.iter().map(|target| way::find(&rtnl, target.addr)).collect();
            if ways.contains(&Err(Choice::NoNeighbour)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            let pcap = plan.inject == InjectEngine::Pcap;
            let choices = ways.iter().map(|way| choose(way, pcap || sockets.link.is_some(), guarded));
            // Whether libpcap takes the device, the role finds out.
            let named =
                choices.map(|choice| if pcap && choice == Choice::Link { Choice::Pcap } else { choice });
            return Self::of(plan, named);
        }
    }

    /// What the role found; none before it looked.
    pub fn read(plan: &Plan, region: &Region) -> Option<Self> {
        let read = |target| region.read_counter(Role::Injector, choice_index(target)) as usize;
        let choices = (0..plan.targets.len()).map(|target| Choice::ALL.get(read(target)).copied());
        let choices: Vec<Choice> = choices.collect::<Option<_>>()?;
        (!choices.contains(&Choice::Unknown)).then(|| Self::of(plan, choices.into_iter()))
    }

    fn of(plan: &Plan, choices: impl Iterator<Item = Choice>) -> Self {
        Self(plan.targets.iter().map(|target| target.addr.to_string()).zip(choices).collect())
    }

    /// `link`, `raw`, `pcap`, or `mixed`.
    pub fn engine(&self) -> &'static str {
        let mut engines = self.0.iter().map(|(_, choice)| choice.engine());
        let first = engines.next().unwrap_or("raw");
        if engines.all(|engine| engine == first) { first } else { "mixed" }
    }

    /// Why it is not a better one, target by target where that differs; empty where it is the best.
    pub fn why(&self) -> String {
        let poor = |choice: Choice| !matches!(choice, Choice::Link | Choice::Pcap | Choice::RawAsked);
        let mut whys: Vec<Choice> = self.0.iter().map(|(_, choice)| *choice).collect();
        whys.dedup();
        match whys.as_slice() {
            [one] if poor(*one) => one.name().to_owned(),
            [_] => String::new(),
            _ => {
                let poor: Vec<_> = self.0.iter().filter(|(_, choice)| poor(*choice)).collect();
                let shown = poor.iter().take(SHOWN).map(|(addr, why)| format!("{addr}: {}", why.name()));
                let mut shown: Vec<String> = shown.collect();
                if poor.len() > SHOWN {
                    shown.push(format!("and {} more", poor.len() - SHOWN));
                }
                shown.join(", ")
            }
        }
    }

    /// For the line at the start: `link (AF_PACKET)`, `raw IP (link: no nftables guard)`.
    pub fn words(&self, asked: InjectEngine, guarded: &[u32]) -> String {
        let why = self.why();
        let wanted = if asked == InjectEngine::Pcap { "pcap" } else { "link" };
        let unguarded = if guarded.contains(&ANY_DEVICE) { ", without a guard in the kernel" } else { "" };
        match self.engine() {
            "link" => format!("link (AF_PACKET{unguarded})"),
            "pcap" => format!("pcap (libpcap{unguarded})"),
            "raw" if why.is_empty() => "raw IP".to_owned(),
            "raw" => format!("raw IP ({wanted}: {why})"),
            _ => format!("{wanted}, but raw IP for {why}"),
        }
    }
}

/// Targets named one by one at most.
const SHOWN: usize = 3;
