//! The shard worker role: captured and returned packets in, injected packets out.
