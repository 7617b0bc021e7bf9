//! Idle timeouts of a service's flows.

use std::{str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::typed::parse_duration;
use crate::{Error, Result};

/// How long a flow may be silent before its record is given up, by what state it is in; `None` = the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct IdleTimeouts {
    /// TCP before the handshake is complete; 60 s by default.
    pub syn: Option<Duration>,
    /// TCP established; 2 h 4 min by default (RFC 5382).
    pub established: Option<Duration>,
    /// TCP after one FIN; 5 min by default.
    pub half_closed: Option<Duration>,
    /// TCP after both FINs or a RST; 30 s by default, reclaimable at once all the same.
    pub closed: Option<Duration>,
    /// UDP; 2 min by default (RFC 4787).
    pub udp: Option<Duration>,
}

/// The words of [`IdleTimeouts`], as in the config file and in `--idle`.
pub const IDLE_STATES: [&str; 5] = ["syn", "established", "half_closed", "closed", "udp"];

impl IdleTimeouts {
    /// The timeout of a state by its word; `None` if there is no such state.
    pub fn of_mut(&mut self, state: &str) -> Option<&mut Option<Duration>> {
        match state {
            "syn" => Some(&mut self.syn),
            "established" => Some(&mut self.established),
            "half_closed" => Some(&mut self.half_closed),
            "closed" => Some(&mut self.closed),
            "udp" => Some(&mut self.udp),
            _ => None,
        }
    }

    /// Sets one, which must be from 1 s to 24 days (ticks of records are compared as signed differences of years).
    ///
    /// # Errors
    /// No such state, or a time out of range.
    pub fn set(&mut self, state: &str, time: Duration) -> Result<()> {
        let place = self.of_mut(state).ok_or_else(|| {
            Error::usage(format!("'{state}' is not a state with an idle timeout"))
                .hint(format!("one of: {}", IDLE_STATES.join(" ")))
        })?;
        if !(Duration::from_secs(1)..=Duration::from_secs(24 * 86_400)).contains(&time) {
            return Err(Error::usage(format!("idle timeout {state}: {time:?} is out of range")).hint("1s to 24d"));
        }
        *place = Some(time);
        Ok(())
    }

    /// These, where they say something, else `others`.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        let Self { syn, established, half_closed, closed, udp } = self;
        Self {
            syn: syn.or(others.syn),
            established: established.or(others.established),
            half_closed: half_closed.or(others.half_closed),
            closed: closed.or(others.closed),
            udp: udp.or(others.udp),
        }
    }
}

impl FromStr for IdleTimeouts {
    type Err = Error;

    /// `--idle`: `STATE=DUR`, or several separated by commas.
    fn from_str(text: &str) -> Result<Self> {
        let mut timeouts = Self::default();
        for word in text.split(',').map(str::trim) {
            let (state, time) = word.split_once('=').ok_or_else(|| {
                Error::usage(format!("'{word}' is not an idle timeout")).hint("STATE=DUR, as in established=1h,udp=30s")
            })?;
            timeouts.set(state, parse_duration(time)?)?;
        }
        Ok(timeouts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_wins_over_what_was_said() {
        let said: IdleTimeouts = "established=1h,udp=30s".parse().unwrap();
        let before: IdleTimeouts = "udp=5s, syn=9s".parse().unwrap();
        let both = said.or(before);
        assert_eq!((both.udp, both.syn), (Some(Duration::from_secs(30)), Some(Duration::from_secs(9))));
        assert_eq!(both.established, Some(Duration::from_secs(3600)));
        let mut all = IdleTimeouts::default();
        for state in IDLE_STATES {
            all.set(state, Duration::from_secs(7)).unwrap();
        }
        assert_eq!(all.or(both), all);
    }

    #[test]
    fn wrong_timeouts_are_named() {
        for (text, word) in [
            ("1h", "'1h' is not an idle timeout"),
            ("tcp=1h", "'tcp' is not a state"),
            ("udp=soon", "'soon' is not a time"),
            ("udp=0s", "out of range"),
            ("udp=25d", "out of range"),
            ("", "'' is not an idle timeout"),
        ] {
            let error = text.parse::<IdleTimeouts>().unwrap_err();
            assert!(error.message.contains(word) && error.hint.is_some(), "'{text}': {error}");
        }
    }
}
