//! The capturer role: sources, kernel filter, dispatch to the shards.
