//! What a child cost: waiting for it without losing sight of anything else, and its resource usage.

use std::{
    io, mem,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::{Child, ExitStatus},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, getpid, pidfd_open, set_child_subreaper},
};

/// What a process and those of its children that it waited for, or left to us, have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in user mode.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// The largest resident set of any one of these processes, in bytes. Never less than what the
    /// parent had resident when it started the child.
    pub peak_memory: u64,
}

/// Why [`await_exit`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The child has ended. It still has to be reaped.
    Exited,
    /// The descriptor became readable while the child was running.
    Interrupted,
    /// The time is up.
    TimedOut,
}

/// A descriptor that becomes readable when `child` has ended, closed in programs that are started.
///
/// # Errors
/// As `pidfd_open(2)`; `ESRCH` when the child was reaped before.
pub fn exit_descriptor(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(pid(child)?, PidfdFlags::empty())?)
}

/// Waits until `child` has ended, `interrupt` is readable, or `timeout` is over, whichever is first.
/// It reaps nothing: the process id stays the child's own.
///
/// # Errors
/// What `pidfd_open` or `poll` failed with; `ESRCH` when the child was reaped before.
pub fn await_exit(
    child: &Child,
    interrupt: BorrowedFd<'_>,
    timeout: Duration,
) -> io::Result<Waited> {
    let process = exit_descriptor(child)?;
    let deadline = Instant::now() + timeout;
    loop {
        let mut watched = [
            PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(interrupt, PollFlags::IN),
        ];
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut watched, Some(&left)) {
            Ok(0) => return Ok(Waited::TimedOut),
            Ok(_) if !watched[0].revents().is_empty() => return Ok(Waited::Exited),
            Ok(_) => return Ok(Waited::Interrupted),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes processes whose parent ends children of this process, if they descend from it, so that [`reap`] learns what
/// they used. They have to be reaped by it.
///
/// # Errors
/// As `prctl(2)` with `PR_SET_CHILD_SUBREAPER`.
pub fn adopt_orphans() -> io::Result<()> {
    // Which process is named has no meaning, only that one is.
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Waits for the end of `child` and takes its exit status together with what it used. If it leads a process group,
/// those of the group that it left to this process (see [`adopt_orphans`]) are waited for, too, and counted.
///
/// # Errors
/// `ECHILD` when it was reaped before.
pub fn reap(child: Child) -> io::Result<(ExitStatus, Usage)> {
    let pid = pid(&child)?.as_raw_nonzero().get();
    // By value, so that nobody can wait for a process id that will be someone else's.
    drop(child);
    let (status, mut usage) = wait_for(pid)?;
    while let Ok((_, left)) = wait_for(-pid) {
        usage.user += left.user;
        usage.system += left.system;
        usage.peak_memory = usage.peak_memory.max(left.peak_memory);
    }
    Ok((status, usage))
}

/// `wait4(2)`: of a child, or with a negative number of any child in a process group.
fn wait_for(whom: libc::pid_t) -> io::Result<(ExitStatus, Usage)> {
    let mut status: libc::c_int = 0;
    let mut usage = mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are valid for writing what the call writes.
        let result = unsafe { libc::wait4(whom, &raw mut status, 0, usage.as_mut_ptr()) };
        if result > 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: zeroed memory is a valid `rusage`, and the call filled it.
    let usage = unsafe { usage.assume_init() };
    let usage = Usage {
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        // Linux counts in KiB.
        peak_memory: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    };
    Ok((ExitStatus::from_raw(status), usage))
}

fn pid(child: &Child) -> io::Result<Pid> {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

// Miri knows nothing of posix_spawn with attributes.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::{
        io::Write as _,
        os::unix::{net::UnixStream, process::CommandExt as _},
        process::{Command, Stdio},
    };

    const LONG: Duration = Duration::from_secs(600);

    fn shell(script: &str) -> Child {
        Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::null())
            .spawn()
            .expect("a shell")
    }

    #[test]
    fn a_child_that_ended_is_reported_before_an_interrupt() {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        ours.write_all(b"x").expect("written");
        let child = shell("exit 3");
        while await_exit(&child, theirs.as_fd(), LONG).expect("waited") != Waited::Exited {}
        let (status, _) = reap(child).expect("reaped");
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn an_interrupt_ends_the_wait_and_leaves_the_child() {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        ours.write_all(b"x").expect("written");
        let mut child = shell("exec sleep 1000");
        let waited = await_exit(&child, theirs.as_fd(), LONG).expect("waited");
        assert_eq!(waited, Waited::Interrupted);
        child.kill().expect("still there");
        assert!(!reap(child).expect("reaped").0.success());
    }

    #[test]
    fn the_time_can_be_up() {
        let (_ours, theirs) = UnixStream::pair().expect("a pair");
        let mut child = shell("exec sleep 1000");
        let waited = await_exit(&child, theirs.as_fd(), Duration::ZERO).expect("waited");
        assert_eq!(waited, Waited::TimedOut);
        child.kill().expect("still there");
        reap(child).expect("reaped");
    }

    #[test]
    fn what_a_group_leaves_behind_is_waited_for_too() {
        adopt_orphans().expect("an ordinary call");
        let mut child = Command::new("sh")
            .args(["-c", "(sleep 1; echo x) & exit 0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("a shell");
        let stdout = child.stdout.take().expect("a pipe");
        reap(child).expect("reaped");
        // Nobody holds the other end any more.
        let mut watched = [PollFd::new(&stdout, PollFlags::IN)];
        poll(&mut watched, Some(&Timespec::default())).expect("polled");
        assert!(watched[0].revents().contains(PollFlags::HUP));
    }

    #[test]
    fn the_usage_includes_what_the_children_of_the_child_used() {
        // The loop runs in a subshell, which the shell waits for.
        let child = shell("(i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done); exit 0");
        let (status, usage) = reap(child).expect("reaped");
        assert!(status.success());
        assert!(usage.user + usage.system > Duration::ZERO);
        assert!(usage.peak_memory > 4096);
    }
}
