//! For ever without a daemon: every record and every NAT port is used many times over.
//!
//! `LB_CHURN_SECONDS` says how long (default: 20).

use std::time::{Duration, Instant};

use lb_tests::e2e::{Setup, clients::Storm, connect, ping, vip};

#[test]
fn churn_without_a_daemon_uses_ports_and_table_many_times() {
    let seconds = std::env::var("LB_CHURN_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_echo(7).unwrap();
    let list = setup.list(7);
    let (flows, ports) = (1024, 500);
    setup.attach(&format!("--backends {list} --max-flows {flows} --snat-ports 20000-{}", 20_000 + ports - 1)).unwrap();
    setup.wait_usable(2).unwrap();
    // The client's own ports come round much faster than TIME_WAIT would let them.
    Setup::sysctl(&setup.client, "net.ipv4.tcp_tw_reuse=1").unwrap();
    let mut long = connect(&setup.client, vip(7)).unwrap();
    ping(&mut long, "before").unwrap();
    setup.kill_daemon().unwrap();

    let storm = Storm::begin(&setup.client, vip(7), u32::MAX, 8);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_secs(1));
        ping(&mut long, "in the storm").unwrap();
        let done = storm.so_far();
        assert!(done.failures.is_empty(), "{} were fine, then: {:?}", done.fine, done.failures);
    }
    let done = storm.end().unwrap();
    eprintln!("{} connections in {seconds} s, the slowest took {:?}", done.fine, done.slowest);
    assert_eq!(done.failures, [""; 0]);
    assert!(done.fine > 5 * flows.max(2 * ports), "only {} connections", done.fine);
    setup.attach(&format!("--backends {list}")).unwrap();
    ping(&mut long, "adopted").unwrap();
    ping(&mut connect(&setup.client, vip(7)).unwrap(), "new").unwrap();
}
