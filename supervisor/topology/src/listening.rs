//! What `tcptwin intercept` was asked to do: its counterpart of a [`crate::Plan`], for a single process.

use std::net::SocketAddr;

use flow::Range;

use crate::Refusal;
use crate::clients;
use crate::mapping;
use crate::options::{Key, Options};
use crate::plan::Sandbox;
use crate::planner::{self, DEFAULT_PORT};
use crate::value;

/// Name of an intercept unless given; not that of a run, so that both can live on one host.
pub const DEFAULT_NAME: &str = "intercept";

/// What `tcptwin intercept` was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Name of the instance.
    pub name: String,
    /// The services whose answers are returned.
    pub services: mapping::Services,
    /// Interfaces the answers arrive on; empty means all.
    pub interfaces: Vec<String>,
    /// A TUN device takes the route of these ranges; none without `--tun`.
    pub tun: Option<Vec<Range>>,
    /// Where to listen; empty means every address, IPv4 and IPv6, at the usual port.
    pub listen: Vec<SocketAddr>,
    /// The pre-shared key of the return channel.
    pub key: Option<[u8; 32]>,
    /// `--plain` was given: peers beyond loopback may come without a key.
    pub plain: bool,
    /// `--guard`: a rule of its own against forwarding.
    pub guard: bool,
    /// What the process gives up.
    pub sandbox: Sandbox,
}

/// Reads the options of `intercept`; `key` is what `--key` names or what stands in its usual place.
///
/// # Errors
/// One sentence, exit code 2.
pub fn listening_from(options: &Options, key: Option<[u8; 32]>) -> Result<Listening, Refusal> {
    options.check_rivals()?;
    let name = planner::name(options, DEFAULT_NAME)?;
    let services = mapping::services(options)?;
    let interfaces = planner::interfaces(options)?;
    let tun = match options.one(Key::Tun) {
        Some(tun) if !interfaces.is_empty() => {
            return Err(tun.refuse("with --tun the answers come through a device of its own. Leave -i out"));
        }
        Some(_) => Some(tun_ranges(options, &services)?),
        None => {
            if let Some(given) = options.one(Key::Clients) {
                return Err(given.refuse("a range is for --tun only; without it every `tcptwin run` says its own. Leave -c out, or add --tun"));
            }
            None
        }
    };
    let listen = match options.one(Key::Listen) {
        None => Vec::new(),
        Some(given) => {
            vec![value::endpoint(&given.text, "the address to listen on", Some(DEFAULT_PORT)).map_err(
                |why| {
                    given
                        .refuse(format_args!("{why}. Write ADDR or ADDR:PORT, for example --listen 10.0.4.2"))
                },
            )?]
        }
    };
    let (guard, sandbox) = (guard(options)?, planner::sandbox(options)?);
    let plain = options.has(Key::Plain);
    let loopback = !listen.is_empty() && listen.iter().all(|addr| addr.ip().is_loopback());
    if key.is_none() && !plain && !loopback {
        return Err(Refusal::usage(
            "the return channel has no key. Either make one and give the same file to both hosts:\n  \
             tcptwin keygen /etc/tcptwin/key      (found there by itself, elsewhere named with --key FILE)\n\
             or, in a network that you trust, give --plain here and to `tcptwin run`",
        ));
    }
    let key = key.filter(|_| !plain);
    Ok(Listening { name, services, interfaces, tun, listen, key, plain, guard, sandbox })
}

fn guard(options: &Options) -> Result<bool, Refusal> {
    match options.one(Key::Guard) {
        Some(given) if options.has(Key::Tun) => {
            Err(given.refuse("what comes into the device of --tun goes nowhere by itself. Leave --guard out"))
        }
        given => Ok(given.is_some()),
    }
}

/// `-c`, or the default ranges of the families that the services have.
fn tun_ranges(options: &Options, services: &mapping::Services) -> Result<Vec<Range>, Refusal> {
    let given = clients::ranges(options)?;
    if given != [None, None] {
        return Ok(given.into_iter().flatten().collect());
    }
    let has = |v4: bool| services.iter().any(|service| service.is_ipv4() == v4);
    let v4 = has(true).then(clients::default_v4);
    let v6 = has(false).then(clients::default_v6);
    Ok(v4.into_iter().chain(v6).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Place;

    fn read(pairs: &[(Key, &str)]) -> Result<Listening, Refusal> {
        let mut options = Options::default();
        options.give(Key::Map, "10.0.3.2:8080", Place::CommandLine);
        pairs.iter().for_each(|(key, text)| options.give(*key, text, Place::CommandLine));
        listening_from(&options, Some([1; 32]))
    }

    #[test]
    fn the_smallest_command_line_listens_everywhere() {
        let listening = read(&[]).unwrap();
        assert_eq!(listening.name, "intercept");
        assert!(listening.listen.is_empty() && listening.interfaces.is_empty() && listening.tun.is_none());
        assert!(listening.key.is_some() && !listening.plain);
    }

    #[test]
    fn tun_takes_the_default_range_of_the_services_family() {
        assert_eq!(read(&[(Key::Tun, "")]).unwrap().tun, Some(vec![clients::default_v4()]));
        let own = read(&[(Key::Tun, ""), (Key::Clients, "198.18.16.0/20")]).unwrap();
        assert_eq!(own.tun, Some(vec!["198.18.16.0/20".parse().unwrap()]));
    }

    #[test]
    fn every_slip_has_a_sentence() {
        for (pairs, part) in [
            (&[(Key::Tun, ""), (Key::Interface, "eth0")][..], "Leave -i out"),
            (&[(Key::Clients, "198.18.0.0/15")], "a range is for --tun only"),
            (&[(Key::Tun, ""), (Key::Guard, "")], "goes nowhere by itself"),
            (&[(Key::Listen, "here")], "resolves no names"),
            (&[(Key::Listen, "10.0.4.2:0")], "port 0"),
            (&[(Key::Map, "10.0.3.2")], "the target has no port"),
            (&[(Key::Plain, ""), (Key::KeyFile, "k")], "exclude each other"),
            (&[(Key::Name, "a b")], "1 to 32 letters"),
        ] {
            let refusal = read(pairs).unwrap_err();
            assert_eq!(refusal.exit, 2);
            assert!(refusal.sentence.contains(part), "{refusal}");
        }
    }

    #[test]
    fn plain_must_be_said_unless_it_stays_on_this_host() {
        let mut options = Options::default();
        options.give(Key::Map, "10.0.3.2:8080", Place::CommandLine);
        assert!(listening_from(&options, None).unwrap_err().sentence.contains("has no key"));
        options.give(Key::Listen, "127.0.0.1", Place::CommandLine);
        assert_eq!(listening_from(&options, None).unwrap().key, None);
    }
}
