//! The replay machine: a pure, sans-io TCP client that replays captured flows.
