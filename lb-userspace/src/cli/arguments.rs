//! What may be typed.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::state::{
    IdleTimeouts, Mode, OnDown, OnEmpty, OnExit, Probe, Scheduler, ServiceOptions, XdpMode,
    typed::{
        BackendList, parse_client, parse_count, parse_duration, parse_flows, parse_list, parse_log_level, parse_ports,
        parse_server, parse_weight,
    },
};

/// A layer-4 load balancer in the Linux kernel
#[derive(Clone, Debug, Parser)]
#[command(name = "lb", version, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Arguments {
    /// The daemon's socket
    #[arg(long, global = true, env = "LB_SOCKET", default_value = "/run/lb/lb.sock", hide_env_values = true)]
    pub socket: PathBuf,
    /// Directory of the saved state
    #[arg(long, global = true, env = "LB_STATE_DIR", default_value = "/var/lib/lb", hide_env_values = true)]
    pub state_dir: PathBuf,
    /// Directory of the pinned data path, on a BPF file system
    #[arg(long, global = true, env = "LB_BPFFS", default_value = "/sys/fs/bpf/lb", hide_env_values = true)]
    pub bpffs: PathBuf,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub output: Output,
    /// Print only errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more; twice: much more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// One JSON value
    Json,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Attach to interfaces and balance
    Attach(Box<Attach>),
    /// Attach and balance as a config file says, for a supervisor: SIGHUP reads it again, SIGTERM leaves the data path
    /// running
    Daemon {
        /// The config file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Override the guards that may be overridden
        #[arg(long)]
        force: bool,
    },
    /// Whether a config file is right; it is only read
    Check {
        /// The config file
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// End forwarding on interfaces, or on all; without a daemon too
    Detach { interfaces: Vec<String> },
    /// See it work: a lab in network namespaces, real traffic, a backend killed before your eyes
    Demo {
        /// Leave the lab running afterwards, until Ctrl-C
        #[arg(long)]
        keep: bool,
    },
    /// What stands in the way on this host, and how to mend it
    Doctor {
        /// Interfaces to look at; default: all that are up
        interfaces: Vec<String>,
    },
    /// Sources of backends: registries and files
    #[command(subcommand)]
    Source(Source),
    /// Services: VIPs and how they are served
    #[command(subcommand)]
    Service(Box<Service>),
    /// Backends: the servers of a service
    #[command(subcommand)]
    Backend(Backend),
    /// The whole picture
    Status,
    /// What health checks say
    Health,
    /// Packets by reason, with what to do about it
    Drops,
    /// Connections
    #[command(subcommand)]
    Conn(Conn),
}

#[derive(Clone, Debug, Args)]
pub struct Attach {
    /// Interfaces that packets come in and leave by; default: those of the config file
    #[arg(required_unless_present = "config")]
    pub interfaces: Vec<String>,
    /// A config file; flags say more, or count before what it says of the same
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// [ADDR:]PORT[/tcp|udp]; default: the interface's address and the port that all backends share
    #[arg(long)]
    pub vip: Vec<String>,
    /// ADDR:PORT[=WEIGHT] or KIND:TARGET[?OPTIONS] of a registry (consul, dns, etcd, file), separated by commas
    #[arg(long, value_parser = parse_list)]
    pub backends: Option<BackendList>,
    #[command(flatten)]
    pub service: ServiceArguments,
    /// auto (default), native or generic
    #[arg(long, value_name = "MODE")]
    pub xdp: Option<XdpMode>,
    /// Put the VIP on DEV (default: the first interface)
    #[arg(long, value_name = "DEV", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub announce: Option<String>,
    /// More addresses that NAT may use
    #[arg(long, value_name = "ADDR,..", value_delimiter = ',')]
    pub snat: Vec<IpAddr>,
    /// Ports that NAT may use
    #[arg(long, value_name = "LO-HI", value_parser = parse_ports)]
    pub snat_ports: Option<(u16, u16)>,
    /// Size of the flow table; default: 262144
    #[arg(long, value_name = "N", value_parser = parse_flows)]
    pub max_flows: Option<u32>,
    /// What ending this does to the data path: detach (default) or keep
    #[arg(long, value_name = "POLICY")]
    pub on_exit: Option<OnExit>,
    /// Level of the data path's own log: 0 (off), 1 (error) to 5 (trace)
    #[arg(long, value_name = "LEVEL", default_value = "0", value_parser = parse_log_level)]
    pub bpf_log: u8,
    /// Say what it would do, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Override the guards that may be overridden
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Debug, Default, Args)]
pub struct ServiceArguments {
    /// The service's name; default: its first VIP
    #[arg(long)]
    pub name: Option<String>,
    /// nat (default), dnat, dsr, ipip or gue: how packets reach the backends
    #[arg(long)]
    pub mode: Option<Mode>,
    /// maglev (default), round-robin, least-conn, source-hash or random
    #[arg(long)]
    pub scheduler: Option<Scheduler>,
    /// Same client address, same backend, for this long
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub affinity: Option<Duration>,
    /// A backend that came up takes a growing share of new flows for this long
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub slow_start: Option<Duration>,
    /// tcp, http[:PATH], https[:PATH], udp, grpc[:SERVICE] or none
    #[arg(long)]
    pub health: Option<Probe>,
    /// What happens to flows of a backend that is down: auto, reset or keep
    #[arg(long)]
    pub on_down: Option<OnDown>,
    /// What happens to new flows when nobody is usable: reject or drop
    #[arg(long)]
    pub on_empty: Option<OnEmpty>,
    /// When silent flows end: STATE=DUR,..; states: syn, established, half_closed, closed, udp
    #[arg(long, value_name = "STATE=DUR,..")]
    pub idle: Option<IdleTimeouts>,
}

impl From<ServiceArguments> for ServiceOptions {
    fn from(typed: ServiceArguments) -> Self {
        let ServiceArguments { name, mode, scheduler, affinity, slow_start, health, on_down, on_empty, idle } = typed;
        Self { name, mode, scheduler, affinity, slow_start, health, on_down, on_empty, idle, discovery: None }
    }
}

/// How long to wait for what a change is to bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As long as it takes.
    Forever,
    /// This long.
    For(Duration),
}

fn parse_wait(text: &str) -> crate::Result<Wait> {
    if text.is_empty() { Ok(Wait::Forever) } else { parse_duration(text).map(Wait::For) }
}

#[derive(Clone, Debug, Default, Args)]
pub struct How {
    /// Wait until it has its effect
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = parse_wait)]
    pub wait: Option<Wait>,
    /// Say what it would do, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Service {
    /// All services
    List,
    /// One service with its backends
    Show { service: String },
    /// A new service
    Add {
        /// ADDR:PORT[/tcp|udp]
        vip: crate::state::Vip,
        #[command(flatten)]
        options: ServiceArguments,
        /// ADDR:PORT[=WEIGHT] or KIND:TARGET[?OPTIONS] of a registry (consul, dns, etcd, file), separated by commas
        #[arg(long, value_parser = parse_list)]
        backends: Option<BackendList>,
        /// Override the guards that may be overridden
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        how: How,
    },
    /// Change a service
    Set {
        service: String,
        #[command(flatten)]
        options: ServiceArguments,
        /// Replaces the list
        #[arg(long, value_parser = parse_list)]
        backends: Option<BackendList>,
        #[command(flatten)]
        how: How,
    },
    /// Remove a service; its flows go on until they end
    Remove {
        service: String,
        /// Reset its flows now
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum Source {
    /// All sources: state, age, last error, what is held and why
    List,
    /// Let go the backends that a source holds
    Release {
        /// The source's name
        name: String,
    },
}

#[derive(Clone, Debug, Args)]
pub struct Of {
    /// The service: its name or a VIP; may be left out while there is one
    #[arg(short, long)]
    pub service: Option<String>,
    #[command(flatten)]
    pub how: How,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Backend {
    /// All backends
    List {
        /// Only of this service
        #[arg(short, long)]
        service: Option<String>,
    },
    /// New backends
    Add {
        /// ADDR:PORT[=WEIGHT]
        #[arg(required = true, value_parser = crate::state::typed::parse_backend)]
        backends: Vec<(SocketAddr, u16)>,
        #[command(flatten)]
        of: Of,
    },
    /// Remove backends; their flows go on until they end
    Remove {
        #[arg(required = true, value_parser = parse_server)]
        backends: Vec<SocketAddr>,
        /// Reset their flows now, even of the last usable one
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        of: Of,
    },
    /// Change a backend's weight; 0 takes no new flows
    Weight {
        #[arg(value_parser = parse_server)]
        backend: SocketAddr,
        #[arg(value_parser = parse_weight)]
        weight: u16,
        #[command(flatten)]
        of: Of,
    },
    /// No new flows, old ones go on
    Drain {
        #[arg(required = true, value_parser = parse_server)]
        backends: Vec<SocketAddr>,
        #[command(flatten)]
        of: Of,
    },
    /// Back in service
    Ready {
        #[arg(required = true, value_parser = parse_server)]
        backends: Vec<SocketAddr>,
        #[command(flatten)]
        of: Of,
    },
    /// No new flows, no checks, live flows are reset
    Maint {
        #[arg(required = true, value_parser = parse_server)]
        backends: Vec<SocketAddr>,
        #[command(flatten)]
        of: Of,
    },
}

#[derive(Clone, Debug, Default, Args)]
pub struct Filter {
    /// Of this service
    #[arg(short, long)]
    pub service: Option<String>,
    /// To this backend
    #[arg(long, value_parser = parse_server)]
    pub backend: Option<SocketAddr>,
    /// From this client address
    #[arg(long, value_parser = parse_client)]
    pub client: Option<IpAddr>,
    /// In this state: syn, syn-ack, established, fin-client, fin-backend, udp
    #[arg(long, value_parser = ["syn", "syn-ack", "established", "fin-client", "fin-backend", "udp"])]
    pub state: Option<String>,
    /// No more than this many
    #[arg(long, value_parser = parse_count)]
    pub limit: Option<usize>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Conn {
    /// Live connections
    List(Filter),
    /// How many there are
    Count(Filter),
    /// Reset connections
    Flush {
        #[command(flatten)]
        filter: Filter,
        /// All of them
        #[arg(long)]
        all: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_contracts_lines_are_understood() {
        let lines = [
            "lb attach eth0 --backends 10.0.0.2:8080,10.0.0.3:8080",
            "lb attach eth0 eth1 --vip 10.0.0.1:80 --vip 53/udp --backends 10.0.0.2:80=5 --xdp native --announce",
            "lb attach eth0 --announce=lo --snat 10.0.0.8,10.0.0.9 --snat-ports 2000-2999 --max-flows 4096 --on-exit keep",
            "lb attach eth0 --bpf-log 3 --dry-run --force --health http:/up --on-down reset --on-empty drop --name web",
            "lb attach --config /etc/lb.toml",
            "lb attach eth0 --config /etc/lb.toml --backends 10.0.0.2:80",
            "lb daemon --config /etc/lb.toml",
            "lb check -f lb.toml -o json",
            "lb detach",
            "lb detach eth0 -o json",
            "lb source list -o json",
            "lb source release consul:api-service",
            "lb service add 10.0.0.1:80 --backends consul:api-service?tag=api,10.0.0.2:80",
            "lb service list -o json",
            "lb service add 10.0.0.1:80 --backends 10.0.0.2:80 --scheduler wlc --affinity 10m",
            "lb service set web --backends 10.0.0.2:80 --wait=5s",
            "lb service set web --health grpc:my.Service --idle established=1h,udp=30s",
            "lb service remove web --force --dry-run",
            "lb backend add 10.0.0.2:80=3 10.0.0.3:80 -s web --wait",
            "lb backend drain 10.0.0.2:80 --wait=30s",
            "lb backend weight 10.0.0.2:80 0",
            "lb conn list -s web --backend 10.0.0.2:80 --client 192.0.2.1 --state established --limit 10",
            "lb conn flush --all",
            "lb status --socket /tmp/x -q",
            "lb -v health",
        ];
        for line in lines {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn an_optional_value_needs_an_equals_sign() {
        let Command::Backend(Backend::Drain { backends, of }) =
            parse("lb backend drain --wait 10.0.0.2:80").unwrap().command
        else {
            panic!("not a drain")
        };
        assert_eq!((backends.len(), of.how.wait), (1, Some(Wait::Forever)));
    }

    #[test]
    fn wrong_lines_are_refused_with_the_word_that_is_wrong() {
        let lines = [
            ("lb attach", "INTERFACES"),
            ("lb daemon", "--config"),
            ("lb check", "--file"),
            ("lb attach eth0 --backends 10.0.0.2:80,10.0.0.2:80", "named twice"),
            ("lb attach eth0 --xdp fast", "'fast' is not an XDP mode"),
            ("lb attach eth0 --snat-ports 9-5", "not a range of ports"),
            ("lb attach eth0 --max-flows many", "many"),
            ("lb attach eth0 --bpf-log 9", "9"),
            ("lb attach eth0 --nonsense", "--nonsense"),
            ("lb backend drain", "BACKENDS"),
            ("lb backend weight 10.0.0.2:80 70000", "70000"),
            ("lb backend drain 10.0.0.2:80 --wait=soon", "'soon' is not a time"),
            ("lb service add web", "'web'"),
            ("lb service set web --idle tcp=1h", "'tcp' is not a state"),
            ("lb service set web --health ftp", "'ftp' is not a health check"),
            ("lb attach eth0 --bpf-log loud", "'loud' is not a level"),
            ("lb backend drain 10.0.0.2:x", "'x' is not a port"),
            ("lb backend remove web1", "'web1' is not an address"),
            ("lb backend add 10.0.0.2:0", "0 is no server's port"),
            ("lb backend weight 10.0.0.2:80 heavy", "'heavy' is not a weight"),
            ("lb conn list --limit few", "'few' is not a number"),
            ("lb conn list --client me", "'me' is not an IP address"),
            ("lb frobnicate", "frobnicate"),
            ("lb status -q -v", "--quiet"),
        ];
        for (line, word) in lines {
            let error = parse(line).expect_err(line).to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
