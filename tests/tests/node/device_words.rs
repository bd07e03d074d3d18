//! Words that streams wait for and write, on the emulated node.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshreduce_checks::in_process::{
    driver_calls, fail_driver_calls, lose_context, open_driver, reset_context,
};
use meshreduce_device::{ContextState, DeviceMemory, PrimaryContext, Stream, Word, Words, initialise};

const NOT_SUPPORTED: u32 = 801;
const LONG: Duration = Duration::from_secs(60);

/// The device's context. Each test has a device of its own, because freeing memory waits for all that runs on it.
fn context(device: u32) -> Arc<PrimaryContext> {
    open_driver();
    initialise().unwrap();
    PrimaryContext::retain(device).unwrap()
}

/// A stream that goes on when the word is set to 1.
fn held(words: &Words) -> (Stream, Word) {
    let (stream, gate) = (Stream::new(words.context()).unwrap(), words.take().unwrap());
    // SAFETY: the stream is alive, and not being captured.
    unsafe { gate.enqueue_wait(1, stream.raw()) }.unwrap();
    (stream, gate)
}

fn wait_until(mut is_so: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + LONG;
    while !is_so() {
        assert!(std::time::Instant::now() < end, "it does not come");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Keeps the tests that count a device's words from each other.
fn alone() -> MutexGuard<'static, ()> {
    static COUNTING: Mutex<()> = Mutex::new(());
    COUNTING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn host_and_stream_tell_each_other_how_far_they_are() {
    let context = context(0);
    let words = Words::new(&context).unwrap();
    let (stream, memory) = (Stream::new(&context).unwrap(), DeviceMemory::new(&context, 4).unwrap());
    let (to, from) = (words.take().unwrap(), words.take().unwrap());
    for round in 1..=20 {
        // SAFETY: the stream is alive and not being captured; the values grow, and only this stream writes them.
        unsafe {
            to.enqueue_wait(round, stream.raw()).unwrap();
            memory.set(0, round, &stream).unwrap();
            from.enqueue_write(round, stream.raw()).unwrap();
        }
        assert!(!from.has_reached(round));
        to.set(round);
        wait_until(|| from.value() == round);
    }
    assert!(stream.finish(LONG).unwrap());
}

#[test]
fn a_wait_and_a_write_are_one_driver_call_each() {
    let context = context(0);
    let words = Words::new(&context).unwrap();
    let (stream, word) = (Stream::new(&context).unwrap(), words.take().unwrap());
    let before = driver_calls();
    // SAFETY: the stream is alive and not being captured, and this is the first write.
    unsafe {
        word.enqueue_write(1, stream.raw()).unwrap();
        word.enqueue_wait(1, stream.raw()).unwrap();
    }
    // The one that asks counts too.
    assert_eq!(driver_calls() - before, 3);
    assert!(stream.finish(LONG).unwrap());
}

#[test]
fn a_word_with_a_write_on_its_way_gets_no_other_user_before_it_is_made() {
    let _alone = alone();
    let words = Words::new(&context(1)).unwrap();
    let (stream, gate) = held(&words);
    let written = words.take().unwrap();
    // SAFETY: the stream is alive and not being captured, and this is the first write.
    unsafe { written.enqueue_write(5, stream.raw()) }.unwrap();
    drop(written);
    // As many as there are: none of them is the one that was given back.
    let others: Vec<Word> = (0..200).map(|_| words.take().unwrap()).collect();
    others.iter().for_each(|word| word.set(1));
    gate.set(1);
    assert!(stream.finish(LONG).unwrap());
    assert!(others.iter().all(|word| word.value() == 1), "the write went elsewhere");
    // Now it is free, and begins at 0 for whoever has it.
    drop(others);
    let again: Vec<Word> = (0..64).map(|_| words.take().unwrap()).collect();
    assert!(again.iter().all(|word| word.value() == 0));
}

#[test]
fn a_stream_that_looks_late_at_a_word_goes_on_although_it_has_another_user() {
    let _alone = alone();
    let words = Words::new(&context(2)).unwrap();
    let (stream, gate) = held(&words);
    let late = words.take().unwrap();
    // SAFETY: the stream is alive and not being captured.
    unsafe { late.enqueue_wait(7, stream.raw()) }.unwrap();
    late.set(7);
    drop(late);
    // The value is there, so whoever comes may have it; one of these does.
    let others: Vec<Word> = (0..200).map(|_| words.take().unwrap()).collect();
    others.iter().for_each(|word| word.set(3));
    gate.set(1);
    assert!(stream.finish(LONG).unwrap());
}

#[test]
fn what_is_given_up_lets_all_streams_go_on() {
    let words = Words::new(&context(0)).unwrap();
    let stream = Stream::new(words.context()).unwrap();
    let word = words.take().unwrap();
    for at_least in [3, 9, 4] {
        // SAFETY: the stream is alive and not being captured.
        unsafe { word.enqueue_wait(at_least, stream.raw()) }.unwrap();
    }
    assert!(!stream.finish(Duration::from_millis(20)).unwrap());
    word.clone().release();
    assert!(stream.finish(LONG).unwrap());
    assert_eq!(word.value(), 9);
    word.release();
    assert_eq!(word.value(), 9);
}

#[test]
fn dropping_words_never_waits_for_a_stream() {
    let context = context(3);
    let words = Words::new(&context).unwrap();
    let (stream, gate) = held(&words);
    let kept = gate.clone();
    drop((words, gate));
    // Another source of the same context uses the same memory.
    let words = Words::new(&context).unwrap();
    drop(words.take().unwrap());
    kept.set(1);
    drop((words, kept));
    assert!(stream.finish(LONG).unwrap());
}

#[test]
#[should_panic(expected = "the word is written by a stream")]
fn the_host_does_not_set_what_a_stream_writes() {
    let words = Words::new(&context(0)).unwrap();
    let (stream, word) = (Stream::new(words.context()).unwrap(), words.take().unwrap());
    // SAFETY: the stream is alive and not being captured, and this is the first write.
    unsafe { word.enqueue_write(1, stream.raw()) }.unwrap();
    word.set(2);
}

#[test]
fn a_device_that_cannot_says_so() {
    let words = Words::new(&context(0)).unwrap();
    let (stream, word) = (Stream::new(words.context()).unwrap(), words.take().unwrap());
    for function in ["cuStreamWaitValue32_v2", "cuStreamWriteValue32_v2"] {
        fail_driver_calls(function, NOT_SUPPORTED, 0, 1);
    }
    // SAFETY: the stream is alive and not being captured, and nothing is written.
    let answers = unsafe { [word.enqueue_wait(1, stream.raw()), word.enqueue_write(1, stream.raw())] };
    assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(|error| error.is_unsupported())));
}

#[test]
fn words_go_with_their_context_and_the_next_one_has_others() {
    let old = context(4);
    let words = Words::new(&old).unwrap();
    let word = words.take().unwrap();
    word.set(1);
    reset_context(4);
    assert_eq!(old.state(), ContextState::Reset);
    assert!(words.take().is_err() && Words::new(&old).is_err());
    assert_eq!(word.value(), 1, "the host reads it still");

    let new = context(4);
    let words = Words::new(&new).unwrap();
    let (stream, gate) = held(&words);
    drop(word);
    gate.set(1);
    assert!(stream.finish(LONG).unwrap());
}

#[test]
fn a_lost_context_says_so_and_what_its_streams_were_to_write_the_host_writes() {
    let (lost, other) = (context(5), context(6));
    assert_eq!(lost.check(), Ok(()));
    let words = Words::new(&lost).unwrap();
    let (stream, gate) = held(&words);
    let word = words.take().unwrap();
    let module = lose_context(&stream);
    let waiting = Stream::new(&other).unwrap();
    // SAFETY: the streams are alive and not being captured; it is the word's only write.
    unsafe {
        word.enqueue_write(1, stream.raw()).unwrap();
        word.enqueue_wait(1, waiting.raw()).unwrap();
    }
    gate.set(1);
    wait_until(|| lost.check().is_err());
    let error = lost.check().unwrap_err();
    assert_eq!((&*error.name, error.loses_context()), ("CUDA_ERROR_ILLEGAL_ADDRESS", true));
    assert!(!word.has_reached(1) && !waiting.finish(Duration::ZERO).unwrap());
    // SAFETY: the context is lost: none of its streams does anything any more.
    unsafe { word.give_up() };
    assert!(waiting.finish(LONG).unwrap());
    assert_eq!(other.check(), Ok(()));
    drop((word, module));
    reset_context(5);
    assert_eq!(lost.check().unwrap_err().name, "CUDA_ERROR_CONTEXT_IS_DESTROYED");
}
