//! Frames: a length, then that many bytes, all of it within a time.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::store::MAX_VALUE;
use crate::store::clock::{Deadline, LONGEST_WAIT};

/// Longest frame. Two values (of a `compare_set`), a key and what frames them fit.
pub(super) const LONGEST_FRAME: usize = 2 * MAX_VALUE + 1024;

/// A connection whose reads and writes, however many, end at one time.
pub(super) struct Timed<'a> {
    stream: &'a TcpStream,
    deadline: Deadline,
}

impl<'a> Timed<'a> {
    pub(super) fn new(stream: &'a TcpStream, limit: Duration) -> Self {
        Self { stream, deadline: Deadline::after(limit) }
    }

    fn left(&self) -> io::Result<Duration> {
        match self.deadline.left() {
            Duration::ZERO => Err(io::Error::new(ErrorKind::TimedOut, "no answer in time")),
            left => Ok(left.min(LONGEST_WAIT)),
        }
    }
}

/// Whether the system gave up before our deadline did, which decides.
fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(bytes) {
                Err(error) if is_early(&error) => {}
                result => return result,
            }
        }
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.stream.set_write_timeout(Some(self.left()?))?;
            match self.stream.write(bytes) {
                Err(error) if is_early(&error) => {}
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Reads a frame. Memory is taken for what comes, not for what is announced.
pub(super) fn read(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    read_after_length(from, length)
}

/// [`read`], where the length has been read already.
pub(super) fn read_after_length(from: &mut impl Read, length: [u8; 4]) -> io::Result<Vec<u8>> {
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST_FRAME {
        let problem = format!("a frame of {length} bytes is announced, {LONGEST_FRAME} is the most");
        return Err(io::Error::new(ErrorKind::InvalidData, problem));
    }
    let mut frame = Vec::new();
    from.take(length as u64).read_to_end(&mut frame)?;
    match frame.len() == length {
        true => Ok(frame),
        false => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// Writes a frame.
pub(super) fn write(to: &mut impl Write, content: &[u8]) -> io::Result<()> {
    debug_assert!(content.len() <= LONGEST_FRAME);
    let mut frame = Vec::with_capacity(4 + content.len());
    frame.extend_from_slice(&(content.len() as u32).to_le_bytes());
    frame.extend_from_slice(content);
    to.write_all(&frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_gibibytes_are_refused_before_any_is_read() {
        let mut bytes = &[0xff; 64][..];
        let error = read(&mut bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().contains("4294967295"), "{error}");
        assert_eq!(bytes.len(), 60);
    }

    #[test]
    fn memory_is_taken_for_what_comes() {
        struct Counted<'a>(&'a [u8], usize);
        impl Read for Counted<'_> {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                self.1 = self.1.max(bytes.len());
                self.0.read(bytes)
            }
        }
        let announced = (LONGEST_FRAME as u32).to_le_bytes();
        let mut reader = Counted(b"three", 0);
        let error = read_after_length(&mut reader, announced).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert!(reader.1 <= 64 << 10, "offered a buffer of {} bytes", reader.1);
    }

    #[test]
    fn frames_survive_the_round_trip() {
        for content in [&b""[..], b"x", &[7; 5000]] {
            let mut bytes = Vec::new();
            write(&mut bytes, content).unwrap();
            assert_eq!(read(&mut &bytes[..]).unwrap(), content);
            assert!(read(&mut &bytes[..bytes.len() - 1]).is_err());
        }
    }
}
