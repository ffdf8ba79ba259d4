//! Which folder on the way to a path is closed to this user, and who can open it. For a sentence, once the host has refused.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use diskimage::shell_word;
use rustix::fs::Access;

use super::lock::user;
use super::tap::user_name;
use crate::shown::path as shown;

/// Links that are followed on the way, as many as by Linux.
const MOST_LINKS: usize = 40;

/// A folder that this user may not use as it was asked for. As text it is a clause with its cure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedFolder {
    folder: PathBuf,
    /// Permissions that are missing, such as `rx`.
    missing: &'static str,
    keeper: Keeper,
}

/// Who can open a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Keeper {
    /// This user, whose folder it is.
    User,
    /// Its owner, and the user whom it is to be opened to.
    Owner { owner: String, user: String },
    /// Nobody by its permissions, which allow it.
    Other,
}

/// Whether this user may use a folder so, or that is not known.
fn may(folder: &Path, wanted: Access) -> bool {
    rustix::fs::access(folder, wanted) != Err(rustix::io::Errno::ACCESS)
}

impl ClosedFolder {
    /// The first folder on the way to the folder `path` that is closed to this user, `path` included, where `wanted` is asked for. None
    /// if no folder is, or if that cannot be known.
    pub(crate) fn find(path: &Path, wanted: Access) -> Option<Self> {
        Self::find_by(path, wanted, &may)
    }

    /// The first folder on the way to the file `path` that is closed to this user, also if the file is a link and its target is in it.
    #[cfg(feature = "cli")]
    pub(crate) fn before(path: &Path) -> Option<Self> {
        Self::before_by(path, &may)
    }

    #[cfg(feature = "cli")]
    fn before_by(path: &Path, may: &dyn Fn(&Path, Access) -> bool) -> Option<Self> {
        let mut file = path.to_owned();
        for _ in 0..MOST_LINKS {
            let folder = file.parent()?;
            if let Some(closed) = Self::find_by(folder, Access::EXEC_OK, may) {
                return Some(closed);
            }
            file = folder.join(fs::read_link(&file).ok()?);
        }
        None
    }

    fn find_by(path: &Path, wanted: Access, may: &dyn Fn(&Path, Access) -> bool) -> Option<Self> {
        // What was typed comes first, and then what is above the working directory.
        let named = first_closed(path, wanted, may, MOST_LINKS);
        let (folder, access) =
            named.or_else(|| first_closed(&std::path::absolute(path).ok()?, wanted, may, MOST_LINKS))?;
        let missing = letters(access);
        let keeper = keeper(&folder, access);
        Some(ClosedFolder { folder, missing, keeper })
    }
}

/// The first folder of `path` that is closed, and what is asked of it.
fn first_closed(
    path: &Path,
    wanted: Access,
    may: &dyn Fn(&Path, Access) -> bool,
    links: usize,
) -> Option<(PathBuf, Access)> {
    let prefixes: Vec<_> = path.ancestors().filter(|prefix| !prefix.as_os_str().is_empty()).collect();
    for prefix in prefixes.into_iter().rev() {
        let asked = if prefix == path { wanted } else { Access::EXEC_OK };
        match fs::metadata(prefix) {
            // Where a link leads to is closed: the folders in front of its own name are not.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let target = prefix.parent().unwrap_or(Path::new("")).join(fs::read_link(prefix).ok()?);
                return first_closed(&target, asked, may, links.checked_sub(1)?);
            }
            Err(_) => return None,
            Ok(_) if !may(prefix, asked) => return Some((prefix.to_owned(), asked)),
            Ok(_) => {}
        }
    }
    None
}

fn keeper(folder: &Path, asked: Access) -> Keeper {
    let Ok(found) = fs::metadata(folder) else { return Keeper::Other };
    let bits = asked.bits();
    let (owner, user) = (found.uid(), user());
    let shift = if owner == user { 6 } else { 0 };
    match found.mode() >> shift & bits == bits {
        true => Keeper::Other,
        false if owner == user => Keeper::User,
        false => Keeper::Owner { owner: user_name(owner), user: user_name(user) },
    }
}

/// As chmod(1) has them.
fn letters(access: Access) -> &'static str {
    match (access.contains(Access::READ_OK), access.contains(Access::WRITE_OK)) {
        (_, true) => "rwx",
        (true, false) => "rx",
        (false, false) => "x",
    }
}

impl fmt::Display for ClosedFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, word, missing) = (shown(&self.folder), shell_word(&self.folder), self.missing);
        let use_it = match missing {
            "rwx" => "write to",
            "rx" => "read",
            _ => "enter",
        };
        write!(f, "this user may not {use_it} {name}; ")?;
        match &self.keeper {
            Keeper::User => write!(f, "`chmod u+{missing} {word}` lets you"),
            Keeper::Owner { owner, user } => write!(
                f,
                "it belongs to {owner}, who can let you with `setfacl -m u:{user}:{missing} {word}`, or everybody with \
                 `chmod o+{missing} {word}`"
            ),
            Keeper::Other => write!(
                f,
                "the permissions of its owner and of others allow it (`ls -ld {word}`), so that a group, an access control list, a security module \
                 (AppArmor, SELinux) or a file server forbids it"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_first_closed_folder_is_named_and_not_what_is_in_it() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        fs::create_dir_all(path("a/nop/in")).unwrap();
        fs::set_permissions(path("a/nop"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink("a/nop", path("link")).unwrap();
        let asked = Access::READ_OK | Access::EXEC_OK;
        // Also where root runs this, whom nothing is closed to.
        let may = |folder: &Path, _: Access| !folder.ends_with("nop") && !folder.ends_with("link");
        let find =
            |name: &str| ClosedFolder::find_by(&path(name), asked, &may).map(|closed| closed.to_string());
        let nop = path("a/nop").display().to_string();
        let mend = |letters: &str, folder: &str| format!("`chmod u+{letters} {folder}` lets you");
        assert_eq!(find("a"), None);
        assert_eq!(find("a/nop"), Some(format!("this user may not read {nop}; {}", mend("rx", &nop))));
        for inside in ["a/nop/in", "a/nop/none/x"] {
            let expected = format!("this user may not enter {nop}; {}", mend("x", &nop));
            assert_eq!(find(inside), Some(expected), "{inside}");
        }
        let link = path("link").display().to_string();
        assert!(find("link/in").unwrap().ends_with(&mend("x", &link)));
        // Else it could not be emptied.
        fs::set_permissions(path("a/nop"), fs::Permissions::from_mode(0o700)).unwrap();
        home.close().unwrap();
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_link_to_a_file_in_a_closed_folder_is_told_with_that_folder() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        fs::create_dir_all(path("nop")).unwrap();
        fs::write(path("nop/kernel"), "").unwrap();
        fs::write(path("own"), "").unwrap();
        symlink("nop/kernel", path("first")).unwrap();
        symlink(path("first"), path("second")).unwrap();
        symlink("round", path("round")).unwrap();
        let may = |folder: &Path, _: Access| !folder.ends_with("nop");
        let before = |name: &str| ClosedFolder::before_by(&path(name), &may).map(|closed| closed.to_string());
        for name in ["nop/kernel", "first", "second"] {
            let said = before(name).unwrap();
            assert!(
                said.starts_with(&format!("this user may not enter {}; ", path("nop").display())),
                "{said}"
            );
        }
        assert_eq!([before("own"), before("round"), before("none")], [None, None, None]);
    }

    #[test]
    fn who_does_not_own_it_is_told_who_does() {
        let closed = |keeper: Keeper, missing: &'static str| {
            ClosedFolder { folder: "/root/my files".into(), missing, keeper }.to_string()
        };
        let owner = Keeper::Owner { owner: "root".into(), user: "eva".into() };
        assert_eq!(
            closed(owner, "x"),
            "this user may not enter /root/my files; it belongs to root, who can let you with \
             `setfacl -m u:eva:x '/root/my files'`, or everybody with `chmod o+x '/root/my files'`"
        );
        let said = closed(Keeper::Other, "rwx");
        assert!(said.contains("may not write to /root/my files; ") && said.contains("SELinux"), "{said}");
    }
}
