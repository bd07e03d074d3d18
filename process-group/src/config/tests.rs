use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::backend::{Backend, BackendContext, BackendFactory};
use crate::error::Error;

struct Named(&'static str, &'static [DeviceType]);

impl BackendFactory for Named {
    fn name(&self) -> &str {
        self.0
    }

    fn devices(&self) -> &[DeviceType] {
        self.1
    }

    fn create(&self, context: BackendContext) -> Result<Arc<dyn Backend>, Error> {
        Err(context.not_made(&self.0.into(), "it is only a name"))
    }
}

fn registry() -> Registry {
    let mut registry = Registry::empty();
    registry.register(Named("host", &[DeviceType::Cpu])).unwrap();
    registry.register(Named("mesh", &[DeviceType::Cuda])).unwrap();
    registry.register(Named("nccl", &[DeviceType::Cuda])).unwrap();
    registry.register(Named("both", &[DeviceType::Cpu, DeviceType::Cuda])).unwrap();
    registry
}

/// What a text comes to, in the canonical form.
fn resolved(text: &str) -> String {
    let config: BackendConfig = match text.parse() {
        Ok(config) => config,
        Err(error) => return error.to_string(),
    };
    match config.resolve(&registry()) {
        Ok(pairs) => BackendConfig::Pairs(pairs).to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_form_comes_to_a_backend_for_each_kind_of_device() {
    for (text, expected) in [
        ("", "cpu:host,cuda:mesh"),
        ("  ", "cpu:host,cuda:mesh"),
        ("host", "cpu:host"),
        ("nccl", "cuda:nccl"),
        ("both", "cpu:both,cuda:both"),
        ("cpu:host", "cpu:host"),
        ("cuda:nccl,cpu:host", "cpu:host,cuda:nccl"),
        ("  CUDA : NCCL ,\tcpu:Host ", "cpu:host,cuda:nccl"),
        ("cpu:both,cuda:mesh", "cpu:both,cuda:mesh"),
    ] {
        assert_eq!(resolved(text), expected, "{text:?}");
    }
}

#[test]
fn every_mistake_shows_the_text_it_is_in() {
    for (text, expected) in [
        ("cpu:host,cuda", "\"cuda\" in the configuration \"cpu:host,cuda\" is no pair such as cpu:host"),
        ("cpu:", "\"cpu:\" in the configuration \"cpu:\" is no pair such as cpu:host"),
        (":host", "\":host\" in the configuration \":host\" is no pair such as cpu:host"),
        ("cpu:host,", "\"\" in the configuration \"cpu:host,\" is no pair such as cpu:host"),
        ("cpu:a:b", "\"cpu:a:b\" in the configuration \"cpu:a:b\" is no pair such as cpu:host"),
        ("tpu:host", "\"tpu\" in the configuration \"tpu:host\" is no device type (cpu, cuda)"),
        ("cpu:host, cpu:both", "cpu has two backends in the configuration \"cpu:host, cpu:both\""),
        (
            "gloo",
            "there is no backend \"gloo\": there are both, host, mesh, nccl (what gloo is for, host does: cpu:host)",
        ),
        (
            "cpu:gloo",
            "there is no backend \"gloo\": there are both, host, mesh, nccl (what gloo is for, host does: cpu:host)",
        ),
        ("cpu:nccl", "backend nccl cannot serve cpu: it serves cuda"),
        ("cuda:host", "backend host cannot serve cuda: it serves cpu"),
    ] {
        assert_eq!(resolved(text), expected, "{text:?}");
    }
}

#[test]
fn names_of_backends_are_words_that_no_configuration_mistakes() {
    let mut registry = registry();
    for name in ["", "Host", "a b", "a:b", "a,b", "cpu", "cuda", "ü"] {
        let error = registry.register(Named(name, &[])).unwrap_err();
        assert_eq!(error, ConfigError::BadName { name: name.to_owned() });
    }
    let taken = ConfigError::NameTaken { name: "host".to_owned() };
    assert_eq!(registry.register(Named("host", &[])), Err(taken));
    registry.replace(Named("host", &[DeviceType::Cuda])).unwrap();
    assert_eq!(registry.factory("host").unwrap().devices(), [DeviceType::Cuda]);
    assert!(registry.replace(Named("other", &[])).is_err());
    registry.register(Named("my-backend_2", &[])).unwrap();
}

#[test]
fn a_name_that_is_none_here_gets_what_may_have_been_meant() {
    let text = |name: &str| registry().factory(name).map(|_| ()).unwrap_err().to_string();
    assert!(text("gloo").ends_with("(what gloo is for, host does: cpu:host)"), "{}", text("gloo"));
    assert!(text("cuda").contains("cuda:mesh"), "{}", text("cuda"));
    assert!(!text("nonsense").contains('('), "{}", text("nonsense"));
}

#[test]
fn the_default_registry_serves_every_kind() {
    let pairs = BackendConfig::Undefined.resolve(&Registry::default()).unwrap();
    assert_eq!(BackendConfig::Pairs(pairs).to_string(), "cpu:host,cuda:mesh");
}

proptest! {
    #[test]
    fn the_canonical_form_parses_to_the_same_and_no_text_panics(text in "[a-z:, CPUcuda]{0,24}|\\PC{0,12}") {
        if let Ok(config) = text.parse::<BackendConfig>() {
            prop_assert_eq!(config.to_string().parse::<BackendConfig>(), Ok(config.clone()));
            let json = serde_json::to_string(&config).unwrap();
            prop_assert_eq!(serde_json::from_str::<BackendConfig>(&json).unwrap(), config);
        }
    }
}
