use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::Mutex;
use std::task::Wake;

use meshreduce_store::MemoryStore;

use super::*;
use crate::link::{Kind, Outgoing, Queue};
use crate::meet::testing::{preamble, socket_name};

const LINKS: Links = Links { memory: false, unix: true, tcp: false };

fn context() -> Context {
    let mut registry = Registry::default();
    registry.allow("basic").unwrap();
    Context::with_options(&registry, &[], Options { links: LINKS, ..Options::default() }).unwrap()
}

#[test]
fn a_peer_that_stops_behind_its_first_word_keeps_nobody_out() {
    let (one, other) = (context(), context());
    let listener = one.listener().unwrap();
    let address = listener.address();
    // Less than what two who are met one behind the other may take, were each given as much as there is.
    let limit = GREETING.mul_f32(0.8);
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| listener.accept(limit));
        let at = SocketAddr::from_abstract_name(socket_name(&address.name)).unwrap();
        let mut stopped = UnixStream::connect_addr(&at).unwrap();
        stopped.write_all(&preamble(&address.cookie)).unwrap();
        let mut answer = [0; 16];
        stopped.read_exact(&mut answer).unwrap();
        assert_eq!(answer, address.answer, "it is being greeted now");
        other.connect_to(address, limit).unwrap();
        accepting.join().unwrap().unwrap();
        drop(stopped);
    });
}

#[test]
fn a_peer_that_stops_before_its_verdict_keeps_nobody_out_and_is_not_connected() {
    let (one, other, stopped) = (context(), context(), context());
    let listener = one.listener().unwrap();
    let address = listener.address();
    let limit = GREETING.mul_f32(0.8);
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| listener.accept(limit));
        let mut link = reach(address, &stopped.inner.place, LINKS, Deadline::after(limit)).unwrap();
        let mut queue = Queue::new(link.carries_files());
        queue.push(Outgoing::control(Kind::Hello, 0, stopped.inner.hello().unwrap().encode()));
        let mut heard = Vec::new();
        let mut hear = |until: Kind| {
            while !heard.contains(&until) {
                link.flush(&mut queue).unwrap();
                match link.next().unwrap().map(|message| message.kind) {
                    Some(kind) => heard.push(kind),
                    None if link.fill().unwrap() => {}
                    None => link.wait(!queue.is_empty(), limit).unwrap(),
                }
            }
            heard.len()
        };
        hear(Kind::Choices);
        // It stands still here, and the other one comes.
        other.connect_to(address, limit).unwrap();
        accepting.join().unwrap().unwrap();
        // What it says now finds nobody, and nobody has bidden it welcome.
        queue.push(Outgoing::control(Kind::Verdict, 0, vec![0]));
        let _ = link.flush(&mut queue);
        loop {
            match link.next() {
                Ok(Some(message)) => panic!("{:?}", message.kind),
                Ok(None) => {}
                Err(_) => break,
            }
            match link.fill() {
                Ok(true) => {}
                Ok(false) => link.wait(false, limit).unwrap(),
                Err(_) => break,
            }
        }
    });
}

#[test]
fn one_who_comes_while_somebody_listens_for_a_moment_at_a_time_is_met() {
    let (one, other) = (context(), context());
    let listener = one.listener().unwrap();
    let limit = Duration::from_secs(60);
    let deadline = Deadline::after(limit);
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            let link = reach(listener.address(), &other.inner.place, LINKS, deadline).unwrap();
            // Longer than a moment, and less than it may take.
            std::thread::sleep(Duration::from_millis(20));
            other.inner.meet(link, Side::Connecting, deadline)
        });
        while let Err(error) = listener.accept(Duration::ZERO) {
            assert!(error.to_string().ends_with("nobody has come") && !deadline.has_passed(), "{error}");
        }
        connecting.join().unwrap().unwrap();
    });
}

/// Drops a context when it wakes.
struct Owner(Mutex<Option<Context>>, Mutex<Option<Duration>>);

impl Wake for Owner {
    fn wake(self: Arc<Self>) {
        let Some(context) = self.0.lock().unwrap().take() else { return };
        assert!(context.inner.site.is_own_thread());
        let begun = Instant::now();
        drop(context);
        *self.1.lock().unwrap() = Some(begun.elapsed());
    }
}

/// How long that takes on the context's own thread.
fn dropped_by_its_own_thread() -> Duration {
    let (one, other) = (context(), context());
    let listener = one.listener().unwrap();
    let (here, there) = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| other.connect_to(listener.address(), JOIN_TIMEOUT * 60).unwrap());
        (listener.accept(JOIN_TIMEOUT * 60).unwrap(), connecting.join().unwrap())
    });
    let site = Arc::clone(one.site());
    let owner = Arc::new(Owner(Mutex::new(Some(one)), Mutex::default()));
    let mut received = here.recv(vec![0_u8; 1], Device::Cpu, None);
    let waker = std::task::Waker::from(Arc::clone(&owner));
    let polled = std::pin::Pin::new(&mut received).poll(&mut std::task::Context::from_waker(&waker));
    assert!(polled.is_pending());
    let _sent = there.send(vec![1_u8], Device::Cpu, None);
    assert!(site.ended.wait(JOIN_TIMEOUT * 60), "the thread goes on, and ends");
    owner.1.lock().unwrap().expect("it was woken")
}

#[test]
fn a_context_that_its_own_thread_drops_does_not_wait_for_itself() {
    // A thread may have no core for a while, but not each time.
    assert!((0..5).any(|_| dropped_by_its_own_thread() < JOIN_TIMEOUT));
}

#[test]
fn a_listener_whose_address_was_deleted_by_a_late_leaver_is_found_all_the_same() {
    let (one, other) = (context(), context());
    let store = MemoryStore::new();
    let limit = Duration::from_secs(20);
    std::thread::scope(|scope| {
        let listening = scope.spawn(|| one.listen(&store, "n", limit));
        store.wait(&["channels/n"], limit).unwrap();
        // The second step of one that was stopped behind its first.
        store.delete("channels/n").unwrap();
        other.connect(&store, "n", limit).unwrap();
        listening.join().unwrap().unwrap();
    });
    assert!(!store.check(&["channels/n"]).unwrap(), "the address was left behind");
}
