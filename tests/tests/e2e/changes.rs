//! Changes while traffic flows.

use std::time::Duration;

use lb_tests::e2e::{
    MODES, Setup,
    clients::{Storm, Wrk, connect, ping},
    eventually, vip,
};

#[test]
fn a_connection_lives_through_every_change() {
    for mode in MODES {
        let mut setup = Setup::new(3, 1500).unwrap();
        setup.serve_echo(7000).unwrap();
        let [first, second, third] = [0, 1, 2].map(|n| format!("{}:7000", setup.backends[n].address));
        let attach = format!("--xdp {mode} --vip 7 --backends {first}");
        setup.attach(&attach).unwrap();
        setup.wait_usable(1).unwrap();
        let mut stream = connect(&setup.client, vip(7)).unwrap();
        ping(&mut stream, "begun").unwrap();
        let steps = [
            format!("backend add {second} {third} --wait=20s"),
            format!("backend weight {first} 9"),
            format!("backend weight {first} 0"),
            "service set 10.66.0.1:7 --on-down reset --on-empty drop".to_owned(),
            format!("backend drain {first}"),
            format!("backend remove {third}"),
            format!("service add 10.66.0.1:8 --backends {third} --wait=20s"),
            "service remove 10.66.0.1:8".to_owned(),
        ];
        for step in steps {
            setup.done(&step).unwrap();
            ping(&mut stream, &step).unwrap_or_else(|error| panic!("{mode}: {error:#}"));
        }
        let waited = setup.lb(&format!("backend drain {first} --wait=300ms")).unwrap();
        assert_eq!(waited.status.code(), Some(4), "a live flow is left");

        let before = setup.json("status").unwrap()["interfaces"][0]["program_id"].clone();
        setup.kill_daemon().unwrap();
        ping(&mut stream, "without a daemon").unwrap();
        let mut fresh = connect(&setup.client, vip(7)).unwrap();
        ping(&mut fresh, "a new one, without a daemon").unwrap();

        setup.attach(&attach).unwrap();
        ping(&mut stream, "adopted").unwrap();
        let now = &setup.json("status").unwrap()["interfaces"][0]["program_id"];
        assert_ne!(&before, now, "the program is replaced in place");
        let backend = &setup.json("backend list").unwrap()[0];
        assert_eq!((&backend["admin"], &backend["flows"]), (&"drain".into(), &1.into()), "the admin state persists");

        setup.done(&format!("backend remove {first}")).unwrap();
        ping(&mut stream, "removed").unwrap();
        setup.kill_daemon().unwrap();
        ping(&mut stream, "removed, without a daemon").unwrap();
        setup.attach("--xdp auto").unwrap();
        ping(&mut stream, "removed, and adopted").unwrap();
        ping(&mut fresh, "still there").unwrap();
    }
}

#[test]
fn drain_waits_until_the_last_connection_has_ended() {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_echo(7).unwrap();
    let list = setup.list(7);
    setup.attach(&format!("--backends {list}")).unwrap();
    setup.wait_usable(2).unwrap();
    let mut streams: Vec<_> = (0..20).map(|_| connect(&setup.client, vip(7)).unwrap()).collect();
    streams.iter_mut().for_each(|stream| ping(stream, "open").unwrap());
    let first = format!("{}:7", setup.backends[0].address);
    let mut waiting = setup.command("", &format!("backend drain {first} --wait=60s"));
    let waiting = waiting.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let drained = || setup.json("backend list").unwrap()[0]["admin"] == "drain";
    assert!(eventually(drained));
    for _ in 0..10 {
        ping(&mut connect(&setup.client, vip(7)).unwrap(), "elsewhere").unwrap();
    }
    assert_ne!(setup.done(&format!("conn count --backend {first}")).unwrap(), "0\n", "they go on");
    streams.iter_mut().for_each(|stream| ping(stream, "still open").unwrap());
    drop(streams);
    let output = waiting.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.ends_with("0 live flows\n"), "{said}");
}

#[test]
fn hot_add_and_remove_under_wrk_fail_no_request() {
    for (mode, close) in [("native", false), ("native", true), ("generic", true)] {
        let mut setup = Setup::new(3, 1500).unwrap();
        setup.serve_nginx(80, &[]).unwrap();
        let [first, second, third] = [0, 1, 2].map(|n| format!("{}:80", setup.backends[n].address));
        setup.attach(&format!("--xdp {mode} --backends {first},{second}")).unwrap();
        setup.wait_usable(2).unwrap();
        let time = Duration::from_secs(8);
        let wrk = Wrk::begin(&setup.client, "http://10.66.0.1/name", 30, time, close).unwrap();
        let begun = std::time::Instant::now();
        let mut rounds = 0;
        while begun.elapsed() < time {
            setup.done(&format!("backend add {third} --wait=20s")).unwrap();
            setup.done(&format!("backend weight {first} {}", 1 + rounds % 5)).unwrap();
            setup.done(&format!("backend drain {second}")).unwrap();
            setup.done(&format!("backend ready {second}")).unwrap();
            setup.done(&format!("backend remove {third}")).unwrap();
            rounds += 1;
        }
        let seen = wrk.wait().unwrap();
        assert!(
            seen.errors == 0 && seen.requests > 500 && rounds > 1,
            "{mode} close {close}: {seen:?}, {rounds} rounds"
        );
    }
}

#[test]
fn after_a_verdict_no_new_connection_fails() {
    for mode in MODES {
        let mut setup = Setup::new(2, 1500).unwrap();
        setup.serve_files(8080, &[]).unwrap();
        let list = setup.list(8080);
        setup.attach(&format!("--xdp {mode} --vip 80 --backends {list}")).unwrap();
        setup.wait_usable(2).unwrap();
        setup.kill_server(0).unwrap();
        setup.wait_usable(1).unwrap();
        for _ in 0..30 {
            setup.curl("http://10.66.0.1/name").unwrap();
        }
        let health = setup.json("health").unwrap();
        assert_eq!(health[0]["last_check"]["reason"], "connect: connection refused");
    }
}

#[test]
fn nobody_usable_is_refused_at_once() {
    let mut setup = Setup::new(1, 1500).unwrap();
    let list = setup.list(8080);
    setup.attach(&format!("--xdp generic --vip 80 --backends {list}")).unwrap();
    let refused = || setup.curl("http://10.66.0.1/").is_err_and(|error| error.to_string().contains("(7)"));
    assert!(eventually(refused), "curl's exit code 7: connection refused");
}

/// As many changes as a script makes in one go, with connections all the time.
#[test]
fn a_hundred_backends_come_and_go_under_a_storm() {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_echo(7).unwrap();
    let list = setup.list(7);
    setup.attach(&format!("--backends {list} --health none")).unwrap();
    setup.wait_usable(2).unwrap();
    let storm = Storm::begin(&setup.client, vip(7), u32::MAX, 4);
    // Weight 0: they are there, but nobody would answer.
    let many: Vec<_> = (100..200).map(|n| format!("10.66.0.{n}:7")).collect();
    let with_weight: Vec<_> = many.iter().map(|backend| format!("{backend}=0")).collect();
    setup.done(&format!("backend add {}", with_weight.join(" "))).unwrap();
    assert_eq!(setup.json("backend list").unwrap().as_array().unwrap().len(), 102);
    setup.done(&format!("backend remove {}", many.join(" "))).unwrap();
    for backend in &many[..5] {
        setup.done(&format!("backend add {backend}=0")).unwrap();
        setup.done(&format!("backend drain {backend}")).unwrap();
        setup.done(&format!("backend remove {backend}")).unwrap();
    }
    setup.wait_usable(2).unwrap();
    let done = storm.end().unwrap();
    assert!(done.failures.is_empty() && done.fine > 100, "{done:?}");
}
