#!/bin/sh
# Runs the native operators under AddressSanitizer and UndefinedBehaviorSanitizer over shapes that hypothesis makes up and
# over calls that do not fit (sanitize.py says which), once for each instruction set that this CPU has. Builds in
# build/sanitize; the installed operator stays as it is. EXAMPLES sets how many shapes, CALLS how many calls of each operator.
set -eu
cd "$(dirname "$0")/.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
compiler=${CXX:-g++}
base=$PWD/build/sanitize

sanitizers="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
flags="$sanitizers -include $PWD/scripts/sanitize.h"
CFLAGS=$flags CXXFLAGS=$flags LDFLAGS=$sanitizers \
    "$python" setup.py --quiet build --force --build-base "$base" --build-lib "$base/lib"
ls "$base"/lib/condconv/execution/native/_ops*.so >/dev/null

# Python itself is not sanitized, so the runtime has to come first; libstdc++ beside it, else exceptions are not caught.
preload="$("$compiler" -print-file-name=libasan.so):$("$compiler" -print-file-name=libstdc++.so)"
# Findings go into report.*, for the processes that make the calls have no standard error.
for isa in avx2 avx512 best; do
    echo "== $isa"
    rm -f "$base"/report.*
    (cd "$base" && LD_PRELOAD=$preload PYTHONPATH=$base/lib:$OLDPWD CONDCONV_ISA=$isa \
        ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0:allocator_may_return_null=1:log_path=$base/report \
        UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:log_path=$base/report \
        "$python" "$OLDPWD/scripts/sanitize.py" --under "$base" --examples "${EXAMPLES:-300}" --calls "${CALLS:-2000}") ||
        { cat "$base"/report.*; exit 1; }
done
