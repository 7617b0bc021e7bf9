//! nginx behind lb, and lb instead of an nginx upstream list.

use std::{fs, path::Path};

use anyhow::{Result, ensure};

use super::{PORT, URL, example, say, under_load, voices};
use crate::{
    e2e::{
        Setup, eventually,
        servers::{Server, nginx},
    },
    registry::SILENCE,
};

/// Starts an nginx of `examples/` on a host, as a proxy for the VIP.
fn proxy(setup: &Setup, n: usize) -> Result<Server> {
    let place = setup.directory().display().to_string();
    let text = fs::read_to_string(example("nginx/proxy.conf"))?.replace("PLACE", &place);
    let path = setup.directory().join("proxy.conf");
    fs::write(&path, text)?;
    let mut command = setup.backends[n].command("nginx");
    // One process: a worker would outlive its killed master.
    command.args(["-g", "master_process off;", "-e", SILENCE]).arg("-c").arg(&path);
    Server::start(&mut command, Path::new(SILENCE))
}

pub(super) fn both_ways() -> Result<()> {
    let mut setup = Setup::new(3, 1500)?;
    let mut servers = Vec::new();
    for host in &setup.backends[..2] {
        let directory = setup.directory().join(host.address.to_string());
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("index.html"), host.address.to_string())?;
        servers.push(nginx(host, &directory, PORT)?);
    }
    let [first, second] = [0, 1].map(|n: usize| format!("{}:{PORT}", setup.backends[n].address));
    setup.attach(&format!("--vip 80 --health http --backends {first},{second}"))?;
    setup.wait_usable(2)?;
    ensure!(voices(&setup, URL, 40)?.len() == 2);
    say("nginx behind lb: two servers that never heard of it");
    let _proxy = proxy(&setup, 2)?;
    let url = format!("http://{}:8000/", setup.backends[2].address);
    ensure!(eventually(|| setup.curl(&url).is_ok()), "the proxy does not answer");
    say("lb instead of an upstream list: an nginx proxy asks the VIP, backends change without a reload");
    under_load(&setup, &url, || {
        for backend in [&first, &second] {
            setup.done(&format!("backend drain {backend} --wait=20s"))?;
            ensure!(voices(&setup, &url, 20)?.len() == 1, "all requests go to the other one");
            setup.done(&format!("backend ready {backend} --wait=20s"))?;
            ensure!(eventually(|| voices(&setup, &url, 20).is_ok_and(|voices| voices.len() == 2)));
            say(&format!("{backend}: drained, and ready again"));
        }
        Ok(())
    })
}
