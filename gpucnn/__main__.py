"""``python -m gpucnn``: print what this machine offers."""

from gpucnn.information import main

main()
