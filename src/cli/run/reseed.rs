//! A program for the guest that has Linux make its random generator anew from its pool: what init has written there is drawn from at once,
//! and not only when the generator is renewed the next time, some minutes later. No program of busybox asks for that.

/// Where it is loaded.
const BASE: u64 = 0x40_0000;
/// Bytes of the ELF header and of its one program header.
const HEADERS: u64 = 64 + 56;
/// It ends with the error number of the ioctl, or 0.
const CODE: &[u8] = &[
    0xb8, 2, 0, 0, 0, // mov eax, 2 (open)
    0x48, 0x8d, 0x3d, 34, 0, 0, 0, // lea rdi, [rip + 34]: the path behind the code
    0xbe, 1, 0, 0, 0, // mov esi, O_WRONLY
    0x31, 0xd2, // xor edx, edx
    0x0f, 0x05, // syscall
    0x89, 0xc7, // mov edi, eax
    0xb8, 16, 0, 0, 0, // mov eax, 16 (ioctl)
    0xbe, 0x07, 0x52, 0, 0, // mov esi, RNDRESEEDCRNG (Linux 4.17)
    0x0f, 0x05, // syscall
    0x89, 0xc7, // mov edi, eax
    0xf7, 0xdf, // neg edi
    0xb8, 60, 0, 0, 0, // mov eax, 60 (exit)
    0x0f, 0x05, // syscall
];
const PATH: &[u8] = b"/dev/urandom\0";

/// The program, an ELF file that needs nothing.
pub(super) fn program() -> Vec<u8> {
    let size = HEADERS + CODE.len() as u64 + PATH.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    // Executable, x86-64, version 1.
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    // Its entry, the program header, no sections.
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    // No flags; sizes of the headers, and how many there are.
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // All of the file, to be read and executed.
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    [&elf, CODE, PATH].concat()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn program_asks_the_kernel_and_ends_with_its_answer() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("reseed");
        std::fs::write(&file, program()).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).unwrap();
        let status = Command::new(&file).status().unwrap().code();
        // Who may not, or a kernel that does not know it.
        let refused = [libc::EPERM, libc::EINVAL, libc::ENOTTY, libc::ENODATA];
        assert!(status == Some(0) || refused.map(Some).contains(&status), "{status:?}");
    }
}
