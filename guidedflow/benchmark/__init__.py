"""Guided sampler steps per second on a device, and the fraction of its peak.

All modes of sampling are compiled ahead of time. Then they, and the matmul that gives the device's peak,
are timed in turn, A B C A B C. A disturbance of the machine therefore affects all of them alike. Ratios
are taken round by round. The benchmark needs the core and Flax, but no data and no config library; plots
need matplotlib.
"""

from guidedflow.benchmark.counting import (
    counted_flops,
    dit_flops,
    evaluations,
    matmul_peak,
    matmuls,
    network_flops,
)
from guidedflow.benchmark.growth import bench_growth, growth_table
from guidedflow.benchmark.parts import bench_parts, parts_table
from guidedflow.benchmark.sampling import Program, bench, compile_mode, table
from guidedflow.benchmark.timing import machine, program_bytes, spread, timed
from guidedflow.benchmark.training import STRATEGIES, bench_training, strategy_of
from guidedflow.benchmark.workload import (
    MODES,
    SCALE,
    Workload,
    make_workload,
    model_of,
    over_devices,
)

__all__ = [
    "MODES",
    "SCALE",
    "STRATEGIES",
    "Program",
    "Workload",
    "bench",
    "bench_growth",
    "bench_parts",
    "bench_training",
    "compile_mode",
    "counted_flops",
    "dit_flops",
    "evaluations",
    "growth_table",
    "machine",
    "make_workload",
    "matmul_peak",
    "matmuls",
    "model_of",
    "network_flops",
    "over_devices",
    "parts_table",
    "program_bytes",
    "spread",
    "strategy_of",
    "table",
    "timed",
]
