#!/bin/sh
# rustdoc with its unstable options, for a toolchain that is stable.
RUSTC_BOOTSTRAP=1 exec rustdoc "$@"
