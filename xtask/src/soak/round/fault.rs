//! What comes over a copy, and how it may end then.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::Result;
use rustix::process::Signal;

use super::{
    super::{
        process::{Running, World},
        random::Random,
        server::{Server, Trouble},
    },
    Destination, Side, Source,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The copy is killed, again and again.
    Kill,
    /// It is asked to end.
    Interrupt,
    /// It is stopped for a while.
    Pause,
    /// A server is stopped for a while.
    PauseServer(Side),
    /// A server is killed and comes back.
    Restart(Side),
    /// The network cuts connections.
    Cut(Side),
    /// The network lets connections hang.
    Stall(Side),
    /// The file system of the destination is too small.
    FullDisk,
    /// Files may not become as long as the image.
    FileLimit,
    /// There are few descriptors.
    FewDescriptors,
    /// Some reads of the source fail.
    ReadErrors,
}

impl Fault {
    pub(super) fn choose(random: &mut Random, source: Source, destination: Destination) -> Self {
        if matches!(source, Source::Served(_, _, Trouble::Errors)) {
            return Self::ReadErrors;
        }
        let mut faults = vec![Self::None, Self::Pause];
        if matches!(source, Source::Served(..)) {
            let side = Side::Source;
            faults.extend([
                Self::PauseServer(side),
                Self::Restart(side),
                Self::Restart(side),
            ]);
            faults.extend([Self::Cut(side), Self::Stall(side)]);
        }
        if matches!(destination, Destination::Served(..)) {
            let side = Side::Destination;
            faults.extend([
                Self::PauseServer(side),
                Self::Restart(side),
                Self::Restart(side),
            ]);
            faults.extend([Self::Cut(side), Self::Stall(side)]);
        }
        // What was cut short on its way through a pipe is an image to its reader.
        if destination != Destination::Pipe {
            faults.extend([
                Self::Kill,
                Self::Kill,
                Self::Interrupt,
                Self::FewDescriptors,
            ]);
        }
        if matches!(
            destination,
            Destination::NewFile | Destination::OldFile | Destination::NewQcow2 { .. }
        ) {
            faults.push(Self::FileLimit);
        }
        // Who has something there already has no room to give.
        if matches!(
            destination,
            Destination::NewFile | Destination::NewQcow2 { .. }
        ) {
            faults.push(Self::FullDisk);
        }
        *random.pick(&faults)
    }

    /// How often the copy is tried while it lasts.
    pub(super) fn attempts(self, random: &mut Random) -> u64 {
        match self {
            Self::Kill | Self::Interrupt => 1 + random.below(4),
            Self::FullDisk | Self::FileLimit => 1,
            _ => 1 + random.below(2),
        }
    }

    /// Whether a copy that is begun again has something to go on from.
    pub(super) fn ends_the_copy(self) -> bool {
        !matches!(self, Self::None | Self::Pause | Self::PauseServer(_))
    }

    /// Whether somebody has no time to clean up.
    pub(super) fn kills(self) -> bool {
        matches!(self, Self::Kill | Self::Restart(_))
    }

    pub(super) fn kills_the_destination(self) -> bool {
        self == Self::Restart(Side::Destination)
    }

    /// Bytes a second, where the copy has to last until something happens.
    pub(super) fn rate(self, size: u64) -> Option<u64> {
        match self {
            Self::Kill
            | Self::Interrupt
            | Self::Pause
            | Self::PauseServer(_)
            | Self::Restart(_) => Some((size / 2).clamp(4 << 20, 24 << 20)),
            _ => None,
        }
    }

    pub(super) fn options(self) -> Vec<String> {
        match self {
            Self::Stall(_) => vec!["--timeout=2".into(), "--retries=30".into()],
            Self::Cut(_) | Self::Restart(_) => vec!["--retries=30".into()],
            _ => Vec::new(),
        }
    }

    /// The program, with what limits it.
    pub(super) fn limited(self, world: &World) -> Command {
        let limit = match self {
            Self::FileLimit => "--fsize=700000",
            Self::FewDescriptors => "--nofile=24",
            _ => return world.ours(),
        };
        let mut command = world.command("prlimit");
        command.arg(limit).arg("--").arg(&world.program);
        command
    }

    /// Lets it happen to `copy`.
    pub(super) fn happen(
        self,
        random: &mut Random,
        world: &World,
        copy: &mut Running,
        servers: &mut [(Side, Server)],
    ) -> Result<()> {
        let mut moment =
            |least: u64, most: u64| Duration::from_millis(least + random.below(most - least));
        match self {
            Self::Kill => {
                copy.run_for(moment(1, 1500));
                copy.signal(Signal::KILL);
            }
            Self::Interrupt => {
                copy.run_for(moment(1, 1500));
                let terminates = moment(0, 2) == Duration::ZERO;
                copy.signal(if terminates {
                    Signal::TERM
                } else {
                    Signal::INT
                });
            }
            Self::Pause => {
                for _ in 0..2 {
                    copy.run_for(moment(1, 600));
                    copy.signal(Signal::STOP);
                    thread::sleep(moment(1, 700));
                    copy.signal(Signal::CONT);
                }
            }
            Self::PauseServer(at) => {
                for (_, server) in servers.iter().filter(|(side, _)| *side == at) {
                    for _ in 0..2 {
                        copy.run_for(moment(1, 600));
                        server.signal(Signal::STOP);
                        thread::sleep(moment(1, 900));
                        server.signal(Signal::CONT);
                    }
                }
            }
            Self::Restart(at) => {
                for (_, server) in servers.iter_mut().filter(|(side, _)| *side == at) {
                    for _ in 0..3 {
                        copy.run_for(moment(50, 800));
                        if !copy.is_running() {
                            break;
                        }
                        server.kill();
                        thread::sleep(moment(1, 300));
                        server.begin(world)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a copy may end with `code`, having told `stderr`.
    pub(super) fn allows(self, code: i32, stderr: &str) -> bool {
        if code == 0 {
            return true;
        }
        let tells = |words: &[&str]| {
            let stderr = stderr.to_lowercase();
            stderr.contains("blockferry: ") && words.iter().any(|word| stderr.contains(word))
        };
        match self {
            Self::None | Self::Pause | Self::PauseServer(_) => false,
            Self::Kill => code == 137,
            Self::Interrupt => [130, 143].contains(&code),
            Self::Restart(_) | Self::Cut(_) | Self::Stall(_) => match code {
                75 => tells(&[
                    "connection",
                    "closed",
                    "timed out",
                    "again",
                    "silent",
                    "answer",
                ]),
                // Only where there was no connection yet.
                1 => tells(&[
                    "open: no such file",
                    "open: refused",
                    "open: connection refused",
                ]),
                _ => false,
            },
            Self::FullDisk => code == 1 && tells(&["space"]),
            Self::FileLimit => code == 1 && tells(&["too large", "ulimit -f"]),
            Self::FewDescriptors => code != 2 && tells(&["too many open files", "descriptors"]),
            Self::ReadErrors => code == 1 && tells(&["input/output error", "says eio"]),
        }
    }
}

/// A file system that is soon full, at a directory.
pub(super) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Where it is the fault, and where something may be mounted.
    pub(super) fn mount(fault: Fault, world: &World, at: &Path) -> Option<Self> {
        let place = at.display().to_string();
        let mount = ["-t", "tmpfs", "-o", "size=700k", "tmpfs", &place];
        (fault == Fault::FullDisk && world.tool("mount", &mount).is_ok())
            .then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
