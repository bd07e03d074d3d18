//! A process that has as many descriptors as it may have. The only test of its program: the limit is the process's.

use meshreduce_verbs_loader::{Error, Library};

/// Says how many descriptors this process may have; how many it might have before.
fn limit(most: libc::rlim_t) -> libc::rlim_t {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the place is a limit's, and outlives the call.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
    let before = std::mem::replace(&mut limit.rlim_cur, most);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    before
}

#[test]
fn without_descriptors_nobody_is_told_to_install_it_and_later_it_is_looked_for_again() {
    let before = limit(0);
    let found = Library::find();
    limit(before);
    assert_eq!(found.as_ref().err(), Some(&Error::NoDescriptors), "{found:?}");
    let text = Error::NoDescriptors.to_string();
    assert!(text.contains("ulimit -n") && !text.contains("install"), "{text}");
    // There is one, or there is none: but that is known now.
    assert_ne!(Library::find().err(), Some(Error::NoDescriptors));
}
