//! How fast registries are followed, and that nobody who stays notices what happens to them.
//!
//! `LB_CHURN_SECONDS` says how long instances churn (default: 20).

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use lb_tests::{
    e2e::{
        Setup,
        clients::{Storm, Wrk},
        connect, eventually, ping, vip,
    },
    registry::{Consul, ConsulLike, Etcd, StandIn, instance},
};

/// A real Consul where there is one.
fn consul(setup: &Setup) -> Box<dyn ConsulLike> {
    match Consul::binary() {
        Some(_) => Box::new(Consul::dev(&setup.balancer, &[]).unwrap()),
        None => Box::new(StandIn::new(&setup.balancer).unwrap()),
    }
}

/// A number of the metrics.
fn metric(setup: &Setup, name: &str) -> u64 {
    let mut curl = Command::new("curl");
    curl.args(["-s", "--unix-socket"]).arg(setup.directory().join("lb.sock")).arg("http://lb/metrics");
    let text = String::from_utf8(curl.output().unwrap().stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn wait_heard(setup: &Setup) {
    let heard = || setup.json("source list").unwrap()[0]["state"] == "ok";
    assert!(eventually(heard), "{}", setup.json("source list").unwrap());
}

/// Time from a registration's end to the first answer of the instance, its first health check included.
fn first_answer(setup: &Setup, register: impl FnOnce()) -> Duration {
    register();
    let begun = Instant::now();
    setup.wait_usable(1).unwrap();
    setup.curl("http://10.66.0.1/name").unwrap();
    begun.elapsed()
}

#[test]
fn a_registration_receives_traffic_within_a_second() {
    for kind in ["consul", "etcd", "file"] {
        let mut setup = Setup::new(1, 1500).unwrap();
        setup.serve_files(8080, &[]).unwrap();
        let took = match kind {
            "consul" => {
                let consul = consul(&setup);
                setup.attach("--vip 80 --backends consul:web").unwrap();
                wait_heard(&setup);
                first_answer(&setup, || consul.register(instance("real", "10.66.0.11:8080", &[])).unwrap())
            }
            "etcd" => {
                let etcd = Etcd::new(&setup.balancer, setup.directory()).unwrap();
                setup.attach("--vip 80 --backends etcd:lb/web").unwrap();
                wait_heard(&setup);
                first_answer(&setup, || etcd.put("lb/web/a", "10.66.0.11:8080", None).unwrap())
            }
            _ => {
                let path = setup.directory().join("instances");
                fs::write(&path, "").unwrap();
                setup.attach(&format!("--vip 80 --backends file:{}", path.display())).unwrap();
                wait_heard(&setup);
                first_answer(&setup, || fs::write(&path, "10.66.0.11:8080\n").unwrap())
            }
        };
        eprintln!("{kind}: an answer {took:?} after the registration");
        assert!(took < Duration::from_secs(1), "{kind}: {took:?}");
    }
}

#[test]
fn a_hundred_registrations_are_few_changes_and_few_tables() {
    let mut setup = Setup::new(1, 1500).unwrap();
    let consul = consul(&setup);
    setup.attach("--vip 80 --health none --backends consul:web").unwrap();
    wait_heard(&setup);
    let count = |name: &str| metric(&setup, name);
    let (changes, tables) = (count("lb_source_changes_total"), count("lb_table_builds_total"));
    let all: Vec<_> = (0..100).map(|n| instance(&format!("i{n}"), &format!("10.66.0.11:{}", 9000 + n), &[])).collect();
    let begun = Instant::now();
    consul.many(&all, &[]).unwrap();
    setup.wait_usable(100).unwrap();
    let (took, changes) = (begun.elapsed(), count("lb_source_changes_total") - changes);
    let tables = count("lb_table_builds_total") - tables;
    eprintln!("100 registrations in {took:?}: {changes} changes, {tables} tables");
    // One per tenth of a second at most, however long this machine takes to register a hundred.
    assert!(u128::from(changes) <= took.as_millis() / 100 + 1 && tables <= changes, "{changes}, {tables} in {took:?}");
}

#[test]
fn a_thousand_instances_churn_and_who_stays_keeps_its_connections() {
    let seconds = std::env::var("LB_CHURN_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let mut setup = Setup::new(3, 1500).unwrap();
    setup.serve_echo(7000).unwrap();
    let consul = consul(&setup);
    // Two stay. The others are on ports where nobody listens; a tenth of them is replaced in every round.
    let id = |n: u32| format!("churn{n}");
    let place = |n: u32| instance(&id(n), &format!("10.66.0.13:{}", 10_000 + n % 40_000), &[]);
    let stay = [instance("a", "10.66.0.11:7000", &[]), instance("b", "10.66.0.12:7000", &[])];
    let (mut first, mut next) = (0, 1000);
    consul.many(&stay.into_iter().chain((first..next).map(place)).collect::<Vec<_>>(), &[]).unwrap();
    setup.attach("--vip 7 --backends consul:web").unwrap();
    let known = || setup.json("backend list").unwrap().as_array().unwrap().len();
    assert!(eventually(|| known() == 1002), "{} backends", known());
    setup.wait_usable(2).unwrap();
    let mut streams: Vec<_> = (0..20).map(|_| connect(&setup.client, vip(7)).unwrap()).collect();
    let storm = Storm::begin(&setup.client, vip(7), u32::MAX, 2);
    let (begun, mut round) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        round += 1;
        let come: Vec<_> = (next..next + 100).map(place).collect();
        let go: Vec<_> = (first..first + 100).map(id).collect();
        consul.many(&come, &go).unwrap();
        (first, next) = (first + 100, next + 100);
        for (n, stream) in streams.iter_mut().enumerate() {
            ping(stream, &format!("round {round}, connection {n}")).unwrap();
        }
    }
    assert!(eventually(|| known() == 1002), "{} backends after the churn", known());
    for (n, stream) in streams.iter_mut().enumerate() {
        ping(stream, &format!("after it, connection {n}")).unwrap();
    }
    let done = storm.end().unwrap();
    let changes = metric(&setup, "lb_source_changes_total");
    eprintln!("{round} rounds in {:?}, {changes} changes, {} new connections", begun.elapsed(), done.fine);
    assert!(done.failures.is_empty() && done.fine > 100, "{} fine, {:?}", done.fine, done.failures);
    // A Consul of one node with a thousand instances takes its time.
    assert!(changes >= 2 + round && round >= 2, "{changes} changes of {round} rounds");
}

#[test]
fn a_registry_killed_and_wiped_under_load_fails_no_request() {
    let mut setup = Setup::new(3, 1500).unwrap();
    setup.serve_nginx(8080, &[]).unwrap();
    let mut consul = consul(&setup);
    for n in 11..=13 {
        consul.register(instance(&format!("i{n}"), &format!("10.66.0.{n}:8080"), &[])).unwrap();
    }
    setup.attach("--vip 80 --backends consul:web?empty_hold=1s").unwrap();
    setup.wait_usable(3).unwrap();
    let known = || setup.json("backend list").unwrap().as_array().unwrap().len();
    let state = |wanted: &str| eventually(|| setup.json("source list").unwrap()[0]["state"] == wanted);
    let wrk = Wrk::begin(&setup.client, "http://10.66.0.1/name", 4, Duration::from_secs(120), true).unwrap();
    consul.wipe().unwrap();
    assert!(state("holding") && known() == 3, "an agent that lost its state");
    let confirmed = || setup.json("source list").unwrap()[0]["held"][0]["confirmed"] == true;
    assert!(eventually(confirmed) && known() == 3, "confirmed, and still checked");
    consul.register(instance("i11", "10.66.0.11:8080", &[])).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(known(), 3, "one of three is back");
    consul.kill();
    assert!(eventually(|| setup.json("source list").unwrap()[0]["errors"].as_u64() > Some(0)));
    std::thread::sleep(Duration::from_secs(2));
    let seen = wrk.end().unwrap();
    eprintln!("{seen:?}");
    assert!(seen.requests > 0 && seen.errors == 0, "{seen:?}");
    assert_eq!(known(), 3);
}
