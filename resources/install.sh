#!/bin/bash
# Installs minivmm under $DESTDIR$PREFIX: the program, its manual pages, what shells complete, the systemd unit; or removes
# them again (`install.sh uninstall`). DESTDIR is for those who make packages: it stands in front of every path and in none.
set -euo pipefail
cd "$(dirname "$0")/.."

prefix=${PREFIX:-/usr/local}
root=${DESTDIR:-}$prefix
profile=${PROFILE:-release}
target=${CARGO_TARGET_DIR:-target}
built=$target/${profile/#dev/debug}
share=$target/share

# Pages of verbs that are gone go too.
if [ "${1:-install}" = uninstall ]; then
    rm -fv "$root/bin/minivmm" "$root/share/man/man1/minivmm.1" "$root/share/man/man1/minivmm-"*.1 \
        "$root/share/bash-completion/completions/minivmm" "$root/share/zsh/site-functions/_minivmm" \
        "$root/share/fish/vendor_completions.d/minivmm.fish" "$root/lib/systemd/system/minivmm@.service"
    exit
fi

# What is built belongs to whoever said sudo, not to root.
as_user=()
if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ]; then
    home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    as_user=(runuser -u "$SUDO_USER" -- env "HOME=$home" "PATH=$home/.cargo/bin:$PATH")
fi
# The test of this script uses the profile of tests: with the whole workspace and an example, cargo chooses the features of
# the other tests, so that everything is built already.
as_tests=()
[ "$profile" != dev ] || as_tests=(--workspace --example pool)
"${as_user[@]}" cargo build --quiet --profile "$profile" -p minivmm -p manual "${as_tests[@]}" --bin minivmm --bin manual
"${as_user[@]}" rm -rf "$share"
"${as_user[@]}" "$built/manual" "$share"

install -v -D -m 755 "$built/minivmm" "$root/bin/minivmm"
(cd "$share" && find . -type f -print0) | while IFS= read -r -d '' file; do
    install -v -D -m 644 "$share/$file" "$root/share/${file#./}"
done
install -d "$root/lib/systemd/system"
sed "s|@bindir@|$prefix/bin|g" resources/minivmm@.service >"$root/lib/systemd/system/minivmm@.service"
chmod 644 "$root/lib/systemd/system/minivmm@.service"
