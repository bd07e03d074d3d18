//! Channels whose two sides are of this process, with its own calls of the driver.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod cust;
mod ends;
