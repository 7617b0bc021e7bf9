//! The data path without its daemon.

use std::net::SocketAddr;

use lb_tests::e2e::{BALANCER, Setup, connect, echo, ping};

#[test]
fn a_connection_lives_through_sigkill_and_adoption() {
    let mut setup = Setup::new(2, 1500).unwrap();
    for host in setup.backends.clone() {
        echo(&host, 7).unwrap();
    }
    let list = setup.list(7);
    setup.attach(&format!("--backends {list}")).unwrap();
    setup.wait_usable(2).unwrap();
    let mut stream = connect(&setup.client, SocketAddr::from((BALANCER, 7))).unwrap();
    ping(&mut stream, "before").unwrap();
    setup.kill_daemon().unwrap();
    ping(&mut stream, "without a daemon").unwrap();
    setup.attach(&format!("--backends {list}")).unwrap();
    ping(&mut stream, "adopted").unwrap();
}
