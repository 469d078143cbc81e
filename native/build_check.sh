#!/bin/sh
# Builds check.c with a compiler of one's choice, from the sources and flags that CMakeLists.txt names.
#
#     build_check.sh OUTPUT COMPILER [FLAG...]
#
# Neither Python nor CMake is needed, and the compiler may be one for another processor.
set -eu
mkdir -p "$(dirname "$1")"
output=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
shift
case $("$1" -dumpmachine) in
    x86_64*) sets='sse2 avx2 avx512' have=-DHAVE_X86 ;;
    aarch64*) sets=neon have=-DHAVE_NEON ;;
    *) sets='' have= ;;
esac
cd "$(dirname "$0")"
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT

listed() { sed -n "s/^ *$1 *\(.*\))\$/\1/p" CMakeLists.txt; }

# One line per compilation: instruction set, source, flags.
jobs() {
    for source in $(listed 'add_library(kernels_scalar OBJECT'); do echo "scalar $source -DSCALAR"; done
    listed 'add_isa(' | while read -r isa flags; do
        case " $sets " in *" $isa "*) ;; *) continue ;; esac
        for source in $(listed 'set(VECTOR'); do echo "$isa $source $flags"; done
    done
    for source in check.c kernels.c grids.c; do echo "none $source $have"; done
}

jobs | while read -r isa source flags; do
    echo "$* -std=gnu11 -ffp-contract=off -fno-fast-math -DISA=$isa $flags -c $source -o $objects/$isa-$source.o"
done | xargs -P "$(nproc)" -I{} sh -c '{}'
"$@" "$objects"/*.o -lm -o "$output"
