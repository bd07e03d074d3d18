//! Kernel entries: one of each algorithm for every element type, reduction and number of ranks that it takes.

/// Makes the entries `{name}_{type}_{reduction}_w{ranks}` of the kernel body `$body`, with `_b128` behind them where the feature
/// of that name is on.
macro_rules! entries {
    ($name:ident: $body:ident, $($ranks:literal)+) => {
        $(entries!(@types $name, $body, $ranks);)+
    };
    (@types $name:ident, $body:ident, $ranks:literal) => {
        entries!(@reductions $name, $body, $ranks, bf16, Bf16);
        entries!(@reductions $name, $body, $ranks, f16, F16);
        entries!(@reductions $name, $body, $ranks, f32, F32);
    };
    (@reductions $name:ident, $body:ident, $ranks:literal, $type:ident, $element:ident) => {
        #[cfg(not(feature = "b128"))]
        entries!(@entry ${concat($name, _, $type, _sum_w, $ranks)}, $body, $ranks, $element, Sum);
        #[cfg(not(feature = "b128"))]
        entries!(@entry ${concat($name, _, $type, _max_w, $ranks)}, $body, $ranks, $element, Max);
        #[cfg(feature = "b128")]
        entries!(@entry ${concat($name, _, $type, _sum_w, $ranks, _b128)}, $body, $ranks, $element, Sum);
        #[cfg(feature = "b128")]
        entries!(@entry ${concat($name, _, $type, _max_w, $ranks, _b128)}, $body, $ranks, $element, Max);
    };
    (@entry $entry:ident, $body:ident, $ranks:literal, $element:ident, $reduction:ident) => {
        /// Kernel entry.
        ///
        /// # Safety
        /// The parameters are as [`meshreduce_wire::LaunchParams`] says.
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $entry(params: meshreduce_wire::LaunchParams) {
            $body::<$crate::element::$element, $crate::reduction::$reduction, $ranks>(&params);
        }
    };
}
pub(crate) use entries;

/// Makes the entries `{name}_w{ranks}` of the kernel body `$body` of an algorithm of slices. Where it computes, type and operation
/// are a parameter.
macro_rules! slice_entries {
    ($name:ident: $body:ident, $($ranks:literal)+) => {
        $(
            #[cfg(not(feature = "b128"))]
            $crate::entries::slice_entries!(@entry ${concat($name, _w, $ranks)}, $body, $ranks);
            #[cfg(feature = "b128")]
            $crate::entries::slice_entries!(@entry ${concat($name, _w, $ranks, _b128)}, $body, $ranks);
        )+
    };
    (@entry $entry:ident, $body:ident, $ranks:literal) => {
        /// Kernel entry.
        ///
        /// # Safety
        /// The parameters are as [`meshreduce_wire::SliceParams`] says.
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $entry(params: meshreduce_wire::SliceParams) {
            $body::<$ranks>(&params);
        }
    };
}
pub(crate) use slice_entries;
