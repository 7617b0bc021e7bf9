//! Keys of `[service.health]`, and which of them go together.

use super::{Kind, Table, key};

pub(super) static HEALTH: Table = Table {
    path: "service.health",
    help: "How the backends of a service are checked. Which keys go together depends on `type`.",
    keys: &[
        key(
            "type",
            Kind::Word(&["tcp", "http", "https", "udp", "grpc", "none"]),
            "tcp; none for UDP",
            r#""http""#,
            "What is asked: a TCP connection, a GET, a datagram, gRPC's health service, or nothing (always up).",
        )
        .also(&["kind", "protocol", "mode"]),
        key("path", Kind::Text, "/", r#""/healthz""#, "http, https: path of the GET.")
            .also(&["uri", "url", "endpoint"]),
        key(
            "host",
            Kind::Text,
            "the VIP",
            r#""www.example.org""#,
            "http, https, grpc: the Host header (`:authority`).",
        ),
        key("port", Kind::Number(1, 65535), "the backend's", "8081", "Check this port instead of the backend's."),
        key(
            "expect_status",
            Kind::Either(&[Kind::Number(100, 599), Kind::Text]),
            "200-399",
            r#""200,301-302""#,
            "http, https: statuses that are up.",
        )
        .also(&["status", "expected_status", "http_status"]),
        key("expect_body", Kind::Text, "anything", r#""ok""#, "http, https: text that must be in the body.")
            .also(&["body", "match", "contains"]),
        key(
            "send",
            Kind::Text,
            "nothing",
            r"'PING\r\n'",
            r"tcp, udp: what is sent, best in TOML's single quotes; escapes `\r \n \t \0 \\ \xNN`, or `hex:00ff`.",
        ),
        key("expect", Kind::Text, "nothing", r#""PONG""#, "tcp, udp: what must be in the answer; written like `send`."),
        key("service", Kind::Text, "the whole server", r#""my.Service""#, "grpc: the service that is asked about."),
        key("tls", Kind::Flag, "false", "true", "grpc: over TLS.").also(&["ssl"]),
        key(
            "server_name",
            Kind::Text,
            "host, or the address",
            r#""www.example.org""#,
            "https, grpc over TLS: the name (SNI).",
        )
        .also(&["sni"]),
        key(
            "ca_file",
            Kind::Text,
            "the system's",
            r#""/etc/lb/ca.pem""#,
            "https, grpc over TLS: trusted certificates, PEM.",
        )
        .also(&["ca", "cafile"]),
        key(
            "verify",
            Kind::Flag,
            "true with ca_file, else false",
            "true",
            "https, grpc over TLS: whether the certificate is verified.",
        ),
        key(
            "via",
            Kind::Word(&["backend", "vip"]),
            "backend",
            r#""vip""#,
            "Which way the check goes: to the backend's own address, or to the VIP as packets of clients do.",
        ),
        key("interval", Kind::Time("100ms", "1d"), "2s", r#""5s""#, "Time between two checks.").also(&[
            "every",
            "period",
            "delay_loop",
        ]),
        key(
            "timeout",
            Kind::Time("1ms", "1d"),
            "1s, or the interval where that is shorter",
            r#""500ms""#,
            "Time that a check may take; no longer than the interval.",
        ),
        key("rise", Kind::Number(1, 1000), "2", "2", "Successes in a row that make a down backend up.")
            .also(&["healthy_threshold", "up"]),
        key("fall", Kind::Number(1, 1000), "3", "3", "Failures in a row that make an up backend down.").also(&[
            "unhealthy_threshold",
            "down",
            "retries",
        ]),
    ],
};

/// The types of health check that a key of `[service.health]` goes with; none = all.
#[must_use]
pub fn health_types(key: &str) -> &'static [&'static str] {
    match key {
        "path" | "expect_status" | "expect_body" => &["http", "https"],
        "host" => &["http", "https", "grpc"],
        "send" | "expect" => &["tcp", "udp"],
        "service" | "tls" => &["grpc"],
        "server_name" | "ca_file" | "verify" => &["https", "grpc"],
        _ => &[],
    }
}

/// The key of `[service.health]` of this name.
#[must_use]
pub fn health_key(name: &str) -> Option<&'static str> {
    HEALTH.key(name).map(|key| key.name)
}
