//! Device-mapper devices that are suspended now: removing a cookie of the command that will
//! resume them leaves them suspended (LVM before 2.03.40).

use std::path::Path;

use super::Roots;
use crate::facts::Suspended;

/// Finds them; none without sysfs.
pub fn suspended(roots: &Roots) -> Vec<Suspended> {
    let read = |path: &Path| -> Option<String> {
        let text = String::from_utf8(roots.read_fs(path).ok()?).ok()?;
        Some(text.trim().to_owned())
    };
    roots
        .names("sys/block")
        .into_iter()
        .filter_map(|node| {
            let node = node.to_str()?.to_owned();
            if !node.starts_with("dm-") {
                return None;
            }
            let dir = Path::new("sys/block").join(&node).join("dm");
            (read(&dir.join("suspended"))? == "1").then(|| Suspended {
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
    fn only_suspended_devices() {
        let host = tempfile::tempdir().unwrap();
        for (node, suspended) in [("dm-0", "0\n"), ("dm-7", "1\n"), ("sda", "1\n")] {
            let dir = host.path().join("sys/block").join(node).join("dm");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("suspended"), suspended).unwrap();
            fs::write(dir.join("name"), "vg-root\n").unwrap();
        }
        let found = suspended(&Roots::below(host.path()));
        assert_eq!(
            found,
            [Suspended {
                node: "dm-7".to_owned(),
                name: "vg-root".to_owned()
            }]
        );
        let empty = tempfile::tempdir().unwrap();
        assert!(suspended(&Roots::below(empty.path())).is_empty());
    }
}
