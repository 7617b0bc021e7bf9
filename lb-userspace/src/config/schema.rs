//! What is made from [`super::keys`]: the JSON Schema for editors, and the tables of docs/configuration.md.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::keys::{FILE, Kind, Table};

/// The JSON Schema of a config file.
#[must_use]
pub fn schema() -> Value {
    let mut schema = table(&FILE);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("Config file of lb");
    schema
}

fn table(table: &Table) -> Value {
    let mut properties = Map::new();
    for key in table.keys {
        let mut value = kind(&key.kind);
        if let (Kind::Word(words), false) = (&key.kind, key.aliases.is_empty()) {
            value["enum"] = json!([words, key.aliases].concat());
        }
        let default =
            if key.default.is_empty() { "Must be there.".to_owned() } else { format!("Default: {}.", key.default) };
        value["description"] = json!(format!("{} {default}", key.help));
        properties.insert(key.name.to_owned(), value);
    }
    let required: Vec<_> = table.keys.iter().filter(|key| key.default.is_empty()).map(|key| key.name).collect();
    let mut schema =
        json!({ "type": "object", "description": table.help, "additionalProperties": false, "properties": properties });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn kind(of: &Kind) -> Value {
    match of {
        Kind::Text => json!({ "type": "string", "minLength": 1 }),
        Kind::Word(words) => json!({ "enum": words }),
        Kind::Time(..) => json!({ "type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$" }),
        Kind::Size => {
            json!({ "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string", "pattern": "^[0-9]+[kKMG]?$" }] })
        }
        Kind::Number(low, high) => json!({ "type": "integer", "minimum": low, "maximum": high }),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::List(inner) => json!({ "type": "array", "items": kind(inner) }),
        Kind::Some(inner) => {
            json!({ "anyOf": [kind(inner), { "type": "array", "minItems": 1, "items": kind(inner) }] })
        }
        Kind::Either(kinds) => json!({ "anyOf": kinds.iter().map(kind).collect::<Vec<_>>() }),
        Kind::Table(inner) => table(inner),
        Kind::Tables(inner) => json!({ "type": "array", "items": table(inner) }),
    }
}

/// Tables of every key, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut text = String::new();
    for table in FILE.all() {
        let title = match table.path {
            "" => "The top of the file".to_owned(),
            "service" => "`[[service]]`".to_owned(),
            path => format!("`[{path}]`"),
        };
        let _ = writeln!(
            text,
            "### {title}\n\n{}\n\n| key | what it is | default | example |\n|---|---|---|---|",
            table.help
        );
        for key in table.keys {
            let default = if key.default.is_empty() { "(must be there)" } else { key.default };
            let example = if key.example.is_empty() { String::new() } else { format!("`{}`", key.example) };
            let unit = in_words(&key.kind);
            let row = format!("| `{}` | {} {unit} | {default} | {example} |", key.name, key.help);
            let _ = writeln!(text, "{}", row.replace(" |  |", " | |").replace("  |", " |"));
        }
        text.push('\n');
    }
    text
}

/// What may be written.
fn in_words(kind: &Kind) -> String {
    match kind {
        Kind::Word(words) => format!("One of: {}.", words.join(", ")),
        Kind::Time(low, high) => format!("A time, {low} to {high}."),
        Kind::Size => "A number, or text with k, M or G.".to_owned(),
        Kind::Number(low, high) => format!("{low} to {high}."),
        Kind::Flag => "true or false.".to_owned(),
        Kind::List(_) => "A list.".to_owned(),
        Kind::Some(_) => "One, or a list.".to_owned(),
        Kind::Text | Kind::Either(_) | Kind::Table(_) | Kind::Tables(_) => String::new(),
    }
}
