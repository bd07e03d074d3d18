//! The modifiers of an instruction, taken one by one; what is left over is an error.

use crate::types::{Rounding, Type};

pub(super) struct Modifiers<'a> {
    list: Vec<Option<&'a str>>,
}

impl<'a> Modifiers<'a> {
    pub(super) fn new(words: &[&'a str]) -> Self {
        Self { list: words.iter().copied().map(Some).collect() }
    }

    /// Takes `word` if it is there.
    pub(super) fn take(&mut self, word: &str) -> bool {
        self.find(|modifier| (modifier == word).then_some(())).is_some()
    }

    /// Takes the first modifier that `parse` knows.
    pub(super) fn find<T>(&mut self, parse: impl Fn(&'a str) -> Option<T>) -> Option<T> {
        for slot in &mut self.list {
            if let Some(value) = slot.and_then(&parse) {
                *slot = None;
                return Some(value);
            }
        }
        None
    }

    /// Takes the first that is one of `words`.
    pub(super) fn one_of(&mut self, words: &[&str]) -> Option<&'a str> {
        self.find(|modifier| words.contains(&modifier).then_some(modifier))
    }

    /// Takes the first type.
    pub(super) fn take_type(&mut self) -> Option<Type> {
        self.find(Type::parse)
    }

    /// Takes the rounding of floating-point arithmetic.
    pub(super) fn rounding(&mut self) -> Option<Rounding> {
        self.find(|word| match word {
            "rn" => Some(Rounding::Nearest),
            "rz" => Some(Rounding::Zero),
            "rm" => Some(Rounding::Down),
            "rp" => Some(Rounding::Up),
            _ => None,
        })
    }

    /// Takes the rounding to an integer.
    pub(super) fn integer_rounding(&mut self) -> Option<Rounding> {
        self.find(|word| match word {
            "rni" => Some(Rounding::Nearest),
            "rzi" => Some(Rounding::Zero),
            "rmi" => Some(Rounding::Down),
            "rpi" => Some(Rounding::Up),
            _ => None,
        })
    }

    /// A modifier that nobody took.
    pub(super) fn left(&self) -> Option<&'a str> {
        self.list.iter().flatten().next().copied()
    }
}
