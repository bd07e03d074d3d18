//! NICs shared out evenly.

/// For each GPU the ports that it may go by become those that it does go by.
///
/// Everyone gets the least loaded of its own, those with the fewest to choose from first; what is then left without load is given out in
/// further rounds. So where several GPUs share several NICs no NIC serves two GPUs while another idles, a GPU alone with several NICs
/// gets them all, and the outcome depends on nothing but the order of GPUs and ports, which is that of their addresses.
pub(crate) fn share(wanted: &[Vec<usize>], ports: usize) -> Vec<Vec<usize>> {
    let mut load = vec![0_usize; ports];
    let mut shares = vec![Vec::new(); wanted.len()];
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|gpu| wanted[*gpu].len());
    for round in 0.. {
        let mut given = false;
        for &gpu in &order {
            let others = wanted[gpu].iter().copied().filter(|port| !shares[gpu].contains(port));
            let Some(port) = others.min_by_key(|port| (load[*port], *port)) else { continue };
            if round == 0 || load[port] == 0 {
                load[port] += 1;
                shares[gpu].push(port);
                given = true;
            }
        }
        if !given {
            break;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_ports_as_gpus_are_given_out_one_each() {
        assert_eq!(share(&[vec![0, 1], vec![0, 1]], 2), [vec![0], vec![1]]);
    }

    #[test]
    fn spare_ports_widen_stripes_and_missing_ones_are_shared_evenly() {
        assert_eq!(share(&[vec![0, 1, 2, 3]], 4), [vec![0, 1, 2, 3]]);
        assert_eq!(share(&[vec![0, 1, 2], vec![0, 1, 2]], 3), [vec![0, 2], vec![1]]);
        let shares = share(&vec![vec![0, 1, 2]; 8], 3);
        let load = |port| shares.iter().filter(|share| share.contains(&port)).count();
        assert_eq!([load(0), load(1), load(2)], [3, 3, 2]);
    }

    #[test]
    fn who_has_no_choice_goes_first() {
        // The second has port 0 alone; the first would otherwise take it.
        assert_eq!(share(&[vec![0, 1], vec![0]], 2), [vec![1], vec![0]]);
    }

    #[test]
    fn who_may_go_by_none_gets_none() {
        assert_eq!(share(&[vec![], vec![0]], 1), [vec![], vec![0]]);
    }
}
