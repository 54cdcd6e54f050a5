//! Names of users.

use std::collections::HashMap;

use super::{
    Roots,
    text::{parse_number, printable},
};

/// The users of the host's `/etc/passwd`. Directory services are not asked: dmtrace must not wait
/// for a network, and cookies belong to root.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Users {
    names: HashMap<u32, String>,
}

impl Users {
    /// Reads the file; nobody is known when it cannot be read.
    pub fn read(roots: &Roots) -> Self {
        Self::parse(&roots.read_fs("etc/passwd").unwrap_or_default())
    }

    /// From the text of the file. The first name of a uid counts, as in `getpwuid`.
    pub fn parse(text: &[u8]) -> Self {
        let mut names = HashMap::new();
        for line in text.split(|&byte| byte == b'\n') {
            let mut fields = line.split(|&byte| byte == b':');
            let (Some(name), Some(uid)) = (fields.next(), fields.nth(1).and_then(parse_number))
            else {
                continue;
            };
            if !name.is_empty() && !name.starts_with(b"#") {
                names.entry(uid).or_insert_with(|| printable(name));
            }
        }
        Self { names }
    }

    /// The name of a user, or the number where there is none.
    pub fn name(&self, uid: u32) -> String {
        self.names
            .get(&uid)
            .map_or_else(|| uid.to_string(), String::clone)
    }

    /// The number of a user given by name or number.
    pub fn uid(&self, name: &str) -> Option<u32> {
        let by_name = self.names.iter().find(|(_, known)| *known == name);
        by_name.map(|(&uid, _)| uid).or_else(|| name.parse().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let users = Users::parse(
            b"root:x:0:0:root:/root:/bin/sh\n# comment:x:1\ntoor:x:0:0::/:\nbroken\n\
              dm:x:1000:1000::/:/bin/sh\n+::::::\n",
        );
        assert_eq!(users.name(0), "root");
        assert_eq!(users.name(1000), "dm");
        assert_eq!(users.name(7), "7");
        assert_eq!(users.uid("dm"), Some(1000));
        assert_eq!(users.uid("42"), Some(42));
        assert_eq!(users.uid("nobody-here"), None);
    }
}
