use std::panic::Location;
use std::process::{Command, Stdio};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::call::Call;
use crate::flight_recorder::{Begun, Caller, Sizes, Status};
use crate::tensor::{Parts, Tensor};
use crate::types::{DType, Device, ReduceOp};

/// 2026-11-26 00:00:00, in nanoseconds.
const WALL: u64 = 1_795_651_200_000_000_000;

/// The group of ranks 3, 5 and 9, of which this is 5.
fn recorder() -> FlightRecorder {
    let recorder = FlightRecorder::new(5, 64);
    recorder.add_group(&"7".into(), "tensor parallel", &Arc::from([3, 5, 9]));
    recorder
}

fn tensor(count: usize) -> Tensor {
    Tensor { address: 0, count, dtype: DType::Bf16, device: Device::Cpu }
}

/// The entry of one call.
fn entry(call: &Call<'_>) -> DumpedEntry {
    let recorder = recorder();
    recorder.begin(&Begun {
        group: 0,
        backend: &"host".into(),
        call,
        collective_sequence: 4,
        p2p_sequence: 2,
        created: Instant::now(),
        deadline: None,
        location: Location::caller(),
    });
    recorder.dump().entries.remove(0)
}

/// Name, input sizes, output sizes.
fn seen(call: &Call<'_>) -> (String, Vec<Vec<u64>>, Vec<Vec<u64>>) {
    let entry = entry(call);
    assert_eq!(entry.input_dtypes, vec!["BFloat16"; entry.input_sizes.len()]);
    assert_eq!(entry.output_dtypes, vec!["BFloat16"; entry.output_sizes.len()]);
    (entry.profiling_name, entry.input_sizes, entry.output_sizes)
}

/// One call that has ended and one that goes on, at known times.
fn known() -> Snapshot {
    let now = Instant::now();
    let at = |milliseconds| now - Duration::from_millis(milliseconds);
    let entry = Entry {
        record: 40,
        group: 0,
        backend: "host".into(),
        operation: Operation::AllReduce,
        batched: None,
        device: Some(Device::Cpu),
        dtype: Some(DType::F32),
        inputs: Sizes::new([4]),
        outputs: Sizes::new([4]),
        has_uneven_parts: false,
        peer: None,
        collective_sequence: 1,
        p2p_sequence: 0,
        is_p2p: false,
        is_captured: false,
        state: State::Completed,
        created: at(30),
        started: Some(at(20)),
        ended: Some(at(10)),
        deadline: Some(Duration::from_nanos(1_500_000)),
        location: Location::caller(),
        caller: Caller { thread_id: 77, thread_name: Some("trainer".into()) },
    };
    let barrier = Entry {
        record: 41,
        backend: "mesh".into(),
        operation: Operation::Barrier,
        device: Some(Device::Cuda(1)),
        dtype: None,
        inputs: Sizes::default(),
        outputs: Sizes::default(),
        collective_sequence: 2,
        state: State::Scheduled,
        created: now,
        started: None,
        ended: None,
        deadline: None,
        caller: Caller { thread_id: 78, thread_name: None },
        ..entry.clone()
    };
    let group = |name: &str, ranks: &[usize], status| RecordedGroup {
        name: name.into(),
        description: format!("group {name}").into(),
        ranks: ranks.into(),
        status,
    };
    let status = Status { last_enqueued: 2, last_started: 1, last_completed: 1 };
    Snapshot {
        rank: 1,
        groups: vec![group("0", &[0, 1], status), group("late", &[1], Status::default())],
        entries: vec![entry, barrier],
        moment: (now, UNIX_EPOCH + Duration::from_nanos(WALL)),
    }
}

#[test]
fn the_json_of_a_known_snapshot_is_this() {
    let snapshot = known();
    let (file, line) = (snapshot.entries[0].location.file(), snapshot.entries[0].location.line());
    let mut json = Vec::new();
    Dump::from(&snapshot).write_json(&mut json).unwrap();
    let found: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let wanted = serde_json::json!({
        "version": "2.10",
        "comm_lib_version": format!("meshreduce {}", env!("CARGO_PKG_VERSION")),
        "pg_config": {
            "0": {"name": "0", "desc": "group 0", "ranks": "[0, 1]"},
            "late": {"name": "late", "desc": "group late", "ranks": "[1]"},
        },
        "pg_status": {
            "0": {"last_enqueued_collective": "2", "last_started_collective": "1", "last_completed_collective": "1"},
            "1": {"last_enqueued_collective": "-1", "last_started_collective": "-1", "last_completed_collective": "-1"},
        },
        "entries": [
            {
                "frames": [{"name": "all_reduce on host", "filename": file, "line": line}],
                "record_id": 40,
                "pg_id": 0,
                "process_group": ["0", "group 0"],
                "thread_name": "trainer",
                "thread_id": "77",
                "collective_seq_id": 1,
                "p2p_seq_id": 0,
                "op_id": 1,
                "profiling_name": "gloo:all_reduce",
                "time_created_ns": WALL - 30_000_000,
                "input_sizes": [[4]],
                "input_dtypes": ["Float"],
                "output_sizes": [[4]],
                "output_dtypes": ["Float"],
                "state": "completed",
                "time_discovered_started_ns": WALL - 20_000_000,
                "time_discovered_completed_ns": WALL - 10_000_000,
                "retired": true,
                "timeout_ms": 2,
                "is_p2p": false,
            },
            {
                "frames": [{"name": "barrier on mesh", "filename": file, "line": line}],
                "record_id": 41,
                "pg_id": 0,
                "process_group": ["0", "group 0"],
                "thread_name": "",
                "thread_id": "78",
                "collective_seq_id": 2,
                "p2p_seq_id": 0,
                "op_id": 2,
                "profiling_name": "nccl:barrier",
                "time_created_ns": WALL,
                "input_sizes": [],
                "input_dtypes": [],
                "output_sizes": [],
                "output_dtypes": [],
                "state": "scheduled",
                "time_discovered_started_ns": 0,
                "time_discovered_completed_ns": 0,
                "retired": false,
                "timeout_ms": 0,
                "is_p2p": false,
            },
        ],
    });
    assert_eq!(found, wanted);
}

/// Prints a pickle with every value's type, and checks what JSON cannot say.
const READ: &str = r#"
import json, pickle, sys
dump = pickle.load(sys.stdin.buffer)
assert type(dump) is dict and list(dump) == ["version", "comm_lib_version", "pg_config", "pg_status", "entries"]
for entry in dump["entries"]:
    assert type(entry["process_group"]) is tuple and entry["retired"] in (True, False)
    for time in ("time_discovered_started_ns", "time_discovered_completed_ns"):
        assert entry[time] is None or type(entry[time]) is int
        entry[time] = entry[time] or 0
for status in dump["pg_status"].values():
    for name, number in status.items():
        assert type(number) is int
        status[name] = str(number)
json.dump(dump, sys.stdout)
"#;

/// What python3 reads in a pickle; `None` if there is none.
fn read_by_python(pickle: &[u8]) -> Option<serde_json::Value> {
    let mut command = Command::new("python3");
    let mut python = command
        .args(["-c", READ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .inspect_err(|error| eprintln!("skipping: python3 does not start: {error}"))
        .ok()?;
    io::Write::write_all(&mut python.stdin.take().unwrap(), pickle).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn python_reads_in_the_pickle_what_is_in_the_json() {
    let dump = Dump::from(&known());
    let (mut pickle, mut json) = (Vec::new(), Vec::new());
    dump.write_pickle(&mut pickle).unwrap();
    dump.write_json(&mut json).unwrap();
    if let Some(found) = read_by_python(&pickle) {
        assert_eq!(found, serde_json::from_slice::<serde_json::Value>(&json).unwrap());
    }
}

#[test]
fn an_empty_recorder_and_great_numbers_survive_the_pickle() {
    let mut snapshot = known();
    snapshot.groups[0].ranks = (0..300).collect();
    for entry in &mut snapshot.entries {
        (entry.record, entry.collective_sequence, entry.p2p_sequence) = (u64::MAX, i64::MAX as u64, u64::MAX);
        (entry.inputs, entry.deadline) = (Sizes::new([usize::MAX; 20]), Some(Duration::MAX));
        entry.caller.thread_name = Some("naïve \u{1f980} \" \\ \n".into());
    }
    for dump in [Dump::from(&snapshot), FlightRecorder::new(0, 0).dump()] {
        let (mut pickle, mut json) = (Vec::new(), Vec::new());
        dump.write_pickle(&mut pickle).unwrap();
        dump.write_json(&mut json).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        if let Some(entry) = dump.entries.first() {
            assert_eq!((entry.record_id, entry.op_id, entry.timeout_ms), (i64::MAX, i64::MAX, i64::MAX));
            assert_eq!(entry.input_sizes, [[u64::MAX]]);
        }
        if let Some(found) = read_by_python(&pickle) {
            assert_eq!(found, json);
        }
    }
}

#[test]
fn names_and_sizes_are_those_that_the_analyser_compares() {
    let op = ReduceOp::Sum;
    let (one, three) = (tensor(2), tensor(6));
    let all_reduce = Call::AllReduce { input: one, output: one, op };
    let all_gather = |outputs| Call::AllGather { input: one, outputs };
    let reduce_scatter = |inputs| Call::ReduceScatter { inputs, output: one, op };
    let even = [one, one, one];
    let uneven = [tensor(3), one, tensor(1)];
    let scatter = |inputs| Call::Scatter { inputs, output: one, root: 1 };
    let to = |peer| Call::Send { input: one, peer, tag: 0 };
    let from = |peer| Call::Recv { output: one, peer, tag: 0 };
    let (whole, listed) = (Parts::Whole(three), Parts::List(&even));
    type Shape<'a> = &'a [&'a [u64]];
    let cases: &[(Call<'_>, &str, Shape<'_>, Shape<'_>)] = &[
        (all_reduce, "all_reduce", &[&[2]], &[&[2]]),
        (Call::Reduce { input: one, output: None, op, root: 0 }, "reduce", &[&[2]], &[&[2]]),
        (Call::Reduce { input: one, output: Some(one), op, root: 1 }, "reduce", &[&[2]], &[&[2]]),
        (Call::Broadcast { tensor: one, root: 0 }, "broadcast", &[&[2]], &[&[2]]),
        (all_gather(whole), "all_gather", &[&[2]], &[&[3, 2]]),
        (all_gather(listed), "all_gather", &[&[2]], &[&[3, 2]]),
        (all_gather(Parts::List(&uneven)), "all_gather_v", &[&[]], &[&[6]]),
        (reduce_scatter(whole), "reduce_scatter", &[&[3, 2]], &[&[2]]),
        (reduce_scatter(Parts::List(&uneven)), "reduce_scatter_v", &[&[6]], &[&[]]),
        (Call::Gather { input: one, outputs: None, root: 0 }, "gather", &[&[2]], &[]),
        (Call::Gather { input: one, outputs: Some(listed), root: 1 }, "gather", &[&[2]], &[&[6]]),
        (scatter(None), "scatter", &[], &[&[2]]),
        (scatter(Some(whole)), "scatter", &[&[6]], &[&[2]]),
        (Call::AllToAll { inputs: Parts::List(&uneven), outputs: whole }, "all_to_all", &[&[6]], &[&[6]]),
        (to(0), "send 1->0", &[&[2]], &[]),
        (from(Some(2)), "recv 1<-2", &[], &[&[2]]),
        (from(None), "recv 1<-?", &[], &[&[2]]),
        (Call::Barrier { device: Device::Cpu }, "barrier", &[], &[]),
        (Call::Batch(&[all_reduce, all_reduce]), "allreduce_coalesced", &[&[2], &[2]], &[&[2], &[2]]),
        (Call::Batch(&[all_gather(whole)]), "all_gather_into_tensor_coalesced", &[&[2]], &[&[6]]),
        (Call::Batch(&[all_gather(Parts::List(&uneven))]), "coalesced", &[&[2]], &[&[6]]),
        (Call::Batch(&[reduce_scatter(listed)]), "reduce_scatter_tensor_coalesced", &[&[6]], &[&[2]]),
        (Call::Batch(&[to(0), from(Some(0))]), "coalesced", &[&[2], &[0]], &[&[0], &[2]]),
    ];
    for (call, name, inputs, outputs) in cases {
        let found = seen(call);
        let shape = |of: Shape<'_>| of.iter().map(|size| size.to_vec()).collect::<Vec<_>>();
        assert_eq!(found, (format!("gloo:{name}"), shape(inputs), shape(outputs)), "{call:?}");
    }
}

#[test]
fn peers_are_places_in_the_sorted_list_of_ranks() {
    let recorder = FlightRecorder::new(5, 4);
    let group = recorder.add_group(&"turned".into(), "", &Arc::from([9, 5, 3]));
    let input = tensor(1);
    recorder.begin(&Begun {
        group,
        backend: &"host".into(),
        call: &Call::Send { input, peer: 0, tag: 0 },
        collective_sequence: 0,
        p2p_sequence: 1,
        created: Instant::now(),
        deadline: None,
        location: Location::caller(),
    });
    // Rank 0 of the group is 9, the last of 3, 5, 9.
    assert_eq!(recorder.dump().entries[0].profiling_name, "gloo:send 1->2");
}

#[test]
fn a_send_has_no_number_that_a_collective_has() {
    let numbers = |call: &Call<'_>| {
        let entry = entry(call);
        (entry.collective_seq_id, entry.p2p_seq_id, entry.op_id, entry.is_p2p)
    };
    assert_eq!(numbers(&Call::Barrier { device: Device::Cpu }), (4, 2, 6, false));
    let send = Call::Send { input: tensor(1), peer: 0, tag: 0 };
    assert_eq!(numbers(&send), (4, 1_000_000_002, 6, true));
    assert_eq!(numbers(&Call::Batch(&[send])), (4, 1_000_000_002, 6, true));
}

#[test]
fn a_failed_call_is_in_its_last_state() {
    let recorder = recorder();
    let call = Call::Barrier { device: Device::Cpu };
    for started in [true, false] {
        let id = recorder.begin(&Begun {
            group: 0,
            backend: &"host".into(),
            call: &call,
            collective_sequence: 1,
            p2p_sequence: 0,
            created: Instant::now(),
            deadline: None,
            location: Location::caller(),
        });
        if started {
            recorder.started(id, Instant::now());
        }
        recorder.ended(id, false, Instant::now());
    }
    let entries = recorder.dump().entries;
    assert_eq!((entries[0].state, entries[0].retired), ("started", true));
    assert_eq!((entries[1].state, entries[1].retired), ("scheduled", true));
    assert!(entries.iter().all(|entry| entry.time_discovered_completed_ns.is_none()));
}

proptest! {
    #[test]
    fn wall_times_keep_the_distance_to_the_moment(before in 0_u64..1 << 50, after in 0_u64..1 << 50) {
        let now = Instant::now();
        let moment = (now, UNIX_EPOCH + Duration::from_nanos(WALL));
        // A machine that started lately has no instant that long ago.
        if let Some(at) = now.checked_sub(Duration::from_nanos(before)) {
            prop_assert_eq!(wall_clock(moment, at), (WALL - before) as i64);
        }
        prop_assert_eq!(wall_clock(moment, now + Duration::from_nanos(after)), (WALL + after) as i64);
    }
}
