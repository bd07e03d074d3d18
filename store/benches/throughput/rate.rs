//! Operations a second.

use std::error::Error;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meshreduce_store::{Store, StoreError, TcpStore};

use crate::LONG;
use crate::server::Server;

/// What a client does again and again; it gets its number, and how often it has done it.
pub(crate) type Operation = fn(&TcpStore, usize, u64) -> Result<(), StoreError>;

/// Keys of a [`Store::multi_get`].
const MANY: [&str; 8] = ["0", "1", "2", "3", "4", "5", "6", "7"];

pub(crate) const OPERATIONS: [(&str, Operation); 6] = [
    ("set", |store, client, _| store.set(&format!("set/{client}"), &[7; 64])),
    ("get", |store, _, _| store.get("0", LONG).map(drop)),
    ("add", |store, _, _| store.add("sum", 1).map(drop)),
    ("compare_set", |store, client, turn| {
        let (old, new) = (turn.to_string(), (turn + 1).to_string());
        let old = if turn == 0 { "" } else { &old };
        store.compare_set(&format!("compare/{client}"), old.as_bytes(), new.as_bytes()).map(drop)
    }),
    ("wait, keys there", |store, _, _| store.wait(&MANY[..2], LONG)),
    ("multi_get of 8", |store, _, _| store.multi_get(&MANY, LONG).map(drop)),
];

/// So many clients of the server at `address`, each with the connections that it needs: torch's server keeps some that are made
/// waiting for seconds, so they are made one after another, before anything is measured.
pub(crate) fn connect(address: &str, clients: usize) -> Result<Vec<TcpStore>, StoreError> {
    let connect = |_| {
        let store = TcpStore::connect(address, LONG)?;
        store.add("connected", 1)?;
        Ok(store)
    };
    (0..clients).map(connect).collect()
}

/// Operations a second of all these clients, and microseconds of the server's processor for each.
pub(crate) fn measure(
    server: &Server,
    stores: &[TcpStore],
    operation: Operation,
    time: Duration,
) -> Result<(f64, f64), Box<dyn Error + Send + Sync>> {
    let (is_over, start) = (AtomicBool::new(false), Barrier::new(stores.len() + 1));
    stores[0].multi_set(&MANY.map(|key| (key, &[7; 64][..])))?;
    (0..stores.len()).try_for_each(|client| stores[0].delete(&format!("compare/{client}")).map(drop))?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = stores
            .iter()
            .enumerate()
            .map(|(client, store)| {
                let (is_over, start) = (&is_over, &start);
                scope.spawn(move || {
                    let ready = operation(store, client, 0);
                    start.wait();
                    ready?;
                    let mut turn = 1;
                    while !is_over.load(Ordering::Relaxed) {
                        operation(store, client, turn)?;
                        turn += 1;
                    }
                    Ok::<u64, StoreError>(turn - 1)
                })
            })
            .collect();
        start.wait();
        let (begin, cpu) = (Instant::now(), server.cpu());
        std::thread::sleep(time);
        is_over.store(true, Ordering::Relaxed);
        let mut sum = 0;
        for thread in threads {
            sum += thread.join().map_err(|_| "a client panicked")??;
        }
        let (took, cpu) = (begin.elapsed(), server.cpu() - cpu);
        Ok((sum as f64 / took.as_secs_f64(), cpu.as_secs_f64() * 1e6 / sum as f64))
    })
}
