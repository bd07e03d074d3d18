//! Kernel entries: of each algorithm one for every number of ranks that it takes; of the all-reduces by barriers, one for every
//! element type and reduction too.

/// Makes the entries `{name}_w{ranks}` of the kernel body `$body`, which are given `$params`, with `_b128` behind them where the
/// feature of that name is on. Where they compute, type and operation are a parameter.
macro_rules! entries {
    ($name:ident: $body:ident, $params:ty, $($ranks:literal)+) => {
        $(
            #[cfg(not(feature = "b128"))]
            $crate::entries::entry!(${concat($name, _w, $ranks)}, $params, $body::<$ranks>);
            #[cfg(feature = "b128")]
            $crate::entries::entry!(${concat($name, _w, $ranks, _b128)}, $params, $body::<$ranks>);
        )+
    };
}
pub(crate) use entries;

/// Makes the entry `{name}` of the kernel body `$body`, for every number of ranks, with `_b128` behind it where that feature is on.
macro_rules! entry_for_all {
    ($name:ident: $body:ident, $params:ty) => {
        #[cfg(not(feature = "b128"))]
        $crate::entries::entry!($name, $params, $body);
        #[cfg(feature = "b128")]
        $crate::entries::entry!(${concat($name, _b128)}, $params, $body);
    };
}
pub(crate) use entry_for_all;

/// Makes the entries `{name}_{type}_{reduction}_w{ranks}` of the kernel body `$body`.
macro_rules! entries_by_kind {
    ($name:ident: $body:ident, $($ranks:literal)+) => {
        $(entries_by_kind!(@types $name, $body, $ranks);)+
    };
    (@types $name:ident, $body:ident, $ranks:literal) => {
        entries_by_kind!(@reductions $name, $body, $ranks, bf16, Bf16);
        entries_by_kind!(@reductions $name, $body, $ranks, f16, F16);
        entries_by_kind!(@reductions $name, $body, $ranks, f32, F32);
    };
    (@reductions $name:ident, $body:ident, $ranks:literal, $type:ident, $element:ident) => {
        entries_by_kind!(@entry ${concat($name, _, $type, _sum_w, $ranks)}, $body, $ranks, $element, Sum);
        entries_by_kind!(@entry ${concat($name, _, $type, _max_w, $ranks)}, $body, $ranks, $element, Max);
    };
    (@entry $entry:ident, $body:ident, $ranks:literal, $element:ident, $reduction:ident) => {
        $crate::entries::entry!(
            $entry,
            meshreduce_wire::LaunchParams,
            $body::<$crate::element::$element, $crate::reduction::$reduction, $ranks>
        );
    };
}
#[cfg(not(feature = "b128"))]
pub(crate) use entries_by_kind;

macro_rules! entry {
    ($entry:ident, $params:ty, $body:expr) => {
        /// Kernel entry.
        ///
        /// # Safety
        /// The parameters are as their type says.
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $entry(params: $params) {
            $body(&params);
        }
    };
}
pub(crate) use entry;
