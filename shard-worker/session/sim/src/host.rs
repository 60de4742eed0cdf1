//! The target host: a model of one in virtual time, or the kernel itself in real time.

use std::io;

use crate::flows::Flow;
use crate::kernel::Kernel;
use crate::oracle::{Broken, Oracle};
use crate::target::{Back, Packet, Target};

pub(crate) enum Host {
    Model(Box<Target>),
    Kernel(Box<Kernel>),
}

impl Host {
    /// The time at which something happens that was to happen at `next_us`; sooner, when the kernel has something to say.
    pub(crate) fn wait(&self, next_us: u64) -> io::Result<u64> {
        match self {
            Self::Model(_) => Ok(next_us),
            Self::Kernel(kernel) => kernel.wait(next_us),
        }
    }

    /// A packet arrives; the connection that it was for.
    pub(crate) fn arrive(
        &mut self,
        now_us: u64,
        packet: Packet,
        flows: &[Flow],
        oracle: &mut Oracle,
        back: &mut Vec<Back>,
    ) -> Result<Option<usize>, Broken> {
        match self {
            Self::Model(target) => target.arrive(now_us, packet, flows, oracle, back),
            Self::Kernel(kernel) => kernel.arrive(now_us, &packet, flows, oracle),
        }
    }

    /// Looks after a connection when its time has come.
    pub(crate) fn due(
        &mut self,
        now_us: u64,
        conn: usize,
        flows: &[Flow],
        oracle: &mut Oracle,
        back: &mut Vec<Back>,
    ) -> Result<(), Broken> {
        match self {
            Self::Model(target) => target.poll(now_us, conn, None, flows, oracle, back),
            Self::Kernel(kernel) => kernel.poll(now_us, conn, flows, oracle),
        }
    }

    /// When a connection wants to be looked after next.
    pub(crate) fn due_us(&self, conn: usize) -> u64 {
        match self {
            Self::Model(target) => target.due_us(conn),
            Self::Kernel(kernel) => kernel.due_us(conn),
        }
    }

    /// What it has sent by itself. A model sends when it is looked after.
    pub(crate) fn hear(
        &mut self,
        now_us: u64,
        flows: &[Flow],
        oracle: &mut Oracle,
        back: &mut Vec<Back>,
    ) -> Result<(), Broken> {
        match self {
            Self::Model(_) => Ok(()),
            Self::Kernel(kernel) => kernel.hear(now_us, flows, oracle, back),
        }
    }

    /// It forgets everything: a restart, of which the kernel's worlds have none.
    pub(crate) fn forget(&mut self, oracle: &mut Oracle) {
        if let Self::Model(target) = self {
            target.forget(oracle);
        }
    }
}
