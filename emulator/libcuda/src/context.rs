//! Contexts.

use meshreduce_emulator_node::driver::{Handle, driver};

use crate::abi::{Out, exports};

exports! {
    fn cuDevicePrimaryCtxRetain(context: Out<Handle>, device: i32) {
        let context = context.require()?;
        context.set(driver()?.primary_retain(device)?)
    }

    fn cuDevicePrimaryCtxRelease(device: i32) {
        driver()?.primary_release(device)
    }

    fn cuDevicePrimaryCtxRelease_v2(device: i32) {
        driver()?.primary_release(device)
    }

    fn cuDevicePrimaryCtxReset(device: i32) {
        driver()?.primary_reset(device)
    }

    fn cuDevicePrimaryCtxReset_v2(device: i32) {
        driver()?.primary_reset(device)
    }

    fn cuDevicePrimaryCtxSetFlags(device: i32, flags: u32) {
        driver()?.primary_set_flags(device, flags)
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) {
        driver()?.primary_set_flags(device, flags)
    }

    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) {
        let state = driver()?.primary_state(device)?;
        flags.set(state.flags)?;
        active.set(i32::from(state.active))
    }

    fn cuCtxCreate_v2(context: Out<Handle>, flags: u32, device: i32) {
        let context = context.require()?;
        context.set(driver()?.ctx_create(flags, device)?)
    }

    fn cuCtxDestroy_v2(context: Handle) {
        driver()?.ctx_destroy(context)
    }

    fn cuCtxPushCurrent_v2(context: Handle) {
        driver()?.ctx_push(context)
    }

    fn cuCtxPopCurrent_v2(context: Out<Handle>) {
        let popped = driver()?.ctx_pop()?;
        context.set_if_wanted(popped);
        Ok(())
    }

    fn cuCtxSetCurrent(context: Handle) {
        driver()?.ctx_set_current(context)
    }

    fn cuCtxGetCurrent(context: Out<Handle>) {
        context.set(driver()?.ctx_current())
    }

    fn cuCtxGetDevice(device: Out<i32>) {
        device.set(driver()?.ctx_device()?)
    }

    fn cuCtxGetFlags(flags: Out<u32>) {
        flags.set(driver()?.ctx_flags()?)
    }

    fn cuCtxGetId(context: Handle, id: Out<u64>) {
        id.set(driver()?.ctx_id(context)?)
    }

    fn cuCtxGetApiVersion(context: Handle, version: Out<u32>) {
        version.set(driver()?.ctx_api_version(context)?)
    }

    fn cuCtxSynchronize() {
        driver()?.ctx_synchronize()
    }

    fn cuCtxGetLimit(value: Out<usize>, limit: u32) {
        value.set(driver()?.ctx_limit(limit)? as usize)
    }

    fn cuCtxSetLimit(limit: u32, value: usize) {
        driver()?.set_ctx_limit(limit, value as u64)
    }

    // Preferences about caches and banks, which an emulated device does not have.
    fn cuCtxGetCacheConfig(config: Out<u32>) {
        driver()?.ctx_check()?;
        config.set(0)
    }

    fn cuCtxSetCacheConfig(_config: u32) {
        driver()?.ctx_check()
    }

    fn cuCtxGetSharedMemConfig(config: Out<u32>) {
        driver()?.ctx_check()?;
        config.set(1)
    }

    fn cuCtxSetSharedMemConfig(_config: u32) {
        driver()?.ctx_check()
    }

    fn cuCtxResetPersistingL2Cache() {
        driver()?.ctx_check()
    }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        let range = driver()?.stream_priority_range()?;
        least.set_if_wanted(range.0);
        greatest.set_if_wanted(range.1);
        Ok(())
    }

    fn cuCtxEnablePeerAccess(peer: Handle, flags: u32) {
        driver()?.ctx_enable_peer_access(peer, flags)
    }

    fn cuCtxDisablePeerAccess(peer: Handle) {
        driver()?.ctx_disable_peer_access(peer)
    }

    // There is no profiler to start or stop.
    fn cuProfilerStart() {
        driver()?.ctx_check()
    }

    fn cuProfilerStop() {
        driver()?.ctx_check()
    }
}
