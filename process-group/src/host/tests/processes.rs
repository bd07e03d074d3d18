//! Ranks that are processes: this program, started again for one rank each.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use meshreduce_store::FileStore;
use meshreduce_store::identity::HOST_ID;

use super::*;
use crate::tensor::BufferMut;
use crate::types::ReduceOp;

const RANK: &str = "MESHREDUCE_TEST_RANK";

/// Starts one rank for each letter of `hosts`, with `what` to do.
fn processes(folder: &Path, hosts: &str, what: &str) -> Vec<Child> {
    let name = "host::tests::processes::a_rank_that_is_a_process";
    let start = |(rank, host): (usize, char)| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([name, "--exact", "--ignored", "--nocapture"]).env(HOST_ID, host.to_string());
        let what = format!("{what} {rank} {} {}", hosts.len(), folder.display());
        command.env(RANK, what).env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
    };
    hosts.chars().enumerate().map(start).collect()
}

/// What a rank says until its end, which comes soon.
fn said(child: &mut Child) -> String {
    let mut text = String::new();
    let mut pipe = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let _ = pipe.read_to_string(&mut text);
        text
    });
    let limit = Instant::now() + FAR;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > limit {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    reader.join().unwrap()
}

#[test]
#[ignore = "other tests start it as a process"]
fn a_rank_that_is_a_process() {
    let Ok(text) = std::env::var(RANK) else { return };
    let words: Vec<&str> = text.split(' ').collect();
    if words[0] == "clean" {
        nothing_stays();
        return println!("ENDED: well");
    }
    let (rank, world) = (words[1].parse().unwrap(), words[2].parse().unwrap());
    let store: Arc<dyn Store> = Arc::new(FileStore::open(words[3]).unwrap());
    println!("COME");
    // Shorter than the parent waits: a rank that is killed before the others can know of it is missing in the end.
    let rank = Rank::within(Duration::from_secs(20), store, rank, world, &HostFactory::new());
    match words[0] {
        "once" => once(&rank),
        "last" => come_to_the_end(&rank),
        _ => println!("ENDED: {}", for_ever(&rank)),
    }
}

fn once(rank: &Rank) {
    for count in [1, 5000, 100_000] {
        let mut data = vec![rank.rank as f32; count];
        let tensor = data.tensor_mut();
        rank.call(&Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum }).unwrap();
        let sum = (rank.world * (rank.world - 1) / 2) as f32;
        assert!(data.iter().all(|value| *value == sum));
        let (next, before) = ((rank.rank + 1) % rank.world, (rank.rank + rank.world - 1) % rank.world);
        let mut inn = vec![0.0; count];
        let out = vec![rank.rank as f32; count];
        let calls = [
            Call::Send { input: crate::Buffer::tensor(&out), peer: next, tag: 1 },
            Call::Recv { output: inn.tensor_mut(), peer: Some(before), tag: 1 },
        ];
        rank.call(&Call::Batch(&calls)).unwrap();
        assert!(inn.iter().all(|value| *value == before as f32));
    }
    rank.backend.shutdown(FAR).unwrap();
    println!("ENDED: well");
}

/// All but rank 1 do.
fn come_to_the_end(rank: &Rank) {
    rank.barrier().unwrap();
    let mut word = [0_u8];
    if rank.rank == 1 {
        // All have left the barrier.
        for peer in [0, 2] {
            let call = Call::Recv { output: word.tensor_mut(), peer: Some(peer), tag: 0 };
            rank.call(&call).unwrap();
        }
        println!("ALONE");
        loop {
            std::thread::park();
        }
    }
    // Rank 1 may be gone as soon as it has the word.
    let _ = rank.call(&Call::Send { input: word.tensor_mut(), peer: 1, tag: 0 });
    let error = rank.backend.shutdown(FAR).unwrap_err();
    // Who asks later is told too, and so what the group leaves behind does not wait for the dead.
    let later = rank.backend.error();
    assert!(matches!(later, Some(Error::RankDied { rank: 1, .. })), "{later:?}");
    println!("ENDED: {error}");
}

/// Works until something fails.
fn for_ever(rank: &Rank) -> Error {
    // The meeting names who is missing, and a call does not.
    rank.deadline.set(None);
    let mut data = vec![rank.rank as f32; 30_000];
    loop {
        let tensor = data.tensor_mut();
        let small = tensor.slice(0, 100);
        let work = |call: &Call<'_>| rank.call(call).map(drop);
        let result = work(&Call::AllReduce { input: small, output: small, op: ReduceOp::Max })
            .and_then(|()| work(&Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Max }))
            .and_then(|()| work(&Call::Broadcast { tensor, root: rank.world - 1 }));
        if let Err(error) = result {
            return error;
        }
    }
}

/// Descriptors, threads, and mappings of segments of this process.
fn held() -> [usize; 3] {
    let entries = |path: &str| std::fs::read_dir(path).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    [entries("/proc/self/fd"), entries("/proc/self/task"), maps.matches("memfd:meshreduce").count()]
}

fn nothing_stays() {
    let before = held();
    // (Other programs have files there too.)
    let ours = |entry: &std::io::Result<std::fs::DirEntry>| {
        entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().contains("meshreduce"))
    };
    let in_memory = || std::fs::read_dir("/dev/shm").map_or(0, |all| all.filter(ours).count());
    let files = in_memory();
    let seen = std::sync::Mutex::new([0; 3]);
    for round in 0..10 {
        on_hosts("aab", |rank| {
            rank.barrier().unwrap();
            let mut data = [1.0; 10];
            let tensor = data.tensor_mut();
            let call = Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum };
            rank.call(&call).unwrap();
            rank.barrier().unwrap();
            *seen.lock().unwrap() = held();
            if round % 2 == 0 {
                // It ends by a failure as well, which some may see before they have left the barrier.
                let _ = rank.barrier();
                rank.backend.abort(&Error::ShutDown { group: "test".into() });
            }
        });
        assert!(seen.lock().unwrap()[2] >= 3, "segments are seen while they are there");
        // A thread that has been joined may be seen for a moment.
        let begun = std::time::Instant::now();
        while held() != before {
            assert!(begun.elapsed() < FAR, "round {round}: {:?}, and {before:?} before", held());
            std::thread::yield_now();
        }
    }
    assert_eq!(in_memory(), files);
}

#[test]
fn nothing_stays_behind() {
    let folder = tempfile::tempdir().unwrap();
    let text = said(&mut processes(folder.path(), "a", "clean").remove(0));
    assert!(text.contains("ENDED: well"), "{text}");
}

#[test]
fn processes_work_together_on_one_host_and_on_several() {
    for hosts in ["aa", "aab", "abab"] {
        let folder = tempfile::tempdir().unwrap();
        for mut child in processes(folder.path(), hosts, "once") {
            let text = said(&mut child);
            assert!(text.contains("ENDED: well"), "{hosts}: {text}");
        }
    }
}

/// Reads on until a rank has said something.
fn hear(child: &mut Child, word: &str) {
    let mut pipe = child.stdout.take().unwrap();
    let mut text = String::new();
    while !text.contains(word) {
        let mut byte = [0];
        pipe.read_exact(&mut byte).unwrap();
        text.push(char::from(byte[0]));
    }
}

#[test]
fn a_process_that_is_killed_while_the_others_shut_down_is_named_by_them() {
    for hosts in ["aaa", "aab", "abb"] {
        let folder = tempfile::tempdir().unwrap();
        let mut children = processes(folder.path(), hosts, "last");
        hear(&mut children[1], "ALONE");
        children[1].kill().unwrap();
        children[1].wait().unwrap();
        for rank in [0, 2] {
            let text = said(&mut children[rank]);
            assert!(text.contains("ENDED: rank 1 "), "{hosts}, rank {rank}: {text}");
        }
    }
}

#[test]
fn a_process_that_is_killed_at_any_moment_is_named_by_all_others() {
    for round in 0..20_u64 {
        let hosts = ["aa", "aab", "ab", "aaa"][round as usize % 4];
        let folder = tempfile::tempdir().unwrap();
        let mut children = processes(folder.path(), hosts, "for_ever");
        let victim = (round * 7 % 5) as usize % hosts.len();
        // From the moment on at which it begins to be made.
        hear(&mut children[victim], "COME");
        std::thread::sleep(Duration::from_millis(30 + round * round * 37 % 150));
        children[victim].kill().unwrap();
        children[victim].wait().unwrap();
        for (rank, child) in children.iter_mut().enumerate() {
            if rank != victim {
                let text = said(child);
                let line = text.lines().find(|line| line.contains("ENDED: ")).unwrap_or(&text);
                // Before the ranks were connected, a rank that has not come at all is missing, and with it, for one on another host,
                // those that were quicker to give up.
                let lists = ["rank {}", "ranks {}", "and {} did not connect"];
                let named = lists.iter().any(|list| line.contains(&list.replace("{}", &victim.to_string())));
                assert!(named, "round {round}, {hosts}, rank {rank} of victim {victim}: {line}");
            }
        }
    }
}
