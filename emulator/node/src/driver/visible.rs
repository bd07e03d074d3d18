//! `CUDA_VISIBLE_DEVICES`: which devices a process sees, and in which order.

/// The devices that `list` names, by index or by the beginning of a UUID (`GPU-1a2b...`). As in the real driver, the
/// first entry that names no device, or names one again, ends the list.
pub(super) fn parse(list: &str, uuids: &[String]) -> Vec<usize> {
    let mut visible = Vec::new();
    for entry in list.split(',').map(str::trim) {
        match device(entry, uuids) {
            Some(device) if !visible.contains(&device) => visible.push(device),
            _ => break,
        }
    }
    visible
}

fn device(entry: &str, uuids: &[String]) -> Option<usize> {
    if !entry.is_empty() && entry.bytes().all(|byte| byte.is_ascii_digit()) {
        return entry.parse().ok().filter(|&index| index < uuids.len());
    }
    let prefix = entry.to_ascii_lowercase();
    if prefix.len() <= "gpu-".len() || !prefix.starts_with("gpu-") {
        return None;
    }
    let mut matching =
        (0..uuids.len()).filter(|&index| uuids[index].to_ascii_lowercase().starts_with(&prefix));
    let first = matching.next()?;
    // A beginning that fits two devices names neither.
    matching.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uuids() -> Vec<String> {
        ["GPU-aa01", "GPU-aa02", "GPU-bb03", "GPU-cc04"].map(str::to_owned).to_vec()
    }

    #[test]
    fn devices_are_named_by_index_or_uuid_in_any_order() {
        assert_eq!(parse("3,0, 1", &uuids()), [3, 0, 1]);
        assert_eq!(parse("GPU-bb,gpu-AA02", &uuids()), [2, 1]);
        assert_eq!(parse("GPU-cc04,0", &uuids()), [3, 0]);
    }

    #[test]
    fn the_first_entry_that_names_no_device_ends_the_list() {
        assert_eq!(parse("1,9,0", &uuids()), [1]);
        assert_eq!(parse("-1", &uuids()), [] as [usize; 0]);
        assert_eq!(parse("", &uuids()), [] as [usize; 0]);
        assert_eq!(parse("0,GPU-aa,1", &uuids()), [0], "a prefix of two devices names neither");
        assert_eq!(parse("2,2,1", &uuids()), [2], "no device is visible twice");
        assert_eq!(parse("GPU-", &uuids()), [] as [usize; 0]);
    }
}
