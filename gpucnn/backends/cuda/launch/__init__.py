"""Kernel launches: plans, recorded calls, dry runs."""
