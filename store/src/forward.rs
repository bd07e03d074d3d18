//! Stores that are another store underneath.

/// Implements [`crate::Store`] for a type by what an expression of it is.
macro_rules! forward_store {
    ($type:ty, |$this:ident| $store:expr) => {
        impl $crate::Store for $type {
            fn set(&self, key: &str, value: &[u8]) -> Result<(), $crate::StoreError> {
                let $this = self;
                $store.set(key, value)
            }

            fn get(&self, key: &str, timeout: std::time::Duration) -> Result<Vec<u8>, $crate::StoreError> {
                let $this = self;
                $store.get(key, timeout)
            }

            fn check(&self, keys: &[&str]) -> Result<bool, $crate::StoreError> {
                let $this = self;
                $store.check(keys)
            }

            fn wait(&self, keys: &[&str], timeout: std::time::Duration) -> Result<(), $crate::StoreError> {
                let $this = self;
                $store.wait(keys, timeout)
            }

            fn add(&self, key: &str, delta: i64) -> Result<i64, $crate::StoreError> {
                let $this = self;
                $store.add(key, delta)
            }

            fn compare_set(
                &self,
                key: &str,
                expected: &[u8],
                desired: &[u8],
            ) -> Result<Vec<u8>, $crate::StoreError> {
                let $this = self;
                $store.compare_set(key, expected, desired)
            }

            fn delete(&self, key: &str) -> Result<bool, $crate::StoreError> {
                let $this = self;
                $store.delete(key)
            }

            fn append(&self, key: &str, value: &[u8]) -> Result<(), $crate::StoreError> {
                let $this = self;
                $store.append(key, value)
            }

            fn multi_get(
                &self,
                keys: &[&str],
                timeout: std::time::Duration,
            ) -> Result<Vec<Vec<u8>>, $crate::StoreError> {
                let $this = self;
                $store.multi_get(keys, timeout)
            }

            fn multi_set(&self, pairs: &[(&str, &[u8])]) -> Result<(), $crate::StoreError> {
                let $this = self;
                $store.multi_set(pairs)
            }

            fn list_keys(&self) -> Result<Vec<String>, $crate::StoreError> {
                let $this = self;
                $store.list_keys()
            }

            fn num_keys(&self) -> Result<u64, $crate::StoreError> {
                let $this = self;
                $store.num_keys()
            }

            fn queue_push(&self, key: &str, value: &[u8]) -> Result<(), $crate::StoreError> {
                let $this = self;
                $store.queue_push(key, value)
            }

            fn queue_pop(
                &self,
                key: &str,
                timeout: std::time::Duration,
            ) -> Result<Vec<u8>, $crate::StoreError> {
                let $this = self;
                $store.queue_pop(key, timeout)
            }

            fn queue_len(&self, key: &str) -> Result<u64, $crate::StoreError> {
                let $this = self;
                $store.queue_len(key)
            }

            fn barrier(
                &self,
                key: &str,
                world_size: usize,
                timeout: std::time::Duration,
            ) -> Result<(), $crate::StoreError> {
                let $this = self;
                $store.barrier(key, world_size, timeout)
            }

            fn room(&self) -> usize {
                let $this = self;
                $store.room()
            }
        }
    };
}
pub(crate) use forward_store;
