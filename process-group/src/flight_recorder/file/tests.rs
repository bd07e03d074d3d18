use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn settings(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    Settings::from_variables(|name| {
        let found = variables.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| value.into())
    })
}

fn recorder(rank: usize) -> FlightRecorder {
    FlightRecorder::new(rank, 1)
}

#[test]
fn what_is_not_set_is_as_in_torch() {
    let found = settings(&[("HOME", "/home/one")]).unwrap();
    assert_eq!((found.entries, found.dump_on_timeout), (2000, true));
    assert_eq!(found.prefix, Path::new("/home/one/.cache/torch/comm_lib_trace_rank_"));
    let found = settings(&[("HOME", "/home/one"), ("XDG_CACHE_HOME", "/cache")]).unwrap();
    assert_eq!(found.prefix, Path::new("/cache/torch/comm_lib_trace_rank_"));
    assert_eq!(settings(&[]).unwrap().prefix, Path::new("/tmp/.cache/torch/comm_lib_trace_rank_"));
}

#[test]
fn variables_say_it_and_the_newer_name_counts() {
    let found = settings(&[
        ("TORCH_FR_BUFFER_SIZE", "0"),
        ("TORCH_NCCL_TRACE_BUFFER_SIZE", "7"),
        ("TORCH_FR_DUMP_TEMP_FILE", "/dumps/rank_"),
        ("TORCH_FR_DUMP_ON_TIMEOUT", "False"),
        ("HOME", "/home/one"),
    ]);
    assert_eq!(found, Ok(Settings { entries: 0, prefix: "/dumps/rank_".into(), dump_on_timeout: false }));
    let found = settings(&[
        ("TORCH_FR_BUFFER_SIZE", ""),
        ("TORCH_NCCL_TRACE_BUFFER_SIZE", "7"),
        ("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "old_"),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "n"),
    ]);
    assert_eq!(found, Ok(Settings { entries: 7, prefix: "old_".into(), dump_on_timeout: false }));
}

#[test]
fn a_value_that_is_none_is_an_error_with_the_variable() {
    for value in ["many", "-1", "1000001", "1.5"] {
        let error = settings(&[("TORCH_NCCL_TRACE_BUFFER_SIZE", value)]).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("TORCH_NCCL_TRACE_BUFFER_SIZE is {value:?}: no number of calls from 0 to 1000000")
        );
    }
    assert_eq!(settings(&[("TORCH_FR_BUFFER_SIZE", "1000000")]).unwrap().entries, MOST_ENTRIES);
    let error = settings(&[("TORCH_FR_DUMP_ON_TIMEOUT", "perhaps")]).unwrap_err();
    let value = "perhaps".into();
    assert_eq!(error, SettingsError::NotABool { variable: "TORCH_FR_DUMP_ON_TIMEOUT", value });
}

#[test]
fn a_dump_is_whole_this_users_alone_and_leaves_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("new/deep/rank_");
    for _ in 0..2 {
        let path = recorder(3).dump_to(&prefix).unwrap();
        assert_eq!(path, folder.path().join("new/deep/rank_3"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&folder.path().join("new"))), (0o600, 0o700));
        let mut bytes = Vec::new();
        recorder(3).dump().write_pickle(&mut bytes).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}

#[test]
fn a_symbolic_link_in_the_way_is_replaced_and_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = folder.path().join("elsewhere");
    fs::write(&elsewhere, "keep").unwrap();
    symlink(&elsewhere, folder.path().join("rank_0")).unwrap();
    let path = recorder(0).dump_to(&folder.path().join("rank_")).unwrap();
    assert!(fs::symlink_metadata(path).unwrap().is_file());
    assert_eq!(fs::read_to_string(elsewhere).unwrap(), "keep");
}

#[test]
fn a_dump_that_cannot_be_written_says_why_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("rank_0")).unwrap();
    let error = recorder(0).dump_to(&folder.path().join("rank_")).unwrap_err();
    assert_eq!(error.path, folder.path().join("rank_0"));
    assert_eq!(error.source.kind(), io::ErrorKind::IsADirectory);
    assert!(error.to_string().starts_with("the flight recorder's dump cannot be written to /"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    fs::write(folder.path().join("file"), "").unwrap();
    let error = recorder(0).dump_to(&folder.path().join("file/rank_")).unwrap_err();
    assert!(error.to_string().contains("/file/rank_0: its folder: "), "{error}");
}
