//! What tests may leave on the machine: network namespaces, pins, mounts, processes.

use std::{path::Path, process::Command};

use crate::shell::{output, privileged};

/// Network namespaces, pins and mounts of the project's labs whose process is gone.
pub fn find() -> Vec<String> {
    namespaces().into_iter().chain(pins()).chain(mounts()).collect()
}

/// Removes them.
pub fn remove() {
    for namespace in namespaces() {
        let _ = privileged("ip").args(["netns", "del", &namespace]).status();
    }
    for pins in pins() {
        let _ = privileged("rm").args(["-rf", &format!("/sys/fs/bpf/{pins}")]).status();
    }
}

fn namespaces() -> Vec<String> {
    let list = output(Command::new("ip").args(["netns", "list"])).unwrap_or_default();
    list.lines().filter_map(|line| line.split(' ').next()).filter(|name| is_orphan(name)).map(str::to_owned).collect()
}

fn pins() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/fs/bpf").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| is_orphan(name)).collect()
}

fn mounts() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = table.lines().filter_map(|line| line.split(' ').nth(1));
    let lost = places.filter(|place| !place.starts_with("/run/netns/") && place.split('/').any(is_orphan));
    lost.map(|place| format!("mount on {place}")).collect()
}

/// Processes of a group, as `NUMBER (NAME)`.
pub fn processes(group: u32) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter(|stat| group_of(stat) == Some(group))
        .filter_map(|stat| Some(stat.split_once(')')?.0.to_owned() + ")"))
        .collect()
}

/// The group in `PID (NAME) STATE PARENT GROUP ..`; none for a process that has ended and is only not yet reaped.
fn group_of(stat: &str) -> Option<u32> {
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    let state = rest.next()?;
    let group = rest.nth(1)?.parse().ok()?;
    (state != "Z").then_some(group)
}

fn is_orphan(name: &str) -> bool {
    maker(name).is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

/// The number of the process that made a thing of this name: `lb-WHAT-PID-...`.
fn maker(name: &str) -> Option<&str> {
    let pid = name.strip_prefix("lb-")?.split('-').nth(1)?;
    (!pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit())).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_who_made_them() {
        assert_eq!(maker("lb-lab-123-0-client"), Some("123"));
        assert_eq!(maker("lb-e2e-77-1"), Some("77"));
        assert_eq!(maker("lb-something-else"), None);
        assert_eq!(maker("lb-lab-"), None);
        assert_eq!(maker("cilium"), None);
    }

    #[test]
    fn a_process_tells_its_group() {
        assert_eq!(group_of("12 (a (b) c) S 1 77 77 0 -1"), Some(77));
        assert_eq!(group_of("12 (nginx) Z 1 77 77 0 -1"), None);
        assert_eq!(group_of("?"), None);
    }
}
