//! A folder in which Linux was built, as the kernel of a run.

use std::path::{Path, PathBuf};

use super::error::RunError;

/// The kernels of a built tree, by what is best to boot.
const KERNELS: [&str; 2] = ["arch/x86/boot/bzImage", "vmlinux"];

/// The kernel that was built in this folder.
pub(super) fn kernel(tree: &Path) -> Result<PathBuf, RunError> {
    let built = KERNELS.map(|name| tree.join(name)).into_iter().find(|path| path.is_file());
    built.ok_or_else(|| RunError::NotBuilt {
        path: tree.to_path_buf(),
        what: match tree.join("Kbuild").is_file() {
            true => "is a tree of Linux that is not built: `make` there makes arch/x86/boot/bzImage",
            false => "is a directory, and no tree of Linux: it has no arch/x86/boot/bzImage; name the kernel's file",
        },
    })
}

/// The folder in which this kernel was built, if its modules are there.
pub(super) fn of(kernel: &Path) -> Option<&Path> {
    let tree = KERNELS.iter().find_map(|name| {
        let levels = Path::new(name).components().count();
        kernel.ends_with(name).then(|| kernel.ancestors().nth(levels))?
    })?;
    // What is built without modules has no such list, or an empty one.
    tree.join("modules.order").is_file().then_some(tree)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn kernel_of_a_tree_is_found_and_the_tree_of_a_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path();
        let says = |word: &str| {
            let error = kernel(tree).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(tree.to_str().unwrap()), "{error}");
        };
        says("no tree of Linux");
        fs::write(tree.join("Kbuild"), "").unwrap();
        says("is not built: `make`");
        fs::write(tree.join("vmlinux"), "").unwrap();
        assert_eq!(kernel(tree).unwrap(), tree.join("vmlinux"));
        assert_eq!(of(&tree.join("vmlinux")), None);
        fs::write(tree.join("modules.order"), "").unwrap();
        assert_eq!(of(&tree.join("vmlinux")), Some(tree));
        fs::create_dir_all(tree.join("arch/x86/boot")).unwrap();
        let image = tree.join("arch/x86/boot/bzImage");
        fs::write(&image, "").unwrap();
        assert_eq!(kernel(tree).unwrap(), image);
        assert_eq!(of(&image), Some(tree));
        assert_eq!(of(&tree.join("bzImage")), None);
    }
}
