"""Settings that must stand before the first import of numpy or torch."""

import os

# Two test processes on two cores: more threads would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
