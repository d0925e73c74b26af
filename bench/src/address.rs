//! Where a stream is listened for or connected to, as `blockferry relay` writes it.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use anyhow::{Context, Result, bail};

/// `tcp:IP:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A port of an address: no names, so that nothing is looked up while something is measured.
    Tcp(SocketAddr),
    /// The path of a socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("tcp", address)) => {
                let address = address.parse();
                Ok(Self::Tcp(address.with_context(|| text.to_owned())?))
            }
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => bail!("`{text}` is neither tcp:IP:PORT nor unix:PATH"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(formatter, "tcp:{address}"),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["tcp:127.0.0.1:80", "tcp:[::1]:65535", "unix:/a:b"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for wrong in ["", "tcp:", "tcp:127.0.0.1", "unix:", "/a", "vsock:1:2"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
