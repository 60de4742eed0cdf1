//! Start and end: opens everything first, so that a mistake is told before anything runs, then two threads.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flow::Endpoint;
use rtrb::RingBuffer;
use tracing::info;

use crate::capture::{Capture, check_count};
use crate::command::{Bell, COMMANDS};
use crate::door::{Door, Parts};
use crate::forward::Forward;
use crate::guide::Guide;
use crate::listen;
use crate::options::{InterceptError, Options, Summary};
use crate::owners::Registry;
use crate::ring_source::RingSource;
use crate::source::Source;
use crate::tun::TunSource;

/// Everything opened, nothing running.
pub struct Intercept {
    options: Options,
    listeners: Vec<std::net::TcpListener>,
    sources: Vec<Box<dyn Source>>,
}

impl Intercept {
    /// Opens capture, device and listener.
    ///
    /// # Errors
    /// A sentence with what was tried, on what, and what to do.
    pub fn open(options: Options) -> Result<Self, InterceptError> {
        if options.targets.is_empty() && options.datagrams.is_empty() {
            return Err(InterceptError::NoTarget);
        }
        let sources = open_sources(&options)?;
        Self::with_sources(options, sources)
    }

    /// The same with frames from elsewhere.
    ///
    /// # Errors
    /// As [`Intercept::open`].
    pub fn with_sources(options: Options, sources: Vec<Box<dyn Source>>) -> Result<Self, InterceptError> {
        let listeners = listen::open(&options.listen)?;
        let bound = listen::bound(&listeners)
            .map_err(|source| InterceptError::Start { what: "asking where it listens", source })?;
        options.stats.set_listening(bound);
        Ok(Self { options, listeners, sources })
    }

    /// Where it listens.
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.options.stats.listening()
    }

    /// Works until `stop` is set; returns within half a second of it.
    ///
    /// # Errors
    /// A thread could not be started, or ended on its own.
    pub fn run(self, stop: Arc<AtomicBool>) -> Result<Summary, InterceptError> {
        let Self { options, listeners, sources } = self;
        let Options { targets, datagrams, limits, stats, tun, .. } = &options;
        let start = |what| move |source: io::Error| InterceptError::Start { what, source };
        let bell = Arc::new(Bell::new().map_err(|e| start("an eventfd")(e.into()))?);
        let (producer, consumer) = RingBuffer::new(COMMANDS);
        let udp: Vec<Endpoint> = datagrams.iter().map(|&t| t.into()).collect();
        // Owners and claims are told by addresses; which protocol is whose, the filter knows.
        let mut all = targets.clone();
        all.extend(datagrams.iter().filter(|service| !targets.contains(service)));
        let endpoints: Vec<Endpoint> = all.iter().map(|&t| t.into()).collect();
        let tcp: Vec<Endpoint> = targets.iter().map(|&t| t.into()).collect();
        let guide = Guide::new(all, tun.as_ref().map(|t| t.name.clone()));
        let places = sources.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ");
        let watched = targets.iter().map(ToString::to_string);
        let watched = watched.chain(datagrams.iter().map(|service| format!("udp:{service}")));
        let watched = watched.collect::<Vec<_>>().join(", ");
        info!("watching answers of {watched} on {places}; listening on {}", join(&stats.listening()));
        guide.start();
        let capture = Capture {
            sources,
            forward: Forward::new(&tcp, &udp, limits, epoch(), seed(), stats.clone()),
            commands: consumer,
            bell: bell.clone(),
            stats: stats.clone(),
            stop: stop.clone(),
        };
        let routed = tun.as_ref().map(|t| t.ranges.clone()).unwrap_or_default();
        let door = Door::new(Parts {
            listeners,
            registry: Registry::new(endpoints, routed, limits.away.as_millis() as u64),
            commands: producer,
            bell,
            stats: stats.clone(),
            stop: stop.clone(),
            limits: *limits,
            key: options.key,
            plain: options.plain,
            software: options.software.clone(),
            guide,
        });
        let capture = spawn("capture", move || capture.run())?;
        let link = match spawn("link", move || door.run()) {
            Ok(link) => link,
            Err(error) => {
                stop.store(true, Ordering::Relaxed);
                let _ = capture.join();
                return Err(error);
            }
        };
        stats.set_ready(true);
        while !stop.load(Ordering::Relaxed) && !capture.is_finished() && !link.is_finished() {
            std::thread::park_timeout(Duration::from_millis(100));
        }
        let early = !stop.swap(true, Ordering::Relaxed);
        stats.set_ready(false);
        let ended = [("capture", capture.join()), ("link", link.join())];
        match ended.into_iter().find(|(_, result)| result.is_err() || early) {
            Some((name, _)) => Err(InterceptError::Thread(name)),
            None => Ok(Summary::of(stats)),
        }
    }
}

/// Opens everything and works until `stop` is set.
///
/// # Errors
/// See [`Intercept::open`] and [`Intercept::run`].
pub fn run(options: Options, stop: Arc<AtomicBool>) -> Result<Summary, InterceptError> {
    Intercept::open(options)?.run(stop)
}

fn open_sources(options: &Options) -> Result<Vec<Box<dyn Source>>, InterceptError> {
    if let Some(tun) = &options.tun {
        return Ok(vec![Box::new(TunSource::open(tun)?)]);
    }
    check_count(options.interfaces.len()).map_err(|e| InterceptError::Capture(e.to_string()))?;
    let names = options.interfaces.iter().map(|name| Some(name.as_str()));
    let all = options.interfaces.is_empty().then_some(None);
    let open = |name| RingSource::open(&options.targets, &options.datagrams, name, options.capture_bytes);
    let sources = names.chain(all).map(|name| Ok(Box::new(open(name)?) as Box<dyn Source>));
    sources.collect::<Result<_, String>>().map_err(InterceptError::Capture)
}

fn spawn(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, InterceptError> {
    let thread = Builder::new().name(format!("intercept-{name}"));
    thread.spawn(work).map_err(|source| InterceptError::Start { what: name, source })
}

/// Tells this start from any other, also after a reboot: nanoseconds of the wall clock.
fn epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64)
}

/// Unpredictable from outside: the standard library seeds its hash maps from the operating system.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(epoch())
}

fn join(addrs: &[SocketAddr]) -> String {
    addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
