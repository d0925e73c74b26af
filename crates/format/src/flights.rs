//! What several ask for at the same time is fetched once.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use blockferry_block::{Error, ErrorKind, Result};
use tokio::{runtime::Handle, sync::OnceCell, task::JoinSet};

/// A fetch, and how many wait for it.
struct Flight<T> {
    cell: Arc<OnceCell<T>>,
    waiting: usize,
}

/// Fetches that are under way, by what is fetched.
///
/// A fetch runs as a task of the runtime of who asked first: it goes on although that future is not polled for a
/// while. When it fails, is dropped, or its runtime ends, the next who waits fetches again, so nobody depends on
/// another's luck.
pub(crate) struct Flights<K, T> {
    under_way: Mutex<HashMap<K, Flight<T>>>,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self {
            under_way: Mutex::default(),
        }
    }
}

impl<K, T> Flights<K, T>
where
    K: Hash + Eq + Copy + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// What `fetch` gives, or what somebody else's fetch of `key` gives that is under way.
    ///
    /// # Errors
    /// Those of `fetch`.
    pub(crate) async fn join<F>(self: &Arc<Self>, key: K, fetch: F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let seat = Seat::take(self, key);
        let joined = async move { seat.cell.get_or_try_init(|| fetch).await.cloned() };
        if Handle::try_current().is_err() {
            return joined.await;
        }
        // Aborted when this future is dropped.
        let mut task = JoinSet::new();
        task.spawn(joined);
        match task.join_next().await {
            Some(Ok(fetched)) => fetched,
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            _ => Err(Error::with_message(
                ErrorKind::Cancelled,
                "the runtime is shutting down",
            )),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Flight<T>>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits for a fetch. The last one to leave takes the entry away.
struct Seat<K, T>
where
    K: Hash + Eq + Copy + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    flights: Arc<Flights<K, T>>,
    key: K,
    cell: Arc<OnceCell<T>>,
}

impl<K, T> Seat<K, T>
where
    K: Hash + Eq + Copy + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    fn take(flights: &Arc<Flights<K, T>>, key: K) -> Self {
        let cell = {
            let mut under_way = flights.lock();
            let flight = under_way.entry(key).or_insert_with(|| Flight {
                cell: Arc::default(),
                waiting: 0,
            });
            flight.waiting += 1;
            Arc::clone(&flight.cell)
        };
        Self {
            flights: Arc::clone(flights),
            key,
            cell,
        }
    }
}

impl<K, T> Drop for Seat<K, T>
where
    K: Hash + Eq + Copy + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        let mut under_way = self.flights.lock();
        let Some(flight) = under_way.get_mut(&self.key) else {
            return;
        };
        // Another flight's, when this one has landed before.
        if !Arc::ptr_eq(&flight.cell, &self.cell) {
            return;
        }
        flight.waiting -= 1;
        // Who comes from now on begins anew: what was fetched may be out of date by then.
        if flight.waiting == 0 || self.cell.initialized() {
            under_way.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    #[tokio::test]
    async fn those_who_come_meanwhile_share_one_fetch() {
        let flights: Arc<Flights<u64, u64>> = Arc::default();
        let fetches = Arc::new(AtomicUsize::new(0));
        let fetch = || {
            let fetches = Arc::clone(&fetches);
            async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok(fetches.fetch_add(1, Ordering::Relaxed) as u64)
            }
        };
        let (one, two, other) = tokio::join!(
            flights.join(7, fetch()),
            flights.join(7, fetch()),
            flights.join(8, fetch())
        );
        assert_eq!(one.expect("fetched"), two.expect("fetched"));
        other.expect("fetched");
        assert_eq!(fetches.load(Ordering::Relaxed), 2);
        assert!(flights.lock().is_empty(), "nothing is kept");
    }

    #[tokio::test]
    async fn who_waited_fetches_when_the_first_one_fails_or_goes() {
        let flights: Arc<Flights<u64, u64>> = Arc::default();
        let failing = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Err(Error::new(ErrorKind::Io))
        };
        let (failed, fetched) =
            tokio::join!(flights.join(1, failing), flights.join(1, async { Ok(3) }));
        assert_eq!(failed.expect_err("its own").kind(), ErrorKind::Io);
        assert_eq!(fetched.expect("fetched"), 3);

        let hanging = Box::pin(flights.join(2, std::future::pending()));
        let waiting = flights.join(2, async { Ok(4) });
        let mut waiting = Box::pin(waiting);
        let first = futures_util::future::select(hanging, &mut waiting);
        let timeout = tokio::time::timeout(Duration::from_millis(5), first).await;
        // Both are dropped by the timeout but the one that waits.
        assert!(timeout.is_err());
        assert_eq!(waiting.await.expect("fetched"), 4);
        assert!(flights.lock().is_empty(), "nothing is kept");
    }

    #[test]
    fn a_runtime_that_ends_takes_no_one_with_it() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build();
        let flights: Arc<Flights<u64, u64>> = Arc::default();
        let first = runtime().expect("a runtime");
        let hanging = Arc::clone(&flights);
        first.spawn(async move { hanging.join(1, std::future::pending()).await });
        first.block_on(tokio::task::yield_now());
        let second = std::thread::spawn(move || {
            let second = runtime().expect("a runtime");
            second.block_on(flights.join(1, async { Ok(5) }))
        });
        drop(first);
        assert_eq!(second.join().expect("no panic").expect("fetched"), 5);
    }
}
