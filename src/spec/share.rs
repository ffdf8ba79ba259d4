//! The description of a shared folder.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::share_origin::ShareOrigin;
use super::text::{Device, by_text, by_text_as};
use super::words::{DeviceError, Word, once, split};

const SHARE: &str = "share";

/// A folder of the host that the guest can mount: `mount -t virtiofs TAG /mnt`.
///
/// As text it is its path, `:` and a folder of the guest if it shall be mounted there, and options behind commas, such as
/// `src:/mnt/src,tag=work,ro`; a comma in a path is written twice.
///
/// ```
/// use minivmm::spec::ShareSpec;
///
/// let share: ShareSpec = "src,tag=work,ro".parse()?;
/// assert!(share.read_only && share.path.ends_with("src"));
/// # Ok::<(), minivmm::spec::DeviceError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ShareSpec {
    /// The folder.
    pub path: PathBuf,
    /// Where a guest whose systemd can be told mounts it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<GuestFolder>,
    /// By which the guest mounts it; if not said, `share0` for the first one, `share1` for the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<ShareTag>,
    /// The guest cannot write (`ro`).
    #[serde(default, rename = "ro", skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// How long the guest may use what it knows of the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<ShareCache>,
    /// Whom the files belong to in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<ShareOwner>,
    /// Who takes part in the locks of the guest's processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locks: Option<ShareLocks>,
    /// Who asked for it, as an error says it.
    #[serde(skip)]
    pub origin: ShareOrigin,
}

impl ShareSpec {
    /// This folder, to be read and written.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        ShareSpec {
            path: path.into(),
            mount: None,
            tag: None,
            read_only: false,
            cache: None,
            owner: None,
            locks: None,
            origin: ShareOrigin::default(),
        }
    }

    /// Makes it read-only.
    #[must_use]
    pub fn read_only(self) -> Self {
        ShareSpec { read_only: true, ..self }
    }

    /// Sets where the guest mounts it.
    #[must_use]
    pub fn mounted_at(self, folder: GuestFolder) -> Self {
        ShareSpec { mount: Some(folder), ..self }
    }

    /// Sets by what the guest mounts it.
    #[must_use]
    pub fn with_tag(self, tag: ShareTag) -> Self {
        ShareSpec { tag: Some(tag), ..self }
    }

    /// Sets how long the guest may use what it knows.
    #[must_use]
    pub fn with_cache(self, cache: ShareCache) -> Self {
        ShareSpec { cache: Some(cache), ..self }
    }

    /// Sets whom the files belong to in the guest.
    #[must_use]
    pub fn with_owner(self, owner: ShareOwner) -> Self {
        ShareSpec { owner: Some(owner), ..self }
    }

    /// Sets who takes part in the guest's locks.
    #[must_use]
    pub fn with_locks(self, locks: ShareLocks) -> Self {
        ShareSpec { locks: Some(locks), ..self }
    }

    /// Sets who asked for it.
    #[must_use]
    pub fn asked_by(self, origin: ShareOrigin) -> Self {
        ShareSpec { origin, ..self }
    }

    /// Parses the text of the command line. The path need not be UTF-8.
    ///
    /// # Errors
    /// [`DeviceError`] for a missing path, or an unknown or wrong option.
    pub fn parse(text: &OsStr) -> Result<Self, DeviceError> {
        let mut words = split(text).into_iter();
        let first = words.next().unwrap_or_default();
        // As `minivmm run --volume` has them. Taken for a part of the path, the share would be writable.
        for option in ["ro", "rw"] {
            let path =
                first.as_bytes().strip_suffix(option.as_bytes()).and_then(|rest| rest.strip_suffix(b":"));
            let Some(path) = path else { continue };
            let path = String::from_utf8_lossy(path).replace(',', ",,");
            let meant = if option == "ro" { format!("{path},ro") } else { path };
            return Err(DeviceError::ShareColon { written: text.to_string_lossy().into_owned(), meant });
        }
        let (path, mount) = mounted(&first);
        if path.is_empty() {
            return Err(DeviceError::Empty("where the folder's path should be"));
        }
        let mut share = ShareSpec::new(path);
        share.mount = mount.map(|folder| folder.parse()).transpose()?;
        for word in words {
            let word = Word::parse(&word);
            match (word.name.as_str(), &word.value) {
                ("ro", None) if share.read_only => {
                    return Err(DeviceError::Twice { device: SHARE, word: "ro" });
                }
                ("ro", None) => share.read_only = true,
                ("tag", Some(_)) => once(&mut share.tag, word.text().parse()?, SHARE, "tag")?,
                ("cache", Some(_)) => once(&mut share.cache, word.text().parse()?, SHARE, "cache")?,
                ("owner", Some(_)) => once(&mut share.owner, word.text().parse()?, SHARE, "owner")?,
                ("locks", Some(_)) => once(&mut share.locks, word.text().parse()?, SHARE, "locks")?,
                ("", None) => return Err(DeviceError::Empty("behind a comma")),
                _ => {
                    let known = "`tag=NAME`, `ro`, `cache=auto|always|never`, `owner=map|UID:GID|xattr` and `locks=guest|host`";
                    return Err(DeviceError::Unknown { device: SHARE, word: word.written(), known });
                }
            }
        }
        Ok(share)
    }
}

/// The host's folder, and the guest's behind the last `:` in front of a `/`.
fn mounted(text: &OsStr) -> (OsString, Option<String>) {
    let bytes = text.as_bytes();
    let Some(at) = bytes.windows(2).rposition(|pair| pair == b":/") else { return (text.to_owned(), None) };
    let (host, guest) = bytes.split_at(at);
    let guest = guest.strip_prefix(b":").unwrap_or_default();
    (OsStr::from_bytes(host).to_owned(), Some(String::from_utf8_lossy(guest).into_owned()))
}

/// A folder of a guest: an absolute path that is not `/`, without `.`, `..`, colons, commas and control characters, of 255 bytes at most.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GuestFolder(String);

impl GuestFolder {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a share there would cover of any Linux guest. A systemd mounts nothing at these places, and says nothing.
    pub(crate) fn covers(&self) -> Option<&'static str> {
        match self.0.split('/').nth(1)? {
            "proc" => Some("the guest's own /proc, or a part of it"),
            "sys" => Some("the guest's own /sys, or a part of it"),
            "dev" => Some("the guest's own /dev, or a part of it"),
            _ => None,
        }
    }
}

impl FromStr for GuestFolder {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let names = || text.split('/').filter(|name| !name.is_empty());
        let fits = text.starts_with('/')
            && text.len() <= 255
            && names().next().is_some()
            && !names().any(|name| matches!(name, "." | ".."))
            // An option behind it that is not read as one, such as `:ro`, must not be lost.
            && !text.contains([':', ','])
            && !text.contains(|letter: char| letter.is_control() || letter == char::REPLACEMENT_CHARACTER);
        match fits {
            // One way to write it: systemd makes a unit's name of it.
            true => Ok(GuestFolder(names().flat_map(|name| ["/", name]).collect())),
            false => Err(DeviceError::GuestFolder(text.into())),
        }
    }
}

impl fmt::Display for GuestFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

by_text!(GuestFolder);

impl Device for ShareSpec {
    const EXAMPLE: &'static str = "src,tag=work";
}

impl FromStr for ShareSpec {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        Self::parse(text.as_ref())
    }
}

/// By which a guest mounts a shared folder: 1 to 36 printable ASCII characters (virtio 1.3 §5.11.4) that mean nothing else where
/// it is written: not `/`, `,` and `#`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ShareTag(String);

impl ShareTag {
    /// Maximum length.
    pub const MAX: usize = virtio::fs::MOST_TAG;

    /// The tag of the share `index` that has none.
    pub(crate) fn numbered(index: usize) -> Self {
        ShareTag(format!("share{index}"))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ShareTag {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let fits = (1..=Self::MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b',' | b'#'));
        if fits { Ok(ShareTag(text.into())) } else { Err(DeviceError::Tag(text.into())) }
    }
}

impl fmt::Display for ShareTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

by_text!(ShareTag);

/// How long a guest may use what it knows of shared files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ShareCache {
    /// Names and attributes for a second; writes go to the host at once.
    #[default]
    Auto,
    /// As long as it likes, and it collects writes: for a folder that nobody else changes.
    Always,
    /// Not at all: both sides see what the other one writes.
    Never,
}

/// Whom shared files belong to in the guest: `map`, `xattr`, or a user's number and perhaps `:` and a group's, such as `1000:100`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShareOwner {
    /// Those of the host's user and of the host's root are the guest's root's, others are nobody's. Changes of owners are forgotten.
    #[default]
    Map,
    /// The same, but those of the host's user are this user's and this group's of the guest: an ordinary user there can work with them.
    User {
        /// Number of the guest's user.
        uid: u32,
        /// Number of the guest's group; that of the user if it is not said.
        gid: u32,
    },
    /// The guest's owners and permissions are kept in the attribute `user.containers.override_stat` of each file.
    Xattr,
}

/// Who takes part in locks (flock(2), fcntl(2)) of the guest's processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ShareLocks {
    /// The guest's processes alone: its kernel keeps the locks.
    #[default]
    Guest,
    /// Processes of the host and of other machines, too. A process of a Linux guest that waits for a lock cannot be interrupted.
    Host,
}

impl FromStr for ShareLocks {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "guest" => Ok(ShareLocks::Guest),
            "host" => Ok(ShareLocks::Host),
            _ => Err(DeviceError::Locks(text.into())),
        }
    }
}

impl FromStr for ShareCache {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(ShareCache::Auto),
            "always" => Ok(ShareCache::Always),
            "never" => Ok(ShareCache::Never),
            _ => Err(DeviceError::Cache(text.into())),
        }
    }
}

impl FromStr for ShareOwner {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "map" => Ok(ShareOwner::Map),
            "xattr" => Ok(ShareOwner::Xattr),
            numbers => {
                let (uid, gid) = numbers.split_once(':').unwrap_or((numbers, numbers));
                // Digits alone: no sign. The last number means "no owner" to Linux.
                let number = |text: &str| {
                    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok());
                    number.flatten().filter(|number| *number != u32::MAX)
                };
                match (number(uid), number(gid)) {
                    (Some(uid), Some(gid)) => Ok(ShareOwner::User { uid, gid }),
                    _ => Err(DeviceError::Owner(text.into())),
                }
            }
        }
    }
}

impl fmt::Display for ShareOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShareOwner::Map => f.write_str("map"),
            ShareOwner::Xattr => f.write_str("xattr"),
            ShareOwner::User { uid, gid } => write!(f, "{uid}:{gid}"),
        }
    }
}

by_text_as! { ShareOwner, "a string, such as \"map\" or \"1000:1000\""; }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_a_share_is_read() {
        let share: ShareSpec = "/a,,b,tag=work,ro,cache=never,owner=xattr,locks=host".parse().unwrap();
        let expected = ShareSpec::new("/a,b")
            .with_tag("work".parse().unwrap())
            .read_only()
            .with_cache(ShareCache::Never)
            .with_owner(ShareOwner::Xattr)
            .with_locks(ShareLocks::Host);
        assert_eq!(share, expected);
        assert_eq!("src".parse(), Ok(ShareSpec::new("src")));
        let at = |folder: &str| folder.parse::<GuestFolder>().unwrap();
        assert_eq!("src:/mnt//work/".parse(), Ok(ShareSpec::new("src").mounted_at(at("/mnt/work"))));
        assert_eq!("/a:b:/m,ro".parse(), Ok(ShareSpec::new("/a:b").mounted_at(at("/m")).read_only()));
        assert_eq!("a:b".parse(), Ok(ShareSpec::new("a:b")));
        let table: ShareSpec = toml::from_str("path = '/a:/b'\nmount = '/m'").unwrap();
        assert_eq!(table, ShareSpec::new("/a:/b").mounted_at(at("/m")));
        let table: ShareSpec = toml::from_str(
            "path = '/a,b'\ntag = 'work'\nro = true\ncache = 'never'\nowner = 'xattr'\nlocks = 'host'",
        )
        .unwrap();
        assert_eq!(table, expected);
    }

    #[test]
    fn owner_is_a_way_or_a_user_of_the_guest() {
        for (text, owner, written) in [
            ("map", ShareOwner::Map, "map"),
            ("xattr", ShareOwner::Xattr, "xattr"),
            ("1000", ShareOwner::User { uid: 1000, gid: 1000 }, "1000:1000"),
            ("1000:100", ShareOwner::User { uid: 1000, gid: 100 }, "1000:100"),
            ("0:0", ShareOwner::User { uid: 0, gid: 0 }, "0:0"),
        ] {
            assert_eq!(text.parse(), Ok(owner));
            assert_eq!(owner.to_string(), written);
            assert_eq!(written.parse(), Ok(owner));
        }
        for wrong in
            ["", ":", "1000:", ":1000", "+1", "-1", "etu", "4294967295", "1:4294967296", "1:2:3", "Map"]
        {
            assert!(wrong.parse::<ShareOwner>().is_err(), "{wrong}");
        }
        let number = toml::from_str::<ShareSpec>("path = '/a'\nowner = 1000").unwrap_err().to_string();
        assert!(number.contains(r#"such as "map" or "1000:1000""#), "{number}");
        let table: ShareSpec = toml::from_str("path = '/a'\nowner = '1000'").unwrap();
        assert_eq!(table, ShareSpec::new("/a").with_owner(ShareOwner::User { uid: 1000, gid: 1000 }));
    }

    #[test]
    fn mistakes_are_told_with_what_could_be_said() {
        let mistake = |text: &str| text.parse::<ShareSpec>().unwrap_err().to_string();
        assert!(mistake("").contains("folder's path") && mistake(",ro").contains("folder's path"));
        assert!(mistake(":/mnt").contains("folder's path"));
        for folder in ["/", "//", "/a/../b", "/a\nb", &format!("/{}", "x".repeat(255))] {
            assert!(mistake(&format!("a:{folder}")).contains("/mnt/work"), "{folder}");
        }
        let folder = |text: &str| text.parse::<GuestFolder>().unwrap_err().to_string();
        assert!(folder("mnt").starts_with("`mnt` cannot") && mistake("a:/").starts_with("`/` cannot"));
        assert!(mistake("a,,b:/y:ro").ends_with("write `a,,b:/y,ro`") && mistake("a:ro").ends_with("`a,ro`"));
        assert!(mistake("a:/y:rw,tag=x").ends_with("write `a:/y`"));
        for lost in ["/y:ro", "/y,ro", "/y:z"] {
            assert!(folder(lost).contains("colons and commas"), "{lost}");
        }
        assert!(mistake("a:/y:z").contains("colons and commas"));
        assert!(mistake("a,").contains("behind a comma"));
        assert!(mistake("a,rw").contains("`cache=auto|always|never`"));
        assert!(
            mistake("a,ro,ro").contains("stands twice") && mistake("a,tag=x,tag=y").contains("stands twice")
        );
        assert!(mistake("a,cache=none").contains("`cache=never`"));
        assert!(mistake("a,owner=me").contains("`owner=xattr`"));
        assert!(mistake("a,locks=on").contains("`locks=host`"));
        for tag in ["", "#a", "a/b", "a b", "ö", &"x".repeat(37)] {
            assert!(mistake(&format!("d,tag={tag}")).contains("1 to 36"), "{tag}");
        }
    }
}
