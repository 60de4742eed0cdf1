//! The injector role: drains the shards, sends to the targets, receives returned headers.
