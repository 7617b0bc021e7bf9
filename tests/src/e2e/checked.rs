//! For tests of health checks and of what becomes of flows: servers of which one can tell who answered, and the API.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::{
    api::Request,
    lab::Host,
    state::{Admin, BackendSpec, Change, Protocol, ServiceSpec, Source, Vip},
};
use serde_json::Value;

use super::{BALANCER, PATIENCE, Setup, eventually, servers, servers::Server};

impl Setup {
    /// A service of all backends on a port of the balancer's address, checked twice a second; not added yet.
    #[must_use]
    pub fn service(&self, name: &str, vip: (u16, Protocol), port: u16) -> ServiceSpec {
        let (vip_port, protocol) = vip;
        let mut service = ServiceSpec::new(Vip { address: BALANCER.into(), port: vip_port, protocol }, Source::Cli);
        service.name = name.into();
        service.health.interval = Duration::from_millis(500);
        let backend = |host: &Host| BackendSpec {
            address: SocketAddr::from((host.address, port)),
            weight: 1,
            admin: Admin::Ready,
            source: Source::Cli,
        };
        service.backends = self.backends.iter().map(backend).collect();
        service
    }

    /// Adds a service, with everything that the command line has no words for.
    pub fn add_service(&self, service: ServiceSpec) -> Result<()> {
        let change = Change::AddService { service: Box::new(service) };
        self.api(&Request::Change { change, force: false, dry_run: false }).map(drop)
    }

    /// Asks the daemon's API.
    pub fn api(&self, request: &Request) -> Result<Value> {
        let body = serde_json::to_string(request)?;
        let answer = self.http("/v1", &["-H", "Content-Type: application/json", "-d", &body])?;
        let answer: Value = serde_json::from_slice(&answer)?;
        ensure!(answer.get("error").is_none(), "{request:?}: {answer}");
        Ok(answer)
    }

    /// The daemon's metrics.
    pub fn metrics(&self) -> Result<String> {
        Ok(String::from_utf8(self.http("/metrics", &[])?)?)
    }

    fn http(&self, path: &str, arguments: &[&str]) -> Result<Vec<u8>> {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "20", "--unix-socket"]).arg(self.directory().join("lb.sock"));
        let output = command.args(arguments).arg(format!("http://lb{path}")).output()?;
        ensure!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }
}

/// Waits until a TCP port of a host is open.
pub fn wait_open(host: &Host, port: u16) -> Result<()> {
    let place = SocketAddrV4::new(host.address, port);
    let open = host.spawn(move || eventually(|| TcpStream::connect(place).is_ok()));
    ensure!(open.join().map_err(|_| anyhow::anyhow!("looking for it failed"))??, "{place} does not open");
    Ok(())
}

/// Python's own web server: something for a health check to find, and to miss when it is killed.
pub fn gate(host: &Host, port: u16, directory: &Path) -> Result<Server> {
    let place = directory.join(format!("gate-{}-{port}", host.address));
    std::fs::create_dir_all(&place)?;
    let server = servers::python(host, &place, port)?;
    wait_open(host, port)?;
    Ok(server)
}

/// nginx with these `server` blocks, in a directory of its own.
pub fn nginx(host: &Host, port: u16, directory: &Path, blocks: &str) -> Result<Server> {
    std::fs::create_dir_all(directory)?;
    let place = directory.display();
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|of| format!("{of}_temp_path {place}/{of};"));
    let config = format!(
        "daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;\n\
         events {{}}\nhttp {{ access_log off; {}\n{blocks}\n}}\n",
        paths.join(" ")
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, config)?;
    let mut command = host.command("nginx");
    command.arg("-e").arg(directory.join("start.log")).arg("-c").arg(&file);
    let server = Server::start(&mut command, &directory.join("nginx.log"))?;
    let said =
        || ["start.log", "error.log"].map(|log| std::fs::read_to_string(directory.join(log)).unwrap_or_default());
    wait_open(host, port).with_context(|| format!("nginx: {:?}", said()))?;
    Ok(server)
}

/// Over TCP: echoes; after "tick" it also sends a dot every 50 ms. Until the process ends.
pub fn ticker(host: &Host, port: u16) -> Result<()> {
    let place = SocketAddrV4::new(host.address, port);
    let (tell, told) = std::sync::mpsc::channel();
    host.spawn(move || {
        let Ok(listener) = TcpListener::bind(place) else { return };
        let _ = tell.send(());
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || tick(stream));
        }
    });
    told.recv_timeout(PATIENCE).context("the ticker does not start")
}

fn tick(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(length) = stream.read(&mut bytes) {
        if length == 0 || stream.write_all(&bytes[..length]).is_err() {
            return;
        }
        if &bytes[..length] == b"tick"
            && let Ok(mut other) = stream.try_clone()
        {
            std::thread::spawn(move || {
                while other.write_all(b".").is_ok() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        }
    }
}

/// Over UDP: answers with its own address. Until the process ends.
pub fn whoami(host: &Host, port: u16) -> Result<()> {
    let place = SocketAddrV4::new(host.address, port);
    let (tell, told) = std::sync::mpsc::channel();
    host.spawn(move || {
        let Ok(socket) = UdpSocket::bind(place) else { return };
        let _ = tell.send(());
        while let Ok((_, from)) = socket.recv_from(&mut [0; 2048]) {
            let _ = socket.send_to(place.ip().to_string().as_bytes(), from);
        }
    });
    told.recv_timeout(PATIENCE).context("the server does not start")
}
