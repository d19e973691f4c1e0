"""Programs compiled for devices that are not there, and what they would need there."""

from guidedflow.plan.planning import Plan, plan
from guidedflow.plan.proposals import that_fit
from guidedflow.plan.report import as_json, as_table
from guidedflow.plan.stand_in import dataset_for
from guidedflow.plan.topology import SLICES, target_of

__all__ = ["SLICES", "Plan", "as_json", "as_table", "dataset_for", "plan", "target_of", "that_fit"]
