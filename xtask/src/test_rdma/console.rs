//! What the machine tells: the lines of `init.sh` among those that scenarios print.

use anyhow::{Context as _, Result, bail, ensure};

const MARK: &str = "@rdma-vm ";

/// One line of the machine's second serial port. Times are seconds since the kernel began.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Line {
    Booted {
        at: f64,
    },
    Ready {
        at: f64,
    },
    Begin {
        name: String,
        at: f64,
    },
    /// The exit code; 137 when it was killed because its time was up.
    End {
        name: String,
        code: i32,
        at: f64,
    },
    Verdict {
        ran: usize,
        failed: usize,
    },
    /// A command of the machine's own that went wrong.
    Failed {
        command: String,
    },
    /// What a scenario printed.
    Said(String),
}

impl Line {
    /// Errors are lines that begin as the machine's own do and go on otherwise.
    pub(crate) fn parse(line: &str) -> Result<Self> {
        let Some(rest) = line.strip_prefix(MARK) else { return Ok(Self::Said(line.to_owned())) };
        let garbage = || format!("the machine told {line:?}, which means nothing");
        let words: Vec<&str> = rest.split(' ').collect();
        Ok(match words[..] {
            ["booted", at] => Self::Booted { at: at.parse().with_context(garbage)? },
            ["ready", at] => Self::Ready { at: at.parse().with_context(garbage)? },
            ["begin", name, at] => {
                Self::Begin { name: name.to_owned(), at: at.parse().with_context(garbage)? }
            }
            ["end", name, code, at] => Self::End {
                name: name.to_owned(),
                code: code.parse().with_context(garbage)?,
                at: at.parse().with_context(garbage)?,
            },
            ["verdict", ran, failed] => Self::Verdict {
                ran: ran.parse().with_context(garbage)?,
                failed: failed.parse().with_context(garbage)?,
            },
            ["failed", ..] => Self::Failed { command: rest["failed".len()..].trim().to_owned() },
            _ => bail!(garbage()),
        })
    }
}

/// One scenario that has ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    pub(crate) name: String,
    pub(crate) code: i32,
    pub(crate) seconds: f64,
    /// What it printed.
    pub(crate) output: Vec<String>,
}

/// What has been told so far, and whether that makes sense.
#[derive(Debug, Default)]
pub(crate) struct Protocol {
    booted: Option<f64>,
    ready: Option<f64>,
    running: Option<(String, f64)>,
    said: Vec<String>,
    ended: Vec<Ended>,
    has_verdict: bool,
}

impl Protocol {
    /// Takes the next line. Errors are what may not come here.
    pub(crate) fn take(&mut self, line: Line) -> Result<()> {
        ensure!(!self.has_verdict || line == Line::Said(String::new()), "after the verdict came {line:?}");
        match line {
            Line::Booted { at } if self.booted.is_none() => self.booted = Some(at),
            Line::Ready { at } if self.booted.is_some() && self.ready.is_none() => {
                self.ready = Some(at);
                self.said.clear();
            }
            Line::Begin { name, at } if self.ready.is_some() && self.running.is_none() => {
                self.running = Some((name, at));
            }
            Line::End { name, code, at } => match self.running.take() {
                Some((running, began)) if running == name => {
                    let output = std::mem::take(&mut self.said);
                    // The machine tells hundredths.
                    let seconds = ((at - began) * 100.0).round() / 100.0;
                    self.ended.push(Ended { name, code, seconds, output });
                }
                running => bail!("{name} ended, and what ran was {running:?}"),
            },
            Line::Verdict { ran, failed } if self.running.is_none() => {
                let counted = (self.ended.len(), self.ended.iter().filter(|ended| ended.code != 0).count());
                ensure!(
                    (ran, failed) == counted,
                    "the verdict is {ran} ran, {failed} failed; told were {counted:?}"
                );
                self.has_verdict = true;
            }
            Line::Failed { command } => bail!("the machine could not `{command}`: {}", self.said.join("\n")),
            Line::Said(text) if text.is_empty() => {}
            Line::Said(text) => self.said.push(text),
            line => bail!("the machine told {line:?} where that cannot come"),
        }
        Ok(())
    }

    /// What it is doing.
    pub(crate) fn stage(&self) -> Stage<'_> {
        match (&self.running, self.booted, self.ready) {
            _ if self.has_verdict => Stage::Ended,
            (Some((name, _)), ..) => Stage::Running(name),
            (None, None, _) => Stage::Booting,
            (None, Some(_), None) => Stage::SettingUp,
            (None, Some(_), Some(_)) => Stage::Between,
        }
    }

    /// Seconds from the kernel's start until its first program ran, and until both rails were up.
    pub(crate) fn boot(&self) -> Option<(f64, f64)> {
        self.booted.zip(self.ready)
    }

    pub(crate) fn ended(&self) -> &[Ended] {
        &self.ended
    }

    /// What the scenario that is running has printed.
    pub(crate) fn said(&self) -> &[String] {
        &self.said
    }
}

/// What the machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage<'a> {
    Booting,
    SettingUp,
    Running(&'a str),
    Between,
    Ended,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &[&str]) -> Result<Protocol> {
        let mut protocol = Protocol::default();
        for line in lines {
            protocol.take(Line::parse(line)?)?;
        }
        Ok(protocol)
    }

    const UP: [&str; 3] = ["", "@rdma-vm booted 1.83", "@rdma-vm ready 3.28"];

    fn after(lines: &[&str]) -> Result<Protocol> {
        told(&[&UP[..], lines].concat())
    }

    #[test]
    fn a_run_is_what_its_lines_say() {
        let protocol = after(&[
            "@rdma-vm begin devices 3.50",
            "rxa0 port 1",
            "",
            "@rdma-vm end devices 0 4.75",
            "@rdma-vm begin pair 4.75",
            "@rdma-vm end pair 137 34.75",
            "@rdma-vm verdict 2 1",
        ])
        .unwrap();
        assert_eq!(protocol.boot(), Some((1.83, 3.28)));
        assert_eq!(protocol.stage(), Stage::Ended);
        let [devices, pair] = protocol.ended() else { panic!("{protocol:?}") };
        assert_eq!(
            (devices.code, devices.seconds, devices.output.as_slice()),
            (0, 1.25, &["rxa0 port 1".to_owned()][..])
        );
        assert_eq!((pair.code, pair.seconds, pair.output.len()), (137, 30.0, 0));
    }

    #[test]
    fn the_stage_is_known_at_every_line() {
        assert_eq!(told(&[]).unwrap().stage(), Stage::Booting);
        assert_eq!(told(&UP[..2]).unwrap().stage(), Stage::SettingUp);
        assert_eq!(after(&[]).unwrap().stage(), Stage::Between);
        assert_eq!(after(&["@rdma-vm begin x 4"]).unwrap().stage(), Stage::Running("x"));
    }

    #[test]
    fn garbage_is_an_error() {
        for line in ["@rdma-vm booted soon", "@rdma-vm end x 1", "@rdma-vm dance", "@rdma-vm verdict -1 0"] {
            assert!(Line::parse(line).is_err(), "{line}");
        }
        assert_eq!(Line::parse("@rdma-vmx").unwrap(), Line::Said("@rdma-vmx".into()));
    }

    #[test]
    fn lines_that_cannot_come_are_errors() {
        assert!(told(&["@rdma-vm ready 1"]).is_err(), "ready before it has booted");
        assert!(after(&["@rdma-vm booted 4"]).is_err(), "booted twice");
        assert!(after(&["@rdma-vm end x 0 4"]).is_err(), "an end without a beginning");
        assert!(after(&["@rdma-vm begin x 4", "@rdma-vm end y 0 4"]).is_err(), "the end of another");
        assert!(after(&["@rdma-vm begin x 4", "@rdma-vm verdict 0 0"]).is_err(), "a verdict in the midst");
        assert!(after(&["@rdma-vm verdict 1 0"]).is_err(), "a verdict on what was not run");
        assert!(after(&["@rdma-vm verdict 0 0", "@rdma-vm begin x 4"]).is_err(), "more after the verdict");
    }

    #[test]
    fn a_command_that_failed_is_named_with_what_was_said() {
        let error =
            told(&[UP[1], "insmod: can't insert", "@rdma-vm failed insmod /modules/x.ko"]).unwrap_err();
        assert_eq!(error.to_string(), "the machine could not `insmod /modules/x.ko`: insmod: can't insert");
    }
}
