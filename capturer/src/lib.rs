//! The capturer role: sources, kernel filter, dispatch to the shards.

pub mod filter;
pub mod packet_ring;
pub mod sys;
