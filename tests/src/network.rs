//! Several hosts on one machine: network namespaces on a bridge, for tests of what crosses a network.
//!
//! All of it hangs on processes and has no names: a namespace ends with the last process in it. One process, the *switch*,
//! holds a user namespace, in which this user may do what root does, and a network namespace with a bridge; one process for
//! each host holds a network namespace with one interface, whose other end is a port of that bridge. Each of them waits for the
//! end of its standard input, which is a pipe from this process and so ends with it, however that ends; then it kills
//! whatever still runs in its namespace, and goes. Outside nothing can be seen of it but these processes, so that networks of
//! tests that run at once have the same addresses without meeting.
//!
//! The programs `unshare` and `nsenter` (util-linux) and `ip` (iproute2) do the work. Root is not needed where user
//! namespaces are allowed, and these are not where this is root. Where neither is so, or a program is missing, there is a
//! [`Skip`] that says why.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use meshreduce::store::identity::HOST_ID;

/// Hosts that a network can have.
const MOST: usize = 200;

/// What a process that holds a namespace runs: it tells that it is there, waits, and ends what is left in the namespace. What it
/// kills may be starting another process, so it looks again until it has found nothing. Before it looks it takes another
/// standard input, for [`ENTER`] to see.
const HOLD: &str = r#"
echo held
read -r _
exec </dev/null
looks=0
while [ $looks -lt 1000 ]; do
    found=
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        if [ "$pid" != $$ ] && [ "$process/ns/net" -ef /proc/$$/ns/net ]; then
            kill -9 "$pid" 2>/dev/null && found=1
        fi
    done
    [ "$found" ] || exit 0
    looks=$((looks + 1))
done
"#;

/// What a process runs that has entered the namespace of the process `$1`, before it becomes what it is to be. If that one
/// does not look yet for what it has to end, it will find this one too; else it may have missed it.
const ENTER: &str = r#"
if ! [ -e "/proc/$1/fd/0" ] || [ "/proc/$1/fd/0" -ef /dev/null ]; then
    echo "the network has ended" >&2
    exit 125
fi
shift
exec "$@"
"#;

/// Why this machine cannot play several hosts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no hosts in network namespaces here: {reason}")]
pub struct Skip {
    /// What was tried, and what came of it.
    pub reason: String,
}

/// Hosts on a network of their own. They end with it, and all that runs on them.
#[derive(Debug)]
pub struct Network {
    // Hosts go before the switch.
    hosts: Vec<Holder>,
    switch: Holder,
    /// Tells its hosts from those of other networks.
    id: String,
}

impl Network {
    /// A network of `hosts` hosts that reach each other, 1 to 200.
    ///
    /// # Errors
    /// [`Skip`] where the system does not allow it, or lacks what it takes.
    ///
    /// # Panics
    /// For another number of hosts.
    pub fn new(hosts: usize) -> Result<Self, Skip> {
        static NETWORKS: AtomicU64 = AtomicU64::new(0);
        assert!((1..=MOST).contains(&hosts), "a network of {hosts} hosts");
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let switch = Holder::switch()?;
        let hosts = (0..hosts).map(|_| switch.host()).collect::<Result<Vec<_>, _>>()?;
        let network = Self { hosts, switch, id: format!("{}-{number}", std::process::id()) };
        network.switch.ip("link add bridge type bridge")?;
        network.switch.ip("link set bridge up")?;
        for (number, host) in network.hosts.iter().enumerate() {
            let (pid, address) = (host.child.id(), network.address(number));
            network.switch.ip(&format!("link add port{number} type veth peer name eth0 netns {pid}"))?;
            network.switch.ip(&format!("link set port{number} master bridge up"))?;
            host.ip("link set lo up")?;
            host.ip(&format!("address add {address}/24 dev eth0"))?;
            host.ip("link set eth0 up")?;
        }
        Ok(network)
    }

    /// A command that runs `program` on a host, with what arguments and environment it is then given, and with a
    /// `MESHREDUCE_HOST_ID` that no other host has. The process has the id that [`Child::id`] tells.
    ///
    /// A program that is not there is no error of [`Command::spawn`]: the command ends with 127 then.
    ///
    /// # Panics
    /// If there is no such host.
    pub fn command(&self, host: usize, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.hosts[host].command(program);
        command.env(HOST_ID, self.host_id(host));
        command
    }

    /// What tells this host from all others, as `MESHREDUCE_HOST_ID`.
    pub fn host_id(&self, host: usize) -> String {
        format!("host {host} of {}", self.id)
    }

    /// The address of a host. It is this one's only in this network: other networks have the same addresses.
    ///
    /// # Panics
    /// If there is no such host.
    pub fn address(&self, host: usize) -> IpAddr {
        assert!(host < self.hosts.len(), "no host {host}");
        IpAddr::V4(Ipv4Addr::new(10, 77, 0, host as u8 + 1))
    }

    /// Cuts a host off, as if its cable were pulled: what it sends goes nowhere, and nobody is told.
    ///
    /// # Panics
    /// If there is no such host, or the system refuses.
    pub fn cut_off(&self, host: usize) {
        self.set_port(host, "down");
    }

    /// Brings a host back that was cut off.
    ///
    /// # Panics
    /// As [`Network::cut_off`].
    pub fn bring_back(&self, host: usize) {
        self.set_port(host, "up");
    }

    fn set_port(&self, host: usize, state: &str) {
        assert!(host < self.hosts.len(), "no host {host}");
        if let Err(refused) = self.switch.ip(&format!("link set port{host} {state}")) {
            panic!("host {host} cannot be set {state}: {}", refused.reason);
        }
    }

    /// The processes that hold the network, for tests of what is left behind.
    pub fn holders(&self) -> Vec<u32> {
        self.hosts.iter().chain([&self.switch]).map(|holder| holder.child.id()).collect()
    }
}

/// A process that holds a namespace for as long as this value is there.
#[derive(Debug)]
struct Holder {
    child: Child,
    /// Whether it has a user namespace too.
    has_user: bool,
}

impl Holder {
    /// In a user namespace, where that is allowed; else root may do without.
    fn switch() -> Result<Self, Skip> {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]);
        Self::start(command, true).or_else(|skip| {
            let mut command = Command::new("unshare");
            command.arg("--net");
            Self::start(command, false)
                .map_err(|other| Skip { reason: format!("{}; {}", skip.reason, other.reason) })
        })
    }

    /// A host beside this switch.
    fn host(&self) -> Result<Self, Skip> {
        let mut command = self.command("unshare");
        command.arg("--net");
        Self::start(command, self.has_user)
    }

    /// Starts a process that `unshare` gives a namespace, and waits until it has it.
    fn start(mut unshare: Command, has_user: bool) -> Result<Self, Skip> {
        unshare.args(["--", "sh", "-c", HOLD]);
        unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = unshare.spawn().map_err(|error| not_started(&unshare, &error))?;
        let mut holder = Self { child, has_user };
        let mut line = String::new();
        let said = holder.child.stdout.as_mut().map(|stdout| BufReader::new(stdout).read_line(&mut line));
        if line == "held\n" {
            return Ok(holder);
        }
        let mut problem = String::new();
        if let Some(stderr) = &mut holder.child.stderr {
            // Nothing is as good a reason as what cannot be read.
            let _ = stderr.read_to_string(&mut problem);
        }
        Err(Skip { reason: format!("{} ({said:?}) {}", text(&unshare), problem.trim()) })
    }

    /// A command that runs `program` in the namespace.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let holder = self.child.id().to_string();
        command.args(["--target", &holder, "--net"]);
        if self.has_user {
            // Groups cannot be set in such a namespace, and need not be.
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["--", "sh", "-c", ENTER, "sh", &holder]).arg(program);
        command
    }

    /// Runs `ip` in the namespace.
    fn ip(&self, arguments: &str) -> Result<(), Skip> {
        let mut command = self.command("ip");
        // Where it lies is not on every user's path.
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .args(arguments.split(' '))
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .stdin(Stdio::null());
        let output = command.output().map_err(|error| not_started(&command, &error))?;
        if output.status.success() {
            return Ok(());
        }
        let problem = String::from_utf8_lossy(&output.stderr);
        Err(Skip { reason: format!("ip {arguments}: {} {}", output.status, problem.trim()) })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends by itself, once it has ended what runs there.
        drop(self.child.stdin.take());
        let limit = Instant::now() + Duration::from_secs(60);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > limit {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn text(command: &Command) -> String {
    let arguments = command.get_args().take_while(|argument| *argument != "-c");
    let words = std::iter::once(command.get_program()).chain(arguments);
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn not_started(command: &Command, error: &std::io::Error) -> Skip {
    Skip { reason: format!("{} does not start: {error}", command.get_program().to_string_lossy()) }
}
