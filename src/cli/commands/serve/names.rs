//! Exports under other names than their sources give them.

use std::sync::Arc;

use crate::{
    block::{
        BoxFuture, ClientFacts, Error, ErrorKind, ExportEntry, Exports, OpenExport, Result, Wish,
        no_such_export,
    },
    cli::options::{Described, ExportNames, Listed},
};

/// Exports as their clients know them.
pub(super) struct Renamed {
    below: Arc<dyn Exports>,
    names: ExportNames,
}

impl Renamed {
    /// `below` under `names`.
    pub(super) fn new(below: Arc<dyn Exports>, names: ExportNames) -> Self {
        Self { below, names }
    }

    fn is_known(&self, name: &str) -> bool {
        !self.names.strict || self.names.known.iter().any(|known| known == name)
    }

    /// What people are told of an export of which its source says `own`.
    fn describe(&self, own: Option<String>) -> Option<String> {
        match &self.names.described {
            Described::AsTheyAre => own,
            Described::Nothing => None,
            Described::As(text) => Some(text.clone()),
        }
    }

    /// The export that the empty name stands for.
    async fn default_name(&self, client: ClientFacts) -> Result<String> {
        if let Some(name) = &self.names.default {
            return Ok(name.clone());
        }
        let open = self.below.open("", client).await?;
        Ok(open.canonical_name.unwrap_or_default())
    }
}

impl Exports for Renamed {
    fn connecting(&self, client: ClientFacts) -> BoxFuture<'_, Result<()>> {
        self.below.connecting(client)
    }

    fn list(&self, client: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async move {
            let named = |name: &String| ExportEntry {
                name: name.clone(),
                description: None,
            };
            let mut entries = match self.names.listed {
                Listed::AsTheyAre => self.below.list(client).await?,
                Listed::Refused => {
                    let message = "the list of exports is restricted by policy";
                    return Err(Error::with_message(ErrorKind::NotPermitted, message));
                }
                Listed::Nothing => Vec::new(),
                Listed::Default => vec![named(&self.default_name(client).await?)],
                Listed::Known => self.names.known.iter().map(named).collect(),
            };
            if self.names.listed != Listed::Default {
                for entry in &mut entries {
                    entry.description = self.describe(entry.description.take());
                }
            }
            Ok(entries)
        })
    }

    fn open<'a>(&'a self, name: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            let default = self.names.default.as_deref().unwrap_or_default();
            let wanted = match name {
                "" => default,
                name => name,
            };
            if !self.is_known(name) || !self.is_known(wanted) {
                return Err(no_such_export());
            }
            let mut open = self.below.open(wanted, client).await?;
            if self.names.default.is_some() && name.is_empty() {
                open.canonical_name = Some(wanted.to_owned()).filter(|name| !name.is_empty());
            }
            let devices = open.device.info().description.clone();
            let is_said = devices.is_some();
            let own = open.description.take().or(devices);
            // An empty one hides what the device says of itself.
            let described = self.describe(own);
            open.description = described.or(is_said.then(String::new));
            Ok(open)
        })
    }

    fn wish(&self) -> Option<Wish> {
        self.below.wish()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.below.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{MemoryDevice, SingleExport};

    const CLIENT: ClientFacts = ClientFacts {
        read_only: false,
        tls: false,
    };

    fn renamed(change: impl FnOnce(&mut ExportNames)) -> Renamed {
        let mut names = ExportNames {
            known: vec!["a".to_owned(), "b".to_owned()],
            ..ExportNames::default()
        };
        change(&mut names);
        let export = SingleExport::new(Arc::new(MemoryDevice::new(512)));
        Renamed::new(Arc::new(export.under_any_name()), names)
    }

    async fn list(renamed: &Renamed) -> Option<Vec<(String, Option<String>)>> {
        let entries = renamed.list(CLIENT).await.ok()?.into_iter();
        Some(entries.map(|it| (it.name, it.description)).collect())
    }

    #[tokio::test]
    async fn the_list_is_what_is_said() {
        let entry = |name: &str, text: Option<&str>| (name.to_owned(), text.map(str::to_owned));
        let as_it_is = renamed(|_| ());
        assert_eq!(list(&as_it_is).await, Some(vec![entry("", None)]));
        assert_eq!(list(&renamed(|it| it.listed = Listed::Refused)).await, None);
        let nothing = renamed(|it| it.listed = Listed::Nothing);
        assert_eq!(list(&nothing).await, Some(Vec::new()));
        let default = renamed(|it| {
            it.listed = Listed::Default;
            it.default = Some("d".to_owned());
        });
        assert_eq!(list(&default).await, Some(vec![entry("d", None)]));
        let known = renamed(|it| {
            it.listed = Listed::Known;
            it.described = Described::As("x".to_owned());
        });
        let both = vec![entry("a", Some("x")), entry("b", Some("x"))];
        assert_eq!(list(&known).await, Some(both));
    }

    #[tokio::test]
    async fn only_known_names_open_where_that_is_said() {
        let strict = renamed(|it| it.strict = true);
        assert!(strict.open("a", CLIENT).await.is_ok());
        for name in ["", "c"] {
            assert!(strict.open(name, CLIENT).await.is_err(), "{name:?}");
        }
        let default = renamed(|it| it.default = Some("b".to_owned()));
        let open = default.open("", CLIENT).await.expect("the default");
        assert_eq!(open.canonical_name.as_deref(), Some("b"));
        assert!(default.open("c", CLIENT).await.is_ok());
    }
}
