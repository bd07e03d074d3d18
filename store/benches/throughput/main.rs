//! A TCP store beside torch's: operations a second, and how long a rendezvous takes.
//!
//! `cargo bench -p meshreduce-store --bench throughput -- --python PYTHON` with a Python that has torch, or with the variable
//! `MESHREDUCE_PYTHON`; without, torch is left out, aloud. The servers are processes of their own, the clients are this crate's
//! for both (and torch's own, in Python, for the rendezvous besides), and rounds alternate between the servers, so that what
//! else the machine does falls on both.

mod meeting;
mod rate;
mod server;

use std::error::Error;
use std::io::{self, Write};
use std::time::Duration;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use meshreduce_store::TcpStore;
use serde_json::json;

use meeting::{Party, Way};
use server::Server;

const LONG: Duration = Duration::from_secs(60);

/// Measures TCP stores.
#[derive(Parser)]
struct Options {
    /// A Python that has torch, to measure it too.
    #[arg(long, env = "MESHREDUCE_PYTHON")]
    python: Option<String>,
    /// Milliseconds of a measurement of operations a second.
    #[arg(long, default_value_t = 50)]
    milliseconds: u64,
    /// Measurements of each kind, of which the median counts.
    #[arg(long, default_value_t = 31)]
    rounds: usize,
    /// Clients at once, each in a thread of its own.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64])]
    clients: Vec<usize>,
    /// Clients of a rendezvous.
    #[arg(long, default_value_t = 64)]
    meet: usize,
    /// One JSON object a line in place of the tables.
    #[arg(long)]
    json: bool,
    /// Only host a store, as the other side of a measurement.
    #[arg(long, hide = true)]
    serve: bool,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a column of a table is about.
struct Column {
    server: String,
    clients: String,
}

/// What was measured of one kind in each column, a value a round.
struct Row {
    name: String,
    clients: usize,
    values: Vec<Vec<f64>>,
}

impl Row {
    fn median(&self, column: usize) -> f64 {
        median(self.values[column].clone())
    }

    /// How many times as much as in the first column it is, as the median of the rounds: the two values of a round were
    /// measured one right after the other.
    fn ratio(&self, column: usize) -> f64 {
        median(self.values[column].iter().zip(&self.values[0]).map(|(value, first)| value / first).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn progress(text: &str) -> io::Result<()> {
    eprint!("\r{text:70}");
    io::stderr().flush()
}

/// Operations a second, and the server's time for one.
fn rates(options: &Options, servers: &[(Server, Vec<TcpStore>)]) -> Result<[Vec<Row>; 2], Box<dyn Error>> {
    let time = Duration::from_millis(options.milliseconds);
    let (mut rows, mut costs) = (Vec::new(), Vec::new());
    for (name, operation) in rate::OPERATIONS {
        for &clients in &options.clients {
            let mut found = vec![Vec::new(); servers.len()];
            let mut used = found.clone();
            for round in 1..=options.rounds.max(1) {
                progress(&format!("{name}, {clients} clients, round {round}"))?;
                for (((server, stores), found), used) in servers.iter().zip(&mut found).zip(&mut used) {
                    let (rate, cost) = rate::measure(server, &stores[..clients], operation, time)
                        .map_err(|error| format!("{}: {error}", server.name))?;
                    found.push(rate);
                    used.push(cost);
                }
            }
            rows.push(Row { name: name.to_owned(), clients, values: found });
            costs.push(Row { name: name.to_owned(), clients, values: used });
        }
    }
    Ok([rows, costs])
}

/// Milliseconds of a rendezvous, and the server's for one.
fn meetings(
    options: &Options,
    parties: &mut [(&Server, Party<'_>)],
) -> Result<[Vec<Row>; 2], Box<dyn Error>> {
    let (mut rows, mut costs) = (Vec::new(), Vec::new());
    for way in Way::ALL {
        let mut found = vec![Vec::new(); parties.len()];
        let mut used = found.clone();
        // The first round, in which things are made that stay, does not count.
        for round in 0..=options.rounds.max(1) {
            progress(&format!("rendezvous, {}, round {round}", way.name()))?;
            for (number, (server, party)) in parties.iter_mut().enumerate() {
                let before = server.cpu();
                let took = party.meet(&format!("{number}/{way:?}/{round}"), way)?;
                if round > 0 {
                    found[number].push(took.as_secs_f64() * 1e3);
                    used[number].push((server.cpu() - before).as_secs_f64() * 1e3);
                }
            }
        }
        let name = format!("rendezvous, {}", way.name());
        rows.push(Row { name: name.clone(), clients: options.meet, values: found });
        costs.push(Row { name, clients: options.meet, values: used });
    }
    Ok([rows, costs])
}

/// Ratios are to the first column, by more than 1 where that one is better.
fn print(options: &Options, columns: &[Column], rows: &[Row], unit: &str, more_is_better: bool) {
    if options.json {
        for row in rows {
            for (number, column) in columns.iter().enumerate() {
                let record = json!({
                    "what": row.name, "number_of_clients": row.clients, "server": column.server,
                    "clients": column.clients, "unit": unit, "median": row.median(number),
                    "times_the_first": row.ratio(number),
                });
                println!("{record}");
            }
        }
        return;
    }
    println!("{unit}");
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    let mut header = vec!["".to_owned(), "clients".to_owned()];
    for (number, column) in columns.iter().enumerate() {
        header.push(format!("{}\n{}", column.server, column.clients));
        header.extend((number > 0).then(|| "ratio".to_owned()));
    }
    table.set_header(header);
    for row in rows {
        let mut cells = vec![row.name.clone(), row.clients.to_string()];
        for number in 0..columns.len() {
            let (median, ratio) = (row.median(number), row.ratio(number));
            cells.push(if more_is_better { format!("{median:.0}") } else { format!("{median:.2}") });
            let ratio = if more_is_better { 1.0 / ratio } else { ratio };
            cells.extend((number > 0).then(|| format!("{ratio:.2}")));
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    if options.serve {
        return server::serve();
    }
    if options.meet == 0 || options.clients.contains(&0) {
        return Err("at least one client is needed".into());
    }
    let torch = match &options.python {
        None => Err("neither --python nor MESHREDUCE_PYTHON names a Python".into()),
        Some(python) => Server::torch(python),
    };
    let mut servers = vec![Server::own()?];
    match torch {
        Ok(server) => servers.push(server),
        Err(why) => eprintln!("skipping torch's server: {why}"),
    }
    let most = options.clients.iter().copied().chain([options.meet]).max().unwrap_or_default();
    let mut connected = Vec::new();
    for server in servers {
        progress(&format!("{most} clients connect to the server of {}", server.name))?;
        let stores = rate::connect(&server.address, most)?;
        connected.push((server, stores));
    }
    let column =
        |server: &Server, clients: &str| Column { server: server.name.clone(), clients: clients.into() };
    let mut columns: Vec<Column> =
        connected.iter().map(|(server, _)| column(server, "our clients")).collect();
    let [rows, costs] = rates(&options, &connected)?;
    progress("")?;
    eprint!("\r");
    print(&options, &columns, &rows, "operations a second", true);
    print(&options, &columns, &costs, "microseconds of the server's processor for an operation", false);

    let mut parties: Vec<_> =
        connected.iter().map(|(server, stores)| (server, Party::Own(&stores[..options.meet]))).collect();
    if let (Some(python), [_, _]) = (&options.python, &connected[..]) {
        for (server, _) in &connected {
            progress(&format!("torch's clients connect to the server of {}", server.name))?;
            parties.push((server, Party::torch(python, &server.address, options.meet)?));
            columns.push(column(server, "torch's, in Python"));
        }
    }
    let [rows, costs] = meetings(&options, &mut parties)?;
    progress("")?;
    eprint!("\r");
    print(&options, &columns, &rows, "milliseconds of a rendezvous", false);
    print(&options, &columns, &costs, "milliseconds of the server's processor for a rendezvous", false);
    // Clients go before their servers.
    drop(parties);
    for (server, stores) in connected {
        drop(stores);
        drop(server);
    }
    Ok(())
}
