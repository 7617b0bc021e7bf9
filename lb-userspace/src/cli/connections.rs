//! `lb conn list`: connections as they come, there may be millions.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use serde::Deserialize;

use super::arguments::Output;
use crate::{
    Result,
    api::{Both, Request, client::Client},
};

/// Rows that decide how wide columns are.
const FIRST: usize = 500;
const HEAD: [&str; 11] =
    ["PROTO", "CLIENT", "VIP", "BACKEND", "AS", "SERVICE", "STATE", "IDLE", "AGE", "PACKETS IN", "OUT"];

/// Asks and prints. A reader that has seen enough (`| head`) is no failure.
pub async fn list(client: &Client, request: &Request, out: Output) -> Result<()> {
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let (mut rows, mut enough) = (Rows::default(), false);
    let told = client.pieces(request, |piece| {
        let taken = match out {
            Output::Json => stdout.write_all(piece),
            Output::Table => rows.take(piece, &mut stdout),
        };
        enough = taken.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
        taken
    });
    let told = told.await;
    if enough {
        return Ok(());
    }
    told?;
    // What cannot be written at the end is what nobody reads.
    let _ = if out == Output::Table { rows.show(&mut stdout) } else { Ok(()) };
    let _ = stdout.flush();
    Ok(())
}

/// A table that is printed while it grows.
#[derive(Default)]
struct Rows {
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    /// The first rows, until they are printed.
    waiting: Vec<[String; HEAD.len()]>,
    /// Widths of columns, once the first rows are printed.
    widths: Option<[usize; HEAD.len()]>,
}

impl Rows {
    /// Takes a piece of the answer: a JSON array with an element on each line.
    fn take(&mut self, piece: &[u8], to: &mut impl Write) -> io::Result<()> {
        self.partial.extend_from_slice(piece);
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        let rest = self.partial.split_off(end + 1);
        let whole = std::mem::replace(&mut self.partial, rest);
        for line in whole.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b",").unwrap_or(line);
            if line.starts_with(b"{") {
                let row = row(&serde_json::from_slice(line)?);
                match &self.widths {
                    Some(widths) => self::line(to, &row, widths)?,
                    None => self.waiting.push(row.map(Cow::into_owned)),
                }
            }
        }
        if self.waiting.len() >= FIRST { self.show(to) } else { Ok(()) }
    }

    /// Prints the rows that wait; the first time with the head.
    fn show(&mut self, to: &mut impl Write) -> io::Result<()> {
        let widths = match self.widths {
            Some(widths) => widths,
            None => {
                let width = |column: usize| self.waiting.iter().map(|row| row[column].len()).max().unwrap_or(0);
                let widths: [usize; HEAD.len()] = std::array::from_fn(|column| width(column).max(HEAD[column].len()));
                line(to, &HEAD, &widths)?;
                *self.widths.insert(widths)
            }
        };
        for row in self.waiting.drain(..) {
            line(to, &row, &widths)?;
        }
        Ok(())
    }
}

fn line<T: AsRef<str>>(to: &mut impl Write, cells: &[T], widths: &[usize]) -> io::Result<()> {
    const SPACES: &str = "                                                                ";
    for (n, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let cell = cell.as_ref();
        to.write_all(cell.as_bytes())?;
        // By hand: there may be millions.
        let pad = if n + 1 == cells.len() { 0 } else { width.saturating_sub(cell.len()) + 2 };
        match SPACES.get(..pad) {
            Some(spaces) => to.write_all(spaces.as_bytes())?,
            None => write!(to, "{:pad$}", "")?,
        }
    }
    to.write_all(b"\n")
}

/// A [`crate::api::Conn`], of which nothing is read that is only printed.
#[derive(Deserialize)]
struct Told<'a> {
    #[serde(borrow)]
    proto: &'a str,
    client: &'a str,
    vip: &'a str,
    backend: &'a str,
    snat: &'a str,
    #[serde(borrow)]
    service: Cow<'a, str>,
    state: &'a str,
    idle_s: u64,
    age_s: u64,
    packets: Both,
}

fn row<'a>(conn: &Told<'a>) -> [Cow<'a, str>; HEAD.len()] {
    [
        conn.proto.into(),
        conn.client.into(),
        conn.vip.into(),
        conn.backend.into(),
        conn.snat.into(),
        conn.service.clone(),
        conn.state.into(),
        format!("{} s", conn.idle_s).into(),
        format!("{} s", conn.age_s).into(),
        conn.packets.inward.to_string().into(),
        conn.packets.out.to_string().into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_printed_from_pieces_that_end_anywhere() {
        let element = |port: u16| {
            format!(
                r#"{{"proto":"tcp","client":"192.0.2.1:{port}","vip":"10.0.0.1:80","backend":"10.0.0.2:80","snat":"10.0.0.1:5000","service":"web","state":"established","idle_s":1,"age_s":2,"packets":{{"in":3,"out":4}}}}"#
            )
        };
        let elements: Vec<_> = (1..=1200).map(element).collect();
        let text = format!("[\n{}\n]\n", elements.join(",\n"));
        let (mut rows, mut printed) = (Rows::default(), Vec::new());
        for piece in text.as_bytes().chunks(777) {
            rows.take(piece, &mut printed).unwrap();
        }
        rows.show(&mut printed).unwrap();
        let printed = String::from_utf8(printed).unwrap();
        let lines: Vec<_> = printed.lines().collect();
        assert_eq!(lines.len(), 1201);
        assert!(lines[0].starts_with("PROTO  CLIENT"), "{}", lines[0]);
        assert!(lines[1200].contains("192.0.2.1:1200") && lines[1200].ends_with("3           4"), "{}", lines[1200]);

        let (mut rows, mut printed) = (Rows::default(), Vec::new());
        rows.take(b"[\n]\n", &mut printed).unwrap();
        rows.show(&mut printed).unwrap();
        assert_eq!(String::from_utf8(printed).unwrap().lines().count(), 1, "the head alone");
    }
}
