//! A script from its being loaded to its being unloaded, and the exports it has in between.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::OsStringExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use blockferry_block::{
    BoxFuture, ClientFacts, Error, ErrorKind, ExportEntry, Exports, OpenExport, Operation, Result,
    Wish, Wishes,
};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    answers::{self, ThreadModel},
    calls::{LONG, Runner, SHORT},
    device::ScriptDevice,
    handle::{Ground, Handle, truth, turn},
    program::{Program, Saved},
};

/// Calls of one client that run side by side: each is a process, and often more than one.
const SIDE_BY_SIDE: usize = 16;

/// The key under which nbdkit hands over parameters that have none.
const KEYLESS: &str = "script";

/// What a script is started with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ScriptOptions {
    /// What is run.
    pub program: Program,
    /// The parameters that are handed to `config`, in order. One with an empty key, or with the key `script`,
    /// was given without a key: it gets the script's own `magic_config_key`.
    pub parameters: Vec<(OsString, OsString)>,
    /// What errors call it.
    pub name: String,
    /// After this time a call is given up: its processes are killed, and the request fails (`Io`).
    pub timeout: Option<Duration>,
}

impl ScriptOptions {
    /// `program` without parameters, which may take as long as it likes.
    #[must_use]
    pub fn new(program: Program, name: impl Into<String>) -> Self {
        Self {
            program,
            parameters: Vec::new(),
            name: name.into(),
            timeout: None,
        }
    }
}

/// A script that was loaded and configured: its exports.
pub struct Script {
    runner: Arc<Runner>,
    model: ThreadModel,
    magic_key: Option<OsString>,
    /// Where calls of all clients take turns.
    turns: Option<Arc<Semaphore>>,
    /// Where clients take turns.
    connections: Option<Arc<Semaphore>>,
}

/// What a script says of itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PluginDump {
    /// How its calls may run.
    pub thread_model: ThreadModel,
    /// What `dump_plugin` printed; nothing where there is no such method.
    pub text: Vec<u8>,
}

impl Script {
    /// Loads and configures a script: `load`, `magic_config_key`, `config` for each parameter, `config_complete`,
    /// `thread_model`, `get_ready`, `after_fork`.
    ///
    /// # Errors
    /// What the script says, or whatever keeps it from being run.
    pub async fn start(options: ScriptOptions) -> Result<Self> {
        let (runner, magic_key) = load(options).await.map_err(opening)?;
        Self::get_ready(runner, magic_key).await.map_err(opening)
    }

    /// Loads a script, lets it say what it is, and unloads it: nbdkit's `--dump-plugin`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn dump_plugin(options: ScriptOptions) -> Result<PluginDump> {
        let (runner, _) = load(options).await.map_err(opening)?;
        runner.loaded.store(true, Ordering::Release);
        let thread_model = thread_model(&runner).await.map_err(opening)?;
        let calls = runner.calls(&runner.wishes);
        let text = calls.ask("dump_plugin", &[], LONG).await.map_err(opening)?;
        runner.unload().await;
        Ok(PluginDump {
            thread_model,
            text: text.unwrap_or_default(),
        })
    }

    async fn get_ready(runner: Runner, magic_key: Option<OsString>) -> Result<Self> {
        let calls = runner.calls(&runner.wishes);
        calls.tell("config_complete", &[]).await?;
        let model = thread_model(&runner).await?;
        calls.tell("get_ready", &[]).await?;
        calls.tell("after_fork", &[]).await?;
        runner.loaded.store(true, Ordering::Release);
        let one = || Arc::new(Semaphore::new(1));
        let (turns, connections) = match model {
            ThreadModel::SerializeConnections => (Some(one()), Some(one())),
            ThreadModel::SerializeAllRequests => (Some(one()), None),
            ThreadModel::SerializeRequests | ThreadModel::Parallel => (None, None),
        };
        Ok(Self {
            runner: Arc::new(runner),
            model,
            magic_key,
            turns,
            connections,
        })
    }

    /// How many of its calls run at the same time.
    #[must_use]
    pub fn thread_model(&self) -> ThreadModel {
        self.model
    }

    /// The key of parameters that were given without one, if the script has such a key.
    #[must_use]
    pub fn magic_key(&self) -> Option<&OsStr> {
        self.magic_key.as_deref()
    }

    /// Waits for the turn of a call that belongs to no handle.
    async fn turn(&self) -> Result<Option<SemaphorePermit<'_>>> {
        match &self.turns {
            Some(turns) => turn(turns).await.map(Some),
            None => Ok(None),
        }
    }

    /// Keeps what was wished for without an export.
    fn keep(&self, wishes: &Wishes) {
        if wishes.current() == Some(Wish::ShutDown) {
            self.runner.wishes.wish(Wish::ShutDown);
        }
    }

    async fn preconnect(&self, client: ClientFacts) -> Result<()> {
        // A client that would have to wait does so before a word was said.
        let _connection = match &self.connections {
            Some(connections) => Some(turn(connections).await?),
            None => None,
        };
        let _turn = self.turn().await?;
        let wishes = Wishes::default();
        let arguments = [truth(client.read_only)];
        let told = self.runner.calls(&wishes).tell("preconnect", &arguments);
        let result = told.await;
        self.keep(&wishes);
        result?;
        match wishes.current() {
            Some(Wish::Drop | Wish::Disconnect) => {
                let words = "it does not want the connection";
                Err(self.runner.error(ErrorKind::Refused, "preconnect", words))
            }
            _ => Ok(()),
        }
    }

    async fn listed(&self, client: ClientFacts) -> Result<Vec<ExportEntry>> {
        let _turn = self.turn().await?;
        let wishes = Wishes::default();
        let listed = self.ask_exports("list_exports", client, &wishes).await;
        self.keep(&wishes);
        if let Some(list) = listed? {
            return Ok(list);
        }
        let name = self.default_export(client).await?;
        let description = None;
        Ok(vec![ExportEntry { name, description }])
    }

    async fn default_export(&self, client: ClientFacts) -> Result<String> {
        let wishes = Wishes::default();
        let listed = self.ask_exports("default_export", client, &wishes).await;
        self.keep(&wishes);
        let first = listed?.and_then(|list| list.into_iter().next());
        Ok(first.map(|entry| entry.name).unwrap_or_default())
    }

    async fn ask_exports(
        &self,
        method: &str,
        client: ClientFacts,
        wishes: &Wishes,
    ) -> Result<Option<Vec<ExportEntry>>> {
        let arguments = [truth(client.read_only), truth(client.tls)];
        let answer = self.runner.calls(wishes).ask(method, &arguments, LONG);
        let list = answer.await?.map(|answer| answers::exports(&answer));
        list.transpose()
            .map_err(|error| self.runner.nonsense(method, &error))
    }

    async fn opened(&self, name: &str, client: ClientFacts) -> Result<OpenExport> {
        let connection = match &self.connections {
            Some(connections) => Some(
                Arc::clone(connections)
                    .acquire_owned()
                    .await
                    .map_err(|_| Error::new(ErrorKind::ShuttingDown))?,
            ),
            None => None,
        };
        let own_turns = || match self.model {
            ThreadModel::Parallel => Arc::new(Semaphore::new(SIDE_BY_SIDE)),
            _ => Arc::new(Semaphore::new(1)),
        };
        let turns = self.turns.clone().unwrap_or_else(own_turns);
        let wishes = Arc::new(Wishes::default());
        let ground = Ground {
            runner: Arc::clone(&self.runner),
            wishes: Arc::clone(&wishes),
            turns: Arc::clone(&turns),
            _connection: connection,
        };
        let opened = self.open_device(name, client, ground, &turns).await;
        // Those of an export that could not be opened have no other place.
        self.keep(&wishes);
        let (device, canonical_name) = opened?;
        if self.runner.wishes.current() == Some(Wish::ShutDown) {
            wishes.wish(Wish::ShutDown);
        }
        let mut open = OpenExport::new(Arc::new(device));
        open.canonical_name = canonical_name;
        open.wishes = Some(wishes);
        Ok(open)
    }

    /// The device, and its name where that is not the one that was asked for.
    async fn open_device(
        &self,
        name: &str,
        client: ClientFacts,
        ground: Ground,
        turns: &Semaphore,
    ) -> Result<(ScriptDevice, Option<String>)> {
        let mut canonical_name = None;
        let handle = {
            let _turn = turn(turns).await?;
            if name.is_empty() {
                let default = self.default_export(client).await?;
                canonical_name = Some(default).filter(|default| !default.is_empty());
            }
            let name = canonical_name.as_deref().unwrap_or(name);
            Handle::open(ground, name, client).await?
        };
        // A handle that is of no use after all is closed, for which it needs a turn of its own.
        let device = ScriptDevice::new(handle, self.model, client).await?;
        Ok((device, canonical_name))
    }
}

impl Exports for Script {
    fn connecting(&self, client: ClientFacts) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.preconnect(client))
    }

    fn list(&self, client: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(self.listed(client))
    }

    fn open<'a>(&'a self, name: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move { self.opened(name, client).await.map_err(opening) })
    }

    fn wish(&self) -> Option<Wish> {
        self.runner.wishes.current()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.runner.unload())
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script")
            .field("name", &self.runner.name)
            .field("thread_model", &self.model)
            .finish_non_exhaustive()
    }
}

/// Saves the program and hands it the parameters.
async fn load(options: ScriptOptions) -> Result<(Runner, Option<OsString>)> {
    let name: Arc<str> = options.name.into();
    let program = Saved::new(options.program).map_err(|error| Error::from(error).on(&name))?;
    let runner = Runner {
        name,
        program,
        limit: options.timeout,
        wishes: Arc::default(),
        loaded: AtomicBool::new(false),
    };
    let calls = runner.calls(&runner.wishes);
    let mut magic_key = None;
    if !runner.program.is_eval() {
        calls.tell("load", &[]).await?;
        let key = calls.ask("magic_config_key", &[], SHORT).await?;
        magic_key = key.map(|key| OsString::from_vec(answers::line(&key).to_vec()));
    }
    for (key, value) in &options.parameters {
        let is_keyless = key.is_empty() || (key == KEYLESS && !runner.program.is_eval());
        let key = match (is_keyless, &magic_key) {
            (false, _) => key,
            (true, Some(magic)) => magic,
            (true, None) => {
                let value = value.to_string_lossy();
                let words = format!("\"{}\" has no key: write KEY=VALUE", value.escape_debug());
                return Err(runner.error(ErrorKind::InvalidInput, "config", &words));
            }
        };
        if !calls.tell("config", &[key, value]).await? {
            let key = key.to_string_lossy();
            let words = format!("the script takes no parameter \"{}\"", key.escape_debug());
            return Err(runner.error(ErrorKind::InvalidInput, "config", &words));
        }
    }
    Ok((runner, magic_key))
}

async fn thread_model(runner: &Runner) -> Result<ThreadModel> {
    let calls = runner.calls(&runner.wishes);
    let answer = calls.ask("thread_model", &[], SHORT).await?;
    Ok(answer.map_or_else(ThreadModel::default, |answer| ThreadModel::parse(&answer)))
}

fn opening(error: Error) -> Error {
    error.during(Operation::Open)
}
