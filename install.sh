#!/usr/bin/env bash
# Make .venv and install kdscale with all that its main job needs:   ./install.sh [EXTRA ...]
#
# EXTRA is an extra of pyproject.toml (dev, vision, digits, deepspeed, export, search, docs, all); ffcv and mlflow always belong to it.
# What is there is kept, a CUDA build of torch above all; a second call installs nothing.
#
#   PYTHON=python3   the interpreter, >= 3.10; where it already has torch >= 2.6, that torch is used as it is
#   VENV=.venv       where to install
#   REQUIRE=ffcv     fail where FFCV cannot be installed; otherwise its absence is said and the torch loader is used
#   REQUIRE=slurm    fail where the tools for tests cannot have SLURM, which dev brings to test sweeps on a real cluster

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
CPU_INDEX=https://download.pytorch.org/whl/cpu
DEMO_DATA=/usr/share/datasets/fashion-mnist

say() { printf 'install: %s\n' "$*"; }
fail() { printf 'install: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
pip_install() { "$VENV/bin/python" -m pip install -qq --disable-pip-version-check "$@"; }

main() {
    local extra wanted=(main "$@") missing=()
    local stamps
    stamps="$VENV/.kdscale/$(cat pyproject.toml constraints.txt install.sh | cksum | tr ' ' '-')"
    for extra in "${wanted[@]}"; do
        [[ -e $stamps/$extra ]] || missing+=("$extra")
    done
    if ((${#missing[@]})) || ffcv_is_due; then
        check_python
        system_packages
        [[ " $* " != *" dev "* ]] || browser
        make_venv
        install_torch
        install_kdscale "$@"
        install_ffcv
        mkdir -p "$stamps"
        (cd "$stamps" && touch "${wanted[@]}")
        say "done: $VENV/bin/python has kdscale; look at it with: $VENV/bin/python launch/doctor.py"
    fi
    [[ " $* " != *" dev "* ]] || slurm
    has_package ffcv || say "without FFCV the torch loader is used (python launch/doctor.py says what is missing)"
}

# --------------------------------------------------------------------------- what is there

check_python() {
    have "$PYTHON" || fail "there is no $PYTHON; name an interpreter >= 3.10: PYTHON=/path/to/python3 make setup"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$PYTHON is $("$PYTHON" -V 2>&1), kdscale needs >= 3.10: PYTHON=/path/to/python3 make setup"
}

has_package() { [[ -x $VENV/bin/python ]] && version_of "$1" "$VENV/bin/python" >/dev/null; }

ffcv_is_due() { [[ ${REQUIRE:-} == *ffcv* ]] && ! has_package ffcv; }

version_of() { # PACKAGE PYTHON; reads metadata only: importing torch takes seconds
    "$2" -c 'import sys; from importlib import metadata; print(metadata.version(sys.argv[1]).split("+")[0])' "$1" 2>/dev/null
}

torch_fits() { # PYTHON
    local version
    version=$(version_of torch "$1") && [[ $(printf '%s\n2.6\n' "$version" | sort -V | head -n 1) == 2.6 ]]
}

has_gpu() { have nvidia-smi && nvidia-smi -L >/dev/null 2>&1; }

# --------------------------------------------------------------------------- the system's packages

# What FFCV is built with, as "what it is|apt|dnf|conda". Nothing here is or starts a service.
missing_system_packages() {
    local config=true
    have g++ || have c++ || have clang++ || echo "a C++ compiler|g++|gcc-c++|cxx-compiler"
    have pkg-config || { config=false && echo "pkg-config|pkg-config|pkgconf-pkg-config|pkg-config"; }
    $config && pkg-config --exists opencv4 || echo "OpenCV|libopencv-dev|opencv-devel|opencv"
    $config && pkg-config --exists libturbojpeg || echo "TurboJPEG|libturbojpeg0-dev|turbojpeg-devel|libjpeg-turbo"
    "$PYTHON" -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' ||
        echo "Python's headers|python3-dev|python3-devel|python"
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || echo "Python's venv|python3-venv|python3|python"
}

system_packages() {
    [[ $(uname) == Linux ]] || return 0
    local missing
    missing=$(missing_system_packages)
    if may_apt; then
        [[ -z $missing && -d $DEMO_DATA ]] || apt_update
        # shellcheck disable=SC2046  # one word a package
        [[ -z $missing ]] || apt_install $(column 2 <<<"$missing") || true
        [[ -d $DEMO_DATA ]] || apt_install dataset-fashion-mnist || say "the demo will download its data (30 MB)"
        missing=$(missing_system_packages)
    fi
    [[ -z $missing ]] || explain_missing "$missing"
}

# The MLflow UI is tested as a person sees it.
browser() {
    have chromium && have chromedriver && return
    if may_apt; then
        apt_update
        apt_install chromium chromium-driver && return
    fi
    say "no chromium and chromium-driver: the tests of the MLflow UI in a browser will be skipped"
}

# Sweeps are tested on a real cluster, which slurm/local-cluster/cluster.sh starts and ends by itself.
slurm() {
    local program missing=()
    for program in munged slurmctld slurmd slurmdbd mariadbd; do
        PATH=$PATH:/usr/sbin:/sbin have "$program" || missing+=("$program")
    done
    ((${#missing[@]})) || return 0
    if may_apt; then
        apt_update
        without_services apt_install slurm-wlm munge slurmdbd mariadb-server-core && return
    fi
    [[ ${REQUIRE:-} != *slurm* ]] ||
        fail "missing: ${missing[*]}; sudo apt-get install --no-install-recommends slurm-wlm munge slurmdbd mariadb-server-core"
    say "without SLURM (${missing[*]}) the tests on a real cluster are left out"
}

# Debian starts services when they are installed, and at every boot from then on: not these.
without_services() {
    local unit policy=/usr/sbin/policy-rc.d own="" code=0 enabled=()
    local units=(munge slurmctld slurmd slurmdbd)
    for unit in "${units[@]}"; do
        ! systemctl is-enabled --quiet "$unit" 2>/dev/null || enabled+=("$unit")
    done
    if [[ ! -e $policy ]]; then
        own=$policy
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null && as_root chmod 755 "$policy"
    fi
    "$@" || code=$?
    [[ -z $own ]] || as_root rm -f "$own"
    for unit in "${units[@]}"; do
        [[ " ${enabled[*]:-} " == *" $unit "* ]] || as_root systemctl --quiet disable "$unit" >/dev/null 2>&1 || true
    done
    return "$code"
}

column() { cut -d'|' -f"$1" | sort -u | tr '\n' ' '; }

may_apt() { have apt-get && { [[ $EUID -eq 0 ]] || { have sudo && sudo -n true 2>/dev/null; }; }; }

as_root() { if [[ $EUID -eq 0 ]]; then "$@"; else sudo -n "$@"; fi; }

apt_update() { as_root apt-get update -qq >/dev/null 2>&1 || say "apt-get update failed; trying with the lists that are there"; }

apt_install() {
    say "installing with apt: $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        -o DPkg::Lock::Timeout=120 "$@" >/dev/null || { say "apt could not install: $*" && return 1; }
}

explain_missing() {
    say "missing for FFCV, the fast loader: $(column 1 <<<"$1")"
    say "  apt:   sudo apt-get install $(column 2 <<<"$1")"
    say "  dnf:   sudo dnf install $(column 3 <<<"$1")"
    say "  conda: conda install -c conda-forge $(column 4 <<<"$1")"
    [[ ${REQUIRE:-} != *ffcv* ]] || fail "REQUIRE=ffcv: install these packages and call again"
    say "going on without it: the torch loader gives the same batches"
}

# --------------------------------------------------------------------------- Python packages

make_venv() {
    [[ -x $VENV/bin/python ]] && return
    "$PYTHON" -m venv "$VENV" || fail "$PYTHON cannot make a venv; on Debian and Ubuntu: sudo apt-get install python3-venv"
    if torch_fits "$PYTHON"; then
        say "using torch $(version_of torch "$PYTHON") of $PYTHON"
        folder_of torch "$PYTHON" >"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
    fi
}

# Where a package lies. A path file reaches into conda environments, user installs and other venvs alike, which
# --system-site-packages does not.
folder_of() { "$2" -c 'import sys; from importlib import metadata; print(metadata.distribution(sys.argv[1]).locate_file(""))' "$1"; }

pinned() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" constraints.txt | head -n 1; }

install_torch() {
    local version
    version=$(pinned torch)
    if torch_fits "$VENV/bin/python"; then
        say "keeping torch $(version_of torch "$VENV/bin/python")"
    elif [[ $(uname) == Linux ]] && ! has_gpu && cpu_index_answers &&
        { say "installing torch $version, CPU build" && pip_install -c constraints.txt "torch==$version+cpu" --extra-index-url "$CPU_INDEX"; }; then
        :
    else
        say "installing torch $version"
        pip_install -c constraints.txt "torch==$version"
    fi
    # The tested versions, but never another torch than the one that is there.
    { grep -v -E '^(torch|torchvision)==' constraints.txt && echo "torch==$(version_of torch "$VENV/bin/python")"; } \
        >"$VENV/constraints.txt"
}

cpu_index_answers() {
    "$VENV/bin/python" - "$CPU_INDEX/torch/" <<'PYTHON' 2>/dev/null
import signal, sys, urllib.request
signal.alarm(3)  # names that do not resolve can take longer than any socket's timeout
urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=3)
PYTHON
}

install_kdscale() {
    local extras
    extras=$(IFS=, && echo "mlflow${*:+,$*}")
    say "installing kdscale[$extras]"
    pip_install "setuptools>=77" wheel
    [[ ",$extras," != *,vision,* && ",$extras," != *,all,* ]] || install_torchvision
    DS_BUILD_OPS=0 pip_install -c "$VENV/constraints.txt" --editable ".[${extras/all/deepspeed,export,search,vision,digits,docs,dev}]"
}

# torchvision 0.n belongs to torch 2.(n - 15). --no-deps: its wheel asks for a CUDA torch.
install_torchvision() {
    local torch
    torch=$(version_of torch "$VENV/bin/python")
    has_package torchvision || pip_install --no-deps "torchvision==0.$(($(cut -d. -f2 <<<"$torch") + 15)).*"
}

install_ffcv() {
    has_package ffcv && return
    local log="$VENV/ffcv.log"
    if [[ -z $(missing_system_packages) ]]; then
        say "building ffcv $(pinned ffcv)"
        if pip_install --no-build-isolation -c "$VENV/constraints.txt" ffcv >"$log" 2>&1 &&
            "$VENV/bin/python" -W ignore -c 'import ffcv' >>"$log" 2>&1; then
            return
        fi
        "$VENV/bin/python" -m pip uninstall --quiet --yes ffcv >/dev/null 2>&1 || true
        say "ffcv could not be built or does not import: see $log"
    fi
    [[ ${REQUIRE:-} != *ffcv* ]] || fail "REQUIRE=ffcv: FFCV is not there"
}

main "$@"
