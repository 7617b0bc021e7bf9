//! Editors check by the schema: what it refuses is wrong, and what is wrong in form it refuses.

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::Value;

use super::{
    Config,
    keys::{FILE, Key, Table, health_types},
    schema::schema,
    wrong,
};

const PLACE: &str = "http://lb.example/lb.schema.json";

struct Editor(Schemas, SchemaIndex);

impl Editor {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.add_resource(PLACE, schema()).unwrap();
        let index = compiler.compile(PLACE, &mut schemas).unwrap();
        Self(schemas, index)
    }

    fn takes(&self, value: &Value) -> Result<(), String> {
        self.0.validate(value, self.1).map_err(|error| error.to_string())
    }
}

fn as_json(text: &str) -> Option<Value> {
    serde_json::to_value(text.parse::<toml::Table>().ok()?).ok()
}

/// Files with one key each, with the example of its documentation.
fn examples(table: &Table) -> Vec<String> {
    let needed = |name: &str| {
        let goes_with = health_types(name).first().filter(|_| table.path == "service.health");
        goes_with.map_or(String::new(), |kind| {
            let tls = if *kind == "grpc" || name == "server_name" { "tls = true\n" } else { "" };
            let kind = if matches!(name, "service" | "tls") { "grpc" } else { kind };
            format!("type = \"{kind}\"\n{}", if kind == "grpc" && name != "tls" { tls } else { "" })
        })
    };
    let target = |name: &str| match table.path.rsplit('.').next().unwrap_or("") {
        _ if table.keys.iter().any(|key| key.name == name && key.default.is_empty()) => "",
        "consul" if name != "service" => "service = \"a\"\n",
        "dns" if name == "port" => "host = \"a.example\"\n",
        "dns" => "host = \"a.example\"\nport = 80\n",
        "etcd" => "prefix = \"a\"\n",
        "file" => "path = \"/a\"\n",
        _ => "",
    };
    let pair = |name: &str| match (name, table.path) {
        ("cert", _) => "key = \"/k\"\n",
        ("key", _) => "cert = \"/c\"\n",
        ("host", "service.discovery.dns") => "port = 80\n",
        ("weight", "service.backends") => "address = \"10.0.0.3:80\"\n",
        ("interval", "service.health") => "timeout = \"1s\"\n",
        ("via", "service.health") => "type = \"http\"\n",
        _ => "",
    };
    let keys = table.keys.iter().filter(|key| !key.example.is_empty());
    let file = |key: &Key| {
        let (name, line) = (key.name, format!("{} = {}\n", key.name, key.example));
        let mode = if name == "via" { "mode = \"dsr\"\n" } else { "" };
        let vip = if (table.path, name) == ("service", "vip") { "" } else { "vip = \"10.0.0.9:80\"\n" };
        let inner = format!("{}{}{}{line}", needed(name), target(name), pair(name));
        match table.path {
            "" => line,
            "idle" => format!("[idle]\n{line}"),
            "service" => format!("[[service]]\n{vip}{line}"),
            "service.backends" => format!("[[service]]\n{vip}[[service.backends]]\n{inner}"),
            path => format!("[[service]]\n{vip}{mode}[{path}]\n{inner}"),
        }
    };
    keys.map(file).collect()
}

#[test]
fn whatever_the_parser_takes_the_schema_takes() {
    let editor = Editor::new();
    let mut right: Vec<_> = FILE.all().into_iter().flat_map(examples).collect();
    assert!(right.len() > 80, "{}", right.len());
    right.push(include_str!("../../../packaging/lb.example.toml").to_owned());
    let rest = [
        "interfaces = \"eth0\"\nmax_flows = 4096\nannounce = true\nsnat = \"10.0.0.8\"\n",
        "service = []\nidle = {}\n",
        "[[service]]\nvip = \"10.0.0.9:80\"\nbackends = []\nscheduler = \"wlc\"\nhealth = { expect_status = 204, type = \"http\" }\n",
        "[[service]]\nvip = \"10.0.0.9:80\"\ndiscovery = { consul = [\"a\", { service = \"b\", tag = [\"x\", \"y\"] }] }\n",
    ];
    right.extend(rest.map(str::to_owned));
    for text in right {
        let parsed = Config::parse("lb.toml", &text);
        assert!(parsed.is_ok(), "{text}{parsed:#?}");
        editor.takes(&as_json(&text).unwrap()).unwrap_or_else(|why| panic!("{text}{why}"));
    }
}

#[test]
fn whatever_is_wrong_in_form_both_refuse() {
    const FORM: [&str; 9] = [
        "there is no key",
        ": missing; ",
        ": this is ",
        "the list is empty",
        "nothing in the quotes",
        "needs a unit",
        "is not a mode;",
        "is not a scheduler",
        "is not an XDP mode",
    ];
    let editor = Editor::new();
    let mut both = 0;
    for (text, ..) in wrong::cases() {
        let Some(value) = as_json(&text) else { continue };
        let said = wrong::said(&text).join("\n");
        if FORM.iter().any(|word| said.contains(word)) {
            assert!(editor.takes(&value).is_err(), "the schema takes this, and lb says {said}:\n{text}");
            both += 1;
        }
    }
    assert!(both > 50, "{both}");
}
