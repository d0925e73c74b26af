//! Examples for the help of each command. They are parsed by a test, so that they stay true.

/// A command line that works, and what it does.
pub(super) struct Example {
    pub(super) line: &'static str,
    pub(super) does: &'static str,
}

/// The examples of a command.
pub(super) fn examples(command: &str) -> &'static [Example] {
    let found = EXAMPLES.iter().find(|(name, _)| *name == command);
    found.map_or(&[], |(_, examples)| examples)
}

const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "copy",
        &[
            Example {
                line: "blockferry copy -O qcow2 -c nbd://server/disk disk.qcow2",
                does: "An export becomes a compressed qcow2 image",
            },
            Example {
                line: "blockferry copy --verify disk.img 'nbd+unix:///?socket=/run/nbd.sock'",
                does: "A file goes to a server, and is read back and compared in the end",
            },
            Example {
                line: "blockferry copy --checkpoint disk.state nbds://server/disk /dev/vdb",
                does: "An export goes to a block device; after an interruption the same command goes on",
            },
        ],
    ),
    (
        "serve",
        &[
            Example {
                line: "blockferry serve --unix /run/nbd.sock disk.qcow2",
                does: "The disk in an image, on a Unix socket",
            },
            Example {
                line: "blockferry serve --listen 127.0.0.1:10809 --read-only -e one=a.img -e two=b.img",
                does: "Two images by their names, on a TCP port of this machine",
            },
            Example {
                line: "blockferry serve --filter cow --run 'qemu-img info \"$uri\"' disk.img",
                does: "For as long as a command runs, whose writes are forgotten in the end",
            },
        ],
    ),
    (
        "relay",
        &[
            Example {
                line: "blockferry relay tcp::10809 unix:/run/nbd.sock",
                does: "A Unix socket is reached over TCP",
            },
            Example {
                line: "blockferry relay tcp:127.0.0.1:8080 tcp:first:80 tcp:second:80",
                does: "The second target serves while the first one does not answer",
            },
            Example {
                line: "blockferry relay --tls-listen /etc/pki/nbd tcp::10810 tcp:localhost:10809",
                does: "Clients speak TLS, the target does not",
            },
        ],
    ),
    (
        "info",
        &[
            Example {
                line: "blockferry info disk.qcow2",
                does: "What is in a file",
            },
            Example {
                line: "blockferry info --list nbd://server",
                does: "Which exports a server has",
            },
            Example {
                line: "blockferry info --json [ nbdkit memory 1G ]",
                does: "What a server offers that is started for it, for programs",
            },
        ],
    ),
    (
        "map",
        &[
            Example {
                line: "blockferry map --totals nbd://server/disk",
                does: "How much of an export is data",
            },
            Example {
                line: "blockferry map --picture disk.qcow2",
                does: "A picture of an image in the terminal",
            },
            Example {
                line: "blockferry map --offsets --allow-backing . overlay.qcow2",
                does: "Which file of a chain has each part, and where",
            },
        ],
    ),
    (
        "check",
        &[
            Example {
                line: "blockferry check disk.qcow2",
                does: "Whether an image contradicts itself",
            },
            Example {
                line: "blockferry check --repair leaks disk.qcow2",
                does: "Give space back that is lost in it",
            },
            Example {
                line: "blockferry check -f qcow2 --json nbd://server/disk",
                does: "An image inside an export, for programs",
            },
        ],
    ),
    (
        "measure",
        &[
            Example {
                line: "blockferry measure -O qcow2 disk.img",
                does: "How long a qcow2 image of a file would be",
            },
            Example {
                line: "blockferry measure -O qcow2 -o cluster_size=2M --size 1T",
                does: "How long that of an empty disk would be",
            },
            Example {
                line: "blockferry measure --json nbd://server/disk",
                does: "How much room a sparse file of an export needs, for programs",
            },
        ],
    ),
    (
        "snapshot",
        &[
            Example {
                line: "blockferry snapshot disk.qcow2",
                does: "The snapshots in an image",
            },
            Example {
                line: "blockferry snapshot --create before-upgrade disk.qcow2",
                does: "A snapshot is made inside the image",
            },
            Example {
                line: "blockferry snapshot --apply before-upgrade disk.qcow2",
                does: "The disk is what it was then",
            },
        ],
    ),
    (
        "bitmap",
        &[
            Example {
                line: "blockferry bitmap disk.qcow2",
                does: "The bitmaps in an image",
            },
            Example {
                line: "blockferry bitmap --json disk.qcow2",
                does: "The same for programs",
            },
            Example {
                line: "blockferry bitmap -f qcow2 nbd://server/disk",
                does: "Those of an image inside an export",
            },
        ],
    ),
    (
        "compare",
        &[
            Example {
                line: "blockferry compare disk.img nbd://server/disk",
                does: "A file and an export",
            },
            Example {
                line: "blockferry compare -f raw -F qcow2 disk.img nbd://server/disk",
                does: "The disk in a qcow2 image that the export holds",
            },
            Example {
                line: "blockferry compare --strict --json a.qcow2 b.qcow2",
                does: "Images of different sizes differ; for programs",
            },
        ],
    ),
    (
        "checksum",
        &[
            Example {
                line: "blockferry checksum disk.qcow2",
                does: "The same digest as that of a raw copy of it",
            },
            Example {
                line: "blockferry checksum --algorithm md5/1M nbd://server/disk",
                does: "Another hash, over blocks of another size",
            },
            Example {
                line: "blockferry checksum --expect md5/64k:0cc175b9c0f1b6a831c399e269772661 disk.img",
                does: "Fail unless it is this one",
            },
        ],
    ),
    (
        "create",
        &[
            Example {
                line: "blockferry create -f qcow2 disk.qcow2 40G",
                does: "An empty qcow2 image",
            },
            Example {
                line: "blockferry create -f qcow2 -b base.qcow2 overlay.qcow2",
                does: "An overlay as large as what it lies on",
            },
            Example {
                line: "blockferry create -f qcow2 -o cluster_size=2M,preallocation=metadata disk.qcow2 1T",
                does: "An image with large clusters, whose tables are there from the beginning",
            },
        ],
    ),
    (
        "dd",
        &[
            Example {
                line: "blockferry dd if=disk.qcow2 of=start.img bs=1M count=16",
                does: "The first 16 MiB of the disk in an image",
            },
            Example {
                line: "blockferry dd if=nbd://server/disk of=rest.img bs=1M skip=16",
                does: "All of an export but those",
            },
            Example {
                line: "blockferry dd -O qcow2 if=disk.img of=disk.qcow2",
                does: "The same as copy -O qcow2",
            },
        ],
    ),
    (
        "resize",
        &[
            Example {
                line: "blockferry resize disk.qcow2 +10G",
                does: "10 GiB more",
            },
            Example {
                line: "blockferry resize --shrink -f raw disk.img 8G",
                does: "8 GiB, and what lies behind them is lost",
            },
            Example {
                line: "blockferry resize --preallocation falloc disk.img 20G",
                does: "What is new is allocated",
            },
        ],
    ),
    (
        "doctor",
        &[
            Example {
                line: "blockferry doctor",
                does: "This machine, the current directory, that of temporary files",
            },
            Example {
                line: "blockferry doctor /var/lib/images /dev/vdb",
                does: "A directory and a block device in their place",
            },
            Example {
                line: "blockferry doctor --json",
                does: "The same for programs",
            },
        ],
    ),
    (
        "sources",
        &[
            Example {
                line: "blockferry sources",
                does: "All of them, with their parameters",
            },
            Example {
                line: "blockferry sources --json",
                does: "The same for programs",
            },
            Example {
                line: "blockferry copy sample:1G,data=20 disk.img",
                does: "One of them as a source",
            },
        ],
    ),
    (
        "filters",
        &[
            Example {
                line: "blockferry filters",
                does: "All of them, with their parameters and effects",
            },
            Example {
                line: "blockferry filters --json",
                does: "The same for programs",
            },
            Example {
                line: "blockferry copy --filter readahead nbd://server/disk disk.img",
                does: "One of them in front of a source",
            },
        ],
    ),
    (
        "completions",
        &[
            Example {
                line: "blockferry completions bash",
                does: "For /usr/share/bash-completion/completions/blockferry",
            },
            Example {
                line: "blockferry completions zsh",
                does: "For a file _blockferry in a directory of $fpath",
            },
            Example {
                line: "blockferry completions fish",
                does: "For ~/.config/fish/completions/blockferry.fish",
            },
        ],
    ),
];

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser;

    use super::{
        super::{Cli, command},
        *,
    };
    use crate::endpoint::collapse_groups;

    /// Splits a line at its blanks, as a shell does, with quotes.
    fn words(line: &str) -> Vec<OsString> {
        let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
        for c in line.chars() {
            match (c, quote) {
                (c, Some(end)) if c == end => quote = None,
                ('\'' | '"', None) => quote = Some(c),
                (' ', None) => words.push(std::mem::take(&mut word).into()),
                (c, _) => word.push(c),
            }
        }
        assert_eq!(quote, None, "{line}");
        words.push(word.into());
        words
    }

    #[test]
    fn every_command_has_three_examples_that_can_be_read() {
        for command in command()
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
        {
            let name = command.get_name();
            let examples = examples(name);
            assert_eq!(examples.len(), 3, "{name}");
            assert!(
                examples[0].line.starts_with(&format!("blockferry {name}")),
                "{name}"
            );
            for Example { line, .. } in examples {
                let words = collapse_groups(words(line)).expect("groups that end");
                if let Err(error) = Cli::try_parse_from(words) {
                    panic!("{line}: {error}");
                }
            }
        }
    }
}
