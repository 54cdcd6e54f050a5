//! How much of the stack the programs take. Older kernels allow a program and what it calls 512
//! bytes together, newer ones more: a new kernel does not tell what an old one refuses.

use std::collections::BTreeSet;

use aya_obj::generated::bpf_insn;

use super::load::OBJECT;

const MAX_STACK_BYTES: i64 = 512;
const FRAME_POINTER: u8 = 10;

/// As the verifier reckons it (`check_max_stack_depth`): deepest of all chains of calls.
fn deepest_stack(code: &[bpf_insn], starts: &BTreeSet<usize>, from: usize) -> i64 {
    let to = starts.range(from + 1..).next().copied();
    let (mut lowest, mut deepest) = (0, 0);
    // Where a register points into the frame.
    let mut places: [Option<i64>; 11] = [None; 11];
    places[usize::from(FRAME_POINTER)] = Some(0);
    for (at, insn) in code[..to.unwrap_or(code.len())]
        .iter()
        .enumerate()
        .skip(from)
    {
        let (to, by) = (insn.dst_reg(), insn.src_reg());
        let place = places[usize::from(to)];
        match insn.code {
            0xbf => places[usize::from(to)] = places[usize::from(by)],
            0x07 if place.is_some() => {
                places[usize::from(to)] = place.map(|place| place + i64::from(insn.imm));
            }
            0x85 => {
                if by == 1 {
                    deepest = deepest.max(deepest_stack(code, starts, jump_target(at, insn)));
                }
                places[..6].fill(None);
            }
            // Stores.
            other if other & 7 == 2 || other & 7 == 3 => {
                lowest = lowest.min(place.map_or(0, |place| place + i64::from(insn.off)));
            }
            other if matches!(other & 7, 0 | 1 | 4 | 7) && to != FRAME_POINTER => {
                places[usize::from(to)] = None;
            }
            _ => {}
        }
        lowest = lowest.min(places[usize::from(to)].unwrap_or(0));
    }
    // A function that takes nothing counts all the same.
    (-lowest.min(-1) as u64).next_multiple_of(32) as i64 + deepest
}

fn jump_target(at: usize, insn: &bpf_insn) -> usize {
    at.wrapping_add_signed(insn.imm as isize) + 1
}

#[test]
fn every_program_fits_the_stack_of_old_kernels() {
    let mut object = aya_obj::Object::parse(&OBJECT).unwrap();
    let sections = object.functions.keys().map(|(section, _)| *section);
    let sections = sections.collect();
    object.relocate_calls(&sections).unwrap();
    assert!(!object.programs.is_empty());
    let mut deepest = 0;
    let mut too_deep = Vec::new();
    for (name, program) in &object.programs {
        let code = &object.functions[&program.function_key()].instructions;
        let calls = code.iter().enumerate();
        let calls = calls.filter(|(_, insn)| insn.code == 0x85 && insn.src_reg() == 1);
        let starts: BTreeSet<usize> = calls.map(|(at, insn)| jump_target(at, insn)).collect();
        let depth = deepest_stack(code, &starts, 0);
        if depth > MAX_STACK_BYTES {
            too_deep.push(format!("{name}: takes {depth} bytes of {MAX_STACK_BYTES}"));
        }
        deepest = deepest.max(depth);
    }
    assert!(too_deep.is_empty(), "{}", too_deep.join("\n"));
    // The largest record alone takes this much.
    assert!(deepest > 200, "{deepest}: the stack is not measured");
}
