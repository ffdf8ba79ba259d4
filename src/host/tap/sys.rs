//! The ioctls of the TUN driver (linux/if_tun.h). None needs a capability on the user's own TAP.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use virtio::net::Offloads;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

use super::error::TapError;
use super::offload;

const DEV_NET_TUN: &str = "/dev/net/tun";

const TUN: u32 = 'T' as u32;
ioctl_iow_nr!(TUNSETIFF, TUN, 202, libc::c_int);
ioctl_iow_nr!(TUNSETOFFLOAD, TUN, 208, libc::c_uint);
ioctl_ior_nr!(TUNGETIFF, TUN, 210, libc::c_uint);
#[cfg(test)]
ioctl_ior_nr!(TUNGETVNETHDRSZ, TUN, 215, libc::c_int);
ioctl_iow_nr!(TUNSETVNETHDRSZ, TUN, 216, libc::c_int);
ioctl_iow_nr!(TUNSETQUEUE, TUN, 217, libc::c_int);
ioctl_iow_nr!(TUNSETVNETLE, TUN, 220, libc::c_int);

const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_PERSIST: u16 = 0x0800;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// Length of the header before each frame: virtio 1.3 §5.1.6, with `num_buffers`.
const HEADER: libc::c_int = 12;
/// A TAP queues 500 or 1000 frames, unless `ip link set txqueuelen` sets more.
const MAX_DRAINED: usize = 16 << 10;
/// The driver's default: the header of virtio 0.9, without `num_buffers`.
const LEGACY_HEADER: libc::c_int = 10;

/// `struct ifreq` with flags, as the driver copies it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

impl Request {
    fn new(name: &str, flags: u16) -> Self {
        let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
        // One byte stays zero: names are shorter than IFNAMSIZ.
        for (to, from) in request.name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from;
        }
        request
    }
}

/// Opens the TUN driver without attaching; reads and writes do not block.
pub(super) fn open_tun() -> Result<File, TapError> {
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEV_NET_TUN);
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => TapError::DriverDenied,
        io::ErrorKind::NotFound => TapError::DriverMissing,
        _ if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => TapError::DriverMissing,
        _ => TapError::Driver(source),
    })
}

/// Attaches `file` to the TAP called `name`, with virtio headers. False if that TAP is not persistent, so did
/// not exist before.
pub(super) fn attach(file: &File, name: &str, multi_queue: bool) -> io::Result<bool> {
    let queues = if multi_queue { IFF_MULTI_QUEUE } else { 0 };
    let request = Request::new(name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | queues);
    // SAFETY: `request` is a whole `struct ifreq` that lives across the call.
    check(unsafe { ioctl_with_ref(file, TUNSETIFF(), &request) })?;
    let mut is = Request::new("", 0);
    // SAFETY: the driver writes one `struct ifreq`, which `is` has room for.
    check(unsafe { ioctl_with_mut_ref(file, TUNGETIFF(), &mut is) })?;
    Ok(is.flags & IFF_PERSIST != 0)
}

/// The best set of offloads that this kernel accepts; it is set afterwards.
pub(super) fn best_offloads(file: &File) -> Offloads {
    let best = offload::CANDIDATES.iter().find(|step| set_offloads(file, **step).is_ok());
    best.copied().unwrap_or(Offloads::empty())
}

/// Sets the header's size and byte order.
pub(super) fn set_header(file: &File) -> io::Result<()> {
    set_int(file, TUNSETVNETHDRSZ(), HEADER)?;
    set_int(file, TUNSETVNETLE(), 1)
}

/// Discards the frames in a queue, at most [`MAX_DRAINED`]: on a busy network new ones keep coming.
pub(super) fn drain(mut file: &File) {
    // The rest of a longer frame is cut off.
    let mut start = [0; 64];
    for _ in 0..MAX_DRAINED {
        match file.read(&mut start) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A frame that the driver cannot describe in a header; it is removed, too.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// Sets the offloads.
pub(super) fn set_offloads(file: &File, offloads: Offloads) -> io::Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { ioctl_with_val(file, TUNSETOFFLOAD(), offload::bits(offloads)) })
}

/// Attaches or detaches a queue of a multi-queue TAP.
pub(super) fn set_queue(file: &File, attached: bool) -> io::Result<()> {
    let request = Request::new("", if attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE });
    // SAFETY: `request` is a whole `struct ifreq` that lives across the call.
    check(unsafe { ioctl_with_ref(file, TUNSETQUEUE(), &request) })
}

/// Resets what [`set_header`] and [`set_offloads`] changed. Errors are ignored: the next process must cope
/// with a crash as well.
pub(super) fn restore(file: &File) {
    let _ = set_offloads(file, Offloads::empty());
    let _ = set_int(file, TUNSETVNETLE(), 0);
    let _ = set_int(file, TUNSETVNETHDRSZ(), LEGACY_HEADER);
}

fn set_int(file: &File, request: libc::c_ulong, value: libc::c_int) -> io::Result<()> {
    // SAFETY: both requests that come here read one int, which lives across the call.
    check(unsafe { ioctl_with_ref(&file.as_raw_fd(), request, &value) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes of the header before each frame.
#[cfg(test)]
pub(super) fn header_len(file: &File) -> io::Result<libc::c_int> {
    let mut len = 0;
    // SAFETY: the driver writes one int, which `len` has room for.
    check(unsafe { ioctl_with_mut_ref(file, TUNGETVNETHDRSZ(), &mut len) })?;
    Ok(len)
}
