//! Networks in namespaces with servers and clients, for tests, demo and benchmarks.
