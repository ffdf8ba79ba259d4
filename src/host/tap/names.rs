//! Names of users and groups from /etc, for messages only.

use std::fs;

use crate::host::lock;

/// The user's name, or `uid` without one.
pub(crate) fn user(uid: u32) -> String {
    lookup("/etc/passwd", uid).unwrap_or_else(|| uid.to_string())
}

/// The group's name, or `gid` without one.
pub(super) fn group(gid: u32) -> String {
    lookup("/etc/group", gid).unwrap_or_else(|| gid.to_string())
}

fn lookup(path: &str, id: u32) -> Option<String> {
    named(&fs::read_to_string(path).ok()?, id)
}

/// The first field of the line whose third is `id`, in the format of passwd and group.
fn named(table: &str, id: u32) -> Option<String> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    })
}

/// The process's identity for the TUN driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub uid: u32,
    pub groups: Vec<u32>,
}

impl Credentials {
    /// This process.
    pub(super) fn current() -> Self {
        let (uid, gid) = (lock::user(), lock::group());
        let mut groups = vec![0; 65536];
        let room = libc::c_int::try_from(groups.len()).unwrap_or(0);
        // SAFETY: `groups` has room for `room` numbers, and NGROUPS_MAX is 65536.
        let count = unsafe { libc::getgroups(room, groups.as_mut_ptr()) };
        groups.truncate(usize::try_from(count).unwrap_or(0));
        groups.push(gid);
        Credentials { uid, groups }
    }

    /// The argument of `ip tuntap add` for a TAP of this process: the group kvm for a member, else the user.
    pub(super) fn ip_owner_argument(&self) -> String {
        match self.groups.iter().map(|gid| group(*gid)).find(|name| name == "kvm") {
            Some(group) => format!("group {group}"),
            None => format!("user {}", user(self.uid)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_by_its_number_alone() {
        let table = "root:x:0:0::/root:/bin/bash\nbad\nkvm:x:108:ana,bo\nother:108:1:\n";
        assert_eq!(named(table, 108).as_deref(), Some("kvm"));
        assert_eq!(named(table, 0).as_deref(), Some("root"));
        assert_eq!(named(table, 7), None);
    }
}
