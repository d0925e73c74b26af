//! Where the server is, and whether there is TLS: what nbdkit decides from several options together.

use std::{
    env,
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
};

use blockferry_sys as sys;

use crate::{
    cli::{
        failure::Failure,
        options::{Place, TlsJob, TlsMode},
        output::tell,
    },
    proto::DEFAULT_PORT,
};

use super::{
    options::{Choices, Family, is_private},
    values,
};

/// Whether systemd, or a program that does as it does, handed us our sockets.
pub(super) fn is_activated() -> bool {
    let number = |name| env::var(name).ok()?.parse::<u32>().ok();
    number("LISTEN_PID") == Some(std::process::id()) && number("LISTEN_FDS").is_some()
}

/// Where to listen; nowhere means at the sockets of socket activation.
pub(super) fn places(choices: &Choices, activated: bool) -> Result<Vec<Place>, Failure> {
    let (unix, port) = (choices.unix.is_some(), choices.port.is_some());
    let (single, vsock, run) = (choices.single, choices.vsock, choices.run.is_some());
    if activated {
        let given = [
            (choices.address.is_some(), "-i"),
            (port, "-p"),
            (run, "--run"),
            (single, "-s"),
            (unix, "-U"),
            (vsock, "--vsock"),
        ];
        return match given.iter().find(|(given, _)| *given) {
            Some((_, option)) => Err(Failure::usage(format!(
                "cannot use socket activation with {option} flag"
            ))),
            None => Ok(Vec::new()),
        };
    }
    if port && unix
        || single && (port || unix || run || vsock || choices.dump_plugin)
        || vsock && unix
    {
        return Err(Failure::usage(
            "--dump-plugin, -p, --run, -s, -U or --vsock options cannot be used in this combination",
        ));
    }
    if single {
        return Ok(vec![Place::Standard]);
    }
    if let Some(socket) = &choices.unix {
        return Ok(vec![match is_private(socket) {
            true => Place::PrivateUnix,
            false => Place::Unix(values::path("-U", socket)?),
        }]);
    }
    if vsock {
        let number = match &choices.port {
            Some(port) => values::unsigned("port", port.as_ref())?,
            None => DEFAULT_PORT.into(),
        };
        return Ok(vec![Place::Vsock(number)]);
    }
    if run && !port && choices.address.is_none() {
        return Ok(vec![Place::PrivateUnix]);
    }
    tcp(choices)
}

fn tcp(choices: &Choices) -> Result<Vec<Place>, Failure> {
    let port = match &choices.port {
        Some(text) => text
            .trim()
            .parse::<u16>()
            .map_err(|_| Failure::usage(format!("-p: {text:?} is not the number of a port")))?,
        None => DEFAULT_PORT,
    };
    let at = |address: &str| Place::Tcp(format!("{address}:{port}"));
    match (&choices.address, choices.family) {
        (None, None) => Ok(vec![at("")]),
        (None, Some(Family::V4)) => Ok(vec![at("0.0.0.0")]),
        (None, Some(Family::V6)) => Ok(vec![at("[::]")]),
        (Some(name), family) => {
            let addresses = addresses_of(name, port, family)?;
            let places = addresses.into_iter().map(|address| match address {
                IpAddr::V4(_) => at(&address.to_string()),
                IpAddr::V6(_) => at(&format!("[{address}]")),
            });
            Ok(places.collect())
        }
    }
}

/// The addresses of a name, without those that are not this machine's unless all are.
fn addresses_of(name: &str, port: u16, family: Option<Family>) -> Result<Vec<IpAddr>, Failure> {
    let found = sys::socket::look_up(name, port);
    let found = found.map_err(|error| Failure::system(name, &error))?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.into_iter().map(|address| address.ip()) {
        let is_wanted = match family {
            Some(Family::V4) => address.is_ipv4(),
            Some(Family::V6) => address.is_ipv6(),
            None => true,
        };
        if is_wanted && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(Failure::failed(format!(
            "{name}: it has no address of this family"
        )));
    }
    let (ours, others): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| UdpSocket::bind((*address, 0)).is_ok());
    Ok(if ours.is_empty() { others } else { ours })
}

/// Whether there is TLS: where nothing is said, wherever there are certificates.
pub(super) fn tls(choices: &Choices) -> Result<TlsJob, Failure> {
    let given = choices.tls_certificates.clone();
    let found = given.clone().or_else(usual_certificates);
    let mode = match (choices.tls, &found) {
        (Some(TlsMode::Off), _) | (None, None) => TlsMode::Off,
        (None, Some(_)) => TlsMode::On,
        (Some(mode), Some(_)) => mode,
        (Some(TlsMode::Require), None) => {
            return Err(
                Failure::usage("--tls=require but could not load TLS certificates")
                    .note("try setting '--tls-certificates=/path/to/certificates'"),
            );
        }
        (Some(TlsMode::On), None) => {
            tell("nbdkit: warning: --tls=on but could not load TLS certificates: there is no TLS");
            TlsMode::Off
        }
    };
    Ok(match mode {
        TlsMode::Off => TlsJob::default(),
        mode => TlsJob {
            mode,
            certificates: found,
            verify_peer: choices.tls_verify_peer,
        },
    })
}

/// The first of the directories where certificates usually are, that has some.
fn usual_certificates() -> Option<PathBuf> {
    let directories = match sys::is_root() {
        true => vec![PathBuf::from("/etc/pki/nbdkit")],
        false => {
            let home = PathBuf::from(env::var_os("HOME")?);
            vec![home.join(".pki/nbdkit"), home.join(".config/pki/nbdkit")]
        }
    };
    let has_all = |directory: &Path| {
        let mut files = ["ca-cert.pem", "server-cert.pem", "server-key.pem"].iter();
        files.all(|file| directory.join(file).exists())
    };
    directories.into_iter().find(|directory| has_all(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices() -> Choices {
        Choices::default()
    }

    fn listens(choices: &Choices) -> Vec<Place> {
        places(choices, false).expect("valid")
    }

    #[test]
    fn it_is_at_the_usual_port_of_all_addresses_unless_told_otherwise() {
        assert_eq!(listens(&choices()), [Place::Tcp(":10809".to_owned())]);
        let told = Choices {
            port: Some("0".to_owned()),
            family: Some(Family::V4),
            ..choices()
        };
        assert_eq!(listens(&told), [Place::Tcp("0.0.0.0:0".to_owned())]);
        let told = Choices {
            address: Some("127.0.0.1".to_owned()),
            port: Some("1".to_owned()),
            ..choices()
        };
        assert_eq!(listens(&told), [Place::Tcp("127.0.0.1:1".to_owned())]);
    }

    #[test]
    fn a_captive_server_is_private_unless_it_has_a_place() {
        let run = || Choices {
            run: Some("true".into()),
            ..choices()
        };
        assert_eq!(listens(&run()), [Place::PrivateUnix]);
        let at_port = Choices {
            port: Some("7".to_owned()),
            ..run()
        };
        assert_eq!(listens(&at_port), [Place::Tcp(":7".to_owned())]);
        let vsock = Choices {
            vsock: true,
            port: Some("70000".to_owned()),
            ..run()
        };
        assert_eq!(listens(&vsock), [Place::Vsock(70_000)]);
        let unix = Choices {
            unix: Some("/s".into()),
            ..run()
        };
        assert_eq!(listens(&unix), [Place::Unix("/s".into())]);
    }

    #[test]
    fn contradictions_are_refused() {
        let unix = || Choices {
            unix: Some("-".into()),
            ..choices()
        };
        let contradictions = [
            Choices {
                port: Some("1".to_owned()),
                ..unix()
            },
            Choices {
                single: true,
                ..unix()
            },
            Choices {
                vsock: true,
                ..unix()
            },
            Choices {
                single: true,
                run: Some("true".into()),
                ..choices()
            },
        ];
        for choices in &contradictions {
            assert!(places(choices, false).is_err(), "{choices:?}");
        }
        assert!(places(&unix(), true).is_err());
        assert_eq!(places(&choices(), true).expect("activated"), []);
    }
}
