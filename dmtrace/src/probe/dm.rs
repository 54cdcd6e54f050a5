//! Attaching to device-mapper, which may be a module that comes and goes while we trace.

use std::{
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use aya::Ebpf;
use dmtrace_core::backend::Backend;
use serde::Serialize;

use super::{
    attach::{AttachOutcome, Attached, Attempt, Links, attach_program},
    btf::Btf,
    catalog::device_mapper,
    environment::BTF_FILE,
    link::Link,
    module::{self, AttachSide, MapFds, ModulePrograms},
    pins,
    skipped::Misses,
    spec::{Attachment, ProbeHook, ProgramPlan},
    tracepoint::Tracepoints,
};

use crate::wording::cause_text;

const MODULE: &str = "/sys/module/dm_mod";
const MODULE_BTF: &str = "/sys/kernel/btf/dm_mod";
/// A module is visible a moment before it can be attached to.
const MAX_ATTACH_TRIES: u32 = 3;

/// How device-mapper is seen.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub(crate) enum DmState {
    /// dm_mod is not there; dmtrace attaches when it is.
    NotLoaded,
    /// Its programs are attached.
    Attached {
        /// fentry or kprobe.
        by: Backend,
        /// Whether the uevents themselves are seen, too; otherwise the ioctl tells of them.
        uevents: bool,
    },
    /// There, and there is no way to attach.
    Impossible {
        /// Why: the reason of the last way.
        reason: String,
    },
}

/// The programs in device-mapper.
pub(super) struct DeviceMapper {
    /// What was asked for on the command line.
    wanted: Option<Backend>,
    plan: ProgramPlan,
    state: DmState,
    attempts: Vec<Attempt>,
    attached: Attached,
    /// Programs that were loaded here, those of former incarnations of the module included.
    loaded: Vec<(&'static str, OwnedFd)>,
    /// Programs that were in their places already.
    adopted: Vec<(String, OwnedFd)>,
    object: &'static [u8],
    /// Until it is needed: on many hosts it never is.
    maps: Option<MapFds>,
    programs: Result<ModulePrograms, String>,
    /// Which incarnation of the module was attached to or tried: its inode number in sysfs.
    seen: Option<u64>,
    tries: u32,
    /// Where programs that outlive this process are found and kept.
    keep: Option<PathBuf>,
}

/// Types of device-mapper, and where its functions are.
struct DmTypes {
    btf: Rc<Btf>,
    /// BTF object of the module; `None` if dm is built in.
    object: Option<OwnedFd>,
}

impl DeviceMapper {
    /// Not attached yet. Must be made before the maps are taken out of the object.
    pub(super) fn new(
        ebpf: &Ebpf,
        object: &'static [u8],
        wanted: Option<Backend>,
        plan: ProgramPlan,
    ) -> Self {
        let (maps, programs) = match MapFds::from_ebpf(ebpf) {
            Ok(maps) => (Some(maps), Err("not read yet".to_owned())),
            Err(error) => (None, Err(cause_text(&error))),
        };
        Self {
            object,
            maps,
            wanted,
            plan,
            state: DmState::NotLoaded,
            attempts: Vec::new(),
            attached: Attached::default(),
            loaded: Vec::new(),
            adopted: Vec::new(),
            programs,
            seen: None,
            tries: 0,
            keep: None,
        }
    }

    /// Programs in trampolines are to outlive this process, under this directory; those that are
    /// there are taken over. Must be called before the first [`DeviceMapper::try_attach`].
    pub(super) fn keep_in(&mut self, dir: Option<&Path>) {
        self.keep = dir.map(Path::to_owned);
    }

    /// Takes over what is in its place already. Only trampolines are kept, which hold the module:
    /// it is still the same.
    fn adopt_pinned(&mut self) -> bool {
        let Some(keep) = &self.keep else {
            return false;
        };
        for uevents in [true, false] {
            let dir = pin_dir(keep, uevents);
            let Ok(adopted) =
                pins::adopt_links(&dir, Backend::Trampoline, device_mapper(self.plan).iter())
            else {
                continue;
            };
            self.attached = adopted.attached;
            self.adopted = adopted.programs;
            self.attempts = adopted.attempts;
            self.state = DmState::Attached {
                by: Backend::Trampoline,
                uevents,
            };
            return true;
        }
        false
    }

    /// Lets the programs outlive this process. Where that fails they end with it.
    fn pin_links(&self, ebpf: &Ebpf, by: Backend, uevents: bool) {
        if let (Some(keep), Backend::Trampoline) = (&self.keep, by) {
            let program = |name: &str| {
                let own = self.loaded.iter().find(|(program, _)| *program == name);
                let fd = match own {
                    Some((_, fd)) => fd.as_fd().try_clone_to_owned(),
                    None => {
                        let program = ebpf.program(name)?.fd().ok()?;
                        program.as_fd().try_clone_to_owned()
                    }
                };
                fd.ok()
            };
            let _for_this_process_only =
                pins::pin_all(&pin_dir(keep, uevents), &self.attached, program);
        }
    }

    /// Whether its programs were in their places already.
    pub(super) const fn was_adopted(&self) -> bool {
        !self.adopted.is_empty()
    }

    pub(super) const fn state(&self) -> &DmState {
        &self.state
    }

    pub(super) fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    pub(super) fn detach(&mut self) {
        self.attached.links.clear();
    }

    /// Where programs stand, or stood before they were detached.
    pub(super) fn attachments(&self) -> &[Attachment] {
        &self.attached.attachments
    }

    /// Adds the skipped runs of the programs that were loaded here.
    pub(super) fn count_misses(&self, misses: &mut Misses) {
        for (name, program) in &self.loaded {
            misses.add_program(name, program.as_fd());
        }
        for (name, program) in &self.adopted {
            misses.add_program(name, program.as_fd());
        }
    }

    /// Attaches if dm_mod is there and nothing is attached to it. Returns the offset of
    /// `mapped_device.disk`, or 0, if something was attached now.
    pub(super) fn try_attach(&mut self, ebpf: &mut Ebpf, kernel: Option<&Rc<Btf>>) -> Option<u32> {
        let inode = fs::metadata(MODULE).ok().map(|meta| meta.ino());
        if inode != self.seen {
            // Gone, or another incarnation: kprobes have died with the old one.
            self.attached.links.clear();
            self.attached.attachments.clear();
            self.state = DmState::NotLoaded;
            self.tries = 0;
            let first = self.seen.is_none();
            self.seen = inode;
            if first && inode.is_some() && self.adopt_pinned() {
                return None;
            }
        }
        inode?;
        let attached = matches!(self.state, DmState::Attached { .. });
        if attached || self.tries >= MAX_ATTACH_TRIES {
            return None;
        }
        self.tries += 1;
        let types = read_types(kernel);
        if let Some(maps) = self.maps.take_if(|_| types.is_ok()) {
            self.programs = ModulePrograms::new(self.object, maps);
        }
        let by = self.attach_all(ebpf, types.as_ref());
        match by {
            Ok(by) => {
                let uevents = self.attempts.iter().any(|attempt| {
                    attempt.subject == "uevent"
                        && matches!(attempt.outcome, AttachOutcome::Attached)
                });
                self.state = DmState::Attached { by, uevents };
                self.pin_links(ebpf, by, uevents);
                let offset = types
                    .ok()
                    .and_then(|it| it.btf.member_offset("mapped_device.disk"));
                Some(offset.unwrap_or(0))
            }
            Err(reason) => {
                self.state = DmState::Impossible { reason };
                None
            }
        }
    }

    /// The backend by which the ioctls are seen.
    fn attach_all(
        &mut self,
        ebpf: &mut Ebpf,
        types: Result<&DmTypes, &String>,
    ) -> Result<Backend, String> {
        self.attempts.clear();
        let mut by = Err("no way known".to_owned());
        for subject in device_mapper(self.plan) {
            let mut done = false;
            for way in subject.ways {
                let backend = backend_of(way);
                let outcome = if done {
                    AttachOutcome::NotNeeded
                } else if self.wanted == Some(Backend::Kprobe) && backend == Backend::Trampoline {
                    AttachOutcome::Failed("kprobe was asked for".to_owned())
                } else {
                    let links: Result<Links, String> = way
                        .iter()
                        .map(|attachment| self.attach_one(ebpf, types, *attachment))
                        .collect();
                    match links {
                        Ok(links) => {
                            done = true;
                            self.attached.links.extend(links);
                            self.attached.attachments.extend(way.iter());
                            AttachOutcome::Attached
                        }
                        Err(reason) => AttachOutcome::Failed(reason),
                    }
                };
                if subject.name == "dm" {
                    match &outcome {
                        AttachOutcome::Attached => by = Ok(backend),
                        AttachOutcome::Failed(reason) if by.is_err() => by = Err(reason.clone()),
                        _ => {}
                    }
                }
                self.attempts
                    .push(Attempt::new(backend, subject, way, outcome));
            }
            if by.is_err() {
                // Uevents without the ioctls that send them cannot be told from others'.
                break;
            }
        }
        by
    }

    fn attach_one(
        &mut self,
        ebpf: &mut Ebpf,
        types: Result<&DmTypes, &String>,
        attachment: Attachment,
    ) -> Result<Link, String> {
        let (side, function) = match attachment.hook {
            ProbeHook::Fentry(function) => (AttachSide::Entry, function),
            ProbeHook::Fexit(function) => (AttachSide::Exit, function),
            _ => return attach_program(ebpf, None, attachment, &Tracepoints::default()),
        };
        let named = |reason: &dyn std::fmt::Display| format!("{}: {reason}", attachment.hook);
        let types = types.map_err(|reason| named(reason))?;
        let programs = self.programs.as_ref().map_err(|reason| named(reason))?;
        let id = types
            .btf
            .function_id(function)
            .ok_or_else(|| named(&"dm_mod has no such function"))?;
        let (program, link) = programs
            .attach_program(attachment.program, side, id, types.object.as_ref())
            .map_err(|reason| named(&reason))?;
        self.loaded.push((attachment.program, program));
        Ok(Link::Raw(link))
    }
}

fn pin_dir(dir: &Path, uevents: bool) -> PathBuf {
    dir.join(if uevents { "dm_1" } else { "dm_0" })
}

fn backend_of(way: &[Attachment]) -> Backend {
    match way.first().map(|attachment| attachment.hook) {
        Some(ProbeHook::Fentry(_) | ProbeHook::Fexit(_)) => Backend::Trampoline,
        _ => Backend::Kprobe,
    }
}

/// The module's types, or the kernel's if dm is built in.
fn read_types(kernel: Option<&Rc<Btf>>) -> Result<DmTypes, String> {
    let kernel = match kernel {
        Some(kernel) => Rc::clone(kernel),
        None => Rc::new(Btf::from_file(Path::new(BTF_FILE)).map_err(|error| cause_text(&error))?),
    };
    if kernel.has_function("dm_kobject_uevent") {
        return Ok(DmTypes {
            btf: kernel,
            object: None,
        });
    }
    if !Path::new(MODULE_BTF).exists() {
        return Err("the kernel has no type information of modules".to_owned());
    }
    let btf = Btf::of_module(Path::new(MODULE_BTF), &kernel).map_err(|error| cause_text(&error))?;
    let object = module::btf_of("dm_mod")
        .map_err(|error| format!("BTF of dm_mod: {}", cause_text(&error)))?;
    Ok(DmTypes {
        btf: Rc::new(btf),
        object: Some(object),
    })
}
