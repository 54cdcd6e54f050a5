//! device-mapper, by trampoline or kprobe: whichever works for dm_mod, apart from the backend of
//! the semaphores. `int dev_*(struct file *filp, struct dm_ioctl *param, size_t param_size)`.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use dmtrace_common::{DM_REMOVE, DM_RENAME, DM_SUSPEND};

use crate::dm::{SeenBy, ioctl_entered, ioctl_returned, uevent_sent};

/// `dev_suspend` is entered: suspend and resume.
#[fentry]
pub(crate) fn dm_suspend_e(ctx: FEntryContext) -> i32 {
    ioctl_entered(DM_SUSPEND, ctx.arg(1), SeenBy::Trampoline);
    0
}

/// `dev_remove` is entered.
#[fentry]
pub(crate) fn dm_remove_e(ctx: FEntryContext) -> i32 {
    ioctl_entered(DM_REMOVE, ctx.arg(1), SeenBy::Trampoline);
    0
}

/// `dev_rename` is entered.
#[fentry]
pub(crate) fn dm_rename_e(ctx: FEntryContext) -> i32 {
    ioctl_entered(DM_RENAME, ctx.arg(1), SeenBy::Trampoline);
    0
}

/// One of these returns.
#[fexit]
pub(crate) fn dm_x(ctx: FExitContext) -> i32 {
    ioctl_returned(ctx.arg::<i32>(3));
    0
}

/// See [`dm_x`]: runs after it, and finds something to do only if that was skipped.
#[fexit]
pub(crate) fn dm_y(ctx: FExitContext) -> i32 {
    ioctl_returned(ctx.arg::<i32>(3));
    0
}

/// `int dm_kobject_uevent(struct mapped_device *md, enum kobject_action action,
/// unsigned cookie, ...)` is entered. A fourth argument came in 6.3 and in stable kernels.
#[fentry]
pub(crate) fn dm_uevent_e(ctx: FEntryContext) -> i32 {
    uevent_sent(
        ctx.arg(0),
        ctx.arg::<u32>(1),
        ctx.arg::<u32>(2),
        SeenBy::Trampoline,
    );
    0
}

/// See [`dm_suspend_e`].
#[kprobe]
pub(crate) fn dm_suspend_ke(ctx: ProbeContext) -> u32 {
    ioctl_entered(DM_SUSPEND, ctx.arg(1).unwrap_or(0), SeenBy::Kprobe);
    0
}

/// See [`dm_remove_e`].
#[kprobe]
pub(crate) fn dm_remove_ke(ctx: ProbeContext) -> u32 {
    ioctl_entered(DM_REMOVE, ctx.arg(1).unwrap_or(0), SeenBy::Kprobe);
    0
}

/// See [`dm_rename_e`].
#[kprobe]
pub(crate) fn dm_rename_ke(ctx: ProbeContext) -> u32 {
    ioctl_entered(DM_RENAME, ctx.arg(1).unwrap_or(0), SeenBy::Kprobe);
    0
}

/// See [`dm_x`]. These functions can sleep: with more of them in flight than the kernel has
/// instances (one for each CPU at least), returns are lost; `DM_ENTERED` tells how many.
#[kretprobe]
pub(crate) fn dm_kx(ctx: RetProbeContext) -> u32 {
    ioctl_returned(ctx.ret::<i32>());
    0
}

/// See [`dm_uevent_e`].
#[kprobe]
pub(crate) fn dm_uevent_ke(ctx: ProbeContext) -> u32 {
    uevent_sent(
        ctx.arg(0).unwrap_or(0),
        ctx.arg::<u32>(1).unwrap_or(0),
        ctx.arg::<u32>(2).unwrap_or(0),
        SeenBy::Kprobe,
    );
    0
}
