//! Certificates made for one test: an authority of its own, and what it signs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// What is special about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    Expired,
    NotYetValid,
    SelfSigned,
    OtherHost,
    /// It may sign others.
    Authority,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Two of the same name would be taken for each other until a signature is looked at.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("authority {number} of the tests");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::new(params, key);
        Self {
            issuer,
            certificate,
        }
    }

    /// A directory `name` in `room` for a server at `localhost`, with the flaw.
    pub(crate) fn server(&self, room: &Path, name: &str, flaw: Flaw) -> PathBuf {
        let directory = self.directory(room, name);
        self.sign(&directory, "server", flaw);
        directory
    }

    /// A directory `name` in `room` that trusts this authority and has nothing to show.
    pub(crate) fn directory(&self, room: &Path, name: &str) -> PathBuf {
        let directory = room.join(name);
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join("ca-cert.pem"), &self.certificate).expect("room");
        directory
    }

    /// The same with a certificate of a client.
    pub(crate) fn client(&self, room: &Path, name: &str) -> PathBuf {
        let directory = self.directory(room, name);
        self.sign(&directory, "client", Flaw::None);
        directory
    }

    /// Writes `role-cert.pem` and `role-key.pem`.
    fn sign(&self, directory: &Path, role: &str, flaw: Flaw) {
        let key = KeyPair::generate().expect("a key");
        let hosts: &[&str] = match flaw {
            Flaw::OtherHost => &["elsewhere.example", "192.0.2.1"],
            _ => &["localhost", "127.0.0.1"],
        };
        let hosts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).expect("good names");
        params.distinguished_name.push(DnType::CommonName, role);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![match role {
            "server" => ExtendedKeyUsagePurpose::ServerAuth,
            _ => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        if flaw == Flaw::Authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let now = OffsetDateTime::now_utc();
        let (from, to) = match flaw {
            Flaw::Expired => (-100, -3),
            Flaw::NotYetValid => (5, 100),
            _ => (-1, 100),
        };
        params.not_before = now + Duration::days(from);
        params.not_after = now + Duration::days(to);
        let certificate = match flaw {
            Flaw::SelfSigned => params.self_signed(&key),
            _ => params.signed_by(&key, &self.issuer),
        };
        let certificate = certificate.expect("a certificate").pem();
        let write = |kind: &str, text: &str| {
            fs::write(directory.join(format!("{role}-{kind}.pem")), text).expect("room");
        };
        write("cert", &certificate);
        write("key", &key.serialize_pem());
    }
}
