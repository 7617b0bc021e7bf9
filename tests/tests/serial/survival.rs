//! The data path while its daemon is killed and comes back.

use std::time::Duration;

use lb_tests::e2e::{Setup, clients::Iperf, connect, ping, servers, vip};

#[test]
fn a_connection_lives_through_sigkill_and_adoption() {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_echo(7).unwrap();
    let list = setup.list(7);
    setup.attach(&format!("--backends {list}")).unwrap();
    setup.wait_usable(2).unwrap();
    let mut stream = connect(&setup.client, vip(7)).unwrap();
    ping(&mut stream, "before").unwrap();
    setup.kill_daemon().unwrap();
    ping(&mut stream, "without a daemon").unwrap();
    setup.attach(&format!("--backends {list}")).unwrap();
    ping(&mut stream, "adopted").unwrap();
}

#[test]
fn iperf3_neither_breaks_nor_stalls_while_the_daemon_is_killed_and_comes_back() {
    for (mode, reverse) in [("native", false), ("generic", true)] {
        let mut setup = Setup::new(1, 1500).unwrap();
        let server = servers::iperf3(&setup.backends[0], setup.directory(), 5201).unwrap();
        setup.keep(server);
        setup.wait_listening(5201).unwrap();
        let attach = format!("--xdp {mode} --backends {}:5201", setup.backends[0].address);
        setup.attach(&attach).unwrap();
        setup.wait_usable(1).unwrap();
        let iperf = Iperf::begin(&setup.client, vip(5201), Duration::from_secs(10), reverse).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        for _ in 0..3 {
            setup.kill_daemon().unwrap();
            std::thread::sleep(Duration::from_millis(500));
            setup.attach(&attach).unwrap();
            std::thread::sleep(Duration::from_millis(500));
        }
        let seen = iperf.wait().unwrap();
        assert!(seen.longest_stall() < Duration::from_secs(1), "{mode}: {:?}", seen.bytes);
    }
}
