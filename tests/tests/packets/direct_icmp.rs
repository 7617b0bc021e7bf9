//! Packet tests of ICMP errors about flows of the direct-return modes: rule 20 towards the backend, whole and by the
//! flow's way; rule 23 towards the client, when a router of the tunnel's path says that the wrapped packet is too long.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Icmpv4Header, Icmpv4Type};
use lb_common::reason::Reason;
use lb_tests::{
    packet::{ACK, BACKEND_MAC, CLIENT_MAC, LB_MAC, SYN, other},
    packet6,
    whole::{self, ETHERNET, Whole, unwrap},
    world::{OTHER, PASS, REDIRECT, TX, World},
};
use lb_userspace::state::Mode;

const VIPS: [(&str, &str); 2] = [("10.0.0.10", "192.0.2.7"), ("[fd00::10]", "2001:db8::7")];
const BACKENDS: [[&str; 2]; 2] = [["10.0.1.1", "10.0.1.2"], ["[fd00:1::1]", "[fd00:1::2]"]];
const MODES: [Mode; 3] = [Mode::Dsr, Mode::Ipip, Mode::Gue];

/// A service of a mode, by the families of its VIP and its backends.
struct Case {
    mode: Mode,
    vip: SocketAddr,
    client: SocketAddr,
    wide: bool,
}

impl Case {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for mode in MODES {
            for (vip, client) in VIPS {
                for wide in [false, true] {
                    let vip: SocketAddr = format!("{vip}:80").parse().unwrap();
                    let client = SocketAddr::new(client.parse().unwrap(), 4000);
                    if mode.is_tunnel() || vip.is_ipv6() == wide {
                        all.push(Self { mode, vip, client, wide });
                    }
                }
            }
        }
        all
    }

    /// A world with this service; every backend's MAC ends in a number of its own.
    fn world(&self) -> World {
        let mut world = World::new(4096).unwrap();
        let backends = BACKENDS[usize::from(self.wide)].map(|backend| format!("{backend}:80"));
        whole::add(&mut world, self.mode, &format!("{}", self.vip), &[&backends[0], &backends[1]]).unwrap();
        for (number, backend) in (0xb1..).zip(&backends) {
            let address = backend.parse::<SocketAddr>().unwrap().ip();
            world.observed.next_hops.get_mut(&address).unwrap().ethernet[5] = number;
        }
        world.apply().unwrap();
        world
    }

    fn tcp(&self, port: u16, flags: u8) -> Whole {
        Whole::tcp(SocketAddr::new(self.client.ip(), port), self.vip, flags)
    }

    /// What the backend answers to a client, as routers on the way see it.
    fn answer(&self, port: u16) -> Vec<u8> {
        let mut answer = Whole::tcp(self.vip, SocketAddr::new(self.client.ip(), port), ACK);
        answer.payload = vec![9; 600];
        answer.frame()
    }

    fn router(&self) -> IpAddr {
        if self.vip.is_ipv4() { [198, 51, 100, 1].into() } else { "2001:db8:ffff::1".parse().unwrap() }
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}, wide: {}", self.mode, self.vip, self.wide)
    }
}

/// An ICMP error: type and code, its second word, and what it quotes.
fn error(from: IpAddr, to: IpAddr, kind: (u8, u8), rest: u32, quote: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let kind = Icmpv4Type::Unknown { type_u8: kind.0, code_u8: kind.1, bytes5to8: rest.to_be_bytes() };
            let mut packet = other(from, to, 1);
            packet.payload = [&Icmpv4Header::with_checksum(kind, quote).to_bytes()[..], quote].concat();
            packet.build()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet6::icmp(from, to, kind.0, kind.1, rest.to_be_bytes(), quote).build()
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// The packet that a frame of a mode carries.
fn inside(mode: Mode, frame: &[u8]) -> Vec<u8> {
    if mode == Mode::Dsr { frame[ETHERNET..].to_vec() } else { unwrap(frame).unwrap().inner }
}

#[test]
fn rule_20_an_error_reaches_the_backend_of_its_flow_as_it_came() {
    for case in Case::all() {
        let mut world = case.world();
        let v4 = case.vip.is_ipv4();
        let kinds: &[(u8, u8)] =
            if v4 { &[(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0)] } else { &[(1, 0), (1, 4), (2, 0), (3, 0)] };
        let least = if v4 { 28 } else { 48 };
        for port in 4000..4008 {
            let flow = world.run(&case.tcp(port, SYN).frame());
            let answer = case.answer(port);
            for kind in kinds {
                for length in [least, least + 12, 500] {
                    let quote = &answer[ETHERNET..ETHERNET + length];
                    let frame = error(case.router(), case.vip.ip(), *kind, 1400, quote);
                    let sent = world.run(&frame);
                    assert_eq!((sent.verdict, sent.reason), (TX, Reason::IcmpForwarded), "{case} {kind:?} {length}");
                    assert_eq!(sent.frame[..12], flow.frame[..12], "to its flow's backend");
                    assert_eq!(inside(case.mode, &sent.frame), frame[ETHERNET..], "{case}: as it came");
                }
            }
        }
    }
}

#[test]
fn rule_20_an_error_about_another_balancers_flow_goes_where_the_table_says() {
    for case in Case::all() {
        let (mut world, mut other) = (case.world(), case.world());
        let mut seen = std::collections::BTreeSet::new();
        for port in 4000..4016 {
            let flow = world.run(&case.tcp(port, SYN).frame());
            let quote = &case.answer(port)[ETHERNET..ETHERNET + 60];
            let frame =
                error(case.router(), case.vip.ip(), if case.vip.is_ipv4() { (3, 4) } else { (2, 0) }, 1400, quote);
            let sent = other.run(&frame);
            assert_eq!((sent.verdict, sent.reason), (TX, Reason::IcmpForwarded), "{case}");
            assert_eq!(sent.frame[..12], flow.frame[..12], "{case}: the backend that the flow has elsewhere");
            seen.insert(sent.frame[5]);
        }
        assert_eq!(seen.len(), 2, "{case}: both backends have some");
        assert!(other.flows().is_empty(), "an error makes no flow");
    }
}

#[test]
fn rule_22_an_error_about_no_service_of_ours_passes() {
    for case in Case::all() {
        let mut world = case.world();
        let stranger = Whole::tcp(SocketAddr::new(case.vip.ip(), 81), case.client, ACK).frame();
        let frame = error(
            case.router(),
            case.vip.ip(),
            if case.vip.is_ipv4() { (3, 1) } else { (1, 0) },
            0,
            &stranger[ETHERNET..],
        );
        let passed = world.run(&frame);
        assert_eq!((passed.verdict, passed.reason, passed.frame), (PASS, Reason::IcmpPassed, frame), "{case}");
    }
}

/// "Too big" from a router of the tunnel's path, about a frame that lb sent, to lb.
fn too_big(sent: &[u8], mtu: u32) -> Vec<u8> {
    let outer = unwrap(sent).unwrap();
    let (router, kind): (IpAddr, _) = match outer.addresses.0 {
        IpAddr::V4(_) => ([10, 0, 1, 254].into(), (3, 4)),
        IpAddr::V6(_) => ("fd00:1::fe".parse().unwrap(), (2, 0)),
    };
    let quote = &sent[ETHERNET..sent.len().min(ETHERNET + 500)];
    let mut frame = error(router, outer.addresses.0, kind, mtu, quote);
    frame[6..12].copy_from_slice(&BACKEND_MAC);
    frame
}

#[test]
fn rule_23_a_tunnel_path_that_is_too_narrow_is_told_to_the_client() {
    for case in Case::all().into_iter().filter(|case| case.mode.is_tunnel()) {
        let mut world = case.world();
        let mut packet = case.tcp(4000, ACK);
        packet.payload = vec![7; 1000];
        let (frame, sent) = (packet.frame(), world.run(&packet.frame()));
        let overhead = sent.frame.len() - frame.len();
        let told = world.run(&too_big(&sent.frame, 1400));
        assert_eq!((told.verdict, told.reason), (TX, Reason::IcmpForwarded), "{case}");
        assert_eq!((&told.frame[..6], &told.frame[6..12]), (&CLIENT_MAC[..], &LB_MAC[..]), "{case}");
        let (from, to, kind, rest, quote) = if case.vip.is_ipv4() {
            let seen = told.packet();
            let bytes = seen.icmp.unwrap().to_bytes();
            let rest = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            (IpAddr::V4(*seen.from.ip()), IpAddr::V4(*seen.to.ip()), (bytes[0], bytes[1]), rest, seen.payload)
        } else {
            let seen = told.packet6();
            let (kind, code, rest) = seen.icmp.unwrap();
            (
                IpAddr::V6(*seen.from.ip()),
                IpAddr::V6(*seen.to.ip()),
                (kind, code),
                u32::from_be_bytes(rest),
                seen.payload,
            )
        };
        assert_eq!((from, to), (case.vip.ip(), case.client.ip()), "{case}: from the VIP");
        assert_eq!(kind, if case.vip.is_ipv4() { (3, 4) } else { (2, 0) }, "{case}");
        assert_eq!(rest as usize, 1400 - overhead, "{case}: less what lb put in front");
        assert_eq!(quote, frame[ETHERNET..ETHERNET + quote.len()], "{case}: quoted as the client sent it");
        assert!(quote.len() >= if case.vip.is_ipv4() { 28 } else { 48 });
    }
}

#[test]
fn rule_23_it_leaves_by_the_clients_interface_and_strangers_are_left_alone() {
    for case in Case::all().into_iter().filter(|case| case.mode.is_tunnel()) {
        let mut world = case.world();
        for backend in BACKENDS[usize::from(case.wide)] {
            world.reach(format!("{backend}:1").parse::<SocketAddr>().unwrap().ip(), OTHER, 1500);
        }
        world.apply().unwrap();
        let sent = world.run(&case.tcp(4000, ACK).frame());
        assert_eq!((sent.verdict, sent.reason), (REDIRECT, Reason::ForwardedRedirect));
        // The error comes in where the client is, as every test run does: what decides is the flow.
        assert_eq!(world.run(&too_big(&sent.frame, 1400)).verdict, TX, "{case}");

        // Another type, an MTU that nothing fits, a quote too short to tell whose it was, a flow of nobody.
        let outer = unwrap(&sent.frame).unwrap().addresses.0;
        let router: IpAddr = if outer.is_ipv4() { [10, 0, 1, 254].into() } else { "fd00:1::fe".parse().unwrap() };
        let quote = &sent.frame[ETHERNET..];
        let (unreachable, narrow) = if outer.is_ipv4() { ((3, 1), (3, 4)) } else { ((1, 0), (2, 0)) };
        let stranger = {
            let mut other = case.world();
            other.run(&case.tcp(5000, ACK).frame()).frame[ETHERNET..].to_vec()
        };
        let short = if outer.is_ipv4() { 28 } else { 48 };
        let left_alone = [
            error(router, outer, unreachable, 0, quote),
            error(router, outer, narrow, 60, quote),
            error(router, outer, narrow, 1400, &quote[..short]),
            error(router, outer, narrow, 1400, &stranger),
        ];
        for (number, frame) in left_alone.iter().enumerate() {
            let passed = world.run(frame);
            assert_eq!((passed.verdict, passed.reason), (PASS, Reason::IcmpPassed), "{case}: {number}");
            assert_eq!(passed.frame, *frame);
        }
    }
}

#[test]
fn rule_23_an_error_that_does_not_fit_the_tunnel_is_dropped() {
    for case in Case::all().into_iter().filter(|case| case.mode.is_tunnel()) {
        let mut world = case.world();
        world.run(&case.tcp(4000, SYN).frame());
        let headers = if case.vip.is_ipv4() { 28 } else { 48 };
        let outer = if case.wide { 40 } else { 20 } + if case.mode == Mode::Gue { 8 } else { 0 };
        let kind = if case.vip.is_ipv4() { (3, 1) } else { (1, 0) };
        for (too_much, expected) in [(0, Reason::IcmpForwarded), (1, Reason::TooBigDropped)] {
            let mut quote = case.answer(4000)[ETHERNET..].to_vec();
            quote.resize(1500 - outer - headers + too_much, 0);
            let sent = world.run(&error(case.router(), case.vip.ip(), kind, 0, &quote));
            assert_eq!(sent.reason, expected, "{case}: no error about an error");
        }
    }
}
