//! How boards answer NVML, each in its own way, and what is made of it.

use super::*;
use crate::topology::Topology;

fn device(bus: u8) -> Device {
    Device { pci: PciAddress { domain: 0, bus, device: 0, function: 0 }, uuid: [bus; 16] }
}

/// One link of a board that is not there.
#[derive(Clone, Copy)]
enum Scripted {
    /// The error's number: there is no such link, or something is broken.
    Refused(fn() -> NvmlError),
    Down,
    /// Up: NVML's answers for the type and the address of the far end.
    Up(Option<u32>, Option<&'static str>),
}

/// Links by index; beyond them a refusal.
struct Script(Vec<Scripted>, fn() -> NvmlError);

impl Probe for Script {
    fn is_active(&self, link: u32) -> Result<bool, NvmlError> {
        match self.0.get(link as usize) {
            Some(Scripted::Refused(error)) => Err(error()),
            Some(Scripted::Down) => Ok(false),
            Some(Scripted::Up(..)) => Ok(true),
            None => Err((self.1)()),
        }
    }

    fn remote_type(&self, link: u32) -> Option<u32> {
        match self.0[link as usize] {
            Scripted::Up(kind, _) => kind,
            _ => panic!("link {link} is not up, and need not be asked"),
        }
    }

    fn remote_address(&self, link: u32) -> Option<PciAddress> {
        match self.0[link as usize] {
            Scripted::Up(_, address) => address?.parse().ok(),
            _ => panic!("link {link} is not up, and need not be asked"),
        }
    }
}

const INVALID: fn() -> NvmlError = || NvmlError::InvalidArg;
const NOT_SUPPORTED: fn() -> NvmlError = || NvmlError::NotSupported;

fn gpu(address: &'static str) -> Scripted {
    Scripted::Up(Some(remote::GPU), Some(address))
}

fn switch(address: Option<&'static str>) -> Scripted {
    Scripted::Up(Some(remote::SWITCH), address)
}

fn probe(links: Vec<Scripted>, past_the_end: fn() -> NvmlError) -> Links {
    Links::probe(&Script(links, past_the_end)).unwrap()
}

fn linked(direct: &[Device], switch: u32) -> Links {
    Links { direct: direct.iter().map(|device| device.pci).collect(), switch, ..Links::default() }
}

#[test]
fn an_index_past_the_last_link_may_be_invalid_or_not_supported() {
    for refusal in [INVALID, NOT_SUPPORTED] {
        for count in [4, 6, 12, 18, 36] {
            assert_eq!(probe(vec![switch(None); count], refusal).switch, count as u32);
        }
        assert_eq!(probe(Vec::new(), refusal), Links::default(), "a board without NVLink");
    }
}

#[test]
fn a_hole_among_the_links_does_not_hide_those_behind_it() {
    for hole in [INVALID, NOT_SUPPORTED] {
        let links = vec![gpu("0:1:0.0"), Scripted::Refused(hole), Scripted::Down, gpu("0:2:0.0")];
        let links = probe(links, INVALID);
        assert_eq!(links.direct, [device(1).pci, device(2).pci]);
        assert_eq!(links.inactive, 1);
    }
}

#[test]
fn a_link_that_is_down_is_no_link() {
    let down = probe(vec![Scripted::Down; 6], INVALID);
    assert_eq!(down, Links { inactive: 6, ..Links::default() });
    let devices = [device(1), device(2)];
    let mesh = mesh(&devices, &[down.clone(), down]);
    assert_eq!((mesh.links(0, 1), mesh.classify()), (0, Topology::Unknown));
}

#[test]
fn any_other_answer_is_an_error_not_a_missing_link() {
    let lost = Scripted::Refused(|| NvmlError::GpuLost);
    let links = Links::probe(&Script(vec![gpu("0:1:0.0"), lost], INVALID));
    assert!(matches!(links, Err(NvmlError::GpuLost)), "{links:?}");
}

#[test]
fn a_switch_is_known_by_its_type_whatever_its_address_says() {
    // Of its own, the sentinel, empty, none; all links to one merged switch.
    for address in [Some("00000000:C5:00.0"), Some("FFFFFFFF:FF:FF.0"), Some(""), None] {
        let links = probe(vec![switch(address); 18], NOT_SUPPORTED);
        assert_eq!(links, Links { switch: 18, ..Links::default() }, "{address:?}");
    }
}

#[test]
fn an_old_nvml_without_types_still_tells_direct_links() {
    let links = probe(vec![Scripted::Up(None, Some("0000:02:00.0")), Scripted::Up(None, None)], INVALID);
    assert_eq!(links, Links { direct: vec![device(2).pci], hidden: 1, ..Links::default() });
}

#[test]
fn links_to_a_cpu_or_to_nowhere_connect_no_devices() {
    const CPU: u32 = 1;
    let nowhere = [Scripted::Up(Some(CPU), Some("0:2:0.0")), Scripted::Up(Some(remote::GPU), None)];
    let links = probe(nowhere.to_vec(), INVALID);
    assert_eq!(links, Links { other: 1, hidden: 1, ..Links::default() });
    assert_eq!(mesh(&[device(1), device(2)], &[links.clone(), links]).links(0, 1), 0);
}

#[test]
fn links_to_switches_that_a_virtual_machine_hides_are_counted_as_hidden() {
    // The type is unknown or cannot be asked for; the address is the one that stands for none (which `Board` leaves
    // out), empty, or none.
    for kind in [Some(remote::UNKNOWN), None] {
        for address in [Some(""), None] {
            let links = probe(vec![Scripted::Up(kind, address); 18], NOT_SUPPORTED);
            assert_eq!(links, Links { hidden: 18, ..Links::default() }, "{kind:?}, {address:?}");
            assert_eq!(mesh(&[device(1), device(2)], &[links.clone(), links]).links(0, 1), 0);
        }
    }
}

#[test]
fn a_link_of_unknown_type_to_a_known_device_is_direct() {
    let links = probe(vec![Scripted::Up(Some(remote::UNKNOWN), Some("0000:02:00.0"))], INVALID);
    assert_eq!(links, linked(&[device(2)], 0));
}

#[test]
fn both_spellings_of_an_address_are_the_same_device() {
    let long = Device { pci: "00000000:1B:00.0".parse().unwrap(), ..device(1) };
    let short = Device { pci: "0000:9e:00.0".parse().unwrap(), ..device(2) };
    let links = [
        probe(vec![gpu("0000:9E:00.0"), gpu("00000000:9e:00.0")], INVALID),
        probe(vec![gpu("0000:1b:00.0"); 2], INVALID),
    ];
    let mesh = mesh(&[long, short], &links);
    assert_eq!((mesh.links(0, 1), mesh.links(1, 0)), (2, 2));
}

#[test]
fn direct_links_are_counted_per_pair() {
    let devices = [device(1), device(2), device(3)];
    let links = [
        linked(&[devices[1], devices[1], devices[2]], 0),
        linked(&[devices[0], devices[0]], 0),
        linked(&[devices[0], device(9)], 0),
    ];
    let mesh = mesh(&devices, &links);
    assert_eq!((mesh.links(0, 1), mesh.links(0, 2), mesh.links(1, 2)), (2, 1, 0));
    assert_eq!(mesh.classify(), Topology::Unknown);
}

#[test]
fn a_pair_shares_the_switch_links_of_the_poorer_one() {
    let devices = [device(1), device(2), device(3)];
    let mesh = mesh(&devices, &[18, 17, 0].map(|switch| linked(&[], switch)));
    assert_eq!((mesh.links(0, 1), mesh.links(0, 2)), (17, 0));
}

#[test]
fn one_device_without_links_makes_a_switched_node_unknown() {
    let devices: Vec<Device> = (1..=8).map(device).collect();
    for degraded in 0..8 {
        let links: Vec<Links> =
            (0..8).map(|rank| linked(&[], if rank == degraded { 0 } else { 18 })).collect();
        let mesh = mesh(&devices, &links);
        assert_eq!(mesh.classify(), Topology::Unknown);
        let (a, b) = mesh.unlinked().unwrap();
        assert!(a == degraded || b == degraded, "{a} and {b}");
    }
}

#[test]
fn ranks_on_one_device_need_no_link() {
    let mesh = mesh(&[device(1), device(1)], &[Links::default(), Links::default()]);
    assert_eq!(mesh.links(0, 1), Mesh::SAME_DEVICE);
    assert_eq!(mesh.classify(), Topology::FullyConnected);
}
