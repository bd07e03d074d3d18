//! What errors say.

use super::*;

#[test]
fn messages_name_what_is_needed_to_act() {
    let driver = DriverError {
        call: "cuIpcOpenMemHandle",
        code: 217,
        name: "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED".into(),
        description: "peer access is not supported between these two devices".into(),
    };
    let launch = |count| Some(LaunchDescriptor::all_reduce(Algorithm::OneShot, DType::Bf16, Op::Sum, count));
    let second = Duration::from_secs(1);
    let cases = [
        (Error::NoSuchDevice { ordinal: 8, count: 2 }, "no CUDA device 8: this process sees 2"),
        (
            Error::DriverTooOld { found: CudaVersion(11020), needed: CudaVersion(11040) },
            "the CUDA driver is too old: it supports CUDA 11.2, 11.4 is needed",
        ),
        (
            Error::RanksMissing { ranks: vec![1, 2, 5], step: "first exchange", waited: second },
            "ranks 1, 2 and 5 did not come to the first exchange within 1s",
        ),
        (
            Error::RankDied { rank: 3, pid: 77, step: "second exchange" },
            "rank 3 (process 77) died before the second exchange",
        ),
        (
            Error::CorruptPayload { key: "a/first/1".into(), rank: 1, problem: "wrong checksum".into() },
            "the payload of rank 1 under a/first/1 is corrupt: wrong checksum",
        ),
        (
            Error::ConfiguredDifferently {
                field: "lanes".into(),
                ranks: (0, 4),
                values: ("1".into(), "2".into()),
            },
            "configured differently: lanes is 1 on rank 0 and 2 on rank 4",
        ),
        (
            Error::IpcRefused { rank: 0, peer: 4, namespaces: None, source: driver },
            "rank 0 may not open the memory of rank 4: cuIpcOpenMemHandle failed with \
             CUDA_ERROR_PEER_ACCESS_UNSUPPORTED (217): peer access is not supported between these two devices",
        ),
        (
            Error::PeerTimeout {
                rank: 0,
                peer: 3,
                block: 2,
                phase: 0,
                epoch_wanted: 18,
                epoch_seen: 17,
                waited: second,
            },
            "rank 0 gave up waiting for rank 3 after 1s: block 2, phase 0, epoch 18 wanted, 17 seen",
        ),
        (
            Error::PeerAborted { origin: 2, culprit: 3, kind: RecordKind::PeerTimeout },
            "rank 2 ended the collective: it gave up waiting, and blames rank 3",
        ),
        (
            Error::LaunchMismatch { rank: 0, peer: 1, launched: launch(8), peer_launched: launch(16) },
            "launch mismatch: rank 0 launched one-shot sum of 8 bf16 elements, rank 1 launched one-shot sum of \
             16 bf16 elements",
        ),
        (
            Error::PartialOverlap { input: 0x100, output: 0x110, bytes: 64 },
            "64 bytes of input at 0x100 and output at 0x110 overlap in part",
        ),
        (Error::Misaligned { address: 0x101, alignment: 2 }, "address 0x101 is not a multiple of 2"),
        (Error::Closed { rank: 1, peer: 0 }, "rank 0 closed the communicator while rank 1 still used it"),
    ];
    for (error, text) in cases {
        assert_eq!(error.to_string(), text);
    }
    let twice = Error::DeviceUsedTwice { ranks: (0, 1), device: "0000:1b:00.0".into() }.to_string();
    assert!(twice.contains("ranks 0 and 1") && twice.contains("allow_shared_devices"), "{twice}");
}

/// What a chain of errors says, a line for each.
fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}

#[test]
fn no_link_of_a_chain_says_again_what_stands_in_the_one_before() {
    let driver = || DriverError {
        call: "cuLaunchKernel",
        code: 400,
        name: "CUDA_ERROR_INVALID_HANDLE".into(),
        description: "invalid resource handle".into(),
    };
    let refused = || std::io::Error::other("too many open files");
    let errors = [
        Error::Store(StoreError::Lost { place: "tcp://a:1".into(), source: Box::new(refused()) }),
        Error::IpcRefused { rank: 0, peer: 1, namespaces: None, source: driver() },
        Error::KernelsRefused { name: "one_shot_w2".into(), source: driver(), log: "line 1".into() },
        Error::KernelFault(driver()),
        Error::StreamNotOnDevice { device: 0, source: driver() },
        Error::System { what: "cannot open a socket".into(), source: refused() },
        Error::Driver(driver()),
    ];
    for error in errors {
        let chain = chain(&error);
        for (at, said) in chain.iter().enumerate() {
            let again = chain[..at].iter().any(|before| before.contains(said.as_str()));
            assert!(!again, "{chain:#?}");
        }
        let below = ["INVALID_HANDLE", "too many open files"];
        assert!(below.iter().any(|text| chain[0].contains(text)), "{chain:#?}");
    }
}

#[test]
fn kinds_say_what_there_is_to_do() {
    let of = |error: Error| error.kind();
    assert_eq!(of(Error::NoSuchLane { lane: 2, lanes: 1 }), ErrorKind::Usage);
    assert_eq!(of(Error::Capturing), ErrorKind::Usage);
    assert_eq!(of(Error::Abandoned { step: "first exchange" }), ErrorKind::Rendezvous);
    assert_eq!(of(Error::Aborted), ErrorKind::Communicator);
    let waited = Duration::from_secs(1);
    assert_eq!(of(Error::CloseTimeout { ranks: vec![1], waited }), ErrorKind::Communicator);
    assert_eq!(of(Error::Nvml("no driver".into())), ErrorKind::Machine);
}
