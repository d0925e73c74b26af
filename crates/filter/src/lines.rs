//! A file of lines that a thread of its own writes, so that nobody waits for the disk that it lies on.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread::{self, JoinHandle},
};

use blockferry_block::{Error, Result, printable};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Lines that wait to be written before those who make more are held up.
const MOST_WAITING: usize = 1 << 14;

/// Bytes that are written in one call.
const BATCH: usize = 64 << 10;

/// A file of lines. Dropping it waits until all are written.
#[derive(Debug)]
pub(crate) struct Lines {
    queue: Option<mpsc::UnboundedSender<Message>>,
    room: Arc<Semaphore>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Message {
    /// A line, and its place among those that wait.
    Line(String, Option<OwnedSemaphorePermit>),
    /// Told when what came before is written.
    Ask(oneshot::Sender<()>),
}

/// What all layers of one filter write to: the exports of a server have one file.
#[derive(Debug)]
pub(crate) struct Common<T>(Arc<Mutex<Weak<T>>>);

impl<T> Clone for Common<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Common<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Common<T> {
    /// What is there as long as a layer has it, or what `open` makes.
    pub(crate) fn open(&self, open: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.upgrade() {
            return Ok(known);
        }
        let new = Arc::new(open()?);
        *known = Arc::downgrade(&new);
        Ok(new)
    }
}

impl Lines {
    /// A file that is made, or emptied, or written on behind its end.
    ///
    /// # Errors
    /// When it cannot be opened, or there is no thread to write it.
    pub(crate) fn open(path: &Path, append: bool) -> Result<Self> {
        let file = open_for_lines(path, append)?;
        let (queue, messages) = mpsc::unbounded_channel();
        let writer = thread::Builder::new()
            .name("lines".to_owned())
            .spawn(move || write_all(file, messages));
        let writer = writer.map_err(|error| about(path, error))?;
        Ok(Self {
            queue: Some(queue),
            room: Arc::new(Semaphore::new(MOST_WAITING)),
            writer: Some(writer),
        })
    }

    /// Waits while too many lines are not written yet. Whoever makes lines without end asks this first.
    pub(crate) async fn wait_for_room(&self) {
        // The semaphore is never closed.
        let _ = self.room.acquire().await;
    }

    /// Has a line written; its end is added. Waits for nothing.
    pub(crate) fn push(&self, mut line: String) {
        line.push('\n');
        let place = Arc::clone(&self.room).try_acquire_owned().ok();
        self.send(Message::Line(line, place));
    }

    /// Waits until the lines that were pushed are written.
    pub(crate) async fn written(&self) {
        let (told, written) = oneshot::channel();
        self.send(Message::Ask(told));
        // If the writer is gone, there is nothing to wait for.
        let _ = written.await;
    }

    fn send(&self, message: Message) {
        if let Some(queue) = &self.queue {
            // The writer ends after the queue.
            let _ = queue.send(message);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing more to write.
            let _ = writer.join();
        }
    }
}

/// A file to write text to.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn open_for_lines(path: &Path, append: bool) -> Result<File> {
    let open = || {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        if !append && file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        Ok(file)
    };
    open().map_err(|error| about(path, error))
}

/// A system's error about a file, which names the file.
pub(crate) fn about(path: &Path, error: io::Error) -> Error {
    let message = printable(path.as_os_str());
    Error::with_message((&error).into(), message).because(error)
}

/// Writes what comes until nobody is left to send anything.
fn write_all(mut file: impl Write, mut messages: mpsc::UnboundedReceiver<Message>) {
    let mut batch = Vec::new();
    // Lines wait until they are written, and not only taken.
    let mut places = Vec::new();
    let mut is_torn = false;
    while let Some(first) = messages.blocking_recv() {
        let mut asked = None;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Line(line, place) => {
                    batch.extend_from_slice(line.as_bytes());
                    places.extend(place);
                }
                Message::Ask(told) => asked = Some(told),
            }
            let goes_on = asked.is_none() && batch.len() < BATCH;
            next = goes_on.then(|| messages.try_recv().ok()).flatten();
        }
        if is_torn {
            batch.insert(0, b'\n');
        }
        // A disk that is full must not keep anybody from anything; what comes when it has room begins a line.
        is_torn = file.write_all(&batch).is_err();
        batch.clear();
        places.clear();
        if let Some(told) = asked {
            // Whoever asked may have gone.
            let _ = told.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Mutex};

    use super::*;

    #[tokio::test]
    async fn lines_are_whole_in_order_and_all_there() {
        let room = tempfile::tempdir().expect("a directory");
        let path = room.path().join("lines");
        fs::write(&path, "old\n").expect("room");
        let lines = Lines::open(&path, true).expect("a file");
        for number in 0..1000 {
            lines.push(number.to_string());
        }
        lines.written().await;
        let text = fs::read_to_string(&path).expect("a file");
        let numbers = (0..1000).map(|number| number.to_string());
        assert!(
            text.lines()
                .eq(["old".to_owned()].into_iter().chain(numbers))
        );
        lines.push("last".to_owned());
        drop(lines);
        let text = fs::read_to_string(&path).expect("a file");
        assert!(text.ends_with("\nlast\n"));
        drop(Lines::open(&path, false).expect("a file"));
        assert_eq!(fs::read(&path).expect("a file"), b"");
    }

    /// A disk that takes nothing until it may.
    struct Slow {
        may: std::sync::mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // It may from the first time on, when there is nobody who could say so.
            let _ = self.may.recv();
            self.written.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_slow_disk_holds_up_nobody_until_too_much_waits() {
        let (let_it, may) = std::sync::mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let (queue, messages) = mpsc::unbounded_channel();
        let disk = Slow {
            may,
            written: Arc::clone(&written),
        };
        let lines = Lines {
            queue: Some(queue),
            room: Arc::new(Semaphore::new(2)),
            writer: Some(thread::spawn(move || write_all(disk, messages))),
        };
        lines.wait_for_room().await;
        for number in 0..100_000 {
            lines.push(format!("{number:10}"));
        }
        let all = std::pin::pin!(lines.written());
        assert!(futures_util::poll!(all).is_pending());
        let room = std::pin::pin!(lines.wait_for_room());
        assert!(futures_util::poll!(room).is_pending());
        drop(let_it);
        lines.written().await;
        lines.wait_for_room().await;
        assert_eq!(written.lock().expect("no panic").len(), 1_100_000);
    }

    /// A disk that is full at first.
    struct Full(Vec<u8>, Arc<Mutex<Vec<u8>>>);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                self.0.push(bytes[0]);
                return Ok(1);
            }
            if self.0.len() == 1 {
                self.0.push(0);
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.1.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn after_a_line_that_was_torn_comes_a_new_one() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let (queue, messages) = mpsc::unbounded_channel();
        let disk = Full(Vec::new(), Arc::clone(&written));
        let lines = Lines {
            queue: Some(queue),
            room: Arc::new(Semaphore::new(2)),
            writer: Some(thread::spawn(move || write_all(disk, messages))),
        };
        lines.push("torn".to_owned());
        lines.written().await;
        lines.push("whole".to_owned());
        drop(lines);
        assert_eq!(*written.lock().expect("no panic"), b"\nwhole\n");
    }
}
