//! Ranks that connect, and those who are none.

use std::io::Write;

use rustix::event::{EventfdFlags, eventfd};

use super::*;

fn listening(host: &str) -> Listening {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
    Listening::open(bell, Some(host), Some("lo")).unwrap()
}

/// Connects the ranks of `hosts`, as if each were a process of its own, while `meanwhile` goes on.
fn connect(hosts: &str, meanwhile: impl FnOnce(&[Place])) -> Vec<Connected> {
    let all: Vec<_> = hosts.chars().map(|host| listening(&host.to_string())).collect();
    let mut places: Vec<_> = all.iter().map(|one| one.place.clone()).collect();
    // Whose pid namespaces differ, so process ids tell nothing.
    for (place, other) in places.iter_mut().zip(1..) {
        place.member.process.namespace += other;
    }
    let (islands, places) = (&Islands::of(&places), &places);
    meanwhile(places);
    std::thread::scope(|scope| {
        let connecting = |(rank, one): (usize, &'_ Listening)| {
            Connecting::new(rank, one, places, islands).unwrap().finish(Duration::from_secs(60)).unwrap()
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
