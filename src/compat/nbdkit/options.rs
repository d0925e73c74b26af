//! nbdkit's own options: their table, and what they say.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    time::Duration,
};

use blockferry_sys as sys;

use crate::{
    cli::{
        failure::Failure,
        options::{Identity, TlsMode},
    },
    endpoint::printable,
    proto::HandshakeFlags,
};

use super::{
    super::{
        ending::EarlyEnd,
        getopt::{self, Argument, Flag, flag, long_options, short_options},
    },
    probe::dump_config,
    values,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Debug,
    DumpConfig,
    DumpPlugin,
    ExitWithParent,
    ExportName,
    Filter,
    Foreground,
    Group,
    Help,
    IpAddress,
    Ipv4Only,
    Ipv6Only,
    Keepalive,
    Log,
    LongOptions,
    MaskHandshake,
    NewStyle,
    NoExtendedHeaders,
    NoMetaContexts,
    NoStructuredReplies,
    OldStyle,
    Pidfile,
    Port,
    PrintUri,
    ReadOnly,
    Run,
    SelinuxLabel,
    ShortOptions,
    Single,
    Swap,
    Threads,
    Timeout,
    Tls,
    TlsCertificates,
    TlsPsk,
    TlsVerifyPeer,
    Unix,
    User,
    Verbose,
    Version,
    Vsock,
}

/// In the order in which `--long-options` lists them. One spelling of each has the letter.
const FLAGS: &[Flag<Opt>] = {
    use Argument::{No, Required};
    &[
        flag("ipv4-only", Some(b'4'), No, Opt::Ipv4Only),
        flag("ipv6-only", Some(b'6'), No, Opt::Ipv6Only),
        flag("debug", Some(b'D'), Required, Opt::Debug),
        flag("dump-config", None, No, Opt::DumpConfig),
        flag("dump-plugin", None, No, Opt::DumpPlugin),
        flag("exit-with-parent", None, No, Opt::ExitWithParent),
        flag("export", Some(b'e'), Required, Opt::ExportName),
        flag("export-name", None, Required, Opt::ExportName),
        flag("exportname", None, Required, Opt::ExportName),
        flag("filter", None, Required, Opt::Filter),
        flag("foreground", Some(b'f'), No, Opt::Foreground),
        flag("no-fork", None, No, Opt::Foreground),
        flag("group", Some(b'g'), Required, Opt::Group),
        flag("help", None, No, Opt::Help),
        flag("ip-addr", Some(b'i'), Required, Opt::IpAddress),
        flag("ipaddr", None, Required, Opt::IpAddress),
        flag("keepalive", None, No, Opt::Keepalive),
        flag("log", None, Required, Opt::Log),
        flag("long-options", None, No, Opt::LongOptions),
        flag("mask-handshake", None, Required, Opt::MaskHandshake),
        flag("new-style", Some(b'n'), No, Opt::NewStyle),
        flag("newstyle", None, No, Opt::NewStyle),
        flag("no-eh", None, No, Opt::NoExtendedHeaders),
        flag("no-extended-headers", None, No, Opt::NoExtendedHeaders),
        flag("no-mc", None, No, Opt::NoMetaContexts),
        flag("no-meta-contexts", None, No, Opt::NoMetaContexts),
        flag("no-sr", None, No, Opt::NoStructuredReplies),
        flag("no-structured-replies", None, No, Opt::NoStructuredReplies),
        flag("old-style", Some(b'o'), No, Opt::OldStyle),
        flag("oldstyle", None, No, Opt::OldStyle),
        flag("pid-file", Some(b'P'), Required, Opt::Pidfile),
        flag("pidfile", None, Required, Opt::Pidfile),
        flag("port", Some(b'p'), Required, Opt::Port),
        flag("print-uri", None, No, Opt::PrintUri),
        flag("read-only", Some(b'r'), No, Opt::ReadOnly),
        flag("readonly", None, No, Opt::ReadOnly),
        flag("run", None, Required, Opt::Run),
        flag("selinux-label", None, Required, Opt::SelinuxLabel),
        flag("short-options", None, No, Opt::ShortOptions),
        flag("single", Some(b's'), No, Opt::Single),
        flag("stdin", None, No, Opt::Single),
        flag("swap", None, No, Opt::Swap),
        flag("threads", Some(b't'), Required, Opt::Threads),
        flag("timeout", None, Required, Opt::Timeout),
        flag("tls", None, Required, Opt::Tls),
        flag("tls-certificates", None, Required, Opt::TlsCertificates),
        flag("tls-psk", None, Required, Opt::TlsPsk),
        flag("tls-verify-peer", None, No, Opt::TlsVerifyPeer),
        flag("unix", Some(b'U'), Required, Opt::Unix),
        flag("user", Some(b'u'), Required, Opt::User),
        flag("verbose", Some(b'v'), No, Opt::Verbose),
        flag("version", Some(b'V'), No, Opt::Version),
        flag("vsock", None, No, Opt::Vsock),
    ]
};

/// What the options say.
#[derive(Debug, Default)]
pub(super) struct Choices {
    /// What is asked for beside serving, or rather than it.
    pub(super) dump_plugin: bool,
    pub(super) help: bool,
    pub(super) version: bool,

    /// Where it listens.
    pub(super) address: Option<String>,
    pub(super) family: Option<Family>,
    pub(super) port: Option<String>,
    pub(super) unix: Option<OsString>,
    pub(super) vsock: bool,
    pub(super) single: bool,

    /// How it runs.
    pub(super) exit_with_parent: bool,
    pub(super) foreground: bool,
    pub(super) identity: Identity,
    pub(super) log: Log,
    pub(super) pidfile: Option<PathBuf>,
    pub(super) print_uri: bool,
    pub(super) run: Option<OsString>,
    pub(super) selinux_label: Option<String>,
    pub(super) swap: bool,
    pub(super) verbose: bool,

    /// What it offers.
    pub(super) export_name: String,
    pub(super) filters: Vec<String>,
    pub(super) handshake_flags: Option<HandshakeFlags>,
    pub(super) no_extended_headers: bool,
    pub(super) no_meta_contexts: bool,
    pub(super) no_structured_replies: bool,
    pub(super) read_only: bool,
    pub(super) threads: Option<u32>,
    pub(super) timeout: Option<Duration>,

    pub(super) tls: Option<TlsMode>,
    pub(super) tls_certificates: Option<PathBuf>,
    pub(super) tls_verify_peer: bool,
}

/// The only family of addresses that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Where messages go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Log {
    /// To standard error while it is in the foreground, and to the system's log in the background.
    #[default]
    Usual,
    Error,
    System,
    Nowhere,
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
        match option {
            Opt::Debug => check_debug_flag(value)?,
            Opt::DumpPlugin => self.dump_plugin = true,
            Opt::ExitWithParent => self.exit_with_parent = true,
            Opt::ExportName => self.export_name = export_name(value)?,
            Opt::Filter => self.filters.push(printable(value)),
            Opt::Foreground => self.foreground = true,
            Opt::Group => self.identity.group = Some(group(value)?),
            Opt::Help => self.help = true,
            Opt::IpAddress => self.address = Some(values::text("-i", value)?),
            Opt::Ipv4Only => self.family = Some(Family::V4),
            Opt::Ipv6Only => self.family = Some(Family::V6),
            Opt::Log => self.log = log(value)?,
            Opt::MaskHandshake => {
                let mask = values::unsigned("mask-handshake", value)?;
                // What the mask has beyond the flags that there are means nothing.
                let known = u16::try_from(mask & 0xffff).unwrap_or(u16::MAX);
                self.handshake_flags = Some(HandshakeFlags::from_bits_truncate(known));
            }
            Opt::NoExtendedHeaders => self.no_extended_headers = true,
            Opt::NoMetaContexts => self.no_meta_contexts = true,
            Opt::NoStructuredReplies => self.no_structured_replies = true,
            Opt::OldStyle => return Err(missing("-o", "the oldstyle protocol is not served")),
            Opt::Pidfile => self.pidfile = Some(values::path("-P", value)?),
            Opt::Port => self.port = Some(values::text("-p", value)?),
            Opt::PrintUri => self.print_uri = true,
            Opt::ReadOnly => self.read_only = true,
            Opt::Run => self.run = Some(value.to_owned()),
            Opt::SelinuxLabel => {
                self.selinux_label = Some(values::text("--selinux-label", value)?);
            }
            Opt::Single => self.single = true,
            Opt::Swap => self.swap = true,
            Opt::Threads => self.threads = Some(values::unsigned("threads", value)?),
            Opt::Timeout => self.timeout = Some(values::delay("timeout", value)?),
            Opt::Tls => self.tls = Some(tls(value)?),
            Opt::TlsCertificates => {
                self.tls_certificates = Some(values::path("--tls-certificates", value)?);
            }
            Opt::TlsPsk => {
                let why = "keys that both sides know are not supported, only certificates";
                return Err(missing("--tls-psk", why));
            }
            Opt::TlsVerifyPeer => self.tls_verify_peer = true,
            Opt::Unix => self.unix = Some(value.to_owned()),
            Opt::User => self.identity.user = Some(user(value)?),
            Opt::Verbose => self.verbose = true,
            Opt::Version => self.version = true,
            Opt::Vsock => self.vsock = true,
            // These are how it always is.
            Opt::Keepalive | Opt::NewStyle => {}
            Opt::DumpConfig => return Err(EarlyEnd::Answer(dump_config())),
            Opt::LongOptions => return Err(EarlyEnd::Answer(long_options(FLAGS))),
            Opt::ShortOptions => return Err(EarlyEnd::Answer(short_options(FLAGS))),
        }
        Ok(())
    }
}

/// An option of theirs that is not there.
fn missing(option: &str, why: &str) -> EarlyEnd {
    Failure::usage(format!("{option}: {why}")).into()
}

/// `NAME.FLAG=N`. There is nothing here that it would make say more.
fn check_debug_flag(value: &OsStr) -> Result<(), Failure> {
    let is_flag = || {
        let (name, number) = value.to_str()?.split_once('=')?;
        let (name, flag) = name.split_once('.')?;
        let is_number = number.parse::<i32>().is_ok();
        (!name.is_empty() && !flag.is_empty() && is_number).then_some(())
    };
    is_flag().ok_or_else(|| {
        Failure::usage("-D (Debug Flag) must have the format NAME.FLAG=N".to_owned())
    })
}

fn export_name(value: &OsStr) -> Result<String, Failure> {
    let name = values::text("-e", value)?;
    match name.len() {
        0..=4096 => Ok(name),
        _ => Err(Failure::usage("export name too long")),
    }
}

fn log(value: &OsStr) -> Result<Log, Failure> {
    match value.to_str() {
        Some("default") => Ok(Log::Usual),
        Some("stderr") => Ok(Log::Error),
        Some("syslog") => Ok(Log::System),
        Some("null") => Ok(Log::Nowhere),
        _ => Err(Failure::usage(
            "--log must be \"default\", \"stderr\", \"syslog\" or \"null\"",
        )),
    }
}

fn tls(value: &OsStr) -> Result<TlsMode, Failure> {
    let word = printable(value).to_ascii_lowercase();
    if ["require", "required", "force"].contains(&word.as_str()) {
        return Ok(TlsMode::Require);
    }
    Ok(match values::boolean("tls", value)? {
        true => TlsMode::On,
        false => TlsMode::Off,
    })
}

fn user(value: &OsStr) -> Result<u32, Failure> {
    number_of(value, sys::user_number).ok_or_else(|| {
        let name = printable(value);
        Failure::usage(format!("-u option: {name} is not a valid user name or uid"))
    })
}

fn group(value: &OsStr) -> Result<u32, Failure> {
    number_of(value, sys::group_number).ok_or_else(|| {
        let name = printable(value);
        Failure::usage(format!(
            "-g option: {name} is not a valid group name or gid"
        ))
    })
}

/// What `value` is as a number, or as a name.
fn number_of(value: &OsStr, named: fn(&OsStr) -> Option<u32>) -> Option<u32> {
    named(value).or_else(|| value.to_str()?.parse().ok())
}

/// Whether the path stands for a private socket.
pub(super) fn is_private(unix: &OsStr) -> bool {
    Path::new(unix) == Path::new("-")
}
