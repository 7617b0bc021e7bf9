//! Apps with a memory of their own: clients partitioned by address (z axis), and sessions that stay with an instance.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use super::{PORT, URL, lab, say};
use crate::e2e::Setup;

/// Who answered a client, and how often that instance has seen it.
type Answer = (String, u32);

/// A request of a client, from an address of its own if it has one.
fn visit(setup: &Setup, who: &str, from: Option<&str>) -> Result<Answer> {
    let mut command = setup.client.command("curl");
    command.args(["-sS", "--fail", "--max-time", "20"]).arg(format!("{URL}?who={who}"));
    if let Some(from) = from {
        command.args(["--interface", from]);
    }
    let output = command.output()?;
    ensure!(output.status.success(), "{who}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let (name, visits) = text.trim().split_once(' ').with_context(|| format!("an answer '{text}'"))?;
    Ok((name.to_owned(), visits.parse()?))
}

/// So many clients, each with an address of its own.
const CLIENTS: u8 = 120;

pub(super) fn partition() -> Result<()> {
    let (mut setup, _apps) = lab(4, "remember/app.js")?;
    let clients: Vec<_> = (0..CLIENTS).map(|n| format!("10.66.0.{}", 100 + n)).collect();
    for client in &clients {
        Setup::ip(&setup.client, &format!("addr add {client}/24 dev eth0"))?;
    }
    let places: Vec<_> = setup.backends.iter().map(|host| format!("{}:{PORT}", host.address)).collect();
    let all = |setup: &Setup| -> Result<BTreeMap<String, Answer>> {
        clients.iter().map(|client| Ok((client.clone(), visit(setup, client, Some(client))?))).collect()
    };
    setup.attach(&format!("--vip 80 --health http --scheduler source-hash --backends {}", places[..3].join(",")))?;
    setup.wait_usable(3)?;
    let before = all(&setup)?;
    let again = all(&setup)?;
    let same = |a: &BTreeMap<String, Answer>, b: &BTreeMap<String, Answer>| {
        a.iter().filter(|(client, (name, _))| b[*client].0 == *name).count()
    };
    ensure!(same(&before, &again) == clients.len() && again.values().all(|(_, visits)| *visits == 2));
    let sizes = again.values().fold(BTreeMap::<_, u32>::new(), |mut sizes, (name, _)| {
        *sizes.entry(name.as_str()).or_default() += 1;
        sizes
    });
    say(&format!("{CLIENTS} clients, each always with the same of three partitions: {sizes:?}"));
    ensure!(sizes.len() == 3 && sizes.values().all(|size| *size >= 20), "{sizes:?}");

    setup.done(&format!("backend add {} --wait=20s", places[3]))?;
    let after = all(&setup)?;
    let new = setup.backends[3].address.to_string();
    let to_new = after.values().filter(|(name, _)| *name == new).count();
    let among_old = clients.len() - same(&again, &after) - to_new;
    say(&format!("a fourth: {to_new} clients moved to it, {among_old} from an old one to another, the others stayed"));
    ensure!((15..=50).contains(&to_new) && among_old <= clients.len() / 20);

    setup.done(&format!("backend remove {}", places[3]))?;
    let back = all(&setup)?;
    ensure!(same(&before, &back) == clients.len(), "another mapping than before");
    say("without it everybody is back where they were: the same partitions are the same mapping, on every balancer");
    Ok(())
}

pub(super) fn sticky() -> Result<()> {
    let (mut setup, _apps) = lab(3, "remember/app.js")?;
    let list = setup.list(PORT);
    setup.attach(&format!("--vip 80 --name web --health http --scheduler round-robin --backends {list}"))?;
    setup.wait_usable(3)?;
    let visits = |setup: &Setup, who: &str, count: u32| -> Result<Vec<Answer>> {
        (0..count).map(|_| visit(setup, who, None)).collect()
    };
    let lost = visits(&setup, "anne", 6)?;
    ensure!(lost.iter().all(|(_, visits)| *visits < 6), "{lost:?}");
    say("round robin: after six requests of a client no instance has seen them all");

    setup.done("service set web --affinity 10m")?;
    let home = visit(&setup, "bert", None)?.0;
    let kept = visits(&setup, "bert", 9)?;
    ensure!(kept.iter().zip(2..).all(|((name, visits), nth)| *name == home && *visits == nth), "{kept:?}");
    say(&format!("with affinity ten requests are ten visits at {home}"));

    let other = setup.backends.iter().find(|host| host.address.to_string() != home).context("another")?.address;
    setup.done(&format!("backend weight {other}:{PORT} 100 --wait=10s"))?;
    ensure!(visit(&setup, "bert", None)? == (home.clone(), 11), "a weight moves nobody");
    setup.kill_daemon()?;
    ensure!(visit(&setup, "bert", None)? == (home.clone(), 12), "without a daemon");
    setup.attach("")?;
    ensure!(visit(&setup, "bert", None)? == (home.clone(), 13), "a new daemon");
    say("weights, and a daemon that is killed and comes back, move nobody");

    setup.done(&format!("backend drain {home}:{PORT}"))?;
    let moved = visit(&setup, "bert", None)?;
    ensure!(moved.0 != home && moved.1 == 1, "{moved:?}");
    setup.done(&format!("backend ready {home}:{PORT} --wait=10s"))?;
    let stays = visits(&setup, "bert", 3)?;
    ensure!(stays.iter().all(|(name, _)| *name == moved.0), "{stays:?}");
    say("a drain moves its sessions, once: they stay where they went");
    Ok(())
}
