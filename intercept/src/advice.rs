//! What an operator must know and cannot see: the route that the target needs, and settings of this host that would drop
//! packets. Read from /proc and the routing table, never changed.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use flow::Range;

/// The command that the target needs so that answers to `range` come here; `None` where no target of that family has a
/// way here. Nothing is sent.
pub(crate) fn route_command(range: &Range, targets: &[SocketAddr]) -> Option<String> {
    let target = targets.iter().find(|t| t.is_ipv4() == range.is_v4())?;
    let here = address_towards(*target)?;
    let family = if range.is_v4() { "" } else { "-6 " };
    Some(format!("on the target ({}):  ip {family}route replace {range} via {here}", target.ip()))
}

/// The command for a target that drops what the replayed clients send, because the route back leads elsewhere.
pub(crate) fn rp_filter_hint() -> &'static str {
    "if the target still answers nothing, it may drop what it receives from there:  \
     sysctl -w net.ipv4.conf.all.rp_filter=2"
}

/// Interfaces on which the target itself (`--tun`) drops what comes from replayed clients: the way back leads into the
/// device, not to where they came from.
pub(crate) fn strict_rp_filter(sysctl: &Path, tun: &str) -> Option<String> {
    let dir = sysctl.join("net/ipv4/conf");
    let value = |name: &str| read(&dir, &format!("{name}/rp_filter")).and_then(|v| v.parse::<u8>().ok());
    let all = value("all")?;
    let mut strict: Vec<String> = fs::read_dir(&dir)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !["all", "default", "lo", tun].contains(&name.as_str()))
        // The larger of the two counts; 1 is strict, 2 is loose (ip-sysctl, rp_filter).
        .filter(|name| value(name).is_some_and(|own| own.max(all) == 1))
        .collect();
    strict.sort();
    if strict.is_empty() {
        return None;
    }
    Some(format!(
        "strict reverse-path filtering on {} drops what replayed clients send to this host. Allow it:  \
         sysctl -w net.ipv4.conf.all.rp_filter=2",
        strict.join(", ")
    ))
}

/// Our address on the way to a target, as the routing table says.
fn address_towards(target: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(target).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn read(dir: &Path, name: &str) -> Option<String> {
    Some(fs::read_to_string(dir.join(name)).ok()?.trim().to_owned())
}

/// Where the kernel shows its settings.
pub(crate) const SYSCTL: &str = "/proc/sys";

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctl(files: &[(&str, &str)]) -> std::path::PathBuf {
        let tag = files.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>();
        let dir = std::env::temp_dir().join(format!("tcptwin-advice-{}-{tag}", std::process::id()));
        for (name, value) in files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        dir
    }

    #[test]
    fn the_route_names_range_target_and_our_address() {
        let command =
            route_command(&"198.18.16.0/20".parse().unwrap(), &["127.0.0.1:80".parse().unwrap()]).unwrap();
        assert_eq!(command, "on the target (127.0.0.1):  ip route replace 198.18.16.0/20 via 127.0.0.1");
        assert_eq!(route_command(&"2001:2::/64".parse().unwrap(), &["127.0.0.1:80".parse().unwrap()]), None);
    }

    #[test]
    fn strict_reverse_path_filters_are_named_and_loose_ones_are_not() {
        let conf = |all, eth0, eth1| {
            sysctl(&[
                ("net/ipv4/conf/all/rp_filter", all),
                ("net/ipv4/conf/eth0/rp_filter", eth0),
                ("net/ipv4/conf/eth1xx/rp_filter", eth1),
                ("net/ipv4/conf/tcptwin0/rp_filter", "1"),
            ])
        };
        let dir = conf("0", "1", "2");
        let warning = strict_rp_filter(&dir, "tcptwin0").unwrap();
        assert!(warning.starts_with("strict reverse-path filtering on eth0 drops"), "{warning}");
        let _ = conf("2", "1", "0");
        assert_eq!(strict_rp_filter(&dir, "tcptwin0"), None, "all=2 makes every interface loose");
        let _ = conf("1", "0", "2");
        assert!(strict_rp_filter(&dir, "tcptwin0").unwrap().contains("on eth0 drops"));
        fs::remove_dir_all(dir).unwrap();
    }
}
