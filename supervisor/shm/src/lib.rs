//! The shared region: layout, rings, doorbells, counters, heartbeats.
