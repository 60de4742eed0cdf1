//! The replayed clients' addresses: `-c`, `--keep-clients`, or a part of the benchmarking ranges of this instance's own.
//!
//! RFC 2544 sets 198.18.0.0/15 aside for benchmarks and RFC 5180 2001:2::/48, so that no real user has an address of
//! them. Each instance takes one part, chosen by a hash of the machine and its name: the same one at every start, and
//! rarely that of another; where two collide, intercept refuses the second and names a free part.

use std::net::IpAddr;

use flow::Range;

use crate::Refusal;
use crate::mapping::Parsed;
use crate::options::{Key, Options};
use crate::plan::Clients;

/// The whole default range of IPv4 clients.
pub const DEFAULT_V4: &str = "198.18.0.0/15";
/// The whole default range of IPv6 clients.
pub const DEFAULT_V6: &str = "2001:2::/48";
/// An instance's part of [`DEFAULT_V4`]: 32 parts of 4,096 addresses.
pub const PART_V4: u8 = 20;
/// An instance's part of [`DEFAULT_V6`]: 65,536 parts.
pub const PART_V6: u8 = 64;

/// The parts that the instance `name` on the machine `host_id` takes by itself.
pub fn own_parts(host_id: u64, name: &str) -> (Range, Range) {
    let hash = name.bytes().fold(host_id ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        // FNV-1a: the choice must be the same in every build for ever, or a restart would change the clients.
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of FNV are its best mixed ones only after folding the high ones in.
    let hash = hash ^ hash >> 32;
    let v4 = default_v4().part(PART_V4, hash % 32).expect("32 parts of /20 lie in a /15");
    let v6 = default_v6().part(PART_V6, hash >> 8 & 0xffff).expect("65,536 parts of /64 lie in a /48");
    (v4, v6)
}

/// The whole default range of IPv4 clients.
pub fn default_v4() -> Range {
    DEFAULT_V4.parse().expect("a range")
}

/// The whole default range of IPv6 clients.
pub fn default_v6() -> Range {
    DEFAULT_V6.parse().expect("a range")
}

/// Reads `-c` and `--keep-clients` of `run`; without them the instance's own parts, for the families of its targets.
///
/// # Errors
/// One sentence, exit code 2.
pub fn clients(options: &Options, mappings: &[Parsed], host_id: u64, name: &str) -> Result<Clients, Refusal> {
    if let Some(keep) = options.one(Key::KeepClients) {
        let mixed = mappings.iter().find_map(|m| {
            m.online_ip.filter(|ip| ip.is_ipv4() != m.target.is_ipv4()).map(|ip| (ip, m.target))
        });
        return match mixed {
            None => Ok(Clients::Keep),
            Some((ip, target)) => Err(keep.refuse(format_args!(
                "clients of {ip} cannot keep their addresses towards {}, which is of the other family. Give a range with -c instead",
                target.ip()
            ))),
        };
    }
    let needs = |v4: bool| mappings.iter().map(|m| m.target).find(|target| target.is_ipv4() == v4);
    if !options.has(Key::Clients) {
        let (v4, v6) = own_parts(host_id, name);
        return Ok(Clients::Pool { v4: needs(true).map(|_| v4), v6: needs(false).map(|_| v6), chosen: true });
    }
    let [v4, v6] = ranges(options)?;
    let missing = [(true, v4, "IPv4", "198.18.16.0/20"), (false, v6, "IPv6", "2001:2:0:1::/64")];
    for (family, range, word, example) in missing {
        if let (Some(target), None) = (needs(family), range) {
            let given = options.one(Key::Clients).expect("looked for above");
            return Err(given.refuse(format_args!(
                "the target {target} needs {word} clients too. Add a range, for example -c {},{example}",
                given.text
            )));
        }
    }
    Ok(Clients::Pool { v4, v6, chosen: false })
}

/// Reads `-c`: at most one range of each family, IPv4 first.
///
/// # Errors
/// One sentence, exit code 2.
pub fn ranges(options: &Options) -> Result<[Option<Range>; 2], Refusal> {
    let mut found = [None, None];
    for given in options.all(Key::Clients) {
        let range: Range = given.text.parse().map_err(|_| given.refuse(reason(&given.text)))?;
        if let Some(what) = unusable(&range) {
            return Err(given.refuse(format_args!("{what}. Use for example 198.18.16.0/20")));
        }
        let slot = &mut found[usize::from(!range.is_v4())];
        if let Some(other) = slot.replace(range) {
            return Err(given.refuse(format_args!(
                "there is a range of this family already ({other}). Give one of each"
            )));
        }
    }
    Ok(found)
}

/// Why a text is not a range, as exactly as can be told.
fn reason(text: &str) -> String {
    let form = "Write ADDRESS/LENGTH, for example 198.18.16.0/20, or a.b.c.x for a.b.c.0/24";
    let Some((addr, length)) = text.split_once('/') else {
        return format!("this is not a range of addresses. {form}");
    };
    let (Ok(ip), Ok(prefix)) = (addr.parse::<IpAddr>(), length.parse::<u8>()) else {
        return format!("this is not a range of addresses. {form}");
    };
    match Range::new(ip.into(), prefix) {
        Some(range) => format!("{ip} is not the first address of its range. Write {range}"),
        None => format!("the length goes up to {}. {form}", if ip.is_ipv4() { 32 } else { 128 }),
    }
}

/// Ranges that no client can have.
fn unusable(range: &Range) -> Option<&'static str> {
    let touches = |text: &str| range.overlaps(&text.parse().expect("a range"));
    [
        ("127.0.0.0/8", "loopback addresses never leave a host"),
        ("::1/128", "loopback addresses never leave a host"),
        ("224.0.0.0/4", "multicast addresses are no clients"),
        ("ff00::/8", "multicast addresses are no clients"),
        ("240.0.0.0/4", "reserved addresses are dropped by every kernel"),
        ("0.0.0.0/8", "0.0.0.0/8 is not routed"),
        ("fe80::/10", "link-local addresses are not routed"),
        ("169.254.0.0/16", "link-local addresses are not routed"),
    ]
    .into_iter()
    .find_map(|(no, why)| touches(no).then_some(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::parse;
    use crate::options::Place;

    fn given(texts: &[&str]) -> Options {
        let mut options = Options::default();
        texts.iter().for_each(|text| options.give(Key::Clients, text, Place::CommandLine));
        options
    }

    #[test]
    fn an_instance_takes_the_same_part_at_every_start() {
        let (v4, v6) = own_parts(7, "default");
        assert_eq!((v4, v6), own_parts(7, "default"));
        assert_eq!((v4.prefix(), v6.prefix()), (PART_V4, PART_V6));
        assert!(default_v4().overlaps(&v4) && default_v6().overlaps(&v6));
    }

    #[test]
    fn parts_spread_over_machines_and_names() {
        let mut seen = [0u32; 32];
        for host in 0..2_000u64 {
            let (v4, _) = own_parts(host.wrapping_mul(0x9e37_79b9_7f4a_7c15), "default");
            let index = (0..32).find(|i| default_v4().part(PART_V4, *i) == Some(v4)).unwrap();
            seen[index as usize] += 1;
        }
        assert!(seen.iter().all(|count| (20..=120).contains(count)), "{seen:?}");
        let names: std::collections::HashSet<_> =
            (0..8).map(|i| own_parts(1, &format!("web-{i}")).1).collect();
        assert_eq!(names.len(), 8);
    }

    #[test]
    fn only_families_of_targets_get_a_range() {
        let mappings = [parse("80-10.0.3.2:8080").unwrap()];
        let Clients::Pool { v4, v6, chosen } = clients(&Options::default(), &mappings, 1, "a").unwrap()
        else {
            panic!()
        };
        assert!(v4.is_some() && v6.is_none() && chosen);
    }

    #[test]
    fn every_slip_has_a_sentence() {
        for (text, part) in [
            ("198.18.0.1/20", "not the first address of its range. Write 198.18.0.0/20"),
            ("198.18.0.0/33", "the length goes up to 32"),
            ("2001:2::/129", "the length goes up to 128"),
            ("198.18.x.x", "not a range"),
            ("clients", "not a range"),
            ("", "not a range"),
            ("198.18.0.0-198.18.0.9", "not a range"),
            ("198.18.0.0/x", "not a range"),
            ("127.0.0.x", "loopback"),
            ("224.0.0.0/8", "multicast"),
            ("0.0.0.0/0", "loopback"),
            ("::/0", "loopback"),
            ("ff02::/16", "multicast"),
            ("240.1.0.0/16", "reserved"),
            ("169.254.7.0/24", "link-local"),
            ("fe80::/64", "link-local"),
            ("198.18.0.0/20,198.18.16.0/20", "a range of this family already (198.18.0.0/20)"),
        ] {
            let refusal = ranges(&given(&[text])).expect_err(text);
            assert_eq!(refusal.exit, 2);
            assert!(refusal.sentence.contains(part), "{text:?} said: {}", refusal.sentence);
        }
    }

    #[test]
    fn a_target_without_clients_of_its_family_is_refused() {
        let mappings = [parse("80-[2001:db8::2]:8080").unwrap()];
        let refusal = clients(&given(&["198.18.0.0/20"]), &mappings, 1, "a").unwrap_err();
        assert!(refusal.sentence.contains("needs IPv6 clients"), "{refusal}");
    }

    #[test]
    fn kept_clients_cannot_change_their_family() {
        let mut options = Options::default();
        options.give(Key::KeepClients, "", Place::CommandLine);
        let mixed = [parse("10.0.0.1:80-[2001:db8::2]:8080").unwrap()];
        assert!(clients(&options, &mixed, 1, "a").unwrap_err().sentence.contains("other family"));
        assert_eq!(clients(&options, &[parse("80-10.0.3.2:80").unwrap()], 1, "a").unwrap(), Clients::Keep);
    }
}
