//! For this crate's tests: qemu's own tools, where they are installed.

use std::{
    path::Path,
    process::{Command, Stdio},
};

/// Whether the tools are there; says so where they are not, for a test that does nothing then.
pub(crate) fn is_installed() -> bool {
    let runs = |tool| {
        let mut command = Command::new(tool);
        command.arg("--version").stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let installed = runs("qemu-img") && runs("qemu-io");
    if !installed {
        #[expect(
            clippy::print_stderr,
            reason = "who reads the test's output is to know"
        )]
        {
            eprintln!("skipped: qemu-img and qemu-io are not installed");
        }
    }
    installed
}

/// Runs `qemu-img` in `directory` with arguments between spaces, and gives what it printed.
pub(crate) fn qemu_img(directory: &Path, arguments: &str) -> String {
    let mut command = Command::new("qemu-img");
    command.args(arguments.split(' '));
    run(directory, &mut command)
}

/// Runs `qemu-io` on the qcow2 image `image` in `directory` with these commands: `"write -P 7 64k 4k"`.
pub(crate) fn qemu_io(directory: &Path, image: &str, commands: &[&str]) -> String {
    run(directory, &mut qemu_io_on("qcow2", image, commands))
}

/// The command that runs `qemu-io` on `image`, which is in this format, with these commands.
pub(crate) fn qemu_io_on(format: &str, image: &str, commands: &[&str]) -> Command {
    let mut command = Command::new("qemu-io");
    command.args(["-f", format]);
    for text in commands {
        command.args(["-c", text]);
    }
    command.arg(image);
    command
}

/// What `qemu-img check` says of `image`: an object of numbers. A number that is 0 is not there.
pub(crate) fn qemu_check(directory: &Path, image: &str) -> serde_json::Value {
    let mut command = Command::new("qemu-img");
    command.args(["check", "-f", "qcow2", "--output=json", image]);
    let output = command.current_dir(directory).output().expect("it runs");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        let said = String::from_utf8_lossy(&output.stderr);
        panic!("{error}: {said}")
    })
}

/// A number of that object.
pub(crate) fn number(report: &serde_json::Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or(0)
}

/// Runs a command in `directory`, which has to succeed, and gives what it printed.
pub(crate) fn run(directory: &Path, command: &mut Command) -> String {
    let output = command.current_dir(directory).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}{failed}");
    said
}
