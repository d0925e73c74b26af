//! One direction alone.

use std::{
    any::Any,
    future::poll_fn,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    CopyError, Direction, Mode, Moved, Options,
    clock::Clock,
    files::{Done, FileCopy},
    flow::{Ending, Flow},
    stream::{Kind, kind_of_reader, kind_of_writer},
};

/// Moves bytes from `reader` to `writer` until the reader ends or `limit` bytes were taken from it, and
/// says how many.
///
/// `limit` counts down with what is taken, as Go's `LimitedReader` does, also when the copy fails or is given up.
/// The writer is flushed at the end and stays open.
///
/// Dropping the future is safe, and loses what is on its way. Where one end is a file, a thread that reads or writes it
/// finishes what it is at, up to a pipe of bytes, which is not counted any more.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::UnixStream};
///
/// let (mut client, mut reader) = UnixStream::pair()?;
/// let (mut writer, mut server) = UnixStream::pair()?;
/// client.write_all(b"eleven bytes and more").await?;
/// let mut limit = 11;
/// let moved = blockferry_relay::copy(&mut reader, &mut writer, Some(&mut limit)).await?;
/// assert_eq!((moved.total(), limit), (11, 0));
/// # let mut bytes = [0; 11];
/// # server.read_exact(&mut bytes).await?;
/// # assert_eq!(&bytes, b"eleven byte");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
///
/// # Errors
/// When one of them fails; what was moved is in the error.
pub async fn copy<R, W>(
    reader: &mut R,
    writer: &mut W,
    limit: Option<&mut u64>,
) -> Result<Moved, CopyError>
where
    R: AsyncRead + Unpin + 'static,
    W: AsyncWrite + Unpin + 'static,
{
    copy_with(reader, writer, limit, &Options::default()).await
}

/// As [`copy()`], as `options` say. What is said there of the first stream and the second is meant of the reader and
/// the writer.
///
/// # Errors
/// When one of them fails, or nothing moved for too long; what was moved is in the error.
pub async fn copy_with<R, W>(
    reader: &mut R,
    writer: &mut W,
    limit: Option<&mut u64>,
    options: &Options,
) -> Result<Moved, CopyError>
where
    R: AsyncRead + Unpin + 'static,
    W: AsyncWrite + Unpin + 'static,
{
    let mut unlimited = u64::MAX;
    let limit = limit.unwrap_or(&mut unlimited);
    let mut flow = Flow::new(reader, writer, options, Direction::Forward, Ending::Flush);
    let mut clock = Clock::new(options);
    let mut ended = Ok(Done::No);
    if options.mode != Mode::Copy {
        let copy = FileCopy {
            flow: &mut flow,
            clock: &mut clock,
            limit: &mut *limit,
        };
        match (kind_of_reader(reader), kind_of_writer(writer)) {
            (Kind::File, Kind::Tcp | Kind::Unix | Kind::Pipe) => {
                if let Some(file) = (reader as &mut dyn Any).downcast_mut() {
                    ended = copy.read_file(file, writer).await;
                }
            }
            (Kind::Tcp | Kind::Unix | Kind::Pipe, Kind::File) => {
                if let Some(file) = (writer as &mut dyn Any).downcast_mut() {
                    ended = copy.write_file(reader, file).await;
                }
            }
            _ => {}
        }
    }
    if let Ok(Done::No) = ended {
        ended = poll_fn(|context: &mut Context<'_>| {
            flow.set_limit(*limit);
            let moved = flow.poll(context, reader, writer);
            *limit = flow.limit();
            match (moved, &mut clock) {
                (Poll::Ready(moved), _) => Poll::Ready(moved.map(|()| Done::Yes)),
                (Poll::Pending, Some(clock)) => {
                    clock.poll(context, flow.progress(), false).map(Err)
                }
                (Poll::Pending, None) => Poll::Pending,
            }
        })
        .await;
    }
    let moved = flow.moved();
    match ended {
        Ok(_) => Ok(moved),
        Err(cause) => Err(CopyError {
            moved,
            unwritten: flow.on_its_way(),
            cause,
        }),
    }
}
