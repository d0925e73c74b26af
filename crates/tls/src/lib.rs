//! TLS for NBD's sockets.

#![forbid(unsafe_code)]
