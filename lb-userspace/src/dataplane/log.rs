//! The data path's own log (`--bpf-log`): numbers come out of the kernel's ring, lines go to standard error.
//!
//! A line is `REASON INTERFACE PROTOCOL SOURCE > DESTINATION`, as the packet leaves: in mode `nat`, already translated.

use aya::Ebpf;
use aya_log::EbpfLogger;
use lb_common::reason::Reason;
use log::{Level, Log, Metadata, Record};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{Error, Result, error::Context as _};

/// Where the lines go in this process's own log, whatever its level.
pub const TARGET: &str = "data_path";

/// Prints what the program writes, as long as this process lives.
pub fn follow(object: &mut Ebpf) -> Result<()> {
    let logger = EbpfLogger::init_with_logger(object, Lines)
        .map_err(|error| Error::failed(format!("--bpf-log: open the data path's log: {error}")))?;
    // SAFETY: the descriptor is the ring's own, which the logger keeps open and never exchanges.
    let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = logger.context("--bpf-log: watch the log")?;
    tokio::spawn(async move {
        loop {
            // An error here is of the poll itself, and would come again.
            let Ok(mut ready) = logger.readable_mut().await else { return };
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}

/// Makes words of numbers.
struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = line(&record.args().to_string(), interface);
        match record.level() {
            Level::Error => tracing::error!(target: TARGET, "{line}"),
            Level::Warn => tracing::warn!(target: TARGET, "{line}"),
            Level::Info => tracing::info!(target: TARGET, "{line}"),
            Level::Debug => tracing::debug!(target: TARGET, "{line}"),
            Level::Trace => tracing::trace!(target: TARGET, "{line}"),
        }
    }

    fn flush(&self) {}
}

fn interface(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("interface {index}"))
}

/// What the program wrote, in words: `reason interface protocol source port destination port`, or, of what is not IP,
/// `reason interface type`.
fn line(text: &str, interface: impl Fn(u32) -> String) -> String {
    let words: Vec<_> = text.split_ascii_whitespace().collect();
    let number = |text: &str| text.parse().unwrap_or(0);
    match *words.as_slice() {
        [reason, ingress, protocol, source, from, destination, to] => {
            let protocol = match protocol {
                "1" => "icmp",
                "4" => "ipip",
                "6" => "tcp",
                "17" => "udp",
                "41" => "ip6",
                "58" => "icmp6",
                other => other,
            };
            let with_ports = matches!(protocol, "tcp" | "udp");
            let place = |address: &str, port: &str| match (with_ports, address.contains(':')) {
                (false, _) => address.to_owned(),
                (true, false) => format!("{address}:{port}"),
                (true, true) => format!("[{address}]:{port}"),
            };
            let (source, destination) = (place(source, from), place(destination, to));
            let reason = Reason::from_number(number(reason)).name();
            format!("{reason} {} {protocol} {source} > {destination}", interface(number(ingress)))
        }
        [reason, ingress, kind] => {
            let reason = Reason::from_number(number(reason)).name();
            format!("{reason} {} ethertype 0x{:04x}", interface(number(ingress)), number(kind))
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_words() {
        let eth = |index| format!("eth{index}");
        for (numbers, words) in [
            ("0 1 6 10.0.0.9 4000 10.0.0.2 80", "forwarded-tx eth1 tcp 10.0.0.9:4000 > 10.0.0.2:80"),
            ("8 1 17 2001:db8::1 53 2001:db8::9 9", "reject-tcp eth1 udp [2001:db8::1]:53 > [2001:db8::9]:9"),
            ("7 0 1 10.0.0.1 0 10.0.0.9 0", "echo-reply eth0 icmp 10.0.0.1 > 10.0.0.9"),
            ("2 3 2054", "not-ours eth3 ethertype 0x0806"),
        ] {
            assert_eq!(line(numbers, eth), words);
        }
    }
}
