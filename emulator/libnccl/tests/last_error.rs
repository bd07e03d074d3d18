//! What `ncclGetLastError` says: one text for the process, so that this test has a process of its own.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::ptr;

use meshreduce_nccl_loader::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t};
use meshreduce_nccl_loader::{Error, NcclError, result};

#[test]
fn the_last_error_names_the_call_and_what_was_wrong() {
    support::open();
    let nothing_yet = NcclError::of("ncclSend", meshreduce_nccl_loader::sys::ncclResult_t(3)).unwrap();
    assert_eq!(nothing_yet.last, None);
    assert!(nothing_yet.message.contains("internal error"), "{nothing_yet}");
    support::ranks(1, |rank| {
        let memory = rank.device.buffer(&[0; 64]);
        let (comm, byte, sum) = (rank.comm, ncclDataType_t::UINT8, ncclRedOp_t::SUM);
        for (words, memory, count, data, op, root, comm) in [
            ("Reduce : comm argument is NULL", memory, 8, byte, sum, 0, ptr::null_mut()),
            ("corrupted comm object", memory, 8, byte, sum, 0, 0x1234_5678 as ncclComm_t),
            ("Reduce : invalid type 10", memory, 8, ncclDataType_t(10), sum, 0, comm),
            ("Reduce : invalid reduction operation 7", memory, 8, byte, ncclRedOp_t(7), 0, comm),
            ("Reduce : invalid root 1 (root should be in the 0..0 range)", memory, 8, byte, sum, 1, comm),
            (
                "Reduce : count 18446744073709551615 of uint8 is too large",
                memory,
                usize::MAX,
                byte,
                sum,
                0,
                comm,
            ),
            ("is not a valid pointer to 65 bytes", memory, 65, byte, sum, 0, comm),
        ] {
            // SAFETY: what is wrong is found before anything is done.
            let outcome =
                unsafe { result::reduce(memory, memory, count, data, op, root, comm, rank.device.stream) };
            let Err(Error::Nccl(error)) = outcome else { panic!("{words}: {outcome:?}") };
            let last = error.last.unwrap();
            assert!(last.starts_with("emulated node's stand-in for NCCL: "), "{last}");
            assert!(last.contains(words), "{last} does not say: {words}");
        }
        rank.destroy();
    });
}
