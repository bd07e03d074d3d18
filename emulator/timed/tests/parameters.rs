//! Machines as TOML says them.

use meshreduce_emulator_timed::{Parameters, ParametersError};

#[test]
fn shipped_machines_are_whole_and_bear_their_names() {
    for name in Parameters::names() {
        let machine = Parameters::shipped(name).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((machine.name.as_str(), machine.gpus), (name, 8));
    }
}

#[test]
fn an_unknown_name_is_refused_with_those_that_there_are() {
    let error = Parameters::shipped("dgx-2").unwrap_err().to_string();
    assert!(error.contains("dgx-2") && error.contains("hgx-h100"), "{error}");
}

#[test]
fn numbers_that_cannot_be_are_refused_by_key() {
    let text = include_str!("../machines/hgx-h100.toml");
    let refused = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        Parameters::parse(&text.replace(from, to), "given").unwrap_err()
    };
    let error = refused("clock_mhz = 1980", "clock_mhz = 0");
    assert!(matches!(error, ParametersError::Number { key: "multiprocessor.clock_mhz", .. }), "{error}");
    let error = refused("link_gb_per_s = 25.0", "link_gb_per_s = -1.0");
    assert!(matches!(error, ParametersError::Number { key: "nvlink.link_gb_per_s", .. }), "{error}");
    let error = refused("switched = 18", "switched = 0");
    assert!(matches!(error, ParametersError::Number { key: "nvlink.direct", .. }), "{error}");
    let error = refused("switched = 18", "switched = 18\nwide = 1");
    assert!(matches!(&error, ParametersError::Text { name, .. } if name == "given"), "{error}");
}
