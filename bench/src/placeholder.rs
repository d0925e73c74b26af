//! `{name}` in the arguments of a command: found, and replaced.

use anyhow::{Context, Result};

/// The names in braces in `argument`, in order.
pub(crate) fn names(argument: &str) -> Result<Vec<&str>> {
    let mut found = Vec::new();
    expand(argument, |name| {
        found.push(name);
        Ok(String::new())
    })?;
    Ok(found)
}

/// `argument` with each `{name}` replaced by what `value` says.
pub(crate) fn expand<'a>(
    argument: &'a str,
    mut value: impl FnMut(&'a str) -> Result<String>,
) -> Result<String> {
    let mut expanded = String::new();
    let mut rest = argument;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after
            .split_once('}')
            .with_context(|| format!("`{argument}` has a brace that is never closed"))?;
        expanded.push_str(before);
        expanded.push_str(&value(name)?);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_replaced_by_its_value() {
        let upper = |name: &str| Ok(name.to_uppercase());
        assert_eq!(expand("a{b}c{d:e}", upper).unwrap(), "aBcD:E");
        assert_eq!(expand("plain", upper).unwrap(), "plain");
    }

    #[test]
    fn names_come_in_order() {
        assert_eq!(names("{uri}/{image:x}").unwrap(), ["uri", "image:x"]);
        assert!(names("{uri").is_err());
    }
}
