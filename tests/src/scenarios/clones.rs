//! Clones of one app behind one VIP (x axis): a cluster app on each host; one instance, eight, two; none.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{PORT, URL, lab, say, under_load, voices};
use crate::e2e::{Setup, eventually};

pub(super) fn cluster() -> Result<()> {
    let (mut setup, apps) = lab(2, "cluster/app.js")?;
    let list = setup.list(PORT);
    setup.attach(&format!("--vip 80 --health http --backends {list}"))?;
    setup.wait_usable(2)?;
    let before = voices(&setup, URL, 60)?;
    say(&format!("{} workers of two apps answer", before.len()));
    ensure!(before.len() == 6, "round robin over workers: {before:?}");
    let replaced = |old: &std::collections::BTreeSet<String>| {
        eventually(|| voices(&setup, URL, 30).is_ok_and(|now| now.is_disjoint(old)))
    };
    under_load(&setup, URL, || {
        for _ in 0..3 {
            let crashed = String::from_utf8(setup.curl(&format!("{URL}crash"))?)?.trim().to_owned();
            let gone = eventually(|| !std::path::Path::new("/proc").join(&crashed).exists());
            ensure!(gone, "worker {crashed} goes on");
            say(&format!("worker {crashed} crashed"));
        }
        let six = || voices(&setup, URL, 60).is_ok_and(|now| now.len() == 6);
        ensure!(eventually(six), "crashed workers are not forked anew");
        say("and others were forked in their place");
        let old = voices(&setup, URL, 60)?;
        for app in &apps {
            app.signal(Signal::SIGUSR2)?;
        }
        ensure!(replaced(&old), "old workers still answer");
        say("SIGUSR2: every worker was replaced");
        Ok(())
    })
}

pub(super) fn scale() -> Result<()> {
    let (mut setup, mut apps) = lab(8, "app.js")?;
    let path = setup.directory().join("instances");
    let places: Vec<_> = setup.backends.iter().map(|host| format!("{}:{PORT}\n", host.address)).collect();
    let write = |count: usize| -> Result<()> {
        let new = path.with_extension("new");
        fs::write(&new, places[..count].concat())?;
        Ok(fs::rename(&new, &path)?)
    };
    write(1)?;
    setup.attach(&format!("--vip 80 --health http --backends file:{}", path.display()))?;
    setup.wait_usable(1)?;
    under_load(&setup, URL, || {
        say("one instance");
        for count in 2..=8 {
            write(count)?;
        }
        setup.wait_usable(8)?;
        ensure!(eventually(|| voices(&setup, URL, 60).is_ok_and(|voices| voices.len() == 8)), "some get nothing");
        say("eight instances share the load");
        for count in [6, 4, 2] {
            write(count)?;
            setup.wait_usable(count as u64)?;
            // No more than half within a second: more would be held as a registry that lost its mind. And known
            // connections end by themselves; then the instance may.
            std::thread::sleep(Duration::from_millis(1200));
            apps.truncate(count);
        }
        ensure!(voices(&setup, URL, 30)?.len() == 2);
        say("two are left");
        Ok(())
    })
}

pub(super) fn nobody() -> Result<()> {
    let (mut setup, _apps) = lab(1, "app.js")?;
    let path = setup.directory().join("instances");
    fs::write(&path, "")?;
    setup.attach(&format!("--vip 80 --health http --backends file:{}", path.display()))?;
    let heard = || setup.json("source list").is_ok_and(|sources| sources[0]["state"] == "ok");
    ensure!(eventually(heard), "the file is not read");
    let begun = Instant::now();
    let error = refused(&setup)?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(2), "{error} after {took:?}");
    say(error.trim());
    say(&format!("refused at once, curl's own start included in {took:.0?}: clients see it, and do not wait"));
    fs::write(&path, format!("{}:{PORT}\n", setup.backends[0].address))?;
    ensure!(eventually(|| setup.curl(URL).is_ok()), "the first instance gets nothing");
    say("the first instance has come, and answers");
    Ok(())
}

/// curl's words of a connection that was refused.
fn refused(setup: &Setup) -> Result<String> {
    let error = setup.curl(URL).err().context("nobody can answer")?.to_string();
    ensure!(error.contains("(7)"), "not refused: {error}");
    Ok(error)
}
