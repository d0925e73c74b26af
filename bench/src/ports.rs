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
    // Held until all are found. Each search begins elsewhere, for others may be looking for some.
    let mut listeners = Vec::new();
    let start = RandomState::new().hash_one(count) % PORTS.len() as u64;
    let start = PORTS.start + u16::try_from(start)?;
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
    fn ports_are_free_and_different() {
        let ports = free(3).unwrap();
        let mut listeners = Vec::new();
        for port in &ports {
            listeners.push(TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).unwrap());
        }
        assert_eq!(listeners.len(), 3);
        assert!(free(1).unwrap().iter().all(|port| !ports.contains(port)));
    }
}
