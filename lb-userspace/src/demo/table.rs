//! How the demo looks: one row per server, with a bar for its share; colours only in a terminal that wants them.

use std::{net::SocketAddr, time::Duration};

/// Width of the longest bar.
const BAR: usize = 24;

/// What a second brought to one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The server.
    pub address: SocketAddr,
    /// Requests that it answered.
    pub requests: u64,
    /// How long one took on average.
    pub latency: Duration,
    /// `up`, `down`, `drain`, ...
    pub state: &'a str,
}

/// The head of the table.
pub fn head(coloured: bool) -> String {
    let line = format!("   {:<18} {:>8} {:>7}  {:<BAR$} {:>9}  HEALTH", "SERVER", "REQUESTS", "SHARE", "", "LATENCY");
    if coloured { format!("\x1b[2m{line}\x1b[0m") } else { line }
}

/// One line per server.
pub fn rows(rows: &[Row<'_>], coloured: bool) -> Vec<String> {
    let all: u64 = rows.iter().map(|row| row.requests).sum();
    let line = |row: &Row<'_>| {
        let share = if all == 0 { 0.0 } else { row.requests as f64 / all as f64 };
        let bar = "█".repeat((share * BAR as f64).round() as usize);
        let latency = if row.requests == 0 { "-".to_owned() } else { format!("{} µs", row.latency.as_micros()) };
        let (colour, plain) = match row.state {
            _ if !coloured => ("", ""),
            "up" => ("\x1b[32m", "\x1b[0m"),
            "down" => ("\x1b[31m", "\x1b[0m"),
            _ => ("\x1b[33m", "\x1b[0m"),
        };
        let (address, requests, share) = (row.address.to_string(), row.requests, share * 100.0);
        format!(
            "   {address:<18} {requests:>8} {share:>6.1}%  {colour}{bar:<BAR$}{plain} {latency:>9}  {colour}{}{plain}",
            row.state
        )
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_what_was_answered() {
        let row = |last: u8, requests, state| Row {
            address: SocketAddr::from(([10, 55, 0, last], 8080)),
            requests,
            latency: Duration::from_micros(310),
            state,
        };
        let lines = rows(&[row(11, 30, "up"), row(12, 10, "up"), row(13, 0, "down")], false);
        assert!(lines[0].contains("75.0%") && lines[0].contains(&"█".repeat(18)), "{}", lines[0]);
        assert!(lines[2].contains(" 0.0%") && lines[2].ends_with("-  down"), "{}", lines[2]);
        assert!(lines.iter().all(|line| !line.contains('\x1b')));
        assert!(rows(&[row(13, 0, "down")], true)[0].contains("\x1b[31mdown\x1b[0m"));
    }
}
