//! Work that has to be done before a value is gone, where nothing can be awaited.

use std::{future::Future, thread};

use tokio::runtime::Builder;

/// Runs what `work` makes to its end, on a thread and in a runtime of its own: the caller may be inside of
/// another one. Nothing happens when the system has no thread to give.
pub(crate) fn run<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send) {
    thread::scope(|scope| {
        let spawned = thread::Builder::new()
            .name("script-close".into())
            .stack_size(512 << 10)
            .spawn_scoped(scope, || {
                let runtime = Builder::new_current_thread()
                    .enable_io()
                    .enable_time()
                    .build();
                if let Ok(runtime) = runtime {
                    runtime.block_on(work());
                }
            });
        if let Ok(thread) = spawned {
            let _ = thread.join();
        }
    });
}
