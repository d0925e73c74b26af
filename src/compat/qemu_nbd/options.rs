//! qemu-nbd's options: their table, and what they say.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    time::Duration,
};

use crate::{block::Context, cli::failure::Failure, endpoint::printable};

use super::{
    super::{
        ending::EarlyEnd,
        getopt::{self, Argument, Flag, flag},
        qemu::{VERSION, credentials::Objects, text},
    },
    values::{discard, export_text, number, one_of, small_number, unsupported},
};

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
      --selinux-label=LABEL  Label the socket
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
      --cache=none|writeback|unsafe, -n, --nocache, --aio=threads|native|io_uring, --detect-zeroes=off|on|unmap
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

/// What the options say.
#[derive(Debug)]
pub(super) struct Choices {
    pub(super) bind: Option<String>,
    /// What the image must be able to tell of its extents.
    pub(super) contexts: Vec<Context>,
    pub(super) description: Option<String>,
    /// Whether trims and zeroes give space back.
    pub(super) discard: bool,
    pub(super) export_name: Option<String>,
    pub(super) fork: bool,
    pub(super) format: Option<String>,
    pub(super) handshake_limit: Duration,
    pub(super) image_opts: bool,
    pub(super) list: bool,
    pub(super) load_snapshot: Option<String>,
    pub(super) objects: Objects,
    pub(super) offset: u64,
    pub(super) persistent: bool,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) port: Option<u16>,
    pub(super) read_only: bool,
    pub(super) selinux_label: Option<String>,
    /// 0: no limit.
    pub(super) shared: usize,
    /// Whether what is written goes to a temporary overlay.
    pub(super) snapshot: bool,
    pub(super) socket: Option<PathBuf>,
    pub(super) tls_creds: Option<String>,
    pub(super) tls_hostname: Option<String>,
    /// Whether zeroes that are written are to become holes. They stay as they are, which nobody reads.
    pub(super) unmaps_zeroes: bool,
    pub(super) verbose: bool,
    /// Whether something was chosen that is of no use for a list.
    pub(super) of_a_device: bool,
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
            selinux_label: None,
            shared: 1,
            snapshot: false,
            socket: None,
            tls_creds: None,
            tls_hostname: None,
            unmaps_zeroes: false,
            verbose: false,
            of_a_device: false,
            has_cache: false,
        }
    }
}

impl Choices {
    /// Reads `words`. What is no option comes back beside it.
    pub(super) fn read(words: Vec<OsString>) -> Result<(Self, Vec<OsString>), EarlyEnd> {
        let mut choices = Self::default();
        let operands = getopt::read(FLAGS, words, |option, argument| {
            choices.choose(option, argument.unwrap_or_default())
        })?;
        Ok((choices, operands))
    }

    fn choose(&mut self, option: Opt, value: &OsStr) -> Result<(), EarlyEnd> {
        self.of_a_device |= is_of_a_device(option);
        match option {
            Opt::Aio => one_of(value, "aio mode", &["threads", "native", "io_uring"])?,
            Opt::Bind => self.bind = Some(text("bind", value)?),
            Opt::Cache | Opt::NoCache => self.choose_cache(option, value)?,
            Opt::Description => self.description = Some(export_text("description", value)?),
            Opt::Discard => self.discard = discard(value)?,
            Opt::DetectZeroes => {
                one_of(value, "detect-zeroes mode", &["off", "on", "unmap"])?;
                self.unmaps_zeroes = value == "unmap";
            }
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
                )
                .into());
            }
            Opt::LoadSnapshot => {
                let snapshot = text("load-snapshot", value)?;
                let name = ["snapshot.id=", "snapshot.name="]
                    .iter()
                    .find_map(|key| snapshot.strip_prefix(key))
                    .map(str::to_owned);
                self.load_snapshot = Some(name.unwrap_or(snapshot));
            }
            Opt::SelinuxLabel => self.selinux_label = Some(text("selinux-label", value)?),
            Opt::Snapshot => self.snapshot = true,
            Opt::TlsAuthz => return Err(unsupported("--tls-authz", "").into()),
            Opt::Trace => {}
            Opt::Help => return Err(EarlyEnd::Answer(HELP.to_owned())),
            Opt::Version => return Err(EarlyEnd::Answer(version())),
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
}

fn version() -> String {
    let ours = env!("CARGO_PKG_VERSION");
    format!("qemu-nbd {VERSION} (blockferry {ours})\n")
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
