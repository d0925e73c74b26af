//! Threads that compress pieces. They end with the last who could ask for something.

use std::{
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use blockferry_block::{Buffer, Error, ErrorKind, Result};
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::encode::{Encoding, Piece};

type Job = (Buffer, oneshot::Sender<Result<Piece>>);

pub(super) struct Threads(mpsc::Sender<Job>);

impl Threads {
    /// `count` of them.
    ///
    /// # Errors
    /// What starting the first failed with; fewer than `count` will do.
    pub(super) fn start(encoding: Encoding, count: usize) -> Result<Self> {
        let (sender, receiver) = mpsc::channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        for number in 0..count {
            let receiver = Arc::clone(&receiver);
            let thread = thread::Builder::new().name("pack".to_owned());
            match thread.spawn(move || work(encoding, &receiver)) {
                Err(error) if number == 0 => return Err(error.into()),
                Err(_) => break,
                Ok(_) => {}
            }
        }
        Ok(Self(sender))
    }

    /// Compresses `piece` as soon as a thread has time.
    ///
    /// # Errors
    /// Where there are no threads any more.
    pub(super) fn compress(&self, piece: Buffer) -> Result<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.0.send((piece, sender)).map_err(|_| gone())?;
        Ok(Answer {
            receiver,
            early: None,
        })
    }
}

fn work(encoding: Encoding, jobs: &Mutex<mpsc::Receiver<Job>>) {
    let mut encoder = encoding.encoder();
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((piece, answer)) = job else { return };
        if !answer.is_closed() {
            let packed = match &mut encoder {
                Ok(encoder) => encoder.encode(&piece),
                Err(error) => Err(Error::with_message(ErrorKind::Io, error.to_string())),
            };
            // The buffer goes back before anybody looks for one.
            drop(piece);
            let _ = answer.send(packed);
        }
    }
}

/// A piece that is being compressed.
pub(super) struct Answer {
    receiver: oneshot::Receiver<Result<Piece>>,
    early: Option<Result<Piece>>,
}

impl Answer {
    /// Whether it need not be waited for.
    pub(super) fn is_ready(&mut self) -> bool {
        if self.early.is_none() {
            self.early = match self.receiver.try_recv() {
                Ok(piece) => Some(piece),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Closed) => Some(Err(gone())),
            };
        }
        self.early.is_some()
    }

    /// The piece.
    ///
    /// # Errors
    /// What compressing failed with.
    pub(super) async fn wait(self) -> Result<Piece> {
        match self.early {
            Some(piece) => piece,
            None => self.receiver.await.map_err(|_| gone())?,
        }
    }
}

fn gone() -> Error {
    Error::with_message(ErrorKind::Io, "what compresses it has ended")
}
