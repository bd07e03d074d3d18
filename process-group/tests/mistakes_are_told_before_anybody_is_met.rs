//! A mistake in the environment, which all ranks of a job have alike, is told by each of them, and before it looks for the job's store.

use meshreduce_process_group::{Error, init};

#[test]
fn a_rank_that_hosts_no_store_tells_its_own_mistake_and_does_not_wait_for_one() {
    let job = [("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "127.0.0.1")];
    // Nobody listens there.
    let elsewhere = [("MASTER_PORT", "1"), ("MESHREDUCE_BACKEND", "gloo")];
    for (name, value) in job.into_iter().chain(elsewhere) {
        // SAFETY: this is the only test of this program, and no thread of it reads the environment meanwhile.
        unsafe { std::env::set_var(name, value) };
    }
    let error = init().unwrap_err();
    assert!(matches!(error, Error::Config(_)), "{error}");
    for (name, value) in [("MESHREDUCE_BACKEND", "cpu:host"), ("TORCH_FR_BUFFER_SIZE", "lots")] {
        // SAFETY: as above.
        unsafe { std::env::set_var(name, value) };
    }
    let error = init().unwrap_err();
    assert!(matches!(error, Error::Recording(_)), "{error}");
}
