//! What a command line of `qemu-nbd` asks for: the list or the server that its options describe.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use crate::{
    cli::{
        failure::Failure,
        options::{Opening, Place, ServeJob, ServedSource, Stay, TlsJob, TlsMode, Trust},
        output::tell,
    },
    endpoint::{Endpoint, FormatKind, ImageFormat},
    filter::NamedFilter,
    format::Format,
    proto::{DEFAULT_PORT, NbdUri, Transport},
};

use super::{
    super::{
        ending::{EarlyEnd, misused},
        qemu::{
            block_options::{Image, described, part_of},
            credentials::Side,
            text,
        },
    },
    image::named,
    options::Choices,
};

/// All addresses that qemu-nbd listens at, and where it looks for a server to list.
const EVERY_ADDRESS: &str = "0.0.0.0";

/// What a command line asks for.
#[derive(Debug)]
pub(super) enum Request {
    List(Box<Endpoint>),
    Serve(Box<ServeJob>),
}

impl Request {
    /// Reads the command line.
    pub(super) fn parse(words: Vec<OsString>) -> Result<Self, EarlyEnd> {
        let (choices, operands) = Choices::read(words)?;
        if choices.list {
            if !operands.is_empty() {
                return Err(Failure::usage("List mode is incompatible with a file name").into());
            }
            return Ok(Self::List(Box::new(choices.server()?)));
        }
        let [image] = &operands[..] else {
            return Err(misused("Invalid number of arguments"));
        };
        Ok(Self::Serve(Box::new(choices.job(image)?)))
    }
}

impl Choices {
    /// The server whose exports are listed.
    fn server(self) -> Result<Endpoint, Failure> {
        if self.of_a_device {
            return Err(Failure::usage(
                "List mode is incompatible with per-device settings",
            ));
        }
        let mut parameters = Vec::new();
        if let Some(id) = self.credentials_id()? {
            let credentials = self.objects.credentials(id, Side::Client)?;
            parameters = credentials.parameters(self.tls_hostname.as_deref())?;
        }
        let transport = match self.socket_path()? {
            Some(path) => Transport::Unix { path },
            None => Transport::Tcp {
                host: self.bind.unwrap_or_else(|| EVERY_ADDRESS.to_owned()),
                port: self.port.unwrap_or(DEFAULT_PORT),
            },
        };
        Ok(Endpoint::from(NbdUri {
            transport,
            tls: self.tls_creds.is_some(),
            user: None,
            export: String::new(),
            parameters,
        }))
    }

    fn job(self, image: &OsStr) -> Result<ServeJob, Failure> {
        if self.unmaps_zeroes && !self.discard {
            return Err(Failure::usage(
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
            ));
        }
        let tls = self.tls()?;
        let listen = self.places(is_activated())?;
        let image = self.image(image)?;
        let mut job = ServeJob::new(vec![ServedSource {
            name: self.export_name,
            source: image.source,
            description: self.description,
            open: Opening::AtStart,
        }]);
        job.listen = listen;
        job.socket_label = self.selinux_label;
        job.tls = tls;
        job.contexts = self.contexts;
        job.trust = Trust::of_environment();
        if self.snapshot {
            job.filters = vec![NamedFilter::parse("cow".as_ref())?];
        }
        job.server.read_only = self.read_only || image.read_only;
        job.server.max_connections = match self.shared {
            0 => usize::MAX,
            shared => shared,
        };
        job.server.handshake_timeout = self.handshake_limit;
        job.server.discard = self.discard;
        job.stay = match self.persistent {
            true => Stay::Persistent,
            false => Stay::Once,
        };
        job.pidfile = self.pid_file;
        job.background = self.fork;
        // It is as silent as theirs.
        job.quiet = !self.verbose;
        job.verbose = self.verbose;
        Ok(job)
    }

    fn image(&self, operand: &OsStr) -> Result<Image, Failure> {
        let mut image = match (self.image_opts, &self.format) {
            (true, Some(_)) => Err(Failure::usage("--image-opts and -f are mutually exclusive")),
            (true, None) => described(&text("image-opts", operand)?, &self.objects),
            (false, format) => named(operand, format.as_deref(), &self.objects),
        }?;
        let is_raw = image.source.format().kind == FormatKind::Raw;
        if !self.image_opts && self.format.is_none() && is_raw {
            tell(&format!(
                "qemu-nbd: warning: {}: no format was given, its bytes are served as they are (-f raw)",
                image.source
            ));
        }
        if let Some(snapshot) = &self.load_snapshot {
            if is_raw {
                return Err(Failure::usage(
                    "--load-snapshot: a raw image has no snapshots",
                ));
            }
            let format = ImageFormat {
                kind: FormatKind::Image(Format::Qcow2),
                snapshot: Some(snapshot.clone()),
                ..image.source.format().clone()
            };
            image.source = image.source.interpreted(format);
            image.read_only = true;
        }
        image.source = part_of(image.source, self.offset, None);
        Ok(image)
    }

    /// Where to listen: nowhere where this process was handed its socket.
    fn places(&self, is_activated: bool) -> Result<Vec<Place>, Failure> {
        let socket = self.socket_path()?;
        if is_activated {
            let chosen = [
                (socket.is_some(), "--socket"),
                (self.bind.is_some(), "--bind"),
                (self.port.is_some(), "--port"),
            ];
            return match chosen.iter().find(|(chosen, _)| *chosen) {
                None => Ok(Vec::new()),
                Some((_, option)) => Err(Failure::usage(format!(
                    "{option} makes no sense when using socket activation"
                ))),
            };
        }
        if let Some(path) = socket {
            return Ok(vec![Place::Unix(path)]);
        }
        let address = self.bind.as_deref().unwrap_or(EVERY_ADDRESS);
        let port = self.port.unwrap_or(DEFAULT_PORT);
        // An IPv6 address is told from its port by brackets.
        let is_bare = address.contains(':') && !address.starts_with('[');
        Ok(vec![Place::Tcp(match is_bare {
            true => format!("[{address}]:{port}"),
            false => format!("{address}:{port}"),
        })])
    }

    fn socket_path(&self) -> Result<Option<PathBuf>, Failure> {
        match &self.socket {
            Some(path) if !path.is_absolute() => {
                Err(Failure::usage("socket path must be absolute"))
            }
            path => Ok(path.clone()),
        }
    }

    fn tls(&self) -> Result<TlsJob, Failure> {
        let Some(id) = self.credentials_id()? else {
            return Ok(TlsJob::default());
        };
        if self.tls_hostname.is_some() {
            return Err(Failure::usage(
                "--tls-hostname is only supported with --list",
            ));
        }
        let credentials = self.objects.credentials(id, Side::Server)?;
        Ok(TlsJob {
            mode: TlsMode::Require,
            certificates: Some(credentials.directory.clone()),
            verify_peer: credentials.verify_peer,
        })
    }

    fn credentials_id(&self) -> Result<Option<&str>, Failure> {
        if self.tls_creds.is_none() && self.tls_hostname.is_some() {
            return Err(Failure::usage(
                "--tls-hostname is not permitted without --tls-creds",
            ));
        }
        Ok(self.tls_creds.as_deref())
    }
}

/// Whether this process was handed its listening socket.
fn is_activated() -> bool {
    let number = |key| std::env::var(key).ok()?.parse::<u32>().ok();
    number("LISTEN_PID") == Some(std::process::id())
        && number("LISTEN_FDS").is_some_and(|count| count > 0)
}
