//! Support for the test suite: seeded randomness, the devices of this machine, paged batches, comparisons that say
//! where they fail, and a tiny model. No test lives here.

pub mod case;
pub mod compare;
pub mod cuda_sim;
pub mod devices;
pub mod driver;
pub mod http;
pub mod hybrid;
pub mod neuron_sim;
pub mod pages;
pub mod random;
pub mod schema;
pub mod tiny;

pub use case::{Allowed, Case};
pub use compare::{Tolerance, assert_bits, assert_close};
pub use devices::{TestDevice, for_each_device};
pub use hybrid::TinyHybrid;
pub use pages::Pages;
pub use random::Random;
pub use tiny::{Runner, TinyLlama};

/// Runs a check on every device of this machine, one after another: `each_device!("embed", |device| { ... })`. Reports
/// those that fail by name, and those that are absent.
#[macro_export]
macro_rules! each_device {
    ($subject:expr, $check:expr) => {
        $crate::for_each_device($subject, $check)
    };
}
