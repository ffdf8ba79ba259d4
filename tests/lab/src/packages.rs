//! Debian packages, downloaded and unpacked but never installed; also those of other releases and of i386.

use crate::host::{run, say};
use crate::{LabError, cache};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Debian release whose packages are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Release {
    /// What this host's apt is set up for.
    Host,
    /// One by its code name or suite, for amd64 and i386, from the mirror of this host's apt.
    Named(&'static str),
}

/// apt with the package lists of one release.
pub(crate) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// Runs `work` with package lists that are there, and once more with fresh ones if that fails: lists may be missing, or
    /// name files that the mirror no longer has. Lists that are not the host's are kept under `home`.
    pub(crate) fn with<T>(
        release: Release,
        home: &Path,
        work: impl Fn(&Self) -> Result<T, LabError>,
    ) -> Result<T, LabError> {
        let known = match release {
            Release::Host => Self { options: Vec::new() },
            Release::Named(suite) => Self::of_suite(home, suite)?,
        };
        if let Ok(done) = work(&known) {
            return Ok(done);
        }
        let fresh = match release {
            Release::Host => {
                say("apt's package lists do not lead to the package; fetching fresh ones into the cache");
                Self {
                    options: state(&home.join("host"), &["Dir::State::status=/var/lib/dpkg/status".into()])?,
                }
            }
            Release::Named(suite) => {
                say(&format!("fetching the package lists of Debian's {suite}"));
                known
            }
        };
        run(Command::new("apt-get").args(&fresh.options).args(["-qq", "update"]))?;
        work(&fresh)
    }

    /// A state directory of its own for this suite, with one source: so an ordinary user can fetch lists, and the host's
    /// settings stay as they are.
    fn of_suite(home: &Path, suite: &str) -> Result<Self, LabError> {
        let home = home.join(suite);
        fs::create_dir_all(&home).map_err(LabError::path("create", &home))?;
        let list = home.join("sources.list");
        let source = format!("deb [arch=amd64,i386 signed-by={KEYRING}] {} {suite} main\n", mirror()?);
        fs::write(&list, source).map_err(LabError::path("write", &list))?;
        let own = [
            format!("Dir::Etc::SourceList={}", list.display()),
            "Dir::Etc::SourceParts=/dev/null".into(),
            "Dir::State::status=/dev/null".into(),
            "APT::Architectures::=amd64".into(),
            "APT::Architectures::=i386".into(),
        ];
        Ok(Self { options: state(&home, &own)? })
    }

    /// The package that a meta package depends on today and whose name begins so.
    pub(crate) fn depends(&self, meta: &str, prefix: &str) -> Result<String, LabError> {
        let depends = run(Command::new("apt-cache").args(&self.options).args(["depends", meta]))
            .map_err(|_| missing(meta))?;
        let depends = String::from_utf8_lossy(&depends).into_owned();
        let mut names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        names.find(|name| name.starts_with(prefix)).map(str::to_owned).ok_or_else(|| missing(meta))
    }

    /// Downloads a package into the empty folder `work` and unpacks it there into a folder, which is returned.
    pub(crate) fn unpack(&self, name: &str, work: &Path) -> Result<PathBuf, LabError> {
        say(&format!("downloading {name}"));
        run(Command::new("apt-get").args(&self.options).args(["-qq", "download", name]).current_dir(work))?;
        let entries = fs::read_dir(work).map_err(LabError::path("read", work))?;
        let deb = entries.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "deb"));
        let deb = deb.ok_or_else(|| missing(name))?;
        say(&format!("unpacking {name}"));
        let new = work.join("unpacked");
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&new))?;
        fs::remove_file(&deb).map_err(LabError::path("remove", &deb))?;
        Ok(new)
    }
}

/// Runs `work` with apt and an empty folder, which is removed at the end. The caller holds the cache's lock; `dir` is the folder
/// in the cache where the result will lie.
pub(crate) fn fetch<T>(
    release: Release,
    dir: &Path,
    work: impl Fn(&Apt, &Path) -> Result<T, LabError>,
) -> Result<T, LabError> {
    // One that is there already was left by a process that was killed.
    let folder = dir.join("fetch");
    let fetched = Apt::with(release, &dir.with_file_name("apt"), |apt| {
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(&folder).map_err(LabError::path("create", &folder))?;
        work(apt, &folder)
    });
    drop(fs::remove_dir_all(&folder));
    fetched
}

/// A package unpacked in the cache, fetched if it is not there.
pub(crate) fn unpacked(release: Release, name: &str) -> Result<PathBuf, LabError> {
    unpacked_together(release, name, &[name])
}

/// Packages that belong together, unpacked into one folder `place` of the cache, fetched if it is not there.
pub(crate) fn unpacked_together(release: Release, place: &str, names: &[&str]) -> Result<PathBuf, LabError> {
    let dir = cache::cache_dir()?.join("packages");
    let place = dir.join(place.replace(':', "-"));
    if place.exists() {
        return Ok(place);
    }
    let _one_at_a_time = cache::lock()?;
    if !place.exists() {
        fs::create_dir_all(&dir).map_err(LabError::path("create", &dir))?;
        fetch(release, &dir, |apt, work| {
            let unpacked = names.iter().map(|name| apt.unpack(name, work)).collect::<Result<Vec<_>, _>>()?;
            let new = unpacked.first().cloned().unwrap_or_else(|| work.join("unpacked"));
            fs::rename(&new, &place).map_err(LabError::path("create", &place))
        })?;
    }
    Ok(place)
}

/// The keys of all Debian releases.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Options that give apt state and cache directories of ours.
fn state(home: &Path, more: &[String]) -> Result<Vec<String>, LabError> {
    for part in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(home.join(part)).map_err(LabError::path("create", &home.join(part)))?;
    }
    let home = home.display();
    let own = [
        format!("Dir::State={home}/state"),
        format!("Dir::Cache={home}/cache"),
        "APT::Sandbox::User=".to_owned(),
    ];
    Ok(own.iter().chain(more).flat_map(|option| ["-o".to_owned(), option.clone()]).collect())
}

/// Where this host's apt gets Debian's main archive from.
fn mirror() -> Result<String, LabError> {
    let mut list = Command::new("apt-get");
    list.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Component: main"]);
    let uris = String::from_utf8_lossy(&run(&mut list)?).into_owned();
    let main = uris.lines().find(|uri| !uri.contains("security") && uri.contains("debian"));
    main.map(str::to_owned).ok_or_else(|| missing("of Debian's main archive"))
}

fn missing(name: &str) -> LabError {
    LabError::Missing {
        what: format!("the Debian package {name}"),
        mend: "run on Debian (amd64) with its main archive in apt's sources, then apt-get update".into(),
    }
}
