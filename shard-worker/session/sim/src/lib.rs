//! Deterministic simulation of the replay machine.

pub mod dice;
