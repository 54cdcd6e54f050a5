//! The floor of `cargo xtask bench`: attaches empty programs, and holds them until standard input
//! ends.
//!
//! `bench-floor OBJECT HOOK...`: hooks as `dmtrace doctor --json` tells them, such as
//! `fentry:freeary`, `kretprobe:newary`, `raw_tp:sched_process_exit` or
//! `syscalls:sys_enter_semop`; a hook of which several names are given (`A|B`) takes the first that
//! attaches.

#[cfg(feature = "live")]
mod floor {
    use std::{any::Any, io::Read as _};

    use anyhow::{Context as _, Result, bail};
    use aya::{Btf, Ebpf, EbpfLoader, programs::Program};

    /// Attaches, says so, and waits.
    pub(crate) fn run() -> Result<()> {
        let mut args = std::env::args().skip(1);
        let path = args.next().context("usage: bench-floor OBJECT HOOK...")?;
        let object = std::fs::read(&path).with_context(|| path.clone())?;
        let mut ebpf = EbpfLoader::new().load(&object).with_context(|| path)?;
        let btf = Btf::from_sys_fs().ok();
        let mut links = Vec::new();
        for hook in args {
            let mut failure = None;
            let link = hook.split('|').find_map(|way| {
                attach_floor(&mut ebpf, btf.as_ref(), way)
                    .map_err(|error| failure = Some(error))
                    .ok()
            });
            match (link, failure) {
                (Some(link), _) => links.push(link),
                (None, Some(error)) => return Err(error),
                (None, None) => bail!("{hook}: names nothing"),
            }
        }
        println!("armed: {} empty programs", links.len());
        let mut rest = Vec::new();
        std::io::stdin().read_to_end(&mut rest)?;
        Ok(())
    }

    fn attach_floor(ebpf: &mut Ebpf, btf: Option<&Btf>, hook: &str) -> Result<Box<dyn Any>> {
        let (kind, name) = hook
            .split_once(':')
            .with_context(|| format!("{hook}: no colon"))?;
        let program = match kind {
            "fentry" => "floor_fentry",
            "fexit" => "floor_fexit",
            "kprobe" => "floor_ke",
            "kretprobe" => "floor_kx",
            "raw_tp" => "floor_raw",
            _ => "floor_tp",
        };
        let program = ebpf
            .program_mut(program)
            .context("floor: no such program")?;
        // The link keeps the program. Each place gets one of its own: the kernel does not take the
        // same program twice at the same place.
        macro_rules! place {
            ($program:ident, $load:expr, $attach:expr) => {{
                $load?;
                let link = $attach.and_then(|id| $program.take_link(id));
                $program.unload()?;
                Ok(Box::new(link?) as Box<dyn Any>)
            }};
        }
        let mut placed = || -> Result<Box<dyn Any>> {
            match program {
                Program::FEntry(program) => {
                    let btf = btf.context("the kernel has no BTF")?;
                    place!(program, program.load(name, btf), program.attach())
                }
                Program::FExit(program) => {
                    let btf = btf.context("the kernel has no BTF")?;
                    place!(program, program.load(name, btf), program.attach())
                }
                Program::KProbe(program) => {
                    place!(program, program.load(), program.attach(name, 0))
                }
                Program::TracePoint(program) => {
                    place!(program, program.load(), program.attach(kind, name))
                }
                Program::RawTracePoint(program) => {
                    place!(program, program.load(), program.attach(name))
                }
                _ => bail!("the object has a program of another type"),
            }
        };
        placed().with_context(|| hook.to_owned())
    }
}

#[cfg(feature = "live")]
fn main() -> anyhow::Result<()> {
    floor::run()
}

#[cfg(not(feature = "live"))]
fn main() {}
