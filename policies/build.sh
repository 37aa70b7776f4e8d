#!/bin/sh
# Builds the shipped `rules` module from its source: build.sh [OUTPUT], by default rules.wasm beside this file.
#
# Wants a Rust toolchain with the target wasm32-unknown-unknown (`rustup target add wasm32-unknown-unknown`) and the
# program `portcullis` (or its path in PORTCULLIS), which makes the core module a component. Where the target is missing,
# Debian's packages rustc-web, cargo-web, rust-web-src and lld-19 do: they bring std as source, which is then built too.
#
# The same sources and the same toolchain give the same bytes, wherever the checkout is.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
checkout=$(dirname -- "$here")
target=wasm32-unknown-unknown
core="$here/rules/target/$target/release/rules.wasm"
output=${1:-"$here/rules.wasm"}
case $output in /*) ;; *) output=$(pwd)/$output ;; esac

cargo=cargo rustc=rustc build_std=
if [ ! -d "$(rustc --print target-libdir --target "$target" 2>/dev/null)" ]; then
    cargo=/usr/bin/cargo rustc=/usr/bin/rustc build_std=-Zbuild-std=std,panic_abort
    export RUSTC_BOOTSTRAP=1 CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld-19
    if [ ! -f "$("$rustc" --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ]; then
        echo "build.sh: no toolchain for $target: run \`rustup target add $target\`, or see the top of this file" >&2
        exit 1
    fi
fi

# Messages of panics carry paths of sources; none of this machine's may get into the module.
std_source=$("$rustc" --print sysroot)/lib/rustlib/src/rust
cargo_home=${CARGO_HOME:-"$HOME/.cargo"}
separator=$(printf '\037')
export RUSTC="$rustc"
cd "$here/rules"
"$cargo" fetch --locked --target "$target"

flags=
remap() {
    flags="$flags${flags:+$separator}--remap-path-prefix=$1=$2"
}
remap "$checkout" /portcullis
remap "$std_source" /rust
remap "$(readlink -f -- "$std_source/library" || echo "$std_source/library")" /rust/library
for registry in "$cargo_home"/registry/src/*; do
    remap "$registry" /crates
done
export CARGO_ENCODED_RUSTFLAGS="$flags"
"$cargo" build --release --locked --lib --target "$target" --target-dir "$here/rules/target" $build_std
"${PORTCULLIS:-portcullis}" policy componentize "$core" --output "$output"
"$rustc" --version > "$output.compiler"
