//! What more than one of these tests needs.

use std::{fs, path::PathBuf};

use blockferry_tls::{Certificates, ClientOptions, ServerTls, Session, Verification};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;

/// An authority, and a directory with what it has signed.
pub(crate) struct Realm {
    pub(crate) room: TempDir,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Realm {
    /// With a server's certificate for `localhost`.
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let authority = params.self_signed(&key).expect("a certificate").pem();
        let room = tempfile::tempdir().expect("a directory");
        fs::write(room.path().join("ca-cert.pem"), authority).expect("room");
        let issuer = Issuer::new(params, key);
        let realm = Self { room, issuer };
        realm.sign("server", |_| {});
        realm
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    /// Signs a new certificate and key for `role`.
    pub(crate) fn sign(&self, role: &str, change: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let write = |kind: &str, text: String| {
            // As those do who renew certificates: at once.
            let new = self.path("new");
            fs::write(&new, text).expect("room");
            fs::rename(&new, self.path(&format!("{role}-{kind}.pem"))).expect("renamed");
        };
        write("cert", certificate.pem());
        write("key", key.serialize_pem());
    }

    pub(crate) fn server(&self, clients: Verification) -> ServerTls {
        ServerTls::new(self.room.path(), clients)
    }

    pub(crate) fn client(&self) -> Session {
        let directory = Certificates::Directory(self.room.path().to_owned());
        let options = ClientOptions::new("localhost", directory);
        options.session().expect("good certificates")
    }
}
