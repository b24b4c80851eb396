"""``python -m gpucnn``: what this machine offers."""

from gpucnn.information import main

main()
