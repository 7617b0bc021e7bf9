//! The rules of changes, on states in memory.

use super::*;
use crate::{
    error::Kind,
    state::{BackendSpec, Mode, Protocol},
};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn service(vip: &str, backends: &[&str]) -> Box<ServiceSpec> {
    let mut service = ServiceSpec::new(vip.parse().unwrap(), Source::Flags);
    service.backends = backends
        .iter()
        .map(|text| BackendSpec { address: address(text), weight: 1, admin: Admin::Ready, source: Source::Flags })
        .collect();
    Box::new(service)
}

fn facts() -> Facts {
    let route = |ifindex| Some(RouteTo { ifindex, source: None, gateway: None, local: false, mtu: None });
    Facts {
        host_addresses: [IpAddr::from([10, 0, 0, 1]), IpAddr::from([127, 0, 0, 1])].into(),
        listeners: vec![Listener {
            address: IpAddr::from([0, 0, 0, 0]),
            port: 22,
            protocol: Protocol::Tcp,
            process: Some("sshd (pid 7)".into()),
        }],
        local_port_range: (32768, 60999),
        attached: [(2, "eth0".to_owned())].into(),
        interfaces: [(2, "eth0".to_owned()), (3, "eth1".to_owned())].into(),
        routes: [
            (IpAddr::from([10, 0, 0, 2]), route(2)),
            (IpAddr::from([10, 0, 9, 9]), route(3)),
            (IpAddr::from([8, 8, 8, 8]), None),
        ]
        .into(),
        ..Facts::default()
    }
}

fn web() -> Desired {
    let change = Change::AddService { service: service("10.0.0.1:80", &["10.0.0.2:80", "10.0.0.3:80"]) };
    Desired::default().change(&change, &facts(), false).unwrap().desired
}

fn refused(change: &Change) -> Error {
    web().change(change, &facts(), false).expect_err("this must be refused")
}

#[test]
fn every_refusal_says_what_and_how_to_mend_it() {
    let add = |text: &str| Change::AddBackends { service: None, backends: vec![(address(text), 1)] };
    let vip = |text: &str| Change::AddService { service: service(text, &[]) };
    let cases = [
        (add("127.0.0.1:80"), Kind::Refused, "loopback"),
        (add("10.0.0.1:8080"), Kind::Refused, "is a VIP"),
        (add("10.0.0.2:80"), Kind::Refused, "has it already"),
        (add("10.0.0.4:0"), Kind::Usage, "port is missing"),
        (add("224.0.0.1:80"), Kind::Refused, "not the address of a server"),
        (add("0.0.0.0:80"), Kind::Refused, "not the address of a server"),
        (add("8.8.8.8:80"), Kind::Refused, "no route"),
        (add("10.0.9.9:80"), Kind::Refused, "through eth1, which is not attached"),
        (add("[2001:db8::1]:80"), Kind::Refused, "IPv6, but VIP"),
        (vip("10.0.0.1:80"), Kind::Refused, "there is one of this name"),
        (vip("10.0.0.1:22"), Kind::Refused, "sshd (pid 7) listens"),
        (vip("10.0.0.1:0"), Kind::Refused, "every port"),
        (vip("127.0.0.1:80"), Kind::Refused, "not an address that clients can reach"),
        (vip("[::1]:80"), Kind::Refused, "not an address that clients can reach"),
        (Change::RemoveService { service: "nope".into() }, Kind::NotFound, "service nope"),
        (
            Change::RemoveBackends { service: None, backends: vec![address("10.0.0.9:80")] },
            Kind::NotFound,
            "not in service",
        ),
        (
            Change::SetWeight { service: None, backend: address("10.0.0.9:80"), weight: 1 },
            Kind::NotFound,
            "not in service",
        ),
    ];
    for (change, kind, words) in cases {
        let error = refused(&change);
        assert!(error.kind == kind && error.message.contains(words) && error.hint.is_some(), "{change:?}: {error:?}");
    }
}

#[test]
fn what_is_not_there_yet_is_refused_not_ignored() {
    let mut by_vip = service("10.0.0.1:81", &[]);
    by_vip.health.via = crate::state::Via::Vip;
    assert_eq!(refused(&Change::AddService { service: by_vip }).kind, Kind::Usage);
}

#[test]
fn a_router_in_front_of_a_dnat_backend_is_warned_of() {
    let mut facts = facts();
    let gateway = Some("10.0.0.254".parse().unwrap());
    let route = RouteTo { ifindex: 2, source: None, gateway, local: false, mtu: None };
    facts.routes.insert("10.9.0.2".parse().unwrap(), Some(route));
    for (mode, warned) in [(Mode::Dnat, true), (Mode::Nat, false)] {
        let mut added = service("10.0.0.1:81", &["10.9.0.2:80"]);
        added.mode = mode;
        let outcome = web().change(&Change::AddService { service: added }, &facts, false).unwrap();
        let text = outcome.warnings.join("; ");
        assert_eq!(text.contains("router 10.0.0.254"), warned, "{mode}: {text}");
    }
}

#[test]
fn several_addresses_are_all_or_none() {
    let backends = vec![(address("10.0.0.5:80"), 1), (address("127.0.0.1:80"), 1)];
    refused(&Change::AddBackends { service: None, backends });
}

#[test]
fn the_last_usable_backend_with_flows_needs_force() {
    let mut facts = facts();
    let name = "10.0.0.1:80/tcp".to_owned();
    facts.usable.insert(name.clone(), [address("10.0.0.2:80")].into());
    facts.flows.insert(BackendKey { service: name, address: address("10.0.0.2:80") }, 3);
    let change = Change::RemoveBackends { service: None, backends: vec![address("10.0.0.2:80")] };
    let error = web().change(&change, &facts, false).unwrap_err();
    assert!(error.message.contains("last usable") && error.hint.unwrap().contains("--force"));
    assert!(web().change(&change, &facts, true).unwrap().summary[0].contains("3 flows are reset"));
}

#[test]
fn a_statement_of_the_flags_replaces_only_what_the_flags_said() {
    let attach = |backends: &[&str]| Change::Attach {
        settings: Box::default(),
        service: Some(service("10.0.0.1:80", backends)),
    };
    let (first, facts) = (attach(&["10.0.0.2:80", "10.0.0.3:80"]), facts());
    let mut state = Desired::default().change(&first, &facts, false).unwrap().desired;
    let more = Change::AddBackends { service: None, backends: vec![(address("10.0.0.7:80"), 5)] };
    state = state.change(&more, &facts, false).unwrap().desired;
    let drain = Change::SetAdmin { service: None, backends: vec![address("10.0.0.2:80")], admin: Admin::Drain };
    state = state.change(&drain, &facts, false).unwrap().desired;
    state = state.change(&attach(&["10.0.0.2:80", "10.0.0.4:80"]), &facts, false).unwrap().desired;
    let backends: Vec<_> =
        state.service(None).unwrap().backends.iter().map(|b| (b.address.to_string(), b.admin)).collect();
    let wanted = [("10.0.0.2:80", Admin::Drain), ("10.0.0.4:80", Admin::Ready), ("10.0.0.7:80", Admin::Ready)];
    assert_eq!(backends, wanted.map(|(address, admin)| (address.to_owned(), admin)));
    assert_eq!(state.generation, 4);
}

fn change(state: &Desired, change: &Change) -> Desired {
    state.change(change, &facts(), false).unwrap().desired
}

fn file(backends: &[&str]) -> Change {
    let mut service = *service("10.0.0.1:80", backends);
    service.name = "web".into();
    Change::Restate { source: Source::File, settings: Box::default(), services: vec![service] }
}

fn consul(backends: &[&str]) -> Change {
    let backends = backends.iter().map(|text| (address(text), 10)).collect();
    Change::Snapshot { service: "web".into(), source: Source::Registry("consul".into()), backends }
}

/// "address source" of every backend.
fn listed(state: &Desired) -> Vec<String> {
    let backends = state.services.values().flat_map(|service| &service.backends);
    backends.map(|backend| format!("{} {}", backend.address, backend.source)).collect()
}

#[test]
fn a_backend_of_two_sources_stays_until_both_have_withdrawn_it() {
    let state = change(&Desired::default(), &file(&["10.0.0.2:80"]));
    let state = change(&state, &consul(&["10.0.0.2:80", "10.0.0.3:80"]));
    assert_eq!(listed(&state), ["10.0.0.2:80 file", "10.0.0.3:80 registry:consul"]);
    let without = change(&state, &file(&[]));
    assert_eq!(listed(&without), ["10.0.0.2:80 registry:consul", "10.0.0.3:80 registry:consul"]);
    assert_eq!(listed(&change(&state, &consul(&[]))), ["10.0.0.2:80 file"]);
}

#[test]
fn a_backend_that_comes_back_has_its_admin_state_and_its_weight() {
    let state = change(&Desired::default(), &file(&[]));
    let state = change(&state, &consul(&["10.0.0.2:80"]));
    let backend = address("10.0.0.2:80");
    let drain = Change::SetAdmin { service: None, backends: vec![backend], admin: Admin::Drain };
    let state = change(&state, &drain);
    let state = change(&state, &Change::SetWeight { service: None, backend, weight: 7 });
    let state = change(&change(&state, &consul(&[])), &consul(&["10.0.0.2:80"]));
    let back = &state.service(None).unwrap().backends[0];
    assert_eq!((back.admin, back.weight), (Admin::Drain, 7));
    let removed = change(&state, &Change::RemoveBackends { service: None, backends: vec![backend] });
    let state = change(&change(&removed, &consul(&[])), &consul(&["10.0.0.2:80"]));
    let anew = &state.service(None).unwrap().backends[0];
    assert_eq!((anew.admin, anew.weight), (Admin::Ready, 10), "removing forgets");
}

#[test]
fn what_the_operator_removed_stays_removed_when_the_file_is_read_again() {
    let state = change(&Desired::default(), &file(&["10.0.0.2:80", "10.0.0.3:80"]));
    let remove = Change::RemoveBackends { service: None, backends: vec![address("10.0.0.2:80")] };
    let outcome = state.change(&remove, &facts(), false).unwrap();
    assert!(outcome.warnings[0].contains("file states it still"), "{:?}", outcome.warnings);
    let again = outcome.desired.change(&file(&["10.0.0.2:80", "10.0.0.3:80"]), &facts(), false).unwrap();
    assert_eq!(listed(&again.desired), ["10.0.0.3:80 file"]);
    assert!(again.warnings[0].contains("lb backend add 10.0.0.2:80"), "{:?}", again.warnings);
    assert_eq!(again.desired, outcome.desired, "the same file changes nothing");
    let add = Change::AddBackends { service: None, backends: vec![(address("10.0.0.2:80"), 9)] };
    let state = change(&again.desired, &add);
    assert_eq!(state.service(None).unwrap().backends[0].weight, 9);
    // Now it is the operator's too.
    assert_eq!(listed(&change(&state, &file(&["10.0.0.3:80"]))), ["10.0.0.2:80 cli", "10.0.0.3:80 file"]);
    let remove = Change::RemoveService { service: "web".into() };
    let state = change(&state, &remove);
    assert!(change(&state, &file(&["10.0.0.2:80"])).services.is_empty());
    let without = Change::Restate { source: Source::File, settings: Box::default(), services: vec![] };
    assert_eq!(listed(&change(&change(&state, &without), &file(&["10.0.0.2:80"]))), ["10.0.0.2:80 file"]);
}

#[test]
fn what_the_operator_set_stands_against_the_file_and_is_said() {
    let state = change(&Desired::default(), &file(&["10.0.0.2:80"]));
    let options = ServiceOptions { on_down: Some(crate::state::OnDown::Keep), ..ServiceOptions::default() };
    let set = Change::SetService { service: "web".into(), options: Box::new(options), backends: None };
    let state = change(&state, &set);
    let weight = Change::SetWeight { service: None, backend: address("10.0.0.2:80"), weight: 5 };
    let again = change(&state, &weight).change(&file(&["10.0.0.2:80"]), &facts(), false).unwrap();
    let service = again.desired.service(None).unwrap();
    assert_eq!((service.on_down, service.backends[0].weight), (crate::state::OnDown::Keep, 5));
    assert_eq!(again.warnings.len(), 2, "{:?}", again.warnings);
}

#[test]
fn a_registrys_impossible_backend_is_left_out_and_said() {
    let state = change(&Desired::default(), &file(&[]));
    let outcome = state.change(&consul(&["10.0.0.2:80", "127.0.0.1:80", "10.0.0.1:80"]), &facts(), false).unwrap();
    assert_eq!(listed(&outcome.desired), ["10.0.0.2:80 registry:consul"]);
    assert_eq!(outcome.warnings.len(), 2, "{:?}", outcome.warnings);
    let same = outcome.desired.change(&consul(&["10.0.0.2:80"]), &facts(), false).unwrap();
    assert_eq!(same.desired.generation, outcome.desired.generation, "no change, no generation");
    let unknown = Desired::default().change(&consul(&["10.0.0.2:80"]), &facts(), false).unwrap_err();
    assert_eq!(unknown.kind, Kind::NotFound);
}

#[test]
fn a_restatement_with_something_wrong_is_refused_whole() {
    let wrong = |edit: &dyn Fn(&mut ServiceSpec)| {
        let mut second = *service("10.0.0.1:81", &["10.0.0.5:80"]);
        edit(&mut second);
        let Change::Restate { source, settings, mut services } = file(&["10.0.0.2:80"]) else { unreachable!() };
        services.push(second);
        change(&Desired::default(), &file(&["10.0.0.2:80"]))
            .change(&Change::Restate { source, settings, services }, &facts(), false)
            .expect_err("this must be refused")
    };
    let vip = |text: &str| vec![text.parse().unwrap()];
    assert!(wrong(&|s| s.vips = vip("10.0.0.1:80")).message.contains("has it already"));
    assert!(wrong(&|s| s.vips = vip("10.0.0.2:90")).message.contains("backend of service web"));
    assert!(wrong(&|s| s.name = "web".into()).message.contains("named twice"));
    assert!(wrong(&|s| s.backends.push(s.backends[0].clone())).message.contains("named twice"));
    assert!(wrong(&|s| s.backends[0].address = address("127.0.0.1:1")).message.contains("loopback"));
    assert!(wrong(&|s| s.backends[0].address = address("10.0.0.1:1")).message.contains("is a VIP"));
}

#[test]
fn settings_of_the_flags_count_before_the_files() {
    let settings = |interfaces: &[&str], max_flows| SettingsOptions {
        interfaces: interfaces.iter().map(|&name| name.into()).collect(),
        max_flows,
        ..SettingsOptions::default()
    };
    let flags = Change::Attach { settings: Box::new(settings(&["eth0"], None)), service: None };
    let file =
        Change::Restate { source: Source::File, settings: Box::new(settings(&["eth1"], Some(4096))), services: vec![] };
    for order in [[&flags, &file], [&file, &flags]] {
        let state = order.into_iter().fold(Desired::default(), |state, next| change(&state, next));
        assert_eq!((state.settings.interfaces[0].as_str(), state.settings.max_flows), ("eth0", 4096));
    }
}

#[test]
fn a_service_is_found_by_name_by_vip_and_by_being_the_only_one() {
    let state = web();
    for wanted in [Some("10.0.0.1:80/tcp"), Some("10.0.0.1:80"), None] {
        assert_eq!(state.service(wanted).unwrap().name, "10.0.0.1:80/tcp");
    }
    let two = Change::AddService { service: service("10.0.0.1:81", &[]) };
    let error = state.change(&two, &facts(), false).unwrap().desired.service(None).unwrap_err();
    assert!(error.hint.unwrap().contains("10.0.0.1:81/tcp"));
}
