//! Clients in other virtual machines, where the kernel has sockets for them.

#![allow(clippy::print_stderr, reason = "what is skipped is said")]

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use blockferry_proto::{ClientConfig, Outcome};
use blockferry_server::{Listener, Server, ServerOptions, SingleExport};
use blockferry_sys::vsock::{self, Address, LOCAL};

use crate::{
    peer::{Peer, shake_on, wait_until},
    probe::{pattern, probe},
};

const SIZE: usize = 1 << 20;

/// A listener on a free port; `None`, with a message, where the kernel has no such sockets.
fn listener() -> Option<OwnedFd> {
    match vsock::listen(u32::MAX) {
        Ok(listener) => Some(listener),
        Err(error) => {
            eprintln!("skipped: no AF_VSOCK here: {error}");
            None
        }
    }
}

#[test]
fn a_vsock_listener_that_was_handed_over_is_known_for_what_it_is() {
    let Some(socket) = listener() else {
        return;
    };
    let listener = Listener::from_activation(socket).expect("a listener");
    assert!(matches!(listener, Listener::Vsock(_)), "{listener:?}");
    assert!(listener.vsock_port().is_some());
}

#[test]
fn clients_are_served_over_vsock() {
    let Some(socket) = listener() else {
        return;
    };
    let listener = Listener::Vsock(socket);
    let port = listener.vsock_port().expect("a port");
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let server = Server::observed(
        Arc::new(SingleExport::new(probe(SIZE))),
        ServerOptions::default(),
        move |event| {
            log.lock().expect("not poisoned").push(format!("{event:?}"));
        },
    );
    let handle = server.clone();
    let running = thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(handle.serve(vec![listener]))
    });
    let address = Address { cid: LOCAL, port };
    match vsock::connect(address, Duration::from_millis(500)) {
        Err(error) => eprintln!("skipped: this kernel has no loopback for AF_VSOCK: {error}"),
        Ok(socket) => {
            let socket = UnixStream::from(socket);
            let shaken = shake_on(socket, ClientConfig::default(), |_| Ok(()));
            let Ok((socket, Outcome::Transmit(negotiated))) = shaken else {
                panic!("the handshake came to {shaken:?}");
            };
            let mut peer = Peer::new(socket, &negotiated);
            assert!(peer.read(0, SIZE as u64).ok() == pattern(SIZE));
            peer.write(0, b"data").ok();
            peer.disconnect();
            wait_until(|| {
                let events = events.lock().expect("not poisoned");
                events.iter().any(|event| event.contains("vsock:1:"))
            });
        }
    }
    server.shutdown();
    running.join().expect("no panic").expect("no failure");
}
