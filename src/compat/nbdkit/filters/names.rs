//! Other names for exports: what is no filter here, but said of the server.

use crate::cli::{
    failure::Failure,
    options::{Described, ExportNames, Listed},
};

use super::{super::values, Filter, Given, missing};

pub(super) static EXPORT_NAME: Filter = Filter {
    name: "exportname",
    keys: &[
        "default-export",
        "exportname-list",
        "exportname-strict",
        "exportname",
        "exportdesc",
    ],
    help: "\
default-export=NAME            The export that the empty name stands for
exportname-list=keep|error|empty|defaultonly|explicit
                               The exports that are listed: as the plugin lists them, none and an error, none, the
                               default one, those of exportname=
exportname-strict=BOOL         Whether only those of exportname= can be opened (false)
exportname=NAME                A name, for these; several are possible
exportdesc=keep|none|fixed:TEXT
                               What is said of exports. (script: is not supported)",
    build: |_| Ok(Vec::new()),
};

/// What the parameters of `exportname` say.
pub(super) fn read(given: Given) -> Result<ExportNames, Failure> {
    let mut names = ExportNames::default();
    for (key, value) in given {
        let text = values::text(&key, &value)?;
        match (&*key, &*text) {
            ("default-export", name) => names.default = Some(name.to_owned()),
            ("exportname-list", mode) => {
                names.listed = match mode {
                    "keep" => Listed::AsTheyAre,
                    "error" => Listed::Refused,
                    "empty" => Listed::Nothing,
                    "defaultonly" | "default-only" => Listed::Default,
                    "explicit" => Listed::Known,
                    _ => return Err(unknown(&key, mode)),
                };
            }
            ("exportname-strict", _) => names.strict = values::boolean(&key, &value)?,
            ("exportname", name) => names.known.push(name.to_owned()),
            (_, "keep") => names.described = Described::AsTheyAre,
            (_, "none") => names.described = Described::Nothing,
            (_, text) => match text.strip_prefix("fixed:") {
                Some(text) => names.described = Described::As(text.to_owned()),
                None if text.starts_with("script:") => {
                    return Err(missing("exportdesc=script:", "no program is run for it"));
                }
                None => return Err(unknown(&key, text)),
            },
        }
    }
    Ok(names)
}

fn unknown(key: &str, mode: &str) -> Failure {
    let mode = crate::endpoint::printable(mode.as_ref());
    Failure::usage(format!("unrecognized {key} mode: {mode}"))
}
