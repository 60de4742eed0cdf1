//! `tcptwin`: the command line.

fn main() {}
