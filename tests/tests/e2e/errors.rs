//! Wrong requests: an error that names the thing, the place and the fix.

use lb_tests::e2e::Setup;

/// What is typed, the exit code, and words that the error must have.
#[test]
fn wrong_requests_get_errors_one_can_act_on() {
    let mut setup = Setup::new(1, 1500).unwrap();
    let list = setup.list(8080);
    let before = [
        ("status", 1, "no daemon answers"),
        ("detach", 1, "nothing is attached"),
        ("attach eth9 --backends 10.66.0.11:80", 1, "interface eth9"),
        ("attach lo --backends 10.66.0.11:80", 5, "loopback device"),
        ("attach eth0 --backends 10.66.0.11:80,10.66.0.11:81", 2, "different ports"),
        ("attach eth0 --backends 10.66.0.1:80", 5, "is a VIP"),
        ("attach eth0 --vip 10.66.0.9:80 --backends 10.66.0.1:80", 5, "this host's own"),
        ("attach eth0 --vip 10.66.0.9:80 --backends 127.0.0.1:80", 5, "loopback"),
        ("attach eth0 --backends 10.77.0.1:80", 5, "no route"),
        ("attach eth0 --mode dsr --backends 10.66.0.11:80", 2, "mode 'dsr'"),
        ("attach eth0 --max-flows 5 --backends 10.66.0.11:80", 2, "--max-flows 5"),
    ];
    let check = |setup: &Setup, cases: &[(&str, i32, &str)]| {
        for (line, code, words) in cases {
            let output = setup.lb(line).unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(*code), "{line}: {error}");
            assert!(error.contains(words) && error.starts_with("lb: "), "{line}: {error}");
            assert!(error.contains("\nhint: ") && !error.contains("backtrace"), "{line}: {error}");
        }
    };
    check(&setup, &before);
    assert!(!setup.bpffs().exists(), "a refused attach leaves nothing");
    setup.attach(&format!("--vip 80 --backends {list}")).unwrap();
    check(
        &setup,
        &[
            ("attach eth0 --backends 10.66.0.11:80", 5, "a daemon answers"),
            ("backend add 10.66.0.11:8080", 5, "has it already"),
            ("backend drain 10.66.0.77:1", 1, "not in service"),
            ("service show nope", 1, "service nope"),
            ("service add 10.66.0.1:80", 5, "there is one of this name"),
            ("service set 10.66.0.1:80 --mode dsr", 5, "mode cannot change"),
            ("conn flush", 2, "every connection"),
            ("detach eth7", 1, "eth7: not attached"),
        ],
    );
}
