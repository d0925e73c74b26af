//! The server as its clients see it: over real sockets, driven by the protocol's client side.

mod commands;
mod concurrency;
mod devices;
mod excess;
mod hostile;
mod lifecycle;
mod peer;
mod probe;
mod secure;
mod tls;
mod vanishing;
mod vsock;
