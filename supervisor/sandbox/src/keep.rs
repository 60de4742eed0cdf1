//! What one process keeps. Everything else goes, in an order in which each step is still allowed:
//!
//! | step | needs |
//! |---|---|
//! | files that stay in reach are named | the rights to walk to them |
//! | bounding set emptied | CAP_SETPCAP |
//! | groups, group, user | CAP_SETGID, CAP_SETUID; it clears the parent-death signal |
//! | capabilities, but for those kept | nothing, and they do not come back |
//! | no new privileges, no core, not dumpable, memory bounded | nothing |
//! | files (landlock) | no new privileges |
//! | system calls (seccomp) | no new privileges; nothing of the above is possible behind it |

use caps::Capability;

use crate::calls::List;
use crate::files::{self, Opening};
use crate::filter::Filter;
use crate::user::Ids;
use crate::{privileges, sys};

/// What a process keeps.
#[derive(Clone, Debug)]
pub struct Keep {
    /// The process, in its last words.
    pub name: String,
    /// Whom it becomes; none: it stays who it is.
    pub user: Option<Ids>,
    /// Capabilities that it has and goes on to need.
    pub capabilities: Vec<Capability>,
    /// What of the file system stays in reach; none: all of it, where the kernel cannot keep it away.
    pub files: Option<Vec<Opening>>,
    /// Ports that it may connect to by TCP, where the kernel can tell (Linux 6.7).
    pub ports: Vec<u16>,
    /// The system calls that it makes.
    pub calls: Vec<List>,
    /// Private memory at most, bytes.
    pub data_bytes: u64,
}

/// What could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("giving up {what} failed: {why}. This is not safe to go on from; --sandbox off starts without")]
pub struct Error {
    /// What.
    pub(crate) what: &'static str,
    /// The system's or a library's words.
    pub(crate) why: String,
}

impl Error {
    pub(crate) fn of<E: ToString>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |why| Self { what, why: why.to_string() }
    }
}

impl Keep {
    /// Gives up everything but the system calls, which are last: the filter is in the caller's hands, who may have something to do
    /// that it forbids. Only this thread, and those that it starts, are bound; so there must be no other.
    ///
    /// # Errors
    /// The system refuses: the process may have lost some of its rights by then, and should end.
    pub fn give_up(&self) -> Result<Filter, Error> {
        let filter = Filter::new(&self.name, &self.calls)?;
        let reach = self.files.as_ref().map(|files| files::reach(files, &self.ports)).transpose()?;
        privileges::change_user(self.user, &self.capabilities)?;
        privileges::seal()?;
        privileges::bound(self.data_bytes)?;
        sys::keep_freed_memory();
        if let Some(reach) = reach {
            reach.restrict_self().map_err(Error::of("files"))?;
        }
        Ok(filter)
    }
}
