//! compile

use super::{Observed, Tables};
use crate::state::Desired;

/// Compiles.
#[must_use]
pub fn compile(_desired: &Desired, _observed: &Observed) -> Tables {
    Tables::default()
}
