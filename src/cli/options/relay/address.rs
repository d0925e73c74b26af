//! Where streams come from and go to: `tcp:HOST:PORT`, `unix:PATH`, `-`, `systemd:`.

use std::{
    ffi::OsStr,
    fmt,
    net::Ipv6Addr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::endpoint::printable;

/// The longest path of a unix socket in bytes (`sun_path` of unix(7), less its NUL).
const LONGEST_PATH: usize = 107;

/// One end of a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(TcpAddress),
    Unix(PathBuf),
    /// Standard input and output.
    Standard,
    /// The sockets of systemd socket activation.
    Activated,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TcpAddress {
    /// A name or an IP address without brackets; `None` is every address of this machine.
    pub(crate) host: Option<String>,
    pub(crate) port: u16,
}

/// A text that is no address: why, and what to write.
#[derive(Debug, thiserror::Error)]
#[error("{text}: {reason}")]
pub(crate) struct AddressError {
    text: String,
    reason: &'static str,
    hint: String,
}

impl AddressError {
    /// What to write instead.
    pub(crate) fn hint(&self) -> &str {
        &self.hint
    }
}

const KINDS: &str = "write tcp:HOST:PORT, unix:PATH, or - for standard input and output";
const TCP: &str = "write tcp:HOST:PORT; an IPv6 address stands in brackets: tcp:[::1]:80";

impl Address {
    /// The address that `text` says.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, AddressError> {
        let wrong = |reason, hint: &str| AddressError {
            text: printable(text),
            reason,
            hint: hint.to_owned(),
        };
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Ok(Self::Standard);
        }
        if bytes == b"systemd:" {
            return Ok(Self::Activated);
        }
        if let Some(path) = bytes.strip_prefix(b"unix:") {
            return unix_path(OsStr::from_bytes(path))
                .map_err(|(reason, hint)| wrong(reason, hint));
        }
        let Some(text) = text.to_str() else {
            return Err(wrong("it is not an address", KINDS));
        };
        if let Some(hint) = foreign(text) {
            return Err(wrong("it is written as another program takes it", &hint));
        }
        match text.strip_prefix("tcp:") {
            Some(rest) => tcp(rest)
                .map(Self::Tcp)
                .map_err(|reason| wrong(reason, TCP)),
            None => Err(wrong("it is not an address", &guess(text))),
        }
    }

    /// Whether it is a file in this file system.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            _ => None,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(OsStr::new(text))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", printable(path.as_os_str())),
            Self::Standard => f.write_str("-"),
            Self::Activated => f.write_str("systemd:"),
        }
    }
}

impl fmt::Display for TcpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match self.host.as_deref() {
            None => write!(f, "*:{port}"),
            Some(host) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Some(host) => write!(f, "{host}:{port}"),
        }
    }
}

fn unix_path(path: &OsStr) -> Result<Address, (&'static str, &'static str)> {
    let bytes = path.as_bytes();
    let options = path.to_string_lossy();
    let is_socats = options.split(',').skip(1).any(|option| {
        ["fork", "reuseaddr", "unlink-early"].contains(&option) || option.starts_with("mode=")
    });
    match bytes {
        [] => Err(("there is no path", "write unix:PATH")),
        [b'@', ..] => Err((
            "sockets without a file are not supported",
            "for a file of that name, write unix:./@NAME",
        )),
        _ if bytes.len() > LONGEST_PATH => Err((
            "the path is longer than 107 bytes, the most that a socket can have",
            "a relative path may be shorter",
        )),
        _ if is_socats => Err((
            "it is written as another program takes it",
            "write unix:PATH without options: each client gets a connection of its own",
        )),
        _ => Ok(Address::Unix(path.into())),
    }
}

/// What follows `tcp:`.
fn tcp(rest: &str) -> Result<TcpAddress, &'static str> {
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("a bracket is not closed")?;
            // Behind '%' stands the name of an interface.
            let address = host.split('%').next().unwrap_or(host);
            if address.parse::<Ipv6Addr>().is_err() {
                return Err("what is in the brackets is not an IPv6 address");
            }
            (host, rest.strip_prefix(':').ok_or("there is no port")?)
        }
        None => rest.rsplit_once(':').ok_or("there is no port")?,
    };
    if host.contains(':') && !rest.starts_with('[') {
        return Err("there are too many colons");
    }
    if host.contains(|c: char| c == '/' || c == ',' || c.is_whitespace() || c.is_control()) {
        return Err("that is not a host");
    }
    let host = Some(host).filter(|host| !["", "*"].contains(host));
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = Some(port).filter(|_| is_number);
    let port = port.and_then(|port| port.parse().ok());
    Ok(TcpAddress {
        host: host.map(str::to_owned),
        port: port.ok_or("the port is not a number from 0 to 65535")?,
    })
}

/// What to write instead of an address of socat, or a URL.
fn foreign(text: &str) -> Option<String> {
    let (name, rest) = text.split_once(':').unwrap_or((text, ""));
    let lower = name.to_ascii_lowercase();
    let value = rest.split(',').next().unwrap_or(rest);
    if let Some(rest) = rest.strip_prefix("//").filter(|_| lower == "tcp") {
        return Some(format!("write tcp:{}", rest.trim_end_matches('/')));
    }
    let is_ours = ["tcp", "unix"].contains(&name);
    match lower.as_str() {
        "tcp-listen" | "tcp4-listen" | "tcp6-listen" | "tcp-l" | "tcp4-l" | "tcp6-l" => {
            let port = value.rsplit(':').next().unwrap_or(value);
            Some(format!(
                "write tcp:HOST:{port} or, for every host, tcp::{port}"
            ))
        }
        "tcp" if is_ours => None,
        "tcp" | "tcp-connect" | "tcp4" | "tcp6" | "tcp4-connect" | "tcp6-connect" => {
            Some(format!("write tcp:{value}"))
        }
        "unix" if is_ours => None,
        "unix" | "unix-listen" | "unix-l" | "unix-connect" | "unix-client" => {
            Some(format!("write unix:{value}"))
        }
        "stdio" | "stdin" | "stdout" => Some("write - for standard input and output".to_owned()),
        _ => None,
    }
}

/// What may have been meant.
fn guess(text: &str) -> String {
    if text.contains('/') {
        return format!("for a Unix socket, write unix:{text}");
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return format!("write tcp:HOST:{text} or, for every host, tcp::{text}");
    }
    match tcp(text) {
        Ok(_) => format!("write tcp:{text}"),
        Err(_) => KINDS.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_address(host: Option<&str>, port: u16) -> Address {
        Address::Tcp(TcpAddress {
            host: host.map(str::to_owned),
            port,
        })
    }

    #[test]
    fn addresses_are_understood() {
        for (text, address) in [
            ("tcp:localhost:80", tcp_address(Some("localhost"), 80)),
            ("tcp:127.0.0.1:0", tcp_address(Some("127.0.0.1"), 0)),
            ("tcp:[::1]:65535", tcp_address(Some("::1"), 65535)),
            ("tcp:[fe80::1%eth0]:1", tcp_address(Some("fe80::1%eth0"), 1)),
            ("tcp::80", tcp_address(None, 80)),
            ("tcp:*:80", tcp_address(None, 80)),
            ("unix:/run/x.sock", Address::Unix("/run/x.sock".into())),
            ("unix:a:b", Address::Unix("a:b".into())),
            ("unix:a,b", Address::Unix("a,b".into())),
            ("-", Address::Standard),
            ("systemd:", Address::Activated),
        ] {
            assert_eq!(text.parse::<Address>().expect(text), address);
        }
        let path = OsStr::from_bytes(b"unix:\xff");
        let address = Address::parse(path).expect("a path of any bytes");
        assert_eq!(address.path(), Some(Path::new(OsStr::from_bytes(b"\xff"))));
    }

    #[test]
    fn addresses_are_told_as_they_are_written() {
        for text in [
            "tcp:[::1]:80",
            "tcp:*:80",
            "tcp:a:1",
            "unix:/x",
            "-",
            "systemd:",
        ] {
            assert_eq!(text.parse::<Address>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_says_what_to_write() {
        let long = format!("unix:/{}", "x".repeat(107));
        for (text, hint) in [
            ("TCP-LISTEN:80", "tcp::80"),
            ("tcp-listen:80,fork,reuseaddr", "tcp::80"),
            ("TCP4-L:80", "tcp::80"),
            ("TCP:host:80", "tcp:host:80"),
            ("tcp4:host:80", "tcp:host:80"),
            ("TCP6-CONNECT:[::1]:80,nodelay", "tcp:[::1]:80"),
            ("UNIX-LISTEN:/x.sock,fork", "unix:/x.sock"),
            ("UNIX:/x.sock", "unix:/x.sock"),
            ("unix:/x.sock,fork", "without options"),
            ("unix:/x.sock,mode=600", "without options"),
            ("STDIO", "write -"),
            ("stdin", "write -"),
            ("tcp://host:80/", "tcp:host:80"),
            ("80", "tcp::80"),
            ("localhost:80", "tcp:localhost:80"),
            ("[::1]:80", "tcp:[::1]:80"),
            ("/run/x.sock", "unix:/run/x.sock"),
            ("./x", "unix:./x"),
            ("tcp:80", "tcp:HOST:PORT"),
            ("tcp:host", "tcp:HOST:PORT"),
            ("tcp:host:", "tcp:HOST:PORT"),
            ("tcp:host:http", "tcp:HOST:PORT"),
            ("tcp:host:+80", "tcp:HOST:PORT"),
            ("tcp:host:65536", "tcp:HOST:PORT"),
            ("tcp:host:80,fork", "tcp:HOST:PORT"),
            ("tcp:::1:80", "brackets"),
            ("tcp:[::1:80", "brackets"),
            ("tcp:[::1]80", "brackets"),
            ("tcp:[host]:80", "brackets"),
            ("tcp:a b:80", "tcp:HOST:PORT"),
            ("unix:", "unix:PATH"),
            ("unix:@name", "unix:./@NAME"),
            (&long, "shorter"),
            ("", "tcp:HOST:PORT"),
            ("udp:host:80", "tcp:HOST:PORT"),
        ] {
            let error = text.parse::<Address>().expect_err(text);
            assert!(error.hint().contains(hint), "{text}: {}", error.hint());
        }
    }
}
