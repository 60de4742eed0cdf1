//! Whom a role becomes: a user of its own where the host has one, else the one that owns nothing.

use std::fs;

use caps::Capability;

use crate::privileges::has;

/// A user of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its numbers.
    pub ids: Ids,
}

/// Numbers of a user and its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The user's.
    pub uid: u32,
    /// The group's.
    pub gid: u32,
}

/// Whether roles change their user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// They become this one.
    Becomes(User),
    /// They stay who they are, because of this.
    Stays(&'static str),
}

/// The user that a package or an administrator makes for this program alone.
const OWN: &str = "tcptwin";
/// Everybody's last resort.
const NOBODY: &str = "nobody";
/// Its number everywhere, where no file says so.
const NOBODY_ID: u32 = 65_534;

impl Standing {
    /// Asks once: a user's number may come from a directory server, which is nothing to wait for while a role is away.
    pub fn find() -> Self {
        if !has(Capability::CAP_SETUID) || !has(Capability::CAP_SETGID) {
            return Self::Stays("changing it needs root");
        }
        let user = named(OWN)
            .or_else(|| named(NOBODY))
            .unwrap_or_else(|| User { name: NOBODY.to_owned(), ids: Ids { uid: NOBODY_ID, gid: NOBODY_ID } });
        let read = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
        if !is_mapped(&read("uid_map"), user.ids.uid) || !is_mapped(&read("gid_map"), user.ids.gid) {
            return Self::Stays("this user namespace has no other");
        }
        if read("setgroups").trim() == "deny" {
            return Self::Stays("this user namespace forbids changing groups");
        }
        Self::Becomes(user)
    }

    /// The user, if it changes.
    pub fn user(&self) -> Option<&User> {
        match self {
            Self::Becomes(user) => Some(user),
            Self::Stays(_) => None,
        }
    }
}

fn named(name: &str) -> Option<User> {
    let user = nix::unistd::User::from_name(name).ok()??;
    // A user of that name that is root would be none.
    (!user.uid.is_root())
        .then(|| User { name: name.to_owned(), ids: Ids { uid: user.uid.as_raw(), gid: user.gid.as_raw() } })
}

/// Whether a number stands in a map of user_namespaces(7): first inside, first outside, how many.
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        matches!(numbers[..], [first, _, count] if (first..first + count).contains(&id.into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_the_numbers_of_its_ranges() {
        let all = "         0          0 4294967295\n";
        let one = "         0       1000          1\n";
        let two = "0 1000 1\n1 100000 65536\n";
        assert!(is_mapped(all, 65_534) && !is_mapped(one, 65_534) && is_mapped(two, 65_534));
        assert!(!is_mapped(two, 65_537) && !is_mapped("", 0) && !is_mapped("nonsense", 0));
    }
}
