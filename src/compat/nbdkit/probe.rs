//! What scripts ask before they use nbdkit: its configuration, and what a plugin can do.

use std::{env, ffi::OsString, path::PathBuf};

use crate::{
    cli::{commands, failure::Failure},
    endpoint::EndpointKind,
    script::{PluginDump, Script, ThreadModel},
};

use super::{VERSION, parameters::Parameters, plugins::Plugin};

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
selinux=yes
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

/// What `PLUGIN --dump-plugin` prints; a script that is given with it has its say.
pub(super) fn dump_plugin(plugin: &Plugin, words: &[OsString]) -> Result<String, Failure> {
    let script = match plugin.scripted && !words.is_empty() {
        true => Some(script(plugin, words)?),
        false => None,
    };
    let binary = env::current_exe().unwrap_or_else(|_| PathBuf::from("nbdkit"));
    let thread_model = script.as_ref().map(|script| script.thread_model);
    let mut text = format!(
        "\
path={}
name={}
version={VERSION}
api_version=2
max_thread_model=parallel
thread_model={}
errno_is_preserved=1
",
        binary.display(),
        plugin.name,
        thread_model.unwrap_or(ThreadModel::Parallel).as_str(),
    );
    let magic = plugin.magic.filter(|key| !key.is_empty());
    let magic = magic.map(|key| format!("magic_config_key={key}\n"));
    text.extend(magic);
    let methods = plugin.methods.iter();
    text.extend(methods.map(|method| format!("has_{method}=1\n")));
    text.extend(plugin.facts.iter().map(|fact| format!("{fact}\n")));
    if let Some(script) = script {
        text.push_str(&String::from_utf8_lossy(&script.text));
    }
    Ok(text)
}

/// What a script says of itself.
fn script(plugin: &Plugin, words: &[OsString]) -> Result<PluginDump, Failure> {
    let served = (plugin.build)(Parameters::read(words, plugin.magic)?)?;
    match served.source.source.kind() {
        EndpointKind::Script(options) => {
            let dump = Script::dump_plugin(options.clone());
            Ok(commands::runtime()?.block_on(dump)?)
        }
        _ => Err(Failure::usage("it is not a script")),
    }
}
