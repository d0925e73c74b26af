//! Ports of 127.0.0.1 that nothing listens at.

use std::{
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, TcpListener},
};

use anyhow::{Result, bail};

/// Below the ports that Linux gives to connections by itself (`ip_local_port_range`), so that no connection takes one.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// So many different ports that are free now.
pub(crate) fn free(count: usize) -> Result<Vec<u16>> {
    // Each search begins elsewhere, for others may be looking for some.
    let start = RandomState::new().hash_one(count) % PORTS.len() as u64;
    free_from(PORTS.start + u16::try_from(start)?, count)
}

/// The next ones from `start` on, which is one of [`PORTS`].
fn free_from(start: u16, count: usize) -> Result<Vec<u16>> {
    // Held until all are found.
    let mut listeners = Vec::new();
    for port in (start..PORTS.end).chain(PORTS.start..start) {
        if listeners.len() == count {
            break;
        }
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            listeners.push((port, listener));
        }
    }
    if listeners.len() < count {
        bail!("no free ports are left in {PORTS:?}");
    }
    Ok(listeners.into_iter().map(|(port, _)| port).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_different_and_not_listened_at() {
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = PORTS.rev().find_map(|port| bind(port).ok()).unwrap();
        let taken = listener.local_addr().unwrap().port();
        let ports = free_from(taken, 3).unwrap();
        assert!(!ports.contains(&taken));
        assert!(ports[0] != ports[1] && ports[1] != ports[2] && ports[2] != ports[0]);
    }
}
