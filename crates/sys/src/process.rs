//! Processes: children that are handed a listening socket (systemd socket activation), the same
//! seen from the child's side, and what became of a signal before we started.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::File,
    io, mem,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            process::CommandExt,
        },
    },
    process::{Child, Command, Stdio},
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::process::{Pid, Signal};

/// The descriptor at which socket activation hands over the first socket (`SD_LISTEN_FDS_START`).
const FIRST_ACTIVATED: RawFd = 3;

/// How many sockets a process accepts to be handed: more is a broken environment.
const MOST_ACTIVATED: RawFd = 1024;

/// The longest decimal process id and its terminating NUL.
const PID_ROOM: usize = 12;

/// Starts `program` (looked up in `PATH`) with `arguments` and hands it `listener` by systemd socket
/// activation: descriptor 3, `LISTEN_FDS=1`, `LISTEN_PID` of the child itself.
///
/// The child leads a process group of its own, so that Ctrl-C on the terminal reaches only us; it has
/// no standard input, no blocked signals, and `stdout` for its standard output. It is sent SIGTERM
/// when the *thread* that called this ends, so the caller's thread has to outlive the child.
///
/// # Errors
/// What the fork or the exec failed with (`NotFound` when there is no such program), and
/// `InvalidInput` for a NUL in an argument.
pub fn spawn_activated(
    program: &OsStr,
    arguments: &[OsString],
    listener: BorrowedFd<'_>,
    stdout: OwnedFd,
) -> io::Result<Child> {
    let mut image = Image::new(program, arguments, listener.as_raw_fd())?;
    // The pipe that reports a failed exec must not be what lies at the descriptor that the socket
    // will replace in the child: this keeps that number taken until the fork is over.
    let _taken = rustix::io::fcntl_dupfd_cloexec(listener, FIRST_ACTIVATED)?;
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(stdout).process_group(0);
    // SAFETY: `become_child` makes only async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(move || Err(image.become_child())) };
    command.spawn()
}

/// Everything that the child needs between fork and exec, where it can allocate nothing.
struct Image {
    argv: StringTable,
    envp: StringTable,
    /// `LISTEN_PID=` and room for the digits, which are known only after the fork.
    pid_entry: Vec<u8>,
    listener: RawFd,
    parent: Pid,
}

/// A list of C strings and the null-terminated list of pointers to them.
struct StringTable {
    pointers: Vec<*const libc::c_char>,
    _strings: Vec<CString>,
}

// SAFETY: the pointers point into heap memory that the table owns and nobody changes.
unsafe impl Send for StringTable {}
// SAFETY: as above; a shared borrow only reads.
unsafe impl Sync for StringTable {}

/// The variables of socket activation: those that we were started with are not the child's.
const ACTIVATION: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

const PID_KEY: &[u8] = b"LISTEN_PID=";

impl Image {
    fn new(program: &OsStr, arguments: &[OsString], listener: RawFd) -> io::Result<Self> {
        let argv = std::iter::once(program.as_bytes().to_vec()).chain(
            arguments
                .iter()
                .map(|argument| argument.as_bytes().to_vec()),
        );
        let environment = std::env::vars_os()
            .filter(|(key, _)| !ACTIVATION.iter().any(|name| key == name))
            .map(|(key, value)| {
                let mut entry = key.into_vec();
                entry.push(b'=');
                entry.extend_from_slice(value.as_bytes());
                entry
            })
            // The second is the slot of the LISTEN_PID entry, filled after the fork.
            .chain([b"LISTEN_FDS=1".to_vec(), Vec::new()]);
        let mut pid_entry = PID_KEY.to_vec();
        pid_entry.resize(PID_KEY.len() + PID_ROOM, 0);
        Ok(Self {
            argv: StringTable::new(argv)?,
            envp: StringTable::new(environment)?,
            pid_entry,
            listener,
            parent: rustix::process::getpid(),
        })
    }

    /// Turns this process, which was just forked, into the program. Returns only the failure.
    fn become_child(&mut self) -> io::Error {
        match self.prepare() {
            Ok(()) => self.exec(),
            Err(error) => error,
        }
    }

    fn prepare(&mut self) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // A parent that died before the line above will never send the signal.
        if rustix::process::getppid() != Some(self.parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        unblock_all_signals()?;
        place_descriptor(self.listener)?;
        write_pid(&mut self.pid_entry, rustix::process::getpid());
        let slot = self.envp.pointers.len() - 2;
        self.envp.pointers[slot] = self.pid_entry.as_ptr().cast();
        Ok(())
    }

    fn exec(&self) -> io::Error {
        let (argv, envp) = (self.argv.pointers.as_ptr(), self.envp.pointers.as_ptr());
        // SAFETY: both are null-terminated lists of NUL-terminated strings that `self` owns; the
        // first of argv is the program.
        unsafe { libc::execvpe(self.argv.pointers[0], argv, envp) };
        io::Error::last_os_error()
    }
}

impl StringTable {
    fn new(strings: impl Iterator<Item = Vec<u8>>) -> io::Result<Self> {
        let strings = strings
            .map(CString::new)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect();
        Ok(Self {
            pointers,
            _strings: strings,
        })
    }
}

/// Writes the digits of `pid` behind the key; the entry is long enough and stays NUL-terminated.
fn write_pid(entry: &mut [u8], pid: Pid) {
    let mut rest = pid.as_raw_nonzero().get().unsigned_abs();
    let mut digits = [0u8; PID_ROOM];
    let mut count = 0;
    while rest > 0 {
        digits[count] = b'0' + (rest % 10) as u8;
        rest /= 10;
        count += 1;
    }
    for (place, digit) in entry[PID_KEY.len()..]
        .iter_mut()
        .zip(digits[..count].iter().rev())
    {
        *place = *digit;
    }
}

fn unblock_all_signals() -> io::Result<()> {
    let mut none = mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that it is given.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set was initialised by the call above; no old set is asked for.
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
    check(result)
}

/// Puts `listener` at the first activated descriptor, where it survives the exec.
fn place_descriptor(listener: RawFd) -> io::Result<()> {
    if listener == FIRST_ACTIVATED {
        // SAFETY: changes a flag of an open descriptor of this (just forked) process.
        return check(unsafe { libc::fcntl(listener, libc::F_SETFD, 0) });
    }
    // SAFETY: the process was just forked and goes on to exec: nobody uses what lay there before.
    check(unsafe { libc::dup2(listener, FIRST_ACTIVATED) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Asks every process of the group that `leader` leads to end (SIGTERM).
///
/// # Errors
/// `NotFound`-like (`ESRCH`) when all of them are gone.
pub fn terminate_group(leader: &Child) -> io::Result<()> {
    signal_group(leader, Signal::TERM)
}

/// Ends every process of the group that `leader` leads (SIGKILL).
///
/// # Errors
/// As [`terminate_group`].
pub fn kill_group(leader: &Child) -> io::Result<()> {
    signal_group(leader, Signal::KILL)
}

fn signal_group(leader: &Child, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(leader.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    Ok(rustix::process::kill_process_group(pid, signal)?)
}

/// Takes the listening sockets that this process was handed by systemd socket activation: none when
/// it was not, and none at any call but the first.
///
/// Call it before anything else opens descriptors: `LISTEN_PID` and `LISTEN_FDS` say which numbers
/// are ours, and what is not a listening socket is refused.
///
/// # Errors
/// `InvalidData` when the environment names descriptors that are no listening sockets.
pub fn take_activated_sockets() -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |key| std::env::var(key).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) || TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS")
        .and_then(|count| RawFd::try_from(count).ok())
        .filter(|count| *count <= MOST_ACTIVATED)
        .ok_or_else(|| invalid("LISTEN_FDS is not a number of descriptors"))?;
    let all = FIRST_ACTIVATED..FIRST_ACTIVATED + count;
    if !all.clone().all(is_listening) {
        return Err(invalid(
            "LISTEN_FDS names descriptors that are not listening sockets",
        ));
    }
    all.map(|fd| {
        // SAFETY: the descriptor is open (it is a listening socket), it was handed to this process by
        // its starter for this use, and the flag above keeps it from being taken twice.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
        Ok(socket)
    })
    .collect()
}

/// Another descriptor for what this process was started with as descriptor `number`, closed in programs
/// that it starts itself.
///
/// Call it before anything else opens descriptors, or the number may mean something else.
///
/// # Errors
/// When there is no such descriptor (`EBADF`), or no room for another.
pub fn duplicate_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved, and a number that is no open descriptor is only an error.
    let duplicate = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if duplicate < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

/// Takes standard input (0) or standard output (1) away from the rest of this process: whoever reads or
/// writes there from now on does so at `/dev/null`. What is at the other end of a pipe sees its end as soon as the
/// descriptor that is returned is closed.
///
/// # Errors
/// `InvalidInput` for another number; otherwise as [`duplicate_inherited`], or when there is no `/dev/null`.
pub fn take_standard(number: RawFd) -> io::Result<OwnedFd> {
    let replace = match number {
        0 => rustix::stdio::dup2_stdin,
        1 => rustix::stdio::dup2_stdout,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let taken = duplicate_inherited(number)?;
    replace(&null)?;
    Ok(taken)
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn is_listening(fd: RawFd) -> bool {
    let mut listening: libc::c_int = 0;
    let mut length = mem::size_of_val(&listening) as libc::socklen_t;
    // SAFETY: the value and its length are valid for writing; a bad descriptor is only an error.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut listening).cast(),
            &raw mut length,
        )
    };
    result == 0 && listening != 0
}

/// The signal that ends a process which writes a file beyond its limit (`SIGXFSZ`), unless it is handled:
/// then the write fails.
pub const FILE_SIZE_SIGNAL: i32 = libc::SIGXFSZ;

/// Whether this process has the rights of root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether the signal is ignored, as `nohup` and a shell's background jobs set it for their children.
#[must_use]
pub fn is_signal_ignored(signal: i32) -> bool {
    let mut action = mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no new action is given, the old one is written to memory that is valid for it.
    let result = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    if result != 0 {
        return false;
    }
    // SAFETY: zeroed memory is a valid `sigaction`, and the call filled it.
    let action = unsafe { action.assume_init() };
    action.sa_sigaction == libc::SIG_IGN
}

// Miri knows nothing of unix sockets and process groups.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::os::{fd::AsFd, unix::net::UnixListener};

    fn run(script: &str, name: &str) -> String {
        let directory = std::env::temp_dir().join(format!("sys-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let listener = UnixListener::bind(directory.join("s")).expect("a listener");
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let arguments = ["-c", script].map(OsString::from);
        let mut child = spawn_activated(
            OsStr::new("sh"),
            &arguments,
            listener.as_fd(),
            writer.into(),
        )
        .expect("a shell");
        let mut output = String::new();
        io::Read::read_to_string(&mut reader, &mut output).expect("its output");
        assert!(child.wait().expect("its status").success());
        std::fs::remove_dir_all(&directory).expect("removed");
        output
    }

    #[test]
    fn the_whole_group_ends() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 1000 & wait"])
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut output = child.stdout.take().expect("piped");
        terminate_group(&child).expect("signalled");
        assert!(!child.wait().expect("its status").success());
        // Its end is seen only when the last process that holds the pipe is gone.
        let mut rest = Vec::new();
        io::Read::read_to_end(&mut output, &mut rest).expect("closed");
    }

    #[test]
    fn the_child_is_told_its_own_process_id() {
        let output = run("echo $LISTEN_PID $LISTEN_FDS $$", "pid");
        let words: Vec<_> = output.split_whitespace().collect();
        assert_eq!(words.len(), 3);
        assert_eq!((words[0], words[1]), (words[2], "1"));
    }

    #[test]
    fn the_socket_lies_at_descriptor_three() {
        assert!(run("readlink /proc/$$/fd/3", "fd").starts_with("socket:"));
    }

    #[test]
    fn the_child_leads_its_own_process_group() {
        let output = run("cut -d' ' -f5 /proc/$$/stat; echo $$", "group");
        let words: Vec<_> = output.split_whitespace().collect();
        assert_eq!(words[0], words[1]);
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error_of_the_parent() {
        let listener = UnixListener::bind(
            std::env::temp_dir().join(format!("sys-missing-{}", std::process::id())),
        )
        .expect("a listener");
        let stdout = io::stderr().as_fd().try_clone_to_owned().expect("a copy");
        let error = spawn_activated(
            OsStr::new("no-such-program-anywhere"),
            &[],
            listener.as_fd(),
            stdout,
        )
        .expect_err("no such program");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let path = listener.local_addr().expect("an address");
        std::fs::remove_file(path.as_pathname().expect("a path")).expect("removed");
    }

    #[test]
    fn a_process_that_was_not_activated_takes_no_sockets() {
        assert!(take_activated_sockets().expect("no error").is_empty());
    }

    #[test]
    fn a_signal_is_not_ignored_unless_someone_ignored_it() {
        assert!(!is_signal_ignored(libc::SIGUSR2));
        assert!(is_signal_ignored(libc::SIGPIPE), "the runtime ignores it");
    }
}
