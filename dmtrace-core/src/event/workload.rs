//! To whom a cgroup belongs: a container, a pod, a unit of systemd.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What runs containers.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// Docker.
    Docker,
    /// containerd, also below Kubernetes.
    Containerd,
    /// CRI-O.
    CriO,
    /// Podman.
    Podman,
    /// Kubernetes with a runtime whose name is not in the path (driver `cgroupfs`).
    Kubernetes,
    /// LXC, Incus, LXD.
    Lxc,
    /// systemd-nspawn.
    Nspawn,
    /// One whose name is not in the path.
    Other,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Podman => "podman",
            Self::Kubernetes => "kubernetes",
            Self::Lxc => "lxc",
            Self::Nspawn => "nspawn",
            Self::Other => "container",
        })
    }
}

/// What the path of a cgroup says.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// What runs the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// Container: 64 hexadecimal digits, or a name for LXC and nspawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// `metadata.uid` of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Innermost service or scope of systemd outside of containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// User whose manager or session it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
}

impl fmt::Display for Workload {
    /// `docker 0123456789ab`, `lvm2-monitor.service`, or `-`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.runtime, &self.container, &self.unit) {
            (Some(runtime), Some(container), _) => {
                let short = if is_id(container) {
                    container.get(..12)
                } else {
                    None
                };
                let text = format!("{runtime} {}", short.unwrap_or(container));
                f.pad(&text)
            }
            (_, _, Some(unit)) => f.pad(unit),
            _ => f.pad("-"),
        }
    }
}

impl Workload {
    /// Reads the path of a cgroup, as in the third field of `/proc/PID/cgroup`. A path that lost
    /// its beginning is fine. With containers in containers the innermost counts.
    pub fn from_cgroup(path: &str) -> Self {
        let mut out = Self::default();
        let mut before = "";
        let mut ecs = false;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            out.add_component(before, part);
            before = part;
            ecs |= part == "ecs";
        }
        // Amazon ECS puts Docker's containers below the number of their task.
        if ecs && out.runtime == Some(Runtime::Other) {
            out.runtime = Some(Runtime::Docker);
        }
        out
    }

    fn add_component(&mut self, before: &str, part: &str) {
        // `kubepods-pod12.slice:cri-containerd:0123…`: the systemd form given to the driver
        // `cgroupfs`.
        let mut colons = part.splitn(3, ':');
        if let (Some(slice), Some(prefix), Some(id)) = (colons.next(), colons.next(), colons.next())
        {
            if let Some(pod) = pod_of(slice) {
                self.pod = Some(pod);
            }
            if let Some(runtime) = runtime_of(prefix)
                && is_id(id)
            {
                self.set_container(runtime, id);
            }
            return;
        }
        if let Some(pod) = pod_of(part) {
            self.pod = Some(pod);
            return;
        }
        if let Some((runtime, id)) = container_of(before, part) {
            self.set_container(runtime, id);
            return;
        }
        if let Some(uid) = user_of(part) {
            self.user = Some(uid);
        }
        // Units inside of a container are the container's business.
        if self.container.is_none() && (part.ends_with(".service") || part.ends_with(".scope")) {
            self.unit = Some(unescape_unit_name(part));
        }
    }

    fn set_container(&mut self, runtime: Runtime, container: &str) {
        self.runtime = Some(runtime);
        self.container = Some(container.to_owned());
        self.unit = None;
    }
}

/// A container by its directory and the one above.
fn container_of<'a>(before: &str, part: &'a str) -> Option<(Runtime, &'a str)> {
    if let Some(name) = part
        .strip_prefix("lxc.payload.")
        .or_else(|| part.strip_prefix("lxc.monitor."))
    {
        return Some((Runtime::Lxc, name));
    }
    if matches!(before, "lxc" | "lxc.payload" | "lxc.monitor") {
        return Some((Runtime::Lxc, part));
    }
    if let Some(name) = part
        .strip_prefix("systemd-nspawn@")
        .and_then(|part| part.strip_suffix(".service"))
    {
        return Some((Runtime::Nspawn, name));
    }
    if before == "machine.slice"
        && let Some(name) = part
            .strip_prefix("machine-")
            .and_then(|part| part.strip_suffix(".scope"))
        // libvirt's virtual machines are no containers.
        && !name.starts_with("qemu")
    {
        return Some((Runtime::Nspawn, name));
    }
    let stem = part.strip_suffix(".scope").unwrap_or(part);
    // The monitor process of CRI-O and Podman: `crio-conmon-ID`, `libpod-conmon-ID`.
    if let Some((prefix, id)) = stem.rsplit_once('-')
        && is_id(id)
        && let Some(runtime) = runtime_of(prefix)
    {
        return Some((runtime, id));
    }
    if !is_id(stem) {
        return None;
    }
    let runtime = match before {
        "docker" | "actions_job" => Runtime::Docker,
        "libpod_parent" | "libpod" => Runtime::Podman,
        _ if pod_of(before).is_some() => Runtime::Kubernetes,
        // `ctr` and nerdctl put containers below the name of their namespace; Docker below any
        // name that it is given (`--cgroup-parent`).
        "default" | "k8s.io" => Runtime::Containerd,
        _ => Runtime::Other,
    };
    Some((runtime, stem))
}

fn runtime_of(prefix: &str) -> Option<Runtime> {
    Some(match prefix {
        "docker" => Runtime::Docker,
        "cri-containerd" | "containerd" | "nerdctl" => Runtime::Containerd,
        "crio" | "crio-conmon" => Runtime::CriO,
        "libpod" | "libpod-conmon" | "libpod-payload" => Runtime::Podman,
        _ => return None,
    })
}

/// 64 hexadecimal digits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The uid in `podUID` or `kubepods-burstable-podUID.slice`, where systemd wants `_` for `-`.
/// Static pods have 32 hexadecimal digits. The kubelet's own cgroup may come first, as in kind:
/// `kubelet-kubepods-burstable-podUID.slice`.
fn pod_of(part: &str) -> Option<String> {
    let stem = part.strip_suffix(".slice").unwrap_or(part);
    let uid = match stem.split_once("kubepods") {
        Some((before, rest)) if before.is_empty() || before.ends_with('-') => {
            rest.rsplit_once("-pod")?.1
        }
        _ => stem.strip_prefix("pod")?,
    };
    let digits = uid
        .bytes()
        .filter(|&byte| !matches!(byte, b'-' | b'_'))
        .count();
    let plausible = digits == 32
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'_'));
    plausible.then(|| uid.replace('_', "-"))
}

/// `user-1000.slice`, `user@1000.service`.
fn user_of(part: &str) -> Option<u32> {
    let slice = part
        .strip_prefix("user-")
        .and_then(|part| part.strip_suffix(".slice"));
    let service = part
        .strip_prefix("user@")
        .and_then(|part| part.strip_suffix(".service"));
    slice.or(service)?.parse().ok()
}

/// Undoes `unit_name_escape`: `\x2d` is `-`.
fn unescape_unit_name(unit: &str) -> String {
    let mut out = String::with_capacity(unit.len());
    let mut rest = unit;
    while let Some((start, tail)) = rest.split_once("\\x") {
        out.push_str(start);
        let code = tail
            .get(..2)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code.filter(u8::is_ascii_graphic) {
            Some(code) => {
                out.push(char::from(code));
                rest = &tail[2..];
            }
            None => {
                out.push_str("\\x");
                rest = tail;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
