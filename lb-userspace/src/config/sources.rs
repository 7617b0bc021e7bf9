//! `[service.discovery]`: tables of registries, and the same as text.

use std::str::FromStr as _;

use super::reader::{At, Section, Value};
use crate::{
    Error, Result,
    discovery::{SourceSpec, Vanish, spec::encode},
};

/// Kinds of registries and the key that says what is looked up in each.
const KINDS: [(&str, &str); 4] = [("consul", "service"), ("dns", "host"), ("etcd", "prefix"), ("file", "path")];

/// All sources of a service.
pub fn read(section: &Section<'_>) -> Vec<At<SourceSpec>> {
    let mut sources = Vec::new();
    for (kind, target) in KINDS {
        for value in section.get(kind).map(|value| value.each()).unwrap_or_default() {
            let source = if value.raw().is_table() { table(&value, kind, target) } else { text(&value, kind) };
            sources.extend(source);
        }
    }
    sources
}

/// `shared = "etcd:PREFIX"`: where a fleet's services are.
pub fn shared(text: &str) -> Result<SourceSpec> {
    let wrong = || Error::usage(format!("'{text}' is not a place of shared services")).hint("etcd:PREFIX[?addr=..]");
    if !text.starts_with("etcd:") {
        return Err(wrong());
    }
    let mut source: SourceSpec = text.parse().map_err(|error: Error| error.hint("etcd:PREFIX[?addr=..]"))?;
    if source.name == source.wanted.name() {
        source.name.push_str("/config");
    }
    Ok(source)
}

/// `consul = "api?tag=blue"`: what `--backends` takes, with or without the kind.
fn text(value: &Value<'_>, kind: &str) -> Option<At<SourceSpec>> {
    value.parse_by(|text| {
        let has_kind = text.strip_prefix(kind).is_some_and(|rest| rest.starts_with(':'));
        SourceSpec::from_str(&if has_kind { text.to_owned() } else { format!("{kind}:{text}") })
    })
}

/// A table comes to the same text, so that there is one meaning.
fn table(value: &Value<'_>, kind: &str, target: &str) -> Option<At<SourceSpec>> {
    let section = value.table()?;
    let wanted = if kind == "consul" { section.get(target) } else { section.required(target) };
    let mut word = format!("{kind}:");
    let mut fine = kind == "consul" || wanted.is_some();
    if let Some(wanted) = wanted {
        let text = if kind == "file" {
            wanted.path_of_file().map(|at| at.value.display().to_string())
        } else {
            wanted.text().map(|at| at.value)
        };
        match text {
            Some(text) => word.push_str(&encode(&text)),
            None => fine = false,
        }
    }
    if kind == "dns"
        && let Some(port) = section.get("port")
    {
        match port.number::<u16>() {
            Some(port) => word.push_str(&format!(":{}", port.value)),
            None => fine = false,
        }
    }
    let mut options = Vec::new();
    for (name, _) in section.names() {
        let Some(value) = section.known(name).then(|| section.get(name)).flatten() else {
            fine = false;
            continue;
        };
        if name == target || (kind == "dns" && name == "port") {
            continue;
        }
        for value in if name == "tag" { value.each() } else { vec![value] } {
            match option(name, &value) {
                Some(text) => options.push((value, format!("{name}={}", encode(&text)))),
                None => fine = false,
            }
        }
    }
    if !fine {
        return None;
    }
    let with = |options: &[&str]| {
        let query = if options.is_empty() { String::new() } else { format!("?{}", options.join("&")) };
        SourceSpec::from_str(&format!("{word}{query}"))
    };
    let all: Vec<_> = options.iter().map(|(_, text)| text.as_str()).collect();
    match with(&all) {
        Ok(source) => Some(At { value: source, place: value.place() }),
        Err(error) => {
            // The option without which it would be right is the one to look at.
            let without = |n: usize| with(&[&all[..n], &all[n + 1..]].concat());
            let wrong = (0..all.len()).find(|n| without(*n).is_ok()).map_or(*value, |n| options[n].0);
            // The same in the words of a table.
            let hint = match (kind, wanted) {
                ("consul", None) => Some("service = \"api-service\", or tag = \"api\", or both".to_owned()),
                ("dns", Some(_)) if section.get("port").is_none() => {
                    Some("port = 8080; or host = \"_SERVICE._tcp.NAME\" for SRV records".to_owned())
                }
                _ => error.hint.clone(),
            };
            section.reader.error(wrong.place(), &wrong.path(), Error { hint, ..error });
            None
        }
    }
}

/// An option as text.
fn option(name: &str, value: &Value<'_>) -> Option<String> {
    match name {
        "passing" | "stale" => value.flag().map(|at| at.value.to_string()),
        "mass" | "weight" => value.number::<u16>().map(|at| at.value.to_string()),
        "token_file" | "ca" | "cert" | "key" => value.path_of_file().map(|at| at.value.display().to_string()),
        "on_empty" => value.parse::<Vanish>().map(|at| at.value.to_string()),
        "empty_hold" | "interval" => value.time().map(|at| format!("{}ms", at.value.as_millis())),
        _ => value.text().map(|at| at.value),
    }
}
