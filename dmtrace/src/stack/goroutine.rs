//! The way up through the functions of Go, and from the thread's stack, where the C code of a
//! goroutine runs, to the goroutine's own.

use dmtrace_common::GoroutineSample;
use dmtrace_core::event::FrameSource;

use super::{
    go::{Function, Pclntab},
    unwind::{IP, RBP, RSP, Registers, Walk, WalkStep},
};

/// Where `runtime.asmcgocall` keeps the address of its goroutine and how much of that one's stack
/// was used, from its stack pointer on: since Go 1.21, and before.
const SAVED_G_OFFSET: [(u64, u64); 2] = [(8, 0), (48, 40)];

impl Walk<'_, '_> {
    /// Undoes a frame by Go's tables.
    pub(super) fn by_go(&self, table: &Pclntab, registers: &mut Registers) -> WalkStep {
        let Some(function) = table.function_at(self.lookup) else {
            return WalkStep::Lost(format!(
                "Go does not know the function{}",
                self.location_text()
            ));
        };
        let name = function.name().unwrap_or_default();
        // Assembler functions have the name of their calling convention behind it, since 1.17.
        match name.strip_suffix(".abi0").unwrap_or(&name) {
            "runtime.goexit" | "runtime.mstart" | "runtime.rt0_go" => return WalkStep::Outermost,
            "runtime.asmcgocall" => return self.to_goroutine(table, registers, true),
            // Calls its function on the thread's stack, which nothing is kept on.
            "runtime.systemstack" => return self.to_goroutine(table, registers, false),
            // The stack before it seems to go on with an earlier call of C, whose frames it lacks.
            "runtime.cgocallback" | "runtime.cgocallback_gofunc" => {
                let why = "C code has called Go, and the stack of that C code is not copied";
                return WalkStep::Lost(why.to_owned());
            }
            "runtime.mcall" | "runtime.morestack" => {
                return WalkStep::Lost(format!("{name} has changed to a stack that is not copied"));
            }
            _ => {}
        }
        let Some(sp) = registers.get(RSP) else {
            return WalkStep::Lost(format!("Go does not know the frame of {name}"));
        };
        match self.undo_frame(&function, self.lookup, sp, registers) {
            Ok(()) => WalkStep::Caller {
                how: FrameSource::Observed,
                exact: false,
            },
            Err(why) => WalkStep::Lost(why),
        }
    }

    /// Sets the registers to those of the caller.
    fn undo_frame(
        &self,
        function: &Function<'_>,
        address: u64,
        sp: u64,
        registers: &mut Registers,
    ) -> Result<(), String> {
        let Some(size) = function.frame_size(address) else {
            let name = function.name().unwrap_or_default();
            return Err(format!("Go does not know the frame of {name}"));
        };
        let at = sp.wrapping_add(size);
        let Some(ip) = self.memory.read_word(at) else {
            return Err(self.memory.missing_reason(at));
        };
        if size >= 8
            && let Some(bp) = self.memory.read_word(at - 8)
        {
            registers.set(RBP, Some(bp));
        }
        registers.set(RSP, Some(at.wrapping_add(8)));
        registers.set(IP, Some(ip));
        Ok(())
    }

    /// From a function that has changed to the thread's stack to its caller. `kept`: it has put
    /// down there whose it is.
    fn to_goroutine(&self, table: &Pclntab, registers: &mut Registers, kept: bool) -> WalkStep {
        let Some(goroutine) = self.memory.waiting_goroutine() else {
            let why = "the goroutine called C, and its own stack, which is elsewhere, is not found";
            return WalkStep::Lost(why.to_owned());
        };
        let is_its = |sp: u64| {
            let word = |offset: u64| self.memory.read_word(sp.wrapping_add(offset));
            SAVED_G_OFFSET.iter().any(|&(g, used)| {
                word(g) == Some(goroutine.g)
                    && word(used) == goroutine.end.checked_sub(goroutine.sp)
            })
        };
        if kept && !registers.get(RSP).is_some_and(is_its) {
            let why = "the goroutine that called C is not the one whose stack is copied";
            return WalkStep::Lost(why.to_owned());
        }
        let Some((function, address)) = self.switch_stack(table, &goroutine) else {
            let why = "where the goroutine's stack continues is not known";
            return WalkStep::Lost(why.to_owned());
        };
        registers.set(RBP, None);
        match self.undo_frame(&function, address, goroutine.sp, registers) {
            Ok(()) => WalkStep::OnGoroutine,
            Err(why) => WalkStep::Lost(why),
        }
    }

    /// The function that stands in the goroutine for the one that has changed stacks, and has the
    /// same frame. Before 1.17 that was itself for `asmcgocall`.
    fn switch_stack<'t>(
        &self,
        table: &'t Pclntab,
        goroutine: &GoroutineSample,
    ) -> Option<(Function<'t>, u64)> {
        let address = goroutine.pc.wrapping_sub(self.bias);
        let function = table.function_at(address)?;
        let name = function.name()?;
        matches!(
            name.strip_suffix(".abi0").unwrap_or(&name),
            "runtime.systemstack_switch" | "runtime.asmcgocall"
        )
        .then_some((function, address))
    }
}
