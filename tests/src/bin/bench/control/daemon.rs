//! The daemon: what it costs when nothing happens, how it loads ten thousand services, and ten thousand health checks.

use std::{
    fmt::Write as _,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::e2e::{Setup, checked::wait_open, eventually, servers::Server, vip};

use super::{cpu_time, line, milliseconds, resident, share, weight};
use crate::report::Report;

/// How long CPU time is taken.
const TIME: Duration = Duration::from_secs(20);
/// Ports of the servers that are checked.
const PORTS: std::ops::Range<u32> = 20_000..30_000;

/// Runs it all.
pub fn run(report: &mut Report) -> Result<()> {
    idle(report)?;
    moved(report)?;
    services(report)?;
    for (what, probe, servers) in [
        ("TCP connect", "tcp", 10_000),
        ("HTTP", "http", 10_000),
        ("TCP connect, ten services for each server", "tcp", 1_000),
    ] {
        checks(report, what, probe, servers)?;
    }
    Ok(())
}

/// Percentage of a CPU that the daemon uses for a while.
fn used(setup: &mut Setup) -> Result<f64> {
    super::flows::used(setup.daemon()?.id(), TIME)
}

fn idle(report: &mut Report) -> Result<()> {
    let mut setup = Setup::new(3, 1500)?;
    setup.serve_files(8080, &[])?;
    setup.attach(&format!("--vip 80 --backends {}", setup.list(8080)))?;
    setup.wait_usable(3)?;
    share(report, "an idle daemon with three checked backends", used(&mut setup)?, "");
    Ok(())
}

/// From the end of a server to the last connection that met it: three failed checks, a verdict, new tables.
fn moved(report: &mut Report) -> Result<()> {
    let (mut all, mut after_verdict) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let mut setup = Setup::new(3, 1500)?;
        setup.serve_files(8080, &[])?;
        setup.attach(&format!("-v --vip 80 --backends {}", setup.list(8080)))?;
        setup.wait_usable(3)?;
        let over = Arc::new(AtomicBool::new(false));
        let its = Arc::clone(&over);
        let client = setup.client.spawn(move || {
            let (mut failed, mut fine) = (None, 0u32);
            while !its.load(Ordering::Relaxed) {
                let begun = (Instant::now(), SystemTime::now());
                match TcpStream::connect_timeout(&vip(80), Duration::from_secs(1)) {
                    Ok(_) => fine += 1,
                    Err(_) => failed = Some(begun),
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            (failed, fine)
        });
        // Somewhere between two checks.
        std::thread::sleep(Duration::from_millis(700 * (round + 1)));
        let begun = Instant::now();
        setup.kill_server(0)?;
        setup.wait_usable(2)?;
        std::thread::sleep(Duration::from_millis(500));
        over.store(true, Ordering::Relaxed);
        let (failed, fine) = client.join().map_err(|_| anyhow::anyhow!("the client failed"))??;
        let (last, at) = failed.context("no connection met the dead server")?;
        ensure!(fine > 100, "only {fine} connections");
        all.push((last - begun).as_secs_f64() * 1000.0);
        after_verdict.push((since_midnight(at) - verdict(&setup.log())?).max(0.0) * 1000.0);
    }
    line(report, "from a server's end to the last connection that began towards it", &all, "2 s interval, fall 3");
    line(report, "    of that: after the third failed check", &after_verdict, "");
    Ok(())
}

/// When the log says that a verdict fell last, in seconds of the day.
fn verdict(log: &str) -> Result<f64> {
    let last =
        log.lines().rev().find(|line| line.contains("verdict") && line.contains("down")).context("no verdict")?;
    let clock = last.split('T').nth(1).and_then(|rest| rest.split('Z').next()).context("a time")?;
    let mut parts = clock.split(':').map(str::parse::<f64>);
    let mut next = || parts.next().context("a time")?.context("a time");
    Ok(next()? * 3600.0 + next()? * 60.0 + next()?)
}

fn since_midnight(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64() % 86_400.0
}

/// Ten thousand services of ten backends each, from a file.
fn services(report: &mut Report) -> Result<()> {
    let mut setup = Setup::new(10, 1500)?;
    let mut text = String::new();
    for n in 0..10_000 {
        let backends: Vec<_> =
            setup.backends.iter().map(|host| format!("\"{}:{}\"", host.address, 20_000 + n)).collect();
        let vip = SocketAddr::from((setup.balancer.address, 10_000 + n as u16));
        write!(
            text,
            "[[service]]\nname = \"s{n}\"\nvip = \"{vip}\"\nbackends = [{}]\nhealth = {{ type = \"none\" }}\n",
            backends.join(", ")
        )?;
    }
    let file = written(&setup, &text)?;
    let begun = Instant::now();
    setup.attach(&format!("--config {}", file.display()))?;
    line(report, "lb attach --config: 10 000 services of 10 backends, until ready", &[milliseconds(begun)], "< 5 s");
    let daemon = setup.daemon()?.id().to_string();
    weight(report, "memory of this daemon", resident(&daemon)?);
    let mut change = |what: &str, arguments: &str| -> Result<()> {
        let begun = Instant::now();
        setup.done(arguments)?;
        line(report, &format!("lb {what}, among 10 000 services"), &[milliseconds(begun)], "");
        Ok(())
    };
    change("status -o json", "status -o json")?;
    change("backend weight", "backend weight -s s77 10.66.0.11:20077 2")?;
    change("service add", "service add 10.66.0.1:9000 --backends 10.66.0.11:9000 --health none")?;
    share(report, "this daemon when it is idle", used(&mut setup)?, "");
    Ok(())
}

fn written(setup: &Setup, text: &str) -> Result<PathBuf> {
    let file = setup.directory().join("lb.toml");
    std::fs::write(&file, text)?;
    Ok(file)
}

/// Ten thousand backends of a hundred services, checked at the default interval at so many real servers.
fn checks(report: &mut Report, what: &str, probe: &str, servers: u32) -> Result<()> {
    let mut setup = Setup::new(1, 1500)?;
    let host = setup.backends[0].clone();
    let _server = many_ports(&setup, &setup.directory().join("nginx"))?;
    let mut text = String::new();
    for service in 0..100 {
        let port = |n: u32| PORTS.start + (service * 100 + n) % servers;
        let backends: Vec<_> = (0..100).map(|n| format!("\"{}:{}\"", host.address, port(n))).collect();
        let vip = SocketAddr::from((setup.balancer.address, 1000 + service as u16));
        write!(
            text,
            "[[service]]\nvip = \"{vip}\"\nbackends = [{}]\nhealth = {{ type = \"{probe}\" }}\n",
            backends.join(", ")
        )?;
    }
    let file = written(&setup, &text)?;
    setup.attach(&format!("--config {}", file.display()))?;
    let up = || {
        let status = setup.json("status").unwrap_or_default();
        let usable = status["services"].as_array().into_iter().flatten().filter_map(|s| s["usable"].as_u64());
        usable.sum::<u64>()
    };
    ensure!(eventually(|| up() == 10_000), "only {} are up", up());
    // Starts were spread over one interval; now they are spread as they will be.
    std::thread::sleep(Duration::from_secs(5));
    let done = |setup: &Setup| -> Result<(f64, f64)> {
        let text = setup.metrics()?;
        let sum = |result: &str| -> f64 {
            let lines =
                text.lines().filter(|line| line.starts_with("lb_backend_checks_total") && line.contains(result));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Ok((sum("\"ok\""), sum("\"failed\"")))
    };
    let daemon = setup.daemon()?.id();
    let before = done(&setup)?;
    let (begun, time) = (Instant::now(), cpu_time(daemon)?);
    std::thread::sleep(TIME);
    let (now, took) = (cpu_time(daemon)?, begun.elapsed().as_secs_f64());
    let after = done(&setup)?;
    let (user, kernel) = (100.0 * (now.0 - time.0) / took, 100.0 * (now.1 - time.1) / took);
    let each_second = (after.0 - before.0) / took;
    ensure!(after.1 == before.1, "{} checks failed", after.1 - before.1);
    share(report, &format!("10 000 backends, checked by {what}"), user + kernel, "< 20 %");
    share(report, "    of that: in user space", user, "");
    println!("    {each_second:.0} results for backends a second");
    Ok(())
}

/// nginx on ten thousand ports of the first backend.
fn many_ports(setup: &Setup, directory: &Path) -> Result<Server> {
    std::fs::create_dir_all(directory)?;
    let place = directory.display();
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|of| format!("{of}_temp_path {place}/{of};"));
    let text = format!(
        "daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;\n\
         events {{ worker_connections 40000; }}\nhttp {{ access_log off; {}\n\
         server {{ listen {}-{}; return 200; }} }}\n",
        paths.join(" "),
        PORTS.start,
        PORTS.end - 1
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, text)?;
    let host = &setup.backends[0];
    let mut command = host.command("sh");
    command.args(["-c", "ulimit -n 60000 && exec nginx -e \"$1\" -c \"$2\"", "sh"]);
    command.arg(directory.join("start.log")).arg(&file);
    let server = Server::start(&mut command, &directory.join("nginx.log"))?;
    wait_open(host, (PORTS.end - 1) as u16)?;
    Ok(server)
}
