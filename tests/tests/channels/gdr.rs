//! Channels over RDMA, on emulated nodes whose adapters do what hardware does, right and wrong.
#![forbid(unsafe_code)]

use meshreduce_checks::gdr::node::TWO;
use meshreduce_tests::gdr::{Stage, Told};

/// Fails with what both sides have said unless they have ended well and `side` has said `what`.
fn says(told: &[Told; 2], side: usize, what: &str) {
    let [a, b] = told;
    assert!(a.well && b.well, "{}\n{}", a.said, b.said);
    assert!(told[side].said.contains(what), "{what:?} is not what side {side} says:\n{}\n{}", a.said, b.said);
}

fn does_not_say(told: &[Told; 2], what: &str) {
    assert!(told.iter().all(|one| !one.said.contains(what)), "{}\n{}", told[0].said, told[1].said);
}

/// A node of two GPUs and two adapters, changed: every pair is a text in its description and what stands there instead.
fn two(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(TWO.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    })
}

/// One GPU with both adapters below its switch. (Where GPUs have the same adapters, each gets its share of them.)
fn both_near_the_first() -> String {
    two(&[
        ("gpus = 2", "gpus = 1"),
        (", [\"0000:00:02.0\", \"0000:11:00.0\", \"0000:12:00.0\"]", ""),
        (
            "pci = \"0000:15:00.0\"\npci_path = [\"0000:00:02.0\", \"0000:11:00.0\", \"0000:12:02.0\"]",
            "pci = \"0000:06:00.0\"\npci_path = [\"0000:00:01.0\", \"0000:01:00.0\", \"0000:02:03.0\"]",
        ),
    ])
}

mod transfers {
    use super::*;

    #[test]
    fn go_between_processes_in_both_directions() {
        Stage::new("transfers").goes_well();
    }

    #[test]
    fn go_between_two_nodes() {
        Stage::new("transfers").on_two(TWO, TWO).between("cuda:0", "cuda:0").goes_well();
    }

    #[test]
    fn go_within_one_process_and_over_one_adapter() {
        Stage::new("transfers").in_one_process().between("cuda:0", "cuda:0").goes_well();
        Stage::new("transfers").in_one_process().goes_well();
    }

    #[test]
    fn go_between_host_and_device() {
        Stage::new("transfers").between("cpu", "cuda:1").goes_well();
        Stage::new("transfers").between("cpu", "cpu").goes_well();
    }

    #[test]
    fn go_over_infiniband() {
        let band = two(&[("name = \"mlx5_", "link_layer = \"infiniband\"\nname = \"mlx5_")]);
        Stage::new("transfers").on_two(&band, &band).goes_well();
    }

    #[test]
    fn go_in_pieces_no_longer_than_either_side_takes() {
        let short = two(&[("name = \"mlx5_1\"", "max_message_bytes = 5000\nname = \"mlx5_1\"")]);
        // From and to the adapter with the short messages.
        Stage::new("transfers").on(&short).with("--count 60").goes_well();
        Stage::new("batches").on(&short).goes_well();
    }

    #[test]
    fn go_with_as_few_credits_as_can_be() {
        Stage::new("transfers").with("--credits 2 --chunk 30000 --count 60").goes_well();
        Stage::new("transfers").with("--credits 5 --depth 2 --chunk 10000 --count 60").goes_well();
    }

    #[test]
    fn go_over_all_adapters_that_are_equally_near() {
        let told = Stage::new("goes_by").on(&both_near_the_first()).between("cuda:0", "cuda:0").goes_well();
        says(&told, 0, "OVER mlx5_0");
        says(&told, 0, "OVER mlx5_1");
        let few = Stage::new("goes_by").on(&both_near_the_first()).between("cuda:0", "cuda:0");
        let told = few.with("--stripe 10000000").goes_well();
        says(&told, 0, "OVER mlx5_0");
        does_not_say(&told, "OVER mlx5_1");
    }

    #[test]
    #[ignore = "the long form: several GiB of memory"]
    fn go_up_to_a_gibibyte() {
        let large = two(&[("memory_mib = 512", "memory_mib = 2560")]);
        let told = Stage::new("lengths_up_to").on(&large).with("--bytes 1073741824").goes_well();
        says(&told, 1, "LENGTH 1073741824");
    }

    #[test]
    fn find_their_addresses_wherever_they_stand_in_the_table() {
        let table = |last: u8| {
            format!(
                "gids = [{{ gid = \"::\", type = \"roce_v1\" }}, {{ gid = \"fe80::{last}\", type = \"roce_v2\" }}, \
                 {{ gid = \"::ffff:10.1.1.{last}\", type = \"roce_v1\" }}, {{ gid = \"2001:db8::{last}\", type = \"roce_v2\" }}, \
                 {{ gid = \"::ffff:10.1.1.{last}\", type = \"roce_v2\" }}]\nname = \"mlx5_"
            )
        };
        let node = |last: u8| {
            let first = TWO.replacen("name = \"mlx5_", &table(last), 1);
            first.replacen("name = \"mlx5_1", &format!("{}1", table(last + 1)), 1)
        };
        Stage::new("transfers").on_two(&node(1), &node(3)).goes_well();
    }
}

mod regions {
    use super::*;

    #[test]
    fn are_written_in_pages_rows_and_stretches() {
        Stage::new("batches").goes_well();
        Stage::new("batches").in_one_process().goes_well();
        Stage::new("batches").between("cpu", "cuda:0").goes_well();
    }

    #[test]
    fn are_written_over_all_adapters_that_are_equally_near() {
        let near = both_near_the_first();
        Stage::new("batches").on(&near).between("cuda:0", "cuda:0").goes_well();
        Stage::new("batches")
            .on(&near)
            .between("cuda:0", "cuda:0")
            .with("--credits 4 --stripe 1")
            .goes_well();
    }

    #[test]
    fn count_batches_in_order_however_few_receives_there_are() {
        Stage::new("many_small_batches").with("--credits 4").goes_well();
        Stage::new("many_small_batches").with("--count 3000").goes_well();
        let near = both_near_the_first();
        Stage::new("many_small_batches").on(&near).between("cuda:0", "cuda:0").with("--stripe 1").goes_well();
    }

    /// (What it costs is for people to read: with `--nocapture`.)
    #[test]
    fn are_written_page_by_page_and_the_cost_of_posting_is_told() {
        let told = Stage::new("posting").with("--count 8000").goes_well();
        print!("{}", told[0].said);
        says(&told, 0, "POSTING ");
        says(&told, 0, "THREAD ");
    }

    #[test]
    fn that_are_given_up_fail_what_comes_late_and_nothing_else() {
        Stage::new("a_region_is_withdrawn").goes_well();
        Stage::new("a_region_is_withdrawn").between("cpu", "cpu").goes_well();
    }

    #[test]
    fn of_host_memory_serve_transfers_too() {
        Stage::new("host_memory_of_a_region").between("cpu", "cpu").goes_well();
    }
}

mod registrations {
    use super::*;

    #[test]
    fn are_made_once_for_an_allocation_and_kept_within_bounds() {
        Stage::new("registrations_are_kept").goes_well();
        Stage::new("registrations_are_kept").with("--cache-entries 3").goes_well();
        Stage::new("registrations_are_kept").with("--cache-bytes 100000").goes_well();
    }

    #[test]
    fn of_freed_memory_are_forgotten_and_never_used_for_other_memory() {
        Stage::new("freed_memory_is_forgotten").goes_well();
        Stage::new("freed_memory_is_forgotten").with("--peermem-first").goes_well();
    }

    #[test]
    fn of_memory_that_was_freed_without_a_word_end_too() {
        Stage::new("freed_memory_is_found").goes_well();
        Stage::new("freed_memory_is_found").with("--peermem-first").goes_well();
    }

    #[test]
    fn cost_a_warm_transfer_nothing() {
        Stage::new("a_warm_transfer_registers_nothing").goes_well();
        Stage::new("a_warm_transfer_registers_nothing").with("--peermem-first --chunk 100000").goes_well();
    }

    #[test]
    fn fall_back_from_one_way_to_the_other() {
        for faults in ["fail=ibv_reg_dmabuf_mr EINVAL 1", "fail=ibv_reg_dmabuf_mr EFAULT 1"] {
            Stage::new("transfers").faults(0, faults).with("--count 20").goes_well();
        }
        // The first call of it is the probe of host memory.
        let told = Stage::new("transfers")
            .faults(1, "fail=ibv_reg_mr_iova2 EFAULT 2")
            .with("--count 20 --peermem-first")
            .goes_well();
        assert!(told[0].well);
    }

    #[test]
    fn that_are_refused_fail_their_transfer_alone_and_say_why() {
        let none = two(&[("dma_buf = true", "dma_buf = false")]);
        for (errno, side) in [("EFAULT", 0), ("ENOMEM", 1)] {
            let stage = Stage::new("one_fails_and_the_next_goes").on(&none);
            // Which of the verb's forms the library is asked for depends on the flags.
            let faulty = stage
                .fault(side, &format!("fail ibv_reg_mr {errno}"))
                .fault(side, &format!("fail ibv_reg_mr_iova2 {errno}"));
            let told = faulty.goes_well();
            says(&told, side, "FAILED \"Verbs\" the allocation of 1048576 bytes");
            says(&told, side, "cannot be registered with mlx5_");
            says(&told, 1 - side, "FAILED \"Remote\"");
            says(&told, 0, "NEXT");
        }
    }
}

mod viability {
    use super::*;

    /// What the doctor's table says on a node.
    fn report(description: &str, faults: &str) -> String {
        let stage = Stage::new("report").on(description).in_one_process().faults(0, faults);
        let [told, _] = stage.play();
        assert!(told.well, "{}", told.said);
        told.said
    }

    /// Transfers that gdr cannot serve go by basic, and without basic the error names the reason.
    fn next_serves(stage: impl Fn() -> Stage, reason: &str) {
        let told = stage().with("--channels gdr,basic").goes_well();
        says(&told, 0, "SERVED by basic");
        says(&told, 1, "SERVED by basic");
        let told = stage().goes_well();
        says(&told, 0, "NONE");
        says(&told, 0, reason);
    }

    #[test]
    fn without_libibverbs_there_is_none() {
        let without = || {
            let nowhere = "/nowhere/libibverbs.so.1";
            let stage = Stage::new("goes_by").variable(0, "MESHREDUCE_VERBS", nowhere);
            stage.variable(1, "MESHREDUCE_VERBS", nowhere)
        };
        next_serves(without, "cannot open libibverbs: /nowhere/libibverbs.so.1");
    }

    #[test]
    fn on_one_side_alone_it_is_not_chosen() {
        let stage = || Stage::new("goes_by").variable(1, "MESHREDUCE_VERBS", "/nowhere/libibverbs.so.1");
        let told = stage().with("--channels gdr,basic").goes_well();
        says(&told, 0, "SERVED by basic");
        let told = stage().goes_well();
        says(&told, 0, "gdr: not viable there: cannot open libibverbs");
    }

    #[test]
    fn without_an_adapter_there_is_none() {
        next_serves(|| Stage::new("goes_by").on("h100x4"), "libibverbs knows no NIC");
    }

    #[test]
    fn without_peermem_and_dma_buf_host_memory_alone_is_served() {
        let without = two(&[
            ("peermem = \"nvidia_peermem\"", "peermem = \"none\""),
            ("dma_buf = true", "dma_buf = false"),
        ]);
        next_serves(
            || Stage::new("goes_by").on(&without),
            "neither the module nvidia-peermem (or nv_peer_mem) is loaded nor dma-bufs work",
        );
        let told = Stage::new("goes_by").on(&without).between("cpu", "cpu").goes_well();
        says(&told, 0, "SERVED by gdr");
    }

    #[test]
    fn with_either_spelling_of_peermem_or_with_dma_buf_devices_are_served() {
        for changes in [
            [
                ("peermem = \"nvidia_peermem\"", "peermem = \"nv_peer_mem\""),
                ("dma_buf = true", "dma_buf = false"),
            ],
            [("peermem = \"nvidia_peermem\"", "peermem = \"none\""), ("dma_buf = true", "dma_buf = true")],
        ] {
            let told = Stage::new("goes_by").on(&two(&changes)).goes_well();
            says(&told, 0, "SERVED by gdr");
        }
    }

    #[test]
    fn with_all_ports_down_there_is_none() {
        let down = two(&[("name = \"mlx5_", "state = \"down\"\nname = \"mlx5_")]);
        next_serves(|| Stage::new("goes_by").on(&down), "mlx5_0: port down");
    }

    #[test]
    fn with_one_port_down_the_other_serves() {
        let down = two(&[("name = \"mlx5_0\"", "state = \"down\"\nname = \"mlx5_0\"")]);
        let told = Stage::new("goes_by").on(&down).goes_well();
        says(&told, 0, "OVER mlx5_1");
        assert!(report(&down, "").contains("mlx5_0: port down"));
    }

    #[test]
    fn a_bonds_slave_is_left_out() {
        let slave = two(&[("name = \"mlx5_0\"", "netdev = \"eth0\"\nbond_slave = true\nname = \"mlx5_0\"")]);
        let said = report(&slave, "");
        assert!(said.contains("mlx5_0: slave of bond0"), "{said}");
    }

    #[test]
    fn with_too_little_memory_to_lock_there_is_none() {
        let locked = two(&[("gpus = 2", "memlock_kib = 64\ngpus = 2")]);
        next_serves(|| Stage::new("goes_by").on(&locked), "(ENOMEM); the limit of locked memory is");
    }

    #[test]
    fn what_a_system_answers_at_the_beginning_is_a_reason_and_no_more() {
        for call in ["ibv_open_device", "ibv_query_device", "ibv_query_port", "ibv_alloc_pd", "ibv_create_cq"]
        {
            for errno in ["EOPNOTSUPP", "EINVAL", "ENOMEM", "EPERM"] {
                for style in ["positive", "negative", "minus_one"] {
                    let said = report(TWO, &format!("errno={style};fail={call} {errno}"));
                    let reason = said.lines().find(|line| line.contains("gdr")).unwrap_or_default();
                    assert!(
                        reason.contains(call) && reason.contains(errno),
                        "{call} {errno} {style}:\n{said}"
                    );
                }
            }
        }
        let said = report(TWO, "fail=ibv_get_device_list ENOSYS");
        assert!(said.contains("ENOSYS"), "{said}");
    }

    #[test]
    fn a_window_smaller_than_the_memory_is_a_warning() {
        let small = two(&[("memory_mib = 512", "memory_mib = 512\nbar1_mib = 256")]);
        let said = report(&small, "");
        assert!(said.contains("cuda:0: warning: BAR1 has 256 MiB, the memory 512 MiB"), "{said}");
        assert!(!report(TWO, "").contains("warning"));
    }

    #[test]
    fn adapters_of_one_name_are_one() {
        let told =
            Stage::new("goes_by").faults(0, "duplicate_names=on").faults(1, "duplicate_names=on").play();
        assert!(told[0].well, "{}", told[0].said);
    }

    #[test]
    fn a_map_decides_where_there_is_one() {
        let told = Stage::new("goes_by").with("--nics cuda:0=mlx5_1;cuda:1=mlx5_0").goes_well();
        says(&told, 0, "OVER mlx5_1");
        says(&told, 1, "OVER mlx5_0");
        let by_variable = Stage::new("goes_by").variable(0, "MESHREDUCE_NICS", "cuda:0=mlx5_1");
        says(&by_variable.goes_well(), 0, "OVER mlx5_1");
        let told = Stage::new("goes_by").with("--nics cuda:0=mlx5_7").goes_well();
        says(&told, 0, "the map has cuda:0=mlx5_7, but there is no such port");
    }
}

mod rails {
    use super::*;

    /// A fabric on which the first adapters of nodes reach each other, and the second ones, and no others.
    fn rails() -> String {
        two(&[
            ("name = \"mlx5_0\"", "fabric = \"rail0\"\nname = \"mlx5_0\""),
            ("name = \"mlx5_1\"", "fabric = \"rail1\"\nname = \"mlx5_1\""),
        ])
    }

    #[test]
    fn of_one_number_meet() {
        let told = Stage::new("goes_by").on_two(&rails(), &rails()).between("cuda:1", "cuda:1").goes_well();
        says(&told, 0, "OVER mlx5_1");
        does_not_say(&told, "OVER mlx5_0");
    }

    #[test]
    fn that_do_not_reach_each_other_are_replaced_by_some_that_do() {
        let stage = Stage::new("transfers")
            .on_two(&rails(), &rails())
            .with("--count 30 --timeout 14 --connect-ms 3000");
        stage.goes_well();
    }

    #[test]
    fn none_of_which_reach_each_other_end_the_channel_with_their_names() {
        let stage = Stage::new("ends_with_an_error").with("--count 0 --timeout 14 --connect-ms 2000");
        let stage = stage.with("--nics cuda:0=mlx5_0;cuda:1=mlx5_1").on_two(&rails(), &rails());
        let told = stage.goes_well();
        // The side that has connected tries, and the other one is told.
        says(&told, 1, "FAILED \"Verbs\" no NICs connect cuda:1 here with cuda:0 of party a");
        says(&told, 1, "mlx5_1 to mlx5_0: RDMA write of the greeting: transport retry counter exceeded");
        says(&told, 0, "FAILED \"Remote\"");
    }
}

mod ends {
    use super::*;

    /// What both sides say of a transfer of 8 MiB from side 0, whose adapter has this fault in its midst.
    fn fault(fault: &str, arguments: &str) -> [Told; 2] {
        let stage = Stage::new("ends_with_an_error").with("--bytes 8388608 --chunk 65536").with(arguments);
        stage.fault(0, "hold on").fault(0, fault).fault(0, "hold off").goes_well()
    }

    #[test]
    fn a_port_that_goes_down_fails_what_goes_over_it() {
        let told = fault("port_down mlx5_0", "--port-down-ms 100");
        says(&told, 0, "FAILED \"Verbs\" port 1 of mlx5_0 is down");
        says(&told, 1, "FAILED \"Remote\" party a");
        says(&told, 1, "port 1 of mlx5_0 is down");
        says(&told, 0, "LATER port 1 of mlx5_0 is down");
    }

    #[test]
    fn a_port_that_comes_back_loses_nothing() {
        let stage = Stage::new("ends_with_an_error")
            .with("--bytes 8388608 --chunk 65536 --timeout 20 --port-down-ms 60000");
        let stage = stage
            .fault(0, "hold on")
            .fault(0, "port_down mlx5_0")
            .fault(0, "port_up mlx5_0")
            .fault(0, "hold off");
        let told = stage.goes_well();
        says(&told, 0, "WELL");
        says(&told, 1, "WELL");
    }

    #[test]
    fn a_link_that_is_cut_fails_with_the_status_of_the_write() {
        let told = fault("cut mlx5_0", "--timeout 14");
        says(
            &told,
            0,
            "FAILED \"Verbs\" mlx5_0 to mlx5_1: RDMA write of send 1: transport retry counter exceeded (IBV_WC_RETRY_EXC_ERR",
        );
        says(&told, 1, "FAILED \"Remote\"");
    }

    #[test]
    fn a_cut_between_the_two_sides_themselves_is_a_lost_peer_for_both() {
        let told = Stage::new("the_link_is_cut").with("--tcp --bytes 8388608 --chunk 65536").goes_well();
        says(&told, 0, "LOST");
        says(&told, 1, "LOST");
        Stage::new("the_link_is_cut").on_two(TWO, TWO).between("cpu", "cuda:1").with("--tcp").goes_well();
    }

    #[test]
    fn the_cause_is_told_whatever_the_opcode_says() {
        let stage =
            Stage::new("ends_with_an_error").faults(0, "garbage_opcode=on").faults(1, "garbage_opcode=on");
        let stage = stage.with("--both-ways --bytes 8388608 --chunk 65536 --timeout 14").fault(0, "hold on");
        let told = stage.fault(0, "cut mlx5_0").fault(0, "hold off").goes_well();
        says(&told, 0, "transport retry counter exceeded");
        does_not_say(&told, "Flushed");
    }

    #[test]
    fn a_peer_that_is_killed_is_found_and_named() {
        Stage::new("kills").with("--kills 12 --bytes 3000000").in_one_process().goes_well();
        Stage::new("kills").with("--kills 6 --bytes 30000000 --chunk 100000").in_one_process().goes_well();
    }
}

mod visibility {
    use super::*;

    #[test]
    fn data_that_come_late_are_seen_all_the_same() {
        let late = two(&[("compute_capability = \"8.0\"", "compute_capability = \"8.0\"")]);
        Stage::new("what_comes_late_is_seen").on(&late).faults(1, "late_visibility=on").goes_well();
        Stage::new("batches")
            .on(&late)
            .faults(0, "late_visibility=on")
            .faults(1, "late_visibility=on")
            .goes_well();
    }
}

mod mutants {
    use super::*;

    /// Whether a scenario notices that both sides make a mistake, by one of these things that at least one of them says.
    fn is_killed(stage: Stage, mutant: &str, says: &[&str]) {
        let [a, b] = stage.with(&format!("--mutant {mutant}")).play();
        assert!(!(a.well && b.well), "the mutant {mutant} survives:\n{}\n{}", a.said, b.said);
        assert!(
            says.iter().any(|says| a.said.contains(says) || b.said.contains(says)),
            "{mutant} is not known by {says:?}:\n{}\n{}",
            a.said,
            b.said
        );
    }

    #[test]
    fn without_the_flush_wrong_data_are_seen() {
        let stage = || Stage::new("what_comes_late_is_seen").faults(1, "late_visibility=on");
        stage().goes_well();
        is_killed(stage(), "no-flush", &["round 0: byte 0 of 1 is"]);
        let stage = || Stage::new("batches").faults(0, "late_visibility=on").faults(1, "late_visibility=on");
        is_killed(stage(), "no-flush", &["was written"]);
    }

    #[test]
    fn credits_that_are_not_given_back_are_missed() {
        let stage = || Stage::new("transfers").with("--count 20");
        stage().goes_well();
        is_killed(stage(), "credits-kept", &["sends: ("]);
    }

    #[test]
    fn a_flush_that_is_told_as_the_cause_is_noticed() {
        let stage = || {
            let stage =
                Stage::new("ends_with_an_error").faults(0, "receives_flushed_first=on").fault(0, "hold on");
            let stage = stage.with("--both-ways --bytes 8388608 --chunk 65536 --timeout 14");
            // Side 1 never sends, so that side 0 has receives to be flushed.
            stage.fault(1, "hold on").fault(0, "cut mlx5_0").fault(0, "hold off")
        };
        let told = stage().goes_well();
        says(&told, 0, "transport retry counter exceeded");
        does_not_say(&told, "Flushed");
        let told = stage().with("--mutant flush-is-the-cause").play();
        assert!(told[0].said.contains("Flushed"), "{}", told[0].said);
    }

    #[test]
    fn messages_that_are_too_long_for_the_other_side_break_the_channel() {
        let short = two(&[("name = \"mlx5_0\"", "max_message_bytes = 5000\nname = \"mlx5_0\"")]);
        let stage = || Stage::new("transfers").on(&short).with("--count 20");
        stage().goes_well();
        is_killed(stage(), "own-longest-message", &["local length error"]);
    }

    #[test]
    fn an_answer_before_the_receives_are_posted_finds_none() {
        let stage = || Stage::new("transfers").with("--count 20 --rnr-retries 0");
        stage().goes_well();
        // The sender's NIC finds no receive, or that of another transfer, which was not posted for this one.
        let finds = ["RNR retry counter exceeded", "that no receive is open for"];
        is_killed(stage(), "answers-before-posting", &finds);
    }
}
