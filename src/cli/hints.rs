//! What a person can do about a failure, where a mistake is common: the `hint:` lines.
//!
//! A hint says what to do, not again what failed. The drop-in names give none: they speak of this program's own
//! commands and options.

use std::{
    error::Error as StdError, fs, io, os::unix::fs::FileTypeExt, path::Path, time::Duration,
};

use blockferry_sys as sys;

use crate::{
    block::{Error, ErrorKind, Operation, printable},
    client::{ConnectOptions, blocking},
    endpoint::{EndpointError, SOURCES},
    filter::{FILTERS, FilterError},
    proto::{NbdUri, UriError, is_nbd_uri},
};

use super::failure::{Failure, is_system_error};

/// How long a server may take to say which exports it has, when another one was asked for.
const PATIENCE: Duration = Duration::from_secs(3);

/// So many exports are named; of more it is said how many they are.
const MOST_EXPORTS: usize = 8;

/// What to do about an error of a device.
pub(super) fn for_error(error: &Error) -> Option<String> {
    let endpoint = error.endpoint().unwrap_or_default();
    let is_nbd = is_nbd_uri(endpoint);
    let of_system = is_system_error(error);
    let opening = matches!(error.operation(), None | Some(Operation::Open));
    let hint = match error.kind() {
        _ if is_nbd && is_too_long(error) => LONG_SOCKET,
        ErrorKind::Refused if is_nbd && endpoint.contains("socket=") => {
            "the socket is there and nobody listens: its server is gone, start it again"
        }
        ErrorKind::Refused if is_nbd => {
            "nothing listens there: is the server running, on this host and port?"
        }
        ErrorKind::NotFound if is_nbd && of_system && endpoint.contains("socket=") => {
            "there is no such socket: is the server running?"
        }
        ErrorKind::NotFound if is_nbd && of_system => {
            "is the host's name right? 'getent hosts NAME' asks as this program does"
        }
        ErrorKind::NotFound if is_nbd => {
            "'blockferry info --list' shows which exports a server has"
        }
        ErrorKind::NotFound if opening && of_system => return for_missing(endpoint),
        _ if says(error, "it cannot be run: Permission denied") => {
            "is it executable? 'chmod +x' makes it so"
        }
        ErrorKind::NotFound if says(error, "there is no snapshot of the ID or name") => {
            "'blockferry snapshot IMAGE' lists those that there are"
        }
        ErrorKind::NotPermitted if !is_nbd && opening && of_system => {
            return Some(for_locked(endpoint));
        }
        ErrorKind::NotPermitted if says(error, "another program uses it") => {
            "end the other one first: two that write one image destroy what is in it"
        }
        ErrorKind::ReadOnly if of_system => {
            "the file system is mounted read-only: write elsewhere, or mount it for writing"
        }
        ErrorKind::ReadOnly if says(error, MARKED_CORRUPT) => {
            "'blockferry check --repair all IMAGE' says what is wrong, and mends what it can"
        }
        ErrorKind::ReadOnly => {
            "the server or the file allows no writes: was it started or mounted read-only?"
        }
        ErrorKind::NoSpace if is_too_large(error) => {
            "a file of that size is more than its file system, or 'ulimit -f', allows"
        }
        ErrorKind::NoSpace => "the destination is full: make room, or use a larger one",
        ErrorKind::OutOfBounds if says(error, "the destination is too small") => {
            "use a larger one; 'blockferry resize' makes a raw or qcow2 file larger"
        }
        ErrorKind::InvalidInput if says(error, "it is a directory") => {
            "name a file in it; 'blockferry serve dir:PATH' serves all of them"
        }
        ErrorKind::InvalidInput if says(error, "past its new end would be lost") => {
            "--shrink allows that"
        }
        ErrorKind::InvalidInput if says(error, "the image needs a size") => {
            "it follows the name: blockferry create disk.qcow2 10G"
        }
        ErrorKind::Unsupported if says(error, "are not resized") => {
            "'blockferry copy -O qcow2' makes an image that can be"
        }
        ErrorKind::Corrupt | ErrorKind::InvalidInput
            if opening && !is_nbd && is_of_another_format(error) =>
        {
            "'blockferry info FILE' tells what it begins as"
        }
        ErrorKind::Corrupt if says(error, "the refcounts are wrong") => {
            "'blockferry check --repair all IMAGE' mends them"
        }
        ErrorKind::Corrupt | ErrorKind::UnexpectedEnd | ErrorKind::Io if is_cut_short(error) => {
            "it is shorter than it says: was all of it copied here?"
        }
        ErrorKind::Incompatible if says(error, "the server refused it") => {
            "this server has no TLS: nbd:// and nbd+unix:// do without, where the network may be trusted"
        }
        ErrorKind::Incompatible if says(error, "the server requires TLS") => {
            "write nbds:// or nbds+unix://, with '&tls-certificates=DIR' unless the system trusts the server"
        }
        ErrorKind::ConnectionLost | ErrorKind::TimedOut | ErrorKind::ShuttingDown => {
            "this may pass: try again"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// What to do about a path of a socket that does not fit into an address.
pub(super) const LONG_SOCKET: &str = "the path of a socket has 107 bytes at most: use a shorter one, or go to its directory and name it from there";

/// What to do about an endpoint that cannot be read.
pub(super) fn for_endpoint(error: &EndpointError) -> Option<String> {
    const SOCKET: &str = "write nbd+unix:///EXPORT?socket=PATH";
    let hint = match error {
        EndpointError::UnterminatedGroup => SPACES.to_owned(),
        EndpointError::UnknownScheme { name, scheme } => match &**scheme {
            "http" | "https" | "ftp" => {
                format!(
                    "where nbdkit has its plugin curl, '[ nbdkit curl {name} ]' reads it; else download it first"
                )
            }
            "ssh" | "sftp" => {
                "where nbdkit has its plugin ssh, '[ nbdkit ssh host=HOST PATH ]' reads it; \
                               else copy it here first"
                    .to_owned()
            }
            _ => match closest(scheme, SCHEMES.iter().copied()) {
                Some(scheme) => format!("did you mean {scheme}://?"),
                None => format!("for a file of that name, write ./{name}"),
            },
        },
        EndpointError::Uri { name, error } => match error {
            UriError::NoSocket if name.contains('?') => {
                format!("{SOCKET}: its parameter is called 'socket'")
            }
            UriError::NoSocket => {
                format!(
                    "{SOCKET}, and put the URI in quotes: the shell takes '?' and '&' for itself"
                )
            }
            UriError::UnexpectedSocket => format!("{SOCKET} for a Unix socket"),
            UriError::NoAuthority => {
                format!("write nbd://HOST:PORT/EXPORT for TCP; {SOCKET} for a Unix socket")
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(hint)
}

/// What to do about a filter that cannot be read.
pub(super) fn for_filter(error: &FilterError) -> Option<String> {
    let FilterError::Unknown(name) = error else {
        return None;
    };
    let lists = "'blockferry filters' lists them";
    let names = FILTERS.iter().map(|row| row.name);
    Some(match closest(name, names) {
        Some(name) => format!("did you mean '{name}'? {lists}"),
        None => lists.to_owned(),
    })
}

const SPACES: &str = "put spaces around the brackets: [ CMD ARGS... ]";

/// The schemes that endpoints begin with, as people misspell them.
const SCHEMES: &[&str] = &[
    "nbd",
    "nbds",
    "nbd+unix",
    "nbds+unix",
    "nbd+vsock",
    "nbds+vsock",
];

/// What may be meant by the name of a file that is not there.
fn for_missing(name: &str) -> Option<String> {
    // The parser has taken the scheme away, and left the slashes.
    if name.starts_with("//") {
        return Some(
            "'file:' takes a path as it is, not a URL: write file:/PATH, with no %20 in it"
                .to_owned(),
        );
    }
    if name.starts_with('[') {
        return Some(SPACES.to_owned());
    }
    if name.starts_with("if=") || name.starts_with("of=") {
        return Some(
            "these are the words of dd: 'blockferry dd if=SOURCE of=DESTINATION'".to_owned(),
        );
    }
    if name.starts_with("json:") || name.contains("driver=") {
        return Some(
            "QEMU names images so; it is understood under the names qemu-img and qemu-nbd, see 'blockferry doctor'"
                .to_owned(),
        );
    }
    let (word, rest) = name.split_once(':')?;
    let prefixes = SOURCES.iter().map(|row| row.name);
    match closest(word, prefixes.filter(|name| *name != "-")) {
        Some(scheme) if scheme.starts_with("nbd") && rest.starts_with("//") => {
            Some(format!("did you mean {scheme}://?"))
        }
        Some(source) if source != word => Some(format!(
            "did you mean '{source}:'? 'blockferry sources' lists what can stand for an image"
        )),
        _ => None,
    }
}

/// What to do where the system does not let this user open a file.
fn for_locked(name: &str) -> String {
    match fs::metadata(path_of(name)) {
        Ok(it) if it.file_type().is_block_device() => {
            "devices belong to root and a group, often 'disk': join the group, or use sudo"
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            "a new file needs a directory that this user may write to"
        }
        _ => "check the owner and the mode of the file and of its directory",
    }
    .to_owned()
}

/// What to do about a source that cannot be served as it was asked for, where serving it for reading alone helps.
pub(super) fn for_serving(error: &Error) -> Option<&'static str> {
    let helps = match error.kind() {
        ErrorKind::ReadOnly => !says(error, MARKED_CORRUPT),
        // Not where it is ours to say what is opened.
        ErrorKind::NotPermitted if is_system_error(error) => {
            let path = path_of(error.endpoint().unwrap_or_default());
            // What lies behind a server or a command is not looked at.
            sys::permissions(path).is_ok_and(|(read, _)| read)
        }
        _ => false,
    };
    helps.then_some("--read-only serves what cannot be written")
}

fn path_of(name: &str) -> &Path {
    Path::new(name.strip_prefix("file:").unwrap_or(name))
}

/// What is said of a qcow2 image that must not be written.
const MARKED_CORRUPT: &str = "marked as corrupt";

/// Whether an image was said to be in a format that it is not in.
fn is_of_another_format(error: &Error) -> bool {
    let words = [
        "begins with something else",
        "ends with something else",
        "it is not in the format",
        "it is not an OVA",
    ];
    words.iter().any(|words| says(error, words))
}

/// Whether the end of an image is not there.
fn is_cut_short(error: &Error) -> bool {
    let words = [
        "past the end of the file",
        "cut short",
        "is cut off",
        "it ends too early",
        "ends in the middle of",
        "too short to be",
    ];
    words.iter().any(|words| says(error, words))
}

/// What to do about an address that cannot be listened on, or nothing.
pub(super) fn for_listening(error: &io::Error, port: Option<u16>) -> Option<String> {
    match (error.kind(), port) {
        (io::ErrorKind::AddrInUse, _) => {
            Some("'ss -ltnp' shows who it is; port 0 takes a free one and tells it".to_owned())
        }
        (io::ErrorKind::PermissionDenied, Some(1..1024)) => {
            Some("ports below 1024 are for root: use another one, 10809 is NBD's".to_owned())
        }
        (io::ErrorKind::AddrNotAvailable, _) => Some(
            "this machine has no such address: 'ip address' lists those that it has".to_owned(),
        ),
        _ => None,
    }
}

/// Adds which exports a server has to the failure of not finding one: the server is asked once more.
pub(super) fn name_exports(failure: Failure) -> Failure {
    let Some(cause) = failure.cause() else {
        return failure;
    };
    if cause.kind() != ErrorKind::NotFound || is_system_error(cause) {
        return failure;
    }
    let Some(Ok(uri)) = cause.endpoint().map(str::parse::<NbdUri>) else {
        return failure;
    };
    match exports(&uri) {
        Some(told) => failure.note(told),
        None => failure,
    }
}

/// The exports of the server in `uri`, in a sentence.
fn exports(uri: &NbdUri) -> Option<String> {
    let mut options = ConnectOptions::default();
    options.connect_timeout = PATIENCE;
    let report = blocking::list(uri, &options).ok()?;
    let names = report.exports.iter().map(|export| &*export.export.name);
    Some(named(&names.collect::<Vec<_>>()))
}

fn named(names: &[&str]) -> String {
    let quoted = names.iter().take(MOST_EXPORTS).map(|name| match *name {
        "" => "the default one, without a name".to_owned(),
        name => format!("'{}'", printable(name.as_ref())),
    });
    let mut shown: Vec<_> = quoted.collect();
    if names.len() > MOST_EXPORTS {
        shown.push(format!("and {} more", names.len() - MOST_EXPORTS));
    }
    match shown.as_slice() {
        [] => "the server lists no exports".to_owned(),
        shown => format!("the server has these exports: {}", shown.join(", ")),
    }
}

/// The candidate that `word` may be a misspelling of.
pub(super) fn closest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    // One slip in a short word, two in a longer one: what is further away is something else.
    let most = match word.chars().count() {
        0..=2 => return None,
        3..=5 => 1,
        _ => 2,
    };
    let word = word.to_lowercase();
    let near = candidates.map(|candidate| (strsim::osa_distance(&word, candidate), candidate));
    let near = near.filter(|(distance, _)| *distance <= most);
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn says(error: &Error, words: &str) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(one) = cause {
        if one.to_string().contains(words) {
            return true;
        }
        cause = one.source();
    }
    false
}

/// Whether a name is longer than the system takes it.
fn is_too_long(error: &Error) -> bool {
    system_error(error).is_some_and(|error| error.kind() == io::ErrorKind::InvalidFilename)
}

fn is_too_large(error: &Error) -> bool {
    system_error(error).is_some_and(|error| error.kind() == io::ErrorKind::FileTooLarge)
}

fn system_error(error: &Error) -> Option<&io::Error> {
    error.source()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn name(text: &str) -> Arc<str> {
        Arc::from(text)
    }

    fn missing(text: &str) -> String {
        let error = Error::from(io::Error::from_raw_os_error(2));
        let error = error.during(Operation::Open).on(&name(text));
        for_error(&error).unwrap_or_default()
    }

    #[test]
    fn a_missing_socket_and_a_missing_export_get_different_advice() {
        let uri = name("nbd+unix:///?socket=/s");
        let hint = |error: Error| for_error(&error.on(&uri)).expect("a hint");
        let socket = hint(Error::from(io::Error::from_raw_os_error(2)));
        let export = hint(Error::with_message(ErrorKind::NotFound, "no such export"));
        assert!(socket.contains("is the server running"), "{socket}");
        assert!(export.contains("info --list"), "{export}");
    }

    #[test]
    fn a_name_that_is_not_there_may_be_something_else() {
        assert!(missing("smaple:1M").contains("'sample:'"));
        assert!(missing("ndb://host/").contains("nbd://"));
        assert!(missing("[nbdkit").contains("spaces around the brackets"));
        assert!(missing("if=disk").contains("blockferry dd"));
        assert!(missing("///a%20b").contains("not a URL"));
        assert!(missing("driver=raw,file.filename=x").contains("qemu-img"));
        assert_eq!(missing("disk.raw"), "");
        assert_eq!(missing("sample:x"), "");
    }

    #[test]
    fn only_what_is_near_is_offered() {
        let offered = |word: &str| closest(word, ["readahead", "delay", "cow"].into_iter());
        assert_eq!(offered("readhaead"), Some("readahead"));
        assert_eq!(offered("Delay"), Some("delay"));
        assert_eq!(offered("deal"), None);
        assert_eq!(offered("co"), None);
        assert_eq!(offered("c"), None);
    }

    #[test]
    fn exports_are_named_escaped_and_not_all_of_many() {
        assert_eq!(named(&[]), "the server lists no exports");
        let text = named(&["", "a b", "\u{1b}[31m"]);
        assert_eq!(
            text,
            "the server has these exports: the default one, without a name, 'a b', '\\u{1b}[31m'"
        );
        let many: Vec<_> = (0..20).map(|_| "x").collect();
        assert!(named(&many).ends_with("and 12 more"));
    }

    #[test]
    fn uris_in_other_dialects_are_translated() {
        let hint = |text: &str| {
            let error = text
                .parse::<crate::endpoint::Endpoint>()
                .expect_err("no endpoint");
            for_endpoint(&error).unwrap_or_default()
        };
        assert!(hint("nbd:localhost:10809").contains("nbd://HOST:PORT/EXPORT"));
        assert!(hint("nbd:///?socket=/s").contains("nbd+unix:///EXPORT?socket=PATH"));
        assert!(hint("nbd+unix:///disk").contains("in quotes"));
        assert!(hint("nbd+unix:///?sokcet=/s").contains("called 'socket'"));
        assert!(hint("https://host/disk.raw").contains("[ nbdkit curl https://host/disk.raw ]"));
        assert!(hint("ndb+unix:///?socket=/s").contains("nbd+unix://"));
        assert!(hint("gopher://x").contains("./gopher://x"));
    }
}
