//! Lists of system calls as a program for the kernel.
//!
//! Two of them where a process starts threads: clone3(2) hides its flags in memory that no program can look into, so it is answered as
//! by a kernel that has it not, and the C library takes clone(2), whose flags are looked at.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::calls::{Call, List, When};
use crate::keep::Error;
use crate::sys;

/// What a filter is.
const WHAT: &str = "system calls";

/// A filter that is not in force yet.
pub struct Filter {
    name: String,
    no_clone3: BpfProgram,
    lists: BpfProgram,
}

impl Filter {
    /// Of these lists, for the process that is running now.
    pub(crate) fn new(name: &str, lists: &[List]) -> Result<Self, Error> {
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(Error::of(WHAT))?;
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for call in lists.iter().copied().flatten() {
            let before = rules.contains_key(&call.number);
            let of_it = rules.entry(call.number).or_default();
            // No rules at all: whatever its arguments are.
            if matches!(call.when, When::Always) {
                of_it.clear();
            } else if !before || !of_it.is_empty() {
                of_it.extend(call.rules()?);
            }
        }
        let compiled = |rules, mismatch, action| -> Result<BpfProgram, Error> {
            let filter = SeccompFilter::new(rules, mismatch, action, arch).map_err(Error::of(WHAT))?;
            filter.try_into().map_err(Error::of::<seccompiler::BackendError>(WHAT))
        };
        let clone3 = BTreeMap::from([(libc::SYS_clone3, vec![])]);
        Ok(Self {
            name: name.to_owned(),
            no_clone3: compiled(clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?,
            lists: compiled(rules, SeccompAction::Trap, SeccompAction::Allow)?,
        })
    }

    /// From here on this thread, and those that it starts, make these calls and no others, for good. What it would die of is left in
    /// `left` too ([`crate::calls::named_by`]).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter(self, left: Option<&'static AtomicU32>) -> Result<(), Error> {
        sys::say_last_words(&self.name, left).map_err(Error::of(WHAT))?;
        seccompiler::apply_filter(&self.no_clone3).map_err(Error::of(WHAT))?;
        seccompiler::apply_filter(&self.lists).map_err(Error::of(WHAT))
    }
}

impl Call {
    /// One of them must fit.
    fn rules(&self) -> Result<Vec<SeccompRule>, Error> {
        let is = |argument, value: u64| (argument, Op::Eq, value);
        let alternatives: Vec<Vec<(u8, Op, u64)>> = match self.when {
            When::Always => vec![],
            When::Is(argument, values) => values.iter().map(|value| vec![is(argument, *value)]).collect(),
            When::IsNot(argument, value) => vec![vec![(argument, Op::Ne, value)]],
            When::Without(argument, bits) => vec![vec![(argument, Op::MaskedEq(bits), 0)]],
            When::With(argument, bits) => vec![vec![(argument, Op::MaskedEq(bits), bits)]],
            When::Itself => vec![vec![is(0, std::process::id().into())]],
            When::Socket(kinds) => kinds
                .iter()
                .map(|(family, kind)| {
                    // Above the kind stand flags: close-on-exec, non-blocking.
                    vec![is(0, *family as u64), (1, Op::MaskedEq(0xf), *kind as u64)]
                })
                .collect(),
            When::Setting(names) => {
                names.iter().map(|(level, name)| vec![is(1, *level as u64), is(2, *name as u64)]).collect()
            }
        };
        let condition = |(argument, op, value): &(u8, Op, u64)| {
            SeccompCondition::new(*argument, Len::Dword, op.clone(), *value)
        };
        let rule =
            |all: &Vec<(u8, Op, u64)>| SeccompRule::new(all.iter().map(condition).collect::<Result<_, _>>()?);
        alternatives.iter().map(rule).collect::<Result<_, _>>().map_err(Error::of(WHAT))
    }
}
