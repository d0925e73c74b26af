//! What clients are told that they can do.

use std::ffi::OsStr;

use crate::{
    cli::failure::Failure,
    endpoint::printable,
    filter::{
        Delay, Fua, MultiConn, NamedFilter, NoCache, NoExtents, NoZero, ReadOnly, Rotational,
    },
};

use super::{super::values, Filter, last, missing};

pub(super) static FUA: Filter = Filter {
    name: "fua",
    keys: &["fuamode"],
    help: "\
fuamode=none|emulate|native|force|pass|discard
                               What is made durable: FUA is a flush of the plugin (none, emulate), goes through (native,
                               pass), is put on everything that is written (force); nothing is ever made durable, and
                               what was written may be lost (discard). Clients are told of FUA in all of them.",
    build: |given| {
        let mode = last(given);
        let mode = mode.as_ref().map(|mode| (mode, mode.to_str()));
        Ok(match mode {
            None | Some((_, Some("none" | "emulate"))) => vec![NamedFilter::new(Fua::Flush)],
            Some((_, Some("native" | "pass"))) => Vec::new(),
            Some((_, Some("force"))) => vec![NamedFilter::new(Fua::Force)],
            Some((_, Some("discard"))) => vec![NamedFilter::new(Fua::Discard)],
            Some((mode, _)) => return Err(unknown("fuamode", mode)),
        })
    },
};

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

pub(super) static NO_CACHE: Filter = Filter {
    name: "nocache",
    keys: &["cachemode"],
    help: "\
cachemode=none|emulate|nop     What becomes of requests to cache a range: clients cannot make them, the range is read, they
                               are acknowledged and nothing is done.",
    build: |given| {
        let mode = last(given);
        let mode = mode.as_ref().map(|mode| (mode, mode.to_str()));
        let mode = match mode {
            None | Some((_, Some("none"))) => NoCache::None,
            Some((_, Some("emulate"))) => NoCache::Read,
            Some((_, Some("nop" | "no-op"))) => NoCache::Ignore,
            Some((mode, _)) => return Err(unknown("cachemode", mode)),
        };
        Ok(vec![NamedFilter::new(mode)])
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

pub(super) static READ_ONLY: Filter = Filter {
    name: "readonly",
    keys: &["readonly-file"],
    help: "\
(readonly-file=PATH, which makes the disk read-only while the file is there, is not supported)",
    build: |given| match last(given) {
        None => Ok(vec![NamedFilter::new(ReadOnly)]),
        Some(_) => Err(missing(
            "readonly-file",
            "a disk is read-only or not as long as it is served",
        )),
    },
};

pub(super) static ROTATIONAL: Filter = Filter {
    name: "rotational",
    keys: &["rotational"],
    help: "\
rotational=BOOL                Whether clients are told that the disk spins (true)",
    build: |given| {
        let on = match last(given) {
            Some(value) => values::boolean("rotational", &value)?,
            None => true,
        };
        Ok(vec![NamedFilter::new(Rotational { on })])
    },
};

/// A word that is none of those that a parameter can be.
fn unknown(key: &str, value: &OsStr) -> Failure {
    Failure::usage(format!("unknown {key} '{}'", printable(value)))
}
