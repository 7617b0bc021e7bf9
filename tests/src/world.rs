//! A world of one balancer: the real program and maps, and tables compiled by the real control plane.
//!
//! Packets go through `BPF_PROG_TEST_RUN`, which runs the program as the driver would, but sends nothing. The
//! interface is the loopback device's index, which every test run comes in by, and a second one that nothing ever
//! leaves by.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, ProgramArray},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use lb_common::{
    maps::{self, name},
    reason::Reason,
};
use lb_userspace::{
    dataplane::{self, DataPlane, Flow, LAB_OBJECT, LoadOptions, pins},
    reconcile::{BackendKey, Observed, Tables, VerdictSeen, compile},
    state::{Admin, BackendSpec, Desired, Health, ServiceSpec, Source},
};

use crate::{
    packet::{BACKEND_MAC, LB_MAC, Packet, Seen, read},
    packet6,
};

/// Interface that packets come in by.
pub const INGRESS: u32 = 1;
/// Another interface.
pub const OTHER: u32 = 1_000_002;
/// The balancer's own address, which NAT uses.
pub const LB_ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

/// The same over IPv6.
pub const LB_ADDRESS6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

/// Verdicts as XDP numbers them.
pub const DROP: u32 = 1;
/// See [`DROP`].
pub const PASS: u32 = 2;
/// See [`DROP`].
pub const TX: u32 = 3;
/// See [`DROP`].
pub const REDIRECT: u32 = 4;

/// See the module.
pub struct World {
    bpffs: PathBuf,
    /// The data plane.
    pub plane: DataPlane,
    /// What is wanted; [`World::apply`] makes it so.
    pub desired: Desired,
    /// What is seen.
    pub observed: Observed,
    before: Vec<u64>,
    poison: Poison,
}

/// Rule 35: the wrapper that fills the head room before the balancer writes.
struct Poison {
    lab: Ebpf,
    // The wrapper's way to the balancer ends when this is dropped.
    _jump: ProgramArray<MapData>,
}

impl Poison {
    fn around(balancer: &Xdp) -> Result<Self> {
        // Its tables are for the benchmark.
        let mut loader = EbpfLoader::new();
        for table in ["floor_flows", "lru_flows", "hash_flows", "listed"] {
            loader.map_max_entries(table, 1);
        }
        let mut lab = loader.load(LAB_OBJECT)?;
        let wrapper: &mut Xdp = lab.program_mut("poison").context("the wrapper")?.try_into()?;
        wrapper.load()?;
        let mut jump = ProgramArray::try_from(lab.take_map("jump").context("jump")?)?;
        jump.set(0, balancer.fd()?, 0)?;
        Ok(Self { lab, _jump: jump })
    }

    fn program(&self) -> Result<&Xdp> {
        Ok(self.lab.program("poison").context("the wrapper")?.try_into()?)
    }
}

/// What became of a packet.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// XDP's verdict.
    pub verdict: u32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// What it was counted under.
    pub reason: Reason,
}

impl Outcome {
    /// The IPv6 packet, all checksums verified.
    ///
    /// # Panics
    /// It is not sound.
    #[must_use]
    pub fn packet6(&self) -> packet6::Seen6 {
        match packet6::read(&self.frame) {
            Ok(seen) => seen,
            Err(error) => panic!("{error:#} in {:02x?} ({:?})", self.frame, self.reason),
        }
    }

    /// The packet, all checksums verified.
    ///
    /// # Panics
    /// It is not sound.
    #[must_use]
    pub fn packet(&self) -> Seen {
        match read(&self.frame) {
            Ok(seen) => seen,
            Err(error) => panic!("{error:#} in {:02x?} ({:?})", self.frame, self.reason),
        }
    }
}

impl World {
    /// An empty world with room for `flows` flows.
    pub fn new(flows: u32) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/lb-test-{}-{number}", std::process::id()));
        let options = LoadOptions { bpffs: bpffs.clone(), max_flows: flows, log_level: 0 };
        let mut plane = DataPlane::load(&options)
            .map_err(|error| anyhow::anyhow!("{error} ({})", error.hint.clone().unwrap_or_default()))
            .context("these tests need root: they run a real XDP program")?;
        let interface = |ifindex| maps::Interface { ifindex, flags: 0, mtu: 1500, mac: LB_MAC, virtual_mac: LB_MAC };
        plane.set_interfaces(&[interface(INGRESS), interface(OTHER)])?;
        let observed = Observed { host_addresses: [LB_ADDRESS, IpAddr::V6(LB_ADDRESS6)].into(), ..Observed::default() };
        let before = plane.counters()?.reasons;
        let poison = Poison::around(plane.program()?)?;
        Ok(Self { bpffs, plane, desired: Desired::default(), observed, before, poison })
    }

    /// A world with one service whose backends are all up.
    pub fn with(vip: &str, backends: &[&str]) -> Result<Self> {
        let mut world = Self::new(4096)?;
        world.service(vip, backends)?;
        world.apply()?;
        Ok(world)
    }

    /// Adds a service; its backends are up and reached by [`INGRESS`].
    pub fn service(&mut self, vip: &str, backends: &[&str]) -> Result<&mut ServiceSpec> {
        let mut service = ServiceSpec::new(vip.parse()?, Source::Cli);
        let name = service.name.clone();
        for text in backends {
            let (address, weight) = lb_userspace::state::typed::parse_backend(text)?;
            service.backends.push(BackendSpec { address, weight, admin: Admin::Ready, source: Source::Cli });
            self.verdict(&name, address, Health::Up);
            self.reach(address.ip(), INGRESS, 1500);
        }
        Ok(self.desired.services.entry(name).or_insert(service))
    }

    /// The world's first service.
    pub fn first(&mut self) -> &mut ServiceSpec {
        self.desired.services.values_mut().next().unwrap_or_else(|| panic!("no service"))
    }

    /// Says how an address is reached.
    pub fn reach(&mut self, address: IpAddr, ifindex: u32, mtu: u32) {
        let mut ethernet = [0; 12];
        ethernet[..6].copy_from_slice(&BACKEND_MAC);
        ethernet[6..].copy_from_slice(&LB_MAC);
        let hop = maps::NextHop { ethernet, ifindex, mtu, ..maps::NextHop::default() };
        self.observed.next_hops.insert(address, hop);
        self.observed.sources.insert(address, if address.is_ipv4() { LB_ADDRESS } else { IpAddr::V6(LB_ADDRESS6) });
    }

    /// A health check's verdict.
    pub fn verdict(&mut self, service: &str, address: SocketAddr, health: Health) {
        let key = BackendKey { service: service.to_owned(), address };
        let was_up = self.observed.verdicts.get(&key).is_some_and(|seen| seen.health == Health::Up);
        self.observed.verdicts.insert(key, VerdictSeen { health, since: dataplane::now(), was_up });
    }

    /// Makes the maps say what is wanted.
    pub fn apply(&mut self) -> Result<Tables> {
        let tables = compile(&self.desired, &self.observed);
        self.plane.apply(&tables)?;
        self.observed.backend_ids.clone_from(&tables.backend_ids);
        self.observed.service_ids.clone_from(&tables.service_ids);
        Ok(tables)
    }

    /// Runs a frame through the program.
    ///
    /// # Panics
    /// The run fails, or the frame is not counted exactly once (rule 34).
    pub fn run(&mut self, frame: &[u8]) -> Outcome {
        self.try_run(frame).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Sends a packet.
    pub fn send(&mut self, packet: &Packet) -> Outcome {
        self.run(&packet.build())
    }

    /// Sends an IPv6 packet.
    pub fn send6(&mut self, packet: &packet6::Packet6) -> Outcome {
        self.run(&packet.build())
    }

    /// Sends many packets, all of which must be forwarded by [`INGRESS`]; gives them as they leave. Much faster than
    /// [`World::send`]: counters are looked at once.
    ///
    /// # Panics
    /// One is not forwarded, or they are not counted exactly once each (rule 34).
    pub fn send_all(&mut self, packets: impl IntoIterator<Item = Packet>) -> Vec<Seen> {
        let sent = self.send_frames(packets.into_iter().map(|packet| packet.build()));
        sent.iter().map(|frame| read(frame).unwrap_or_else(|error| panic!("{error:#} in {frame:02x?}"))).collect()
    }

    /// The same with frames of either family, and nothing read off them.
    ///
    /// # Panics
    /// As [`World::send_all`].
    pub fn send_frames(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
        let forward = |frame: Vec<u8>| {
            let mut out = vec![0; frame.len() + 256];
            let options =
                TestRunOptions { data_in: Some(&frame), data_out: Some(&mut out), ..TestRunOptions::default() };
            let result = self.plane.program()?.test_run(options).context("BPF_PROG_TEST_RUN")?;
            out.truncate(result.data_size_out as usize);
            ensure!(result.return_value == TX, "verdict {} for {frame:02x?}", result.return_value);
            Ok(out)
        };
        let sent: Result<Vec<_>> = frames.into_iter().map(forward).collect();
        let sent = sent.unwrap_or_else(|error| panic!("{error:#}"));
        let after = self.plane.counters().unwrap_or_else(|error| panic!("{error:#}")).reasons;
        let counted: u64 = after.iter().sum::<u64>() - self.before.iter().sum::<u64>();
        let forwarded = Reason::ForwardedTx as usize;
        let by_reason: Vec<_> = Reason::ALL
            .iter()
            .map(|reason| (reason, after[*reason as usize] - self.before[*reason as usize]))
            .filter(|(_, count)| *count > 0)
            .collect();
        let wanted = (sent.len() as u64, sent.len() as u64);
        assert_eq!((counted, after[forwarded] - self.before[forwarded]), wanted, "{by_reason:?}");
        self.before = after;
        sent
    }

    fn try_run(&mut self, frame: &[u8]) -> Result<Outcome> {
        let program = self.poison.program()?;
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = program.test_run(options).context("BPF_PROG_TEST_RUN")?;
        out.truncate(result.data_size_out as usize);
        let after = self.plane.counters()?.reasons;
        let counted: Vec<_> = Reason::ALL
            .iter()
            .zip(self.before.iter().zip(&after))
            .flat_map(|(reason, (before, after))| std::iter::repeat_n(*reason, (after - before) as usize))
            .collect();
        self.before = after;
        ensure!(counted.len() == 1, "rule 34: one packet, counted under {counted:?}");
        Ok(Outcome { verdict: result.return_value, frame: out, reason: counted[0] })
    }

    /// Takes the slow path away, as it goes when the pins are removed.
    pub fn end_slow_path(&self) -> Result<()> {
        let map = MapData::from_pin(pins::directory(&self.bpffs).join(name::SLOW_PATH))?;
        Ok(ProgramArray::try_from(Map::ProgramArray(map))?.clear_index(&0)?)
    }

    /// Live flows.
    #[must_use]
    pub fn flows(&self) -> Vec<Flow> {
        self.plane.flows().live(dataplane::now()).collect()
    }

    /// Has a client open a connection: SYN, SYN-ACK, ACK. Gives the backend and what it saw as its client.
    ///
    /// # Panics
    /// A segment is not forwarded.
    pub fn open(&mut self, client: SocketAddrV4, vip: SocketAddrV4) -> (SocketAddrV4, SocketAddrV4) {
        use crate::packet::{ACK, SYN, tcp};
        let syn = self.send(&tcp(client, vip, SYN));
        assert_eq!(syn.reason, Reason::ForwardedTx, "the SYN of {client}");
        let seen = syn.packet();
        let answer = self.send(&tcp(seen.to, seen.from, SYN | ACK).from_backend());
        assert_eq!(answer.reason, Reason::ForwardedTx, "the SYN-ACK to {client}");
        let ack = self.send(&tcp(client, vip, ACK));
        assert_eq!((ack.reason, ack.packet().to), (Reason::ForwardedTx, seen.to), "the ACK of {client}");
        (seen.to, seen.from)
    }
}

impl World {
    /// As [`World::open`], over IPv6.
    ///
    /// # Panics
    /// A segment is not forwarded.
    pub fn open6(&mut self, client: SocketAddrV6, vip: SocketAddrV6) -> (SocketAddrV6, SocketAddrV6) {
        use crate::packet::{ACK, SYN};
        let syn = self.send6(&packet6::tcp(client, vip, SYN));
        assert_eq!(syn.reason, Reason::ForwardedTx, "the SYN of {client}");
        let seen = syn.packet6();
        let answer = self.send6(&packet6::tcp(seen.to, seen.from, SYN | ACK).from_backend());
        assert_eq!(answer.reason, Reason::ForwardedTx, "the SYN-ACK to {client}");
        let ack = self.send6(&packet6::tcp(client, vip, ACK));
        assert_eq!((ack.reason, ack.packet6().to), (Reason::ForwardedTx, seen.to), "the ACK of {client}");
        (seen.to, seen.from)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = pins::remove(&self.bpffs) {
            eprintln!("clean up: {error}");
        }
    }
}
