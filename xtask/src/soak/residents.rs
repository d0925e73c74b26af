//! The processes that live through all rounds: a server, a server in front of it, and a relay. What they use is
//! noted after each round.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    images::{Form, Image},
    process::{Running, World},
    server::{uri, wait_for_socket},
    watch::{History, Usage},
};

/// Which of them a copy goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resident {
    Server,
    Proxy,
    Relay,
}

impl Resident {
    pub(crate) const ALL: [Self; 3] = [Self::Server, Self::Proxy, Self::Relay];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Proxy => "proxy",
            Self::Relay => "relay",
        }
    }
}

pub(crate) struct Residents {
    directory: PathBuf,
    living: Vec<(Running, History)>,
}

/// How long a process may take to close what its clients left.
const CALM: Duration = Duration::from_secs(5);

impl Residents {
    /// Starts them: exports for each image in some forms to read, and a raw and a qcow2 image of its size to write.
    pub(crate) fn start(world: &World, images: &[Image]) -> Result<Self> {
        let directory = world.directory.join("long");
        fs::create_dir_all(&directory)?;
        let mut serve = vec!["serve".to_owned(), "--exit-with-parent".to_owned()];
        let mut proxy = vec!["serve".to_owned(), "--exit-with-parent".to_owned()];
        let main = directory.join("server.sock");
        for image in images {
            for form in [Form::Raw, Form::Qcow2, Form::Zstd] {
                let name = export(image, form);
                // Served to be written, an image is locked against everybody else's server.
                let own = match form {
                    Form::Raw => image.raw(),
                    _ => directory.join(&name),
                };
                if form != Form::Raw {
                    fs::copy(image.file(form), &own)?;
                }
                serve.push("-e".into());
                serve.push(format!("{name}={}", own.display()));
            }
            for (name, file, format) in [
                (
                    sink(image, Form::Raw),
                    directory.join(sink(image, Form::Raw)),
                    "raw",
                ),
                (
                    sink(image, Form::Qcow2),
                    directory.join(sink(image, Form::Qcow2)),
                    "qcow2",
                ),
            ] {
                let (path, size) = (file.display().to_string(), image.size.to_string());
                match format {
                    "raw" => File::create(&file)?.set_len(image.size)?,
                    _ => world.tool("qemu-img", &["create", "-f", format, &path, &size])?,
                }
                serve.push("-e".into());
                serve.push(format!("{name}={path}"));
            }
            for name in [export(image, Form::Raw), sink(image, Form::Raw)] {
                proxy.push("-e".into());
                proxy.push(format!("{name}={}", uri(&name, &main)));
            }
        }
        let listen = |name: &str| directory.join(format!("{name}.sock")).display().to_string();
        serve.extend(["--unix".into(), listen("server")]);
        proxy.extend(["-C".into(), "2".into(), "--unix".into(), listen("proxy")]);
        let relay = [
            "relay".into(),
            format!("unix:{}", listen("relay")),
            format!("unix:{}", main.display()),
        ];
        let mut living = Vec::new();
        for (resident, arguments) in Resident::ALL
            .into_iter()
            .zip([serve, proxy, relay.to_vec()])
        {
            let name = resident.name();
            let mut command = world.ours();
            command.args(arguments).stdout(Stdio::null());
            let log = directory.join(format!("{name}.log"));
            let mut running = Running::start(world, &mut command, &log)?;
            wait_for_socket(&mut running, &directory.join(format!("{name}.sock")))?;
            living.push((running, History::new(name)));
        }
        Ok(Self { directory, living })
    }

    pub(crate) fn uri(&self, resident: Resident, export: &str) -> String {
        uri(
            export,
            &self.directory.join(format!("{}.sock", resident.name())),
        )
    }

    /// The file behind an export that is written.
    pub(crate) fn file(&self, sink: &str) -> PathBuf {
        self.directory.join(sink)
    }

    pub(crate) fn ids(&self) -> Vec<u32> {
        self.living
            .iter()
            .map(|(running, _)| running.id())
            .collect()
    }

    /// Notes what they use, once they have become calm. An error says that one has ended.
    pub(crate) fn note(&mut self) -> Result<()> {
        for (running, history) in &mut self.living {
            ensure!(
                running.is_running(),
                "the {} has ended: {}",
                history.name,
                running.told()
            );
            // Calm is the least of descriptors that it had between rounds.
            let calm = history.calm();
            let end = Instant::now() + CALM;
            let usage = loop {
                let usage = Usage::of(running.id()).unwrap_or_default();
                if usage.descriptors <= calm || Instant::now() > end {
                    break usage;
                }
                thread::sleep(Duration::from_millis(20));
            };
            history.note(usage);
        }
        Ok(())
    }

    pub(crate) fn histories(&self) -> impl Iterator<Item = &History> {
        self.living.iter().map(|(_, history)| history)
    }

    /// Ends them, the last one first, and says what was wrong with how they ended.
    pub(crate) fn end(&mut self, world: &World, images: &[Image]) -> Vec<String> {
        let mut problems = Vec::new();
        for (running, history) in self.living.drain(..).rev() {
            let ending = running.terminate();
            if ending.code != 0 || ending.hung.is_some() || ending.stderr.contains("panicked") {
                let place = ending.hung.unwrap_or_default();
                problems.push(format!(
                    "the {} ended with {}: {}\n{place}",
                    history.name, ending.code, ending.stderr
                ));
            }
            if self
                .directory
                .join(format!("{}.sock", history.name))
                .exists()
            {
                problems.push(format!("the {} left its socket behind", history.name));
            }
        }
        for image in images {
            let file = self
                .directory
                .join(sink(image, Form::Qcow2))
                .display()
                .to_string();
            if let Err(error) = world.tool("qemu-img", &["check", "-f", "qcow2", &file]) {
                problems.push(format!("{error:#}"));
            }
        }
        problems
    }
}

/// The name of the export that reads `image`.
pub(crate) fn export(image: &Image, form: Form) -> String {
    format!(
        "{}-{}",
        image.name,
        match form {
            Form::Raw => "raw",
            Form::Zstd => "zstd",
            _ => "qcow2",
        }
    )
}

/// The name of the export of the size of `image` that is written.
pub(crate) fn sink(image: &Image, form: Form) -> String {
    format!("sink-{}.{}", image.name, form.format())
}
