//! Ranks that connect, and those who are none.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use super::*;

fn listening(host: &str) -> Listening {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
    Listening::open(bell, Some(host), Some("lo")).unwrap()
}

/// Connects the ranks of `hosts`, as if each were a process of its own, after what `before` does.
fn connect(hosts: &str, before: impl FnOnce(&mut [Place])) -> Vec<Connected> {
    let all: Vec<_> = hosts.chars().map(|host| listening(&host.to_string())).collect();
    let mut places: Vec<_> = all.iter().map(|one| one.place.clone()).collect();
    // Whose pid namespaces differ, so process ids tell nothing.
    for (place, other) in places.iter_mut().zip(1..) {
        place.member.process.namespace += other;
    }
    before(&mut places);
    let (islands, places) = (&Islands::of(&places), &places);
    std::thread::scope(|scope| {
        let connecting = |(rank, one): (usize, &'_ Listening)| {
            Connecting::new(rank, one, places, islands)
                .unwrap()
                .finish(Duration::from_secs(60), &Mutex::default())
                .unwrap()
        };
        let start = |each| scope.spawn(move || connecting(each));
        let threads: Vec<_> = all.iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn ranks_of_a_host_exchange_memory_and_others_get_connections() {
    let all = connect("aabb", |_| {});
    for (rank, connected) in all.iter().enumerate() {
        assert_eq!((connected.island.len(), connected.controls.len()), (2, 1));
        let is_far = |peer: usize| peer / 2 != rank / 2;
        assert!((0..4).all(|peer| connected.sockets[peer].is_some() == is_far(peer)));
    }
    let flag = |of: &Neighbour| of.segment.control().position.0.load(std::sync::atomic::Ordering::SeqCst);
    all[1].own.segment.control().position.0.store(9, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(flag(&all[0].island[1]), 9);
}

#[test]
fn strangers_who_have_found_a_socket_are_not_taken_for_ranks() {
    let mut strangers: Vec<Box<dyn Write>> = Vec::new();
    let all = connect("aab", |places| {
        let said: Vec<Vec<u8>> = vec![
            [&[1, 0, 0, 0][..], &[7; 32]].concat(),
            [&[2, 0, 0, 0][..], &places[0].cookie, &[0; 16]].concat(),
            [&[9, 0, 0, 0][..], &places[0].cookie, &places[1].cookie].concat(),
            vec![1, 0, 0],
            Vec::new(),
        ];
        // More silent ones than are kept.
        for said in said.into_iter().cycle().take(100) {
            let name = UnixAddr::from_abstract_name(socket_name(&places[0].name)).unwrap();
            let mut unix = UnixStream::connect_addr(&name).unwrap();
            let mut tcp = TcpStream::connect(places[0].addresses[0]).unwrap();
            unix.write_all(&said).unwrap();
            tcp.write_all(&said).unwrap();
            strangers.push(Box::new(unix));
            strangers.push(Box::new(tcp));
        }
    });
    assert_eq!(all[0].island.len(), 2);
    assert!(all[0].sockets[2].is_some() && all[2].sockets[0].is_some());
}

#[test]
fn an_address_that_leads_to_somebody_else_is_passed_over() {
    // One takes connections and says nothing, one says something else, one closes at once.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let others: Vec<_> = [&[7_u8; 16][..], &[]]
        .into_iter()
        .map(|answer| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let thread = std::thread::spawn(move || {
                let (mut socket, _) = listener.accept().unwrap();
                let mut hello = [0; HELLO];
                std::io::Read::read_exact(&mut socket, &mut hello).unwrap();
                // Whoever has said it may be gone.
                let _ = socket.write_all(answer);
            });
            (address, thread)
        })
        .collect();
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let all = connect("ab", |places| {
        let wrong = others.iter().map(|(address, _)| *address).chain([nobody, silent.local_addr().unwrap()]);
        places[0].addresses.splice(0..0, wrong);
    });
    assert!(all[0].sockets[1].is_some() && all[1].sockets[0].is_some());
    let (own, peer) = (&all[1].sockets[0], &all[0].sockets[1]);
    let (own, peer) = (own.as_ref().unwrap(), peer.as_ref().unwrap());
    assert_eq!(own.local_addr().unwrap().port(), peer.peer_addr().unwrap().port());
    others.into_iter().for_each(|(_, thread)| thread.join().unwrap());
}

#[test]
fn ranks_connect_while_strangers_keep_connecting() {
    let (is_over, (tell, told)) = (AtomicBool::new(false), std::sync::mpsc::channel());
    std::thread::scope(|scope| {
        let is_over = &is_over;
        scope.spawn(move || {
            let (mut name, mut address) = told.recv().unwrap();
            let mut last = std::collections::VecDeque::new();
            for said in [&[][..], &[9; 3], &[1; HELLO], &[0; 4096]].into_iter().cycle() {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(next) = told.try_recv() {
                    (name, address) = next;
                }
                // They may be refused, and closed again at any moment.
                if let Ok(mut unix) = UnixStream::connect_addr(&name) {
                    let _ = unix.write_all(said);
                    last.push_back((Some(unix), None));
                }
                if let Ok(mut tcp) = TcpStream::connect(address) {
                    let _ = tcp.write_all(said);
                    last.push_back((None, Some(tcp)));
                }
                while last.len() > 200 {
                    last.pop_front();
                }
            }
        });
        for _ in 0..5 {
            let all = connect("aab", |places| {
                let name = UnixAddr::from_abstract_name(socket_name(&places[0].name)).unwrap();
                let _ = tell.send((name, places[0].addresses[0]));
            });
            assert_eq!(all[0].island.len(), 2);
            assert!(all[0].sockets[2].is_some() && all[1].sockets[2].is_some());
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_rank_that_nothing_leads_to_is_named_in_time() {
    let (one, other) = (listening("a"), listening("b"));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut places = vec![one.place.clone(), other.place.clone()];
    places[0].addresses = vec![silent.local_addr().unwrap()];
    places.iter_mut().zip(1..).for_each(|(place, other)| place.member.process.namespace += other);
    let islands = Islands::of(&places);
    let limit = Duration::from_millis(300);
    let awaited = Mutex::default();
    let error = Connecting::new(1, &other, &places, &islands).unwrap().finish(limit, &awaited).unwrap_err();
    assert_eq!(*lock(&awaited), [0]);
    assert!(
        matches!(&error, NotConnected::Missing { ranks, waited, .. } if *ranks == [0] && *waited == limit)
    );
    assert!(error.to_string().starts_with("rank 0 did not connect within 300ms"), "{error}");
}

#[test]
fn a_rank_that_has_died_after_it_was_connected_is_named_and_not_those_who_have_given_up_for_it() {
    let (one, other) = (listening("a"), listening("a"));
    let mut places = vec![one.place.clone(), other.place.clone(), listening("a").place.clone()];
    // Rank 0 is one process, whose memory is here already; rank 2 never comes.
    let mut child = std::process::Command::new("true").spawn().unwrap();
    places[2].member.process.namespace += 1;
    let islands = Islands::of(&places);
    let mut connecting = Connecting::new(1, &other, &places, &islands).unwrap();
    let (own, _file) = one.share(3).unwrap();
    assert_eq!(connecting.advance().unwrap(), [2]);
    drop(own);
    child.wait().unwrap();
    let mut dead = places.clone();
    dead[0].member.process.pid = child.id();
    dead[0].member.process.start_time += 1;
    connecting.places = &dead;
    let error = connecting.finish(Duration::from_secs(60), &Mutex::default()).unwrap_err();
    assert!(matches!(error, NotConnected::Gone { rank: 0, .. }), "{error}");
}

#[test]
fn descriptors_that_could_not_be_taken_are_said_to_be_the_takers_lack() {
    use std::os::fd::AsFd;

    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    // Three are no rank's: it is as good as none, as where the system drops those for which a process has no number.
    let said = [std::io::IoSlice::new(&[0; pending::ANSWER])];
    meshreduce_store::descriptors::send(&far, &said, &[bell.as_fd(); 3]).unwrap();
    let mut pending = Pending::to(0, Socket::Unix(near));
    let error = pending.listen(pending::ANSWER).unwrap_err();
    assert!(error.to_string().contains("this process cannot take the descriptors"), "{error}");
}
