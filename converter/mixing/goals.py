"""How large a mixture may be: bytes of the file, bits per weight, or what a machine's memory has room for."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from converter.compare import kept_free
from converter.errors import UnsupportedFeature, UsageError
from converter.inspection import running_memory
from converter.planning.plan import Plan
from converter.text import human_bytes

CONTEXT = 4096  # tokens that memory is for, where nobody says


@dataclass(frozen=True)
class Goal:
    """One of the three: `size` of the file, `bits` per weight of its tensors, or `memory` to run it in with `context`
    tokens, of which `reserve` stays free (None: what `convert compare --fit-memory` leaves)."""

    size: int | None = None
    bits: Fraction | None = None
    memory: int | None = None
    context: int = CONTEXT
    reserve: int | None = None

    def nbytes(self, plan: Plan) -> int:
        """Bytes that the file may have; of `plan` the types do not matter.

        Raises:
            UsageError: nothing is left of the memory for tensors.
            UnsupportedFeature: what the model needs to run is not known.
        """
        stored = sum(step.bytes for step in plan.steps)
        around = plan.total_bytes - stored
        if self.size is not None:
            return self.size
        if self.bits is not None:
            return around + int(self.bits * plan.n_parameters / 8)
        assert self.memory is not None
        tensors = {step.name: (step.shape, step.type) for step in plan.steps}
        found = running_memory.estimate(plan.checkpoint.config, tensors, (self.context,))
        if not found.needs:
            raise UnsupportedFeature(f"{plan.source.path}: what memory it takes is not known: {found.reason}")
        beside, free = found.needs[0].cache + found.needs[0].compute, kept_free(self.memory, self.reserve)
        left = self.memory - free - beside
        if left <= 0:
            raise UsageError(
                f"--fit-memory: {self.context} tokens take {human_bytes(beside)} beside the weights, and "
                f"{human_bytes(free)} stay free (--reserve): nothing is left of {human_bytes(self.memory)}"
            )
        return around + left
