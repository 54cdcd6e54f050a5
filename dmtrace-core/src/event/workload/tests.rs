//! Paths as they are found on real hosts.

use proptest::prelude::*;

use super::*;

const ID: &str = "4f3a1c2b5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708";
const POD: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
const POD_: &str = "0f1e2d3c_4b5a_6978_8796_a5b4c3d2e1f0";

/// Replaces `ID`, `POD_` and `POD` in the sample by real ones.
fn parse_sample(sample: &str) -> Workload {
    let path = sample
        .replace("OTHER", &"0123456789abcdef".repeat(4))
        .replace("ID", ID)
        .replace("POD_", POD_)
        .replace("POD", POD);
    Workload::from_cgroup(&path)
}

#[test]
fn containers() {
    use Runtime::{Containerd, CriO, Docker, Kubernetes, Other, Podman};
    for (sample, runtime, pod) in [
        ("/docker/ID", Docker, false),
        ("/system.slice/docker-ID.scope", Docker, false),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope",
            Docker,
            false,
        ),
        ("/actions_job/ID", Docker, false),
        ("ker/4f/docker-ID.scope", Docker, false),
        ("/kubepods/besteffort/podPOD/ID", Kubernetes, true),
        ("/kubepods/podPOD/ID", Kubernetes, true),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podPOD_.slice/docker-ID.scope",
            Docker,
            true,
        ),
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podPOD_.slice/cri-containerd-ID.scope",
            Containerd,
            true,
        ),
        (
            "/kubepods.slice/kubepods-podPOD_.slice/cri-containerd-ID.scope",
            Containerd,
            true,
        ),
        (
            "/kubepods-besteffort-podPOD_.slice:cri-containerd:ID",
            Containerd,
            true,
        ),
        (
            "/system.slice/containerd.service/kubepods-burstable-podPOD_.slice:cri-containerd:ID",
            Containerd,
            true,
        ),
        ("/default/ID", Containerd, false),
        ("/k8s.io/ID", Containerd, false),
        // Docker with --cgroup-parent, and others that do not say who they are.
        ("/batch/ID", Other, false),
        ("/batch.slice/docker-ID.scope", Docker, false),
        // Amazon ECS, drivers cgroupfs and systemd.
        ("/ecs/0f1e2d3c4b5a69788796a5b4c3d2e1f0/ID", Docker, false),
        (
            "/ecs/cluster/0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0/ID",
            Docker,
            false,
        ),
        (
            "/ecstasks.slice/ecstasks-0f1e2d3c4b5a69788796a5b4c3d2e1f0.slice/docker-ID.scope",
            Docker,
            false,
        ),
        ("/system.slice/nerdctl-ID.scope", Containerd, false),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podPOD_.slice/crio-ID.scope",
            CriO,
            true,
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podPOD_.slice/crio-ID.scope/container",
            CriO,
            true,
        ),
        ("/kubepods/burstable/podPOD/crio-ID", CriO, true),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podPOD_.slice/crio-conmon-ID.scope",
            CriO,
            true,
        ),
        ("/machine.slice/libpod-ID.scope", Podman, false),
        ("/machine.slice/libpod-ID.scope/container", Podman, false),
        ("/machine.slice/libpod-conmon-ID.scope", Podman, false),
        ("/libpod_parent/libpod-ID", Podman, false),
        // In a pod of Podman, drivers systemd and cgroupfs; its number is no pod of Kubernetes.
        (
            "/machine.slice/machine-libpod_pod_OTHER.slice/libpod-ID.scope/container",
            Podman,
            false,
        ),
        ("/libpod_parent/OTHER/libpod-ID", Podman, false),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            Podman,
            false,
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/run.service/libpod-payload-ID",
            Podman,
            false,
        ),
        // A unit inside of a container, and Kubernetes in Docker.
        (
            "/system.slice/docker-ID.scope/system.slice/lvm2-lvmpolld.service",
            Docker,
            false,
        ),
        (
            "/docker/ID/kubelet/kubepods/burstable/podPOD/ID",
            Kubernetes,
            true,
        ),
        // kind, whose nodes are containers; the kubelet has a cgroup of its own.
        (
            "/docker/OTHER/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podPOD_.slice/cri-containerd-ID.scope",
            Containerd,
            true,
        ),
        // Seen from a cgroup namespace beside it.
        (
            "/../../kubepods-besteffort-podPOD_.slice/crio-ID.scope",
            CriO,
            true,
        ),
        // minikube: Docker in Docker.
        (
            "/system.slice/docker-OTHER.scope/kubepods/burstable/podPOD/ID",
            Kubernetes,
            true,
        ),
    ] {
        let got = parse_sample(sample);
        assert_eq!(got.runtime, Some(runtime), "{sample}");
        assert_eq!(got.container.as_deref(), Some(ID), "{sample}");
        assert_eq!(got.pod.as_deref(), pod.then_some(POD), "{sample}");
        assert_eq!(got.unit, None, "{sample}");
    }
}

#[test]
fn named_containers() {
    for (sample, runtime, name) in [
        ("/lxc/web1", Runtime::Lxc, "web1"),
        ("/lxc/web1/system.slice/cron.service", Runtime::Lxc, "web1"),
        ("/lxc.payload.web1/init.scope", Runtime::Lxc, "web1"),
        ("/lxc.monitor.web1", Runtime::Lxc, "web1"),
        ("/lxc.payload/web1", Runtime::Lxc, "web1"),
        (
            "/machine.slice/systemd-nspawn@deb.service/payload",
            Runtime::Nspawn,
            "deb",
        ),
        ("/machine.slice/machine-deb.scope", Runtime::Nspawn, "deb"),
    ] {
        let got = parse_sample(sample);
        assert_eq!(got.runtime, Some(runtime), "{sample}");
        assert_eq!(got.container.as_deref(), Some(name), "{sample}");
    }
}

#[test]
fn static_pods_have_a_hash_for_a_uid() {
    let hash = "0123456789abcdef0123456789abcdef";
    let got = parse_sample(&format!("/kubepods/burstable/pod{hash}/ID"));
    assert_eq!(got.pod.as_deref(), Some(hash));
}

#[test]
fn units_of_the_host() {
    for (sample, unit, user) in [
        ("/system.slice/docker.service", Some("docker.service"), None),
        (
            "/system.slice/systemd-udevd.service/udev",
            Some("systemd-udevd.service"),
            None,
        ),
        ("/init.scope", Some("init.scope"), None),
        (
            "/user.slice/user-1000.slice/session-3.scope",
            Some("session-3.scope"),
            Some(1000),
        ),
        (
            "/user.slice/user-0.slice/user@0.service/app.slice/shell\\x2d1.scope",
            Some("shell-1.scope"),
            Some(0),
        ),
        (
            "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt",
            Some("machine-qemu-1-vm.scope"),
            None,
        ),
        ("/", None, None),
        ("", None, None),
        ("/kubepods.slice", None, None),
    ] {
        let got = parse_sample(sample);
        assert_eq!(got.unit.as_deref(), unit, "{sample}");
        assert_eq!(got.user, user, "{sample}");
        assert_eq!(got.container, None, "{sample}");
    }
}

#[test]
fn short_names_for_tables() {
    assert_eq!(
        parse_sample("/docker/ID").to_string(),
        "docker 4f3a1c2b5d6e"
    );
    assert_eq!(
        parse_sample("/batch/ID").to_string(),
        "container 4f3a1c2b5d6e"
    );
    assert_eq!(parse_sample("/lxc/web1").to_string(), "lxc web1");
    assert_eq!(
        parse_sample("/system.slice/a.service").to_string(),
        "a.service"
    );
    assert_eq!(parse_sample("/").to_string(), "-");
}

proptest! {
    #[test]
    fn no_path_panics(path in "([a-z@:._-]|/|\\\\x|[0-9]|ü){0,60}") {
        let _text = Workload::from_cgroup(&path).to_string();
    }
}
