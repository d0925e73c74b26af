//! Servers that a round starts, kills and starts again, ours and others'.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustix::process::Signal;

use super::process::{Running, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    Qemu,
    Nbdkit,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Ours, Self::Qemu, Self::Nbdkit];
}

/// What is wrong with a server, until it is healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    /// Some of its reads fail.
    Errors,
    /// It is far away.
    Delay,
}

/// What is served, and by whom.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) kind: Kind,
    pub(crate) image: PathBuf,
    pub(crate) format: &'static str,
    pub(crate) read_only: bool,
    pub(crate) trouble: Trouble,
}

impl Spec {
    /// The server's command line without its program, and without a place to listen at.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let image = self.image.display().to_string();
        let above = self
            .image
            .parent()
            .unwrap_or(Path::new("/"))
            .display()
            .to_string();
        let mut words: Vec<String> = Vec::new();
        let mut add = |some: &[&str]| words.extend(some.iter().map(|word| (*word).to_owned()));
        match self.kind {
            Kind::Ours => {
                add(&["serve", &image, "-f", self.format]);
                if self.format != "raw" {
                    add(&["--allow-backing", &above]);
                }
                if self.read_only {
                    add(&["--read-only"]);
                }
                match self.trouble {
                    Trouble::None => {}
                    Trouble::Errors => add(&["--filter", "error:EIO,rate=4%,on=read"]),
                    Trouble::Delay => add(&["--filter", "delay:4ms"]),
                }
            }
            Kind::Qemu => {
                add(&["-t", "-e0", "-f", self.format]);
                if self.read_only {
                    add(&["-r"]);
                }
                add(&[&image]);
            }
            Kind::Nbdkit => {
                add(&["-f"]);
                if self.read_only {
                    add(&["-r"]);
                }
                let file = format!("file={image}");
                match self.trouble {
                    Trouble::None => add(&["file", &file]),
                    Trouble::Errors => {
                        add(&[
                            "--filter=error",
                            "file",
                            &file,
                            "error-pread=EIO",
                            "error-pread-rate=4%",
                        ]);
                    }
                    Trouble::Delay => {
                        add(&["--filter=delay", "file", &file, "rdelay=4ms", "wdelay=4ms"]);
                    }
                }
            }
        }
        words
    }

    pub(crate) fn program(&self, world: &World) -> PathBuf {
        match self.kind {
            Kind::Ours => world.program.clone(),
            Kind::Qemu => "qemu-nbd".into(),
            Kind::Nbdkit => "nbdkit".into(),
        }
    }

    fn command(&self, world: &World, socket: &Path) -> Command {
        let mut command = world.command(self.program(world));
        command.stdout(Stdio::null());
        let place = match self.kind {
            Kind::Ours => "--unix",
            Kind::Qemu => "-k",
            Kind::Nbdkit => "-U",
        };
        // nbdkit takes what follows its plugin for the plugin's.
        if self.kind == Kind::Nbdkit {
            command.arg(place).arg(socket).args(self.arguments());
        } else {
            command.args(self.arguments()).arg(place).arg(socket);
        }
        command
    }
}

/// A server on a unix socket of its own.
pub(crate) struct Server {
    pub(crate) spec: Spec,
    pub(crate) socket: PathBuf,
    log: PathBuf,
    running: Option<Running>,
}

impl Server {
    pub(crate) fn start(world: &World, spec: Spec, socket: PathBuf, log: PathBuf) -> Result<Self> {
        let mut server = Self {
            spec,
            socket,
            log,
            running: None,
        };
        server.begin(world)?;
        Ok(server)
    }

    pub(crate) fn uri(&self) -> String {
        uri("", &self.socket)
    }

    /// Starts it, again if it was killed.
    pub(crate) fn begin(&mut self, world: &World) -> Result<()> {
        let mut command = self.spec.command(world, &self.socket);
        let mut running = Running::start(world, &mut command, &self.log)?;
        wait_for_socket(&mut running, &self.socket)?;
        self.running = Some(running);
        Ok(())
    }

    /// Starts it again if it ended although nobody told it to, and says so.
    pub(crate) fn revive(&mut self, world: &World) -> Result<Option<String>> {
        let runs = |running: &mut Running| running.is_running();
        if self.running.as_mut().is_none_or(runs) {
            return Ok(None);
        }
        let ended = self.running.take().map(Running::finish);
        let _ = fs::remove_file(&self.socket);
        self.begin(world)?;
        Ok(ended.map(|it| {
            format!(
                "{} ended with {} by itself: {}",
                it.shown, it.code, it.stderr
            )
        }))
    }

    /// Kills it without a warning; its socket stays behind, as nobody is left to remove it.
    pub(crate) fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill();
            let _ = fs::remove_file(&self.socket);
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(running) = &self.running {
            running.signal(signal);
        }
    }

    /// Ends it, and says what was wrong with how it ended.
    pub(crate) fn end(&mut self) -> Vec<String> {
        let Some(running) = self.running.take() else {
            return Vec::new();
        };
        let ending = running.terminate();
        let mut problems = Vec::new();
        if self.spec.kind == Kind::Ours {
            if ending.code != 0 {
                problems.push(format!(
                    "{} ended with {}: {}",
                    ending.shown, ending.code, ending.stderr
                ));
            }
            if let Some(place) = ending.hung {
                problems.push(format!(
                    "{} did not end when it was told to:\n{place}",
                    ending.shown
                ));
            }
            if ending.stderr.contains("panicked") {
                problems.push(format!("{} panicked: {}", ending.shown, ending.stderr));
            }
            if self.socket.exists() {
                problems.push(format!("{} left its socket behind", ending.shown));
            }
        }
        let _ = fs::remove_file(&self.socket);
        problems
    }

    pub(crate) fn shown(&self) -> String {
        self.running
            .as_ref()
            .map(|it| it.shown().to_owned())
            .unwrap_or_default()
    }
}

/// An export of a server on a unix socket.
pub(crate) fn uri(export: &str, socket: &Path) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

/// Waits until somebody listens at `socket`.
pub(crate) fn wait_for_socket(running: &mut Running, socket: &Path) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while UnixStream::connect(socket).is_err() {
        if !running.is_running() {
            bail!("{} has ended: {}", running.shown(), running.told());
        }
        if Instant::now() > end {
            bail!("{} does not listen", running.shown());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
