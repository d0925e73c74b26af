//! What a result was measured on: without it, a number means nothing.

use std::{fs, path::Path, process::Command, thread};

use serde::{Deserialize, Serialize};

/// The machine, as far as it says something about the numbers. Nothing that identifies it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory_gib: u64,
    kernel: String,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let line = |file: &str, key: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            value(&text, key)
        };
        let memory = line("/proc/meminfo", "MemTotal").unwrap_or_default();
        let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: line("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (kib + (1 << 19)) >> 20,
            kernel: kernel.trim().to_owned(),
        }
    }

    /// In one line.
    pub(crate) fn summary(&self) -> String {
        let Self {
            cpu,
            cores,
            memory_gib,
            kernel,
        } = self;
        format!("{cpu}, {cores} cores, {memory_gib} GiB, Linux {kernel}")
    }
}

/// The first `key : value` of a file of /proc.
fn value(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })
}

/// The version of blockferry that was measured: the package's, and the commit where git knows it.
pub(crate) fn our_version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let commit = Command::new("git")
        .args(["describe", "--always", "--dirty", "--exclude=*"])
        .current_dir(workspace)
        .output()
        .ok()
        .filter(|output| output.status.success());
    match commit {
        Some(output) => {
            let commit = String::from_utf8_lossy(&output.stdout);
            format!("blockferry {version} ({})", commit.trim())
        }
        None => format!("blockferry {version}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_of_a_key_is_taken() {
        let text = "processor\t: 0\nmodel name\t: Fast One\nmodel name\t: Other\n";
        assert_eq!(value(text, "model name").as_deref(), Some("Fast One"));
        assert_eq!(value(text, "model"), None);
    }

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::this();
        assert!(machine.cores > 0);
        assert!(!machine.kernel.is_empty());
    }
}
