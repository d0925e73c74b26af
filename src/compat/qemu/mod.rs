//! What the command lines of QEMU's tools have in common.
//!
//! | file | what it does |
//! |---|---|
//! | `keywords` | `key=value,key=value`, as `--object` and `--image-opts` take them |
//! | `json` | the same keys in JSON |
//! | `credentials` | `--object` and `--tls-creds` |
//! | `block_options` | the image that such keys describe |
//! | `tree` | what is told of something, as JSON and as text |
//! | `names` | the image that a file name, `nbd:...` or `json:{...}` names |
//! | `size` | sizes in bytes |
//! | `format` | what format an image has, or seems to have |

use std::ffi::OsStr;

use crate::{cli::failure::Failure, endpoint::printable};

pub(super) mod block_options;
pub(super) mod credentials;
pub(super) mod format;
pub(super) mod json;
pub(super) mod keywords;
pub(super) mod names;
pub(super) mod size;
pub(super) mod tree;

/// The version of QEMU whose tools are spoken for.
pub(super) const VERSION: &str = "10.0.2";

/// The argument of an option, which must be text.
pub(super) fn text(option: &str, value: &OsStr) -> Result<String, Failure> {
    let text = value.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::usage(format!("--{option}: '{}' is not text", printable(value))))
}
