"""``python -m gpucnn``: print what this machine offers, or compile the CPU kernels for it."""

import sys

from gpucnn.information import main

main(sys.argv[1:])
