//! Operations per second of a TCP store, for one client and for many: of this crate's server and, beside it, of torch's.
//!
//! `cargo bench -p meshreduce-store --bench throughput -- --python PYTHON` with a Python that has torch, or with the variable
//! `MESHREDUCE_TORCH_PYTHON`; without, torch's server is left out, aloud. The servers are processes of their own, the clients
//! are this crate's, and rounds alternate between the servers, so that what else the machine does falls on both.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use meshreduce_store::{Store, StoreError, TcpStore};
use serde_json::json;

const LONG: Duration = Duration::from_secs(60);

/// Measures operations per second of TCP stores.
#[derive(Parser)]
struct Options {
    /// A Python that has torch, to measure its server too.
    #[arg(long, env = "MESHREDUCE_TORCH_PYTHON")]
    python: Option<String>,
    /// Milliseconds of a measurement.
    #[arg(long, default_value_t = 500)]
    milliseconds: u64,
    /// Measurements of each kind, of which the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Clients at once, each in a thread of its own.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64])]
    clients: Vec<usize>,
    /// One JSON object a line in place of the table.
    #[arg(long)]
    json: bool,
    /// Only host a store, as the other side of a measurement.
    #[arg(long, hide = true)]
    serve: bool,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a client does again and again; it gets its number, and how often it has done it.
type Operation = fn(&TcpStore, usize, u64) -> Result<(), StoreError>;

const OPERATIONS: [(&str, Operation); 5] = [
    ("set", |store, client, _| store.set(&format!("set/{client}"), &[7; 64])),
    ("get", |store, _, _| store.get("present", LONG).map(drop)),
    ("add", |store, _, _| store.add("sum", 1).map(drop)),
    ("compare_set", |store, client, turn| {
        let (old, new) = (turn.to_string(), (turn + 1).to_string());
        let old = if turn == 0 { "" } else { &old };
        store.compare_set(&format!("compare/{client}"), old.as_bytes(), new.as_bytes()).map(drop)
    }),
    ("wait", |store, _, _| store.wait(&["present", "too"], LONG)),
];

/// A process that hosts a store, until it is dropped.
struct Server {
    name: &'static str,
    child: Child,
    address: String,
}

impl Server {
    /// Starts a process that prints an address, or a port of the loopback interface, on its first line that has one.
    fn start(name: &'static str, command: &mut Command) -> Result<Self, Box<dyn Error>> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let address = lines.next().ok_or_else(|| format!("{name} ended before it listened"))??;
        Ok(Self { name, child, address })
    }

    fn own() -> Result<Self, Box<dyn Error>> {
        Self::start("meshreduce", Command::new(std::env::current_exe()?).arg("--serve"))
    }

    fn torch(python: &str) -> Result<Self, Box<dyn Error>> {
        let program = "import sys, torch.distributed\n\
             store = torch.distributed.TCPStore('127.0.0.1', 0, None, True, wait_for_workers=False)\n\
             print(f'127.0.0.1:{store.port}', flush=True)\n\
             sys.stdin.read()";
        Self::start("torch", Command::new(python).args(["-c", program]).stderr(Stdio::null()))
    }

    /// Operations per second of so many clients.
    fn measure(
        &self,
        operation: Operation,
        clients: usize,
        time: Duration,
    ) -> Result<f64, Box<dyn Error + Send + Sync>> {
        let (is_over, start) = (AtomicBool::new(false), Barrier::new(clients + 1));
        let stores: Result<Vec<_>, _> =
            (0..clients).map(|_| TcpStore::connect(&*self.address, LONG)).collect();
        let stores = stores?;
        stores[0].multi_set(&[("present", &[7; 64]), ("too", b"")])?;
        (0..clients).try_for_each(|client| stores[0].delete(&format!("compare/{client}")).map(drop))?;
        std::thread::scope(|scope| {
            let threads: Vec<_> = stores
                .iter()
                .enumerate()
                .map(|(client, store)| {
                    let (is_over, start) = (&is_over, &start);
                    scope.spawn(move || {
                        // The first time makes a connection, which is not measured.
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
            let begin = Instant::now();
            std::thread::sleep(time);
            is_over.store(true, Ordering::Relaxed);
            let mut sum = 0;
            for thread in threads {
                sum += thread.join().map_err(|_| "a client panicked")??;
            }
            Ok(sum as f64 / begin.elapsed().as_secs_f64())
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Each ends with its standard input, and one that does not is not waited for.
        drop(self.child.stdin.take());
        let end = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn serve() -> Result<(), Box<dyn Error>> {
    let store = TcpStore::host("127.0.0.1:0")?;
    println!("{}", store.local_addr());
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    store.close(Duration::ZERO);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    if options.serve {
        return serve();
    }
    let mut servers = vec![Server::own()?];
    match &options.python {
        Some(python) => servers.push(Server::torch(python)?),
        None => {
            eprintln!("skipping torch's server: neither --python nor MESHREDUCE_TORCH_PYTHON names a Python")
        }
    }
    let time = Duration::from_millis(options.milliseconds);
    let rounds = options.rounds.max(1);
    let cells = OPERATIONS.len() * options.clients.len();
    let mut rows = Vec::new();
    for (name, operation) in OPERATIONS {
        for &clients in &options.clients {
            let mut found = vec![Vec::new(); servers.len()];
            for round in 0..rounds {
                eprint!(
                    "\r{}/{cells} {name}, {clients} clients, round {}/{rounds}   ",
                    rows.len() + 1,
                    round + 1
                );
                io::stderr().flush()?;
                for (server, found) in servers.iter().zip(&mut found) {
                    let rate = server.measure(operation, clients, time);
                    found.push(rate.map_err(|error| format!("{}: {error}", server.name))?);
                }
            }
            rows.push((name, clients, found.into_iter().map(median).collect::<Vec<f64>>()));
        }
    }
    eprintln!("\r{:60}\r", "");
    let mut out = String::new();
    if options.json {
        for (name, clients, rates) in &rows {
            for (server, rate) in servers.iter().zip(rates) {
                let row = json!({ "operation": name, "clients": clients, "server": server.name, "per_second": rate });
                writeln!(out, "{row}")?;
            }
        }
    } else {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED);
        let mut header = vec!["operation".to_owned(), "clients".to_owned()];
        header.extend(servers.iter().map(|server| format!("{} /s", server.name)));
        header.extend((servers.len() > 1).then(|| "ratio".to_owned()));
        table.set_header(header);
        for (name, clients, rates) in &rows {
            let mut row = vec![(*name).to_owned(), clients.to_string()];
            row.extend(rates.iter().map(|rate| format!("{rate:.0}")));
            row.extend((rates.len() > 1).then(|| format!("{:.2}", rates[0] / rates[1])));
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(out, "{table}")?;
    }
    print!("{out}");
    Ok(())
}
