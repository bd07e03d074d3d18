//! The committed weights are what the committed training run makes.

use tensor_parallel_mlp::{data::Digits, model::TRAINED, training};

#[test]
fn training_again_gives_the_committed_weights_bit_for_bit() {
    let mlp = training::train(&Digits::training(), training::SEED, |_, _| ());
    assert!(mlp.to_safetensors().unwrap() == TRAINED, "`cargo run --bin train` makes other weights");
}

#[test]
fn another_seed_gives_other_weights() {
    let mlp = training::train(&Digits::training(), training::SEED + 1, |_, _| ());
    assert!(mlp.to_safetensors().unwrap() != TRAINED);
}
