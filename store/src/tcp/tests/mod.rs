//! What clients can do to a server, and servers to clients.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use super::protocol::{Numbering, Opcode, Requests, Scanner};
use super::*;

mod attacks;
mod connecting;
mod floods;
mod older;
mod peers;
mod recorded;
mod together;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(100);

/// A host whose clients may cost as much as this.
fn host_within(limits: Limits) -> TcpStore {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    TcpStore { role: Role::Host(Server::start(listener, limits).unwrap()) }
}

/// A host that has little patience.
fn host(patience: Duration) -> TcpStore {
    host_within(Limits { patience, ..Limits::default() })
}

fn client(host: &TcpStore) -> TcpStore {
    TcpStore::connect(host.local_addr(), LONG).unwrap()
}

fn raw(host: &TcpStore) -> TcpStream {
    let stream = TcpStream::connect(host.local_addr()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn greet(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&Requests::new().validate().ping(7).into_bytes())?;
    let mut nonce = [0; 4];
    stream.read_exact(&mut nonce)?;
    assert_eq!(u32::from_le_bytes(nonce), 7);
    Ok(())
}

/// A connection that has said by what protocol it speaks.
fn greeted(host: &TcpStore) -> TcpStream {
    let start = Instant::now();
    loop {
        let mut stream = raw(host);
        match greet(&mut stream) {
            Ok(()) => return stream,
            // An impatient server may have left before this thread came to speak.
            Err(error) => assert!(start.elapsed() < LONG, "{error}"),
        }
    }
}

/// The server closes the connection, maybe after saying something.
fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// Whether the server has closed the connection already.
fn has_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let result = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    !matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

fn works(host: &TcpStore) {
    let other = client(host);
    other.set("works", b"yes").unwrap();
    assert_eq!(host.get("works", LONG).unwrap(), b"yes");
    other.delete("works").unwrap();
}

fn is_lost<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Lost { source, .. }) => source.to_string(),
        other => panic!("{other:?}"),
    }
}

fn is_refused<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::Refused { .. })), "{result:?}");
}

/// What a server that is none answers to a request.
enum Say {
    Bytes(Vec<u8>),
    Nothing,
    Close,
}

fn opcode(request: &[u8]) -> Opcode {
    Opcode::from_byte(request[0], Numbering::Validated).unwrap()
}

/// As a server of this crate says it, what every client asks before anything else.
fn greeting(request: &[u8]) -> Option<Say> {
    let check_mark = Requests::new().check_mark().into_bytes();
    match opcode(request) {
        Opcode::Validate => Some(Say::Nothing),
        Opcode::Ping => Some(Say::Bytes(request[1..].to_vec())),
        Opcode::Check if request == check_mark => Some(Say::Bytes(vec![protocol::YES])),
        _ => None,
    }
}

/// As a server of torch says it: `GET` of what is not there is answered or not.
fn foreign_greeting(request: &[u8], answers: bool) -> Option<Say> {
    if request == Requests::new().check_mark().into_bytes() {
        return Some(Say::Bytes(vec![protocol::NO]));
    }
    if request == Requests::new().mark(Opcode::Get).into_bytes() {
        return Some(if answers { Say::Bytes(vec![0; 8]) } else { Say::Close });
    }
    greeting(request)
}

/// A server for as long as `act` takes; it says what `say` makes of each request, on a connection of such a number.
fn with_impostor<T>(say: impl Fn(usize, &[u8]) -> Say + Sync, act: impl FnOnce(SocketAddr) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let over = AtomicBool::new(false);
    let converse = |number, mut stream: TcpStream| -> io::Result<()> {
        let (mut scanner, mut bytes, mut piece) = (Scanner::default(), Vec::new(), [0; 4096]);
        loop {
            while let Some(length) = scanner.scan(&bytes).unwrap() {
                let request: Vec<u8> = bytes.drain(..length).collect();
                match say(number, &request) {
                    Say::Bytes(reply) => stream.write_all(&reply)?,
                    Say::Nothing => {}
                    Say::Close => return Ok(()),
                }
            }
            match stream.read(&mut piece)? {
                0 => return Ok(()),
                count => bytes.extend_from_slice(&piece[..count]),
            }
        }
    };
    std::thread::scope(|scope| {
        let (converse, over) = (&converse, &over);
        scope.spawn(move || {
            for number in 0.. {
                let (stream, _) = listener.accept().unwrap();
                if over.load(Ordering::SeqCst) {
                    return;
                }
                scope.spawn(move || converse(number, stream));
            }
        });
        // Also where `act` panics, so that the test ends.
        struct End<'a>(&'a AtomicBool, SocketAddr);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
                drop(TcpStream::connect(self.1));
            }
        }
        let _end = End(over, address);
        act(address)
    })
}

/// Set for a process that a test has started for a part of itself.
const ALONE: &str = "MESHREDUCE_TEST_ALONE";

fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// This program, to run one test in a process of its own, whose descriptors and threads are its own.
fn alone(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", &format!("tcp::tests::{test}")]).env(ALONE, "1");
    command
}
