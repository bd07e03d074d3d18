//! The variable that names the library.

use meshreduce_verbs_loader::{Error, Library};

#[test]
fn the_variable_names_the_library_and_the_answer_stays() {
    // SAFETY: the only test of this program, and nothing else reads the environment.
    unsafe { std::env::set_var("MESHREDUCE_VERBS", "/nonexistent/verbs.so") };
    let first = Library::find().unwrap_err();
    let Error::NotFound { tried } = &first else { panic!("{first:?}") };
    assert_eq!(tried[0].library.to_str(), Some("/nonexistent/verbs.so"));
    // SAFETY: as above.
    unsafe { std::env::set_var("MESHREDUCE_VERBS", "/elsewhere/verbs.so") };
    assert_eq!(Library::find().unwrap_err(), first);
}
