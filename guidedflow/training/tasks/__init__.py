"""What can be trained, by name: one task a file."""

from guidedflow.training.tasks import classifier, distillation, flow, guidance_free
from guidedflow.training.tasks.task import Parts, Task

__all__ = ["TASKS", "Parts", "Task"]

TASKS: dict[str, Task] = {
    "flow": flow.TASK,
    "classifier": classifier.TASK,
    "distillation": distillation.TASK,
    "guidance_free": guidance_free.TASK,
}
