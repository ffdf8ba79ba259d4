//! A kernel's modules in a folder of the host, such as `/lib/modules/6.1.0-25-amd64`: their names,
//! dependencies and load order. For programs that make an initramfs.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::compression::Compression;
use crate::xz;

/// Maximum depth of folders; Debian has seven.
const DEPTH_MAX: usize = 16;
/// Maximum modules in a folder; Debian has 4,000.
const MODULES_MAX: usize = 100_000;
/// Maximum length of a module; Debian's largest has 8 MB.
const MODULE_MAX: u64 = 256 << 20;
/// The list of an installed kernel's modules, and that of a tree in which one was built.
const DEP: &str = "modules.dep";
const ORDER: &str = "modules.order";
/// The key of a module's dependencies (scripts/mod/modpost.c).
const DEPENDS: &[u8] = b"\0depends=";

/// Why a module cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// It is neither built in nor in the folder.
    #[error("{folder} has no module {name}", folder = folder.display())]
    Missing {
        /// Its name.
        name: String,
        /// The folder.
        folder: PathBuf,
    },
    /// The host refused, or it is damaged.
    #[error("the module {path} cannot be read: {source}", path = path.display())]
    Read {
        /// Its file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// A module to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// File name without compression: `virtio_pci.ko`.
    pub file: String,
    /// Its decompressed content.
    pub content: Vec<u8>,
}

/// The modules of one kernel.
pub struct Modules {
    folder: PathBuf,
    /// The file in it that names them.
    list: &'static str,
    files: HashMap<String, PathBuf>,
    builtin: HashSet<String>,
    read: Box<ReadFile>,
}

/// Reads a whole file by its path.
pub type ReadFile = dyn Fn(&Path) -> io::Result<Vec<u8>>;

/// Decompresses formats that this crate does not support.
pub type Unpack<'a> = dyn Fn(Compression, &[u8]) -> io::Result<Vec<u8>> + 'a;

impl fmt::Debug for Modules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Modules")
            .field("folder", &self.folder)
            .field("files", &self.files.len())
            .finish_non_exhaustive()
    }
}

impl Modules {
    /// Lists the modules in `folder`: those of its modules.dep or, in a package that was never installed, its
    /// files.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let read = |path: &Path| limited(fs::File::open(path)?);
        if folder.join(DEP).exists() {
            return Self::listed(folder, Box::new(read));
        }
        let mut files = HashMap::new();
        collect(&folder.join("kernel"), DEPTH_MAX, &mut files)?;
        Ok(Modules {
            folder: folder.to_path_buf(),
            list: DEP,
            files,
            builtin: builtin(folder, &read),
            read: Box::new(read),
        })
    }

    /// Lists the modules of a modules.dep in `folder`, which `read` reads from anywhere.
    ///
    /// # Errors
    /// There is no modules.dep, or it cannot be read.
    pub fn listed(folder: &Path, read: Box<ReadFile>) -> io::Result<Self> {
        let list = read(&folder.join(DEP))?;
        let list = String::from_utf8_lossy(&list);
        let paths = list.lines().filter_map(|line| line.split_once(':')).take(MODULES_MAX);
        let files = paths.map(|(path, _)| (module_name(Path::new(path)), folder.join(path))).collect();
        Ok(Modules { folder: folder.to_path_buf(), list: DEP, files, builtin: builtin(folder, &*read), read })
    }

    /// Lists the modules that were built in `tree`, a folder in which Linux was built: those of its modules.order, which lie where their
    /// sources are.
    ///
    /// # Errors
    /// There is no modules.order, or it cannot be read.
    pub fn built(tree: &Path) -> io::Result<Self> {
        let read = |path: &Path| limited(fs::File::open(path)?);
        let list = read(&tree.join(ORDER))?;
        let list = String::from_utf8_lossy(&list);
        // Before Linux 5.4 with `kernel/` in front, since 6.2 as objects.
        let file = |line: &str| {
            let path = line.strip_prefix("kernel/").unwrap_or(line);
            path.strip_suffix(".o").map_or_else(|| path.to_owned(), |stem| format!("{stem}.ko"))
        };
        let paths = list.lines().filter(|line| !line.is_empty()).take(MODULES_MAX).map(file);
        let files = paths.map(|path| (module_name(Path::new(&path)), tree.join(path))).collect();
        Ok(Modules {
            folder: tree.to_path_buf(),
            list: ORDER,
            files,
            builtin: builtin(tree, &read),
            read: Box::new(read),
        })
    }

    /// Whether there is a module of this name.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(&name.replace('-', "_"))
    }

    /// Whether it is built into the kernel.
    pub fn is_built_in(&self, name: &str) -> bool {
        self.builtin.contains(&name.replace('-', "_"))
    }

    /// The folder that was listed.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file in it that names its modules; it may be missing in a package that was never installed.
    pub fn list(&self) -> PathBuf {
        self.folder.join(self.list)
    }

    /// Where the file of a module is, by its name or that of its file.
    pub fn path(&self, name: &str) -> Option<&Path> {
        self.files.get(&module_name(Path::new(name))).map(PathBuf::as_path)
    }

    /// The named modules with their dependencies, in load order. Built-in ones are left out.
    ///
    /// `unpack` is called for compressions that this crate does not support, and for what it cannot decompress of xz.
    ///
    /// # Errors
    /// [`ModuleError`].
    pub fn load(&self, names: &[&str], unpack: &Unpack<'_>) -> Result<Vec<Module>, ModuleError> {
        let mut order = Order { modules: self, unpack, seen: HashSet::new(), done: Vec::new() };
        names.iter().try_for_each(|name| order.add(&name.replace('-', "_")))?;
        Ok(order.done)
    }
}

struct Order<'a> {
    modules: &'a Modules,
    unpack: &'a Unpack<'a>,
    seen: HashSet<String>,
    done: Vec<Module>,
}

impl Order<'_> {
    /// A module names its dependencies itself. Each is visited once, so that a cycle, which a kernel cannot
    /// load either, ends; the depth is at most the number of modules, which is small enough for the stack.
    fn add(&mut self, name: &str) -> Result<(), ModuleError> {
        if self.modules.builtin.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let missing = || ModuleError::Missing { name: name.to_owned(), folder: self.modules.folder.clone() };
        let path = self.modules.files.get(name).filter(|_| self.seen.len() < 1000).ok_or_else(missing)?;
        let content = self.read(path).map_err(|source| ModuleError::Read { path: path.clone(), source })?;
        for needed in depends(&content) {
            self.add(&needed)?;
        }
        self.done.push(Module { file: format!("{name}.ko"), content });
        Ok(())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let packed = (self.modules.read)(path)?;
        match Compression::of(&packed) {
            None => Ok(packed),
            Some(Compression::Gzip) => limited(flate2::read::MultiGzDecoder::new(&packed[..])),
            Some(Compression::Zstd) => {
                limited(ruzstd::decoding::StreamingDecoder::new(&packed[..]).map_err(io::Error::other)?)
            }
            Some(Compression::Xz) => {
                match xz::unpack(&packed, usize::try_from(MODULE_MAX).unwrap_or(usize::MAX)) {
                    Some(content) => Ok(content),
                    // The program knows other kinds of xz, and says what is wrong with this one.
                    None => (self.unpack)(Compression::Xz, &packed),
                }
            }
            Some(other) => (self.unpack)(other, &packed),
        }
    }
}

fn limited(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if from.take(MODULE_MAX + 1).read_to_end(&mut bytes)? as u64 > MODULE_MAX {
        return Err(io::Error::other("it is too large to be a module"));
    }
    Ok(bytes)
}

/// The built-in modules; empty if the folder has no list of them.
fn builtin(folder: &Path, read: &ReadFile) -> HashSet<String> {
    let list = read(&folder.join("modules.builtin")).unwrap_or_default();
    String::from_utf8_lossy(&list).lines().map(|line| module_name(Path::new(line))).collect()
}

/// The `depends=` line that modpost puts into a module's .modinfo.
fn depends(module: &[u8]) -> Vec<String> {
    let found = module.windows(DEPENDS.len()).position(|window| window == DEPENDS);
    let text = found.and_then(|at| module.get(at + DEPENDS.len()..)).unwrap_or_default();
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(text);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// A module is requested as `kvm_amd` or `kvm-amd`, regardless of its file name and compression.
fn module_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn collect(folder: &Path, depth: usize, files: &mut HashMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if depth > 0 {
                collect(&entry.path(), depth - 1, files)?;
            }
        } else if files.len() < MODULES_MAX {
            files.insert(module_name(&entry.path()), entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of modules: file names and dependencies.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (file, needs) in files {
            let path = folder.path().join("kernel/drivers").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, module(needs)).unwrap();
        }
        fs::write(folder.path().join("modules.builtin"), "kernel/drivers/virtio/virtio-ring.ko\n").unwrap();
        folder
    }

    fn module(needs: &str) -> Vec<u8> {
        format!("\x7fELF..\0license=GPL\0depends={needs}\0name=x\0").into_bytes()
    }

    fn order(folder: &Path, names: &[&str]) -> Result<Vec<String>, ModuleError> {
        let none = |_: Compression, _: &[u8]| Err(io::ErrorKind::Unsupported.into());
        let modules = Modules::open(folder).unwrap().load(names, &none)?;
        Ok(modules.into_iter().map(|module| module.file).collect())
    }

    #[test]
    fn what_a_module_needs_comes_before_it_once_and_what_is_built_in_does_not() {
        let folder = tree(&[
            ("virtio_pci.ko", "virtio-pci-modern-dev,virtio_ring,virtio"),
            ("virtio/virtio_pci_modern_dev.ko", "virtio"),
            ("virtio/virtio.ko", ""),
            ("char/virtio_console.ko", "virtio_ring,virtio"),
        ]);
        let order = order(folder.path(), &["virtio-pci", "virtio_console", "virtio_ring"]).unwrap();
        assert_eq!(order, ["virtio.ko", "virtio_pci_modern_dev.ko", "virtio_pci.ko", "virtio_console.ko"]);
        let modules = Modules::open(folder.path()).unwrap();
        assert!(modules.is_built_in("virtio-ring") && modules.has("virtio") && !modules.has("virtio_net"));
    }

    #[test]
    fn installed_modules_are_those_of_modules_dep() {
        let folder = tree(&[("a.ko", "b"), ("b.ko", ""), ("c.ko", "")]);
        fs::write(
            folder.path().join("modules.dep"),
            "kernel/drivers/a.ko: kernel/drivers/b.ko\nkernel/drivers/b.ko:\n",
        )
        .unwrap();
        assert_eq!(order(folder.path(), &["a"]).unwrap(), ["b.ko", "a.ko"]);
        let error = order(folder.path(), &["c"]).unwrap_err();
        assert!(error.to_string().contains("has no module c"), "{error}");
    }

    #[test]
    fn modules_of_a_tree_that_was_built_are_where_their_sources_are() {
        let folder = tree(&[("a.ko", "b"), ("b.ko", "c_d")]);
        // The sources are in drivers/, which is in kernel/ when it is installed.
        fs::rename(folder.path().join("kernel/drivers"), folder.path().join("drivers")).unwrap();
        for lines in [
            "drivers/a.ko\ndrivers/b.ko\n",
            "kernel/drivers/a.ko\nkernel/drivers/b.ko\n",
            "drivers/a.o\ndrivers/b.o\n",
        ] {
            fs::write(folder.path().join(ORDER), lines).unwrap();
            fs::write(folder.path().join("modules.builtin"), "kernel/lib/c-d.ko\n").unwrap();
            let none = |_: Compression, _: &[u8]| Err(io::ErrorKind::Unsupported.into());
            let modules = Modules::built(folder.path()).unwrap();
            let order: Vec<_> =
                modules.load(&["a"], &none).unwrap().into_iter().map(|one| one.file).collect();
            assert_eq!(order, ["b.ko", "a.ko"], "{lines}");
            assert_eq!(modules.list(), folder.path().join(ORDER));
        }
        assert!(Modules::built(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn modules_that_need_each_other_end() {
        let folder = tree(&[("a.ko", "b"), ("b.ko", "a")]);
        assert_eq!(order(folder.path(), &["a"]).unwrap(), ["b.ko", "a.ko"]);
    }

    #[test]
    fn packed_modules_are_unpacked() {
        use std::io::Write;
        let folder = tree(&[]);
        let drivers = folder.path().join("kernel/drivers");
        fs::create_dir_all(&drivers).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&module("b")).unwrap();
        fs::write(drivers.join("a.ko.gz"), gzip.finish().unwrap()).unwrap();
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        fs::write(drivers.join("b.ko.zst"), ruzstd::encoding::compress_to_vec(&module("c")[..], level))
            .unwrap();
        fs::write(drivers.join("c.ko.xz"), b"\xfd7zXZ\0...").unwrap();
        let modules = Modules::open(folder.path()).unwrap();
        let unpack = |how: Compression, packed: &[u8]| {
            assert!(how == Compression::Xz && packed.ends_with(b"..."));
            Ok(module(""))
        };
        let files: Vec<_> = modules.load(&["a"], &unpack).unwrap().into_iter().map(|m| m.file).collect();
        assert_eq!(files, ["c.ko", "b.ko", "a.ko"]);
        let error = order(folder.path(), &["a"]).unwrap_err();
        assert!(error.to_string().contains("c.ko.xz cannot be read"), "{error}");
    }

    #[test]
    fn modules_may_lie_where_only_the_caller_can_read() {
        let read = |path: &Path| match path.to_str() {
            Some("/on-a-disk/modules.dep") => Ok(b"kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n".to_vec()),
            Some("/on-a-disk/kernel/a.ko") => Ok(module("b")),
            Some("/on-a-disk/kernel/b.ko") => Ok(module("")),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        let modules = Modules::listed(Path::new("/on-a-disk"), Box::new(read)).unwrap();
        let none = |_: Compression, _: &[u8]| Err(io::ErrorKind::Unsupported.into());
        let files: Vec<_> = modules.load(&["a"], &none).unwrap().into_iter().map(|m| m.file).collect();
        assert_eq!(files, ["b.ko", "a.ko"]);
        assert!(Modules::listed(Path::new("/elsewhere"), Box::new(read)).is_err());
    }

    #[test]
    fn folder_that_is_none_is_an_error() {
        assert!(Modules::open(Path::new("/nonexistent")).is_err());
    }
}
