//! What the chores need from the system: Debian's packages, found by the commands they provide.
//!
//! [`PACKAGES`] is the table of the tests, [`PACKAGING`] that of `dist --try`. Only what is missing is installed, and only where that is allowed: as
//! root, or with a `sudo` that asks for no password.

use std::{env, ffi::OsStr, fmt::Write as _, process::Command};

use anyhow::{Result, bail};

use crate::program;

/// One package, and why it is needed.
pub(crate) struct Package {
    /// Its name in Debian.
    name: &'static str,
    /// The commands that are run from it.
    commands: &'static [&'static str],
    /// What they are needed for.
    purpose: &'static str,
}

/// Everything the tests need beside Rust.
pub(crate) const PACKAGES: &[Package] = &[
    Package {
        name: "qemu-utils",
        commands: &["qemu-img", "qemu-io", "qemu-nbd"],
        purpose: "a peer: NBD server, image formats, comparison of images",
    },
    Package {
        name: "nbdkit",
        commands: &["nbdkit"],
        purpose: "a peer: NBD server with filters that break, delay and limit",
    },
    Package {
        name: "libnbd-bin",
        commands: &["nbdcopy", "nbddump", "nbdinfo"],
        purpose: "a peer: NBD clients whose options and output we match",
    },
    Package {
        name: "file",
        commands: &["file"],
        purpose: "what nbdinfo, theirs and ours, asks about the contents of an export",
    },
    Package {
        name: "e2fsprogs",
        commands: &["mkfs.ext4"],
        purpose: "sparse images with a real file system in them",
    },
    Package {
        name: "bzip2",
        commands: &["bzip2"],
        purpose: "compressed disks as others make them",
    },
    Package {
        name: "xz-utils",
        commands: &["xz"],
        purpose: "compressed disks as others make them",
    },
    Package {
        name: "zstd",
        commands: &["zstd"],
        purpose: "compressed disks as others make and read them",
    },
    Package {
        name: "socat",
        commands: &["socat"],
        purpose: "connections that are cut and streams from elsewhere",
    },
    Package {
        name: "haproxy",
        commands: &["haproxy"],
        purpose: "the relay that ours is measured against, and a server that takes the PROXY protocol",
    },
    Package {
        name: "openssl",
        commands: &["openssl"],
        purpose: "a client and a server of TLS, for the relay",
    },
    Package {
        name: "chromium",
        commands: &["chromium"],
        purpose: "opens the page that a copy writes about itself, without a screen",
    },
    Package {
        name: "python3-venv",
        commands: &["python3"],
        purpose: "an interpreter for the Python package, and environments for its tools",
    },
    Package {
        name: "strace",
        commands: &["strace"],
        purpose: "counting system calls, and making them fail",
    },
];

/// What it takes to make a Debian package and to try it.
pub(crate) const PACKAGING: &[Package] = &[
    Package {
        name: "dpkg-dev",
        commands: &["dpkg-shlibdeps"],
        purpose: "which packages have the libraries that the program needs",
    },
    Package {
        name: "lintian",
        commands: &["lintian"],
        purpose: "Debian's own opinion of the package",
    },
    Package {
        name: "man-db",
        commands: &["man"],
        purpose: "reading the manual as its users do",
    },
    Package {
        name: "systemd",
        commands: &["systemd-analyze", "systemd-socket-activate"],
        purpose: "checking the units, and starting the server by its socket",
    },
];

impl Package {
    fn is_present(&self, path: &OsStr) -> bool {
        self.commands.iter().all(|command| {
            env::split_paths(path).any(|directory| directory.join(command).is_file())
        })
    }
}

/// Installs what is missing. When that cannot be done, the error says what is missing and what to type.
pub(crate) fn require(packages: &[Package], install_missing: bool) -> Result<()> {
    let path = program::search_path();
    let missing = missing(packages, &path);
    if missing.is_empty() {
        return Ok(());
    }
    let reason = if !install_missing {
        "they were not to be installed".to_owned()
    } else {
        match Privilege::of_this_process() {
            None => "this user is not root, and sudo wants a password".into(),
            Some(privilege) => match install(&missing, privilege) {
                Ok(()) => String::from("they are still missing after the installation"),
                Err(error) => format!("{error:#}"),
            },
        }
    };
    let missing = self::missing(packages, &path);
    if missing.is_empty() {
        return Ok(());
    }
    bail!(explanation(&missing, &reason))
}

fn missing<'a>(packages: &'a [Package], path: &OsStr) -> Vec<&'a Package> {
    packages
        .iter()
        .filter(|package| !package.is_present(path))
        .collect()
}

fn explanation(missing: &[&Package], reason: &str) -> String {
    let mut text = format!("programs are missing ({reason}):\n");
    for package in missing {
        let commands = package.commands.join(", ");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {} ({commands}): {}", package.name, package.purpose);
    }
    let _ = write!(
        text,
        "install them with:\n  apt-get update && apt-get install --no-install-recommends {}",
        names(missing).join(" ")
    );
    text
}

fn names(packages: &[&Package]) -> Vec<&'static str> {
    packages.iter().map(|package| package.name).collect()
}

/// `program`, to be run as root; nothing where this process may not.
pub(crate) fn as_root(program: &str) -> Option<Command> {
    Some(Privilege::of_this_process()?.command(program))
}

/// How this process may install packages.
#[derive(Clone, Copy)]
enum Privilege {
    Root,
    Sudo,
}

impl Privilege {
    fn of_this_process() -> Option<Self> {
        let root = program::output(Command::new("id").arg("-u"))
            .is_ok_and(|user| user.trim_ascii() == b"0");
        if root {
            return Some(Self::Root);
        }
        program::succeeds(Command::new("sudo").args(["-n", "true"])).then_some(Self::Sudo)
    }

    fn command(self, program: &str) -> Command {
        match self {
            Self::Root => Command::new(program),
            Self::Sudo => {
                let mut sudo = Command::new("sudo");
                sudo.args(["-n", program]);
                sudo
            }
        }
    }

    fn apt_get(self, arguments: &[&str]) -> Command {
        // sudo clears the environment, so the variable is set on its far side.
        let mut command = self.command("env");
        command
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"])
            // Another process may hold the lock for a moment, at the start of a machine above all.
            .args(["-o", "DPkg::Lock::Timeout=120"])
            .args(arguments);
        command
    }
}

fn install(missing: &[&Package], privilege: Privilege) -> Result<()> {
    // A source that cannot be reached need not be the one that has them.
    if let Err(error) = program::run(&mut privilege.apt_get(&["update"])) {
        eprintln!("xtask: {error:#}; the package lists may be old");
    }
    let mut command = privilege.apt_get(&["install", "-y", "--no-install-recommends"]);
    program::run(command.args(names(missing)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const TWO: &[Package] = &[
        Package {
            name: "pair",
            commands: &["left", "right"],
            purpose: "both hands",
        },
        Package {
            name: "single",
            commands: &["only"],
            purpose: "one thing",
        },
    ];

    #[test]
    fn a_package_is_present_only_with_all_its_commands() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().as_os_str();
        fs::write(directory.path().join("left"), "").unwrap();
        fs::write(directory.path().join("only"), "").unwrap();
        assert_eq!(names(&missing(TWO, path)), ["pair"]);
        fs::write(directory.path().join("right"), "").unwrap();
        assert!(missing(TWO, path).is_empty());
    }

    #[test]
    fn commands_may_lie_in_different_directories_of_the_path() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(one.path().join("left"), "").unwrap();
        fs::write(two.path().join("right"), "").unwrap();
        let path = env::join_paths([one.path(), two.path()]).unwrap();
        assert_eq!(names(&missing(TWO, &path)), ["single"]);
    }

    #[test]
    fn the_explanation_names_the_packages_their_commands_and_what_to_type() {
        let text = explanation(&[&TWO[0], &TWO[1]], "there is no network");
        assert!(text.contains("pair (left, right): both hands"));
        assert!(text.contains("there is no network"));
        assert!(text.ends_with("apt-get install --no-install-recommends pair single"));
    }

    #[test]
    fn no_command_is_listed_twice() {
        let mut commands: Vec<_> = PACKAGES.iter().flat_map(|p| p.commands).collect();
        let count = commands.len();
        commands.sort();
        commands.dedup();
        assert_eq!(commands.len(), count);
    }
}
