//! `lb check`: whether a config file is right.

use std::path::Path;

use serde_json::json;

use super::arguments::{Arguments, Output};
use crate::{
    Error, Result,
    config::{Config, problem::Place},
    error::Kind,
    say::{count, line, warning},
    state::{Desired, Facts},
};

/// Reads a file and says what is wrong in it. What depends on this host (addresses, routes, listeners) is only looked at
/// when the file is used; files that it names and that are not here get a warning.
pub fn check(arguments: &Arguments, file: &Path) -> Result<()> {
    let checked = Config::read(file).and_then(|config| {
        for named in config.files.iter().filter(|named| !named.path.exists()) {
            let Place { line, column } = named.place;
            let (file, key, path) = (file.display(), &named.key, named.path.display());
            warning(&format!("{file}:{line}:{column}: {key}: {path} is not there (on this host)"));
        }
        // Forced: this host may not be the one that the file is for.
        let outcome = Desired::default().change(&config.statement(), &Facts::default(), true);
        outcome.map(|outcome| outcome.desired).map_err(|error| config.located(file, error))
    });
    let (services, backends, sources) = checked.as_ref().map_or((0, 0, 0), |desired| {
        let services = desired.services.values();
        let backends = services.clone().map(|service| service.backends.len()).sum::<usize>();
        (services.len(), backends, services.map(|service| service.discovery.len()).sum::<usize>())
    });
    match arguments.output {
        Output::Json => {
            let problems = checked.as_ref().err().map(|error| error.problems.clone()).unwrap_or_default();
            let counts = json!({ "services": services, "backends": backends, "sources": sources });
            line(&json!({ "file": file, "ok": checked.is_ok(), "problems": problems, "counts": counts }).to_string());
        }
        Output::Table if checked.is_ok() => {
            let more = if sources > 0 { format!(", {} of more", count(sources, "source")) } else { String::new() };
            let (services, backends) = (count(services, "service"), count(backends, "backend"));
            line(&format!("{}: right: {services}, {backends}{more}", file.display()));
        }
        Output::Table => {}
    }
    checked.map(drop).map_err(|error| Error { kind: Kind::Failed, ..error })
}
