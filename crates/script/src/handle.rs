//! A handle that a script gave out: what `open` printed, until `close`.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStringExt as _,
    sync::Arc,
};

use blockferry_block::{ClientFacts, Error, ErrorKind, Result, Wishes};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    time::timeout,
};

use crate::{
    answers,
    calls::{CLOSING, Calls, Runner, SHORT},
};

/// What a handle stands on.
pub(crate) struct Ground {
    pub(crate) runner: Arc<Runner>,
    pub(crate) wishes: Arc<Wishes>,
    /// Each request takes its turn here.
    pub(crate) turns: Arc<Semaphore>,
    /// Keeps others out as long as the handle is open.
    pub(crate) _connection: Option<OwnedSemaphorePermit>,
}

/// An open handle. Dropping it closes it, and waits for that.
pub(crate) struct Handle {
    ground: Ground,
    text: OsString,
}

impl Handle {
    /// Lets the script open `export`. The caller has its turn.
    pub(crate) async fn open(ground: Ground, export: &str, client: ClientFacts) -> Result<Self> {
        let Ground { runner, wishes, .. } = &ground;
        let (read_only, tls) = (truth(client.read_only), truth(client.tls));
        let arguments = [read_only, OsStr::new(export), tls];
        let answer = runner.calls(wishes).ask("open", &arguments, SHORT).await?;
        let text = answers::line(&answer.unwrap_or_default()).to_vec();
        if text.contains(&0) {
            let words = "it printed a handle with a null byte";
            return Err(runner.error(ErrorKind::Io, "open", words));
        }
        Ok(Self {
            ground,
            text: OsString::from_vec(text),
        })
    }

    /// What calls with this handle have for their first argument.
    pub(crate) fn text(&self) -> &OsStr {
        &self.text
    }

    pub(crate) fn runner(&self) -> &Runner {
        &self.ground.runner
    }

    pub(crate) fn calls(&self) -> Calls<'_> {
        self.ground.runner.calls(&self.ground.wishes)
    }

    /// Waits until a request may begin; it lasts as long as what this returns.
    pub(crate) async fn turn(&self) -> Result<SemaphorePermit<'_>> {
        turn(&self.ground.turns).await
    }

    async fn close(&self) {
        let close = async {
            let _turn = self.turn().await;
            let _ = self.calls().tell("close", &[self.text()]).await;
        };
        // How it fails is of no use to anybody any more.
        let _ = timeout(self.runner().limit.unwrap_or(CLOSING), close).await;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.runner().program.has("close") {
            crate::blocking::run(|| self.close());
        }
    }
}

/// Waits for a turn at `turns`.
pub(crate) async fn turn(turns: &Semaphore) -> Result<SemaphorePermit<'_>> {
    // Nobody closes it.
    turns
        .acquire()
        .await
        .map_err(|_| Error::new(ErrorKind::ShuttingDown))
}

/// A boolean as an argument of a method.
pub(crate) fn truth(value: bool) -> &'static OsStr {
    OsStr::new(if value { "true" } else { "false" })
}
