//! What a handshake has found out, for those who tell others of it.

use rustls::{CipherSuite, CommonState, ProtocolVersion, SupportedCipherSuite};

/// What both sides of a connection have agreed on, and what the peer has said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// The version of TLS as OpenSSL writes it, such as `TLSv1.3`.
    pub version: Option<&'static str>,
    /// The cipher suite as OpenSSL writes it, such as `ECDHE-RSA-AES128-GCM-SHA256`.
    pub cipher: Option<&'static str>,
    /// The name of the server that the client asked for (SNI). Known to the server.
    pub server_name: Option<String>,
    /// The protocol above TLS, where one was agreed on (ALPN).
    pub alpn: Option<Vec<u8>>,
    /// The certificate that the peer has shown. A client's was verified.
    pub certificate: Option<PeerCertificate>,
}

/// What is known of a peer's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerCertificate {
    /// The first Common Name of its subject, as the peer's authority has signed it: any text.
    pub common_name: Option<String>,
}

impl Facts {
    pub(crate) fn new(state: &CommonState, server_name: Option<String>) -> Self {
        let certificate = state.peer_certificates().and_then(<[_]>::first);
        Self {
            version: state.protocol_version().and_then(version_name),
            cipher: state.negotiated_cipher_suite().and_then(cipher_name),
            server_name,
            alpn: state.alpn_protocol().map(<[u8]>::to_vec),
            certificate: certificate.map(|der| PeerCertificate {
                common_name: common_name(der),
            }),
        }
    }
}

fn version_name(version: ProtocolVersion) -> Option<&'static str> {
    match version {
        ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
        ProtocolVersion::TLSv1_3 => Some("TLSv1.3"),
        _ => None,
    }
}

fn cipher_name(suite: SupportedCipherSuite) -> Option<&'static str> {
    use CipherSuite as Suite;
    Some(match suite.suite() {
        Suite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        Suite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        Suite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        Suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        Suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => return None,
    })
}

// The tags of DER that stand on the way to a name (X.690, section 8; X.680, section 8.6).
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const VERSION: u8 = 0xa0;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
const BMP_STRING: u8 = 0x1e;

/// 2.5.4.3, `id-at-commonName`.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// The first Common Name of a certificate's subject (RFC 5280, sections 4.1 and 4.1.2.6). rustls has looked at
/// the whole certificate before, but tells nothing of names.
fn common_name(certificate: &[u8]) -> Option<String> {
    let mut outer = Der(certificate);
    let mut signed = Der(outer.expect(SEQUENCE)?);
    let mut fields = Der(signed.expect(SEQUENCE)?);
    // The version is left out of certificates of version 1; then comes the serial number.
    if fields.next()?.0 == VERSION {
        fields.next()?;
    }
    let (_algorithm, _issuer, _validity) = (fields.next()?, fields.next()?, fields.next()?);
    let mut subject = Der(fields.expect(SEQUENCE)?);
    while let Some(attributes) = subject.expect(SET) {
        let mut attributes = Der(attributes);
        while let Some(attribute) = attributes.expect(SEQUENCE) {
            let mut attribute = Der(attribute);
            if attribute.expect(OBJECT_IDENTIFIER)? == COMMON_NAME {
                let (tag, text) = attribute.next()?;
                return string(tag, text);
            }
        }
    }
    None
}

fn string(tag: u8, text: &[u8]) -> Option<String> {
    match tag {
        UTF8_STRING | PRINTABLE_STRING | IA5_STRING => String::from_utf8(text.to_vec()).ok(),
        BMP_STRING => {
            let units = text.chunks(2).map(|pair| match *pair {
                [high, low] => Some(u16::from_be_bytes([high, low])),
                _ => None,
            });
            String::from_utf16(&units.collect::<Option<Vec<_>>>()?).ok()
        }
        _ => None,
    }
}

/// DER that is read from its start.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The tag and the contents of the next element. `None` at the end, and where the rest makes no sense.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81 => {
                let (&length, rest) = rest.split_first()?;
                (usize::from(length), rest)
            }
            0x82 => {
                let (length, rest) = rest.split_first_chunk::<2>()?;
                (usize::from(u16::from_be_bytes(*length)), rest)
            }
            // Nothing in a message of TLS that rustls takes is longer than 64 KiB.
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, contents))
    }

    /// The contents of the next element, which must be of this kind.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next()
            .filter(|(found, _)| *found == tag)
            .map(|(_, contents)| contents)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, string::BmpString};

    use super::*;

    fn certificate(names: &[(DnType, DnValue)]) -> Vec<u8> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        params
            .self_signed(&key)
            .expect("a certificate")
            .der()
            .to_vec()
    }

    #[test]
    fn the_common_name_is_found_among_other_names_in_any_alphabet() {
        let organisation = (DnType::OrganizationName, DnValue::Utf8String("Some".into()));
        let long = "x".repeat(300);
        for name in ["client", "Zoë ☃", &long] {
            let found = certificate(&[
                organisation.clone(),
                (DnType::CommonName, DnValue::Utf8String(name.into())),
            ]);
            assert_eq!(common_name(&found).as_deref(), Some(name));
        }
        let wide = DnValue::BmpString(BmpString::try_from("Zoë").expect("a string"));
        let found = certificate(&[(DnType::CommonName, wide)]);
        assert_eq!(common_name(&found).as_deref(), Some("Zoë"));
        assert_eq!(common_name(&certificate(&[organisation])), None);
        assert_eq!(common_name(&certificate(&[])), None);
    }

    #[test]
    fn damaged_certificates_have_no_name_or_another_one_and_nothing_worse() {
        let whole = certificate(&[(DnType::CommonName, DnValue::Utf8String("client".into()))]);
        for length in 0..whole.len() {
            assert_eq!(common_name(&whole[..length]), None, "{length}");
        }
        for index in 0..whole.len() {
            for value in [0, 0x7f, 0x80, 0x81, 0x82, 0x84, 0xff] {
                let mut damaged = whole.clone();
                damaged[index] = value;
                let _ = common_name(&damaged);
            }
        }
    }
}
