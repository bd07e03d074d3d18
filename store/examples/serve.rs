//! Hosts a store until its standard input ends or it is terminated; prints the address on a line of its own.
//!
//! `cargo run -p meshreduce-store --example serve [ADDRESS]`, then in Python, for example:
//! `torch.distributed.TCPStore("127.0.0.1", 29500, is_master=False, wait_for_workers=False)`.

use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use meshreduce_store::TcpStore;

/// Hosts a store in c10d's wire protocol. Whoever reaches the address may read and change everything in it.
#[derive(Parser)]
struct Options {
    /// Where to listen; port 0 is any that is free.
    #[arg(default_value = "127.0.0.1:29500")]
    address: SocketAddr,
}

fn main() -> Result<(), Box<dyn Error>> {
    let store = TcpStore::host(Options::parse().address)?;
    println!("{}", store.local_addr());
    io::stdout().flush()?;
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    store.close(Duration::ZERO);
    Ok(())
}
