"""Examples to run and to read: ``python -m gpucnn.examples.NAME``; they need the extra ``examples``."""
