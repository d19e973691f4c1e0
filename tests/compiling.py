"""Flags under which XLA compiles small programs for a CPU soonest."""

# Most of a test's time is compiling small programs: the least optimisation halves it. XLA's older code
# generator (--xla_cpu_use_fusion_emitters=false) halves it again, and gives wrong numbers:
# tests/samplers/test_native.py sees them.
QUICKLY = "--xla_backend_optimization_level=0"
