//! A torch client on our server, our client on torch's servers.

use std::io::{BufRead as _, BufReader};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use meshreduce::store::{MAX_VALUE, PrefixStore, Store, StoreError, TcpStore};

use super::Check;
use super::modes::LONG;
use super::python::{Python, run};

const SHORT: Duration = Duration::from_millis(200);

/// Both directions, every operation.
///
/// # Errors
/// If no check can be run.
pub fn check(python: &Python, say: &mut dyn FnMut(&Check)) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    let mut add = |check: Check| {
        say(&check);
        checks.push(check);
    };
    add(Check::new("a torch client on our server", torch_client(python)));
    for (server, flag) in [("libuv", "1"), ("plain", "0")] {
        let name = format!("our client on torch's {server} server");
        match our_client(python, flag) {
            Ok(Some(why)) => add(Check::new(format!("{name}: there is {why}"), Ok(()))),
            result => add(Check::new(name, result.map(drop))),
        }
    }
    Ok(checks)
}

fn torch_client(python: &Python) -> Result<()> {
    let host = TcpStore::host("127.0.0.1:0")?;
    let address = host.local_addr();
    let mut command = python.command();
    command.args(["-c", include_str!("client.py")]).arg(address.ip().to_string());
    let text = run(command.arg(address.port().to_string()))?;
    let checks: usize = text.trim().parse().with_context(|| format!("its output: {text}"))?;
    ensure!(checks >= 12, "only {checks} checks were made");
    // What it has set is ours by the same name.
    ensure!(host.get("cs", SHORT)? == b"b" && host.get("pre/x", SHORT)? == b"1");
    Ok(())
}

/// What the server says in place of a port, if this torch has none of its kind.
fn our_client(python: &Python, libuv: &str) -> Result<Option<String>> {
    let mut server = python.command().args(["-c", include_str!("server.py"), libuv]).spawn()?;
    let result = (|| {
        let mut line = String::new();
        BufReader::new(server.stdout.take().context("its output")?).read_line(&mut line)?;
        if line.starts_with("none") {
            return Ok(Some(line.trim().to_owned()));
        }
        let port: u16 = line.trim().parse().with_context(|| format!("no port: {line}"))?;
        every_operation(&|| Ok(TcpStore::connect(("127.0.0.1", port), LONG)?)).map(|()| None)
    })();
    drop(server.stdin.take());
    let ended = server.wait()?;
    let none = result?;
    ensure!(ended.success(), "torch's server: {ended}");
    Ok(none)
}

/// Every operation that the peer has; those that came with later versions may be missing.
fn every_operation(connect: &dyn Fn() -> Result<TcpStore>) -> Result<()> {
    let (store, other) = (Arc::new(connect()?), connect()?);
    store.set("k", b"v1")?;
    ensure!(other.get("k", LONG)? == b"v1", "get");
    ensure!((store.add("n", 5)?, other.add("n", -2)?) == (5, 3), "add");
    ensure!(store.compare_set("cs", b"", b"a")? == b"a", "compare_set creates");
    ensure!(store.compare_set("cs", b"x", b"b")? == b"a", "compare_set of another value");
    ensure!(store.compare_set("cs", b"a", b"b")? == b"b", "compare_set exchanges");
    ensure!(store.compare_set("zz", b"x", b"x")? == b"x", "a look at nothing");
    ensure!(store.check(&["k", "n"])? && !store.check(&["k", "zz"])?, "check");
    match store.wait(&["k", "nowhere"], SHORT) {
        Err(StoreError::Timeout { keys, .. }) => ensure!(keys == ["nowhere"], "wait names {keys:?}"),
        other => anyhow::bail!("wait: {other:?}"),
    }
    ensure!(matches!(store.get("nowhere", SHORT), Err(StoreError::Timeout { .. })), "get gives up");
    std::thread::scope(|scope| -> Result<()> {
        let late = scope.spawn(|| other.get("late", LONG));
        std::thread::sleep(SHORT / 4);
        store.set("late", b"come")?;
        let got = late.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        ensure!(got == b"come", "get waits");
        Ok(())
    })?;
    ensure!(store.delete("k")? && !store.delete("k")?, "delete");
    let big = vec![7; MAX_VALUE];
    store.set("big", &big)?;
    ensure!(other.get("big", LONG)? == big, "the longest value");
    PrefixStore::new("pre", Arc::clone(&store))?.set("x", b"1")?;
    ensure!(other.get("pre/x", SHORT)? == b"1", "a prefix");
    store.append("ap", b"x")?;
    store.append("ap", b"y")?;
    store.multi_set(&[("a", b"1"), ("b", b"2")])?;
    ensure!(
        other.multi_get(&["ap", "a", "b"], SHORT)? == [&b"xy"[..], b"1", b"2"],
        "append, multi_set, multi_get"
    );
    ensure!(store.num_keys()? > 4, "num_keys");
    store.barrier("alone", 1, SHORT)?;
    if let Some(keys) = if_there(store.list_keys())? {
        ensure!(keys.iter().any(|key| key == "pre/x"), "list_keys: {keys:?}");
    }
    if if_there(store.queue_push("q", b"x"))?.is_some() {
        ensure!(other.queue_len("q")? == 1 && other.queue_pop("q", SHORT)? == b"x", "queues");
        ensure!(matches!(other.queue_pop("q", SHORT), Err(StoreError::Timeout { .. })), "an empty queue");
    }
    ensure!(store.get("cs", SHORT)? == b"b", "the store goes on");
    Ok(())
}

fn if_there<T>(result: Result<T, StoreError>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::NotSupported { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_server_has_every_operation() {
        let host = TcpStore::host("127.0.0.1:0").expect("a store");
        every_operation(&|| Ok(TcpStore::connect(host.local_addr(), LONG)?)).expect("every operation");
        assert!(host.list_keys().is_ok() && host.queue_len("q").is_ok());
    }
}
