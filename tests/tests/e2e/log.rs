//! `--bpf-log`: the data path's own log, in words.

use lb_tests::e2e::{Setup, eventually};

#[test]
fn the_data_path_says_what_it_does_with_each_packet() {
    let mut setup = Setup::new(1, 1500).unwrap();
    setup.serve_files(8080, &[]).unwrap();
    let list = setup.list(8080);
    setup.attach(&format!("--xdp generic --bpf-log debug --vip 80 --backends {list}")).unwrap();
    setup.wait_usable(1).unwrap();
    setup.curl("http://10.66.0.1/name").unwrap();
    setup.done("service add 10.66.0.1:81").unwrap();
    assert!(setup.curl("http://10.66.0.1:81/").is_err(), "nobody serves it");
    let line = |words: &[&str]| setup.log().lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(eventually(|| line(&["DEBUG forwarded-tx", " tcp 10.66.0.1:", &format!("> {list}")])), "{}", setup.log());
    assert!(eventually(|| line(&["INFO reject-tcp", " tcp 10.66.0.1:81 > 10.66.0."])), "{}", setup.log());
    assert!(!setup.log().contains("not-ours"), "that is for level 5: {}", setup.log());
}
