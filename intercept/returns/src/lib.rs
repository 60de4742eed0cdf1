//! The return channel: hello, records, stream.
