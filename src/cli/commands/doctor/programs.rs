//! The programs that ours works with, and under which of their names ours is installed itself.

use std::{
    env, fs,
    io::{self, Read},
    os::unix::{fs::MetadataExt, fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use blockferry_sys as sys;

use crate::{block::printable, compat::Tool};

use super::finding::{Finding, Group, State};

/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(5);

/// More than this is not read of what it says, in bytes.
const MOST_WORDS: usize = 4096;

/// A program that somebody else made.
struct Peer {
    name: &'static str,
    /// What makes it say its version.
    version: &'static str,
    there: &'static str,
    not_there: &'static str,
}

const STANDS_IN: &str = "not needed: blockferry does the same";

const PEERS: &[Peer] = &[
    Peer {
        name: "qemu-img",
        version: "--version",
        there: "",
        not_there: STANDS_IN,
    },
    Peer {
        name: "qemu-nbd",
        version: "--version",
        there: "'[ qemu-nbd -f qcow2 FILE ]' starts it for a command",
        not_there: STANDS_IN,
    },
    Peer {
        name: "nbdkit",
        version: "--version",
        there: "'[ nbdkit PLUGIN ... ]' starts it for a command",
        not_there: "'blockferry sources' and 'blockferry filters' list what stands for its plugins",
    },
    Peer {
        name: "nbdcopy",
        version: "--version",
        there: "",
        not_there: STANDS_IN,
    },
    Peer {
        name: "nbdinfo",
        version: "--version",
        there: "",
        not_there: STANDS_IN,
    },
    Peer {
        name: "nbddump",
        version: "--version",
        there: "",
        not_there: STANDS_IN,
    },
    Peer {
        name: "nbd-client",
        version: "--version",
        there: "attaches an export to /dev/nbdN",
        not_there: "attaches an export to /dev/nbdN: only needed for that",
    },
    Peer {
        name: "ssh",
        version: "-V",
        there: "'ssh -L' forwards a port or a socket of another machine, for nbd:// and nbd+unix://",
        not_there: "other machines are reached by nbd:// and nbds:// alone",
    },
];

/// The programs of others in `directories`, with their versions.
pub(super) fn peers(directories: &[PathBuf], own: Option<&Path>) -> Group {
    let look = |peer: &'static Peer| move || peer_in(peer, directories, own);
    // They are asked at once: some take their time.
    let found = thread::scope(|scope| {
        let asked: Vec<_> = PEERS.iter().map(|peer| scope.spawn(look(peer))).collect();
        let answers = asked.into_iter().zip(PEERS).map(|(asked, peer)| {
            let unknown = |_| Finding::new(peer.name, State::Unknown);
            asked.join().unwrap_or_else(unknown)
        });
        answers.collect()
    });
    Group(found)
}

fn peer_in(peer: &Peer, directories: &[PathBuf], own: Option<&Path>) -> Finding {
    let is_other = |path: &PathBuf| own.is_none_or(|own| !is_same_file(path, own));
    let Some(path) = all(peer.name, directories).find(is_other) else {
        return Finding::new(peer.name, State::No).meaning(peer.not_there);
    };
    let path = printable(path.as_os_str());
    let found = Finding::new(peer.name, State::Yes).meaning(peer.there);
    match version(Path::new(&path), peer.version) {
        Ok(Some(version)) => found.value(&*version, format!("{version} ({path})")),
        Ok(None) => found.shown(path),
        Err(error) => {
            let why = crate::system::words(&error);
            Finding::new(peer.name, State::Unknown)
                .shown(path)
                .meaning(format!("it does not tell its version: {why}"))
        }
    }
}

/// The names of other tools under which this program is found in `directories`.
pub(super) fn drop_ins(directories: &[PathBuf], own: Option<&Path>) -> Group {
    let findings = Tool::ALL.iter().map(|tool| {
        let name = tool.name();
        let mut found = all(name, directories);
        let Some(own) = own else {
            return Finding::new(name, State::Unknown)
                .meaning("this program does not know its own place");
        };
        let Some(first) = found.next() else {
            return absent(name);
        };
        let shown = printable(first.as_os_str());
        if is_same_file(&first, own) {
            return Finding::new(name, State::Yes).value(&*shown, shown.clone());
        }
        match found.find(|path| is_same_file(path, own)) {
            Some(ours) => {
                let ours = printable(ours.as_os_str());
                Finding::new(name, State::Limited)
                    .value(&*ours, ours.clone())
                    .meaning(format!("{shown} comes before it in PATH"))
            }
            None => absent(name),
        }
    });
    Group(findings.collect())
}

fn absent(name: &str) -> Finding {
    let meaning = format!("a link of that name to this program takes the command line of {name}");
    Finding::new(name, State::No).meaning(meaning)
}

/// The directories that programs are looked for in.
pub(super) fn search_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // An empty entry is the current directory to a shell; here nothing is run that happens to lie there.
    let directories = env::split_paths(&path).filter(|directory| directory.is_absolute());
    directories.collect()
}

/// The programs of that name, the one that is run first.
fn all(name: &str, directories: &[PathBuf]) -> impl Iterator<Item = PathBuf> {
    let paths = directories
        .iter()
        .map(move |directory| directory.join(name));
    paths.filter(|path| {
        let metadata = fs::metadata(path);
        metadata.is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    })
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|it| (it.dev(), it.ino()));
    match (identity(one), identity(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// The version that a program tells: the first word in what it prints that is one.
fn version(program: &Path, option: &str) -> io::Result<Option<String>> {
    let (mut output, writer) = io::pipe()?;
    // Nobody ever writes here: the wait has no other end than the child's, and the time's.
    let (never, _keep) = io::pipe()?;
    let mut command = Command::new(program);
    command
        .arg(option)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    let mut child = command.spawn()?;
    // It has the writing ends: without it the output has an end.
    drop(command);
    let waited = sys::await_exit(&child, std::os::fd::AsFd::as_fd(&never), PATIENCE);
    // What it may have started has nothing to say either.
    let _ = sys::kill_group(&child);
    child.wait()?;
    if !matches!(waited?, sys::Waited::Exited) {
        let message = format!("no answer in {} seconds", PATIENCE.as_secs());
        return Err(io::Error::new(io::ErrorKind::TimedOut, message));
    }
    sys::socket::set_nonblocking(std::os::fd::AsFd::as_fd(&output), true)?;
    let mut bytes = vec![0; MOST_WORDS];
    let length = match output.read(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        read => read?,
    };
    Ok(version_in(&String::from_utf8_lossy(&bytes[..length])))
}

/// The first word that holds a digit, a point and another digit: `9.2.1`, `OpenSSH_9.7p1`.
fn version_in(text: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || ",()".contains(c));
    let is_version = |word: &&str| {
        let point = word.find('.').filter(|at| *at > 0);
        point.is_some_and(|at| {
            let digit = |at: usize| word.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
            digit(at - 1) && digit(at + 1)
        })
    };
    let word = words.filter(|word| word.len() <= 40).find(is_version)?;
    Some(printable(word.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(directory: &Path, name: &str, script: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        path
    }

    #[test]
    fn a_version_is_found_among_words() {
        let found = |text| version_in(text);
        let qemu = "qemu-img version 9.2.1 (Debian 1:9.2.1)\nCopyright (c) 2003-2024";
        assert_eq!(found(qemu).as_deref(), Some("9.2.1"));
        assert_eq!(found("nbdkit 1.42.2 (x)").as_deref(), Some("1.42.2"));
        let ssh = "OpenSSH_9.7p1 Debian-2, OpenSSL 3.2.1";
        assert_eq!(found(ssh).as_deref(), Some("OpenSSH_9.7p1"));
        assert_eq!(found("no version. here ... .5"), None);
        let hostile = found("\u{1b}[31m1.2").expect("a version");
        assert!(!hostile.contains('\u{1b}'), "{hostile}");
    }

    #[test]
    fn what_a_program_says_is_read_and_no_more() {
        let place = tempfile::tempdir().expect("a directory");
        let talkative = program(
            place.path(),
            "talkative",
            "echo 'it 1.2.3'; yes | head -c 1000",
        );
        let told = version(&talkative, "--version").expect("an answer");
        assert_eq!(told.as_deref(), Some("1.2.3"));
        let silent = program(place.path(), "silent", "exit 3");
        assert_eq!(version(&silent, "--version").expect("an answer"), None);
        version(&place.path().join("none"), "--version").expect_err("not there");
    }

    #[test]
    fn ours_is_told_from_another_of_the_same_name() {
        let place = tempfile::tempdir().expect("a directory");
        let [first, second] = ["first", "second"].map(|name| place.path().join(name));
        for directory in [&first, &second] {
            fs::create_dir(directory).expect("made");
        }
        let own = program(place.path(), "blockferry", "");
        program(&first, "nbdcopy", "echo nbdcopy 1.2.3");
        for name in ["nbdcopy", "nbdinfo"] {
            std::os::unix::fs::symlink(&own, second.join(name)).expect("linked");
        }
        let directories = [first, second];
        let Group(found) = drop_ins(&directories, Some(&own));
        let state = |name: &str| found.iter().find(|it| it.name == name).map(|it| it.state);
        assert_eq!(state("nbdcopy"), Some(State::Limited));
        assert_eq!(state("nbdinfo"), Some(State::Yes));
        assert_eq!(state("nbdkit"), Some(State::No));
        let Group(found) = peers(&directories, Some(&own));
        let of = |name: &str| found.iter().find(|it| it.name == name).expect("a peer");
        assert_eq!(of("nbdcopy").value, Some("1.2.3".into()));
        // Found, but it is this program.
        assert_eq!(of("nbdinfo").state, State::No);
    }
}
