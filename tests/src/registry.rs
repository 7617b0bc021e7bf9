//! Real registries for tests: Consul, etcd and dnsmasq as processes on a host of a lab; and a stand-in made from
//! recorded answers for where a real Consul cannot be had.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_userspace::lab::Host;
use serde_json::{Value, json};

use crate::e2e::{eventually, servers::Server};

/// Where the registries' own words go.
pub const SILENCE: &str = "/dev/null";

/// Where `cargo xtask setup` puts programs and packages.
pub fn tools() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let found = program.ancestors().map(|directory| directory.join("tools")).find(|path| path.is_dir());
    found.context("target/tools is missing: cargo xtask setup")
}

/// What a test does to a Consul, real or not.
pub trait ConsulLike {
    /// `PUT /v1/agent/service/register` with this body.
    fn register(&self, service: Value) -> Result<()>;
    /// Deregisters an instance by its id.
    fn deregister(&self, id: &str) -> Result<()>;
    /// Maintenance of an instance, on or off.
    fn maintenance(&self, id: &str, on: bool) -> Result<()>;
    /// Registers and deregisters many at once.
    fn many(&self, register: &[Value], deregister: &[String]) -> Result<()>;
    /// Killed, and started again with nothing.
    fn wipe(&mut self) -> Result<()>;
    /// Killed.
    fn kill(&mut self);
}

/// A registration of a web server.
#[must_use]
pub fn instance(id: &str, address: &str, tags: &[&str]) -> Value {
    let (address, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    json!({ "ID": id, "Name": "web", "Address": address, "Port": port.parse().unwrap_or(0_u16), "Tags": tags })
}

/// A Consul agent on a host's loopback address.
pub struct Consul {
    host: Host,
    arguments: Vec<String>,
    address: String,
    token: Option<String>,
    process: Option<Server>,
}

impl Consul {
    /// Where the binary is: put there by `cargo xtask setup`, or installed. Says so loudly when there is none.
    #[must_use]
    pub fn binary() -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let installed = std::env::split_paths(&path).map(|directory| directory.join("consul"));
        let found = tools()
            .ok()
            .map(|tools| tools.join("consul/usr/bin/consul"))
            .into_iter()
            .chain(installed)
            .find(|p| p.is_file());
        if found.is_none() {
            eprintln!("\n*** NO REAL CONSUL: a stand-in made from recorded answers is tested instead ***\n");
        }
        found
    }

    /// `agent -dev` with more arguments, on 127.0.0.1 of a host.
    pub fn dev(host: &Host, arguments: &[&str]) -> Result<Self> {
        Self::on(host, "127.0.0.1", None, &[&["-dev", "-bind", "127.0.0.1"], arguments].concat())
    }

    /// `agent` on an address of a host, asked with a token; waits until it has a leader.
    pub fn on(host: &Host, address: &str, token: Option<&str>, arguments: &[&str]) -> Result<Self> {
        let mut consul = Self::unled(host, address, token, arguments)?;
        consul.wait()?;
        Ok(consul)
    }

    /// The same without waiting.
    pub fn unled(host: &Host, address: &str, token: Option<&str>, arguments: &[&str]) -> Result<Self> {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let (address, token) = (address.to_owned(), token.map(str::to_owned));
        let mut consul = Self { host: host.clone(), arguments, address, token, process: None };
        consul.start()?;
        Ok(consul)
    }

    /// Starts it; again, if it was killed.
    pub fn start(&mut self) -> Result<()> {
        let binary = Self::binary().context("no consul")?;
        let mut command = self.host.command(binary);
        command.args(["agent", "-client", &self.address, "-hcl", "disable_update_check = true"]).args(&self.arguments);
        self.process = Some(Server::start(&mut command, Path::new(SILENCE))?);
        Ok(())
    }

    /// Waits until there is a leader.
    pub fn wait(&mut self) -> Result<()> {
        let led = || self.curl("GET", "/v1/status/leader", None).is_ok_and(|leader| leader.contains(':'));
        ensure!(eventually(led), "consul has no leader");
        // The agent itself is registered a moment later.
        let known = || self.curl("GET", "/v1/catalog/services", None).is_ok_and(|services| services.contains("consul"));
        ensure!(eventually(known), "consul does not know itself");
        Ok(())
    }

    /// Asks it by curl; gives the body of a success.
    pub fn curl(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String> {
        let mut command = self.host.command("curl");
        command.args(["-sS", "--fail", "--max-time", "10", "-X", method]);
        if let Some(token) = &self.token {
            command.arg("-H").arg(format!("X-Consul-Token: {token}"));
        }
        if let Some(body) = body {
            command.arg("-d").arg(body.to_string());
        }
        let output = command.arg(format!("http://{}:8500{path}", self.address)).output()?;
        ensure!(output.status.success(), "consul {path}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl ConsulLike for Consul {
    fn register(&self, service: Value) -> Result<()> {
        self.curl("PUT", "/v1/agent/service/register", Some(&service)).map(drop)
    }

    fn deregister(&self, id: &str) -> Result<()> {
        self.curl("PUT", &format!("/v1/agent/service/deregister/{id}"), None).map(drop)
    }

    fn maintenance(&self, id: &str, on: bool) -> Result<()> {
        self.curl("PUT", &format!("/v1/agent/service/maintenance/{id}?enable={on}"), None).map(drop)
    }

    fn many(&self, register: &[Value], deregister: &[String]) -> Result<()> {
        let url = |path: &str| format!("url = \"http://{}:8500/v1/agent/service/{path}\"\n", self.address);
        let quoted = |body: &Value| json!(body.to_string()).to_string();
        let put = "request = PUT\nsilent\nshow-error\nfail\n";
        let come = register.iter().map(|body| format!("{put}{}data = {}\n", url("register"), quoted(body)));
        let go = deregister.iter().map(|id| format!("{put}{}", url(&format!("deregister/{id}"))));
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(come.chain(go).collect::<Vec<_>>().join("next\n").as_bytes())?;
        let mut command = self.host.command("curl");
        let output = command.args(["--parallel", "--parallel-max", "8", "--config"]).arg(file.path()).output()?;
        ensure!(output.status.success(), "consul: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn wipe(&mut self) -> Result<()> {
        self.kill();
        self.start()?;
        self.wait()
    }

    fn kill(&mut self) {
        self.process = None;
    }
}

/// Answers that a real Consul 1.8.7 gave, brought to life: the shapes, headers and errors are recorded ones.
pub struct StandIn {
    host: Host,
    state: Arc<(Mutex<Told>, Condvar)>,
}

/// What the stand-in would say.
#[derive(Default)]
struct Told {
    index: u64,
    services: BTreeMap<String, Value>,
    maintained: Vec<String>,
    dead: bool,
}

impl StandIn {
    /// On 127.0.0.1:8500 of a host.
    pub fn new(host: &Host) -> Result<Self> {
        let state = Arc::new((Mutex::new(Told { index: 20, ..Told::default() }), Condvar::new()));
        let (shared, (tell, told)) = (Arc::clone(&state), std::sync::mpsc::channel());
        host.spawn(move || {
            let Ok(listener) = TcpListener::bind(("127.0.0.1", 8500)) else { return };
            let _ = tell.send(());
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    // A client that goes away is no failure of the stand-in.
                    let _ = serve(stream, &shared);
                });
            }
        });
        told.recv_timeout(Duration::from_secs(10)).context("the stand-in does not start")?;
        Ok(Self { host: host.clone(), state })
    }

    fn change(&self, change: impl FnOnce(&mut Told)) -> Result<()> {
        ensure!(!self.host.shell().is_empty(), "a host");
        let Ok(mut told) = self.state.0.lock() else { bail!("the stand-in failed") };
        change(&mut told);
        told.index += 1;
        self.state.1.notify_all();
        Ok(())
    }
}

impl ConsulLike for StandIn {
    fn register(&self, service: Value) -> Result<()> {
        let id = service["ID"].as_str().context("an id")?.to_owned();
        self.change(|told| drop(told.services.insert(id, service)))
    }

    fn deregister(&self, id: &str) -> Result<()> {
        self.change(|told| drop(told.services.remove(id)))
    }

    fn maintenance(&self, id: &str, on: bool) -> Result<()> {
        self.change(|told| {
            told.maintained.retain(|other| other != id);
            if on {
                told.maintained.push(id.to_owned());
            }
        })
    }

    fn many(&self, register: &[Value], deregister: &[String]) -> Result<()> {
        register.iter().try_for_each(|service| self.register(service.clone()))?;
        deregister.iter().try_for_each(|id| self.deregister(id))
    }

    fn wipe(&mut self) -> Result<()> {
        // Recording 74: the index of the agent that began anew is lower than before.
        self.change(|told| *told = Told { index: 10, ..Told::default() })
    }

    fn kill(&mut self) {
        let _ = self.change(|told| told.dead = true);
    }
}

/// A recorded answer of those beside the tests.
fn recording(name: &str) -> Result<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings").join(name);
    Ok(serde_json::from_slice(&std::fs::read(&path).with_context(|| path.display().to_string())?)?)
}

fn serve(mut stream: TcpStream, state: &(Mutex<Told>, Condvar)) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if header.is_empty() {
                break;
            }
        }
        reader.by_ref().take(length).read_to_end(&mut Vec::new())?;
        let answer = answer(&path, state)?;
        let Some((index, body)) = answer else { return Ok(()) };
        let body = body.to_string();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Consul-Index: {index}\r\nX-Consul-Knownleader: true\r\nX-Consul-Lastcontact: 0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
}

/// Index and body; `None` when the agent is dead.
fn answer(path: &str, state: &(Mutex<Told>, Condvar)) -> Result<Option<(u64, Value)>> {
    let template = recording("14-health-service-passing.json")?["body"][0].clone();
    let (_, query) = path.split_once('?').unwrap_or((path, ""));
    let parameter = |key: &str| {
        query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .filter(|(k, _)| *k == key)
            .map(|(_, v)| v)
            .collect::<Vec<_>>()
    };
    let asked: u64 = parameter("index").first().map_or(Ok(0), |index| index.parse())?;
    let Ok(mut told) = state.0.lock() else { bail!("the stand-in failed") };
    while asked > 0 && told.index == asked && !told.dead {
        let Ok((next, waited)) = state.1.wait_timeout(told, Duration::from_secs(30)) else { bail!("failed") };
        told = next;
        if waited.timed_out() {
            break;
        }
    }
    if told.dead {
        return Ok(None);
    }
    let passing = told.services.iter().filter(|(id, _)| !told.maintained.contains(id));
    let tags = parameter("tag");
    let has =
        |service: &Value| tags.iter().all(|tag| service["Tags"].as_array().is_some_and(|t| t.contains(&json!(tag))));
    let entries = passing.filter(|(_, service)| has(service)).map(|(id, service)| {
        let mut entry = template.clone();
        entry["Service"]["ID"] = json!(id);
        for key in ["Address", "Port", "Tags", "Meta"] {
            entry["Service"][key] = service[key].clone();
        }
        entry["Service"]["Weights"] = json!({ "Passing": 1, "Warning": 1 });
        entry
    });
    Ok(Some((told.index, Value::Array(entries.collect()))))
}

/// An etcd on a host's loopback address.
pub struct Etcd {
    host: Host,
    directory: PathBuf,
    process: Option<Server>,
}

impl Etcd {
    /// With its data in a directory.
    pub fn new(host: &Host, directory: &Path) -> Result<Self> {
        let mut etcd = Self { host: host.clone(), directory: directory.join("etcd"), process: None };
        etcd.start()?;
        Ok(etcd)
    }

    /// Starts it, with the data that it had.
    pub fn start(&mut self) -> Result<()> {
        let mut command = self.host.command("etcd");
        command.arg("--data-dir").arg(&self.directory).env_remove("ETCD_UNSUPPORTED_ARCH");
        self.process = Some(Server::start(&mut command, Path::new(SILENCE))?);
        ensure!(eventually(|| self.post("/v3/kv/range", &json!({ "key": "AA==" })).is_ok()), "etcd does not answer");
        Ok(())
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Asks its JSON gateway.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let mut command = self.host.command("curl");
        command.args(["-sS", "--fail", "--max-time", "10", "-d", &body.to_string()]);
        let output = command.arg(format!("http://127.0.0.1:2379{path}")).output()?;
        ensure!(output.status.success(), "etcd {path}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Puts a key, under a lease if there is one.
    pub fn put(&self, key: &str, value: &str, lease: Option<&str>) -> Result<()> {
        let mut body = json!({ "key": base64(key), "value": base64(value) });
        if let Some(lease) = lease {
            body["lease"] = json!(lease);
        }
        self.post("/v3/kv/put", &body).map(drop)
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.post("/v3/kv/deleterange", &json!({ "key": base64(key) })).map(drop)
    }
}

fn base64(text: &str) -> String {
    data_encoding::BASE64.encode(text.as_bytes())
}
