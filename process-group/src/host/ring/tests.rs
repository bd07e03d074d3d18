//! Rings, one end in each of two threads.

use super::super::fingerprint::Fingerprint;
use super::super::frame::{Channel, EAGER};
use super::super::segment::Layout;
use super::*;

fn ring() -> (Writer, Reader) {
    ring_of(2)
}

/// Of an island of so many ranks.
fn ring_of(ranks: usize) -> (Writer, Reader) {
    let segment = Arc::new(Segment::create(Layout::of(ranks)).unwrap().0);
    (Writer::new(Arc::clone(&segment), 1), Reader::new(segment, 1))
}

fn header(kind: Kind, number: u64, bytes: usize) -> Header {
    let fingerprint = Fingerprint { sequence: number, what: !number, count: 7 };
    let ids = if kind == Kind::Eager { (0, 0) } else { (number * 3, number * 5) };
    let (tag, channel) = (number as u32, Channel::Group);
    Header { kind, channel, tag, fingerprint, bytes: bytes as u64, id: ids.0, to: ids.1 }
}

/// Data of a frame: other bytes in each.
fn data(number: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (at * 7 + number * 13) as u8).collect()
}

/// Lengths around all that is told apart.
fn length(kind: Kind, number: u64) -> usize {
    let of = [0, 1, 4, 16, 17, 63, 64, 65, 80, 81, 200, 4096, 5000, EAGER, 40_000];
    let length = of[(number % of.len() as u64) as usize];
    if kind == Kind::Eager { length.min(EAGER) } else { length }
}

fn kind(number: u64) -> Kind {
    if number.is_multiple_of(3) { Kind::Data } else { Kind::Eager }
}

#[test]
fn messages_that_are_expected_come_out_whole_while_their_data_are_asked_for() {
    const MESSAGES: u64 = 20_000;
    /// Of one line and more, to beyond the ring's end again and again, and with those that are not asked for.
    const BYTES: [usize; 6] = [4, 64, 100, 256, 257, 5000];
    let (mut writer, mut reader) = ring();
    let bytes = |number: u64| BYTES[(number % 6) as usize];
    let header = move |number: u64| {
        let channel = Channel::Peer;
        let of = header(Kind::Eager, number, bytes(number));
        Header { channel, ..of }
    };
    let thread = std::thread::spawn(move || {
        for number in 0..MESSAGES {
            while !writer.write(&header(number), &data(number, bytes(number))).unwrap() {
                std::thread::yield_now();
            }
        }
    });
    let mut taken = [0; 5000];
    for number in 0..MESSAGES {
        let (bytes, turn) = (bytes(number), reader.turn());
        while !turn.has_come_with(&reader.0.segment, bytes) {
            std::hint::spin_loop();
            std::thread::yield_now();
        }
        let words = reader.words().unwrap().unwrap();
        assert!(Header::is_expected(&words, number as u32, &header(number).fingerprint, bytes));
        assert!(!Header::is_expected(&words, number as u32 + 1, &header(number).fingerprint, bytes));
        reader.take_message(&mut taken[..bytes]);
        assert!(taken[..bytes] == data(number, bytes), "message {number} of {bytes} bytes");
    }
    thread.join().unwrap();
}

#[test]
fn frames_come_out_in_order_and_whole() {
    const FRAMES: u64 = 5000;
    let (mut writer, mut reader) = ring();
    let thread = std::thread::spawn(move || {
        for number in 0..FRAMES {
            let bytes = length(kind(number), number);
            let data = data(number, bytes);
            while !writer.write(&header(kind(number), number, bytes), &data).unwrap() {
                std::thread::yield_now();
            }
        }
    });
    for number in 0..FRAMES {
        let got = loop {
            match reader.peek().unwrap() {
                Some(header) => break header,
                None => std::thread::yield_now(),
            }
        };
        let bytes = length(kind(number), number);
        let expected = header(kind(number), number, bytes);
        assert_eq!(got, expected);
        if number.is_multiple_of(11) {
            reader.skip(&got);
            continue;
        }
        let mut taken = vec![0; bytes];
        reader.take(&got, &mut taken);
        assert!(taken == data(number, bytes), "frame {number} of {bytes} bytes");
    }
    assert!(!reader.has_frame());
    thread.join().unwrap();
}

#[test]
fn a_writer_without_room_is_told_of() {
    let (mut writer, mut reader) = ring();
    let (short, long) = (header(Kind::Eager, 1, 4), header(Kind::Data, 1, 100_000));
    for _ in 0..RingControl::ENTRIES {
        assert!(writer.write(&short, &[1; 4]).unwrap());
    }
    assert!(!writer.write(&short, &[1; 4]).unwrap() && !writer.has_more_room());
    let mut bytes = [0; 4];
    reader.take(&short, &mut bytes);
    assert!(writer.has_more_room());
    assert_eq!((bytes, reader.was_full(), reader.was_full()), ([1; 4], true, false));
    assert!(writer.write(&short, &[1; 4]).unwrap());
    for _ in 0..RingControl::ENTRIES {
        reader.skip(&short);
    }
    let data = data(5, 100_000);
    assert!(writer.write(&long, &data).unwrap() && writer.write(&long, &data).unwrap());
    assert!(!writer.write(&long, &data).unwrap());
    reader.skip(&long);
    // Around the end of the ring's bytes.
    assert!(writer.write(&long, &data).unwrap());
    reader.skip(&long);
    let mut taken = vec![0; 100_000];
    reader.take(&long, &mut taken);
    assert!(taken == data);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (mut writer, reader) = ring();
    let short = header(Kind::Eager, 1, 4);
    reader.0.entry()[0].store(9, Ordering::Relaxed);
    assert_eq!(reader.peek(), Err(Corrupt), "no turn");
    writer.write(&short, &[1; 4]).unwrap();
    assert!(reader.peek().unwrap().is_some());
    reader.0.entry()[1].store(u64::MAX, Ordering::Relaxed);
    assert_eq!(reader.peek(), Err(Corrupt), "no header");
    let (mut writer, mut reader) = ring_of(64);
    let half = reader.0.capacity() as u64 / 2;
    writer.write(&short, &[1; 4]).unwrap();
    let long = Header { kind: Kind::Data, bytes: half, ..short };
    for (place, word) in reader.0.entry()[1..].iter().zip(long.words()) {
        place.store(word, Ordering::Relaxed);
    }
    assert!(reader.peek().unwrap().is_some(), "as much as half of the ring");
    reader.0.entry()[Header::WORDS - 2].store(half + 1, Ordering::Relaxed);
    assert_eq!(reader.peek(), Err(Corrupt), "longer than that");
    reader.skip(&short);
    writer.taken = (0, 0);
    reader.0.control().taken.0.frames.store(2, Ordering::Relaxed);
    assert_eq!(writer.look(), Err(Corrupt), "more is taken out than was put in");
}

#[test]
fn a_writer_that_goes_on_only_when_the_reader_asks_gets_everything_through() {
    const FRAMES: usize = 300;
    for bytes in [0, 4, 100, 5000, EAGER] {
        let (mut writer, mut reader) = ring();
        let (frame, data) = (header(Kind::Eager, 1, bytes), data(1, bytes));
        let mut left = FRAMES;
        let mut write_on = |left: &mut usize| {
            while *left > 0 && writer.write(&frame, &data).unwrap() {
                *left -= 1;
            }
        };
        write_on(&mut left);
        let mut taken = 0;
        while reader.has_frame() {
            reader.skip(&frame);
            taken += 1;
            if reader.is_to_ask(Kind::Eager, bytes) && reader.was_full() {
                write_on(&mut left);
            }
        }
        assert_eq!((taken, left), (FRAMES, 0), "{bytes} bytes");
    }
}
