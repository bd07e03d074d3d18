//! Which fences a kernel has, and where.

use serde::Serialize;

use super::disassembly::Instruction;

/// The addresses of a kernel's memory fences, in bytes: of `MEMBAR`, which is what a fence and a release become (CUDA Binary
/// Utilities, "Instruction Set Reference"). Those that only bad ends come through are among them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Fences {
    /// Of system scope.
    pub(super) system: Vec<u32>,
    /// Of the scope of one GPU.
    pub(super) gpu: Vec<u32>,
}

impl Fences {
    pub(super) fn of(code: &[Instruction]) -> Self {
        let scope = |scope: &str| {
            let fences = code.iter().filter(|one| one.operation == "MEMBAR" && one.has(scope));
            fences.map(|one| one.address).collect()
        };
        Self { system: scope("SYS"), gpu: scope("GPU") }
    }
}

#[cfg(test)]
mod tests {
    use super::super::disassembly;
    use super::*;

    #[test]
    fn fences_are_found_by_their_scopes() {
        let text = "\
\t.section\t.text.k,\"ax\",@progbits
k:
        /*0000*/                   MEMBAR.SC.SYS ;
        /*0010*/                   ERRBAR ;
        /*0020*/              @!P1 MEMBAR.ALL.GPU ;
        /*0030*/                   MEMBAR.ALL.CTA ;
        /*0040*/                   MEMBAR.ALL.SYS ;
        /*0050*/                   EXIT ;
";
        let code = disassembly::parse(text).unwrap();
        assert_eq!(Fences::of(&code["k"]), Fences { system: vec![0, 0x40], gpu: vec![0x20] });
    }
}
