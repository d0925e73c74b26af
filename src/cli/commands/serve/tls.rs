//! The certificates that `serve` shows, and whom they are shown to.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use blockferry_sys as sys;

use crate::{
    cli::{
        failure::Failure,
        options::{TlsJob, TlsMode},
    },
    endpoint::printable,
    server::{TlsOptions, TlsPolicy},
    tls::{self, ServerTls, Verification},
};

/// What says that a directory has a server's certificates.
const MARK: &str = "server-cert.pem";

/// TLS as a job wants it, with certificates that will do.
pub(super) fn options(job: &TlsJob) -> Result<Option<TlsOptions>, Failure> {
    let policy = match job.mode {
        // Whoever says one of these believes that there is TLS.
        TlsMode::Off if job.verify_peer => return Err(needs_tls("--tls-verify-peer")),
        TlsMode::Off if job.certificates.is_some() => {
            return Err(needs_tls("--tls-certificates"));
        }
        TlsMode::Off => return Ok(None),
        TlsMode::On => TlsPolicy::Offer,
        TlsMode::Require => TlsPolicy::Require,
    };
    let directory = match &job.certificates {
        Some(directory) => absolute(directory)?,
        None => first_of(&usual_directories(env::var_os("HOME").map(PathBuf::from)))?,
    };
    let clients = match job.verify_peer {
        true => Verification::On,
        false => Verification::Off,
    };
    let tls = ServerTls::new(directory, clients);
    tls.check().map_err(|error| refused(&error, clients))?;
    let tls = Arc::new(tls);
    Ok(Some(TlsOptions::new(policy, tls)))
}

fn needs_tls(option: &str) -> Failure {
    let failure = Failure::usage(format!("{option} without --tls"));
    failure.hint("--tls require refuses clients without TLS, --tls on takes both")
}

/// The certificates are read again when they change, wherever the server has gone to meanwhile.
fn absolute(directory: &Path) -> Result<PathBuf, Failure> {
    let absolute = std::path::absolute(directory);
    absolute.map_err(|error| Failure::system(&printable(directory.as_os_str()), &error))
}

/// Where the certificates of a server are when nobody says where.
fn usual_directories(home: Option<PathBuf>) -> Vec<PathBuf> {
    let system = PathBuf::from("/etc/pki/blockferry");
    match home.filter(|home| !sys::is_root() && home.is_absolute()) {
        Some(home) => vec![
            home.join(".pki/blockferry"),
            home.join(".config/pki/blockferry"),
            system,
        ],
        None => vec![system],
    }
}

fn first_of(directories: &[PathBuf]) -> Result<PathBuf, Failure> {
    let found = directories
        .iter()
        .find(|directory| fs::exists(directory.join(MARK)).unwrap_or(false));
    found.cloned().ok_or_else(|| {
        let names: Vec<_> = directories
            .iter()
            .map(|directory| printable(directory.as_os_str()))
            .collect();
        Failure::failed(format!(
            "--tls: there is no {MARK} in {}",
            names.join(" or ")
        ))
        .hint("--tls-certificates DIR names the directory with server-cert.pem and server-key.pem")
    })
}

fn refused(error: &tls::Error, clients: Verification) -> Failure {
    let failure = Failure::failed(format!("--tls: {error}"));
    match (error, clients) {
        (tls::Error::File { .. }, Verification::Off) => failure
            .hint("the directory of --tls-certificates needs server-cert.pem and server-key.pem"),
        (tls::Error::File { .. }, Verification::On) => failure.hint(
            "the directory of --tls-certificates needs server-cert.pem, server-key.pem, and ca-cert.pem to verify clients",
        ),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_directory_with_a_certificate_is_taken() {
        let room = tempfile::tempdir().expect("a directory");
        let (first, second) = (room.path().join("a"), room.path().join("b"));
        let directories = [first.clone(), second.clone()];
        let failure = first_of(&directories).expect_err("there is none");
        let text = failure.to_string();
        assert!(
            text.contains("server-cert.pem in") && text.contains("/a or "),
            "{text}"
        );
        fs::create_dir(&second).expect("room");
        fs::write(second.join(MARK), "").expect("room");
        assert_eq!(first_of(&directories).expect("the second"), second);
        fs::create_dir(&first).expect("room");
        assert_eq!(first_of(&directories).expect("the second"), second);
        fs::write(first.join(MARK), "").expect("room");
        assert_eq!(first_of(&directories).expect("the first"), first);
    }

    #[test]
    fn a_directory_without_certificates_is_refused_by_the_name_of_the_file() {
        let room = tempfile::tempdir().expect("a directory");
        let job = TlsJob {
            mode: TlsMode::On,
            certificates: Some(room.path().to_owned()),
            verify_peer: false,
        };
        let failure = options(&job).expect_err("nothing there");
        assert!(failure.to_string().contains(MARK), "{failure}");
    }

    #[test]
    fn what_makes_no_sense_without_tls_is_refused() {
        let off = TlsJob::default();
        assert!(options(&off).expect("nothing is needed").is_none());
        let verifying = TlsJob {
            verify_peer: true,
            ..off.clone()
        };
        let certified = TlsJob {
            certificates: Some("/certificates".into()),
            ..off
        };
        for job in [verifying, certified] {
            assert_eq!(options(&job).expect_err("no TLS").code(), 2);
        }
    }
}
