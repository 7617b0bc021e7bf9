//! Commands that ask the daemon.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    arguments::{Arguments, Backend, Command, Conn, Filter, How, Of, Output, Service, Source, Wait},
    connections, print,
};
use crate::{
    Error, Result,
    api::{Changed, ConnFilter, Drop, Request, Status, client::Client},
    error::Kind,
    say::{self, count},
    state::{Admin, BackendSpec, Change, Health, ServiceOptions, ServiceSpec, Source as Stated},
};

/// Time between two looks while waiting.
const LOOK: Duration = Duration::from_millis(200);

/// What a change is waited for.
enum Until {
    Applied,
    Up(Option<String>, Vec<SocketAddr>),
    NoFlows(ConnFilter, Vec<SocketAddr>),
}

/// Does what was typed.
pub async fn ask(arguments: &Arguments, command: Command) -> Result<()> {
    let client = Client::new(&arguments.socket);
    let out = arguments.output;
    match command {
        Command::Status => print::status(&client.ask(&Request::Status).await?, out),
        Command::Health => print::health(&client.ask(&Request::Status).await?, out),
        Command::Drops => print::drops(&client.ask::<Vec<Drop>>(&Request::Drops).await?, out),
        Command::Source(Source::List) => print::sources(&client.ask::<Status>(&Request::Status).await?.sources, out),
        Command::Source(Source::Release { name }) => {
            let gone: usize = client.ask(&Request::ReleaseSource { name: name.clone() }).await?;
            match out {
                Output::Json => say::line(&gone.to_string()),
                Output::Table => {
                    say::line(&format!(
                        "{name}: {} let go; known flows go on until they end",
                        count(gone, "held backend")
                    ));
                }
            }
        }
        Command::Service(service) => return ask_service(&client, *service, out).await,
        Command::Backend(backend) => return ask_backend(&client, backend, out).await,
        Command::Conn(conn) => return ask_conn(&client, conn, out).await,
        Command::Attach(_)
        | Command::Daemon { .. }
        | Command::Check { .. }
        | Command::Detach { .. }
        | Command::Demo { .. }
        | Command::Doctor { .. } => {}
    }
    Ok(())
}

async fn ask_service(client: &Client, command: Service, out: Output) -> Result<()> {
    match command {
        Service::List => print::services(&client.ask::<Status>(&Request::Status).await?.services, out),
        Service::Show { service } => {
            let status: Status = client.ask(&Request::Status).await?;
            print::service(find(&status, Some(&service))?, out);
        }
        Service::Add { vip, options, backends, force, how } => {
            let mut service = ServiceSpec::new(vip, Stated::Cli);
            let backends = backends.unwrap_or_default();
            let options = ServiceOptions { discovery: Some(backends.sources), ..options.into() };
            options.apply(&mut service);
            let backends = backends.fixed;
            let addresses: Vec<_> = backends.iter().map(|(address, _)| *address).collect();
            let spec = |(address, weight)| BackendSpec { address, weight, admin: Admin::Ready, source: Stated::Cli };
            service.backends = backends.into_iter().map(spec).collect();
            service.backends.sort_by_key(|backend| backend.address);
            let until = Until::Up(Some(service.name.clone()), addresses);
            change(client, Change::AddService { service: Box::new(service) }, force, &how, until, out).await?;
        }
        Service::Set { service, options, backends, how } => {
            let (backends, discovery) = backends.map(|list| (list.fixed, list.sources)).unzip();
            let options = Box::new(ServiceOptions { discovery, ..options.into() });
            let wanted = Change::SetService { service, options, backends };
            change(client, wanted, false, &how, Until::Applied, out).await?;
        }
        Service::Remove { service, force, how } => {
            let status: Status = client.ask(&Request::Status).await?;
            let found = find(&status, Some(&service))?;
            let backends = found.backends.iter().map(|backend| backend.address).collect();
            let filter = ConnFilter { service: Some(found.name.clone()), ..ConnFilter::default() };
            let until = Until::NoFlows(filter, backends);
            change(client, Change::RemoveService { service }, force, &how, until, out).await?;
        }
    }
    Ok(())
}

async fn ask_backend(client: &Client, command: Backend, out: Output) -> Result<()> {
    // The same server may be in other services too: their flows are not waited for.
    let no_flows = |service: &Option<String>, addresses: &[SocketAddr]| {
        Until::NoFlows(ConnFilter { service: service.clone(), ..ConnFilter::default() }, addresses.to_vec())
    };
    let (wanted, force, how, until) = match command {
        Backend::List { service } => {
            let status: Status = client.ask(&Request::Status).await?;
            let services = match service {
                Some(name) => vec![find(&status, Some(&name))?.clone()],
                None => status.services,
            };
            print::backends(&services.into_iter().flat_map(|service| service.backends).collect::<Vec<_>>(), out);
            return Ok(());
        }
        Backend::Add { backends, of: Of { service, how } } => {
            let until = Until::Up(service.clone(), backends.iter().map(|(address, _)| *address).collect());
            (Change::AddBackends { service, backends }, false, how, until)
        }
        Backend::Remove { backends, force, of: Of { service, how } } => {
            let until = no_flows(&service, &backends);
            (Change::RemoveBackends { service, backends }, force, how, until)
        }
        Backend::Weight { backend, weight, of: Of { service, how } } => {
            (Change::SetWeight { service, backend, weight }, false, how, Until::Applied)
        }
        Backend::Drain { backends, of: Of { service, how } } => {
            let until = no_flows(&service, &backends);
            (Change::SetAdmin { service, backends, admin: Admin::Drain }, false, how, until)
        }
        Backend::Ready { backends, of: Of { service, how } } => {
            let until = Until::Up(service.clone(), backends.clone());
            (Change::SetAdmin { service, backends, admin: Admin::Ready }, false, how, until)
        }
        Backend::Maint { backends, of: Of { service, how } } => {
            let until = no_flows(&service, &backends);
            (Change::SetAdmin { service, backends, admin: Admin::Maint }, false, how, until)
        }
    };
    change(client, wanted, force, &how, until, out).await
}

async fn ask_conn(client: &Client, command: Conn, out: Output) -> Result<()> {
    match command {
        Conn::List(filter) => {
            connections::list(client, &Request::Connections { filter: filter.into() }, out).await?;
        }
        Conn::Count(filter) => {
            say::line(&client.ask::<u64>(&Request::CountConnections { filter: filter.into() }).await?.to_string());
        }
        Conn::Flush { filter, all } => {
            let filter = ConnFilter::from(filter);
            if filter == ConnFilter::default() && !all {
                return Err(Error::usage("conn flush: this would reset every connection")
                    .hint("--all if you mean it; or -s, --backend, --client, --state"));
            }
            let flushed: u64 = client.ask(&Request::Flush { filter }).await?;
            match out {
                Output::Json => say::line(&flushed.to_string()),
                Output::Table => say::sentence(&format!("{flushed} connections: reset at their clients' next packet")),
            }
        }
    }
    Ok(())
}

impl From<Filter> for ConnFilter {
    fn from(typed: Filter) -> Self {
        let Filter { service, backend, client, state, limit } = typed;
        Self { service, backend, client, state, limit }
    }
}

fn find<'a>(status: &'a Status, wanted: Option<&str>) -> Result<&'a crate::api::Service> {
    let names: Vec<_> = status.services.iter().map(|service| service.name.as_str()).collect();
    let vip = wanted.and_then(|text| text.parse::<crate::state::Vip>().ok());
    let found = match wanted {
        None if status.services.len() == 1 => status.services.first(),
        None => None,
        Some(wanted) => status
            .services
            .iter()
            .find(|service| service.name == wanted || vip.is_some_and(|vip| service.vips.contains(&vip))),
    };
    found.ok_or_else(|| {
        let known =
            if names.is_empty() { "there is none yet".to_owned() } else { format!("known: {}", names.join(" ")) };
        Error::not_found(format!("service {}: there is none of this name or VIP", wanted.unwrap_or("?"))).hint(known)
    })
}

async fn change(client: &Client, change: Change, force: bool, how: &How, until: Until, out: Output) -> Result<()> {
    let changed: Changed = client.ask(&Request::Change { change, force, dry_run: how.dry_run }).await?;
    for warning in &changed.warnings {
        say::warning(warning);
    }
    match out {
        Output::Json => say::line(&serde_json::json!(changed).to_string()),
        Output::Table => changed.summary.iter().for_each(|sentence| say::sentence(sentence)),
    }
    match how.wait {
        Some(wait) if !how.dry_run => wait_until(client, wait, &until).await,
        _ => Ok(()),
    }
}

async fn wait_until(client: &Client, wait: Wait, until: &Until) -> Result<()> {
    let begun = Instant::now();
    let mut shown = None;
    loop {
        let (left, what) = match until {
            Until::Applied => return Ok(()),
            Until::Up(service, addresses) => {
                let status: Status = client.ask(&Request::Status).await?;
                let backends = &find(&status, service.as_deref())?.backends;
                let waiting = backends.iter().filter(|b| addresses.contains(&b.address) && b.health != Health::Up);
                (waiting.count() as u64, "backends not yet up")
            }
            Until::NoFlows(filter, addresses) => {
                let mut flows = 0;
                for address in addresses {
                    let filter = ConnFilter { backend: Some(*address), ..filter.clone() };
                    flows += match client.ask::<u64>(&Request::CountConnections { filter }).await {
                        // A removed service is forgotten with its last flow.
                        Err(error) if error.kind == Kind::NotFound => 0,
                        counted => counted?,
                    };
                }
                (flows, "live flows")
            }
        };
        if shown != Some(left) {
            say::progress(&format!("{left} {what}"));
            shown = Some(left);
        }
        if left == 0 {
            return Ok(());
        }
        if let Wait::For(limit) = wait
            && begun.elapsed() >= limit
        {
            return Err(Error::new(Kind::TimedOut, format!("--wait: still {left} {what} after {limit:?}"))
                .hint("the change stays; wait again, or look with `lb status`"));
        }
        tokio::time::sleep(LOOK).await;
    }
}
