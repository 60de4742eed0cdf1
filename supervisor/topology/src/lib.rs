//! Arguments and configuration to processes, links and cores: the one page of wiring. Pure.
//!
//! | file | holds |
//! |---|---|
//! | `plan` | what a run is: everything the roles need to know, written once into the region |

pub mod plan;

pub use plan::Plan;
