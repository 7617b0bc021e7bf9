//! The vocabulary of product.md: parsing, printing, serde. Every word is printed as it is typed.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::typed::parse_vip;
use crate::{Error, Result};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $word:literal $(| $alias:literal)*,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// All of them, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// Other words that are understood.
            pub const ALIASES: &[&str] = &[$($($alias,)*)*];

            /// The word.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($word $(| $alias)* => Ok(Self::$variant),)*
                    _ => Err(Error::usage(format!(concat!("'{}' is not ", $what), text))
                        .hint(concat!("one of:" $(, " ", $word)*))),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

words! {
    /// How packets reach the backend.
    Mode, "a mode" {
        /// Full NAT.
        Nat = "nat",
        /// Destination NAT.
        Dnat = "dnat",
        /// Direct return on layer 2.
        Dsr = "dsr",
        /// Direct return, IP in IP.
        Ipip = "ipip",
        /// Direct return, IP in UDP.
        Gue = "gue",
    }
}

words! {
    /// How a new connection picks a backend.
    Scheduler, "a scheduler" {
        /// Maglev hashing over the 5-tuple.
        Maglev = "maglev",
        /// Weighted round robin.
        RoundRobin = "round-robin" | "rr" | "wrr",
        /// Weighted least connections.
        LeastConn = "least-conn" | "lc" | "wlc",
        /// Maglev hashing over the client's address.
        SourceHash = "source-hash" | "sh",
        /// Weighted random.
        Random = "random",
    }
}

words! {
    /// What the operator wants of a backend.
    Admin, "an admin state" {
        /// In service.
        Ready = "ready",
        /// No new flows, old ones go on.
        Drain = "drain",
        /// No new flows, checks stop, live flows are reset.
        Maint = "maint",
    }
}

words! {
    /// What checks say of a backend.
    Health, "a health" {
        /// Answers.
        Up = "up",
        /// Does not.
        Down = "down",
        /// No verdict yet.
        Unknown = "unknown",
    }
}

words! {
    /// What happens to existing TCP flows of a backend that is down.
    OnDown, "an on-down policy" {
        /// Reset those that the backend no longer answers.
        Auto = "auto",
        /// Reset all.
        Reset = "reset",
        /// Keep all.
        Keep = "keep",
    }
}

words! {
    /// What happens to a new flow when no backend is usable.
    OnEmpty, "an on-empty policy" {
        /// RST, or port unreachable.
        Reject = "reject",
        /// Silence.
        Drop = "drop",
    }
}

words! {
    /// Which way a health check's probe goes.
    #[derive(Default)]
    Via, "a way of a health check" {
        /// To the backend's own address.
        #[default]
        Backend = "backend",
        /// To the VIP, by the backend's mode, as a client's packets go.
        Vip = "vip",
    }
}

words! {
    /// What an `attach` does when it ends.
    OnExit, "an on-exit policy" {
        /// Stop forwarding, remove every trace.
        Detach = "detach",
        /// Leave the data path running.
        Keep = "keep",
    }
}

words! {
    /// How the program is attached.
    XdpMode, "an XDP mode" {
        /// Native where the driver has it, else generic.
        Auto = "auto",
        /// In the driver.
        Native = "native",
        /// In the network stack.
        Generic = "generic",
    }
}

words! {
    /// Transport protocol.
    Protocol, "a protocol" {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

impl Protocol {
    /// Its IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// Who stated an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// `lb attach`'s flags.
    Flags,
    /// The command line, while running.
    Cli,
    /// The config file.
    File,
    /// A registry, by name.
    Registry(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flags => f.pad("flags"),
            Self::Cli => f.pad("cli"),
            Self::File => f.pad("file"),
            Self::Registry(name) => f.pad(&format!("registry:{name}")),
        }
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "flags" => Ok(Self::Flags),
            "cli" => Ok(Self::Cli),
            "file" => Ok(Self::File),
            _ => match text.strip_prefix("registry:") {
                Some(name) if !name.is_empty() => Ok(Self::Registry(name.to_owned())),
                _ => {
                    Err(Error::usage(format!("'{text}' is not a source")).hint("one of: flags cli file registry:NAME"))
                }
            },
        }
    }
}

macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(super) use serde_as_text;
serde_as_text!(Source, Vip);

/// Address, port and protocol that clients talk to: `10.0.0.10:80/tcp`, `[2001:db8::1]:53/udp`. Port 0: every port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vip {
    /// Destination address.
    pub address: IpAddr,
    /// Destination port; 0 = every port.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", SocketAddr::new(self.address, self.port), self.protocol))
    }
}

impl FromStr for Vip {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_vip(text, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipvs_words_are_understood() {
        assert_eq!("wlc".parse::<Scheduler>().unwrap(), Scheduler::LeastConn);
        assert_eq!("rr".parse::<Scheduler>().unwrap().to_string(), "round-robin");
    }

    #[test]
    fn sources_are_printed_as_they_are_typed() {
        for text in ["flags", "cli", "file", "registry:consul"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        assert!("registry:".parse::<Source>().is_err());
    }
}
