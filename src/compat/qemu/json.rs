//! The keys that JSON spells: `{"driver": "raw", "file": {"driver": "file", "filename": "x"}}` is
//! `driver=raw,file.driver=file,file.filename=x`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Longer texts are nobody's description of an image. Parsing nests no deeper than 128, by the parser's own bound.
const LONGEST: usize = 1 << 20;

/// The keys and values of an object, inner ones with a dot behind the name of the object that they are in. `null` is
/// an empty value.
pub(in crate::compat) fn keywords(text: &str) -> Result<BTreeMap<String, String>, String> {
    if text.len() > LONGEST {
        return Err("Could not parse the JSON options: they are too long".to_owned());
    }
    let parsed: Value = serde_json::from_str(&double_quoted(text))
        .map_err(|error| format!("Could not parse the JSON options: JSON parse error, {error}"))?;
    let Value::Object(object) = parsed else {
        return Err("Invalid JSON object given".to_owned());
    };
    let mut flat = BTreeMap::new();
    flatten("", object, &mut flat)?;
    Ok(flat)
}

/// The same with strings between double quotes only: QEMU takes single ones, too.
fn double_quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    let mut inside = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, inside) {
            ('\'' | '"', None) => {
                inside = Some(c);
                quoted.push('"');
            }
            (_, Some(quote)) if c == quote => {
                inside = None;
                quoted.push('"');
            }
            ('"', Some(_)) => quoted.push_str("\\\""),
            ('\\', Some(_)) => match chars.next() {
                Some('\'') => quoted.push('\''),
                next => {
                    quoted.push('\\');
                    quoted.extend(next);
                }
            },
            _ => quoted.push(c),
        }
    }
    quoted
}

fn flatten(
    prefix: &str,
    object: Map<String, Value>,
    flat: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    for (key, value) in object {
        let key = format!("{prefix}{key}");
        let value = match value {
            Value::Object(inner) => {
                flatten(&format!("{key}."), inner, flat)?;
                continue;
            }
            Value::Array(elements) => {
                let numbered = elements.into_iter().enumerate();
                let inner = numbered.map(|(index, element)| (index.to_string(), element));
                flatten(&format!("{key}."), inner.collect(), flat)?;
                continue;
            }
            Value::Null => String::new(),
            Value::Bool(true) => "on".to_owned(),
            Value::Bool(false) => "off".to_owned(),
            Value::Number(number) => number.to_string(),
            Value::String(text) => text,
        };
        if flat.insert(key.clone(), value).is_some() {
            return Err(format!("Parameter '{key}' is given twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(text: &str) -> Vec<(String, String)> {
        keywords(text).expect("good").into_iter().collect()
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn strings_may_stand_between_single_quotes() {
        let text =
            r#"{'driver': 'raw', "file": {'filename': 'a "b" \'c\' \\', "x": "it's \"y\""}}"#;
        let expected = [
            pair("driver", "raw"),
            pair("file.filename", r#"a "b" 'c' \"#),
            pair("file.x", r#"it's "y""#),
        ];
        assert_eq!(flat(text), expected);
    }

    #[test]
    fn objects_inside_are_dots() {
        let nested = r#"{"driver": "raw", "file": {"server": {"port": 3}, "x": true}, "y": null}"#;
        let expected = [
            pair("driver", "raw"),
            pair("file.server.port", "3"),
            pair("file.x", "on"),
            pair("y", ""),
        ];
        assert_eq!(flat(nested), expected);
        let dotted = r#"{"driver": "raw", "file.server.port": "3", "file.x": "on", "y": null}"#;
        assert_eq!(flat(dotted), expected);
        assert_eq!(
            flat(r#"{"a": ["x", {"b": 1}]}"#),
            [pair("a.0", "x"), pair("a.1.b", "1")]
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert_eq!(keywords("[]"), Err("Invalid JSON object given".to_owned()));
        for hostile in [
            "{".repeat(100_000),
            "{\"a\":".repeat(100_000),
            "[".repeat(1000),
            "\"".repeat(2 << 20),
            r#"{"a.b": 1, "a": {"b": 2}}"#.to_owned(),
            String::new(),
        ] {
            assert!(
                keywords(&hostile).is_err(),
                "{}",
                &hostile[..20.min(hostile.len())]
            );
        }
    }
}
