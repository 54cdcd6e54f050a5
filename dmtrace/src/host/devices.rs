//! Device-mapper devices, as sysfs and `/dev/mapper` show them.

use std::path::Path;

use dmtrace_core::facts::{DmFacts, SuspendedDevice};

use super::Roots;

/// Directory of the nodes that udev (or libdm without it) makes.
const NODES: &str = "dev/mapper";

/// Reads what there is.
pub fn read_devices(roots: &Roots) -> DmFacts {
    let names = roots.read_names(NODES).into_iter();
    let nodes = names
        .filter_map(|name| name.into_os_string().into_string().ok())
        .collect();
    DmFacts {
        suspended: suspended_devices(roots),
        nodes: roots.exists(NODES).then_some(nodes),
    }
}

/// Devices that are suspended now: removing a cookie of the command that will resume them leaves
/// them suspended (LVM before 2.03.40). None without sysfs.
fn suspended_devices(roots: &Roots) -> Vec<SuspendedDevice> {
    let read = |path: &Path| -> Option<String> {
        let text = String::from_utf8(roots.read_fs(path).ok()?).ok()?;
        Some(text.trim().to_owned())
    };
    roots
        .read_names("sys/block")
        .into_iter()
        .filter_map(|node| {
            let node = node.to_str()?.to_owned();
            if !node.starts_with("dm-") {
                return None;
            }
            let dir = Path::new("sys/block").join(&node).join("dm");
            (read(&dir.join("suspended"))? == "1").then(|| SuspendedDevice {
                name: read(&dir.join("name")).unwrap_or_default(),
                node,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn suspended_devices_and_nodes() {
        let host = tempfile::tempdir().unwrap();
        for (node, suspended) in [("dm-0", "0\n"), ("dm-7", "1\n"), ("sda", "1\n")] {
            let dir = host.path().join("sys/block").join(node).join("dm");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("suspended"), suspended).unwrap();
            fs::write(dir.join("name"), "vg-root\n").unwrap();
        }
        fs::create_dir_all(host.path().join("dev/mapper")).unwrap();
        fs::write(host.path().join("dev/mapper/vg-root"), "").unwrap();
        let found = read_devices(&Roots::below(host.path()));
        let suspended = SuspendedDevice {
            node: "dm-7".to_owned(),
            name: "vg-root".to_owned(),
        };
        assert_eq!(found.suspended, [suspended]);
        assert!(found.nodes.unwrap().contains("vg-root"));
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(
            read_devices(&Roots::below(empty.path())),
            DmFacts::default()
        );
    }
}
