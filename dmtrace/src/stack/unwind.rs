//! From registers and a copied stack to frames, by the binaries' unwind information.
//!
//! gimli reads it; the walk is here because it has to know which frame was found in which way, and
//! why there is no next one.

use dmtrace_common::UserRegs;
use dmtrace_core::event::{CallFrame, CallSite, ChainEnd, FrameSource, MAX_FRAMES, Module};
use gimli::{
    BaseAddresses, CfaRule, DebugFrame, EhFrame, EhFrameHdr, EndianSlice, Evaluation,
    EvaluationResult, Expression, LittleEndian, Location, Piece, Register, RegisterRule,
    UnwindContext, UnwindExpression, UnwindSection, UnwindTableRow, Value, X86_64,
};

use super::{AddressSpace, Binary, Finder, Memory, binary::EhSection};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Registers by their DWARF number, as far as they are known. The last one is the address of the
/// next instruction.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Registers([Option<u64>; 17]);

/// DWARF numbers of x86-64, in the order of `pt_regs`: r15 to r12, rbp, rbx, r11 to r8, rax, rcx,
/// rdx, rsi, rdi.
const PT_REGS: [u16; 15] = [15, 14, 13, 12, 6, 3, 11, 10, 9, 8, 0, 2, 1, 4, 5];
pub(super) const RBP: u16 = 6;
pub(super) const RSP: u16 = 7;
pub(super) const IP: u16 = 16;
/// Words of a function without unwind information that are searched for its return address.
const LEAF_WORDS: u64 = 8;

impl Registers {
    /// As the kernel has saved them.
    pub(crate) fn of_user(regs: &UserRegs) -> Self {
        let mut registers = Self::default();
        for (value, number) in regs.general.iter().zip(PT_REGS) {
            registers.set(number, Some(*value));
        }
        registers.set(RSP, Some(regs.sp));
        registers.set(IP, Some(regs.ip));
        registers
    }

    /// Address, stack pointer and frame pointer only.
    #[cfg(test)]
    pub(super) fn of_frame(ip: u64, sp: u64, bp: u64) -> Self {
        let mut registers = Self::default();
        registers.set(IP, Some(ip));
        registers.set(RSP, Some(sp));
        registers.set(RBP, Some(bp));
        registers
    }

    pub(super) fn get(&self, number: u16) -> Option<u64> {
        self.0.get(usize::from(number)).copied().flatten()
    }

    pub(super) fn set(&mut self, number: u16, value: Option<u64>) {
        if let Some(slot) = self.0.get_mut(usize::from(number)) {
            *slot = value;
        }
    }
}

/// What is behind a frame.
pub(super) enum WalkStep {
    /// A caller: `exact` if its address is an instruction to be executed, not one to return to.
    Caller { how: FrameSource, exact: bool },
    /// A caller on the stack of the goroutine that waits for the code on the thread's.
    OnGoroutine,
    /// Nothing: it is the first function of its thread.
    Outermost,
    /// Not known.
    Lost(String),
}

/// Walks up the stack.
pub(crate) fn unwind_stack(
    space: &mut AddressSpace,
    finder: &mut Finder,
    mut registers: Registers,
    memory: &Memory<'_>,
) -> CallSite {
    let mut site = CallSite::default();
    let mut numbers: Vec<usize> = Vec::new();
    let mut how = FrameSource::Observed;
    let mut exact = true;
    let mut on_goroutine = false;
    loop {
        let Some(ip) = registers.get(IP).filter(|ip| *ip != 0) else {
            site.end = ChainEnd::Complete;
            break;
        };
        let lookup = if exact { ip } else { ip - 1 };
        let Some(index) = space.locate_module(lookup, finder) else {
            site.frames.push(new_frame(None, ip, how));
            site.end = ChainEnd::Truncated(space.why_nowhere(ip));
            break;
        };
        let bias = space.module_at(index).bias;
        let number = numbers.iter().position(|known| *known == index);
        let number = number.unwrap_or_else(|| {
            numbers.push(index);
            numbers.len() - 1
        });
        site.frames
            .push(new_frame(Some(number), ip.wrapping_sub(bias), how));
        if site.frames.len() >= MAX_FRAMES {
            site.end = ChainEnd::Truncated(format!(
                "calls beyond the innermost {MAX_FRAMES} are not kept"
            ));
            break;
        }
        let binary = match space.module_binary(index, finder) {
            Ok(binary) => binary,
            Err(why) => {
                site.end = ChainEnd::Truncated(why);
                break;
            }
        };
        let innermost = site.frames.len() == 1;
        let mut walk = Walk {
            space,
            finder,
            memory,
            binary: &binary,
            bias,
            lookup: lookup.wrapping_sub(bias),
            innermost,
        };
        let sp = registers.get(RSP);
        match walk.walk_step(&mut registers) {
            // Only the innermost function may use no stack at all; anything else goes in circles.
            WalkStep::Caller { .. } if !innermost && registers.get(RSP) <= sp => {
                site.end = ChainEnd::Truncated("the stack leads back into itself".to_owned());
                break;
            }
            WalkStep::OnGoroutine if on_goroutine => {
                site.end = ChainEnd::Truncated("the stack leads back into itself".to_owned());
                break;
            }
            WalkStep::OnGoroutine => {
                on_goroutine = true;
                how = FrameSource::Observed;
                exact = false;
            }
            WalkStep::Caller {
                how: found,
                exact: is_exact,
            } => {
                how = found;
                exact = is_exact;
            }
            WalkStep::Outermost => {
                site.end = ChainEnd::Complete;
                break;
            }
            WalkStep::Lost(why) => {
                site.end = ChainEnd::Truncated(why);
                break;
            }
        }
    }
    site.modules = numbers
        .into_iter()
        .map(|index| Module {
            path: space.module_at(index).place.path.clone(),
            build_id: space.module_at(index).place.build_id.clone(),
        })
        .collect();
    site
}

const fn new_frame(module: Option<usize>, address: u64, how: FrameSource) -> CallFrame {
    CallFrame {
        module,
        address,
        how,
        symbols: Vec::new(),
    }
}

/// One step of the walk.
pub(super) struct Walk<'a, 'm> {
    space: &'a mut AddressSpace,
    finder: &'a mut Finder,
    pub(super) memory: &'a Memory<'m>,
    binary: &'a Binary,
    pub(super) bias: u64,
    /// Address in the file of the call, or of the next instruction in the innermost frame.
    pub(super) lookup: u64,
    innermost: bool,
}

impl Walk<'_, '_> {
    fn walk_step(&mut self, registers: &mut Registers) -> WalkStep {
        if let Some(table) = &self.binary.go
            && table.function_at(self.lookup).is_some()
        {
            return self.by_go(table, registers);
        }
        let mut context = UnwindContext::new();
        match unwind_row(self.binary, self.lookup, &mut context) {
            Ok(Some((row, exact))) => match self.apply_row(row, registers) {
                Ok(true) => WalkStep::Caller {
                    how: FrameSource::Observed,
                    exact,
                },
                Ok(false) => WalkStep::Outermost,
                Err(why) => WalkStep::Lost(why),
            },
            Ok(None) => self.without_information(registers),
            Err(error) => WalkStep::Lost(format!(
                "unwind information cannot be used: {error}{}",
                self.location_text()
            )),
        }
    }

    pub(super) fn location_text(&self) -> String {
        format!(" (at {:#x})", self.lookup)
    }

    /// Undoes a frame by its row; tells whether there is a caller.
    fn apply_row(
        &self,
        row: &UnwindTableRow<usize>,
        registers: &mut Registers,
    ) -> Result<bool, String> {
        let unknown = || {
            format!(
                "a register that the next frame needs is not known{}",
                self.location_text()
            )
        };
        let word = |address: u64| {
            let found = self.memory.read_word(address);
            found.ok_or_else(|| self.memory.missing_reason(address))
        };
        let before = *registers;
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => before
                .get(register.0)
                .ok_or_else(unknown)?
                .wrapping_add_signed(*offset),
            CfaRule::Expression(expression) => {
                self.evaluate_expression(expression, &before, None)?
            }
        };
        registers.set(RSP, Some(cfa));
        for number in 0..=IP {
            let value = match row.register(Register(number)) {
                // The columns that a row does not name keep their value.
                None | Some(RegisterRule::SameValue) => continue,
                Some(RegisterRule::Undefined) if number == IP => return Ok(false),
                Some(RegisterRule::Undefined) => None,
                Some(RegisterRule::Offset(offset)) => Some(word(cfa.wrapping_add_signed(offset))?),
                Some(RegisterRule::ValOffset(offset)) => Some(cfa.wrapping_add_signed(offset)),
                Some(RegisterRule::Register(other)) => before.get(other.0),
                Some(RegisterRule::Expression(expression)) => Some(word(
                    self.evaluate_expression(&expression, &before, Some(cfa))?,
                )?),
                Some(RegisterRule::ValExpression(expression)) => {
                    Some(self.evaluate_expression(&expression, &before, Some(cfa))?)
                }
                Some(RegisterRule::Constant(value)) => Some(value),
                Some(_) => return Err(unknown()),
            };
            registers.set(number, value);
        }
        Ok(registers.get(IP).is_some_and(|ip| ip != 0))
    }

    fn evaluate_expression(
        &self,
        expression: &UnwindExpression<usize>,
        registers: &Registers,
        start: Option<u64>,
    ) -> Result<u64, String> {
        let failed = || {
            format!(
                "unwind information cannot be evaluated{}",
                self.location_text()
            )
        };
        let table = self.binary.unwind_section().ok_or_else(failed)?;
        let bytes = table
            .bytes
            .get(expression.offset..expression.offset.saturating_add(expression.length))
            .ok_or_else(failed)?;
        let encoding = gimli::Encoding {
            address_size: 8,
            format: gimli::Format::Dwarf32,
            version: 4,
        };
        let slice = Slice::new(bytes, LittleEndian);
        let mut evaluation: Evaluation<Slice<'_>> = Expression(slice).evaluation(encoding);
        evaluation.set_max_iterations(1000);
        if let Some(start) = start {
            evaluation.set_initial_value(start);
        }
        let mut result = evaluation.evaluate().map_err(|_| failed())?;
        loop {
            result = match result {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register, .. } => {
                    let value = registers.get(register.0).ok_or_else(failed)?;
                    evaluation.resume_with_register(Value::Generic(value))
                }
                EvaluationResult::RequiresMemory { address, .. } => {
                    let value = self.memory.read_word(address);
                    let value = value.ok_or_else(|| self.memory.missing_reason(address))?;
                    evaluation.resume_with_memory(Value::Generic(value))
                }
                _ => return Err(failed()),
            }
            .map_err(|_| failed())?;
        }
        match evaluation.result().as_slice() {
            [
                Piece {
                    location: Location::Address { address },
                    ..
                },
            ] => Ok(*address),
            _ => Err(failed()),
        }
    }

    /// Code written in assembler, or built without tables. A return address is believed only if
    /// there is a call in front of it.
    fn without_information(&mut self, registers: &mut Registers) -> WalkStep {
        let (sp, bp) = (registers.get(RSP), registers.get(RBP));
        let inferred = WalkStep::Caller {
            how: FrameSource::Inferred,
            exact: false,
        };
        let name = self.location_text();
        let lost = WalkStep::Lost(format!(
            "no unwind information in the binary for this function{name}"
        ));
        let Some(sp) = sp else { return lost };
        if self.innermost {
            for slot in (0..LEAF_WORDS).map(|word| sp.wrapping_add(word * 8)) {
                let Some(ip) = self.memory.read_word(slot) else {
                    break;
                };
                if self.is_return_address(ip) {
                    registers.set(IP, Some(ip));
                    registers.set(RSP, Some(slot.wrapping_add(8)));
                    return inferred;
                }
            }
        }
        match bp {
            // What the ABI asks the first function to do.
            Some(0) => return WalkStep::Outermost,
            Some(bp) if bp >= sp => {
                if let (Some(outer), Some(ip)) = (
                    self.memory.read_word(bp),
                    self.memory.read_word(bp.wrapping_add(8)),
                ) && self.is_return_address(ip)
                {
                    registers.set(IP, Some(ip));
                    registers.set(RSP, Some(bp.wrapping_add(16)));
                    registers.set(RBP, Some(outer));
                    return inferred;
                }
            }
            _ => {}
        }
        lost
    }

    fn is_return_address(&mut self, ip: u64) -> bool {
        let inside = ip.wrapping_sub(self.bias);
        if self.binary.headers.is_code(inside) {
            return self.binary.follows_call(inside);
        }
        // Data looks like addresses often enough; only what the dynamic linker knows is asked.
        let Some(index) = self.space.locate_module(ip, self.finder) else {
            return false;
        };
        let inside = ip.wrapping_sub(self.space.module_at(index).bias);
        self.space
            .module_binary(index, self.finder)
            .is_ok_and(|binary| binary.headers.is_code(inside) && binary.follows_call(inside))
    }
}

/// The row of an address, and whether its caller's address is exact (a signal's frame). `None` if
/// the binary says nothing of the address.
fn unwind_row<'c>(
    binary: &Binary,
    address: u64,
    context: &'c mut UnwindContext<usize>,
) -> Result<Option<(&'c UnwindTableRow<usize>, bool)>, gimli::Error> {
    let mut bases = BaseAddresses::default().set_text(binary.text);
    if let Some(table) = &binary.eh_frame {
        bases = bases.set_eh_frame(table.address);
        let section = EhFrame::new(&table.bytes, LittleEndian);
        let fde = match &binary.eh_frame_hdr {
            Some(index) => {
                bases = bases.set_eh_frame_hdr(index.address);
                by_index(index, &section, &bases, address)
            }
            None => section.fde_for_address(&bases, address, EhFrame::cie_from_offset),
        };
        return optional_fde(fde, |fde| {
            let row = fde.unwind_info_for_address(&section, &bases, context, address)?;
            Ok((row, fde.is_signal_trampoline()))
        });
    }
    if let Some(table) = &binary.debug_frame {
        let section = DebugFrame::new(&table.bytes, LittleEndian);
        let fde = section.fde_for_address(&bases, address, DebugFrame::cie_from_offset);
        return optional_fde(fde, |fde| {
            let row = fde.unwind_info_for_address(&section, &bases, context, address)?;
            Ok((row, fde.is_signal_trampoline()))
        });
    }
    Ok(None)
}

fn by_index<'a>(
    index: &'a EhSection,
    section: &EhFrame<Slice<'a>>,
    bases: &BaseAddresses,
    address: u64,
) -> gimli::Result<gimli::FrameDescriptionEntry<Slice<'a>>> {
    let parsed = EhFrameHdr::new(&index.bytes, LittleEndian).parse(bases, 8)?;
    match parsed.table() {
        Some(table) => table.fde_for_address(section, bases, address, EhFrame::cie_from_offset),
        None => section.fde_for_address(bases, address, EhFrame::cie_from_offset),
    }
}

fn optional_fde<F, T>(
    fde: gimli::Result<F>,
    then: impl FnOnce(F) -> gimli::Result<T>,
) -> gimli::Result<Option<T>> {
    match fde.and_then(then) {
        Ok(found) => Ok(Some(found)),
        Err(gimli::Error::NoUnwindInfoForAddress) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number of the stack pointer is that of gimli's tables.
const _: () = assert!(X86_64::RSP.0 == RSP && X86_64::RBP.0 == RBP && X86_64::RA.0 == IP);
