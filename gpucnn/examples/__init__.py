"""Examples to run and to read: ``python -m gpucnn.examples.NAME``; they need ``pip install "gpucnn[examples]"``."""
