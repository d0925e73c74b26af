//! The options of `qemu-nbd`, and the server or list that they ask for.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    time::Duration,
};

use crate::{
    block::Context,
    cli::{
        failure::Failure,
        options::{Opening, Place, ServeJob, ServedSource, Stay, TlsJob, TlsMode, Trust},
        output::tell,
    },
    endpoint::{Endpoint, FormatKind, ImageFormat, printable},
    filter::NamedFilter,
    proto::{NbdUri, Transport},
};

use super::{
    super::{
        getopt::{Argument, Arguments, Flag, flag},
        qemu::{
            VERSION,
            block_options::{Image, described, part_of},
            credentials::{Objects, Side},
        },
        refusal::{Refusal, misused},
    },
    image::named,
};

const DEFAULT_PORT: u16 = 10809;

/// All addresses that qemu-nbd listens at, and where it looks for a server to list.
const EVERY_ADDRESS: &str = "0.0.0.0";

/// No server has this much to say of an export.
const LONGEST_STRING: usize = 4096;

const HELP: &str = "\
Serves a disk image over NBD.

Usage: qemu-nbd [OPTIONS] FILE
       qemu-nbd -L [OPTIONS]

Where and to whom:
  -p, --port=PORT            TCP port (10809)
  -b, --bind=ADDRESS         Address to listen at (0.0.0.0)
  -k, --socket=PATH          Unix socket, by its absolute path, instead of TCP
  -e, --shared=N             Clients at a time (1); 0 is no limit
  -t, --persistent           Do not end with the last client
  -x, --export-name=NAME     Name of the export (empty)
  -D, --description=TEXT     Description of the export
      --handshake-limit=N    Seconds that a client's handshake may take (10); 0 is no limit
      --fork                 Go to the background once clients can connect
      --pid-file=PATH        Write the process's number to PATH
  -v, --verbose              Say on standard error who comes and goes

What:
  -f, --format=FORMAT        Format of the image, raw or qcow2. Without it, a file's first bytes tell; one that
                             seems to have yet another one is refused
  -l, --load-snapshot=NAME   Serve an internal snapshot, by its ID or name, read-only
  -A, --allocation-depth     Fail unless the image can tell qemu:allocation-depth, as a qcow2 can
  -B, --bitmap=NAME          Fail unless the image has this bitmap; all that it has are offered
  -s, --snapshot             What is written goes to a temporary overlay, which is gone in the end
      --image-opts           FILE is driver=raw,file.filename=PATH[,offset=N,size=N,read-only=on]
  -r, --read-only            Refuse every write
  -o, --offset=OFFSET        Serve what begins there
      --discard=ignore|unmap What becomes of trims; ignore is the default and also keeps zeroes allocated
      --cache=none|writeback|unsafe, -n, --nocache, --aio=threads|native|io_uring
                             Understood; they change nothing

TLS:
      --object tls-creds-x509,id=ID,dir=DIR,endpoint=server[,verify-peer=no]
      --tls-creds=ID         Demand TLS with these credentials; with -L, use those with endpoint=client
      --tls-hostname=NAME    With -L: the name in the server's certificate

Others:
  -L, --list                 List the exports of the server at -b and -p, or -k
  -T, --trace=...            Understood; there are no trace points
  -h, --help                 Show this text
  -V, --version              Show the version

This is blockferry under the name of qemu-nbd; 'blockferry serve --help' shows what else it can do.
";

/// What is said after a mistake.
pub(super) const USAGE: &str = "Try `qemu-nbd --help' for more information.";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Aio,
    AllocationDepth,
    Bind,
    Bitmap,
    Cache,
    Connect,
    Description,
    DetectZeroes,
    Discard,
    Disconnect,
    ExportName,
    Fork,
    Format,
    HandshakeLimit,
    Help,
    ImageOpts,
    List,
    LoadSnapshot,
    NoCache,
    Object,
    Offset,
    Persistent,
    PidFile,
    Port,
    ReadOnly,
    SelinuxLabel,
    Shared,
    Snapshot,
    Socket,
    TlsAuthz,
    TlsCreds,
    TlsHostname,
    Trace,
    Verbose,
    Version,
}

const FLAGS: &[Flag<Opt>] = {
    use Argument::{No, Required};
    &[
        flag("help", Some(b'h'), No, Opt::Help),
        flag("version", Some(b'V'), No, Opt::Version),
        flag("port", Some(b'p'), Required, Opt::Port),
        flag("bind", Some(b'b'), Required, Opt::Bind),
        flag("socket", Some(b'k'), Required, Opt::Socket),
        flag("shared", Some(b'e'), Required, Opt::Shared),
        flag("persistent", Some(b't'), No, Opt::Persistent),
        flag("verbose", Some(b'v'), No, Opt::Verbose),
        flag("export-name", Some(b'x'), Required, Opt::ExportName),
        flag("description", Some(b'D'), Required, Opt::Description),
        flag("handshake-limit", None, Required, Opt::HandshakeLimit),
        flag("offset", Some(b'o'), Required, Opt::Offset),
        flag("allocation-depth", Some(b'A'), No, Opt::AllocationDepth),
        flag("bitmap", Some(b'B'), Required, Opt::Bitmap),
        flag("list", Some(b'L'), No, Opt::List),
        flag("object", None, Required, Opt::Object),
        flag("tls-creds", None, Required, Opt::TlsCreds),
        flag("tls-authz", None, Required, Opt::TlsAuthz),
        flag("tls-hostname", None, Required, Opt::TlsHostname),
        flag("trace", Some(b'T'), Required, Opt::Trace),
        flag("fork", None, No, Opt::Fork),
        flag("pid-file", None, Required, Opt::PidFile),
        flag("selinux-label", None, Required, Opt::SelinuxLabel),
        flag("connect", Some(b'c'), Required, Opt::Connect),
        flag("disconnect", Some(b'd'), No, Opt::Disconnect),
        flag("format", Some(b'f'), Required, Opt::Format),
        flag("read-only", Some(b'r'), No, Opt::ReadOnly),
        flag("snapshot", Some(b's'), No, Opt::Snapshot),
        flag("load-snapshot", Some(b'l'), Required, Opt::LoadSnapshot),
        flag("nocache", Some(b'n'), No, Opt::NoCache),
        flag("cache", None, Required, Opt::Cache),
        flag("aio", None, Required, Opt::Aio),
        flag("discard", None, Required, Opt::Discard),
        flag("detect-zeroes", None, Required, Opt::DetectZeroes),
        flag("image-opts", None, No, Opt::ImageOpts),
    ]
};

/// What a command line asks for.
#[derive(Debug)]
pub(super) enum Request {
    Print(String),
    List(Box<Endpoint>),
    Serve(Box<ServeJob>),
}

impl Request {
    /// Reads the command line; the first argument is the program's name.
    pub(super) fn parse(mut words: Vec<OsString>) -> Result<Self, Refusal> {
        words.drain(..1);
        let mut choices = Choices::default();
        let mut arguments = Arguments::new(FLAGS, words);
        while let Some((option, argument)) = arguments.next_option().map_err(misused)? {
            match option {
                Opt::Help => return Ok(Self::Print(HELP.to_owned())),
                Opt::Version => return Ok(Self::Print(version())),
                _ => choices.choose(option, &argument.unwrap_or_default())?,
            }
        }
        let operands = arguments.into_operands();
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

fn version() -> String {
    let ours = env!("CARGO_PKG_VERSION");
    format!("qemu-nbd {VERSION} (blockferry {ours})\n")
}

/// What the options say.
#[derive(Debug)]
struct Choices {
    bind: Option<String>,
    /// What the image must be able to tell of its extents.
    contexts: Vec<Context>,
    description: Option<String>,
    /// Whether trims and zeroes give space back.
    discard: bool,
    export_name: Option<String>,
    fork: bool,
    format: Option<String>,
    handshake_limit: Duration,
    image_opts: bool,
    list: bool,
    load_snapshot: Option<String>,
    objects: Objects,
    offset: u64,
    persistent: bool,
    pid_file: Option<PathBuf>,
    port: Option<u16>,
    read_only: bool,
    /// 0: no limit.
    shared: usize,
    /// Whether what is written goes to a temporary overlay.
    snapshot: bool,
    socket: Option<PathBuf>,
    tls_creds: Option<String>,
    tls_hostname: Option<String>,
    verbose: bool,
    /// Whether something was chosen that is of no use for a list.
    of_a_device: bool,
    /// Whether a cache mode was chosen.
    has_cache: bool,
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            bind: None,
            contexts: Vec::new(),
            description: None,
            discard: false,
            export_name: None,
            fork: false,
            format: None,
            handshake_limit: Duration::from_secs(10),
            image_opts: false,
            list: false,
            load_snapshot: None,
            objects: Objects::default(),
            offset: 0,
            persistent: false,
            pid_file: None,
            port: None,
            read_only: false,
            shared: 1,
            snapshot: false,
            socket: None,
            tls_creds: None,
            tls_hostname: None,
            verbose: false,
            of_a_device: false,
            has_cache: false,
        }
    }
}

impl Choices {
    fn choose(&mut self, option: Opt, value: &OsStr) -> Result<(), Failure> {
        self.of_a_device |= is_of_a_device(option);
        match option {
            Opt::Aio => one_of(value, "aio mode", &["threads", "native", "io_uring"])?,
            Opt::Bind => self.bind = Some(text("bind", value)?),
            Opt::Cache | Opt::NoCache => self.choose_cache(option, value)?,
            Opt::Description => self.description = Some(export_text("description", value)?),
            Opt::Discard => self.discard = discard(value)?,
            Opt::DetectZeroes => detect_zeroes(value)?,
            Opt::ExportName => self.export_name = Some(export_text("name", value)?),
            Opt::Fork => self.fork = true,
            Opt::Format => self.format = Some(text("format", value)?),
            Opt::HandshakeLimit => {
                self.handshake_limit = match number(value, "handshake limit")? {
                    0 => Duration::MAX,
                    seconds => Duration::from_secs(seconds),
                };
            }
            Opt::ImageOpts => self.image_opts = true,
            Opt::List => self.list = true,
            Opt::Object => self.objects.define(&text("object", value)?)?,
            Opt::Offset => self.offset = number(value, "offset")?,
            Opt::Persistent => self.persistent = true,
            Opt::PidFile => self.pid_file = Some(PathBuf::from(value)),
            Opt::Port => self.port = Some(small_number(value, "port")?),
            Opt::ReadOnly => self.read_only = true,
            Opt::Shared => {
                let shared: u32 = small_number(value, "shared device number")?;
                self.shared = usize::try_from(shared).unwrap_or(usize::MAX);
            }
            Opt::Socket => self.socket = Some(PathBuf::from(value)),
            Opt::TlsCreds => self.tls_creds = Some(text("tls-creds", value)?),
            Opt::TlsHostname => self.tls_hostname = Some(text("tls-hostname", value)?),
            Opt::Verbose => self.verbose = true,
            Opt::AllocationDepth => self.contexts.push(Context::AllocationDepth),
            Opt::Bitmap => {
                let name = text("bitmap", value)?;
                self.contexts.push(Context::DirtyBitmap(name));
            }
            Opt::Connect | Opt::Disconnect => {
                return Err(unsupported(
                    "the kernel's NBD client",
                    "serve at a socket and let nbd-client(8) connect the device",
                ));
            }
            Opt::LoadSnapshot => {
                let snapshot = text("load-snapshot", value)?;
                let name = ["snapshot.id=", "snapshot.name="]
                    .iter()
                    .find_map(|key| snapshot.strip_prefix(key))
                    .map(str::to_owned);
                self.load_snapshot = Some(name.unwrap_or(snapshot));
            }
            Opt::SelinuxLabel => return Err(unsupported("--selinux-label", "")),
            Opt::Snapshot => self.snapshot = true,
            Opt::TlsAuthz => return Err(unsupported("--tls-authz", "")),
            Opt::Trace | Opt::Help | Opt::Version => {}
        }
        Ok(())
    }

    fn choose_cache(&mut self, option: Opt, value: &OsStr) -> Result<(), Failure> {
        if std::mem::replace(&mut self.has_cache, true) {
            return Err(Failure::usage("-n and --cache can only be specified once"));
        }
        if option == Opt::NoCache {
            return Ok(());
        }
        if value == "writethrough" || value == "directsync" {
            let mode = printable(value);
            return Err(unsupported(
                &format!("--cache={mode}"),
                "a client makes durable what it flushes or writes with FUA",
            ));
        }
        one_of(value, "cache mode", &["none", "off", "writeback", "unsafe"])
    }

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
            image.source = image.source.interpreted(ImageFormat {
                kind: FormatKind::Image(crate::format::Format::Qcow2),
                snapshot: Some(snapshot.clone()),
            });
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

/// Whether an option says something of an export or an image.
fn is_of_a_device(option: Opt) -> bool {
    matches!(
        option,
        Opt::Aio
            | Opt::AllocationDepth
            | Opt::Bitmap
            | Opt::Cache
            | Opt::Description
            | Opt::DetectZeroes
            | Opt::Discard
            | Opt::ExportName
            | Opt::Format
            | Opt::ImageOpts
            | Opt::LoadSnapshot
            | Opt::NoCache
            | Opt::Offset
            | Opt::ReadOnly
            | Opt::Snapshot
    )
}

fn unsupported(what: &str, instead: &str) -> Failure {
    Failure::usage(match instead {
        "" => format!("{what} is not supported"),
        _ => format!("{what} is not supported: {instead}"),
    })
}

fn text(option: &str, value: &OsStr) -> Result<String, Failure> {
    let text = value.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::usage(format!("--{option}: '{}' is no text", printable(value))))
}

/// A name or a description of an export.
fn export_text(what: &str, value: &OsStr) -> Result<String, Failure> {
    let text = text(what, value)?;
    if text.len() > LONGEST_STRING {
        return Err(Failure::usage(format!("the export's {what} is too long")));
    }
    Ok(text)
}

fn invalid(what: &str, value: &OsStr) -> Failure {
    Failure::usage(format!("Invalid {what} '{}'", printable(value)))
}

/// A number without a unit, in decimal or hexadecimal.
fn number(value: &OsStr, what: &str) -> Result<u64, Failure> {
    let text = value.to_str().unwrap_or_default();
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| invalid(what, value))
}

fn small_number<T: TryFrom<u64>>(value: &OsStr, what: &str) -> Result<T, Failure> {
    T::try_from(number(value, what)?).map_err(|_| invalid(what, value))
}

fn one_of(value: &OsStr, what: &str, known: &[&str]) -> Result<(), Failure> {
    match known.iter().any(|known| value == *known) {
        true => Ok(()),
        false => Err(invalid(what, value)),
    }
}

fn discard(value: &OsStr) -> Result<bool, Failure> {
    match value.to_str() {
        Some("ignore" | "off") => Ok(false),
        Some("unmap" | "on") => Ok(true),
        _ => Err(invalid("discard mode", value)),
    }
}

fn detect_zeroes(value: &OsStr) -> Result<(), Failure> {
    if value == "on" || value == "unmap" {
        let mode = printable(value);
        return Err(unsupported(
            &format!("--detect-zeroes={mode}"),
            "zeroes that a client writes stay as they are",
        ));
    }
    one_of(value, "detect-zeroes mode", &["off"])
}
