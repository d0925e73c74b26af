//! Filters by their names. This is the one place that knows which there are.

use crate::cli::failure::Failure;

use super::module_name;

/// Refuses the filters that are not there.
pub(super) fn check(names: &[String]) -> Result<(), Failure> {
    let Some(name) = names.first() else {
        return Ok(());
    };
    let name = module_name(name, "filter");
    Err(Failure::usage(format!(
        "cannot open filter '{name}': this server has no filters"
    )))
}
