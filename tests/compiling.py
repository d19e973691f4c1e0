"""Flags under which XLA compiles small programs for a CPU soonest."""

# Most of a test's time is compiling small programs: the least optimisation halves it, and XLA's older
# code generator, which goes through no MLIR, halves it again.
QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
