//! All services that have some tags: the catalog is watched, and each service in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
    time::sleep,
};

use super::{
    access::Access,
    answer::{Names, decode},
    service_path,
    watch::Watch,
};
use crate::{
    Error, Result,
    discovery::{Answered, spec::ConsulQuery},
};

/// Pause of one of several questions after an error.
const PAUSE: Duration = Duration::from_millis(500);

/// What one of several questions came to: of the catalog (no name), or of a service.
enum News {
    Catalog(Result<BTreeSet<String>>),
    Service(String, Result<Answered>),
}

/// By name: who asks, and the last answer.
type Services = BTreeMap<String, (JoinHandle<()>, Option<Answered>)>;

/// Every service that has the tags: the catalog is watched, and each service in it.
pub(super) struct Any {
    query: ConsulQuery,
    access: Access,
    weight: u16,
    tell: UnboundedSender<News>,
    told: UnboundedReceiver<News>,
    catalog: JoinHandle<()>,
    services: Option<Services>,
    failing: BTreeMap<String, Error>,
}

impl Any {
    pub(super) fn new(query: ConsulQuery, access: Access, weight: u16) -> Self {
        let (tell, told) = unbounded_channel();
        let catalog = tokio::spawn(watch_catalog(access.clone(), query.tags.clone(), tell.clone()));
        Self { query, access, weight, tell, told, catalog, services: None, failing: BTreeMap::new() }
    }

    pub(super) async fn next(&mut self) -> Result<Answered> {
        loop {
            let Some(news) = self.told.recv().await else { return Err(Error::failed("consul: nobody asks any more")) };
            self.take(news);
            while let Ok(news) = self.told.try_recv() {
                self.take(news);
            }
            if let Some(error) = self.failing.values().next() {
                return Err(error.clone());
            }
            let Some(services) = &self.services else { continue };
            let Some(all) = services.values().map(|(_, last)| last.as_ref()).collect::<Option<Vec<_>>>() else {
                continue;
            };
            let mut whole = Answered::default();
            for answered in all {
                whole.set.extend(answered.set.clone());
                whole.partial |= answered.partial;
                whole.warnings.extend(answered.warnings.clone());
            }
            return Ok(whole);
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Catalog(Ok(names)) => {
                self.failing.remove("");
                let mut services = self.services.take().unwrap_or_default();
                services.retain(|name, (task, _)| {
                    let stays = names.contains(name);
                    if !stays {
                        task.abort();
                        self.failing.remove(name);
                    }
                    stays
                });
                for name in names {
                    services.entry(name.clone()).or_insert_with(|| {
                        let work = watch_service(
                            name,
                            self.query.clone(),
                            self.access.clone(),
                            self.weight,
                            self.tell.clone(),
                        );
                        (tokio::spawn(work), None)
                    });
                }
                self.services = Some(services);
            }
            News::Catalog(Err(error)) => {
                self.failing.insert(String::new(), error);
            }
            News::Service(name, answer) => {
                // One that was let go may have had a last word.
                let Some((_, last)) = self.services.as_mut().and_then(|services| services.get_mut(&name)) else {
                    return;
                };
                match answer {
                    Ok(answered) => {
                        self.failing.remove(&name);
                        *last = Some(answered);
                    }
                    Err(error) => {
                        self.failing.insert(name, error);
                    }
                }
            }
        }
    }
}

impl Drop for Any {
    fn drop(&mut self) {
        self.catalog.abort();
        self.services.iter().flatten().for_each(|(_, (task, _))| task.abort());
    }
}

async fn watch_catalog(access: Access, tags: Vec<String>, tell: UnboundedSender<News>) {
    let mut watch = match Watch::new(access, "/v1/catalog/services".to_owned()) {
        Ok(watch) => watch,
        Err(error) => return drop(tell.send(News::Catalog(Err(error)))),
    };
    let mut last = None;
    loop {
        let told = watch.next::<BTreeMap<String, Option<Vec<String>>>>(false).await;
        let names = told.map(|told| {
            let has = |of: &Option<Vec<String>>| tags.iter().all(|tag| of.iter().flatten().any(|other| other == tag));
            told.body.into_iter().filter(|(_, of)| has(of)).map(|(name, _)| name).collect::<BTreeSet<_>>()
        });
        let failed = names.is_err();
        // The catalog's index moves with every registration: only other names are news.
        let news = failed || last.as_ref() != names.as_ref().ok();
        last = names.as_ref().ok().cloned();
        if news && tell.send(News::Catalog(names)).is_err() {
            return;
        }
        if failed {
            sleep(PAUSE).await;
        }
    }
}

async fn watch_service(name: String, query: ConsulQuery, access: Access, weight: u16, tell: UnboundedSender<News>) {
    let mut watch = match Watch::new(access, service_path(&name, &query)) {
        Ok(watch) => watch,
        Err(error) => return drop(tell.send(News::Service(name, Err(error)))),
    };
    let mut names = Names::new();
    loop {
        let answer = match watch.next(false).await {
            Ok(told) => Ok(decode(told, weight, &mut names).await),
            Err(error) => Err(error),
        };
        let failed = answer.is_err();
        if tell.send(News::Service(name.clone(), answer)).is_err() {
            return;
        }
        if failed {
            sleep(PAUSE).await;
        }
    }
}
