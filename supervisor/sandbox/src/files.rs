//! What of the file system stays in reach. What is open stays open; what is opened, made, renamed or removed later must lie beneath
//! one of these. A kernel that knows more than files (ports: 6.7, signals and abstract sockets: 6.12) is asked for that too.

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort, PathBeneath,
    PathFd, PathFdError, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, Scope,
};

use crate::keep::Error;

/// A file, or everything beneath a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Where; what is not there is in nobody's reach.
    pub path: PathBuf,
    /// What for.
    pub access: Access,
}

/// What for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Making files, writing, naming and removing them.
    Record,
    /// Removing files, whoever made them.
    Remove,
}

/// The newest interface whose rights are known here.
const NEWEST: ABI = ABI::V6;

impl Access {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Access::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            Access::Record => {
                AccessFs::ReadFile
                    | AccessFs::ReadDir
                    | AccessFs::WriteFile
                    | AccessFs::Truncate
                    | AccessFs::MakeReg
                    | AccessFs::RemoveFile
            }
            Access::Remove => AccessFs::RemoveFile.into(),
        }
    }
}

/// The rules, not in force yet: files are walked to now, with the rights that there are now.
pub(crate) fn reach(files: &[Opening], ports: &[u16]) -> Result<RulesetCreated, Error> {
    let failed = Error::of::<landlock::RulesetError>;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .map_err(failed("files"))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .map_err(failed("files"))?
        .handle_access(AccessNet::from_all(NEWEST))
        .map_err(failed("ports"))?
        .scope(Scope::from_all(NEWEST))
        .map_err(failed("signals"))?
        .create()
        .map_err(failed("files"))?;
    for Opening { path, access } in files {
        let beneath = match PathFd::new(path) {
            Ok(beneath) => beneath,
            Err(PathFdError::OpenCall { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::of("files")(error)),
        };
        let rights =
            if path.is_dir() { access.rights() } else { access.rights() & AccessFs::from_file(NEWEST) };
        rules = rules.add_rule(PathBeneath::new(beneath, rights)).map_err(failed("files"))?;
    }
    for port in ports {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp)).map_err(failed("ports"))?;
    }
    Ok(rules)
}
