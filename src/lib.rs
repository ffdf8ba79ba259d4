//! minivmm: a virtual machine monitor straight on /dev/kvm.
