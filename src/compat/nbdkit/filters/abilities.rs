//! What clients are told that they can do.

use std::ffi::OsStr;

use crate::{
    cli::failure::Failure,
    endpoint::printable,
    filter::{Delay, MultiConn, NamedFilter, NoExtents, NoZero},
};

use super::{super::values, Filter, missing};

pub(super) static MULTI_CONN: Filter = Filter {
    name: "multi-conn",
    keys: &[
        "multi-conn-mode",
        "multi-conn-track-dirty",
        "multi-conn-exportname",
    ],
    help: "\
multi-conn-mode=auto|plugin|disable|unsafe
                               Whether several connections are said to be safe: as the plugin says (auto, plugin),
                               never, always. (emulate is not supported)
multi-conn-track-dirty=connection|fast|off
multi-conn-exportname=BOOL     Understood, and without effect: flushes are passed on as they come.",
    build: |given| {
        let mut mode = Vec::new();
        for (key, value) in given {
            match (&*key, value.to_str()) {
                ("multi-conn-mode", Some("auto" | "plugin")) => mode.clear(),
                ("multi-conn-mode", Some("disable")) => mode = vec![MultiConn { on: false }],
                ("multi-conn-mode", Some("unsafe")) => mode = vec![MultiConn { on: true }],
                ("multi-conn-mode", Some("emulate")) => {
                    let why = "flushes are not replicated; 'auto' says what the plugin can do";
                    return Err(missing("multi-conn-mode=emulate", why));
                }
                ("multi-conn-track-dirty", Some("conn" | "connection" | "fast" | "off")) => {}
                ("multi-conn-exportname", _) => {
                    values::boolean(&key, &value)?;
                }
                _ => return Err(unknown(&key, &value)),
            }
        }
        Ok(mode.into_iter().map(NamedFilter::new).collect())
    },
};

pub(super) static NO_EXTENTS: Filter = Filter {
    name: "noextents",
    keys: &[],
    help: "",
    build: |_| Ok(vec![NamedFilter::new(NoExtents)]),
};

pub(super) static NO_FILTER: Filter = Filter {
    name: "nofilter",
    keys: &[],
    help: "",
    build: |_| Ok(Vec::new()),
};

pub(super) static NO_ZERO: Filter = Filter {
    name: "nozero",
    keys: &["zeromode", "fastzeromode"],
    help: "\
zeromode=none|emulate|notrim|plugin
                               What becomes of zeroing: it is written as data (none, emulate), allocates (notrim), is
                               left to the plugin. Clients are told that they can zero in all of them.
fastzeromode=none|slow|default Whether zeroing can be asked to be fast: no; yes, and it always fails; as the plugin says.
                               (ignore is not supported)",
    build: |given| {
        let (mut zero, mut fast) = (Some(NoZero::All), None);
        for (key, value) in given {
            match (&*key, value.to_str()) {
                ("zeromode", Some("none" | "emulate")) => zero = Some(NoZero::All),
                ("zeromode", Some("notrim")) => zero = Some(NoZero::Holes),
                ("zeromode", Some("plugin")) => zero = None,
                ("fastzeromode", Some("default")) => fast = None,
                ("fastzeromode", Some("none")) => fast = Some(NamedFilter::new(NoZero::Fast)),
                ("fastzeromode", Some("slow")) => {
                    let mut delay = Delay::default();
                    delay.fast_zero = false;
                    fast = Some(NamedFilter::new(delay));
                }
                ("fastzeromode", Some("ignore")) => {
                    let why = "clients are not told what is not so";
                    return Err(missing("fastzeromode=ignore", why));
                }
                _ => return Err(unknown(&key, &value)),
            }
        }
        // What cannot zero at all cannot do it fast.
        let fast = fast.filter(|_| zero != Some(NoZero::All));
        Ok(fast.into_iter().chain(zero.map(NamedFilter::new)).collect())
    },
};

/// A word that is none of those that a parameter can be.
fn unknown(key: &str, value: &OsStr) -> Failure {
    Failure::usage(format!("unknown {key} '{}'", printable(value)))
}
