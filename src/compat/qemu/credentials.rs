//! TLS: the objects that `--object` defines, of which `--tls-creds` names one.

use std::path::PathBuf;

use crate::cli::failure::Failure;

use super::keywords::Keywords;

/// Credentials that were defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::compat) struct Credentials {
    id: String,
    /// The directory with the certificates and the key.
    pub(in crate::compat) directory: PathBuf,
    pub(in crate::compat) side: Side,
    /// Whether the other side must show a certificate that the authority has signed.
    pub(in crate::compat) verify_peer: bool,
}

/// Whose credentials they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::compat) enum Side {
    Client,
    Server,
}

/// What was defined so far.
#[derive(Clone, Debug, Default)]
pub(in crate::compat) struct Objects(Vec<Credentials>);

impl Objects {
    /// Takes the argument of one `--object`.
    pub(in crate::compat) fn define(&mut self, text: &str) -> Result<(), Failure> {
        let mut keywords = Keywords::parse(text, Some("qom-type"))?;
        let missing = |what| Failure::usage(format!("--object: Parameter '{what}' is missing"));
        let kind = keywords
            .take("qom-type")
            .ok_or_else(|| missing("qom-type"))?;
        if kind != "tls-creds-x509" {
            return Err(Failure::usage(format!(
                "--object: objects of type '{kind}' are not supported; tls-creds-x509 is"
            )));
        }
        let id = keywords.take("id").ok_or_else(|| missing("id"))?;
        let directory = keywords.take("dir").ok_or_else(|| missing("dir"))?;
        let side = match keywords.take("endpoint").as_deref() {
            None | Some("client") => Side::Client,
            Some("server") => Side::Server,
            Some(other) => {
                return Err(Failure::usage(format!(
                    "--object: Parameter 'endpoint' does not accept value '{other}'"
                )));
            }
        };
        let verify_peer = keywords.take_switch("verify-peer")?.unwrap_or(true);
        // What is wrong with a certificate is found out when it is used.
        keywords.take_switch("sanity-check")?;
        keywords.end("--object tls-creds-x509")?;
        if self.0.iter().any(|known| known.id == id) {
            return Err(Failure::usage(format!(
                "--object: attempt to add duplicate property '{id}'"
            )));
        }
        self.0.push(Credentials {
            id,
            directory: PathBuf::from(directory),
            side,
            verify_peer,
        });
        Ok(())
    }

    /// The credentials that `--tls-creds` names, for use on `side`.
    pub(in crate::compat) fn credentials(
        &self,
        id: &str,
        side: Side,
    ) -> Result<&Credentials, Failure> {
        let found = self.0.iter().find(|known| known.id == id);
        let found = found.ok_or_else(|| {
            Failure::usage(format!("--tls-creds: no TLS credentials with id '{id}'"))
        })?;
        if found.side != side {
            let side = match side {
                Side::Client => "client",
                Side::Server => "server",
            };
            return Err(Failure::usage(format!(
                "--tls-creds: '{id}' are not credentials of a {side}: they want endpoint={side}"
            )));
        }
        Ok(found)
    }
}

impl Credentials {
    /// The parameters of an NBD URI that stand for them. `hostname` is the name in the server's certificate.
    pub(in crate::compat) fn parameters(
        &self,
        hostname: Option<&str>,
    ) -> Result<Vec<(String, String)>, Failure> {
        let directory = self.directory.to_str();
        let directory = directory
            .ok_or_else(|| Failure::usage("--object: the name of a directory must be text"))?;
        let mut parameters = vec![("tls-certificates".to_owned(), directory.to_owned())];
        if !self.verify_peer {
            parameters.push(("tls-verify-peer".to_owned(), "false".to_owned()));
        }
        if let Some(name) = hostname {
            parameters.push(("tls-hostname".to_owned(), name.to_owned()));
        }
        Ok(parameters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_by_name() {
        let mut objects = Objects::default();
        let define = |objects: &mut Objects, text: &str| objects.define(text);
        define(
            &mut objects,
            "tls-creds-x509,id=a,dir=/a,,b,endpoint=server",
        )
        .expect("good");
        define(
            &mut objects,
            "qom-type=tls-creds-x509,id=c,dir=/c,verify-peer=no",
        )
        .expect("good");
        let found = objects.credentials("a", Side::Server).expect("there");
        assert_eq!(found.directory, PathBuf::from("/a,b"));
        assert!(found.verify_peer);
        let found = objects.credentials("c", Side::Client).expect("there");
        assert!(!found.verify_peer);
        assert!(objects.credentials("b", Side::Server).is_err());
        assert!(objects.credentials("c", Side::Server).is_err());
        assert!(define(&mut objects, "tls-creds-x509,id=a,dir=/x").is_err());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (text, named) in [
            ("secret,id=s,data=x", "'secret'"),
            ("tls-creds-psk,id=s,dir=x", "'tls-creds-psk'"),
            ("tls-creds-x509,dir=x", "'id'"),
            ("tls-creds-x509,id=x", "'dir'"),
            ("tls-creds-x509,id=x,dir=x,passwordid=s", "'passwordid'"),
            ("tls-creds-x509,id=x,dir=x,priority=NORMAL", "'priority'"),
            ("tls-creds-x509,id=x,dir=x,endpoint=both", "'both'"),
            (
                "tls-creds-x509,id=x,dir=x,verify-peer=maybe",
                "'verify-peer'",
            ),
        ] {
            let refused = Objects::default().define(text).expect_err(text).to_string();
            assert!(refused.contains(named), "{text}: {refused}");
        }
    }
}
