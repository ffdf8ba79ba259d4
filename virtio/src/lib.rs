//! virtio 1.x devices over PCI.
//!
//! Empty so far except for the identities that its PCI functions will carry.
#![forbid(unsafe_code)]
