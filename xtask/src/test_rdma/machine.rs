//! The virtual machine: QEMU, its serial ports and its end.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::console::{Line, Protocol, Stage};
use super::packages::Packages;
use crate::test_mpi::is_on_path;

/// Two processors: with one, every message between two processes waits for a tick of the clock.
/// `no_timer_check`: on a busy machine the emulated clock may look broken to the kernel.
const KERNEL: &str = "console=ttyS0 quiet panic=-1 no_timer_check";
const MEGABYTES: &str = "1024";

/// How long the machine may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) booting: Duration,
    pub(crate) setting_up: Duration,
    /// Between scenarios, and beyond a scenario's own limit.
    pub(crate) slack: Duration,
}

impl Default for Patience {
    /// Ten to thirty times what it takes on two processors that have other work too.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { booting: seconds(180), setting_up: seconds(90), slack: seconds(30) }
    }
}

/// Lines of a log that an error shows.
const TAIL: usize = 30;

/// Where the machine's logs are.
pub(crate) struct Logs {
    /// Kernel messages, and QEMU's own.
    pub(crate) console: PathBuf,
    /// What scenarios print, and what the machine tells.
    pub(crate) scenarios: PathBuf,
}

/// Starts the machine and follows it to its end. `limit` says how many seconds a scenario has; `follow` is called after
/// every line.
///
/// # Errors
/// If the machine does not come up, stops before its verdict, is silent for too long, or tells what makes no sense. The
/// error has the end of its logs. The machine is off, whatever comes out.
pub(crate) fn run(
    packages: &Packages,
    image: &Path,
    logs: &Logs,
    patience: &Patience,
    limit: impl Fn(&str) -> u32,
    mut follow: impl FnMut(&Protocol),
) -> Result<Protocol> {
    let mut machine = Machine::start(packages, image, logs)?;
    let mut protocol = Protocol::default();
    let followed = machine.follow(&mut protocol, patience, &limit, &mut follow, logs);
    // After an error there is nothing to wait for.
    match followed.and_then(|()| machine.end()) {
        Ok(()) => Ok(protocol),
        Err(error) => {
            let said = protocol.said();
            let said = said[said.len().saturating_sub(TAIL)..].join("\n");
            let console = tail(&logs.console);
            bail!(
                "{error:#}\n-- last printed ({}):\n{said}\n-- last of the kernel ({}):\n{console}",
                logs.scenarios.display(),
                logs.console.display()
            )
        }
    }
}

struct Machine {
    qemu: Child,
    lines: Receiver<std::io::Result<String>>,
}

impl Machine {
    fn start(packages: &Packages, image: &Path, logs: &Logs) -> Result<Self> {
        // Whoever kills this program with a signal that cannot be caught does not leave a machine behind.
        let mut command = match is_on_path("setpriv") {
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "--"]).arg(&packages.qemu);
                command
            }
            false => Command::new(&packages.qemu),
        };
        for firmware in &packages.firmware {
            command.arg("-L").arg(firmware);
        }
        if !packages.firmware.is_empty() {
            command.env("LD_LIBRARY_PATH", &packages.libraries);
        }
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-m", MEGABYTES, "-smp", "2", "-append", KERNEL, "-kernel"])
            .arg(&packages.kernel)
            .arg("-initrd")
            .arg(image)
            .arg("-serial")
            .arg(format!("file:{}", logs.console.display()))
            .args(["-serial", "stdio"]);
        let errors = File::create(logs.console.with_extension("qemu.log"))?;
        let mut qemu = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {}", packages.qemu.display()))?;
        let output = qemu.stdout.take().expect("it is piped");
        let log = File::create(&logs.scenarios)?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in read(output, log) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { qemu, lines })
    }

    fn follow(
        &mut self,
        protocol: &mut Protocol,
        patience: &Patience,
        limit: &impl Fn(&str) -> u32,
        follow: &mut impl FnMut(&Protocol),
        logs: &Logs,
    ) -> Result<()> {
        let mut since = Instant::now();
        loop {
            let allowed = match protocol.stage() {
                Stage::Booting => patience.booting,
                Stage::SettingUp => patience.setting_up,
                Stage::Running(name) => Duration::from_secs(limit(name).into()) + patience.slack,
                Stage::Between | Stage::Ended => patience.slack,
            };
            let left = allowed.checked_sub(since.elapsed());
            // Time is up for a machine that prints without end, too.
            match left.map_or(Err(RecvTimeoutError::Timeout), |left| self.lines.recv_timeout(left)) {
                Ok(line) => {
                    let line = Line::parse(line.context("reading what the machine says")?.trim_end())?;
                    if !matches!(line, Line::Said(_)) {
                        since = Instant::now();
                    }
                    protocol.take(line)?;
                    follow(protocol);
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the machine told nothing for {} s ({:?})", allowed.as_secs(), protocol.stage())
                }
                Err(RecvTimeoutError::Disconnected) if protocol.stage() == Stage::Ended => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(self.stopped(protocol, logs)),
            }
        }
    }

    /// Why the machine is off before its time.
    fn stopped(&mut self, protocol: &Protocol, logs: &Logs) -> anyhow::Error {
        let console = std::fs::read(&logs.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let stage = protocol.stage();
        if let Some(panic) = console.lines().find(|line| line.contains("Kernel panic")) {
            return anyhow!("{} ({stage:?})", panic.trim());
        }
        let qemu = std::fs::read_to_string(logs.console.with_extension("qemu.log")).unwrap_or_default();
        anyhow!("the machine stopped without a verdict ({stage:?}) {}", qemu.trim())
    }

    /// Waits for QEMU's end, once the machine has switched itself off or failed.
    fn end(mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if let Some(status) = self.qemu.try_wait()? {
                return if status.success() { Ok(()) } else { Err(anyhow!("QEMU ended with {status}")) };
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the machine did not switch off")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail if it has ended, which is what they are for.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// All lines, which are kept in the log too. What is no UTF-8 is replaced: a scenario may be killed in mid-letter.
fn read(output: ChildStdout, mut log: File) -> impl Iterator<Item = std::io::Result<String>> {
    BufReader::new(output).split(b'\n').map(move |line| {
        let line = line?;
        let text = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
        writeln!(log, "{text}")?;
        Ok(text)
    })
}

fn tail(file: &Path) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a script in QEMU's place. `$console` is the file of the first serial port.
    fn run_script(script: &str, patience: &Patience) -> (Result<Protocol>, Vec<String>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let console = at("console.log");
        let script =
            format!("#!/bin/sh\nconsole={}\necho $$ >{}\n{script}\n", console.display(), at("pid").display());
        std::fs::write(at("script"), script).unwrap();
        // Not written by this process: a file that is open for writing, in a child that another thread has just forked too,
        // cannot be run.
        let install = Command::new("install").arg("--mode=755").args([at("script"), at("qemu")]).status();
        assert!(install.unwrap().success());
        let packages = Packages::of_qemu(at("qemu"));
        let logs = Logs { console, scenarios: at("scenarios.log") };
        let mut stages = Vec::new();
        let result = run(
            &packages,
            &at("image"),
            &logs,
            patience,
            |_| 0,
            |protocol| {
                let stage = format!("{:?}", protocol.stage());
                if stages.last() != Some(&stage) {
                    stages.push(stage);
                }
            },
        );
        (result, stages, folder)
    }

    fn error_of(script: &str) -> String {
        let (result, ..) = run_script(script, &Patience::default());
        format!("{:#}", result.unwrap_err())
    }

    const UP: &str = "echo '@rdma-vm booted 1'; echo '@rdma-vm ready 2'";

    #[test]
    fn a_machine_that_says_everything_and_switches_off_has_run() {
        let script = format!(
            "{UP}\necho '@rdma-vm begin x 2'; printf 'hello\\r\\n'; echo '@rdma-vm end x 3 4'; echo '@rdma-vm verdict 1 1'"
        );
        let (result, stages, folder) = run_script(&script, &Patience::default());
        let protocol = result.unwrap();
        let [ended] = protocol.ended() else { panic!("{protocol:?}") };
        assert_eq!((ended.code, ended.seconds, ended.output.as_slice()), (3, 2.0, &["hello".to_owned()][..]));
        assert_eq!(stages, ["SettingUp", "Between", "Running(\"x\")", "Between", "Ended"]);
        let log = std::fs::read_to_string(folder.path().join("scenarios.log")).unwrap();
        assert!(log.contains("\nhello\n") && log.ends_with("@rdma-vm verdict 1 1\n"), "{log}");
    }

    #[test]
    fn a_panic_of_the_kernel_is_told_with_the_end_of_its_log() {
        let panic = "[ 2.1] Kernel panic - not syncing: Attempted to kill init!";
        let error =
            error_of(&format!("{UP}\necho '[ 2.0] insmod: oops' >$console\necho '{panic}' >>$console"));
        assert!(
            error.contains(panic) && error.contains("insmod: oops") && error.contains("Between"),
            "{error}"
        );
    }

    #[test]
    fn a_machine_that_stops_before_its_verdict_is_an_error_that_tells_what_was_said_last() {
        let error = error_of(&format!("{UP}\necho '@rdma-vm begin x 2'; echo almost; echo broken >&2"));
        for words in ["without a verdict", "Running(\"x\")", "almost", "broken"] {
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn a_machine_that_tells_nonsense_is_switched_off() {
        let (result, _, folder) = run_script("echo '@rdma-vm dance'; exec sleep 1000", &Patience::default());
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains("means nothing"), "{error}");
        assert_off(&folder);
    }

    #[test]
    fn a_machine_that_is_silent_is_switched_off() {
        let short = Duration::from_millis(100);
        let patience = Patience { booting: short, setting_up: short, slack: short };
        let (result, _, folder) = run_script("exec sleep 1000", &patience);
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains("nothing") && error.contains("Booting"), "{error}");
        assert_off(&folder);
    }

    #[test]
    fn a_scenario_that_prints_for_ever_does_not_keep_the_machine_on() {
        let patience = Patience { slack: Duration::from_secs(2), ..Patience::default() };
        let script = format!("{UP}\necho '@rdma-vm begin x 2'\nwhile echo again; do sleep 0.01; done");
        let (result, _, folder) = run_script(&script, &patience);
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains("Running"), "{error}");
        assert_off(&folder);
    }

    fn assert_off(folder: &tempfile::TempDir) {
        // Without the script, which would not have got that far, there is nothing to switch off.
        let Ok(pid) = std::fs::read_to_string(folder.path().join("pid")) else { return };
        let running = Path::new("/proc").join(pid.trim());
        assert!(!running.exists(), "{} is still there", running.display());
    }
}
