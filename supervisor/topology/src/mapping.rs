//! `-x`: what is captured and where it is replayed, `[udp:][ONLINE-IP:]PORT-TARGET:PORT` (`=` may stand for `-`), and the
//! form of `intercept`, `[udp:]TARGET:PORT`. `tcp:` may stand where nothing says the same. Every slip has its own sentence,
//! and the sentence ends with an example.

use std::net::{IpAddr, SocketAddr};

use crate::Refusal;
use crate::options::{Given, Key, Options};
use crate::plan::{MAX_MAPPINGS, MAX_TARGETS, Protocol};
use crate::value::{self, Why};

/// One mapping as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Online address; none means any address of this host.
    pub online_ip: Option<IpAddr>,
    /// Online port.
    pub online_port: u16,
    /// Where it is replayed.
    pub target: SocketAddr,
    /// TCP unless it says `udp:`.
    pub protocol: Protocol,
}

/// The services of `intercept`, by what they speak.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// Whose segments are returned.
    pub tcp: Vec<SocketAddr>,
    /// Whose datagrams are.
    pub udp: Vec<SocketAddr>,
}

impl Services {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &SocketAddr> {
        self.tcp.iter().chain(&self.udp)
    }
}

/// Reads all mappings of `run`: at least one, at most [`MAX_MAPPINGS`], none twice.
///
/// # Errors
/// One sentence with an example, exit code 2.
pub fn mappings(options: &Options) -> Result<Vec<Parsed>, Refusal> {
    let mut read: Vec<(&Given, Parsed)> = Vec::new();
    for given in options.all(Key::Map) {
        let parsed = parse(&given.text).map_err(|why| with_form(given, &why))?;
        if let Some((before, other)) = read.iter().find(|(_, other)| same_online(other, &parsed)) {
            let why = if other.target == parsed.target {
                "this mapping is given twice. Leave one out".to_owned()
            } else {
                format!(
                    "this online service has a target already ({}). A service is replayed on one target",
                    before.text
                )
            };
            return Err(given.refuse(why));
        }
        read.push((given, parsed));
        if read.len() > MAX_MAPPINGS {
            return Err(given.refuse(format_args!(
                "there are more than {MAX_MAPPINGS} mappings. Split them over two instances (--name)"
            )));
        }
    }
    if read.is_empty() {
        return Err(Refusal::usage(
            "nothing to replay: there is no -x. Say what to capture and where to replay it, for example -x 80-10.0.3.2:8080",
        ));
    }
    // The capture filter takes the first match, so a mapping of one address comes before one of the whole host.
    let mut parsed: Vec<Parsed> = read.into_iter().map(|(_, parsed)| parsed).collect();
    parsed.sort_by_key(|mapping| mapping.online_ip.is_none());
    Ok(parsed)
}

/// Reads the services of `intercept` (`-x TARGET:PORT`): at least one, at most [`MAX_TARGETS`], none twice.
///
/// # Errors
/// One sentence with an example, exit code 2.
pub fn services(options: &Options) -> Result<Services, Refusal> {
    let form = "Write TARGET:PORT, for example -x 10.0.3.2:8080";
    let mut read = Services::default();
    for given in options.all(Key::Map) {
        if let Some(parsed) = parse(&given.text).ok().filter(|_| given.text.contains(['-', '='])) {
            return Err(given.refuse(format_args!(
                "intercept wants the target alone. Write -x {}{}",
                parsed.protocol.prefix(),
                parsed.target
            )));
        }
        let (protocol, text) = protocol(&given.text).map_err(|why| given.refuse(why))?;
        let service = value::endpoint(text, "the target", None)
            .map_err(|why| given.refuse(format_args!("{why}. {form}")))?;
        let known = match protocol {
            Protocol::Tcp => &mut read.tcp,
            Protocol::Udp => &mut read.udp,
        };
        if known.contains(&service) {
            return Err(given.refuse("this target is given twice. Leave one out"));
        }
        known.push(service);
        if read.iter().count() > MAX_TARGETS {
            return Err(given.refuse(format_args!(
                "there are more than {MAX_TARGETS} targets. Split them over two intercepts"
            )));
        }
    }
    if read.iter().next().is_none() {
        return Err(Refusal::usage(format!("whose answers? There is no -x. {form}")));
    }
    Ok(read)
}

/// The protocol that a mapping or service begins with, and what stands behind it.
pub(crate) fn protocol(text: &str) -> Result<(Protocol, &str), Why> {
    // No port and no address consists of letters alone: IPv6 stands in brackets.
    let word = text.split_once(':').filter(|(word, _)| {
        !word.is_empty() && word.len() <= 5 && word.bytes().all(|byte| byte.is_ascii_alphabetic())
    });
    match word {
        Some(("tcp", rest)) => Ok((Protocol::Tcp, rest)),
        Some(("udp", rest)) => Ok((Protocol::Udp, rest)),
        Some((word, _)) if ["tcp", "udp"].contains(&word.to_ascii_lowercase().as_str()) => {
            Err(format!("write the protocol in small letters, `{}:`", word.to_ascii_lowercase()))
        }
        Some((word @ ("sctp" | "dccp" | "quic" | "icmp"), _)) => Err(format!(
            "`{word}` is not replayed; the protocol is `tcp:` or `udp:`{}",
            if word == "quic" { ", and QUIC is UDP to a network" } else { "" }
        )),
        _ => Ok((Protocol::Tcp, text)),
    }
}

/// Reads one mapping.
///
/// # Errors
/// Half a sentence: what is wrong with it.
pub fn parse(text: &str) -> Result<Parsed, Why> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if text.contains("->") {
        return Err("write `-` instead of `->`".to_owned());
    }
    if let Some(space) = text.chars().find(|c| c.is_whitespace()) {
        return Err(format!("there is a blank in it ({space:?}); separate mappings by commas"));
    }
    if text.contains(';') {
        return Err("separate mappings by commas, not by `;`".to_owned());
    }
    if text.contains("://") {
        return Err("write addresses and ports, not a URL".to_owned());
    }
    let (protocol, text) = protocol(text)?;
    if text.is_empty() {
        return Err("behind the protocol nothing follows".to_owned());
    }
    if text.starts_with("udp:") || text.starts_with("tcp:") {
        return Err("the protocol is given twice".to_owned());
    }
    let Some(cut) = text.find('=').or_else(|| text.find('-')) else {
        return Err(match value::endpoint(text, "it", None) {
            Ok(_) => "it names a target, but not the online port that is captured".to_owned(),
            Err(_) => "it does not say where to replay".to_owned(),
        });
    };
    let (online, target) = (&text[..cut], &text[cut + 1..]);
    let (online_ip, online_port) = online_side(online)?;
    let target = target_side(target)?;
    Ok(Parsed { online_ip, online_port, target, protocol })
}

pub(crate) fn online_side(text: &str) -> Result<(Option<IpAddr>, u16), Why> {
    if text.is_empty() {
        return Err("the online port is missing before the `-`".to_owned());
    }
    if let Some(number) = text.strip_prefix(':') {
        return value::port(number).map(|port| (None, port)).map_err(|why| format!("online: {why}"));
    }
    if text.contains([':', '.', '[']) {
        let at = value::endpoint(text, "the online side", None)?;
        if at.ip().is_unspecified() {
            return Err("leave the online address out to capture on every address of this host".to_owned());
        }
        if at.ip().is_multicast() || at.ip().to_string() == "255.255.255.255" {
            return Err(format!("no service listens on {}", at.ip()));
        }
        return Ok((Some(at.ip()), at.port()));
    }
    if text.contains(|c: char| c.is_ascii_alphabetic()) {
        return Err(format!(
            "`{text}` is not a port number; ports go from 1 to 65535, names are not looked up"
        ));
    }
    value::port(text).map(|port| (None, port)).map_err(|why| format!("online: {why}"))
}

fn target_side(text: &str) -> Result<SocketAddr, Why> {
    if text.is_empty() {
        return Err("the target is missing after the `-`".to_owned());
    }
    if text.starts_with(':') && text.matches(':').count() == 1 {
        return Err("the target has no address".to_owned());
    }
    if let Some(protocol) = ["udp:", "tcp:"].iter().find(|protocol| text.starts_with(**protocol)) {
        return Err(format!("`{protocol}` stands at the very front of a mapping, and holds for both sides"));
    }
    value::endpoint(text, "the target", None)
}

fn same_online(a: &Parsed, b: &Parsed) -> bool {
    a.protocol == b.protocol && a.online_ip == b.online_ip && a.online_port == b.online_port
}

fn with_form(given: &Given, why: &str) -> Refusal {
    given.refuse(format_args!("{why}. Write PORT-TARGET:PORT, for example -x {}", example(&given.text)))
}

/// An example close to what was meant: the mapping with what is missing added, where that makes it right.
fn example(text: &str) -> String {
    let usual = "80-10.0.3.2:8080";
    [format!("{text}:8080"), format!("80-{text}"), format!("{text}-10.0.3.2:8080")]
        .into_iter()
        .find(|candidate| parse(candidate).is_ok_and(|parsed| !parsed.target.ip().is_unspecified()))
        .unwrap_or_else(|| usual.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Place;

    fn options(text: &str) -> Options {
        let mut options = Options::default();
        options.give(Key::Map, text, Place::CommandLine);
        options
    }

    #[test]
    fn every_form_is_understood() {
        for (text, online, port, target) in [
            ("80-10.0.3.2:8080", None, 80, "10.0.3.2:8080"),
            ("80=10.0.3.2:8080", None, 80, "10.0.3.2:8080"),
            (":80-10.0.3.2:8080", None, 80, "10.0.3.2:8080"),
            ("10.0.0.9:80-10.0.3.2:8080", Some("10.0.0.9"), 80, "10.0.3.2:8080"),
            ("80-[2001:db8::2]:8080", None, 80, "[2001:db8::2]:8080"),
            ("[2001:db8::1]:80-[2001:db8::2]:8080", Some("2001:db8::1"), 80, "[2001:db8::2]:8080"),
            ("65535-10.0.3.2:1", None, 65535, "10.0.3.2:1"),
        ] {
            let parsed = parse(text).unwrap();
            assert_eq!(parsed.online_ip, online.map(|ip: &str| ip.parse().unwrap()), "{text}");
            assert_eq!((parsed.online_port, parsed.target.to_string().as_str()), (port, target), "{text}");
        }
    }

    #[test]
    fn a_port_may_be_mapped_for_both_protocols() {
        let list =
            mappings(&options("53-10.0.3.2:53,udp:53-10.0.3.2:53,udp:[fd00::1]:53-[fd00::2]:53")).unwrap();
        let protocols: Vec<Protocol> = list.iter().map(|mapping| mapping.protocol).collect();
        assert_eq!(protocols, [Protocol::Udp, Protocol::Tcp, Protocol::Udp]);
        assert_eq!(parse("tcp:80=10.0.3.2:80"), parse("80-10.0.3.2:80"));
        let both = services(&options("udp:10.0.3.2:53,tcp:10.0.3.2:53,[fd00::2]:80")).unwrap();
        assert_eq!((both.tcp.len(), both.udp.len()), (2, 1));
    }

    #[test]
    fn a_mapping_of_one_address_comes_before_one_of_the_whole_host() {
        let list = mappings(&options("80-10.0.3.2:8080,10.0.0.9:80-10.0.3.3:8080")).unwrap();
        assert_eq!(list[0].online_ip, Some("10.0.0.9".parse().unwrap()));
        assert_eq!(list[1].online_ip, None);
    }

    /// What a person may write by mistake, and a part of the sentence that comes back.
    const SLIPS: &[(&str, &str)] = &[
        ("", "it is empty"),
        ("80-10.0.3.2", "the target has no port. Write PORT-TARGET:PORT, for example -x 80-10.0.3.2:8080"),
        ("80=10.0.3.2", "the target has no port"),
        ("80-10.0.3.2:", "the port is missing"),
        ("80-10.0.3.2:0", "port 0 is no service's port"),
        ("0-10.0.3.2:8080", "port 0 is no service's port"),
        ("80-10.0.3.2:65536", "too large"),
        ("65536-10.0.3.2:80", "too large"),
        ("99999999999999999999-10.0.3.2:80", "too large"),
        ("80-10.0.3.2:http", "`http` is not a port number"),
        ("http-10.0.3.2:80", "`http` is not a port number"),
        ("80-10.0.3.2:+80", "`+80` is not a port number"),
        ("80-10.0.3.2:-80", "is not a port number"),
        ("80 -10.0.3.2:8080", "blank"),
        ("80- 10.0.3.2:8080", "blank"),
        ("80->10.0.3.2:8080", "instead of `->`"),
        ("80", "does not say where to replay. Write PORT-TARGET:PORT, for example -x 80-10.0.3.2:8080"),
        ("8080", "for example -x 8080-10.0.3.2:8080"),
        ("10.0.3.2:8080", "not the online port that is captured"),
        ("10.0.3.2", "does not say where to replay"),
        ("-10.0.3.2:8080", "the online port is missing"),
        ("=10.0.3.2:8080", "the online port is missing"),
        ("80-", "the target is missing"),
        ("80=", "the target is missing"),
        ("-", "the online port is missing"),
        ("80-8080", "the target has no address"),
        ("80-:8080", "the target has no address"),
        ("80-10.0.3.256:8080", "`10.0.3.256` is not an IPv4 or IPv6 address"),
        ("80-10.0.3:8080", "`10.0.3` is not an IPv4 or IPv6 address"),
        ("80-10.0.3.2.1:8080", "is not an IPv4 or IPv6 address"),
        ("80-010.0.3.2:8080", "is not an IPv4 or IPv6 address"),
        ("80-10.0.3.2/24:8080", "is not an IPv4 or IPv6 address"),
        ("80-10.0.3.x:8080", "literal address"),
        ("80-test.example.com:8080", "tcptwin resolves no names. `getent hosts test.example.com`"),
        ("80-localhost:8080", "tcptwin resolves no names"),
        ("80-web-2:8080", "tcptwin resolves no names"),
        ("80-test.example.com", "tcptwin resolves no names"),
        ("online:80-10.0.3.2:8080", "tcptwin resolves no names"),
        ("my-host:80-10.0.3.2:8080", "`my` is not a port number"),
        ("80-2001:db8::2:8080", "IPv6 address in brackets"),
        ("80-2001:db8::2", "IPv6 address in brackets"),
        ("80-::1:8080", "IPv6 address in brackets"),
        ("2001:db8::1:80-10.0.3.2:80", "IPv6 address in brackets"),
        ("80-[2001:db8::2]", "the target has no port"),
        ("80-[2001:db8::2]:", "the port is missing"),
        ("80-[2001:db8::2]8080", "comes `:PORT`"),
        ("80-[2001:db8::2:8080", "bracket is not closed"),
        ("80-[2001:db8::g]:8080", "`2001:db8::g` is not an IPv4 or IPv6 address"),
        ("80-[]:8080", "has no address"),
        ("80-[10.0.3.2]:8080", "brackets are for IPv6"),
        ("80-[fe80::1%eth0]:8080", "interface in it"),
        ("80-[::ffff:10.0.3.2]:8080", "write 10.0.3.2"),
        ("10.0.0.1-10.0.3.2:8080", "the online side has no port"),
        ("10.0.0.1:-10.0.3.2:8080", "the port is missing"),
        ("10.0.0.1:0-10.0.3.2:8080", "port 0"),
        ("10.0.0.1:99999-10.0.3.2:8080", "too large"),
        ("10.0.0.300:80-10.0.3.2:8080", "is not an IPv4 or IPv6 address"),
        ("[2001:db8::1]-[2001:db8::2]:80", "the online side has no port"),
        ("[2001:db8::1:80-[2001:db8::2]:80", "bracket is not closed"),
        ("0.0.0.0:80-10.0.3.2:8080", "leave the online address out"),
        ("[::]:80-[2001:db8::2]:8080", "leave the online address out"),
        ("224.0.0.1:80-10.0.3.2:8080", "no service listens on"),
        ("255.255.255.255:80-10.0.3.2:8080", "no service listens on"),
        ("80-10.0.3.2:8080,", "it is empty"),
        (",80-10.0.3.2:8080", "it is empty"),
        ("80-10.0.3.2:8080,,81-10.0.3.2:8081", "it is empty"),
        ("80-10.0.3.2:8080;81-10.0.3.2:8081", "by commas"),
        ("80-10.0.3.2:8080,80-10.0.3.2:8080", "given twice"),
        ("80-10.0.3.2:8080,80-10.0.3.3:8080", "has a target already (80-10.0.3.2:8080)"),
        ("10.0.0.1:80-10.0.3.2:8080,10.0.0.1:80=10.0.3.2:8080", "given twice"),
        ("80:10.0.3.2:8080", "does not say where to replay"),
        ("80-http://10.0.3.2:8080", "not a URL"),
        ("http://online-10.0.3.2:8080", "not a URL"),
        ("80-10.0.3.2:8080-81", "is not a port number"),
        ("８０-10.0.3.2:8080", "is not a port number"),
        ("80–10.0.3.2:8080", "does not say where to replay"),
        ("80.5-10.0.3.2:8080", "is not an IPv4 or IPv6 address"),
        ("0x50-10.0.3.2:8080", "is not a port number"),
        ("*:80-10.0.3.2:8080", "is not an IPv4 or IPv6 address"),
        ("80-*:8080", "is not an IPv4 or IPv6 address"),
        ("udp:", "behind the protocol nothing follows"),
        ("udp:53", "does not say where to replay"),
        ("udp:53-10.0.3.2", "the target has no port"),
        ("udp:udp:53-10.0.3.2:53", "the protocol is given twice"),
        ("UDP:53-10.0.3.2:53", "in small letters, `udp:`"),
        ("quic:443-10.0.3.2:443", "QUIC is UDP to a network"),
        ("sctp:80-10.0.3.2:80", "`sctp` is not replayed"),
        ("53-udp:10.0.3.2:53", "at the very front"),
        ("udp:53-udp:10.0.3.2:53", "at the very front"),
        ("udp:53-10.0.3.2:53,udp:53-10.0.3.3:53", "has a target already (udp:53-10.0.3.2:53)"),
        ("80-10.0.3.2:80,tcp:80-10.0.3.2:80", "given twice"),
    ];

    #[test]
    fn every_slip_has_a_sentence() {
        for (text, part) in SLIPS {
            let refusal = mappings(&options(text)).expect_err(text);
            assert_eq!(refusal.exit, 2, "{text}");
            assert!(refusal.sentence.contains(part), "{text:?} said: {}", refusal.sentence);
            assert!(refusal.sentence.starts_with("-x "), "{text:?} said: {}", refusal.sentence);
        }
    }

    #[test]
    fn examples_in_sentences_are_right_themselves() {
        for (text, _) in SLIPS {
            let Err(refusal) = mappings(&options(text)) else { continue };
            if let Some((_, example)) = refusal.sentence.rsplit_once("for example -x ") {
                assert!(parse(example).is_ok(), "{text:?} said: {}", refusal.sentence);
            }
        }
    }

    #[test]
    fn nothing_to_replay_is_said() {
        assert!(mappings(&Options::default()).unwrap_err().sentence.contains("there is no -x"));
    }

    #[test]
    fn too_many_mappings_are_refused() {
        let many: Vec<String> = (1..=MAX_MAPPINGS + 1).map(|port| format!("{port}-10.0.3.2:8080")).collect();
        assert!(mappings(&options(&many.join(","))).unwrap_err().sentence.contains("more than 256"));
        assert_eq!(mappings(&options(&many[1..].join(","))).unwrap().len(), MAX_MAPPINGS);
    }

    #[test]
    fn intercept_wants_targets_alone() {
        assert_eq!(services(&options("10.0.3.2:8080,[2001:db8::2]:80")).unwrap().iter().count(), 2);
        for (text, part) in [
            ("80-10.0.3.2:8080", "Write -x 10.0.3.2:8080"),
            ("10.0.3.2", "the target has no port. Write TARGET:PORT"),
            ("8080", "the target has no address"),
            ("10.0.3.2:0", "port 0"),
            ("web:80", "resolves no names"),
            ("10.0.3.2:80,10.0.3.2:80", "given twice"),
            ("", "has no address"),
        ] {
            let refusal = services(&options(text)).expect_err(text);
            assert!(refusal.sentence.contains(part), "{text:?} said: {}", refusal.sentence);
        }
    }
}
