"""`agentloop` with a trainer process that takes its time, whatever the model.

python with_trainer.py METHOD ARGUMENTS...     # METHOD: file.py:name
"""

import sys
from dataclasses import dataclass, replace

from agentloop.cli import main
from agentloop.records import TrainingJob, TrainingResult
from agentloop.training.job import ProcessTrainer
from agentloop.workflows import assemble


@dataclass
class Slow:
    """The `Trainer` port."""

    method: str

    async def train(self, given: TrainingJob) -> TrainingResult:
        """As a process."""
        return await ProcessTrainer(deadline=60).train(replace(given, method=self.method))


if __name__ == "__main__":
    trainer = Slow(sys.argv[1])
    assemble._trainer = lambda *_: trainer  # type: ignore[assignment]
    main(sys.argv[2:])
