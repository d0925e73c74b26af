//! The header of the PROXY protocol: it tells a server behind a relay who its client is.
//!
//! It stands before the first byte of a connection to the server, in one piece; the server expects it or does not,
//! nothing is negotiated. After the protocol's specification, versions 1 and 2 (`proxy-protocol.txt`, 2020/03/05);
//! sections below are its own.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crc::{CRC_32_ISCSI, Crc};

/// What a header is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text (section 2.1). It has addresses of TCP and nothing else.
    V1,
    /// Binary (section 2.2), with a checksum and with what is known of TLS.
    V2,
}

/// What a server is told of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The ends of the connection that the client has made.
    pub addresses: Addresses,
    /// The name of the server that the client has asked for: of TLS, its SNI.
    pub authority: Option<String>,
    /// The protocol that the client has agreed on: of TLS, its ALPN.
    pub alpn: Option<Vec<u8>>,
    /// What is known of TLS, where the client has used it.
    pub tls: Option<Tls>,
}

/// The ends of a connection that a client has made: its own, and where it has connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Addresses {
    /// There are none, or none that the protocol knows. The server takes those of the relay itself (`UNKNOWN`,
    /// `LOCAL`).
    #[default]
    Unknown,
    /// TCP over IPv4 or IPv6.
    Tcp {
        /// The client's.
        source: SocketAddr,
        /// The one it has connected to.
        destination: SocketAddr,
    },
    /// Unix sockets: their names as the kernel has them, abstract ones with a leading zero, unnamed ones empty.
    /// No name has more than 108 bytes.
    Unix {
        /// The client's, which rarely has one.
        source: Vec<u8>,
        /// The one it has connected to.
        destination: Vec<u8>,
    },
}

/// What is known of a client's TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The version, such as `TLSv1.3`.
    pub version: Option<String>,
    /// The cipher suite, such as `ECDHE-RSA-AES128-GCM-SHA256`.
    pub cipher: Option<String>,
    /// The certificate that the client has shown, if it has. It was verified.
    pub certificate: Option<Certificate>,
}

/// What is known of a client's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// The Common Name of its subject.
    pub common_name: Option<String>,
}

impl Header {
    /// Its bytes, to be sent at once, before anything else. Texts of more than 255 bytes are left out: a part of a
    /// name is another name.
    #[must_use]
    pub fn encode(&self, version: Version) -> Vec<u8> {
        match version {
            Version::V1 => self.text(),
            Version::V2 => self.binary(),
        }
    }

    fn text(&self) -> Vec<u8> {
        let line = match self.addresses.canonical() {
            Canonical::V4(source, destination, ports) => {
                format!(
                    "PROXY TCP4 {source} {destination} {} {}\r\n",
                    ports[0], ports[1]
                )
            }
            Canonical::V6(source, destination, ports) => {
                let (source, destination) = (groups(source), groups(destination));
                format!(
                    "PROXY TCP6 {source} {destination} {} {}\r\n",
                    ports[0], ports[1]
                )
            }
            Canonical::Unix(..) | Canonical::Unknown => "PROXY UNKNOWN\r\n".to_owned(),
        };
        line.into_bytes()
    }

    fn binary(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let (command, family) = match self.addresses.canonical() {
            // No address and nothing behind it: the connection counts as the relay's own.
            Canonical::Unknown => return framed(LOCAL, UNSPECIFIED, &body),
            Canonical::V4(source, destination, ports) => {
                body.extend_from_slice(&source.octets());
                body.extend_from_slice(&destination.octets());
                body.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
                (PROXY, TCP_OVER_IPV4)
            }
            Canonical::V6(source, destination, ports) => {
                body.extend_from_slice(&source.octets());
                body.extend_from_slice(&destination.octets());
                body.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
                (PROXY, TCP_OVER_IPV6)
            }
            Canonical::Unix(source, destination) => {
                for name in [source, destination] {
                    let end = body.len() + UNIX_NAME;
                    body.extend_from_slice(&name[..name.len().min(UNIX_NAME)]);
                    body.resize(end, 0);
                }
                (PROXY, UNIX_STREAM)
            }
        };
        put(&mut body, TYPE_ALPN, self.alpn.as_deref());
        put(&mut body, TYPE_AUTHORITY, bytes(self.authority.as_ref()));
        if let Some(tls) = &self.tls {
            put(&mut body, TYPE_SSL, Some(&tls.encode()));
        }
        put(&mut body, TYPE_CRC32C, Some(&[0; 4]));
        let mut header = framed(command, family, &body);
        // Over all of it, with zeroes in its own place, which is the end (section 2.2.3).
        let checksum = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&header);
        let place = header.len() - 4;
        header[place..].copy_from_slice(&checksum.to_be_bytes());
        header
    }
}

impl Addresses {
    /// As they are sent: IPv4 stays IPv4, also when it has come to a socket of IPv6, unless only one of them is.
    fn canonical(&self) -> Canonical<'_> {
        match self {
            Self::Unknown => Canonical::Unknown,
            Self::Unix {
                source,
                destination,
            } => Canonical::Unix(source, destination),
            Self::Tcp {
                source,
                destination,
            } => {
                let ports = [source.port(), destination.port()];
                match (source.ip().to_canonical(), destination.ip().to_canonical()) {
                    (IpAddr::V4(source), IpAddr::V4(destination)) => {
                        Canonical::V4(source, destination, ports)
                    }
                    (source, destination) => Canonical::V6(wide(source), wide(destination), ports),
                }
            }
        }
    }
}

impl Tls {
    /// The value of `PP2_TYPE_SSL` (section 2.2.6).
    fn encode(&self) -> Vec<u8> {
        let shown = match self.certificate {
            // No session is resumed, so what the connection has shown its session has shown.
            Some(_) => CLIENT_CERT_CONN | CLIENT_CERT_SESS,
            None => 0,
        };
        let unverified = u32::from(self.certificate.is_none());
        let mut value = vec![CLIENT_SSL | shown];
        value.extend_from_slice(&unverified.to_be_bytes());
        put(
            &mut value,
            SUBTYPE_SSL_VERSION,
            bytes(self.version.as_ref()),
        );
        put(&mut value, SUBTYPE_SSL_CIPHER, bytes(self.cipher.as_ref()));
        let name = self.certificate.as_ref().map(|it| it.common_name.as_ref());
        put(&mut value, SUBTYPE_SSL_CN, bytes(name.flatten()));
        value
    }
}

enum Canonical<'a> {
    Unknown,
    V4(Ipv4Addr, Ipv4Addr, [u16; 2]),
    V6(Ipv6Addr, Ipv6Addr, [u16; 2]),
    Unix(&'a [u8], &'a [u8]),
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, and whose connection it is.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const UNIX_STREAM: u8 = 0x31;

/// The room for the name of a unix socket, in bytes.
const UNIX_NAME: usize = 108;

const TYPE_ALPN: u8 = 0x01;
const TYPE_AUTHORITY: u8 = 0x02;
const TYPE_CRC32C: u8 = 0x03;
const TYPE_SSL: u8 = 0x20;
const SUBTYPE_SSL_VERSION: u8 = 0x21;
const SUBTYPE_SSL_CN: u8 = 0x22;
const SUBTYPE_SSL_CIPHER: u8 = 0x23;

const CLIENT_SSL: u8 = 0x01;
const CLIENT_CERT_CONN: u8 = 0x02;
const CLIENT_CERT_SESS: u8 = 0x04;

/// The longest text that is told, in bytes. With all of them a header stays shorter than 1.5 KiB.
const LONGEST_TEXT: usize = 255;

fn framed(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend_from_slice(&[command, family]);
    header.extend_from_slice(&length(body));
    header.extend_from_slice(body);
    header
}

/// Adds a TLV (section 2.2), where there is a value and it is not too long.
fn put(to: &mut Vec<u8>, kind: u8, value: Option<&[u8]>) {
    let most = match kind {
        // It consists of others.
        TYPE_SSL => usize::from(u16::MAX),
        _ => LONGEST_TEXT,
    };
    if let Some(value) = value.filter(|value| value.len() <= most) {
        to.push(kind);
        to.extend_from_slice(&length(value));
        to.extend_from_slice(value);
    }
}

/// The length of what is bounded by [`LONGEST_TEXT`] in each of its few parts.
fn length(of: &[u8]) -> [u8; 2] {
    u16::try_from(of.len()).unwrap_or(u16::MAX).to_be_bytes()
}

fn bytes(text: Option<&String>) -> Option<&[u8]> {
    text.map(String::as_bytes)
}

fn wide(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// An address in groups of hexadecimal digits alone, as section 2.1 has it: a mapped one has no dots.
fn groups(address: Ipv6Addr) -> String {
    if address.to_ipv4_mapped().is_none() {
        return address.to_string();
    }
    let mut text = String::new();
    for (index, group) in address.segments().iter().enumerate() {
        let colon = if index == 0 { "" } else { ":" };
        // A string takes everything.
        let _ = write!(text, "{colon}{group:x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(source: &str, destination: &str) -> Header {
        Header {
            addresses: Addresses::Tcp {
                source: source.parse().expect("an address"),
                destination: destination.parse().expect("an address"),
            },
            ..Header::default()
        }
    }

    fn v1(header: &Header) -> String {
        String::from_utf8(header.encode(Version::V1)).expect("a line")
    }

    /// Its type and its value.
    type Tlv = (u8, Vec<u8>);

    /// What a receiver finds: command, family, addresses, and type and value of each TLV. The header must be
    /// whole, and its checksum right where there is one.
    fn parse(header: &[u8]) -> (u8, u8, Vec<u8>, Vec<Tlv>) {
        assert_eq!(
            &header[..12],
            b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
        );
        let (command, family) = (header[12], header[13]);
        let size = usize::from(u16::from_be_bytes([header[14], header[15]]));
        assert_eq!(header.len(), 16 + size);
        let addresses = match family {
            0x00 => 0,
            0x11 => 12,
            0x21 => 36,
            0x31 => 216,
            other => panic!("family {other:#x}"),
        };
        let found = tlvs(&header[16 + addresses..]);
        if let Some((_, sum)) = found.iter().find(|(kind, _)| *kind == 3) {
            let mut zeroed = header.to_vec();
            let place = zeroed.len() - 4;
            assert_eq!(&zeroed[place..], sum);
            zeroed[place..].fill(0);
            assert_eq!(sum.as_slice(), crc32c(&zeroed).to_be_bytes());
        }
        let addresses = header[16..16 + addresses].to_vec();
        (command, family, addresses, found)
    }

    fn tlvs(mut rest: &[u8]) -> Vec<Tlv> {
        let mut found = Vec::new();
        while let [kind, high, low, more @ ..] = rest {
            let size = usize::from(u16::from_be_bytes([*high, *low]));
            found.push((*kind, more[..size].to_vec()));
            rest = &more[size..];
        }
        assert!(rest.is_empty());
        found
    }

    /// RFC 4960, appendix B, bit by bit.
    fn crc32c(bytes: &[u8]) -> u32 {
        let mut sum = u32::MAX;
        for byte in bytes {
            sum ^= u32::from(*byte);
            for _ in 0..8 {
                sum = (sum >> 1) ^ (0x82f6_3b78 * (sum & 1));
            }
        }
        !sum
    }

    #[test]
    fn text_is_as_the_specification_has_it() {
        // The example of section 2.1.
        let line = v1(&tcp("192.168.0.1:56324", "192.168.0.11:443"));
        assert_eq!(line, "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n");
        // The longest lines.
        let line = v1(&tcp("255.255.255.255:65535", "255.255.255.255:65535"));
        assert_eq!(line.len(), 56);
        let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        assert_eq!(v1(&tcp(longest, longest)).len(), 104);

        let line = v1(&tcp("[2001:db8::1]:1024", "[::1]:1"));
        assert_eq!(line, "PROXY TCP6 2001:db8::1 ::1 1024 1\r\n");
        assert_eq!(v1(&Header::default()), "PROXY UNKNOWN\r\n");
        let unix = Header {
            addresses: Addresses::Unix {
                source: Vec::new(),
                destination: b"/run/socket".to_vec(),
            },
            ..Header::default()
        };
        assert_eq!(v1(&unix), "PROXY UNKNOWN\r\n");
    }

    #[test]
    fn what_came_over_ipv4_to_a_socket_of_ipv6_is_ipv4() {
        let mapped = tcp("[::ffff:192.0.2.1]:1000", "[::ffff:198.51.100.2]:80");
        let plain = tcp("192.0.2.1:1000", "198.51.100.2:80");
        for version in [Version::V1, Version::V2] {
            assert_eq!(mapped.encode(version), plain.encode(version));
        }
        // One side alone is written in digits without dots.
        let mixed = tcp("192.0.2.1:1000", "[2001:db8::2]:80");
        assert_eq!(
            v1(&mixed),
            "PROXY TCP6 0:0:0:0:0:ffff:c000:201 2001:db8::2 1000 80\r\n"
        );
        let (_, family, addresses, _) = parse(&mixed.encode(Version::V2));
        assert_eq!(family, 0x21);
        assert_eq!(
            &addresses[..16],
            b"\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\x00\x02\x01"
        );
    }

    #[test]
    fn scopes_of_addresses_are_this_hosts_own_business() {
        let line = v1(&tcp("[fe80::1%3]:1000", "[fe80::2%3]:80"));
        assert_eq!(line, "PROXY TCP6 fe80::1 fe80::2 1000 80\r\n");
    }

    #[test]
    fn binary_is_as_the_specification_has_it() {
        let header = tcp("192.168.0.1:56324", "192.168.0.11:443").encode(Version::V2);
        let expected = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x13\
            \xc0\xa8\x00\x01\xc0\xa8\x00\x0b\xdc\x04\x01\xbb\x03\x00\x04\x1c\x1a\xe9\xc6";
        assert_eq!(header, expected);

        let (command, family, addresses, tlvs) =
            parse(&tcp("[2001:db8::1]:1024", "[::1]:1").encode(Version::V2));
        assert_eq!((command, family), (0x21, 0x21));
        assert_eq!(
            addresses,
            b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\
              \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x04\x00\x00\x01"
        );
        assert_eq!(tlvs.len(), 1);

        let local = Header::default().encode(Version::V2);
        assert_eq!(
            local,
            b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x20\x00\x00\x00"
        );
    }

    #[test]
    fn names_of_unix_sockets_fill_their_room() {
        for (name, longest) in [
            (&b"/run/socket"[..], false),
            (b"\0abstract", false),
            (&[b'x'; 108], true),
        ] {
            let header = Header {
                addresses: Addresses::Unix {
                    source: Vec::new(),
                    destination: name.to_vec(),
                },
                ..Header::default()
            };
            let (command, family, addresses, _) = parse(&header.encode(Version::V2));
            assert_eq!((command, family), (0x21, 0x31));
            assert_eq!(addresses[..108], [0; 108]);
            assert_eq!(&addresses[108..108 + name.len()], name);
            assert_eq!(addresses[108..].contains(&0), !longest);
        }
    }

    #[test]
    fn what_is_known_of_tls_is_told() {
        let mut header = Header {
            authority: Some("example.org".to_owned()),
            alpn: Some(b"h2".to_vec()),
            tls: Some(Tls {
                version: Some("TLSv1.3".to_owned()),
                cipher: Some("TLS_AES_128_GCM_SHA256".to_owned()),
                certificate: None,
            }),
            ..tcp("192.0.2.1:1000", "198.51.100.2:443")
        };
        let (_, _, _, found) = parse(&header.encode(Version::V2));
        let kinds: Vec<u8> = found.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [0x01, 0x02, 0x20, 0x03]);
        assert_eq!(found[0].1, b"h2");
        assert_eq!(found[1].1, b"example.org");
        // TLS, no certificate, so none that was verified.
        assert_eq!(
            found[2].1,
            b"\x01\x00\x00\x00\x01\x21\x00\x07TLSv1.3\x23\x00\x16TLS_AES_128_GCM_SHA256"
        );

        let tls = header.tls.as_mut().expect("it is there");
        tls.cipher = None;
        tls.certificate = Some(Certificate {
            common_name: Some("somebody".to_owned()),
        });
        let (_, _, _, found) = parse(&header.encode(Version::V2));
        assert_eq!(
            found[2].1,
            b"\x07\x00\x00\x00\x00\x21\x00\x07TLSv1.3\x22\x00\x08somebody"
        );
    }

    #[test]
    fn texts_that_are_too_long_are_left_out_and_not_cut() {
        let with = |length: usize| Header {
            authority: Some("a".repeat(length)),
            alpn: Some(vec![b'a'; length]),
            tls: Some(Tls {
                version: Some("a".repeat(length)),
                cipher: Some("a".repeat(length)),
                certificate: Some(Certificate {
                    common_name: Some("a".repeat(length)),
                }),
            }),
            ..tcp("192.0.2.1:1000", "198.51.100.2:443")
        };
        let (_, _, _, found) = parse(&with(255).encode(Version::V2));
        let sizes: Vec<usize> = found.iter().map(|(_, value)| value.len()).collect();
        assert_eq!(sizes, [255, 255, 5 + 3 * (3 + 255), 4]);
        for length in [256, 1 << 16, 1 << 20] {
            let (_, _, _, found) = parse(&with(length).encode(Version::V2));
            let kinds: Vec<u8> = found.iter().map(|(kind, _)| *kind).collect();
            assert_eq!(kinds, [0x20, 0x03]);
            assert_eq!(found[0].1, b"\x07\x00\x00\x00\x00");
        }
    }
}
