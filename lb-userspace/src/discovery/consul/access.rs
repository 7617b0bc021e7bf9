//! How Consul is asked: where, with what token, in which datacenter; by the source and by Consul's own variables.

use std::{fs, path::PathBuf, time::Duration};

use data_encoding::BASE64;
use hyper::{HeaderMap, header::HeaderValue};

use crate::{
    Error, Result,
    discovery::{
        http::{Place, escape},
        spec::{ConsulQuery, SourceOptions},
    },
    error::Context as _,
};

/// How long one question may wait for news unless the source says otherwise.
const WAIT: Duration = Duration::from_secs(60);

/// How Consul is asked, whatever the question.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) place: Place,
    token: Option<String>,
    token_file: Option<PathBuf>,
    auth: Option<String>,
    /// `&dc=..` and the like.
    pub(super) scope: String,
    pub(super) wait: Duration,
}

impl Access {
    /// What the source says, else what the environment variables say that every tool of Consul's obeys.
    pub(super) fn new(query: &ConsulQuery, options: &SourceOptions, env: impl Fn(&str) -> Option<String>) -> Self {
        let env = |name: &str| env(name).filter(|text| !text.is_empty());
        let path = |said: &Option<PathBuf>, name: &str| said.clone().or_else(|| env(name).map(PathBuf::from));
        let truth = |name: &str| env(name).map(|text| matches!(text.as_str(), "1" | "true"));
        let mut url =
            options.addr.clone().or_else(|| env("CONSUL_HTTP_ADDR")).unwrap_or_else(|| "127.0.0.1:8500".into());
        if !url.contains("://") && truth("CONSUL_HTTP_SSL") == Some(true) {
            url = format!("https://{url}");
        }
        let namespace = query.ns.clone().or_else(|| env("CONSUL_NAMESPACE"));
        let partition = query.partition.clone().or_else(|| env("CONSUL_PARTITION"));
        let mut scope = String::new();
        for (key, value) in [("dc", &query.dc), ("ns", &namespace), ("partition", &partition)] {
            if let Some(value) = value {
                scope.push_str(&format!("&{key}={}", escape(value)));
            }
        }
        if query.stale {
            scope.push_str("&stale");
        }
        let said = options.token_file.clone();
        Self {
            place: Place {
                url,
                port: 8500,
                ca: path(&options.ca, "CONSUL_CACERT"),
                cert: path(&options.cert, "CONSUL_CLIENT_CERT"),
                key: path(&options.key, "CONSUL_CLIENT_KEY"),
                server_name: options.server_name.clone().or_else(|| env("CONSUL_TLS_SERVER_NAME")),
                unverified: truth("CONSUL_HTTP_SSL_VERIFY") == Some(false)
                    || env("CONSUL_HTTP_SSL_VERIFY").is_some_and(|text| text == "0"),
            },
            token: if said.is_some() { None } else { env("CONSUL_HTTP_TOKEN") },
            token_file: said.or_else(|| env("CONSUL_HTTP_TOKEN_FILE").map(PathBuf::from)),
            auth: env("CONSUL_HTTP_AUTH"),
            scope,
            wait: options.interval.unwrap_or(WAIT),
        }
    }

    /// The token's file is read for every question: it is renewed while lb runs.
    pub(super) fn headers(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(path)) => Some(
                fs::read_to_string(path)
                    .context(format_args!("Consul's token file {}", path.display()))?
                    .trim()
                    .to_owned(),
            ),
            (None, None) => None,
        };
        let value = |text: &str| {
            let mut value =
                HeaderValue::from_str(text).map_err(|_| Error::failed("Consul's token has odd characters"))?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        };
        if let Some(token) = token.filter(|token| !token.is_empty()) {
            headers.insert("x-consul-token", value(&token)?);
        }
        if let Some(auth) = &self.auth {
            headers.insert("authorization", value(&format!("Basic {}", BASE64.encode(auth.as_bytes())))?);
        }
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{SourceSpec, Wanted};

    fn access(word: &str, env: &[(&str, &str)]) -> Access {
        let source: SourceSpec = word.parse().unwrap();
        let Wanted::Consul(query) = &source.wanted else { panic!("{word}") };
        let find = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Access::new(query, &source.options, find)
    }

    #[test]
    fn the_variables_of_consuls_own_tools_are_obeyed_and_the_source_overrules_them() {
        let env = [
            ("CONSUL_HTTP_ADDR", "10.0.0.9:8501"),
            ("CONSUL_HTTP_SSL", "true"),
            ("CONSUL_HTTP_TOKEN", "t"),
            ("CONSUL_NAMESPACE", "n"),
        ];
        let from_env = access("consul:web", &env);
        assert_eq!((from_env.place.url.as_str(), from_env.scope.as_str()), ("https://10.0.0.9:8501", "&ns=n"));
        assert_eq!(from_env.headers().unwrap()["x-consul-token"], "t");
        let said = access("consul:web?addr=http://c:1&dc=east%20a&stale=true&token_file=/nowhere", &env);
        assert_eq!((said.place.url.as_str(), said.scope.as_str()), ("http://c:1", "&dc=east%20a&ns=n&stale"));
        assert!(said.headers().unwrap_err().message.contains("/nowhere"), "the file counts, not the variable");
        let bare = access("consul:web", &[("CONSUL_HTTP_SSL_VERIFY", "false")]);
        assert_eq!((bare.place.url.as_str(), bare.scope.as_str()), ("127.0.0.1:8500", ""));
        assert!(bare.place.unverified && bare.headers().unwrap().is_empty());
    }
}
