//! The life of the program on an interface: attach, Ctrl-C, adoption, detach.

use lb_tests::e2e::{MODES, Setup, connect, eventually, ping, vip};
use nix::sys::signal::Signal;

/// Everything that lb leaves on a host: pins, socket, XDP, addresses.
fn traces(setup: &Setup) -> Vec<String> {
    let mut traces = Vec::new();
    for path in [setup.bpffs().to_owned(), setup.directory().join("lb.sock"), setup.directory().join("state")] {
        let empty = std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none());
        if path.exists() && !empty {
            traces.push(path.display().to_string());
        }
    }
    let links = Setup::ip(&setup.balancer, "-d link show").unwrap();
    traces.extend(links.lines().filter(|line| line.contains("xdp")).map(str::to_owned));
    let addresses = Setup::ip(&setup.balancer, "-o -4 addr show").unwrap();
    traces.extend(addresses.lines().filter(|line| line.contains("10.66.0.99")).map(str::to_owned));
    traces
}

#[test]
fn detach_leaves_no_trace_with_and_without_a_daemon() {
    let mut setup = Setup::new(1, 1500).unwrap();
    let list = setup.list(8080);
    for mode in MODES {
        for killed in [false, true] {
            setup.attach(&format!("--xdp {mode} --vip 10.66.0.99:80 --backends {list} --announce")).unwrap();
            assert!(traces(&setup).len() >= 4, "{:?}", traces(&setup));
            if killed {
                setup.kill_daemon().unwrap();
            }
            setup.done("detach").unwrap();
            assert!(eventually(|| traces(&setup).is_empty()), "{mode}, killed {killed}: {:?}", traces(&setup));
        }
    }
}

#[test]
fn interrupted_it_detaches() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let setup = Setup::new(1, 1500).unwrap();
        let list = setup.list(8080);
        let daemon = setup.start("", &format!("attach eth0 --vip 10.66.0.99:80 --backends {list} --announce")).unwrap();
        daemon.signal(signal).unwrap();
        assert!(daemon.ended().unwrap().success(), "{signal}");
        assert!(traces(&setup).is_empty(), "{signal}: {:?}", traces(&setup));
    }
}

#[test]
fn on_exit_keep_leaves_the_data_path_running() {
    let mut setup = Setup::new(1, 1500).unwrap();
    setup.serve_echo(7).unwrap();
    let list = setup.list(7);
    let daemon = setup.start("", &format!("attach eth0 --backends {list} --on-exit keep")).unwrap();
    setup.wait_usable(1).unwrap();
    let mut stream = connect(&setup.client, vip(7)).unwrap();
    ping(&mut stream, "before").unwrap();
    daemon.signal(Signal::SIGINT).unwrap();
    assert!(daemon.ended().unwrap().success());
    ping(&mut stream, "after").unwrap();
    ping(&mut connect(&setup.client, vip(7)).unwrap(), "new").unwrap();
    setup.attach("").unwrap();
    ping(&mut stream, "adopted").unwrap();
    let active = || setup.json("status").unwrap()["flows"]["active"].as_u64();
    assert!(eventually(|| active() == Some(1)), "ended ones do not count: {:?}", active());
    setup.done("detach").unwrap();
    assert!(eventually(|| traces(&setup).is_empty()), "{:?}", traces(&setup));
}

/// What the flags said before is replaced, what others said stays, and no connection is touched.
#[test]
fn adoption_with_other_flags() {
    let mut setup = Setup::new(3, 1500).unwrap();
    setup.serve_echo(7).unwrap();
    let [first, second, third] = [0, 1, 2].map(|n| format!("{}:7", setup.backends[n].address));
    setup.attach(&format!("--xdp native --backends {first},{second} --on-exit keep")).unwrap();
    setup.wait_usable(2).unwrap();
    setup.done(&format!("backend add {third} --wait=20s")).unwrap();
    let mut streams: Vec<_> = (0..20).map(|_| connect(&setup.client, vip(7)).unwrap()).collect();
    streams.iter_mut().for_each(|stream| ping(stream, "open").unwrap());
    setup.kill_daemon().unwrap();

    let refused = setup.lb(&format!("attach eth0 --xdp generic --backends {second}")).unwrap();
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(5), "{error}");
    assert!(error.contains("native") && error.contains("hint: ") && error.contains("lb detach"), "{error}");
    streams.iter_mut().for_each(|stream| ping(stream, "refused").unwrap());

    setup.attach(&format!("--xdp native --backends {second}=5")).unwrap();
    let backends = setup.json("backend list").unwrap();
    let seen: Vec<_> =
        backends.as_array().unwrap().iter().map(|b| (b["address"].as_str().unwrap(), &b["weight"])).collect();
    assert_eq!(seen, [(second.as_str(), &5.into()), (third.as_str(), &1.into())], "{backends:#}");
    streams.iter_mut().for_each(|stream| ping(stream, "adopted").unwrap());
    setup.wait_usable(2).unwrap();
    for _ in 0..10 {
        ping(&mut connect(&setup.client, vip(7)).unwrap(), "new").unwrap();
    }
    let count = setup.done(&format!("conn count --backend {first}")).unwrap();
    assert_ne!(count, "0\n", "flows of a backend that the flags no longer name go on");
}

/// Only detaching stops forwarding: also on an interface that the next attach does not name.
#[test]
fn adoption_that_names_fewer_interfaces_keeps_the_others() {
    let mut setup = Setup::two_armed(1, 1500).unwrap();
    setup.serve_echo(7).unwrap();
    let list = setup.list(7);
    setup.attach(&format!("eth1 --vip 7 --backends {list} --max-flows 4096")).unwrap();
    setup.wait_usable(1).unwrap();
    let mut stream = connect(&setup.client, vip(7)).unwrap();
    ping(&mut stream, "before").unwrap();
    setup.kill_daemon().unwrap();
    setup.attach("--max-flows 8192").unwrap();
    assert!(setup.log().contains("keeps its table of 4096 flows"), "{}", setup.log());
    ping(&mut stream, "adopted").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    ping(&mut stream, "later").unwrap();
    ping(&mut connect(&setup.client, vip(7)).unwrap(), "new").unwrap();
    let status = setup.json("status").unwrap();
    assert_eq!(status["interfaces"].as_array().unwrap().len(), 2, "{status:#}");
    assert_eq!(status["flows"]["max"], 4096);
    setup.done("detach").unwrap();
    assert!(eventually(|| traces(&setup).is_empty()), "{:?}", traces(&setup));
}

/// Killed between any two system calls: the next attach stands, and no connection is lost.
#[test]
fn sigkill_at_any_moment_of_a_change() {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_echo(7).unwrap();
    let list = setup.list(7);
    let attach = format!("--xdp native --backends {list}");
    setup.attach(&attach).unwrap();
    setup.wait_usable(2).unwrap();
    let mut stream = connect(&setup.client, vip(7)).unwrap();
    for round in 0..12u64 {
        let mut change = setup.command("", "backend add 10.66.0.150:7=0 10.66.0.151:7=0");
        let mut change =
            change.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(round * 4));
        setup.kill_daemon().unwrap();
        change.wait().unwrap();
        ping(&mut stream, "killed").unwrap_or_else(|error| panic!("round {round}: {error:#}"));
        // Killed while it takes over, too.
        let mut again = setup.command("", &format!("attach eth0 {attach}"));
        let mut again = again.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(round * 15));
        again.kill().unwrap();
        again.wait().unwrap();
        ping(&mut stream, "killed again").unwrap_or_else(|error| panic!("round {round}: {error:#}"));
        setup.attach(&attach).unwrap();
        ping(&mut stream, "adopted").unwrap_or_else(|error| panic!("round {round}: {error:#}"));
        setup.wait_usable(2).unwrap();
        ping(&mut connect(&setup.client, vip(7)).unwrap(), "new").unwrap();
        let added = setup.json("backend list").unwrap().as_array().unwrap().len();
        assert!(added == 2 || added == 4, "all or none: {added}");
        if added == 4 {
            setup.done("backend remove 10.66.0.150:7 10.66.0.151:7").unwrap();
        }
    }
}
