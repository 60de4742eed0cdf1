//! What can go wrong with a region, as sentences for whoever started the program.

use std::io;
use std::path::PathBuf;

/// Why a region could not be created, attached or removed.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The instance's name cannot be a file name of ours.
    #[error(
        "--name {name:?} cannot name a shared region: use 1 to 64 letters, digits, '-', '_' or '.', and no '.' first"
    )]
    BadName {
        /// As given.
        name: String,
    },
    /// Sizes that no region can have.
    #[error("the shared region cannot be laid out: {reason}")]
    BadSpec {
        /// Which size, and its bounds.
        reason: String,
    },
    /// The plan does not fit its section.
    #[error(
        "the plan is {bytes} bytes, its section in the shared region holds {limit}: use fewer mappings (-x), interfaces (-i) or intercepts (-s)"
    )]
    PlanTooLarge {
        /// Bytes of this plan.
        bytes: usize,
        /// Bytes there are.
        limit: usize,
    },
    /// A region of this name is there already.
    #[error(
        "the shared region {} exists already: another instance of this name runs, or one died; stop it, or start this one with another --name", path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file system that holds shared memory is too small.
    #[error(
        "the shared region {} needs {needed_mib} MiB, but its file system has {free_mib} MiB free: make the region smaller with --memory, --max-sessions or --shards, or the file system larger (mount -o remount,size=... /dev/shm; in a container: --shm-size)", path.display()
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Size of the region, rounded up.
        needed_mib: u64,
        /// What was free before.
        free_mib: u64,
    },
    /// There is no such region.
    #[error("there is no shared region {}: no instance of this name runs here (see --name)", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// The file is not one of ours.
    #[error("{} is not a region of this user: {why}; remove the file by hand, or use another --name", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Ours, but of another build or broken.
    #[error("the shared region {} cannot be used: {why}; stop its instance and start it again with this program", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What does not agree.
        why: String,
    },
    /// The system refused.
    #[error("{what} {} failed: {source}", path.display())]
    Os {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}
