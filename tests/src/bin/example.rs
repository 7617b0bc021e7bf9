//! `cargo xtask example NAME`: a scenario of docs/scenarios/ in a lab of its own.

use lb_tests::scenarios::{list, run};

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1) {
        Some(name) => run(&name),
        None => {
            println!("{}", list());
            Ok(())
        }
    }
}
