//! `cargo xtask publish --check`: whether each public crate can be published, from what would be packed.
//!
//! cargo packs every crate that may be published, and builds each from its package and those of the others, as if
//! they were in the registry already.

use std::{fs, process::Command};

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::{program, tools};

#[derive(Args)]
pub(crate) struct Options {
    /// Only checks; publishing itself is left to `cargo publish --workspace`.
    #[arg(long, required = true)]
    check: bool,
}

/// What every public package says of itself. What the registry limits: five keywords, five categories.
const LIMIT: usize = 5;

pub(crate) fn run(_: &Options) -> Result<()> {
    let metadata = tools::metadata(&["--no-deps"])?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let mut wrong = Vec::new();
    let mut public = 0;
    for package in packages.filter(|package| is_public(package)) {
        public += 1;
        let name = package["name"].as_str().unwrap_or_default();
        wrong.extend(
            missing(package)
                .into_iter()
                .map(|what| format!("{name}: {what}")),
        );
        let list = program::cargo(["package", "--allow-dirty", "--list", "--package", name]);
        wrong.extend(
            unpacked(list)?
                .into_iter()
                .map(|what| format!("{name}: {what}")),
        );
    }
    ensure!(public > 0, "no package may be published");
    if !wrong.is_empty() {
        bail!(wrong.join("\nxtask: "));
    }
    // cargo unpacks what it packs in a place named after the target directory, and takes it for known there when it
    // comes again: what a crate was the last time.
    let target = tools::target_directory()?;
    fs::create_dir_all(&target)?;
    let built = tempfile::Builder::new()
        .prefix("publish-")
        .tempdir_in(target)?;
    // What is not committed yet is checked, too.
    let arguments = [
        "publish",
        "--workspace",
        "--dry-run",
        "--allow-dirty",
        "--locked",
    ];
    let mut publish = program::cargo(arguments);
    program::run(publish.arg("--target-dir").arg(built.path()))?;
    eprintln!("{public} packages can be published");
    Ok(())
}

fn is_public(package: &Value) -> bool {
    // Null: to any registry. An empty list: to none.
    package["publish"]
        .as_array()
        .is_none_or(|to| !to.is_empty())
}

/// What the package does not say, or says too much of.
fn missing(package: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    for key in ["description", "license", "readme", "rust_version"] {
        if package[key].as_str().is_none_or(str::is_empty) {
            wrong.push(format!("no {key}"));
        }
    }
    for key in ["keywords", "categories"] {
        let count = package[key].as_array().map_or(0, Vec::len);
        if !(1..=LIMIT).contains(&count) {
            wrong.push(format!("{count} {key} instead of 1 to {LIMIT}"));
        }
    }
    wrong
}

/// The files that belong into every package and are not in this one.
fn unpacked(mut list: Command) -> Result<Vec<String>> {
    let list = program::output(&mut list)?;
    let list = String::from_utf8_lossy(&list);
    let packed: Vec<&str> = list.lines().collect();
    let needed = ["README.md", "LICENSE-APACHE", "LICENSE-MIT", "src/lib.rs"];
    let absent = needed.into_iter().filter(|name| !packed.contains(name));
    Ok(absent.map(|name| format!("{name} is not packed")).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_package_does_not_say_is_named() {
        let whole = json!({
            "description": "Does it", "license": "MIT", "readme": "README.md", "rust_version": "1.88",
            "keywords": ["a"], "categories": ["b"],
        });
        assert!(missing(&whole).is_empty());
        let mut lacking = whole;
        lacking["readme"] = Value::Null;
        lacking["keywords"] = json!(["a", "b", "c", "d", "e", "f"]);
        assert_eq!(
            missing(&lacking),
            ["no readme", "6 keywords instead of 1 to 5"]
        );
    }

    #[test]
    fn a_package_is_public_unless_it_may_go_nowhere() {
        assert!(is_public(&json!({"publish": null})));
        assert!(is_public(&json!({"publish": ["elsewhere"]})));
        assert!(!is_public(&json!({"publish": []})));
    }
}
