"""From a kernel and its arrays to a launch: plans, recorded calls, dry runs."""
