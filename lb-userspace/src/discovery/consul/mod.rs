//! Consul's HTTP API by blocking queries: one service, or all services that have some tags.
//!
//! Measured against Consul 1.8.7: an index is taken only from a 200 and may go backwards after a restart; another index
//! is not a change; `200 []` is also what a missing token and an agent with lost state say, which [`super::guard`] knows.
//!
//! [`access`] is how it is asked, [`watch`] one question, [`answer`] what it comes to, [`any`] many questions at once.

mod access;
mod answer;
mod any;
mod watch;

use self::{
    access::Access,
    answer::{Names, decode},
    any::Any,
    watch::Watch,
};
use super::{
    Answered, Registry,
    http::escape,
    spec::{ConsulQuery, SourceOptions},
};
use crate::Result;

fn service_path(service: &str, query: &ConsulQuery) -> String {
    let passing = if query.warning { "passing=false" } else { "passing=1" };
    let tags: String = query.tags.iter().map(|tag| format!("&tag={}", escape(tag))).collect();
    format!("/v1/health/service/{}?{passing}{tags}", escape(service))
}

/// See the module.
pub struct Consul {
    query: ConsulQuery,
    access: Access,
    weight: u16,
    names: Names,
    one: Option<Watch>,
    any: Option<Any>,
}

impl Consul {
    /// A query with its options; the environment fills what they leave open.
    #[must_use]
    pub fn new(query: ConsulQuery, options: &SourceOptions) -> Self {
        let access = Access::new(&query, options, |name| std::env::var(name).ok());
        Self { query, access, weight: options.weight, names: Names::new(), one: None, any: None }
    }

    async fn one(&mut self, service: &str, fresh: bool) -> Result<Answered> {
        let watch = match &mut self.one {
            Some(watch) => watch,
            empty => empty.insert(Watch::new(self.access.clone(), service_path(service, &self.query))?),
        };
        let told = watch.next(fresh).await?;
        Ok(decode(told, self.weight, &mut self.names).await)
    }
}

impl Registry for Consul {
    async fn next(&mut self, fresh: bool) -> Result<Answered> {
        if let Some(service) = self.query.service.clone() {
            return self.one(&service, fresh).await;
        }
        if fresh {
            self.any = None;
        }
        let any = match &mut self.any {
            Some(any) => any,
            empty => empty.insert(Any::new(self.query.clone(), self.access.clone(), self.weight)),
        };
        any.next().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{SourceSpec, Wanted};

    #[test]
    fn questions_are_asked_as_consul_understands_them() {
        let source: SourceSpec = "consul:my web?tag=a b&tag=c".replace(' ', "%20").parse().unwrap();
        let Wanted::Consul(query) = &source.wanted else { panic!() };
        assert_eq!(service_path("my web", query), "/v1/health/service/my%20web?passing=1&tag=a%20b&tag=c");
    }
}
