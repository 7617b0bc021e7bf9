//! What schedulers need from time to time: the next step of slow starts, and true counts of live flows.

use std::time::{Duration, Instant};

use super::Daemon;
use crate::{dataplane, reconcile::slow_start, state::Scheduler};

/// How often flows that fell silent are counted down, where a scheduler looks at counts.
const SWEEP: Duration = Duration::from_secs(60);

impl Daemon {
    /// Called once a second.
    pub(super) fn tend_schedulers(&mut self) {
        let counting = self.desired.services.values().any(|service| service.scheduler == Scheduler::LeastConn);
        if counting && self.swept.elapsed() >= SWEEP {
            let over = self.plane.sweep(dataplane::now());
            tracing::debug!(over, "swept");
            self.swept = Instant::now();
        }
        self.observed.now = dataplane::now();
        if self.slow_starts != slow_start::parts(&self.desired, &self.observed)
            && let Err(error) = self.apply()
        {
            tracing::error!(%error, "apply the next step of a slow start");
        }
    }
}
