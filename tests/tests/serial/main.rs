//! End-to-end tests that depend on timing: one after the other, with the machine to themselves.

mod churn;
mod registries;
mod reload;
mod scenarios;
mod survival;
