//! Where a run takes place: its images, its servers, and what a command's placeholders stand for.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    calls::Counter,
    contents::{Output, remove},
    image,
    interrupt::Interrupt,
    placeholder,
    process::{self, Ended, Running},
    runner::Sample,
    scenario::{self, Contender, Format, Scenario, Stdout},
    server::{Place, Server},
    tools::{self, Tools},
};

/// After this long a run is given up.
const TIMEOUT: Duration = Duration::from_secs(900);

/// Everything a run takes place in.
pub(crate) struct Stage<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) quick: bool,
    pub(crate) tools: &'a Tools,
    pub(crate) interrupt: &'a Interrupt,
    pub(crate) scratch: &'a Path,
    pub(crate) images: BTreeMap<String, PathBuf>,
    /// Of the servers and places that have one.
    pub(crate) ports: BTreeMap<String, u16>,
}

impl Stage<'_> {
    /// The first program that the contender or one of its servers needs and that is not there.
    pub(crate) fn missing_for(&self, contender: &Contender) -> Result<Option<String>> {
        let servers = self.scenario.servers_of(contender);
        let commands = [&contender.command].into_iter();
        for command in commands.chain(servers.map(|server| &server.command)) {
            let program = self.expand(&command[0])?;
            if tools::find(&program).is_none() {
                return Ok(Some(base_name(&program)));
            }
        }
        Ok(None)
    }

    /// Where the contender writes to, if that is a file.
    pub(crate) fn output_of(&self, contender: &Contender) -> Option<Output> {
        if contender.writes_out() {
            let (path, format) = (self.out(), contender.format);
            return Some(Output { path, format });
        }
        let empty = self.scenario.empty_images_of(contender);
        empty.first().map(|(name, format)| Output {
            path: self.images[*name].clone(),
            format: *format,
        })
    }

    /// One run that is timed.
    pub(crate) fn measure(&self, contender: &Contender) -> Result<Sample> {
        let servers = self.set_up(contender)?;
        let mut command = Command::new(self.expand(&contender.command[0])?);
        let ended = self.perform(contender, &mut command)?;
        let written = match contender.format {
            Format::Raw => None,
            _ => Some(fs::metadata(self.out())?.len()),
        };
        let (rate, latency) = match self.scenario.measure.is_printed() {
            true => rate(&self.printed())?,
            false => (None, None),
        };
        let mut server_cpu = Duration::ZERO;
        let mut server_memory = 0;
        for server in servers {
            let (time, memory) = server.stop(self.interrupt)?;
            server_cpu += time;
            server_memory += memory;
        }
        Ok(Sample {
            wall: ended.wall,
            user: ended.usage.user,
            system: ended.usage.system,
            peak_memory: ended.usage.peak_memory,
            server_cpu,
            server_memory,
            rate,
            latency,
            written,
        })
    }

    /// How many system calls one run takes.
    pub(crate) fn count_calls(&self, contender: &Contender, counter: Counter) -> Result<u64> {
        let servers = self.set_up(contender)?;
        let written = self.scratch.join("calls");
        let mut command = counter.watching(&self.expand(&contender.command[0])?, &written);
        self.perform(contender, &mut command)?;
        for server in servers {
            server.stop(self.interrupt)?;
        }
        counter.total(&written)
    }

    /// New images where they are written to, and the contender's servers.
    fn set_up(&self, contender: &Contender) -> Result<Vec<Server>> {
        let size = self.scenario.size.as_ref();
        let size = size.map_or(0, |size| size.of(self.quick).bytes);
        for (name, format) in self.scenario.empty_images_of(contender) {
            let path = &self.images[name];
            image::renew(path, format, size, self.scratch, self.interrupt)?;
        }
        for place in &self.scenario.places {
            remove(&self.socket(place))?;
        }
        let servers = self.scenario.servers_of(contender);
        servers.map(|server| self.start(server)).collect()
    }

    fn start(&self, server: &scenario::Server) -> Result<Server> {
        let socket = self.socket(&server.name);
        remove(&socket)?;
        let expand = |argument: &str| {
            placeholder::expand(argument, |name| match name {
                "socket" => Ok(socket.to_string_lossy().into_owned()),
                "port" => self.port(&server.name),
                name => self.value(name),
            })
        };
        let (program, arguments) = server.command.split_first().context("it has a command")?;
        let mut command = Command::new(expand(program)?);
        for argument in arguments {
            command.arg(expand(argument)?);
        }
        for (name, value) in &server.environment {
            command.env(name, expand(value)?);
        }
        let place = match self.ports.get(&server.name) {
            Some(port) if server.has_port() => Place::Port(*port),
            _ => Place::Socket(&socket),
        };
        Server::start(
            &server.name,
            &mut command,
            place,
            self.scratch,
            self.interrupt,
        )
    }

    /// Runs `command`, the beginning of the contender's, with the contender's arguments to its end.
    fn perform(&self, contender: &Contender, command: &mut Command) -> Result<Ended> {
        for argument in &contender.command[1..] {
            command.arg(self.expand(argument)?);
        }
        command.stdout(match contender.stdout {
            _ if self.scenario.measure.is_printed() => Stdio::from(File::create(self.printed())?),
            Stdout::Null => Stdio::null(),
            Stdout::Pipe => Stdio::piped(),
        });
        let mut running = Running::start(command, &self.scratch.join("stderr"))?;
        let drain = running.take_stdout().map(process::drain);
        let ended = running.wait(self.interrupt, TIMEOUT)?;
        if let Some(drain) = drain {
            drain.join().expect("the reader does not panic")?;
        }
        ended.success()?;
        Ok(ended)
    }

    fn expand(&self, argument: &str) -> Result<String> {
        placeholder::expand(argument, |name| self.value(name))
    }

    /// What a placeholder stands for, wherever it stands.
    fn value(&self, name: &str) -> Result<String> {
        let path = match name.split_once(':') {
            Some(("example", example)) => self.tools.example(example),
            Some(("image", image)) => self.images[image].clone(),
            Some(("configuration", file)) => tools::configuration(file),
            Some(("uri", server)) => return Ok(self.uri(server)),
            Some(("port", place)) => return self.port(place),
            Some(("socket", server)) => self.socket(server),
            None if name == "uri" => return Ok(self.uri(&self.scenario.servers[0].name)),
            None if name == "image" => self.images[self.scenario.images[0].name()].clone(),
            None if name == "out" => self.out(),
            None if name == "size" => {
                let size = self.scenario.size.as_ref().context("there is no size")?;
                return Ok(size.of(self.quick).to_string());
            }
            None => self.tools.program(name),
            Some(_) => bail!("`{{{name}}}` stands for nothing"),
        };
        Ok(path.to_string_lossy().into_owned())
    }

    fn uri(&self, server: &str) -> String {
        format!("nbd+unix:///?socket={}", self.socket(server).display())
    }

    fn socket(&self, server: &str) -> PathBuf {
        self.scratch.join(format!("{server}.sock"))
    }

    fn port(&self, place: &str) -> Result<String> {
        let port = self.ports.get(place);
        Ok(port.context("it has no port")?.to_string())
    }

    fn printed(&self) -> PathBuf {
        self.scratch.join("printed")
    }

    fn out(&self) -> PathBuf {
        self.scratch.join("out")
    }
}

fn base_name(program: &str) -> String {
    let name = Path::new(program).file_name();
    name.map_or_else(
        || program.into(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// The rate that a program printed, and the latency behind it, if there is one.
fn rate(printed: &Path) -> Result<(Option<f64>, Option<f64>)> {
    let text = fs::read_to_string(printed)?;
    let numbers = text.split_whitespace().map(|word| {
        let number = word.parse::<f64>().ok().filter(|number| number.is_finite());
        number.with_context(|| format!("it printed `{}`, which is no rate", text.trim()))
    });
    match numbers.collect::<Result<Vec<_>>>()?[..] {
        [rate] => Ok((Some(rate), None)),
        [rate, latency] => Ok((Some(rate), Some(latency))),
        _ => bail!("it printed `{}`, which is no rate", text.trim()),
    }
}
