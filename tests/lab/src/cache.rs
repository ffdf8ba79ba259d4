//! Where the lab keeps what it fetched or built, outside the source tree. Writes are atomic, so that two test
//! processes can prepare at once: whoever comes second finds the finished thing.

use crate::LabError;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// `$MINIVMM_CACHE`, or `minivmm` in the user's cache directory; made if it is not there.
pub fn cache_dir() -> Result<PathBuf, LabError> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let dir = from("MINIVMM_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|d| d.join("minivmm")))
        .or_else(|| from("HOME").map(|d| d.join(".cache/minivmm")))
        .ok_or_else(|| LabError::Missing {
            what: "a cache directory".into(),
            mend: "export MINIVMM_CACHE=/some/directory".into(),
        })?;
    fs::create_dir_all(&dir).map_err(LabError::path("create the cache directory", &dir))?;
    Ok(dir)
}

/// Held while something slow is fetched, so that it is fetched once. The kernel lets go of it when we die.
pub(crate) fn lock() -> Result<File, LabError> {
    lock_file("lock")
}

/// The same for one kind of thing only.
pub(crate) fn lock_named(kind: &str) -> Result<File, LabError> {
    lock_file(&format!("lock-{kind}"))
}

fn lock_file(name: &str) -> Result<File, LabError> {
    let path = cache_dir()?.join(name);
    let file = File::create(&path).map_err(LabError::path("create", &path))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|e| LabError::path("lock", &path)(e.into()))?;
    Ok(file)
}

/// A name beside `path` that no other process or thread uses: write there, then rename.
pub(crate) fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

/// Writes a whole file or nothing.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), LabError> {
    write_with(path, content, 0o644)
}

/// The same with a mode, which the file has from the beginning: another one may come in its place while it is used.
fn write_with(path: &Path, content: &[u8], mode: u32) -> Result<(), LabError> {
    let new = beside(path);
    let mut options = File::options();
    options.write(true).create_new(true).mode(mode);
    let written =
        options.open(&new).and_then(|mut f| f.write_all(content)).and_then(|()| fs::rename(&new, path));
    written.inspect_err(|_| drop(fs::remove_file(&new))).map_err(LabError::path("write", path))
}

/// A file in the cache named after its content, with this mode; written once.
pub(crate) fn by_content(
    stem: &str,
    extension: &str,
    content: &[u8],
    mode: u32,
) -> Result<PathBuf, LabError> {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    let path = cache_dir()?.join(format!("{stem}-{:016x}.{extension}", hasher.finish()));
    if !path.exists() {
        write_with(&path, content, mode)?;
    }
    Ok(path)
}
