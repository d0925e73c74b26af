//! Counting the system calls of a program and of all that it starts, in a run that is not timed.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{interrupt::Interrupt, process, tools};

/// A program that counts system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    /// Counts in the kernel and disturbs nothing, where we are allowed to.
    Perf,
    /// Stops the program at each call: what it does in one call when it is fast may be several now.
    Strace,
}

impl Counter {
    /// The first that is there and works here.
    pub(crate) fn find(scratch: &Path, interrupt: &Interrupt) -> Result<Option<Self>> {
        for counter in [Self::Perf, Self::Strace] {
            interrupt.check()?;
            if tools::find(counter.program()).is_none() {
                continue;
            }
            let written = scratch.join("calls");
            let mut command = counter.watching("true", &written);
            if process::run(&mut command, scratch, interrupt).is_ok()
                && counter.total(&written).is_ok()
            {
                return Ok(Some(counter));
            }
        }
        Ok(None)
    }

    /// What it is called in a report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Perf => "perf stat -e raw_syscalls:sys_enter",
            Self::Strace => "strace -f -c",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Perf => "perf",
            Self::Strace => "strace",
        }
    }

    /// The beginning of a command that runs `program` and writes what it counted to the file `written`.
    pub(crate) fn watching(self, program: &str, written: &Path) -> Command {
        let mut command = Command::new(self.program());
        match self {
            Self::Perf => command.args(["stat", "-x,", "-e", "raw_syscalls:sys_enter", "-o"]),
            Self::Strace => command.args(["-f", "-c", "-o"]),
        };
        command.arg(written).args(["--", program]);
        command
    }

    /// The number of calls, from the file that it wrote.
    pub(crate) fn total(self, written: &Path) -> Result<u64> {
        let text = fs::read_to_string(written).with_context(|| written.display().to_string())?;
        let total = match self {
            Self::Perf => total_of_perf(&text),
            Self::Strace => total_of_strace(&text),
        };
        total.with_context(|| format!("{} counted nothing", self.program()))
    }
}

/// `COUNT,UNIT,EVENT,...`, after comments.
fn total_of_perf(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("sys_enter"))?;
    line.split(',').next()?.parse().ok()
}

/// `100.00 SECONDS USECS CALLS [ERRORS] total`, below a line for each call.
fn total_of_strace(text: &str) -> Option<u64> {
    let line = text.lines().rfind(|line| line.ends_with(" total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found_in_what_perf_writes() {
        let text = "# started on a day\n\n29,,raw_syscalls:sys_enter,376990,100.00,,\n";
        assert_eq!(total_of_perf(text), Some(29));
        let refused = "<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n";
        assert_eq!(total_of_perf(refused), None);
    }

    #[test]
    fn the_total_is_found_in_what_strace_writes() {
        let text = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 25.97    0.000395         395         1           execve
  1.31    0.000020          20         1         1 access
------ ----------- ----------- --------- --------- ----------------
100.00    0.001521          52        29         1 total
";
        assert_eq!(total_of_strace(text), Some(29));
        assert_eq!(total_of_strace(""), None);
    }
}
