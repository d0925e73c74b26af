//! What scripts ask before they use nbdkit: its configuration, and what a plugin can do.

use std::{env, fmt::Write, path::PathBuf};

use super::{VERSION, plugins::Plugin};

/// What `--dump-config` prints. There are no directories of plugins and filters: they are in the program.
pub(super) fn dump_config() -> String {
    let binary = env::current_exe().unwrap_or_else(|_| PathBuf::from("nbdkit"));
    let directory = binary.parent().map(PathBuf::from).unwrap_or_default();
    let directory = directory.display();
    let mut numbers = VERSION.split('.');
    let (major, minor) = (numbers.next(), numbers.next());
    let (cpu, os) = (env::consts::ARCH, env::consts::OS);
    format!(
        "\
binary={binary}
bindir={directory}
exit_with_parent=yes
filterdir={directory}
host_cpu={cpu}
host_os={os}-gnu
libdir={directory}
mandir=/usr/share/man
name=nbdkit
plugindir={directory}
root_tls_certificates_dir=/etc/pki/nbdkit
sbindir={directory}
selinux=no
sysconfdir=/etc
tls=yes
version={VERSION}
version_major={major}
version_minor={minor}
zstd=no
",
        binary = binary.display(),
        major = major.unwrap_or("1"),
        minor = minor.unwrap_or("0"),
    )
}

/// What `PLUGIN --dump-plugin` prints.
pub(super) fn dump_plugin(plugin: &Plugin) -> String {
    let binary = env::current_exe().unwrap_or_else(|_| PathBuf::from("nbdkit"));
    let mut text = format!(
        "\
path={}
name={}
version={VERSION}
api_version=2
max_thread_model=parallel
thread_model=parallel
errno_is_preserved=1
",
        binary.display(),
        plugin.name
    );
    // Writing to a string cannot fail.
    if let Some(key) = plugin.magic {
        let _ = writeln!(text, "magic_config_key={key}");
    }
    for method in plugin.methods {
        let _ = writeln!(text, "has_{method}=1");
    }
    for fact in plugin.facts {
        let _ = writeln!(text, "{fact}");
    }
    text
}
