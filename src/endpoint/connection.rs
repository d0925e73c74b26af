//! What has to live as long as an opened endpoint does.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    mem,
    sync::Arc,
    time::Duration,
};

use crate::{
    block::{Exports, Result},
    client::{Client, Pool},
    filter::Counters,
    format::{Details, Image},
    script::Script,
};

use super::{
    Endpoint, FormatKind, Layers, ServerChild,
    filtered::Filters,
    identity::{Identity, identities},
};

/// How long a server may take to hear our goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// What has to live as long as a device does: its connection, the server that was started for it, the filters in
/// front of it.
#[derive(Default)]
pub struct Connection {
    /// With these the rest is theirs.
    pub(super) filters: Option<Box<Filters>>,
    /// The image that the device is the disk of. It is closed before what it lies in.
    pub(super) image: Option<Arc<dyn Image>>,
    /// What the bytes were taken for, where that is no image but something around one, or around the disk.
    pub(super) around: Option<FormatKind>,
    /// The files that were opened because the image, or one behind it, names them.
    pub(super) followed: Vec<Identity>,
    /// The image's files.
    pub(super) layers: Layers,
    // In this order: the client goes before the server does.
    pub(super) client: Option<Client>,
    pub(super) pool: Option<Pool>,
    pub(super) child: Option<ServerChild>,
    pub(super) script: Option<Script>,
    /// The regular file that a standard stream is, whose position its other users expect behind the image.
    pub(super) standard: Option<File>,
    /// Those of the parts that it consists of.
    pub(super) parts: Vec<Self>,
}

impl Connection {
    /// Whether the server that was started for the endpoint has ended by itself, and how.
    pub fn early_end(&mut self) -> Option<String> {
        if let Some(filters) = &self.filters {
            return filters.connection().as_mut()?.early_end();
        }
        if let Some(end) = self.parts.iter_mut().find_map(Self::early_end) {
            return Some(end);
        }
        let child = self.child.as_mut()?;
        let end = child.early_end()?;
        Some(format!("the command {} {end}", child.name()))
    }

    pub(super) fn filtered(filters: Filters) -> Self {
        Self {
            filters: Some(Box::new(filters)),
            ..Self::default()
        }
    }

    /// What the filters in front of the device have counted.
    #[must_use]
    pub fn filter_counters(&self) -> Vec<Counters> {
        let filters = self.filters.as_ref();
        filters
            .map(|filters| filters.counters())
            .unwrap_or_default()
    }

    /// Opens no connection any more in the place of one that was lost, so that no request waits for it.
    pub fn stop_waiting(&self) {
        if let Some(pool) = &self.pool {
            pool.stop_waiting();
        }
    }

    /// What there is to be told of the image that the device is the disk of; `None` where the bytes are the disk.
    #[must_use]
    pub fn details(&self) -> Option<Details> {
        if let Some(filters) = &self.filters {
            return filters.connection().as_ref()?.details();
        }
        self.image.as_ref().map(|image| image.details())
    }

    /// The files that the image is made of that the device is the disk of. There are none where its bytes are the
    /// disk, or filters stand in front of it.
    #[must_use]
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Whether `endpoint` is one of the files behind the image: a backing file, a data file. Nobody may write it
    /// while the image is read.
    #[must_use]
    pub fn follows(&self, endpoint: &Endpoint) -> bool {
        if let Some(filters) = &self.filters {
            let connection = filters.connection();
            return connection.as_ref().is_some_and(|it| it.follows(endpoint));
        }
        let files = identities(endpoint, &io::stdout());
        files.iter().any(|file| self.followed.contains(file))
            || self.parts.iter().any(|part| part.follows(endpoint))
    }

    /// What the bytes of the endpoint were taken for: never [`FormatKind::Probe`].
    #[must_use]
    pub fn format(&self) -> FormatKind {
        if let Some(filters) = &self.filters {
            let connection = filters.connection();
            return connection.as_ref().map(Self::format).unwrap_or_default();
        }
        match (self.around, &self.image) {
            (Some(around), _) => around,
            (None, Some(image)) => FormatKind::Image(image.details().format()),
            (None, None) => FormatKind::Raw,
        }
    }

    /// Closes the image, if it is one, says goodbye to the server, and stops it if it was started for us. A server
    /// that does not listen any more is not waited for.
    ///
    /// # Errors
    /// What closing the image failed with: what was written to it may be lost.
    pub async fn close(mut self) -> Result<()> {
        if let Some(filters) = self.filters.take() {
            return filters.close().await;
        }
        let mut closed = match self.image.take() {
            Some(image) => image.close().await,
            None => Ok(()),
        };
        for part in mem::take(&mut self.parts) {
            closed = closed.and(Box::pin(part.close()).await);
        }
        if let Some(client) = self.client.take() {
            let _ = tokio::time::timeout(GOODBYE, client.disconnect()).await;
        }
        if let Some(pool) = self.pool.take() {
            let _ = tokio::time::timeout(GOODBYE, pool.disconnect()).await;
        }
        if let Some(script) = self.script.take() {
            script.close().await;
        }
        if let Some(file) = &mut self.standard {
            // Where the position cannot be changed nobody can depend on it.
            let _ = file.seek(SeekFrom::End(0));
        }
        self.abandon().await;
        closed
    }

    /// Goes without a goodbye, after a failure; a server that was started for us is stopped. An image is closed, if
    /// that does not take long.
    pub async fn abandon(mut self) {
        if let Some(filters) = self.filters.take() {
            return filters.abandon().await;
        }
        if let Some(image) = self.image.take() {
            let _ = tokio::time::timeout(GOODBYE, image.close()).await;
        }
        for part in mem::take(&mut self.parts) {
            Box::pin(part.abandon()).await;
        }
        drop((self.client.take(), self.pool.take()));
        if let Some(mut child) = self.child.take() {
            child.stop().await;
        }
    }

    /// Ends a server that was started for us, at once.
    pub fn kill(mut self) {
        if let Some(below) = self
            .filters
            .take()
            .and_then(|filters| filters.connection().take())
        {
            return below.kill();
        }
        mem::take(&mut self.parts).into_iter().for_each(Self::kill);
        if let Some(child) = &mut self.child {
            child.kill();
        }
    }
}
