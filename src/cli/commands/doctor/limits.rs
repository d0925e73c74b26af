//! How much this process may have: descriptors, pipes, buffers, memory.

use std::{
    fs,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
};

use blockferry_sys as sys;

use crate::block::HumanSize;

use super::finding::{Finding, Group, State};

/// What our unix sockets ask for, each way, in bytes.
const BUFFER: usize = 1 << 20;
/// What our pipes ask for, in bytes.
const PIPE: usize = 1 << 20;
/// Fewer descriptors than this are few for a server.
const FEW_DESCRIPTORS: u64 = 1024;
/// Less memory than this is little for a copy with many connections, in bytes.
const LITTLE_MEMORY: u64 = 256 << 20;

pub(super) fn findings() -> Group {
    let mut findings = vec![descriptors()];
    findings.extend(pipes());
    findings.push(socket_buffers());
    findings.push(file_size());
    findings.push(memory_limit());
    Group(findings)
}

fn descriptors() -> Finding {
    let (current, maximum) = sys::descriptor_limits();
    let Some(current) = current else {
        return Finding::new("descriptors", State::Yes).shown("no limit");
    };
    let shown = match maximum {
        Some(maximum) if maximum > current => format!("{current}, {maximum} where asked for"),
        _ => current.to_string(),
    };
    let state = match current < FEW_DESCRIPTORS {
        true => State::Limited,
        false => State::Yes,
    };
    let meaning = match (state, maximum.unwrap_or(u64::MAX) < FEW_DESCRIPTORS) {
        (State::Yes, _) => "",
        (_, false) => "few clients of 'serve'; 'relay' raises it by itself: 'ulimit -n' raises it",
        (_, true) => {
            "few clients of 'serve' and 'relay': the system's administrator can allow more"
        }
    };
    Finding::new("descriptors", state)
        .value(current, shown)
        .meaning(meaning)
}

fn pipes() -> [Finding; 2] {
    let granted = match sys::Pipe::new(PIPE) {
        Ok(pipe) => {
            let capacity = pipe.capacity() as u64;
            let (state, meaning) = match capacity < PIPE as u64 {
                true => (
                    State::Limited,
                    "less than 1 MiB: more goes through memory; see /proc/sys/fs/pipe-max-size",
                ),
                false => (State::Yes, ""),
            };
            let shown = HumanSize(capacity).to_string();
            let finding = Finding::new("pipe size", state);
            finding.value(capacity, shown).meaning(meaning)
        }
        Err(error) => {
            Finding::new("pipe size", State::Unknown).meaning(crate::system::words(&error))
        }
    };
    let all = Finding::new("pipes of this user", State::Yes);
    let all = match sys::user_pipe_limit() {
        Some(limit) => all.value(limit, HumanSize(limit).to_string()).meaning(
            "what 'relay' needs beyond goes through memory; see /proc/sys/fs/pipe-user-pages-soft",
        ),
        None => all.shown("no limit"),
    };
    [granted, all]
}

/// What unix sockets really get.
fn socket_buffers() -> Finding {
    const NAME: &str = "socket buffers";
    let granted = UnixStream::pair().and_then(|(socket, _)| {
        sys::socket::set_buffer_sizes(socket.as_fd(), BUFFER)?;
        sys::socket::buffer_sizes(socket.as_fd())
    });
    match granted {
        Ok((receive, send)) => {
            // The kernel says twice what it grants.
            let granted = receive.min(send) / 2;
            let (state, meaning) = match granted < BUFFER {
                true => (
                    State::Limited,
                    "less than the 1 MiB that unix sockets gain from; \
                     see /proc/sys/net/core/wmem_max and rmem_max",
                ),
                false => (State::Yes, ""),
            };
            let shown = HumanSize(granted as u64).to_string();
            Finding::new(NAME, state)
                .value(granted as u64, shown)
                .meaning(meaning)
        }
        Err(error) => Finding::new(NAME, State::Unknown).meaning(crate::system::words(&error)),
    }
}

fn file_size() -> Finding {
    match sys::file_size_limit() {
        Some(limit) => Finding::new("file size", State::Limited)
            .value(limit, HumanSize(limit).to_string())
            .meaning("larger images fail: 'ulimit -f' raises it"),
        None => Finding::new("file size", State::Yes).shown("no limit"),
    }
}

fn memory_limit() -> Finding {
    const NAME: &str = "memory limit";
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(limit) = least_limit(&groups, Path::new("/sys/fs/cgroup")) else {
        return Finding::new(NAME, State::Yes).shown("no limit");
    };
    let (state, meaning) = match limit < LITTLE_MEMORY {
        true => (
            State::Limited,
            "little for many connections: lower --queue-size, or raise the limit of the control group",
        ),
        false => (State::Yes, "of the control group"),
    };
    Finding::new(NAME, state)
        .value(limit, HumanSize(limit).to_string())
        .meaning(meaning)
}

/// The least limit of the control groups that `groups` (`/proc/self/cgroup`) names and those above, in bytes.
fn least_limit(groups: &str, root: &Path) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        // NUMBER:CONTROLLERS:PATH; of version 2 there is one, with the number 0 and without controllers.
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (tree, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            it if it.split(',').any(|it| it == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = tree.join(path.trim_start_matches('/'));
        for directory in group.ancestors().take_while(|it| it.starts_with(&tree)) {
            let limit = fs::read_to_string(directory.join(file)).ok();
            let limit: Option<u64> = limit.and_then(|text| text.trim().parse().ok());
            // Version 1 says the largest number of whole pages where there is none.
            let limit = limit.filter(|limit| *limit < 1 << 60);
            least = least.into_iter().chain(limit).min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_a_group_and_those_above_counts() {
        let root = tempfile::tempdir().expect("a directory");
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).expect("made");
        let groups = "3:cpu:/x\n0::/a/b\n";
        assert_eq!(least_limit(groups, root.path()), None);
        fs::write(inner.join("memory.max"), "max\n").expect("written");
        fs::write(root.path().join("a/memory.max"), "1048576\n").expect("written");
        assert_eq!(least_limit(groups, root.path()), Some(1 << 20));
        fs::write(inner.join("memory.max"), "2097152\n").expect("written");
        assert_eq!(least_limit(groups, root.path()), Some(1 << 20));
    }

    #[test]
    fn groups_of_version_1_have_a_tree_for_memory() {
        let root = tempfile::tempdir().expect("a directory");
        let group = root.path().join("memory/x");
        fs::create_dir_all(&group).expect("made");
        let groups = "4:cpu,memory:/x\n0::/\n";
        let file = group.join("memory.limit_in_bytes");
        fs::write(&file, "9223372036854771712\n").expect("written");
        assert_eq!(least_limit(groups, root.path()), None);
        fs::write(&file, "4096\n").expect("written");
        assert_eq!(least_limit(groups, root.path()), Some(4096));
        assert_eq!(least_limit("nonsense\n", root.path()), None);
    }
}
