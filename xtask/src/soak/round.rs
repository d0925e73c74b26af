//! One round: what is chosen, and what is done. Whether it was right is in `judgement`.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Result, ensure};

use super::{
    cutter::{Cutter, Fate},
    images::{Form, Image},
    process::{Ending, World},
    random::Random,
    report::RoundReport,
    residents::{Residents, export, sink},
    server::{Kind, Server, Spec, Trouble, uri},
    watch::Usage,
};

mod choices;
mod fault;
mod judgement;

use choices::{Destination, Source, random_half};
use fault::Fault;

/// One round of a soak, chosen and not begun.
pub(crate) struct Round<'a> {
    world: &'a World,
    residents: &'a Residents,
    image: &'a Image,
    random: Random,
    number: u64,
    source: Source,
    destination: Destination,
    fault: Fault,
    directory: PathBuf,
}

/// What is in the air while a round runs.
#[derive(Default)]
struct Stage {
    servers: Vec<(Side, Server)>,
    cutters: Vec<Cutter>,
    story: Vec<String>,
    codes: Vec<i32>,
    peak: Usage,
    /// Somebody else's server ended by itself during the last attempt.
    lost_a_server: bool,
    problems: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

impl<'a> Round<'a> {
    pub(crate) fn choose(
        world: &'a World,
        images: &'a [Image],
        residents: &'a Residents,
        seed: u64,
        number: u64,
    ) -> Self {
        let mut random = Random::of_round(seed, number);
        let image = random.pick(images);
        let source = Source::choose(&mut random, image);
        let destination = Destination::choose(&mut random, image);
        let fault = Fault::choose(&mut random, source, destination);
        Self {
            world,
            residents,
            image,
            random,
            number,
            source,
            destination,
            fault,
            directory: world.directory.join("round"),
        }
    }

    /// Runs it. Where something was wrong, what is left of it is kept in `artefacts`.
    pub(crate) fn run(mut self, artefacts: &Path) -> RoundReport {
        let started = Instant::now();
        let mut stage = Stage::default();
        let told = format!(
            "round {}: {} from {:?} to {:?}, {:?}",
            self.number, self.image.name, self.source, self.destination, self.fault
        );
        stage.story.push(told.clone());
        if let Err(error) = self.go(&mut stage) {
            stage.problems.push(format!("{error:#}"));
        }
        for (_, mut server) in stage.servers.drain(..) {
            stage.problems.extend(server.end());
        }
        stage.cutters.clear();
        self.look_for_what_is_left(&mut stage);
        if self.world.is_over() {
            // What was broken off proves nothing.
            stage.problems.clear();
        }
        if !stage.problems.is_empty() {
            stage.problems.insert(0, told);
            if let Err(error) = self.keep(&stage, artefacts) {
                stage
                    .problems
                    .push(format!("cannot keep what it left: {error:#}"));
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
        RoundReport {
            number: self.number,
            source: name(self.source),
            destination: name(self.destination),
            fault: name(self.fault),
            codes: stage.codes,
            peak: stage.peak,
            seconds: started.elapsed().as_secs_f64(),
            problems: stage.problems,
        }
    }

    fn go(&mut self, stage: &mut Stage) -> Result<()> {
        let _ = fs::remove_dir_all(&self.directory);
        for name in ["to", "logs"] {
            fs::create_dir_all(self.directory.join(name))?;
        }
        let mut disk = fault::SmallDisk::mount(self.fault, self.world, &self.target_directory());
        let source = self.source_words(stage)?;
        let destination = self.destination_words(stage)?;
        let mut options = self.options();
        options.extend(source.options);
        let copy = Copy {
            before: options,
            from: source.words,
            to: destination,
        };
        let faulty = match (self.fault, &disk) {
            // Nothing may be mounted here.
            (Fault::FullDisk, None) => Fault::FileLimit,
            (fault, _) => fault,
        };
        let mut done = false;
        for attempt in 0..faulty.attempts(&mut self.random) {
            let ending = self.attempt(stage, &copy, faulty, attempt)?;
            done = ending.code == 0;
            self.judge(stage, &ending, faulty);
            if !done {
                self.look_at_what_failed(stage, &copy);
            }
            if done || self.world.is_over() {
                break;
            }
        }
        if disk.take().is_some() {
            // What it noted went with the disk.
            let _ = fs::remove_file(self.checkpoint());
        }
        if !done && !self.world.is_over() {
            self.heal(stage)?;
            for attempt in 90..93 {
                let ending = self.attempt(stage, &copy, Fault::None, attempt)?;
                self.judge(stage, &ending, Fault::None);
                done = ending.code == 0;
                if done || !stage.lost_a_server {
                    break;
                }
            }
        }
        if done {
            self.compare(stage)?;
        }
        Ok(())
    }

    fn target_directory(&self) -> PathBuf {
        self.directory.join("to")
    }

    fn target(&self) -> PathBuf {
        let name = match self.destination {
            Destination::NewQcow2 { .. } | Destination::Served(_, Form::Qcow2) => "copy.qcow2",
            _ => "copy.raw",
        };
        self.target_directory().join(name)
    }

    fn checkpoint(&self) -> PathBuf {
        self.directory.join("checkpoint")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.join("logs").join(name)
    }

    /// The words of the source, after its server was started.
    fn source_words(&mut self, stage: &mut Stage) -> Result<Words> {
        let image = self.image;
        let beside = || vec!["--allow-backing".to_owned(), text(&parent(&image.raw()))];
        let words = match self.source {
            Source::Generated => match &image.generated {
                Some(generated) => Words::of(generated.clone()),
                None => Words::of(text(&image.raw())),
            },
            Source::File(form) => Words {
                words: vec![text(&image.file(form))],
                options: beside(),
            },
            Source::Input => Words::of("-".into()),
            Source::Served(kind, form, trouble) => {
                let spec = Spec {
                    kind,
                    image: image.file(form),
                    format: form.format(),
                    read_only: true,
                    trouble,
                };
                Words::of(self.serve(stage, Side::Source, spec)?)
            }
            Source::Child(kind, form) => {
                let spec = Spec {
                    kind,
                    image: image.file(form),
                    format: form.format(),
                    read_only: true,
                    trouble: Trouble::None,
                };
                let program = match kind {
                    Kind::Ours => None,
                    _ => Some(text(&spec.program(self.world))),
                };
                let mut words = vec!["[".to_owned()];
                words.extend(program);
                words.extend(spec.arguments());
                words.push("]".into());
                Words {
                    words,
                    options: Vec::new(),
                }
            }
            Source::Resident(resident, form) => {
                Words::of(self.residents.uri(resident, &export(image, form)))
            }
        };
        Ok(words)
    }

    fn destination_words(&mut self, stage: &mut Stage) -> Result<Vec<String>> {
        let target = self.target();
        let words = match self.destination {
            Destination::NewFile | Destination::NewQcow2 { .. } => text(&target),
            Destination::OldFile => {
                self.fill(&target)?;
                text(&target)
            }
            Destination::Served(kind, form) => {
                match form {
                    Form::Raw => self.fill(&target)?,
                    _ => {
                        let size = self.image.size.to_string();
                        self.world.tool(
                            "qemu-img",
                            &["create", "-f", "qcow2", &text(&target), &size],
                        )?;
                    }
                }
                let spec = Spec {
                    kind,
                    image: target,
                    format: form.format(),
                    read_only: false,
                    trouble: Trouble::None,
                };
                self.serve(stage, Side::Destination, spec)?
            }
            Destination::Resident(resident, form) => {
                self.residents.uri(resident, &sink(self.image, form))
            }
            Destination::Pipe => "-".into(),
        };
        Ok(vec![words])
    }

    /// Something that is not the image, of its size.
    fn fill(&mut self, path: &Path) -> Result<()> {
        let mut file = File::create(path)?;
        let pattern = self.random.bytes(1 << 20);
        let mut left = self.image.size;
        while left > 0 {
            let count = left.min(1 << 20);
            file.write_all(&pattern[..usize::try_from(count)?])?;
            left -= count;
        }
        Ok(())
    }

    /// Starts a server for one side, behind a bad network where that is the fault, and returns its URI.
    fn serve(&mut self, stage: &mut Stage, side: Side, spec: Spec) -> Result<String> {
        let name = match side {
            Side::Source => "source",
            Side::Destination => "destination",
        };
        let socket = self.directory.join(format!("{name}.sock"));
        let log = self.log(&format!("{name}.log"));
        let server = Server::start(self.world, spec, socket, log)?;
        stage.story.push(server.shown());
        let mut address = server.uri();
        let fate = match self.fault {
            Fault::Cut(at) if at == side => Some(Fate::Cut),
            Fault::Stall(at) if at == side => Some(Fate::Stall),
            _ => None,
        };
        if let Some(fate) = fate {
            let front = self.directory.join(format!("{name}-front.sock"));
            let random = Random::new(self.random.next());
            let most = self.image.size / 2;
            let cutter = Cutter::start(front, &server.socket, fate, most, random)?;
            address = uri("", &cutter.socket);
            stage.cutters.push(cutter);
        }
        stage.servers.push((side, server));
        Ok(address)
    }

    /// Options of the copy, of those that go with its two sides.
    fn options(&mut self) -> Vec<String> {
        let mut options: Vec<String> = Vec::new();
        let random = &mut self.random;
        let mut maybe = |chance: u64, name: &str, values: &[&str]| {
            if random.percent(chance) {
                let value = random.pick(values);
                options.push(match value.is_empty() {
                    true => name.to_owned(),
                    false => format!("{name}={value}"),
                });
            }
        };
        maybe(50, "--connections", &["1", "2", "3", "8", "16"]);
        maybe(30, "--requests", &["1", "2", "16", "64"]);
        maybe(30, "--request-size", &["4K", "64K", "512K", "1M", "4M"]);
        maybe(20, "--queue-size", &["4M", "8M", "64M"]);
        maybe(20, "--in-order", &[""]);
        maybe(25, "--sparse", &["0", "512", "64K", "1M"]);
        maybe(15, "--no-extents", &[""]);
        maybe(20, "--checksum", &["", "md5/4K", "sha1/1M"]);
        maybe(10, "--no-flush", &[""]);
        maybe(
            25,
            "--filter",
            &[
                "cow",
                "cache:size=4M",
                "readahead",
                "cacheextents",
                "noextents",
                "retry",
                "delay:read=1ms",
                "rate:400M",
                "blocksize:minimum=4K",
            ],
        );
        let is_pipe = matches!(self.destination, Destination::Pipe);
        let is_qcow2 = matches!(self.destination, Destination::NewQcow2 { .. });
        let is_stream = matches!(self.source, Source::Input) || is_pipe;
        if !is_pipe {
            maybe(15, "--verify", &[""]);
        }
        if !is_stream && !is_qcow2 {
            let chance = if self.fault.ends_the_copy() { 70 } else { 15 };
            let path = text(&self.directory.join("checkpoint"));
            maybe(chance, "--checkpoint", &[&path]);
            maybe(10, "--allocated", &[""]);
        }
        if is_qcow2 {
            options.extend(["-O".into(), "qcow2".into()]);
            if self.destination == (Destination::NewQcow2 { compressed: true }) {
                options.push("-c".into());
                if random_half(&mut self.random) {
                    options.extend(["-o".into(), "compression_type=zstd".into()]);
                }
            }
        }
        if self.source == Source::Input {
            options.extend(["-f".into(), "raw".into()]);
        }
        if let Some(rate) = self.fault.rate(self.image.size) {
            options.push(format!("--rate={rate}"));
        }
        options.extend(self.fault.options());
        options
    }

    /// Runs the copy once.
    fn attempt(
        &mut self,
        stage: &mut Stage,
        copy: &Copy,
        fault: Fault,
        attempt: u64,
    ) -> Result<Ending> {
        self.revive(stage)?;
        let mut command = fault.limited(self.world);
        copy.put_into(&mut command);
        if self.source == Source::Input {
            command.stdin(File::open(self.image.raw())?);
        }
        let reader = match self.destination {
            Destination::Pipe => {
                let (reads, writes) = std::io::pipe()?;
                command.stdout(writes);
                let mut second = self.world.ours();
                second
                    .args(["copy", "-f", "raw", "-"])
                    .arg(self.target())
                    .stdin(reads);
                Some(second)
            }
            _ => {
                command.stdout(Stdio::null());
                None
            }
        };
        let log = self.log(&format!("copy-{attempt}.log"));
        let mut running = super::process::Running::start(self.world, &mut command, &log)?;
        // The pipe's ends are in the commands.
        drop(command);
        stage.story.push(running.shown().to_owned());
        let reading = match reader {
            Some(mut second) => {
                let log = self.log(&format!("reader-{attempt}.log"));
                Some(super::process::Running::start(
                    self.world,
                    &mut second,
                    &log,
                )?)
            }
            None => None,
        };
        fault.happen(
            &mut self.random,
            self.world,
            &mut running,
            &mut stage.servers,
        )?;
        let ending = running.finish();
        stage.lost_a_server = self.revive(stage)?;
        stage.codes.push(ending.code);
        stage.peak = stage.peak.max(ending.peak);
        if let Some(reading) = reading {
            let read = reading.finish();
            stage.codes.push(read.code);
            if ending.code == 0 {
                self.judge(stage, &read, Fault::None);
            }
        }
        stage.story.push(format!(
            "ended with {} after {:.1} s: {}",
            ending.code, ending.seconds, ending.stderr
        ));
        Ok(ending)
    }

    /// Starts again what ended by itself. Others' servers may; ours must not.
    fn revive(&self, stage: &mut Stage) -> Result<bool> {
        let mut lost = false;
        for (_, server) in &mut stage.servers {
            if let Some(told) = server.revive(self.world)? {
                match server.spec.kind {
                    Kind::Ours => stage.problems.push(told),
                    _ => stage.story.push(told),
                }
                lost = true;
            }
        }
        Ok(lost)
    }

    /// Puts right what was wrong with the servers and the network.
    fn heal(&mut self, stage: &mut Stage) -> Result<()> {
        for (_, server) in &mut stage.servers {
            if server.spec.trouble == Trouble::Errors {
                server.kill();
                server.spec.trouble = Trouble::None;
                server.begin(self.world)?;
            }
        }
        Ok(())
    }

    /// Keeps what shows what was wrong.
    fn keep(&self, stage: &Stage, artefacts: &Path) -> Result<()> {
        fs::create_dir_all(artefacts)?;
        fs::write(artefacts.join("story.txt"), stage.story.join("\n"))?;
        fs::write(artefacts.join("problems.txt"), stage.problems.join("\n\n"))?;
        let to = text(artefacts);
        for name in ["logs", "to", "checkpoint"] {
            let from = self.directory.join(name);
            if from.exists() {
                self.world
                    .tool("cp", &["-r", "--sparse=always", &text(&from), &to])?;
            }
        }
        ensure!(artefacts.exists(), "nothing was kept");
        Ok(())
    }
}

/// A side's words on the command line, and the options that go with them.
struct Words {
    words: Vec<String>,
    options: Vec<String>,
}

impl Words {
    fn of(word: String) -> Self {
        Self {
            words: vec![word],
            options: Vec::new(),
        }
    }
}

/// The command line of a copy.
struct Copy {
    before: Vec<String>,
    from: Vec<String>,
    to: Vec<String>,
}

impl Copy {
    fn put_into(&self, command: &mut Command) {
        command
            .arg("copy")
            .args(&self.before)
            .args(&self.from)
            .args(&self.to);
    }

    fn shown(&self) -> String {
        [&self.before[..], &self.from, &self.to].concat().join(" ")
    }
}

/// The name of a choice, without its details: `Served(Ours, Raw, None)` is `Served Ours`.
fn name(choice: impl std::fmt::Debug) -> String {
    let text = format!("{choice:?}");
    let words: Vec<_> = text
        .split(['(', ')', ',', ' ', '{', '}'])
        .filter(|word| !word.is_empty())
        .collect();
    words[..words.len().min(2)].join(" ")
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn parent(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}
