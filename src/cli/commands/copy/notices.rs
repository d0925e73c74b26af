//! What is said while the sides are opened, kept for the report.

use std::sync::{Arc, Mutex, PoisonError};

use crate::endpoint::Notices;

/// Notices that are told later.
#[derive(Clone, Default)]
pub(super) struct Collected(Arc<Mutex<Vec<String>>>);

impl Collected {
    /// Who is to be told.
    pub(super) fn listener(&self) -> Notices {
        let kept = Arc::clone(&self.0);
        Notices::new(move |notice| {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push(notice.to_owned());
        })
    }

    /// Those that came until now.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
