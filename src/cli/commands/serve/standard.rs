//! Standard input and output as the connection of the only client: a socket, or two pipes.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{fs::FileTypeExt, net::UnixStream},
    },
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use blockferry_sys as sys;

/// Bytes that are carried at a time.
const CARRIED: usize = 256 << 10;

/// How long a client may take to read the last answers from its pipe.
const PATIENCE: Duration = Duration::from_secs(5);

/// Carries bytes between two pipes and a socket. Where it is dropped, what was sent is on its way.
pub(super) struct Bridge {
    done: Receiver<()>,
}

/// The connection, and the bridge to it where it is no socket.
pub(super) fn connect() -> io::Result<(OwnedFd, Option<Bridge>)> {
    let input = File::from(sys::duplicate_inherited(0)?);
    if input.metadata()?.file_type().is_socket() {
        return Ok((input.into(), None));
    }
    let output = File::from(sys::duplicate_inherited(1)?);
    let (connection, inner) = UnixStream::pair()?;
    let bridge = Bridge::new(input, output, inner)?;
    Ok((connection.into(), Some(bridge)))
}

impl Bridge {
    fn new(mut input: File, mut output: File, socket: UnixStream) -> io::Result<Self> {
        let (mut to_server, mut from_server) = (socket.try_clone()?, socket);
        // Whatever fails, the other side sees the end of it, which is all that can be said.
        thread::Builder::new()
            .name("input".to_owned())
            .spawn(move || {
                let _ = carry(&mut input, &mut to_server);
                let _ = to_server.shutdown(std::net::Shutdown::Write);
            })?;
        let (tell, done) = mpsc::channel();
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                let _ = carry(&mut from_server, &mut output);
                drop(tell);
            })?;
        Ok(Self { done })
    }
}

/// Moves bytes as they come until there are no more. `io::copy` would splice them, and a reader of the socket was
/// seen not to be woken for what was spliced into it.
fn carry(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CARRIED];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // Nothing is ever sent: the end of the thread is the word.
        let _: Result<(), RecvTimeoutError> = self.done.recv_timeout(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_both_ways_until_either_side_ends() {
        let (input, mut client_out) = io::pipe().expect("a pipe");
        let (mut client_in, output) = io::pipe().expect("a pipe");
        let (mut server, inner) = UnixStream::pair().expect("a pair");
        let files = (OwnedFd::from(input).into(), OwnedFd::from(output).into());
        let bridge = Bridge::new(files.0, files.1, inner).expect("a bridge");
        client_out.write_all(b"question").expect("written");
        drop(client_out);
        let mut question = String::new();
        server.read_to_string(&mut question).expect("the end");
        assert_eq!(question, "question");
        server.write_all(b"answer").expect("written");
        drop(server);
        drop(bridge);
        let mut answer = String::new();
        client_in.read_to_string(&mut answer).expect("the end");
        assert_eq!(answer, "answer");
    }
}
